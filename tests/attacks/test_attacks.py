"""Attacks on linear and real taggers: what moves, how far, and that it hurts."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bhive_mltf.attacks.attack import pick_attack
from bhive_mltf.attacks.factors import feature_factors
from bhive_mltf.attacks.integers import INTEGER_FEATURES
from bhive_mltf.attacks.options import AttackOptions
from bhive_mltf.errors import ParameterError
from bhive_mltf.interface import Batch, GroupBatch, GroupInput, ModelInputs
from tests.helpers.memory_dataset import inputs as memory_inputs
from tests.helpers.memory_dataset import make_dataset
from tests.helpers.model_factory import jets, logits_of, small

N_CLASSES = 3
COLUMNS = {"global": ("jet_pt", "nsv"), "cpf": ("a", "px", "Cpfcan_quality", "LT_charge")}
INPUTS = ModelInputs(
    classes=(("b", ("isB",)), ("c", ("isC",)), ("l", ("isL",))),
    groups=(
        GroupInput("global", COLUMNS["global"], 1),
        GroupInput("cpf", COLUMNS["cpf"], 3, ("px", "py", "pz", "e"), "pxpypze"),
    ),
    padding="longest",
)
PGD = AttackOptions("pgd", magnitude=0.1, iterations=4)
ALL = (PGD, AttackOptions("jetfool", iterations=3), AttackOptions("optimizer", iterations=3, uncertainty=0.2))


class Linear(nn.Module):
    """Logits linear in features and in four-vectors; a dropout and a batch norm that only training feels."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.jet, self.cpf = nn.Linear(2, N_CLASSES), nn.Linear(4, N_CLASSES)
        self.vectors = nn.Linear(4, N_CLASSES)
        self.norm, self.dropout = nn.BatchNorm1d(N_CLASSES), nn.Dropout(0.5)

    def forward(self, batch):
        cpf = batch.groups["cpf"]
        candidates = (self.cpf(cpf.features) + self.vectors(cpf.four_vectors)) * cpf.mask[..., None]
        return self.norm(self.dropout(candidates.sum(1) + self.jet(batch.groups["global"].features[:, 0])))


def batch(n_jets=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(3)[None] < torch.arange(n_jets)[:, None] % 4
    features = torch.randn(n_jets, 3, 4, generator=generator) * mask[..., None]
    features[0::2, :, 0] = 0.0  # a default value
    vectors = torch.randn(n_jets, 3, 4, generator=generator) * mask[..., None]
    vectors[..., 0] = features[..., 1]
    return Batch(
        groups={
            "global": GroupBatch(
                torch.randn(n_jets, 1, 2, generator=generator),
                torch.ones(n_jets, 1, dtype=torch.bool),
                COLUMNS["global"],
            ),
            "cpf": GroupBatch(features, mask, COLUMNS["cpf"], vectors),
        },
        target=torch.randint(0, N_CLASSES, (n_jets,), generator=generator),
        weight=torch.ones(n_jets),
        jet_id=torch.zeros(n_jets, 2, dtype=torch.int64),
        process=torch.zeros(n_jets, dtype=torch.int64),
        kinematics=torch.zeros(n_jets, 2),
        global_size=n_jets,
    )


def changes(options, model=None, before=None, **kwargs):
    before = before or batch()
    after = pick_attack(options, model or Linear().eval(), INPUTS, **kwargs)(before)
    return {name: after.groups[name].features - group.features for name, group in before.groups.items()}, after


def losses(model, made):
    return F.cross_entropy(logits_of(model(made)), made.target, reduction="none").detach()


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.attack)
def test_w31_integers_zeros_and_padding_stay(options):
    moved, after = changes(options)
    before = batch()
    for name, integer in (("global", [1]), ("cpf", [2, 3])):
        assert not moved[name][..., integer].any()
        assert not moved[name][before.groups[name].features == 0].any()
        assert not moved[name][~before.groups[name].mask].any()
        assert moved[name].any()
    vectors = after.groups["cpf"].four_vectors
    # px is a feature too; the other components are not
    assert torch.equal(vectors[..., 0], after.groups["cpf"].features[..., 1])
    assert torch.equal(vectors[..., 1:], before.groups["cpf"].four_vectors[..., 1:])
    assert torch.equal(after.target, before.target)


