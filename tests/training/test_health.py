"""Numbers that are not finite, spikes, a slow loader."""

import json
import math

import pytest
import torch
from torch import nn

from bhive_mltf.errors import NonFiniteLossError, RankFailedError
from bhive_mltf.ranks.distributed import World
from bhive_mltf.ranks.launcher import LocalRanks
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.debugging.replay import replay
from bhive_mltf.training.engine import train
from bhive_mltf.training.launch import launch
from bhive_mltf.training.monitoring import warnings
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.monitoring.warnings import LoaderWaits, LossSpikes
from tests.helpers import standin
from tests.helpers.standin import COMMAND, plan


class Overflow(torch.autograd.Function):
    """A finite loss with a gradient that is not, at large inputs."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def bad_gradients(made, world):
    """From the 14th step on, the gradient of the last layer is not finite."""
    parts = standin.build(made, world)
    parts.model.steps = 0
    forward = parts.model.forward

    def haunted(batch):
        parts.model.steps += parts.model.training
        output = forward(batch)
        return Overflow.apply(output) if parts.model.training and parts.model.steps >= 14 else output

    parts.model.forward = haunted
    return parts


@pytest.mark.parametrize("optimizer", ["AdamW", "Ranger"])
def test_a_gradient_not_finite_stops_and_spares_the_weights(tmp_path, optimizer):
    with pytest.raises(
        NonFiniteLossError, match=r"norm of the gradient is nan \(loss .*at step 13 \(epoch 1, batch 2\)"
    ):
        train(plan(tmp_path, optimizer=optimizer), World(), bad_gradients, Observer())
    record = json.loads((tmp_path / "nonfinite/step_000000013.json").read_text())
    weights = torch.load(tmp_path / "nonfinite" / record["weights"], weights_only=True)["model_state_dict"]
    train(plan(tmp_path / "good", optimizer=optimizer, checkpoint_steps=13), World(), standin.build, Observer())
    good = checkpoint.read_checkpoint(checkpoint.step_path(tmp_path / "good", 13))["model_state_dict"]
    assert all(
        torch.equal(weights[name], good[name]) for name in weights if "running" not in name and "num" not in name
    )


def poisoned(made, world):
    """One jet of the third batch has an input that is NaN."""
    parts = standin.build(made, world)
    healthy = parts.training.epoch

    def epoch(epoch, start=0):
        for i, batch in enumerate(healthy(epoch, start), start):
            if (epoch, i) == (0, 2):
                batch.groups["cpf"].features[4, 0, 1] = math.nan
            yield batch

    parts.training.epoch = epoch
    return parts


def test_the_file_of_a_bad_step_names_the_jet_and_replays(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"nan at step 2 .*bhive-mltf replay .*ids of the 25 jets"):
        train(plan(tmp_path), World(), poisoned, Observer())
    path = tmp_path / "nonfinite/step_000000002.json"
    record = json.loads(path.read_text())
    (bad,) = [jet for jet in record["jets"] if not jet["finite_inputs"]]
    jets = list(standin.build(plan(tmp_path), World()).training.epoch(0))[2].jet_id
    assert [bad["file"], bad["entry"]] == jets[4].tolist()
    assert [[jet["file"], jet["entry"]] for jet in record["jets"]] == jets.tolist()
    plan(tmp_path).write()
    lines = replay(path, poisoned)
    assert "with the weights of that step, all finite" in lines[0]
    assert "inputs cpf: not finite in py" in lines
    assert any(f"entry {bad['entry']} of" in line for line in lines)
    assert any(line.startswith("first output that is not finite: embed (Linear)") for line in lines)
    assert any("not finite in embed.weight" in line for line in lines)


def test_replay_names_the_operation_that_makes_nan(tmp_path):
    class Log(nn.Module):
        def forward(self, x):
            return (x - x.detach() - 1).log()

    def build(made, world):
        parts = standin.build(made, world)
        parts.model.out = nn.Sequential(parts.model.out, Log())
        return parts

    with pytest.raises(NonFiniteLossError):
        train(plan(tmp_path), World(), build, Observer())
    plan(tmp_path).write()
    lines = replay(tmp_path / "nonfinite/step_000000000.json", build)
    assert any("first operation that makes NaN: aten.log.default in out.1 (Log)" in line for line in lines)


@pytest.mark.long
def test_two_ranks_agree_on_a_bad_step(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_POISON", "1,0,3")
    with pytest.raises(RankFailedError, match=r"NonFiniteLossError: .*nan at step 3 \(epoch 0, batch 3, rank 1 of 2\)"):
        launch(plan(tmp_path, ranks_per_node=2), LocalRanks(COMMAND))
    reasons = [json.loads((tmp_path / f"logs/rank_{rank}.error.json").read_text()) for rank in (0, 1)]
    assert reasons[0]["message"] == reasons[1]["message"]
    record = json.loads((tmp_path / "nonfinite/step_000000003.json").read_text())
    assert (record["ranks"], record["ranks_not_finite"], len(record["jets"])) == (2, [1], 25)


def test_a_spike_is_told_once_and_noise_is_not():
    watch, generator = LossSpikes(), torch.Generator().manual_seed(1)
    noise = (2 * torch.exp(-torch.arange(600) / 200) + 0.5 + 0.05 * torch.randn(600, generator=generator)).tolist()
    assert watch.see(0, noise) is None
    assert "jumped to 9 at step 601" in watch.see(600, [0.6, 9.0, 0.6])
    assert watch.see(603, [9.0]) is None
    assert watch.number == 2
    assert LossSpikes().see(0, [1.0] * 20 + [50.0]) is None


def test_a_stalled_loader_is_told_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(warnings.time, "monotonic", lambda: clock[0])

    def slow():
        for _ in range(3):
            clock[0] += 2.0
            yield object()

    waits = LoaderWaits()
    assert len(list(waits.over(slow()))) == 3
    assert waits.take() == 6.0
    assert waits.take() == 0.0
    assert waits.see(9.0, 40.0, 0) is None
    assert waits.see(30.0, 40.0, 0) is None
    assert "75% of the time: give it loader workers (--n-threads, now 0 per rank" in waits.see(30.0, 40.0, 0)
    assert waits.see(30.0, 40.0, 0) is None
    assert LoaderWaits().see(10.0, 100.0, 2) is None
