"""Mixed precision on a CPU."""

import pytest
import torch

from bhive_mltf.training import precision

CPU = torch.device("cpu")


def test_products_are_in_bfloat16_only_inside():
    torch.manual_seed(0)
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    exact = a.double() @ b.double()
    scale = exact.abs().max()
    with precision.bfloat16_products(CPU, enabled=True):
        assert torch.get_float32_matmul_precision() == "medium"
        inside = a @ b
    # 8 bits of each factor; a processor without such products keeps all 24
    assert (inside - exact).abs().max() < 2**-7 * scale
    assert (a @ b - exact).abs().max() < 1e-6 * scale


@pytest.mark.parametrize(("device", "enabled"), [(CPU, False), (torch.device("cuda"), True)])
def test_nothing_changes_where_it_is_not_asked_for(device, enabled):
    before = torch.get_float32_matmul_precision()
    with precision.bfloat16_products(device, enabled):
        assert torch.get_float32_matmul_precision() == before


def test_it_ends_with_an_error():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match="stop"), precision.bfloat16_products(CPU, enabled=True):
        raise ValueError("stop")
    assert torch.get_float32_matmul_precision() == before
