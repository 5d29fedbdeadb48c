"""Batch norms of the global batch: threads of one process play the ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bhive_mltf.ranks import batchnorm
from bhive_mltf.ranks.batchnorm import GlobalBatchNorm1d, plain_batch_norms, synchronise_batch_norms
from tests.training.threads import as_ranks

CPU = torch.device("cpu")


def _norm(**kwargs):
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(3, **kwargs).double()
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def _pass(norm, x, weight):
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * weight).sum().backward()
    return y.detach(), x.grad, [p.grad for p in norm.parameters()]


@pytest.mark.parametrize("sizes", [(4, 4), (7, 1), (5, 0), (0, 2, 3), (1, 1)])
@pytest.mark.parametrize("kwargs", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("length", [None, 5])
def test_global_statistics_are_those_of_one_rank(sizes, kwargs, length):
    shape = (sum(sizes), 3) if length is None else (sum(sizes), 3, length)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 100
    weight = torch.randn(shape, dtype=torch.float64)
    one = _norm(**kwargs)
    copies = [copy.deepcopy(one) for _ in sizes]
    expected = _pass(one, x, weight)

    def rank_pass(group, rank):
        norm = synchronise_batch_norms(copies[rank], CPU, group)
        return _pass(norm, x.split(sizes)[rank], weight.split(sizes)[rank]), norm.state_dict()

    results = as_ranks(len(sizes), rank_pass)
    for i in (0, 1):
        together = torch.cat([result[0][i] for result in results])
        torch.testing.assert_close(together, expected[i], rtol=1e-12, atol=1e-12)
    for i, grad in enumerate(expected[2]):
        torch.testing.assert_close(sum(r[0][2][i] for r in results), grad, rtol=1e-12, atol=1e-12)
    for _, state in results:
        assert list(state) == list(one.state_dict())
        torch.testing.assert_close(state, one.state_dict(), rtol=1e-12, atol=1e-12)
        assert all(torch.equal(state[name], results[0][1][name]) for name in state)


def test_different_lengths_per_rank_are_weighted_by_count():
    parts = [torch.randn(1, 3, 5, dtype=torch.float64), torch.randn(1, 3, 9, dtype=torch.float64)]
    expected = _norm()(torch.cat(parts, 2)).split([5, 9], 2)
    norms = [_norm(), _norm()]
    results = as_ranks(2, lambda group, rank: synchronise_batch_norms(norms[rank], CPU, group)(parts[rank]).detach())
    for result, part in zip(results, expected, strict=True):
        torch.testing.assert_close(result, part, rtol=1e-12, atol=1e-12)


def test_fewer_than_two_values_everywhere_use_the_running_statistics():
    x = torch.randn(1, 3, dtype=torch.float64)
    norms = [_norm(), _norm()]

    def rank_pass(group, rank):
        norm = synchronise_batch_norms(norms[rank], CPU, group)
        return norm(x[: 1 - rank]).detach(), norm.num_batches_tracked.item()

    (first, tracked), (second, _) = as_ranks(2, rank_pass)
    torch.testing.assert_close(first, _norm().eval()(x))
    assert second.shape == (0, 3)
    assert tracked == 0


def test_half_precision_inputs_have_statistics_of_full_precision():
    x = torch.randn(8, 3)
    results = as_ranks(
        2, lambda group, rank: synchronise_batch_norms(nn.BatchNorm1d(3), CPU, group)(x[rank * 4 :][:4].bfloat16())
    )
    expected = nn.BatchNorm1d(3)(x.bfloat16().float())
    assert results[0].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(results).float(), expected, rtol=1e-2, atol=1e-2)


def test_evaluation_and_no_grad_send_nothing_more_than_needed(monkeypatch):
    norm = _norm()
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = norm.eval()(x)
    norm.__class__, norm.group = GlobalBatchNorm1d, None
    monkeypatch.setattr(dist, "all_gather", None)
    torch.testing.assert_close(norm(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected)


def test_one_rank_keeps_its_plain_norms_and_plain_norms_come_back():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert synchronise_batch_norms(module, CPU, None) is module
    assert type(module[1]) is nn.BatchNorm1d
    keys = list(module.state_dict())
    group = object()
    synchronise_batch_norms(module, CPU, group)
    assert type(module[1]) is GlobalBatchNorm1d
    assert module[1].group is group
    plain_batch_norms(module)
    assert type(module[1]) is nn.BatchNorm1d
    assert "group" not in vars(module[1])
    assert list(module.state_dict()) == keys


def test_on_cuda_torchs_own_norms_are_taken_and_given_back():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    keys, weight = list(module.state_dict()), module[1].weight
    converted = synchronise_batch_norms(module, torch.device("cuda"), None)
    assert converted is module
    converted = batchnorm.synchronise_batch_norms(module, torch.device("cuda"), dist.GroupMember.NON_GROUP_MEMBER)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert list(converted.state_dict()) == keys
    plain = plain_batch_norms(converted)
    assert type(plain[1]) is nn.BatchNorm1d
    assert plain[1].weight is weight
    assert list(plain.state_dict()) == keys
