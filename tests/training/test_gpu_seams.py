"""What runs on GPUs, through the places where a CPU can stand in for one."""

import os
import types
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist

from bhive_mltf import compat
from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks import distributed
from bhive_mltf.ranks.distributed import World, backends, conflict, join_world, pick_device
from bhive_mltf.ranks.files import NEEDS_GPU_VARIABLE
from bhive_mltf.ranks.gpu_errors import GpuCause, cause_of
from bhive_mltf.ranks.gpus import count_gpus
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.training import transfer
from bhive_mltf.training.checkpointing import checkpoint
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.monitoring.warnings import few_jets
from bhive_mltf.training.precision import Precision
from bhive_mltf.training.transfer import DeviceLane, Transfer
from tests.helpers import standin
from tests.helpers.standin import plan
from tests.training.test_engine import Seen, same

CPU = torch.device("cpu")


def run(directory, observer=None, **values):
    train(plan(directory, **values), World(), standin.build, observer or Observer())
    return checkpoint.read_checkpoint(directory / "best_model.pt")


class Recorder:
    """A lane that writes down what it is asked for."""

    def __init__(self):
        self.said, self.inside = [], False

    @contextmanager
    def aside(self):
        self.inside = True
        yield
        self.inside = False

    def mark(self):
        assert self.inside
        self.said.append("copy")
        return len(self.said)

    def wait(self, mark):
        assert not self.inside
        self.said.append(f"wait {mark}")

    def hand_over(self, values):
        if self.said[-1] != "hand over":
            self.said.append("hand over")
        return values


def test_a_batch_is_copied_while_the_one_before_is_used(monkeypatch):
    lane, alive = Recorder(), []
    monkeypatch.setattr(transfer, "lane_of", lambda device: lane)

    def batches():
        for seed in range(3):
            alive.append(seed)
            yield standin.batch(4, seed=seed)

    for number, batch in enumerate(Transfer(CPU).over(batches())):
        assert torch.equal(batch.target, standin.batch(4, seed=number).target)
        lane.said.append(f"step {number}")
    assert lane.said == [
        "copy", "copy", "wait 1", "hand over", "step 0",
        "copy", "wait 2", "hand over", "step 1",
        "wait 6", "hand over", "step 2",
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(torch.cpu.Stream(), "record_event"), reason="torch.cpu records no events here")
def test_a_training_through_a_lane_has_the_same_bits(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", n_threads=1)
    monkeypatch.setattr(transfer, "lane_of", lambda device: DeviceLane(torch.cpu, device))
    same(plain, run(tmp_path / "lane", n_threads=1))
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=4))
    same(plain, run(tmp_path / "cut"))


def test_a_cpu_needs_no_lane():
    assert transfer.lane_of(CPU) is None


def scaler(precision, device):
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)


def test_the_scaler_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Precision, "scaler", scaler)
    kwargs = {"mixed_precision": True, "epochs": 3}
    whole = run(tmp_path / "whole", **kwargs)
    assert whole["scaler_state_dict"]["scale"] > 1024.0
    with pytest.raises(TrainingInterruptedError):
        run(tmp_path / "cut", Seen(stop_at=15), **kwargs)
    cut = run(tmp_path / "cut", **kwargs)
    same(whole, cut)
    last = [checkpoint.read_checkpoint(checkpoint.epoch_path(tmp_path / name, 2)) for name in ("whole", "cut")]
    assert last[0]["scaler_state_dict"] == last[1]["scaler_state_dict"]


def test_a_scaled_gradient_that_overflows_skips_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Precision, "scaler", scaler)
    one, jets = make_stepper(tmp_path), standin.batch(20)
    one.train(jets, 0, 0.1)
    before = [p.detach().clone() for p in one.model.parameters()]
    one.model.out.weight.register_hook(lambda gradient: gradient * float("inf"))
    one.train(jets, 1, 0.1)
    assert one.scaler.get_scale() == 512.0
    assert not torch.isfinite(one.guard.norm)
    assert all(torch.equal(p, b) for p, b in zip(one.model.parameters(), before, strict=True))


def make_stepper(directory):
    from tests.training.test_step import stepper

    return stepper(directory, "AdamW", mixed_precision=True)


def test_a_gradient_scaler_leaves_no_weights_of_a_bad_step(tmp_path, monkeypatch):
    """G7: the scaler skips steps by itself, the guard does not hold the weights for a report."""
    assert make_stepper(tmp_path / "plain").guard.holds
    monkeypatch.setattr(Precision, "scaler", scaler)
    assert not make_stepper(tmp_path / "scaled").guard.holds


def test_backends():
    assert backends(CPU) == ("gloo", "gloo")
    assert backends(torch.device("cuda", 0)) == ("cpu:gloo,cuda:nccl", "nccl")


