"""Buffers that are used again, and who holds them."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch

from bhive_mltf.data.loader import buffers as buffers_module
from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.buffers import Ring, SharedBuffers
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.errors import TrainingError
from tests.helpers.memory_dataset import inputs, make_dataset

DATASET = make_dataset(900)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with patch.object(order, "BLOCK", 16):
        yield


def loader(**options):
    options = {"mode": "training", "batch_size": 20, "seed": 3, "weighted": False, **options}
    return BatchLoader(DATASET, range(len(DATASET)), inputs(), **options)


def features(batch):
    return batch.groups["cpf"].features


def test_a_buffer_is_free_when_nothing_refers_to_it():
    free = Ring(SharedBuffers(2, 100))
    numbers = {free.take(), free.take()}
    assert numbers == {0, 1}
    assert free.take() is None
    tensor = torch.from_numpy(free.lend(1))[:8].view(torch.int64)
    assert free.n_lent == 1
    free.give_back(0)
    assert (free.take(), free.take()) == (0, None)
    part = tensor[:1] * 1, tensor.view(torch.float32)
    del tensor
    assert free.take() is None
    del part
    assert free.n_lent == 0
    assert free.take() == 1


def test_buffers_are_shared_and_have_no_name():
    before = set(Path("/dev/shm").iterdir())
    buffers = SharedBuffers(3, 5000)
    assert set(Path("/dev/shm").iterdir()) == before
    assert buffers.size % 4096 == 0
    buffers.view(2)[:3] = [1, 2, 3]
    assert buffers.view(2)[:4].tolist() == [1, 2, 3, 0]
    assert not np.shares_memory(buffers.view(1), buffers.view(2))
    kept = buffers.view(2)
    del buffers
    gc.collect()
    assert kept[0] == 1


@pytest.mark.parametrize("n_threads", [0, 2])
def test_memory_is_used_again(n_threads):
    this = loader(n_threads=n_threads)
    places = {features(batch).data_ptr() for epoch in range(3) for batch in this.epoch(epoch)}
    assert len(places) <= 2 * n_threads + 4 < this.n_batches(0)
    this.close()


@pytest.mark.parametrize("n_threads", [0, 2])
def test_batches_that_are_kept_stay_as_they_are(n_threads):
    this, other = loader(n_threads=n_threads), loader()
    kept = list(this.epoch(1))
    assert len(kept) == 45
    for _ in this.epoch(2):
        pass
    for batch, expected in zip(kept, other.epoch(1), strict=True):
        assert torch.equal(features(batch), features(expected))
        assert torch.equal(batch.jet_id, expected.jet_id)
    this.close()
    del batch, expected
    assert torch.equal(features(kept[0]), features(next(other.epoch(1))))


def test_what_autograd_keeps_is_not_overwritten():
    this = loader()
    weight = torch.ones(3, requires_grad=True)
    batches = this.epoch(0)
    loss = (features(next(batches)) @ weight).square().sum()
    for _ in range(10):
        next(batches)
    (gradient,) = torch.autograd.grad(loss, weight)
    batch = features(next(this.epoch(0))).double()
    expected = 2 * torch.einsum("bnf,bn->f", batch, batch.sum(-1))
    torch.testing.assert_close(gradient.double(), expected)


def test_a_pinned_buffer_waits_for_the_gpu(monkeypatch):
    events = []

    class Event:
        done = False

        def __init__(self):
            events.append(self)

        def record(self):
            pass

        def query(self):
            return self.done

        def synchronize(self):
            self.done = True

    calls = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *a: calls.append(("pin", a[1])) or 0,
        cudaHostUnregister=lambda _: calls.append(("unpin",)),
    )
    cuda = SimpleNamespace(Event=Event, cudart=lambda: runtime, synchronize=lambda: calls.append(("wait",)))
    monkeypatch.setattr(buffers_module.torch, "cuda", cuda)
    buffers = SharedBuffers(2, 10)
    buffers.pin()
    assert buffers.pinned
    free = Ring(buffers)
    first, second = free.take(), free.take()
    free.lend(first)
    free.lend(second)
    assert len(events) == 0
    assert free.take() == first  # all are under way: the oldest is waited for
    assert [event.done for event in events] == [True, False]
    events[1].done = True
    assert free.take() == second
    del free, buffers
    gc.collect()
    assert calls == [("pin", 8192), ("wait",), ("unpin",)]


def test_a_dead_worker_is_noticed_at_once():
    this = loader(n_threads=2)
    batches = this.epoch(0)
    next(batches)
    started = time.monotonic()
    for pid in this._stream.workers.pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"ended on its own \(exit code -9\)"):
        list(batches)
    assert time.monotonic() - started < 4
    assert len(list(this.epoch(0))) == 45
    this.close()


CHILD = """
import os, sys
from tests.helpers.memory_dataset import inputs, make_dataset
from bhive_mltf.data.loader.loader import BatchLoader
data = make_dataset(900)
this = BatchLoader(data, range(900), inputs(), mode="training", batch_size=20, seed=1, weighted=False, n_threads=2)
next(this.epoch(0))
print(*this._stream.workers.pids, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_of_a_killed_process():
    before = set(Path("/dev/shm").iterdir())
    root = Path(buffers_module.__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    workers = [int(pid) for pid in child.stdout.readline().split()]
    assert len(workers) == 2
    child.kill()
    child.wait()
    child.stdin.close(), child.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, workers))
    assert {path for path in set(Path("/dev/shm").iterdir()) - before if not path.name.startswith("sem.")} == set()


