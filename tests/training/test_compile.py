"""torch.compile through the plan's parameter: no compilation per batch shape, the keys of checkpoints stay."""

from __future__ import annotations

import copy
import logging
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo import reset
from torch._dynamo.utils import counters
from torch._functorch import config as functorch
from torch.nn import functional as F

from bhive_mltf.errors import ParameterError
from bhive_mltf.models import layers, registry
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.build import Ingredients
from bhive_mltf.training.choices import COMPILE_MODES, GRAPH_MODES
from bhive_mltf.training.engine import compile_model, make_stepper
from tests.helpers import standin
from tests.helpers.model_factory import CONFIGS, jets, logits_of, small
from tests.helpers.standin import plan

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
# twenty batches, each of another shape
BATCHES = [[3, 9, 4], [7, 5, 12, 2]]
BATCHES += [[2 + (7 * jet + 3 * batch) % (9 + batch) for jet in range(2 + batch % 7)] for batch in range(18)]
VARIANTS = {name for name in registry.names() if name.startswith("ParticleTransformer2_LT_")}


@pytest.fixture(autouse=True)
def nothing_compiled():
    layers._compiled.cache_clear()
    reset()
    counters.clear()
    yield
    layers._compiled.cache_clear()
    reset()


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_the_mode_reaches_torch(tmp_path, monkeypatch, mode):
    """`reduce-overhead` is CUDA graphs, on a GPU."""
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    made = standin.plan(tmp_path, use_torch_compile=True, torch_compile_mode=mode)
    make_stepper(made, World(), standin.build(made, World()))
    assert asked == [{"mode": mode, "dynamic": True}]


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_graphs_of_the_gpu_are_refused_where_shapes_differ(mode):
    model = small("ParticleTransformer_JetClass")
    if mode not in GRAPH_MODES:
        compile_model(model, mode)
        assert model.network.blocks[0].compile_mode == mode
        return
    with pytest.raises(ParameterError, match=f"torch_compile_mode is '{mode}'.*take 'default' or 'max-autotune-no-cu"):
        compile_model(model, mode)


def test_a_copied_or_stored_model_is_not_compiled():
    model = small("ParticleTransformer2")
    model.compile_rows("default")
    assert model.blocks[0].compile_mode == "default"
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(part.compile_mode is None for part in other.modules() if isinstance(part, layers.RowWise))


def step_of(model, counts, seed):
    model.zero_grad()
    batch = jets(model, counts, seed=seed).map(lambda t: t.double() if t.is_floating_point() else t)
    output = model(batch)
    loss = F.cross_entropy(logits_of(output), batch.target)
    if model.regression:
        loss = loss + output.regression.square().mean()
    loss.backward()
    return logits_of(output).detach(), {name: p.grad for name, p in model.named_parameters()}


def check_compiled(name):
    """Real inductor, forward and backward, two lengths of batch: as without, and what is compiled serves both.

    In float64: batch norms of a few jets make 1e-3 of the rounding of float32.
    """
    plain, compiled = small(name).double(), small(name).double()
    compile_model(compiled, "default")
    keys = list(compiled.state_dict())
    for seed, counts in enumerate(([3, 9, 4], [7, 5, 12, 2, 30])):
        expected, got = step_of(plain, counts, seed), step_of(compiled, counts, seed)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    assert list(compiled.state_dict()) == keys
    assert counters["inductor"]


# of torch itself, as it compiles
FILTERS = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def torchs_own(test):
    for mark in FILTERS:
        test = mark(test)
    return test


@pytest.mark.long
@needs_compiler
@torchs_own
@functorch.patch(donated_buffer=True)
def test_attacks_go_back_through_a_compiled_forward_twice():
    model = small("ParticleTransformer2_LT")
    compile_model(model, "default", keeps_graphs=True)
    batch = jets(model, BATCHES[0])
    leaves = [group.features.requires_grad_() for group in batch.groups.values()]
    logits = logits_of(model(batch))
    first, second = (
        torch.autograd.grad(logits[:, 0].sum(), leaves, retain_graph=kept, allow_unused=True) for kept in (True, False)
    )
    assert any(gradient is not None and gradient.any() for gradient in first)
    for one, other in zip(first, second, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.long
@needs_compiler
@torchs_own
def test_f06_compiled_part_of_the_paper_on_two_lengths_of_batch():
    check_compiled("ParticleTransformer_JetClass")


@pytest.mark.long
@needs_compiler
@torchs_own
@pytest.mark.parametrize("name", sorted(set(CONFIGS) - VARIANTS - {"ParticleTransformer_JetClass"}))
def test_f06_every_model_compiled(name):
    check_compiled(name)


PAPER = "ParticleTransformer_JetClass"
OTHERS = sorted(set(CONFIGS) - VARIANTS - {PAPER})


@pytest.fixture
def only_traced(monkeypatch):
    """What is traced, and when again, does not depend on what the backend makes of it."""
    real = torch.compile

    def eager(function, *, dynamic, mode):
        return real(function, backend="eager", dynamic=dynamic)

    # `nn.Module.compile` calls it too
    monkeypatch.setattr(torch, "compile", eager)


@torchs_own
@pytest.mark.parametrize("name", [PAPER, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
@pytest.mark.usefixtures("only_traced")
def test_compiled_once_for_all_batch_shapes(name, tmp_path):
    """No graph break inside of what is compiled, nothing compiled anew after the second batch."""
    model = small(name)
    keys = list(model.state_dict())
    parts = Ingredients(model, None, None, None, "", "", [], {})
    loss = {0: "CrossEntropyLoss", 1: "CrossEntropyLogCoshHLT", 4: "CrossEntropyLogCosh"}[len(model.regression)]
    made = plan(tmp_path, use_torch_compile=True, model_name=name, loss_function=loss)
    stepper = make_stepper(made, World(), parts)
    found = []
    for step, counts in enumerate(BATCHES):
        stepper.train(jets(model, counts, seed=step), step, 1e-3)
        found.append(counters["stats"]["unique_graphs"])
    assert found[0] > 0
    # torch takes sizes that agree by chance in the first batch (16 rows of 16 features) for one
    assert set(found[2:]) == {found[1]}
    assert list(stepper.model.state_dict()) == keys
    if name == PAPER:
        assert not counters["graph_break"]


@pytest.mark.long
@torchs_own
@pytest.mark.usefixtures("only_traced")
def test_all_that_an_attacked_training_calls_is_compiled(tmp_path, caplog):
    """Features of each width, of no, one or many rows, in attack, step and validation: more than torch's eight."""
    name = "ParticleTransformer"
    parts = Ingredients(small(name), None, None, None, "", "", [], {})
    made = plan(tmp_path, use_torch_compile=True, model_name=name, attack="jetfool")
    stepper = make_stepper(made, World(), parts)
    logger = logging.getLogger("torch._dynamo.convert_frame")
    logger.addHandler(caplog.handler)
    for step, counts in enumerate([*BATCHES[:2], [1], [0, 0]]):
        stepper.train(jets(parts.model, counts, seed=step), step, 1e-3)
        stepper.validate(jets(parts.model, counts, seed=step))
    logger.removeHandler(caplog.handler)
    assert counters["stats"]["unique_graphs"] > 8
    assert "hit config" not in caplog.text