def test_without_reduce_integers_and_zeros_move_padding_stays():
    moved, _ = changes(dataclasses.replace(PGD, reduce=False))
    mask = batch().groups["cpf"].mask
    assert moved["cpf"][mask].abs().amin() > 0.09
    assert moved["global"].abs().amin() > 0.09
    assert not moved["cpf"][~mask].any()


def test_a_model_may_declare_integers_itself():
    model = Linear().eval()
    model.integer_features = {"cpf": ("a",)}
    moved, _ = changes(PGD, model)
    assert not moved["cpf"][..., 0].any()


def test_w31_all_tables_of_integer_features_are_covered():
    assert {"LT_charge", "LT_pdgID", "LT_numberOfStripHits", "LT_puppiw"} <= INTEGER_FEATURES
    assert {"jet_pfcand_npixhits", "jet_sv_ntrack", "sv_ntracks", "Npfcan_isGamma", "part_charge"} <= INTEGER_FEATURES
    assert not {"LT_pt", "Cpfcan_ptrel", "jet_pt", "part_px"} & INTEGER_FEATURES


def test_pgd_goes_by_the_sign_of_the_gradient_as_far_as_it_may():
    model, made = Linear().eval(), batch()
    leaf = made.groups["global"].features.clone().requires_grad_()
    group = dataclasses.replace(made.groups["global"], features=leaf)
    loss = F.cross_entropy(
        model(dataclasses.replace(made, groups={**made.groups, "global": group})), made.target, reduction="sum"
    )
    expected = torch.autograd.grad(loss, leaf)[0].sign()[..., 0] * 0.1
    moved, _ = changes(dataclasses.replace(PGD, iterations=1), model)
    torch.testing.assert_close(moved["global"][..., 0], expected)


def test_the_impact_can_be_restricted_to_a_fraction_of_the_value():
    for options in ALL:
        moved, _ = changes(dataclasses.replace(options, restrict_impact=0.05))
        for name, group in batch().groups.items():
            assert (moved[name].abs() <= 0.05 * group.features.abs() * (1 + 1e-6)).all()


def test_factors_are_units_of_the_changes():
    factors = {"global": np.array([2.0, 1.0]), "cpf": np.array([0.0, 3.0, 1.0, 1.0])}
    for options in (PGD, *(dataclasses.replace(one, magnitude=0.1, uncertainty=2.0) for one in ALL[1:])):
        moved, _ = changes(dataclasses.replace(options, individual_factors=True), factors=factors)
        assert not moved["cpf"][..., 0].any()
        assert 0.1 < moved["cpf"][..., 1].abs().max() <= 0.3 * (1 + 1e-6)
        assert moved["global"][..., 0].abs().max() <= 0.2 * (1 + 1e-6)
    plain, _ = changes(PGD, factors=factors)
    assert plain["cpf"][..., 1].abs().max() == pytest.approx(0.1)


def test_factors_are_the_spread_of_what_is_there():
    dataset = make_dataset(60)
    dataset.block.features["cpf"][::3, 4] = 0.0
    found = feature_factors(dataset, memory_inputs())
    values = dataset.block.features["cpf"][:, 4]
    assert found["cpf"][0] == pytest.approx(values[values != 0].astype(np.float64).std())
    assert found["global"].shape == (2,)
    assert set(found) == {"global", "cpf", "vtx"}


def test_jetfool_goes_the_shortest_way_over_a_boundary():
    # a linear tagger: one iteration is exact
    model, made = Linear(3).eval(), batch(16)
    every = AttackOptions("jetfool", iterations=1, reduce=False, overshoot=0.0)
    moved, _ = changes(every, model, made)
    logits = model(made).detach()
    scale = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).detach()
    count = made.groups["cpf"].mask.sum(1)
    for jet in range(16):
        first = int(logits[jet].argmax())
        ways = []
        for other in {0, 1, 2} - {first}:
            # px counts as a feature and as a component of the four-vector
            cpf = model.cpf.weight.detach().clone()
            cpf[:, 1] += model.vectors.weight.detach()[:, 0]
            normal_cpf = cpf[other] * scale[other] - cpf[first] * scale[first]
            normal_jet = (
                model.jet.weight.detach()[other] * scale[other] - model.jet.weight.detach()[first] * scale[first]
            )
            square = count[jet] * normal_cpf.square().sum() + normal_jet.square().sum()
            ways.append(((logits[jet, first] - logits[jet, other]) / square.sqrt()).item())
        length = sum(moved[name][jet].square().sum() for name in moved).sqrt()
        assert length.item() == pytest.approx(min(ways), rel=1e-4)
    _, after = changes(dataclasses.replace(every, overshoot=0.02), model, made)
    assert (model(after).argmax(1) != logits.argmax(1)).all()