@pytest.mark.parametrize("held", [1, 6])
def test_tensors_of_pinned_copies_are_in_the_storage_torch_gave(monkeypatch, held):
    """Torch keeps pinned memory during a copy to the GPU if it knows the storage; it does not of a numpy array's."""
    given, real = [], torch.empty

    def empty(*args, pin_memory=False, **options):
        made = real(*args, **options)
        if pin_memory:
            given.append(made)
        return made

    this = loader(pin_memory=True)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(this._stream, "_pin_memory", True)
    monkeypatch.setattr(SharedBuffers, "pin", lambda self: None)
    kept = [batch for batch, _ in zip(this.epoch(0), range(held), strict=False)]
    storages = {made.untyped_storage()._cdata for made in given}
    last = kept[-1]
    columns = (last.target, last.weight, last.jet_id, last.process, last.kinematics)
    assert all(values.untyped_storage()._cdata in storages for values in columns)
    copied = [features(batch).untyped_storage()._cdata in storages for batch in kept]
    assert copied == [number >= 3 for number in range(held)]


def test_a_gpu_is_not_waited_for_while_batches_are_ready(monkeypatch):
    """Or else each step would wait for the one before it, as soon as workers are faster than the GPU."""
    this, seen = loader(n_threads=2), []

    class Event:
        def record(self):
            pass

        def query(self):
            return False

        def synchronize(self):
            prefetcher = this._stream._prefetcher
            seen.append((len(prefetcher._order), prefetcher._under_way))

    expected = [features(batch).clone() for batch in loader().epoch(0)]
    batches = this.epoch(0)
    found = [features(next(batches)).clone()]
    this._stream._ring._buffers.pinned = True
    monkeypatch.setattr(buffers_module.torch.cuda, "Event", Event)
    found += [features(batch).clone() for batch in batches]
    this.close()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    # it has fewer buffers than batches, so that some had to be waited for
    assert set(seen) == {(0, 0)}


def test_memory_that_cuda_does_not_pin_leaves_no_error_behind(monkeypatch, caplog):
    asked = []

    def zeros(*args, **options):
        asked.append(options)
        raise RuntimeError("CUDA error: resource already mapped")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *a: 712))
    monkeypatch.setattr(torch, "zeros", zeros)
    buffers = SharedBuffers(2, 10)
    buffers.pin()
    assert not buffers.pinned
    assert asked == [{"device": "cuda"}]
    assert "CUDA does not pin the memory of batches (error 712)" in caplog.text


@pytest.mark.parametrize("world_size", [1, 3])
def test_windows_are_decoded_once_whoever_does_it(world_size, tmp_path):
    class Counting(type(DATASET)):
        def read(self, start, stop, columns=None):
            with (tmp_path / str(os.getpid())).open("a") as file:
                file.write(f"{stop - start}\n")
            return super().read(start, stop, columns)

    dataset = Counting(**{name: getattr(DATASET, name) for name in DATASET.__dataclass_fields__})
    this = BatchLoader(
        dataset, range(900), inputs(), mode="training", batch_size=30, seed=3, weighted=False, n_threads=3,
        world_size=world_size,
    )  # fmt: skip
    list(this.epoch(0))
    this.close()
    read = sum(int(n) for log in tmp_path.iterdir() for n in log.read_text().split())
    # A rank may need nothing of a short window.
    assert read == 900 if world_size == 1 else 800 < read <= 900
