"""The compiled rows are what torch's operations are, and their dropout drops alike forward and backward."""

from __future__ import annotations

import platform

import pytest
import torch
from torch.nn import functional as F

from bhive_mltf.models.cpu_kernels import rows
from bhive_mltf.models.cpu_kernels.masks import Dropout
from bhive_mltf.models.part.network import PartNetwork
from tests.compiling import shared_library
from tests.models.test_packed import inputs


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no processor of this kind")
    return rows.load(shared_library(tmp_path_factory.mktemp("compiled"), *rows.SOURCES))


@pytest.fixture(params=rows.LANES)
def compiled(request, built, monkeypatch):
    """One kind of functions; for widths that it does not take, torch's operations."""
    found = [kernels for kernels in built if kernels.kind == request.param]
    if not found:
        pytest.skip(f"no {request.param}")
    monkeypatch.setattr(rows, "KERNELS", found)


def dropout(rate=0.3):
    torch.manual_seed(3)
    return Dropout(rate, torch.float32)


def mask_of(shape, rate=0.3):
    """What the next function drops: numbers go through the elements."""
    scores = torch.zeros(1, *shape)
    return rows.softmax_drop(scores, dropout(rate))[1][0] != 0


def close(got, expected):
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.usefixtures("compiled")
def test_gelu_dropout_and_norm(rate):
    torch.manual_seed(0)
    x, grad = 3 * torch.randn(37, 48), torch.randn(37, 48)
    x[0, :8] = torch.tensor([-200.0, -20, -9, -5, 5, 9, 20, 200])
    kept = mask_of((37, 48), rate)
    out, rstd, drawn = rows.gelu_drop_norm(x, 1e-5, dropout(rate), torch.ones(48), torch.zeros(48))
    wide = x.double().requires_grad_()
    expected = F.layer_norm(F.gelu(wide) * kept, (48,))
    expected.backward(grad.double())
    close(out, expected.detach())
    sums = torch.ones(48)
    found = rows.back_gelu_drop_norm(grad * rstd, out, x, (dropout(rate), drawn), sums)
    close(found, wide.grad)
    torch.testing.assert_close(sums.double(), 1 + wide.grad.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 7, 8, 21, 64])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.usefixtures("compiled")
def test_softmax_and_dropout(length, rate):
    torch.manual_seed(0)
    scores, grad = 4 * torch.randn(3, 5, length), torch.randn(3, 5, length)
    scores[0, 1, 1:] = float("-inf")
    scores[1] += 1000
    kept = mask_of((15, length), rate).view(scores.shape)
    wide = scores.double().requires_grad_()
    expected = wide.softmax(-1)
    (expected * kept).backward(grad.double())
    weights, dropped, drawn = rows.softmax_drop(scores, dropout(rate))
    close(weights, expected.detach())
    assert torch.equal(dropped, weights * kept)
    assert weights[0, 1].tolist() == [1.0] + [0.0] * (length - 1)
    close(rows.back_softmax_drop(grad, weights, dropout(rate), drawn), wide.grad)


@pytest.mark.usefixtures("compiled")
def test_line_gelu_moments_and_add_line():
    torch.manual_seed(0)
    x, grad, factor, offset = torch.randn(70, 16), torch.randn(70, 16), torch.randn(16), torch.randn(16)
    wide, line = x.double().requires_grad_(), [v.double().requires_grad_() for v in (factor, offset)]
    expected = F.gelu(wide * line[0] + line[1])
    expected.backward(grad.double())
    out, to_x, sums = torch.empty_like(x), torch.empty_like(x), (torch.ones(16), torch.ones(16))
    rows.line_gelu(x, factor, offset, out)
    close(out, expected.detach())
    of_gelu = grad.clone()
    rows.back_line_gelu(of_gelu, x, (factor, offset), sums, to_x)
    for got, wanted in ((to_x, wide.grad), (sums[0] - 1, line[1].grad), (sums[1] - 1, line[0].grad)):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=3e-5)
    rows.line_gelu(x, None, None, out)
    close(out, F.gelu(x.double()))
    total, squares = torch.ones(16).double(), torch.ones(16).double()
    rows.add_moments(x, offset, total, squares)
    torch.testing.assert_close(total - 1, (x - offset).double().sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares - 1, (x - offset).double().square().sum(0), rtol=1e-5, atol=1e-5)
    close(rows.add_line(grad, x, factor, offset), (grad + x * factor + offset).double())


@pytest.mark.usefixtures("compiled")
def test_heads_and_back():
    table = torch.randn(11, 3 * 48)
    heads = rows.to_heads(table[:, 48:96], 3)
    assert torch.equal(heads, table[:, 48:96].unflatten(1, (3, 16)).transpose(0, 1))
    out = torch.zeros(11, 3 * 48)
    rows.from_heads(heads, out[:, 48:96])
    assert torch.equal(out[:, 48:96], table[:, 48:96])
    assert not out[:, :48].any()
    assert not out[:, 96:].any()


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.8])
@pytest.mark.usefixtures("compiled")
def test_dropout_drops_its_rate_and_neighbours_do_not_know_of_each_other(rate):
    kept = mask_of((1000, 1000), rate).double()
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / 1e6) ** 0.5
    flat = kept.flatten()
    for step in (1, 8, 1000):
        assert abs(torch.corrcoef(torch.stack((flat[:-step], flat[step:])))[0, 1]) < 5e-3
    torch.manual_seed(4)
    other = rows.softmax_drop(torch.zeros(1, 1000, 1000), Dropout(rate, torch.float32))[1].flatten() != 0
    assert abs(torch.corrcoef(torch.stack((flat, other.double())))[0, 1]) < 5e-3


@pytest.mark.usefixtures("compiled")
def test_the_network_is_the_same_with_and_without_it(monkeypatch):
    built = rows.KERNELS
    sizes = {
        "embed_dims": (16, 24, 128),
        "pair_embed_dims": (8, 16),
        "num_layers": 2,
        "num_cls_layers": 1,
        "num_heads": 8,
    }
    jets = [values.float() if values.is_floating_point() else values for values in inputs([5, 1, 19, 3, 12])]

    def results(rate, used):
        monkeypatch.setattr(rows, "KERNELS", used)
        torch.manual_seed(0)
        network = PartNetwork(4, 3, dropout=rate, **sizes).train()
        logits = network(*jets)
        logits.square().sum().backward()
        return logits.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])

    for got, expected in zip(results(0.0, built), results(0.0, ()), strict=True):
        assert (got - expected).norm() < 1e-5 * expected.norm()
    # the same seed, the same bits
    for one, two in zip(results(0.2, built), results(0.2, built), strict=True):
        assert torch.equal(one, two)


def test_a_library_that_cannot_be_loaded_has_nothing(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"nothing")
    assert rows.load(broken) == ()
    assert rows.load(tmp_path / "missing.so") == ()
