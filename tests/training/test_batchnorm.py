"""Batch norms of the global batch: threads of one process play the ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bhive_mltf.ranks import batchnorm
from bhive_mltf.ranks.batchnorm import GlobalBatchNorm1d, plain_batch_norms, synchronise_batch_norms
from tests.helpers.threads import as_ranks


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
    # two jets that are almost equal have statistics of fewer digits
    torch.manual_seed(3)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 100
    weight = torch.randn(shape, dtype=torch.float64)
    one = _norm(**kwargs)
    copies = [copy.deepcopy(one) for _ in sizes]
    expected = _pass(one, x, weight)

    def rank_pass(group, rank):
        norm = synchronise_batch_norms(copies[rank], group)
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
    results = as_ranks(2, lambda group, rank: synchronise_batch_norms(norms[rank], group)(parts[rank]).detach())
    for result, part in zip(results, expected, strict=True):
        torch.testing.assert_close(result, part, rtol=1e-12, atol=1e-12)


def test_fewer_than_two_values_use_the_running_statistics():
    x = torch.randn(1, 3, dtype=torch.float64)
    norms = [_norm(), _norm()]

    def rank_pass(group, rank):
        norm = synchronise_batch_norms(norms[rank], group)
        return norm(x[: 1 - rank]).detach(), norm.num_batches_tracked.item()

    (first, tracked), (second, _) = as_ranks(2, rank_pass)
    torch.testing.assert_close(first, _norm().eval()(x))
    assert second.shape == (0, 3)
    assert tracked == 0


def test_half_precision_inputs_have_statistics_of_full_precision():
    x = torch.randn(8, 3)
    results = as_ranks(
        2, lambda group, rank: synchronise_batch_norms(nn.BatchNorm1d(3), group)(x[rank * 4 :][:4].bfloat16())
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


def test_one_rank_keeps_plain_norms_and_they_come_back():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert synchronise_batch_norms(module, None) is module
    assert type(module[1]) is nn.BatchNorm1d
    keys = list(module.state_dict())
    group = object()
    synchronise_batch_norms(module, group)
    assert type(module[1]) is GlobalBatchNorm1d
    assert module[1].group is group
    plain_batch_norms(module)
    assert type(module[1]) is nn.BatchNorm1d
    assert "group" not in vars(module[1])
    assert list(module.state_dict()) == keys


def test_norms_of_images_are_global_too():
    torch.manual_seed(0)
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    plain = nn.BatchNorm2d(2).double()
    expected = copy.deepcopy(plain)(x)
    copies = [copy.deepcopy(plain) for _ in range(2)]
    results = as_ranks(2, lambda group, rank: synchronise_batch_norms(copies[rank], group)(x.split([4, 1])[rank]))
    torch.testing.assert_close(torch.cat([part.detach() for part in results]), expected.detach())
    assert type(plain_batch_norms(copies[0])) is nn.BatchNorm2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_rank_under_autocast_sends_what_the_others_send(dtype):
    """Half-precision rows on one rank, none on the other: gradients of both, finite and of the right type."""
    x = torch.randn(64, 3).to(dtype)

    def rank_pass(group, rank):
        norm = synchronise_batch_norms(nn.BatchNorm1d(3), group)
        own = (x if rank == 0 else x[:0]).clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = norm(own)
        out.float().square().sum().backward()
        return out.dtype, own.grad, norm.weight.grad, norm.running_var

    (kind, grad, of_weight, variance), (empty_kind, empty, none, other) = as_ranks(2, rank_pass)
    assert kind == empty_kind == grad.dtype == dtype
    assert empty.shape == (0, 3)
    assert not none.any()
    assert of_weight.dtype == torch.float32
    assert torch.equal(variance, other)
    plain = nn.BatchNorm1d(3)
    plain(x.float())
    torch.testing.assert_close(variance, plain.running_var, rtol=1e-5, atol=1e-6)


class _Backward(TorchDispatchMode):
    """Notes what CUDA's backward kernel would get."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.native_batch_norm_backward.default:
            self.calls.append(args)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("affine", [True, False])
def test_the_backward_gets_all_that_cuda_asks_for(affine):
    """Its kernel asserts saved statistics, in the type it adds in, and makes its results like the weight."""
    norm = nn.BatchNorm1d(3, affine=affine)
    x = torch.randn(8, 3).bfloat16().requires_grad_()

    def rank_pass(group, rank):
        synchronise_batch_norms(norm, group)
        out = norm(x).float().square().sum()
        with _Backward() as seen:
            out.backward()
        return seen.calls

    ((found,),) = as_ranks(1, rank_pass)
    _, rows, weight, mean, variance, saved_mean, saved_inverse = found[:7]
    assert rows.dtype == torch.bfloat16
    assert {t.dtype for t in (weight, mean, variance, saved_mean, saved_inverse)} == {torch.float32}
    assert torch.equal(saved_mean, mean)
    torch.testing.assert_close(saved_inverse, (variance + norm.eps).rsqrt())


def test_many_rows_far_from_zero_keep_their_digits():
    """In float32, where torch's kernel for rows loses three."""
    torch.manual_seed(0)
    rows = 5 + torch.rand(100_000, 3)

    def rank_pass(group, rank):
        return batchnorm.global_moments(rows.split([70_000, 30_000])[rank], group)

    count, mean, variance = as_ranks(2, rank_pass)[0]
    assert count.tolist() == [100_000] * 3
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-8, atol=0)
    torch.testing.assert_close(variance, rows.double().var(0, unbiased=False), rtol=1e-6, atol=0)


def test_one_message_forward_and_one_backward(monkeypatch):
    sent, reduce, gather = [], dist.all_reduce, dist.all_gather
    monkeypatch.setattr(dist, "all_reduce", lambda *a, **k: (sent.append(a[0].shape), reduce(*a, **k)))
    monkeypatch.setattr(dist, "all_gather", lambda *a, **k: (sent.append(a[1].shape), gather(*a, **k)))
    x = torch.randn(6, 3)

    def rank_pass(group, rank):
        norm = synchronise_batch_norms(nn.BatchNorm1d(3), group)
        norm(x.clone().requires_grad_()).sum().backward()
        norm(x).sum().backward()

    as_ranks(2, rank_pass)
    assert sorted(sent) == sorted([torch.Size((3, 3))] * 4 + [torch.Size((2, 3))] * 2)
