import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhive_mltf.data.collate import Arena, collate, padded_lengths, read_columns
from tests.data.memory_dataset import SCHEMA, inputs, make_dataset, value

DATASET = make_dataset(300)


def batch_of(positions, model=None, dataset=DATASET, split=1):
    model = model or inputs()
    positions = np.array(positions, np.int64)
    columns = read_columns(model)
    edges = np.linspace(0, len(dataset), split + 1).astype(int)
    blocks = [dataset.read(a, b, columns) for a, b in pairwise(edges)]
    packet = collate(
        [(Arena.of(blocks, model), positions)],
        model,
        padded_lengths(dataset.index, positions, model),
        target=np.zeros(len(positions), np.int64),
        weight=np.ones(len(positions), np.float32),
        global_size=len(positions),
    )
    return packet.unpack(model)


def naive(positions, group, columns, length):
    """What collate must give, jet by jet."""
    stored = SCHEMA.group(group).columns
    out = np.zeros((len(positions), length, len(columns)), np.float32)
    for j, position in enumerate(positions):
        n = 1 if group == "global" else DATASET.index.counts(group)[position]
        for i in range(min(n, length)):
            out[j, i] = [value(position, i, stored.index(c)) for c in columns]
    return out


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 299), min_size=1, max_size=40),
    st.sampled_from(["longest", "configured"]),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_collate_equals_the_loop(positions, padding, cpf, split):
    model = inputs(padding, cpf)
    batch = batch_of(positions, model, split=split)
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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=40), st.integers(1, 8))
def test_padded_lengths(positions, cpf):
    positions = np.array(positions, np.int64)
    longest = padded_lengths(DATASET.index, positions, inputs("longest", cpf))
    counts = DATASET.index.counts("cpf")[positions]
    assert longest["cpf"] == min(cpf, max([1, *counts.tolist()]))
    assert longest["global"] == 1
    assert padded_lengths(DATASET.index, positions, inputs("configured", cpf)) == {"global": 1, "cpf": cpf, "vtx": 3}


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
    model = inputs("configured")
    lengths = padded_lengths(DATASET.index, np.empty(0, np.int64), model)
    none = {"target": np.empty(0, np.int64), "weight": np.empty(0, np.float32)}
    batch = collate([], model, lengths, **none, global_size=5).unpack(model)
    assert len(batch) == 0
    assert batch.global_size == 5
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
    sizes = {batch.target.untyped_storage().nbytes(), batch.jet_id.untyped_storage().nbytes()}
    assert sizes == {50 * 8, 50 * 16}
    features = [group.features.untyped_storage().data_ptr() for group in batch.groups.values()]
    assert len(set(features)) == 1


@pytest.mark.parametrize("n", [0, 7])
def test_packets_survive_pickling(n):
    model = inputs()
    positions = np.arange(n)
    arena = Arena.of([DATASET.read(0, 300, read_columns(model))], model)
    packet = collate(
        [(arena, positions)] if n else [],
        model,
        {"global": 1, "cpf": 2, "vtx": 1},
        target=positions,
        weight=np.ones(n, np.float32),
        global_size=n,
    )
    copy = pickle.loads(pickle.dumps(packet)).unpack(model)
    assert torch.equal(copy.groups["cpf"].features, packet.unpack(model).groups["cpf"].features)
    assert torch.equal(copy.target, torch.arange(n))
