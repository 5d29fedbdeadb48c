from __future__ import annotations

import subprocess
import sys

import pytest

from bhive_mltf.config import load
from bhive_mltf.errors import ModelError
from bhive_mltf.models import registry


def test_w28_names_and_classes_need_no_torch():
    code = (
        "import sys; from bhive_mltf.models import registry as r; from bhive_mltf import interface; "
        "from bhive_mltf.models import resolve; "
        "assert all(r.classes(n) for n in r.names()); "
        "assert not {'torch', 'mlflow', 'uproot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", registry.names())
def test_the_table_says_what_the_class_says(name):
    loaded, row = registry.model_class(name), registry.entry(name)
    assert loaded.__name__ == name or (row.sizes and name.startswith(loaded.__name__))
    assert loaded.classes == row.classes
    assert list(loaded.classes) == list(row.classes)
    assert loaded.regression == row.regression
    assert set(row.sizes) <= set(registry.defaults(name))


def test_unknown_name_gives_the_nearest_and_all():
    with pytest.raises(
        ModelError, match=r"no model 'DeepJetHTL' \(nearest: DeepJetHLT\).*ParticleTransformer_JetClass"
    ):
        registry.create("DeepJetHTL", load("hlt_run3"))


@pytest.mark.parametrize("name", sorted(registry.ABSENT))
def test_w20_absent_upstream_names_are_refused_with_what_exists(name):
    with pytest.raises(ModelError, match="this package does not have; take one of: DeepJet, DeepJetHLT"):
        registry.entry(name)
    assert name not in registry.names()


def test_unknown_kwargs_list_the_valid_ones():
    with pytest.raises(
        ModelError, match=r"no parameter 'num_layer' \(nearest: num_layers\).*num_layers=8.*dropout=0.1"
    ):
        registry.create("ParticleTransformer_JetClass", load("jet_class"), num_layer=2)


@pytest.mark.parametrize(
    ("name", "config", "kwargs", "message"),
    [
        ("ParticleTransformer_JetClass", "jet_class", {"num_layers": 0}, "num_layers is 0; give a whole number"),
        ("ParticleTransformer_JetClass", "jet_class", {"embed_dim": 2.5}, "embed_dim is 2.5"),
        ("ParticleTransformer2_JetClass", "jet_class", {"num_heads": True}, "num_heads is True"),
        ("ParticleTransformer2_JetClass", "jet_class", {"embed_dim": 20}, "embed_dim 20 is no multiple of num_heads 8"),
        ("ParticleTransformer2", "part_run3", {"dropout": 1}, "dropout is 1; give a number"),
        ("DeepJet", "DeepJet_AK4", {"dropout": "0.1"}, "dropout is '0.1'"),
    ],
)
def test_sizes_out_of_range(name, config, kwargs, message):
    with pytest.raises(ModelError, match=message):
        registry.create(name, load(config), **kwargs)


def test_sizes_can_be_set():
    model = registry.create("ParticleTransformer2_JetClass", load("jet_class"), num_layers=2, embed_dim=64)
    assert len(model.blocks) == 2
    assert model.head.in_features == 64
