import logging
import os
import signal
import subprocess
import time
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.data.loader.rank_shares import rank_slice
from bhive_mltf.errors import CorruptFileError, DataError, ModelError, ParameterError, TrainingError
from bhive_mltf.interface import GroupInput, ModelInputs
from tests.helpers.memory_dataset import CLASSES, inputs, make_dataset

DATASET = make_dataset(900)
WITH_TAUS = make_dataset(600, labels=(0, 2, 3, 4))


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with patch.object(order, "BLOCK", 16):
        yield


def loader(dataset=DATASET, jets=None, model=None, **kwargs):
    options = {"mode": "training", "batch_size": 64, "seed": 3, "weighted": False, **kwargs}
    return BatchLoader(dataset, range(len(dataset)) if jets is None else jets, model or inputs(), **options)


def ids(batches):
    return [batch.jet_id.tolist() for batch in batches]


def same(a, b):
    tensors = lambda batch: [
        batch.target,
        batch.weight,
        batch.jet_id,
        batch.process,
        batch.kinematics,
        *(t for g in batch.groups.values() for t in (g.features, g.mask, g.four_vectors) if t is not None),
    ]
    return a.global_size == b.global_size and all(map(torch.equal, tensors(a), tensors(b)))


def worker_pids(loader):
    return loader._stream.workers.pids


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    assert all(map(same, first, second))


