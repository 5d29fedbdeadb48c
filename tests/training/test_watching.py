"""Progress, tracking, agreement."""

import io
import math

import pytest
import torch

from bhive_mltf.ranks.agreement import RankAgreement
from bhive_mltf.ranks.distributed import World, join_world, pick_device, set_threads
from bhive_mltf.tracking import NullRun
from bhive_mltf.training.engine import train
from bhive_mltf.training.losses import JetLosses
from bhive_mltf.training.metrics import N_SUMS, Figures, jet_sums
from bhive_mltf.training.monitoring import mlflow_observer, progress
from bhive_mltf.training.monitoring.mlflow_observer import MlflowObserver
from bhive_mltf.training.monitoring.observers import Observers
from bhive_mltf.training.monitoring.progress import TerminalProgress
from tests.helpers import standin
from tests.helpers.standin import plan
from tests.helpers.threads import as_ranks


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_have_rate_time_left_and_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    stream = io.StringIO()
    train(plan(tmp_path), World(), standin.build, TerminalProgress(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training Tiny for 2 epochs with 1 rank"
    assert "epoch 1/2 training: batch 11/11, " in lines[11]
    assert "jets/s, 0 s left, loss " in lines[11]
    assert lines[14].startswith("epoch 1/2: loss ")
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_bars(tmp_path):
    stream = Terminal()
    train(plan(tmp_path, epochs=1), World(), standin.build, TerminalProgress(stream))
    assert "\x1b" in stream.getvalue()
    assert "epoch 1/1: loss " in stream.getvalue()


class Recording(NullRun):
    def __init__(self):
        self.points, self.calls = [], []

    def metrics(self, values, step, timestamp=None):
        self.points += [(name, step, value) for name, value in values.items()]

    def artifact(self, path, folder=None):
        self.calls.append(("artifact", folder, path.name))

    def tags(self, values):
        self.calls.append(("tags", values))

    def model(self, module, name="best_model", **kwargs):
        module.load_state_dict(torch.load(kwargs["files"][0], weights_only=True)["model_state_dict"])
        self.calls.append(("model", name, kwargs["step"]))

    def nested(self, name):
        self.child = Recording()
        self.calls.append(("nested", name))
        return self.child

    def start_system_metrics(self, node_id=None, interval=10.0, root=None):
        self.calls.append("system metrics")

    def finish(self, status=None, timeout=30.0):
        self.calls.append(status)


def test_the_run_gets_upstreams_metrics_and_the_best_model(tmp_path, monkeypatch):
    run = Recording()
    monkeypatch.setattr(mlflow_observer, "attach", lambda directory, tracking: run)
    train(plan(tmp_path, nested_metrics=True, tracking=True), World(), standin.build, Observers([MlflowObserver()]))
    epochs = {"Training Loss", "Training Accuracy", "Validation Loss", "Validation Accuracy"}
    assert {name for name, _, _ in run.points} == epochs | {
        f"train/{name}" for name in ("loss", "lr", "jets_per_s", "gradient_norm", "loader_wait")
    }
    assert [step for name, step, _ in run.points if name == "Validation Loss"] == [0, 1]
    assert [step for name, step, _ in run.points if name == "train/loss"] == list(range(1, 23))
    assert [value for name, _, value in run.points if name == "train/lr"] == pytest.approx([0.01] * 11 + [0.0001] * 11)
    assert {name for name, _, _ in run.child.points} == epochs
    assert ("nested", "model_performance_metrics") in run.calls
    assert "system metrics" in run.calls
    assert run.calls[-2][:2] == ("model", "best_model")
    assert run.calls[-1] == "FINISHED"


def test_all_ranks_get_one_answer_a_step_later():
    def rank_of(group, rank):
        control = RankAgreement(World(rank=rank, size=2, host_group=group))
        answers = [control.at_step(stop=rank == 1 and step == 1, save=rank == 0 and step == 2) for step in range(4)]
        return answers, control.now(stop=False), control.now(stop=rank == 0)

    results = as_ranks(2, rank_of)
    assert results[0] == results[1]
    assert results[0] == ([(False, False), (False, False), (True, False), (False, True)], False, True)
    alone = RankAgreement(World())
    assert alone.at_step(stop=True, save=False) == (True, False)
    assert alone.now(stop=True)


def test_sums_over_ranks_are_in_float64():
    sums = as_ranks(2, lambda group, rank: World(rank, 2, host_group=group).sum(torch.tensor([1.0, 0.1 * rank])))
    assert sums[0].dtype == torch.float64
    assert torch.equal(sums[0], sums[1])
    assert sums[0].tolist() == pytest.approx([2.0, 0.1])


def test_figures_of_weighted_jets():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    target, weight = torch.tensor([0, 0, 0]), torch.tensor([1.0, 0.5, 0.0])
    losses = torch.tensor([1.0, 2.0, 3.0])
    sums = jet_sums(JetLosses(losses), logits, target, weight)
    assert Figures.of(sums) == Figures(pytest.approx(2 / 1.5), pytest.approx(1 / 1.5))
    assert Figures.of(sums).parts == {}
    assert math.isnan(Figures.of(torch.zeros(N_SUMS)).loss)


def test_w24_the_parts_of_the_loss_are_averaged_apart():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    target, weight = torch.tensor([0, 0, 0]), torch.tensor([1.0, 0.5, 0.0])
    parts = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 7.0])
    sums = jet_sums(JetLosses(sum(parts), *parts), logits, target, weight)
    figures = Figures.of(sums, multi_task=True)
    assert figures.parts == {"loss_cat": pytest.approx(2 / 1.5), "loss_reg": pytest.approx(0.625 / 1.5)}
    assert figures.loss == pytest.approx(2.625 / 1.5)
    assert math.isnan(Figures.of(torch.zeros(N_SUMS), multi_task=True).loss_reg)


def test_alone_without_environment():
    with join_world() as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        world.barrier()
    assert pick_device(0) == torch.device("cpu")


def test_threads_per_rank():
    before = torch.get_num_threads()
    try:
        set_threads(2, World())
        assert torch.get_num_threads() == 2
        set_threads(0, World())
        assert torch.get_num_threads() == 2
        set_threads(0, World(size=2))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
