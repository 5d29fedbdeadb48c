"""What a foreign training loop asks of its ranks; how gradients and batch norms agree is seen in `upstream_layout`."""

import pickle
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks import replicas
from bhive_mltf.ranks.replicas import Replicas


@dataclass
class TwoRanks:
    """The world of rank 0 of two; the other one says what `other` holds."""

    other: list
    rank: int = 0
    size: int = 2

    def gather(self, values):
        return torch.stack([values, torch.tensor(self.other.pop(0), dtype=values.dtype)])

    def sum(self, values):
        return self.gather(values).sum(0)


def test_one_rank_gets_what_it_gives():
    alone, model, loader, array = replicas.current(), torch.nn.BatchNorm1d(2), [1, 2], np.arange(3)
    assert (alone.rank, alone.size) == (0, 1)
    assert alone.prepare(model) is model
    assert type(model) is torch.nn.BatchNorm1d
    assert alone.even(loader) is loader
    assert alone.rows(array) is array
    assert alone.mean(0.1, 0.2) == (0.1, 0.2)
    assert alone.batch_size(7) == 7


def test_rows_of_all_ranks_are_all_rows():
    array = np.arange(20).reshape(10, 2)
    parts = [Replicas(rank=rank, size=3).rows(array) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(np.concatenate(parts)[:, 0]) == list(range(0, 20, 2))


def test_means_are_weighted_by_jets():
    assert Replicas(TwoRanks([[2.0 * 3, 0.5 * 3, 3]])).mean(1.0, 0.25, weight=1) == (1.75, 0.4375)


def test_batches_end_with_the_first_rank_and_weight_gradients():
    ranks = Replicas(TwoRanks([[2], [6], [0]]))
    shares = [(len(batch[0]), ranks._share) for batch in ranks.even([(torch.zeros(n, 3), 0) for n in (2, 2, 2)])]
    assert shares == [(2, 0.5), (2, 0.25)]
    assert ranks._share == 0.5


def test_gradients_are_averaged_in_few_messages(monkeypatch):
    lengths = []

    def all_reduce(flat, async_op):
        assert async_op
        # of a rank with the same gradients, and as many jets
        lengths.append(len(flat.mul_(2)))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    ranks = Replicas(TwoRanks([]))
    monkeypatch.setattr(ranks, "_equal", lambda _: None)
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)), torch.nn.Linear(3, 3).double())
    copy = deepcopy(model)
    ranks.prepare(model)
    for one in (model, copy):
        for _ in range(2):
            one[4](one[:4](torch.ones(2, 3)).double()).square().sum().backward()
    assert lengths == [12, 48, 12, 48]
    for parameter, other in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    monkeypatch.setattr(replicas, "BUCKET_BYTES", 4 * 24)
    model[:4](torch.ones(2, 3)).sum().backward()
    assert lengths[4:] == [24, 24]


def test_a_loader_without_a_batch_for_all_ranks_is_refused():
    with pytest.raises(ParameterError, match="a batch for 1 of 2 ranks only: take at most 1 ranks"):
        list(Replicas(TwoRanks([[0]])).even([{"x": torch.zeros(2)}]))
    assert list(Replicas(TwoRanks([[0]])).even([])) == []


def test_a_batch_is_dealt_evenly_or_refused():
    assert Replicas(size=4, rank=1).batch_size(12) == 3
    with pytest.raises(ParameterError, match="a batch of 10 jets cannot be dealt evenly to 4 ranks"):
        Replicas(size=4).batch_size(10)


def test_a_worker_of_the_loader_knows_its_rank(monkeypatch):
    copy = pickle.loads(pickle.dumps(Replicas(TwoRanks([]))))
    assert (copy.rank, copy.size, copy._world) == (0, 2, None)
    monkeypatch.setenv(replicas.VARIABLE, "2/5")
    assert (replicas.current().rank, replicas.current().size) == (2, 5)