def test_the_optimizer_weighs_the_loss_against_the_constraint():
    model, made = Linear().eval(), batch()
    many = AttackOptions("optimizer", iterations=200, uncertainty=0.5)
    moved, after = changes(many, model, made)
    # where the ascent ends, gradient = change / uncertainty^2
    leaf = after.groups["global"].features.clone().requires_grad_()
    group = dataclasses.replace(after.groups["global"], features=leaf)
    loss = F.cross_entropy(
        model(dataclasses.replace(after, groups={**after.groups, "global": group})), made.target, reduction="sum"
    )
    gradient = torch.autograd.grad(loss, leaf)[0][..., 0]
    torch.testing.assert_close(moved["global"][..., 0] / 0.25, gradient, rtol=0.05, atol=0.02)
    tight, _ = changes(dataclasses.replace(many, uncertainty=0.05), model, made)
    assert tight["global"].abs().max() < 0.2 * moved["global"].abs().max()


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.attack)
def test_w31_each_jet_for_itself_and_the_model_is_unchanged(options, capsys):
    model = Linear().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    made = batch(12)
    whole = pick_attack(options, model, INPUTS)(made)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().out == ""

    def part(rows):
        groups = {
            name: dataclasses.replace(
                g, features=g.features[rows], mask=g.mask[rows],
                four_vectors=None if g.four_vectors is None else g.four_vectors[rows],
            )
            for name, g in made.groups.items()
        }  # fmt: skip
        return dataclasses.replace(made, groups=groups, target=made.target[rows])

    halves = [pick_attack(options, model, INPUTS)(part(rows)) for rows in (slice(0, 5), slice(5, 12), slice(12, 12))]
    for name in COLUMNS:
        torch.testing.assert_close(
            torch.cat([half.groups[name].features for half in halves]), whole.groups[name].features
        )


def test_jets_of_no_class_stay():
    made = batch()
    made = dataclasses.replace(made, target=torch.where(torch.arange(8) < 4, made.target, -1))
    for options in ALL:
        moved, _ = changes(options, before=made)
        assert not any(change[4:].any() for change in moved.values())
        assert any(change[:4].any() for change in moved.values())


@pytest.mark.parametrize("name", ["DeepJet", "ParticleTransformer2", "ParticleTransformer_JetClass", "UParT_v0"])
@pytest.mark.parametrize("options", ALL, ids=lambda options: options.attack)
def test_real_taggers_err_more(name, options):
    model = small(name).eval()
    made = jets(model, [0, 1, 2, 3, 5, 5, 4, 3])
    # gradients of an untrained DeepJet are tiny
    options = dataclasses.replace(options, uncertainty=100.0) if name == "DeepJet" else options
    after = pick_attack(options, model, model.inputs)(made)
    if options.attack == "jetfool":
        # the class predicted first loses its lead
        logits = [logits_of(model(one)).detach() for one in (made, after)]
        first = torch.nn.functional.one_hot(logits[0].argmax(1), logits[0].shape[1]).bool()
        leads = [one[first] - one.masked_fill(first, -torch.inf).amax(1) for one in logits]
        assert leads[1].mean() < 0.8 * leads[0].mean()
    else:
        assert losses(model, after).mean() > losses(model, made).mean()
    assert all(torch.isfinite(group.features).all() for group in after.groups.values())


def test_nominal_is_no_attack():
    assert pick_attack(AttackOptions(), Linear(), INPUTS) is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"attack": "fgsm"}, "attack is 'fgsm', but must be one of nominal, pgd, jetfool, optimizer"),
        ({"attack": "pgd"}, "attack_magnitude is 0, but must be above 0 for pgd"),
        ({"magnitude": -1.0}, "attack_magnitude is -1.0, but must be 0 or more"),
        ({"iterations": 0}, "attack_iterations is 0, but must be at least 1"),
        ({"restrict_impact": 0.0}, "attack_restrict_impact is 0.0, but must be -1"),
        ({"overshoot": -0.1}, "attack_overshoot is -0.1"),
        ({"uncertainty": 0.0}, "attack_uncertainty is 0.0, but must be above 0"),
    ],
)
def test_values_out_of_range_are_one_sentence(values, sentence):
    with pytest.raises(ParameterError, match=sentence):
        AttackOptions(**values).check()
