import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.loader import order
from bhive_mltf.data.loader.batch_plan import padded_lengths
from bhive_mltf.data.loader.buffers import BatchShape, buffer_bytes, unpack
from bhive_mltf.data.loader.collate import Collator
from bhive_mltf.data.loader.decode_cache import Arenas, read_columns
from bhive_mltf.data.loader.windows import LoaderView
from bhive_mltf.errors import CorruptFileError
from tests.helpers.memory_dataset import SCHEMA, inputs, make_dataset, value

DATASET = make_dataset(300)


def counts_of(dataset):
    return {group.name: dataset.index.counts(group.name) for group in dataset.schema.candidate_groups}


def batch_of(positions, model=None, dataset=DATASET, parts=1, dirt=255):
    """A batch that is filled in some parts from a decoded window."""
    model = model or inputs()
    positions = np.array(positions, np.int64)
    view = LoaderView(dataset, range(len(dataset)), model, "error", None)
    arenas = Arenas(view, None)
    arenas.use([np.full(arenas.n_bytes, dirt, np.uint8)])
    window = tuple(range(order.n_blocks(view.jets)))
    for block in window:
        arenas.decode(window, block, 0)
    buffer = np.full(buffer_bytes(model, len(positions)), dirt, np.uint8)
    lengths = padded_lengths(counts_of(dataset), positions, model)
    shape = BatchShape(len(positions), tuple(lengths.values()), len(positions))
    collator = Collator(model)
    first = 0
    for part in np.array_split(positions, parts):
        collator.fill(buffer, shape, first, arenas.table(window, 0), part)
        first += len(part)
    return unpack(buffer, shape, model)


def naive(positions, group, columns, length):
    """What collate must give, jet by jet."""
    stored = SCHEMA.group(group).columns
    out = np.zeros((len(positions), length, len(columns)), np.float32)
    for j, position in enumerate(positions):
        n = 1 if group == "global" else DATASET.index.counts(group)[position]
        for i in range(min(n, length)):
            out[j, i] = [value(position, i, stored.index(c)) for c in columns]
    return out


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 299), min_size=1, max_size=40),
    st.sampled_from(["longest", "configured"]),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_collate_equals_the_loop(positions, padding, cpf, split):
    model = inputs(padding, cpf)
    batch = batch_of(positions, model, parts=split)
    for group in model.groups:
        got = batch.groups[group.name]
        length = got.mask.shape[1]
        expected = naive(positions, group.name, group.columns, length)
        assert np.array_equal(got.features.numpy(), expected)
        assert got.columns == group.columns
        assert np.array_equal(got.mask.numpy(), expected[:, :, 0] > 0)
        if group.four_vectors:
            assert np.array_equal(got.four_vectors.numpy(), naive(positions, group.name, group.four_vectors, length))
        else:
            assert got.four_vectors is None


@settings(max_examples=50)
@given(st.lists(st.integers(0, 299), max_size=40), st.integers(1, 8))
def test_padded_lengths(positions, cpf):
    positions = np.array(positions, np.int64)
    longest = padded_lengths(counts_of(DATASET), positions, inputs("longest", cpf))
    counts = DATASET.index.counts("cpf")[positions]
    assert longest["cpf"] == min(cpf, max([1, *counts.tolist()]))
    assert longest["global"] == 1
    assert padded_lengths(counts_of(DATASET), positions, inputs("configured", cpf)) == {
        "global": 1,
        "cpf": cpf,
        "vtx": 3,
    }


def test_tensors_are_finite_typed_and_contiguous():
    batch = batch_of(range(300))
    for group in batch.groups.values():
        assert group.features.dtype == torch.float32
        assert group.mask.dtype == torch.bool
        assert group.features.is_contiguous()
        assert torch.isfinite(group.features).all()
        assert (group.features[~group.mask] == 0).all()
    assert batch.target.dtype == batch.jet_id.dtype == batch.process.dtype == torch.int64
    assert batch.kinematics.dtype == batch.weight.dtype == torch.float32
    assert np.array_equal(batch.jet_id.numpy(), DATASET.block.jet_id)
    assert np.array_equal(batch.process.numpy(), DATASET.block.process)
    assert np.array_equal(batch.kinematics.numpy(), DATASET.block.kinematics)


def test_jets_without_candidates():
    empty = np.flatnonzero(DATASET.index.counts("cpf") == 0)[:3]
    batch = batch_of(empty)
    assert batch.groups["cpf"].features.shape == (3, 1, 3)
    assert not batch.groups["cpf"].mask.any()
    assert (batch.groups["cpf"].features == 0).all()


def test_no_jets():
    batch = batch_of([], inputs("configured"))
    assert len(batch) == 0
    assert batch.groups["cpf"].features.shape == (0, 6, 3)
    assert batch.groups["cpf"].four_vectors.shape == (0, 6, 4)
    assert batch.jet_id.shape == (0, 2)


def test_columns_are_read_once_each():
    assert read_columns(inputs()) == {
        "global": ("n", "jet_pt"),
        "cpf": ("d0", "e", "px", "py", "pz"),
        "vtx": ("mass",),
    }


def test_a_kept_target_does_not_keep_the_features():
    batch = batch_of(range(50))
    kept = [batch.target, batch.weight, batch.jet_id, batch.process, batch.kinematics]
    features = [t.numpy() for g in batch.groups.values() for t in (g.features, g.mask)]
    low, high = min(x.ctypes.data for x in features), max(x.ctypes.data for x in features)
    assert high - low < 1 << 16
    assert not any(low <= tensor.data_ptr() <= high for tensor in kept)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 299), max_size=30), st.integers(0, 255))
def test_what_was_in_the_buffer_does_not_show(positions, dirt):
    clean, dirty = batch_of(positions, dirt=0), batch_of(positions, dirt=dirt)
    for a, b in zip(clean.groups.values(), dirty.groups.values(), strict=True):
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.mask, b.mask)
    assert torch.equal(clean.weight, dirty.weight)


def test_a_set_whose_index_disagrees_is_refused():
    dataset = make_dataset(40)
    dataset.index.n["cpf"][7] += 1
    with pytest.raises(CorruptFileError, match="disagree on the number of candidates cpf"):
        batch_of([3], dataset=dataset)
