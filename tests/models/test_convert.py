"""weaver-core's ParT and ours are the same function: stored reference, and the real one where it can be run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bhive_mltf import config as configs
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.ntuples.root_dataset import open_root
from bhive_mltf.models import registry
from bhive_mltf.models.import_weights import PartFromWeaver, renamed_state, weaver_key
from bhive_mltf.models.part.network import PartNetwork
from bhive_mltf.testing.jets import write_jetclass
from tests.models.references.weaver_part import SIZES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def without_a_gradient(key):
    """Offsets before a batch norm, in training: its gradient is zero but for rounding."""
    return key.startswith("pair_embed.") and key.endswith("bias") and int(key.split(".")[2]) % 3 != 2


@pytest.fixture(scope="module")
def reference():
    with np.load(HERE / "references" / "weaver_part.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def ours(reference, dtype):
    network = PartNetwork(
        SIZES["input_dim"],
        SIZES["num_classes"],
        embed_dims=SIZES["embed_dims"],
        pair_embed_dims=SIZES["pair_embed_dims"],
        num_layers=SIZES["num_layers"],
        num_cls_layers=SIZES["num_cls_layers"],
        num_heads=SIZES["num_heads"],
        dropout=0.0,
    )
    state = {name.removeprefix("state/"): value for name, value in reference.items() if name.startswith("state/")}
    network.load_state_dict(renamed_state(state))
    return PartFromWeaver(network.to(dtype))


def run(model, reference, dtype):
    inputs = [reference[name].to(dtype) for name in ("features", "vectors", "mask")]
    logits = model(*inputs)
    F.cross_entropy(logits, reference["target"]).backward()
    return logits.detach()


def distance(got, expected):
    return float((got - expected).norm() / expected.norm())


def stored_gradients(reference, case):
    prefix = f"{case}/grad/"
    return {name.removeprefix(prefix): value for name, value in reference.items() if name.startswith(prefix)}


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_stored_logits_and_gradients_of_weaver(reference, mode):
    model = ours(reference, torch.float64).train(mode == "training")
    assert distance(run(model, reference, torch.float64), reference[f"float64/{mode}/logits"]) < 1e-10
    parameters = dict(model.network.named_parameters())
    gradients = stored_gradients(reference, f"float64/{mode}")
    assert len(gradients) == len(parameters)
    for key, expected in gradients.items():
        grad = parameters[weaver_key(key)].grad.view_as(expected)
        if mode == "training" and without_a_gradient(key):
            assert grad.abs().max() < 1e-12
        else:
            assert distance(grad, expected) < 1e-10, key


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_stored_reference_in_float32(reference, mode):
    model = ours(reference, torch.float32).train(mode == "training")
    assert distance(run(model, reference, torch.float32), reference[f"float32/{mode}/logits"]) < 1e-5
    parameters = dict(model.network.named_parameters())
    gradients = stored_gradients(reference, f"float32/{mode}")
    got = torch.cat([parameters[weaver_key(key)].grad.flatten() for key in gradients])
    assert distance(got, torch.cat([value.flatten() for value in gradients.values()])) < 1e-5


def test_running_statistics_are_carried_over(reference):
    model = ours(reference, torch.float64)
    assert torch.equal(model.network.embedding.norm.running_mean, reference["state/embed.input_bn.running_mean"])
    last = model.network.pair_embedding.norms[-1].running_var
    assert torch.equal(last, reference["state/pair_embed.embed.8.running_var"])


def test_another_network_is_refused():
    from bhive_mltf.errors import ModelError
    from bhive_mltf.models.import_weights import from_weaver

    with pytest.raises(ModelError, match="takes weaver-core's ParticleTransformer with pairs, not a Linear"):
        from_weaver(torch.nn.Linear(2, 2))


def weaver_python():
    if importlib.util.find_spec("weaver") is not None:
        return sys.executable
    for path in (os.environ.get("WEAVER_PYTHON"), ROOT / ".venv-weaver" / "bin" / "python"):
        if path and Path(path).exists():
            return str(path)
    pytest.skip("weaver-core is not here: run `make weaver`, or let WEAVER_PYTHON name its interpreter")


def compared(*arguments):
    script = HERE / "references" / "compare_with_weaver.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [weaver_python(), script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["distances"]) == 2 * 2 * 3
    for name, value in found["distances"].items():
        if name.startswith("float64"):
            assert value < 1e-10, name
        elif not name.endswith("worst"):
            assert value < 1e-5, name
    return found


@pytest.mark.long
def test_against_weaver_itself():
    """Random jets, jets of one particle, padding, both modes and widths; options that ours lacks are refused."""
    found = compared()
    assert len(found["refused"]) == 6
    assert all(message.startswith("from_weaver") for message in found["refused"])


@pytest.mark.long
def test_against_weaver_on_jetclass_jets(tmp_path):
    """Real ones where JETCLASS_DATA names a folder of files, else simulated; a jet of one particle among them."""
    weaver_python()
    files = {"HToBB_000.root": "label_Hbb", "TTBar_000.root": "label_Tbqq"}
    folder = Path(os.environ.get("JETCLASS_DATA", tmp_path))
    if folder == tmp_path:
        for name, label in files.items():
            write_jetclass(folder / name, 400, 1, label)
    config = configs.load("jet_class")
    with open_root(config, [str(folder / name) for name in files], seed=1, scratch=tmp_path) as dataset:
        model = registry.create("ParticleTransformer_JetClass", config, num_layers=1, num_cls_layers=1)
        options = {"mode": "inference", "batch_size": 10, "seed": 1, "weighted": False}
        batch = next(iter(BatchLoader(dataset, range(len(dataset)), model.inputs, **options).epoch(0)))
        group = batch.groups["cpf"]
        mask = group.mask.clone()
        mask[3, 1:] = False
        features = model.standardise(group.features, mask)
        vectors = group.four_vectors * mask[..., None]
        np.savez(
            tmp_path / "jets.npz",
            features=features.transpose(1, 2).numpy(),
            vectors=vectors.transpose(1, 2).numpy(),
            mask=mask[:, None].float().numpy(),
            target=batch.target.numpy(),
        )
    compared(tmp_path / "jets.npz")
