"""The same bits again: deterministic mode, what is recorded, traces of steps."""

import gzip
import json
import os

import pytest
import torch

from bhive_mltf.models import registry
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training import choices
from bhive_mltf.training.engine import train
from bhive_mltf.training.losses import create_loss
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.optim.optimisers import create_optimizer
from bhive_mltf.training.reproducibility import deterministic, limits
from bhive_mltf.training.step import Stepper
from tests.helpers import standin
from tests.helpers.model_factory import jets, small
from tests.helpers.standin import plan
from tests.models.conftest import VARIANTS


def two_steps(name, directory):
    model = small(name, dropout=0.1).train()
    outputs = len(getattr(model, "regression", ()))
    loss = next(one for one in choices.LOSSES if len(choices.REGRESSION_LOSSES.get(one, ())) == outputs)
    optimizer = create_optimizer("AdamW", model.parameters(), 0.01)
    stepper = Stepper(plan(directory, loss_function=loss), World(), model, create_loss(loss), optimizer)
    losses = [stepper.train(jets(model, [3, 5, 0, 1, 2], seed=step), step, 0.01)[0] for step in (1, 2)]
    return {**model.state_dict(), "losses": torch.stack(losses)}


@pytest.mark.parametrize("model", sorted(set(registry.names()) - VARIANTS))
def test_w16_two_steps_of_every_model_give_the_same_bits(tmp_path, model):
    with deterministic(True):
        one = two_steps(model, tmp_path)
        torch.rand(5)
        two = two_steps(model, tmp_path)
    assert torch.isfinite(one["losses"]).all()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_deterministic_mode_is_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.empty(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


class Seen(Observer):
    def __init__(self):
        self.files, self.warnings = [], []

    def file(self, path, folder=None):
        self.files.append((folder, path.name))

    def warn(self, text):
        self.warnings.append(text)


def test_each_start_is_recorded_and_a_change_is_told(tmp_path):
    first, second = Seen(), Seen()
    train(plan(tmp_path, epochs=1, threads_per_rank=1, deterministic=True), World(), standin.build, first)
    train(plan(tmp_path, epochs=1, extend_training=1, threads_per_rank=2), World(), standin.build, second)
    record = json.loads((tmp_path / "reproducibility.json").read_text())
    known = [(one["from_step"], one["threads"], one["deterministic"]) for one in record["processes"]]
    assert known == [(0, 1, True), (11, 2, False)]
    assert record["processes"][0]["torch"] == torch.__version__
    assert first.warnings == []
    assert "threads 2 instead of 1" in second.warnings[0]
    assert (None, "reproducibility.json") in first.files
    assert any("2 compute thread" in sentence for sentence in record["limits"])


@pytest.mark.parametrize("laid_out", [True, False])
def test_a_training_begun_with_kernels_for_cpus_says_so_once(tmp_path, laid_out):
    """Dropout draws other numbers since they went, where jets are laid out; such a record has no word on the layout."""

    def build(own, world):
        parts = standin.build(own, world)
        parts.model.laid_out = laid_out
        return parts

    train(plan(tmp_path, epochs=1), World(), build, Seen())
    path = tmp_path / "reproducibility.json"
    record = json.loads(path.read_text())
    record["processes"][0].pop("layout", None)
    del record["processes"][0]["precision"]
    record["processes"][0]["compiled_rows"] = ["AVX-512"]
    path.write_text(json.dumps(record))
    seen, again = Seen(), Seen()
    train(plan(tmp_path, epochs=1, extend_training=1), World(), build, seen)
    assert len(seen.warnings) == laid_out
    if laid_out:
        assert "layout rows of groups instead of kernels for CPUs" in seen.warnings[0]
        assert "dropout drew other numbers" in seen.warnings[0]
        assert "precision" not in seen.warnings[0]
    train(plan(tmp_path, epochs=1, extend_training=2), World(), build, again)
    assert again.warnings == []
    noted = [one.get("layout") for one in json.loads(path.read_text())["processes"][1:]]
    assert noted == ["rows of groups" if laid_out else None] * 2


def test_what_limits_the_bits_on_gpus():
    known = {"ranks": 2, "threads": 1, "torch": "2", "bhive_mltf": "0", "cpu_kernels": "AVX2", "compiled": True}
    known |= {"device": "cuda", "gpu": "H100", "cuda": "13", "cudnn": 9, "deterministic": False}
    said = " ".join(limits(known))
    assert all(word in said for word in ("NCCL", "H100", "--deterministic", "compile"))
    assert "--deterministic" not in " ".join(limits({**known, "deterministic": True}))


@pytest.mark.parametrize(("wanted", "traced"), [(2, 2), (50, 6)])
def test_a_trace_of_some_steps(tmp_path, wanted, traced):
    seen = Seen()
    train(plan(tmp_path, epochs=1, profile_steps=wanted), World(), standin.build, seen)  # of 11 steps
    assert [name for folder, name in seen.files if folder == "profile"] == ["trace.json.gz", "operations.txt"]
    events = json.loads(gzip.decompress((tmp_path / "profile/trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name", "").startswith("Optimizer.step#AdamW") for event in events) == traced
    assert "aten::" in (tmp_path / "profile/operations.txt").read_text()