@given(st.integers(0, 500), st.integers(1, 40))
def test_rank_slices_are_contiguous_and_even(n, world_size):
    slices = [rank_slice(n, rank, world_size) for rank in range(world_size)]
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40)
@given(
    n=st.integers(1, 400),
    batch_size=st.integers(1, 300),
    world_size=st.integers(1, 5),
    mode=st.sampled_from(["validation", "inference"]),
)
def test_w02_w38_each_jet_once_in_stored_order(n, batch_size, world_size, mode):
    world_size = min(world_size, batch_size)
    dataset, first = make_dataset(n + 20), 20
    jets = range(first, first + n)
    loaders = [
        loader(dataset, jets, mode=mode, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    found = []
    for slices in zip(*(rank.epoch(0) for rank in loaders), strict=True):
        found += [jet for batch in slices for jet in batch.jet_id.tolist()]
        assert {batch.global_size for batch in slices} == {sum(map(len, slices))}
    assert found == dataset.index.ids()[first:].tolist()
    assert loaders[0].n_batches(0) == -(-n // batch_size)
    assert loaders[0].n_jets(0) == n


@pytest.mark.parametrize("mode", ["training", "validation"])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_same_global_batch(mode, world_size):
    # training deals jets by work (see test_balance); where padding is configured, all jets are the same work
    kwargs = {"mode": mode, "weighted": True, "model": inputs("configured")}
    whole = list(loader(**kwargs).epoch(1))
    ranks = [list(loader(**kwargs, rank=rank, world_size=world_size).epoch(1)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        for name in batch.groups:
            features = torch.cat([part.groups[name].features for part in parts])
            assert torch.equal(features, batch.groups[name].features)
        assert torch.equal(torch.cat([part.jet_id for part in parts]), batch.jet_id)
        assert torch.equal(torch.cat([part.weight for part in parts]), batch.weight)
        assert {part.global_size for part in parts} == {len(batch)}


def test_a_rank_may_have_no_jet_in_the_last_batch():
    batches = list(loader(jets=range(65), mode="validation", rank=0, world_size=2).epoch(0))
    assert [len(batch) for batch in batches] == [32, 0]
    assert batches[1].global_size == 1
    assert batches[1].groups["cpf"].features.shape[0] == 0


def test_values_and_targets_belong_to_the_jets():
    position = {tuple(jet): i for i, jet in enumerate(DATASET.index.ids().tolist())}
    seen = 0
    for batch in loader(batch_size=50).epoch(0):
        at = np.array([position[tuple(jet)] for jet in batch.jet_id.tolist()])
        assert np.array_equal(batch.groups["global"].features[:, 0, 1].numpy(), 40.0 * at + 1)
        assert np.array_equal(batch.groups["cpf"].mask.sum(1), DATASET.index.counts("cpf")[at])
        assert np.array_equal(batch.target, np.select([DATASET.block.truth[at][:, k] for k in (0, 2, 3)], [0, 1, 2]))
        assert (batch.weight == 1).all()
        seen += len(batch)
    assert seen == 900


def test_padding_is_the_global_batch_s_longest_on_every_rank():
    shapes = [
        [batch.groups["cpf"].features.shape[1] for batch in loader(batch_size=4, rank=r, world_size=4).epoch(0)]
        for r in range(4)
    ]
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]
    assert len(set(shapes[0])) > 1


def test_w16_order_is_a_function_of_seed_and_epoch():
    first = ids(loader().epoch(0))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert ids(loader().epoch(0)) == first
    assert ids(loader(seed=4).epoch(0)) != first
    assert ids(loader().epoch(1)) != first


def test_w16_weighted_training_is_repeatable():
    first = ids(loader(weighted=True).epoch(2))
    assert ids(loader(weighted=True).epoch(2)) == first
    assert len(first) == loader(weighted=True).n_batches(2)


@pytest.mark.parametrize("n_threads", [0, 2])
def test_the_random_numbers_of_torch_are_left_alone(n_threads):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    this = loader(n_threads=n_threads)
    next(this.epoch(0))
    next(this.epoch(1))
    this.close()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weighted", [False, True])
def test_start_equals_skipping(weighted):
    this = loader(weighted=weighted)
    whole = list(this.epoch(3))
    for start in (0, 1, 4, len(whole), 1000):
        assert_same(this.epoch(3, start), whole[start:])


def test_start_reads_only_what_it_needs():
    dataset = make_dataset(900)
    this = loader(dataset)
    assert list(this.epoch(0, this.n_batches(0) - 1))
    assert sum(stop - start for start, stop in dataset.reads) <= 3 * 16 * order.WINDOW


def test_each_window_is_read_once():
    dataset = make_dataset(900)
    list(loader(dataset, batch_size=10).epoch(0))
    assert sum(stop - start for start, stop in dataset.reads) == 900


@pytest.mark.parametrize("n_threads", [1, 3])
def test_workers_change_nothing(n_threads):
    here, there = loader(weighted=True, batch_size=50), loader(weighted=True, batch_size=50, n_threads=n_threads)
    for epoch, start in [(0, 0), (1, 2), (0, 0)]:
        assert_same(there.epoch(epoch, start), here.epoch(epoch, start))
    # An epoch that is left in the middle does not leak into the next one.
    for _ in zip(range(2), there.epoch(1), strict=False):
        pass
    assert_same(there.epoch(2), here.epoch(2))
    there.close()
    assert_same(there.epoch(2), here.epoch(2))
    there.close()


def test_more_workers_than_batches_and_workers_stay():
    this = loader(batch_size=500, n_threads=3)
    assert len(list(this.epoch(0))) == 1
    started = set(worker_pids(this))
    assert len(list(this.epoch(1))) == 1
    assert set(worker_pids(this)) == started
    assert list(this.epoch(1, 1000)) == []
    this.close()
    assert not any(map(_alive, started))


def test_workers_can_be_spawned():
    with patch.object(order, "BLOCK", 2048):  # a spawned process does not see the patch of this module
        here = ids(loader(mode="inference").epoch(0))
        this = loader(mode="inference", n_threads=1, start_method="spawn")
        assert ids(this.epoch(0)) == here
        this.close()


def test_an_error_in_a_worker_keeps_its_type_and_sentence():
    dataset = make_dataset(300)
    dataset.corrupt = True
    for n_threads in (0, 1):
        this = loader(dataset, n_threads=n_threads)
        with pytest.raises(CorruptFileError) as caught:
            next(this.epoch(0))
        assert str(caught.value).startswith("shard_0.arrow is damaged")
        assert str(caught.value).endswith("again")
        this.close()


def test_a_killed_worker_is_named():
    this = loader(n_threads=1, batch_size=4)
    batches = this.epoch(0)
    next(batches)
    before = signal.getsignal(signal.SIGCHLD)
    os.kill(worker_pids(this)[0], signal.SIGKILL)
    assert signal.getsignal(signal.SIGCHLD) is before is signal.SIG_DFL  # not an error out of nowhere
    with pytest.raises(TrainingError, match="loader worker ended"):
        list(batches)
    this.close()


def test_workers_survive_the_signals_of_a_batch_system():
    this = loader(n_threads=1, batch_size=4)
    batches = this.epoch(0)
    next(batches)
    for name in ("TERM", "USR1", "USR2", "INT"):
        # From another process: SIGTERM of the parent itself does end a worker.
        subprocess.run(["kill", f"-{name}", str(worker_pids(this)[0])], check=True)
    time.sleep(0.2)
    assert len(list(batches)) == this.n_batches(0) - 1
    this.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_end_with_their_process():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        this = loader(n_threads=2)
        next(this.epoch(0))
        os.write(writer, " ".join(map(str, worker_pids(this))).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    workers = [int(pid) for pid in os.read(reader, 100).split()]
    os.close(reader), os.close(writer)
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_new_epoch_ends_the_old_one():
    this = loader()
    old = this.epoch(0)
    next(old)
    assert len(list(this.epoch(1))) == this.n_batches(1)
    with pytest.raises(RuntimeError, match="epoch 0 ended"):
        next(old)


def test_weighted_validation_weighs_by_the_sampling_probability():
    this = loader(mode="validation", weighted=True, process_weights={"QCD": 1.0, "TTBar": 2.0})
    weight = torch.cat([batch.weight for batch in this.epoch(0)])
    index = DATASET.index
    expected = index.weight * np.array([0.5, 1.0])[index.process]
    assert weight.numpy() == pytest.approx(expected)
    assert len(weight) == 900
    assert torch.cat([batch.weight for batch in loader(mode="validation").epoch(0)]).eq(1).all()


def test_w29_a_larger_process_weight_gives_more_jets():
    this = loader(weighted=True, batch_size=1, process_weights={"QCD": 1.0, "TTBar": 4.0})
    process = torch.cat([b.process for epoch in range(6) for b in this.epoch(epoch)])
    index = DATASET.index
    available = [index.weight[index.process == p].sum() for p in (0, 1)]
    rates = [(process == p).sum().item() / 6 / available[p] for p in (0, 1)]
    assert rates == pytest.approx([0.25, 1.0], abs=0.08)


@pytest.mark.parametrize("mode", ["training", "validation", "inference"])
def test_w15_jets_in_no_class_are_refused(mode):
    with pytest.raises(DataError, match=r"isTau: \d+.*--unmatched"):
        loader(WITH_TAUS, mode=mode)


@pytest.mark.parametrize(
    ("mode", "unmatched", "taus"),
    [
        ("training", "drop", []),
        ("validation", "drop", []),
        ("inference", "drop", [-1]),
        ("training", "first", [0]),
        ("validation", "first", [0]),
        ("inference", "first", [0]),
    ],
)
def test_w15_what_becomes_of_jets_in_no_class(mode, unmatched, taus):
    this = loader(WITH_TAUS, mode=mode, unmatched=unmatched, batch_size=1)
    is_tau = {tuple(jet) for jet in WITH_TAUS.index.ids()[WITH_TAUS.block.truth[:, 4]].tolist()}
    batches = list(this.epoch(0))
    of_taus = [batch.target.item() for batch in batches if tuple(batch.jet_id[0].tolist()) in is_tau]
    assert sorted(set(of_taus)) == taus
    assert len(of_taus) == (len(is_tau) if taus else 0)
    assert len(batches) == this.n_jets(0) == 600 - (0 if taus else len(is_tau))


def test_fewer_sampled_jets_than_a_global_batch():
    dataset = make_dataset(100)
    dataset.index.weight[:] = 0.01
    with pytest.raises(DataError, match=r"of 100 training jets, \d+ are left .* batch of 64.*--loss-weighting True"):
        loader(dataset, weighted=True)
    assert loader(dataset).n_batches(0) == 1
    assert loader(dataset).n_jets(0) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"n_threads": -1}, "--n-threads is -1"),
        ({"batch_size": 2, "world_size": 3}, "3 ranks for a global batch of 2"),
        ({"jets": range(3), "world_size": 4}, "4 ranks for 3 training jets"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"mode": "test"}, "no mode 'test'"),
        ({"unmatched": "keep"}, "--unmatched is 'keep'"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ParameterError, match=message):
        loader(**options)


def test_negative_start():
    with pytest.raises(ParameterError, match="batch -1"):
        loader().epoch(0, -1)


def test_inputs_that_the_training_set_does_not_have():
    for group, message in [
        (GroupInput("npf", ("a",), 3), "group 'npf'.*global, cpf, vtx"),
        (GroupInput("cpf", ("d0sig",), 3), "column 'd0sig' .*nearest: d0"),
    ]:
        with pytest.raises(ModelError, match=message):
            loader(model=ModelInputs(CLASSES, (group,), "longest"))


def test_a_training_needs_two_classes():
    with pytest.raises(DataError, match="only 'b'"):
        loader(make_dataset(100, labels=(0,)))
    assert loader(make_dataset(100, labels=(0,)), mode="inference").n_batches(0) == 2


def test_an_empty_class_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        loader(make_dataset(100, labels=(0, 2)))
    assert "'l'" in caplog.text


def test_nothing_to_validate():
    assert list(loader(jets=range(0), mode="validation").epoch(0)) == []
