from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from bhive_mltf.config import load
from bhive_mltf.errors import ModelError
from bhive_mltf.models.base import Tagger, count_parameters
from bhive_mltf.models.upstream import adapt, upstream_config
from tests.helpers.model_factory import jets


class Theirs(nn.Module):
    """A model as written for B-Hive."""

    classes: ClassVar = {"b": ["isB", "isBB"], "light": ["isUD", "isS", "isG"]}
    n_cpf_candidates = 10
    cpf_candidates: ClassVar = ["Cpfcan_quality", "Cpfcan_ptrel"]

    def __init__(self, config, width=4):
        super().__init__()
        self.shapes = None
        self.linear = nn.Linear(len(config["global_features"]) + 10 * 2, width)
        self.out = nn.Linear(width, len(self.classes))

    def forward(self, inpts):
        glob, cpf, *_ = inpts
        self.shapes = [tuple(x.shape) for x in inpts]
        return self.out(self.linear(torch.cat((glob, cpf.flatten(1)), 1)).relu())


def test_a_module_of_b_hive_becomes_a_tagger():
    model = adapt(Theirs, load("offline_run3"), width=6)
    assert isinstance(model, Tagger)
    assert model.name == "Theirs"
    assert model.inputs.padding == "configured"
    assert dict(model.inputs.classes) == {"b": ("isB", "isBB"), "light": ("isUD", "isS", "isG")}
    assert model.inputs.group("cpf").columns == ("Cpfcan_quality", "Cpfcan_ptrel")
    batch = jets(model, [3, 12, 0])
    logits = model(batch)
    assert logits.shape == (3, 2)
    assert model.module.shapes == [(3, 15), (3, 10, 2), (3, 25, 6), (3, 4, 12), (3, 0, 0)]
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert count_parameters(model) == 35 * 6 + 6 + 6 * 2 + 2
    assert model.double()(batch).dtype == torch.float64


def test_d05_checkpoints_have_the_names_of_the_wrapped_class():
    config = load("offline_run3")
    model, theirs = adapt(Theirs, config), Theirs(upstream_config(config))
    assert list(model.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(model.state_dict())
    torch.testing.assert_close(theirs.linear.weight, model.module.linear.weight, rtol=0, atol=0)


def test_d05_checkpoints_of_earlier_versions_are_read():
    config = load("offline_run3")
    model, other = adapt(Theirs, config), adapt(Theirs, config)
    other.load_state_dict({f"module.{name}": tensor for name, tensor in model.state_dict().items()})
    batch = jets(model, [3, 12, 0])
    assert torch.equal(model(batch), other(batch))
    with pytest.raises(RuntimeError, match="linear.weight"):
        other.load_state_dict({"module.out.bias": model.module.out.bias})


class TwoTasks(Theirs):
    def forward(self, inpts):
        return super().forward(inpts), inpts[0][:, :2]


class Picky(Theirs):
    def forward(self, inpts):
        if not inpts[1].any():
            raise ValueError("a jet without candidates")
        return super().forward(inpts)


def test_d11_a_multi_task_module_is_refused_when_it_is_made():
    with pytest.raises(ModelError, match=r"TwoTasks gives a tuple .*derive it from .*`regression_targets`"):
        adapt(TwoTasks, load("offline_run3"))


def test_d11_looking_at_outputs_changes_nothing():
    torch.manual_seed(1)
    model = adapt(Picky, load("offline_run3"))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    Theirs(upstream_config(load("offline_run3")))
    assert torch.equal(torch.rand(3), drawn)
    assert model.module.training


def test_w21_labels_are_resolved_for_them_too():
    inputs = adapt(Theirs, load("DeepJet_AK4")).inputs
    assert dict(inputs.classes)["light"] == ("isU", "isD", "isS", "isG")


def test_the_config_that_they_see():
    seen = upstream_config(load("jet_class"))
    assert seen["n_cpf_candidates"] == 128
    assert (seen["n_npf_candidates"], seen["npf_candidates"], seen["npf_custom_features"]) == (0, [], [])
    assert seen["cpf_candidates"][0] == "part_deta"
    assert list(seen["cpf_custom_features"][-1]) == ["part_tanhdzval"]
    assert seen["truths"][0] == "label_QCD"


def test_no_classes():
    class Bare(nn.Module):
        pass

    with pytest.raises(ModelError, match="model Bare declares no `classes`"):
        adapt(Bare, load("offline_run3"))


def test_columns_that_the_config_does_not_have():
    with pytest.raises(
        ModelError, match=r"model Theirs reads columns of the group 'cpf' that config 'hlt_run3' does not"
    ):
        adapt(Theirs, load("hlt_run3"))
