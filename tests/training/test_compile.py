"""torch.compile through the plan's parameter: no compilation per batch shape, the keys of checkpoints stay."""

from __future__ import annotations

import pytest
from torch import nn
from torch._dynamo import reset
from torch._dynamo.utils import counters

from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.build import Ingredients
from bhive_mltf.training.choices import COMPILE_MODES
from bhive_mltf.training.engine import make_stepper
from tests.models.factory import jets, small
from tests.training import standin
from tests.training.standin import plan


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_the_mode_reaches_torch(tmp_path, monkeypatch, mode):
    """`reduce-overhead` is CUDA graphs, on a GPU."""
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    made = standin.plan(tmp_path, use_torch_compile=True, torch_compile_mode=mode)
    make_stepper(made, World(), standin.build(made, World()))
    assert asked == [{"mode": mode, "dynamic": True}]


@pytest.mark.nightly
# of torch itself, when it goes on tracing behind an operation that it does not trace
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ["ParticleTransformer_JetClass", "DeepJet"])
def test_compiled_once_for_all_batch_shapes(name, tmp_path, monkeypatch):
    # what is traced, and when again, does not depend on what the backend makes of it
    compile_with = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, mode, dynamic: compile_with(self, backend="eager", dynamic=dynamic)
    )
    model = small(name)
    keys = list(model.state_dict())
    parts = Ingredients(model, None, None, None, "", "", [], {})
    made = plan(tmp_path, use_torch_compile=True, model_name=name)
    reset()
    counters.clear()
    stepper = make_stepper(made, World(), parts)
    found = []
    for step, counts in enumerate(([3, 9, 4], [7, 5, 12, 2], [6, 8], [11, 2, 3, 4, 5, 21])):
        stepper.train(jets(model, counts, seed=step), step, 1e-3)
        found.append(counters["stats"]["unique_graphs"])
    assert found[0] > 0
    assert found == [found[0]] * 4
    assert list(stepper.model.state_dict()) == keys
