"""ParT without padding, in bf16 autocast, and compiled, through `law run`."""

import json
import shutil

import numpy as np
import pytest

from bhive_mltf.testing import jets
from bhive_mltf.training.checkpointing import checkpoint
from tests.helpers.commands import Sandbox, flat

PROCESSES = {"HToBB": "label_Hbb", "TTBar": "label_Tbqq"}
KWARGS = '{"num_layers": 1, "num_cls_layers": 1, "embed_dim": 16, "num_heads": 2, "pair_embed_dim": 8, "dropout": 0}'
TRAINING = "TrainingTask/jet_class/v1"


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jetclass")
    for part, seed in (("train", 1), ("test", 2)):
        paths = [jets.write_jetclass(folder / part / f"{p}.root", 60, seed, label) for p, label in PROCESSES.items()]
        (folder / f"{part}.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, law_home, lists):
    """The packed network on two ranks, and its predictions."""
    sandbox = Sandbox(tmp_path_factory.mktemp("fast"), law_home)
    sandbox.options = [
        *flat({
            "--config": "jet_class", "--model-name": "ParticleTransformer_JetClass", "--model-kwargs": KWARGS,
            "--dataset-version": "v1", "--filelist": lists / "train.txt",
            "--test-dataset-version": "test", "--test-filelist": lists / "test.txt",
            "--TrainingTask-loss-weighting": True, "--batch-size": 32, "--n-threads": 0, "--tracking": False,
        }),
    ]  # fmt: skip
    sandbox.run("InferenceTask", *sandbox.options, "--training-version", "packed", "--ranks-per-node", 2)
    return sandbox


def results(sandbox, version):
    (best,) = (sandbox.data_path / TRAINING / version).rglob("best_model.pt")
    (prediction,) = [
        path for path in (sandbox.data_path / "InferenceTask").rglob("prediction.npy") if version in path.parts
    ]
    return checkpoint.read_checkpoint(best), np.load(prediction)


@pytest.mark.long
def test_packed_part_on_two_ranks(trained):
    state, logits = results(trained, "packed")
    assert logits.shape == (120, 10)
    assert np.isfinite(logits).all()
    (path,) = (trained.data_path / TRAINING / "packed").rglob("reproducibility.json")
    assert json.loads(path.read_text())["processes"][0]["precision"] == "float32"
    assert np.isfinite(state["loss_val"])


@pytest.mark.long
def test_packed_part_under_mixed_precision(trained):
    trained.run("InferenceTask", *trained.options, "--training-version", "mixed", "--mixed-precision", True)
    (one, logits), (mixed, mixed_logits) = (results(trained, version) for version in ("packed", "mixed"))
    assert mixed["loss_val"] == pytest.approx(one["loss_val"], rel=0.05)
    np.testing.assert_allclose(mixed_logits, logits, atol=0.2)


@pytest.mark.nightly
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_part_is_the_packed_one(trained):
    cache = trained.folder / "inductor"
    options = [*trained.options, "--training-version", "compiled", "--use-torch-compile", True]
    trained.run("InferenceTask", *options, TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert list(cache.rglob("*.so"))
    (one, logits), (compiled, compiled_logits) = (results(trained, version) for version in ("packed", "compiled"))
    assert list(compiled["model_state_dict"]) == list(one["model_state_dict"])
    assert compiled["loss_val"] == pytest.approx(one["loss_val"], rel=1e-3)
    np.testing.assert_allclose(compiled_logits, logits, atol=1e-2)
