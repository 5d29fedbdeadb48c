"""Models of other packages, from real modules and real package metadata on the path."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest
import torch

from bhive_mltf.errors import ModelError
from bhive_mltf.models import external, registry
from bhive_mltf.models.base import Outputs
from bhive_mltf.models.upstream import UpstreamTagger
from tests.helpers.model_factory import jets, load

THEIRS = """
    import torch
    from torch import nn
    from bhive_mltf.models.base import Tagger
    from bhive_mltf.models.resolve import GroupRequest

    FLAVOURS = {"b": ("isB", "isBB"), "light": ("isUD", "isS", "isG")}

    class Sum(Tagger):
        classes = FLAVOURS
        groups = (GroupRequest("cpf"),)

        def __init__(self, config, *, width=4):
            super().__init__(config)
            self.linear = nn.Linear(len(self.inputs.group("cpf").columns), width)
            self.head = nn.Linear(width, self.n_outputs)

        def forward(self, batch):
            rows = self.linear(self.features(batch, "cpf")) * self.group_of(batch, "cpf").mask[..., None]
            return self.outputs(self.head(rows.sum(1)))

    class SumAndNumber(Sum):
        regression = ("n",)

        def regression_targets(self, batch):
            return self.group_of(batch, "cpf").mask.sum(1, keepdim=True) / 10

    class OfUpstream(nn.Module):
        classes = {"b": ["isB"], "light": ["isUD"]}

        def __init__(self, config, depth=1, pair=False):
            super().__init__()
            self.pair = pair
            self.head = nn.Linear(len(config["global_features"]), 2)

        def forward(self, inputs):
            logits = self.head(inputs[0])
            return (logits, logits) if self.pair else logits

    class Loose(OfUpstream):
        def __init__(self, config, **kwargs):
            super().__init__(config)
            self.kwargs = kwargs

    class NoModule:
        pass

    def function(config):
        return None
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `their_taggers` with the module `nets`, installed with two entry points."""
    folder = tmp_path / "their_taggers"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(textwrap.dedent(THEIRS))
    (folder / "broken.py").write_text("raise OSError('no table of weights')\n")
    (folder / "lacking.py").write_text("import a_package_that_is_not_there\n")
    info = tmp_path / "their_taggers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-taggers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{external.GROUP}]\nSumOfTracks = their_taggers.nets:Sum\nDeepJet = their_taggers.nets:Sum\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "their_taggers"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["their_taggers.nets:Sum", "SumOfTracks"])
def test_a_tagger_by_dotted_path_or_entry_point(package, name):
    model = registry.create(name, load("offline_run3"), width=3)
    assert model.name == "Sum"
    assert registry.classes(name) == model.classes
    assert registry.defaults(name) == {"width": 4}
    assert model(jets(model, [2, 0, 5])).shape == (3, 2)


def test_another_package_is_imported_when_its_model_is_made(package):
    assert registry.entry("SumOfTracks").module == "their_taggers.nets"
    assert registry.entry("their_taggers.nets:Sum").regression is None
    assert "their_taggers" not in sys.modules


def test_no_package_changes_what_one_of_our_names_means(package):
    assert registry.entry("DeepJet").module == "bhive_mltf.models.deepjet"
    assert "DeepJet" in external.installed()


def test_a_multi_task_tagger_of_another_package(package):
    model = registry.create("their_taggers.nets:SumAndNumber", load("offline_run3"))
    batch = jets(model, [2, 4])
    assert isinstance(model(batch), Outputs)
    assert model.regression_targets(batch).tolist() == [[pytest.approx(0.2)], [pytest.approx(0.4)]]


def test_a_module_of_upstreams_kind_is_adapted(package):
    name = "their_taggers.nets:OfUpstream"
    assert registry.defaults(name) == {"depth": 1, "pair": False}
    model = registry.create(name, load("offline_run3"), depth=2)
    assert isinstance(model, UpstreamTagger)
    batch = jets(model, [2, 3])
    assert model(batch).shape == (2, 2)
    with pytest.raises(ModelError, match=r"gives a tuple .*Tagger, with `regression` and `regression_targets`"):
        registry.create(name, load("offline_run3"), pair=True)
    assert registry.create("their_taggers.nets:Loose", load("offline_run3"), any=1).module.kwargs == {"any": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_taggers.nets:Sun", r"the module their_taggers.nets has no 'Sun' \(nearest: Sum\)"),
        (
            "their_taggers.nets:NoModule",
            r"NoModule is no class of a torch module but <class .*; give a class derived from",
        ),
        ("their_taggers.nets:function", r"function is no class of a torch module but <function"),
        ("their_taggers.net:Sum", r"there is no module 'their_taggers.net'; install its package, .* into PYTHONPATH"),
        ("their_tagger.nets:Sum", r"there is no module 'their_tagger'; install"),
        (
            "their_taggers.broken:Sum",
            r"module their_taggers.broken cannot be imported \(OSError: no table of weights\)",
        ),
        ("their_taggers.lacking:Sum", r"cannot be imported \(ModuleNotFoundError: No module named 'a_package_that_is"),
        ("their_taggers.nets:Sum.forward", "is written package.module:Class"),
        (":Sum", "is written package.module:Class"),
        (
            "their_taggers.nets.Sum",
            r"no model 'their_taggers.nets.Sum' .*SumOfTracks; or a class of another package as",
        ),
        ("SumOfTrack", r"no model 'SumOfTrack' \(nearest: SumOfTracks\)"),
    ],
)
def test_names_that_lead_nowhere(package, name, message):
    with pytest.raises(ModelError, match=message):
        registry.create(name, load("offline_run3"))


def test_unknown_sizes_of_their_models(package):
    with pytest.raises(ModelError, match=r"Sum has no parameter 'with' \(nearest: width\).*: width=4$"):
        registry.create("their_taggers.nets:Sum", load("offline_run3"), **{"with": 2})
    with pytest.raises(ModelError, match=r"OfUpstream has no parameter 'width'"):
        registry.create("their_taggers.nets:OfUpstream", load("offline_run3"), width=2)


def test_their_weights_are_stored_under_their_own_names(package):
    model = registry.create("SumOfTracks", load("offline_run3"))
    assert set(model.state_dict()) == {"linear.weight", "linear.bias", "head.weight", "head.bias"}
    assert torch.equal(model.state_dict()["head.bias"], model.head.bias)