@pytest.fixture
def gpus(monkeypatch):
    """A node with so many GPUs, an environment that may be changed, and what CUDA was told."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PYTORCH"))})

    def see(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(distributed, "count_gpus", lambda environment: number)

    see.told = []
    monkeypatch.setattr(torch.cuda, "set_device", see.told.append)
    monkeypatch.setattr(compat, "set_cuda_allocator", see.told.append)
    return see


def test_each_local_rank_has_a_gpu_and_memory_that_grows(gpus):
    gpus(2)
    assert pick_device(1) == torch.device("cuda", 1)
    # the device also in ranks that join no group: events of another one would not guard its copies
    assert gpus.told == ["expandable_segments:True", 1]
    with pytest.raises(ParameterError, match="local rank 2, but this node has 2 visible GPUs"):
        pick_device(2)


def test_what_the_user_says_of_the_allocator_stays(gpus):
    gpus(1)
    os.environ["PYTORCH_ALLOC_CONF"] = "backend:cudaMallocAsync"
    pick_device(0)
    assert gpus.told == [0]


def test_settings_of_the_allocator_reach_torch(monkeypatch):
    """By the call: newer ones have read the environment long before."""
    older, newer = [], []
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", older.append)
    monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings", raising=False)
    compat.set_cuda_allocator("expandable_segments:True")
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", newer.append, raising=False)
    compat.set_cuda_allocator("expandable_segments:False")
    assert (older, newer) == (["expandable_segments:True"], ["expandable_segments:False"])


def test_a_task_of_slurm_that_sees_one_gpu_takes_it(gpus):
    """Where SLURM binds GPUs to tasks, each sees its own as the first."""
    gpus(1)
    with pytest.raises(ParameterError):
        pick_device(3)
    os.environ["SLURM_STEP_ID"] = "0"
    assert pick_device(3) == torch.device("cuda", 0)
    assert gpus.told[-1] == 0


def test_a_job_with_gpus_never_computes_on_a_processor(gpus, monkeypatch):
    gpus(0)
    assert pick_device(0) == CPU
    os.environ[NEEDS_GPU_VARIABLE] = "1"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ParameterError, match="the job has GPUs, but torch .* is built without CUDA: install"):
        pick_device(0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(RuntimeError, match="no CUDA-capable device") as caught:
        pick_device(0)
    assert cause_of(caught.value) is GpuCause.BAD_NODE

    def old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", old)
    with pytest.raises(RuntimeError, match="too old") as caught:
        pick_device(0)
    assert cause_of(caught.value) is GpuCause.OLD_DRIVER


def test_gpus_that_torch_cannot_use_are_told(gpus, monkeypatch, caplog):
    gpus(0)
    monkeypatch.setattr(distributed, "count_gpus", lambda environment: 4)
    assert pick_device(0) == pick_device(1) == CPU
    assert caplog.text.count("this node has 4 GPUs that torch") == 1
    caplog.clear()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    pick_device(0)
    assert not caplog.text


def test_ranks_with_gpus_meet_over_nccl_on_their_own_device(gpus, monkeypatch):
    """G21 too: loader workers are forked beside NCCL's connections."""
    gpus(2)
    os.environ.update(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    os.environ.pop("RDMAV_FORK_SAFE", None)
    store, told = dist.HashStore(), gpus.told
    store.set("bhive_mltf/device/0", "GPU another of n1")
    monkeypatch.setattr(dist, "rendezvous", lambda *args, **kwargs: iter([(store, 1, 2)]))
    identity = types.SimpleNamespace(uuid="with the number 1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", {torch.device("cuda", 1): identity}.__getitem__)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **kwargs: told.append((backend, kwargs)))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: told.append(backend) or backend)
    monkeypatch.setattr(dist, "barrier", lambda group: told.append(f"barrier of {group}"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: told.append("the end"))
    with join_world() as world:
        assert (world.rank, world.size, world.device) == (1, 2, torch.device("cuda", 1))
        assert (world.host_group, world.norm_group) == ("gloo", "nccl")
        assert os.environ["RDMAV_FORK_SAFE"] == "1"
    (backend, options), *rest = told[2:]
    # the device first: NCCL takes the current one
    assert told[1] == 1
    assert backend == "cpu:gloo,cuda:nccl"
    assert options["device_id"] == world.device
    assert rest == ["gloo", "nccl", "barrier of gloo", "the end"]
    assert store.get("bhive_mltf/device/1").startswith(b"GPU with the number 1 of ")


def test_devices_that_cannot_work_together_are_refused():
    first, second, cpu = "GPU a of n1", "GPU b of n1", "processor of n2"
    assert conflict([first, second]) == conflict([cpu, cpu]) == ""
    assert conflict([first, cpu]).startswith("rank 0 computes on a GPU a of n1, but rank 1 on a processor of n2: give")
    assert conflict([first, second, first]).startswith("ranks 0 and 2 both have the GPU a of n1: take fewer ranks")


@pytest.mark.parametrize(
    ("named", "there", "expected"),
    [(None, 4, 4), ("", 4, 4), ("1,3", 4, 2), ("0,1,2", 2, 2), ("MIG-a,MIG-b", 1, 2), ("MIG-a", 0, 0)],
)
def test_gpus_of_a_job_are_those_named_as_far_as_they_are_there(monkeypatch, named, there, expected):
    pynvml = pytest.importorskip("pynvml")
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: there)
    assert count_gpus({} if named is None else {"CUDA_VISIBLE_DEVICES": named}) == expected


def test_few_jets_per_gpu_are_told():
    assert few_jets(1024, 4) is None
    assert few_jets(1024, 16).startswith("each of the 16 ranks gets 64 jets of a batch of 1024, too few to fill a GPU")
