import numpy as np
import pytest

from bhive_mltf.data.loader import order

# Known answers of Random123 for philox4x32-10: counter, key, result, 32-bit words.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def _wide(low: int, high: int) -> int:
    return low | high << 32


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    low, high = np.array([_wide(*counter[:2])], np.uint64), np.array([_wide(*counter[2:])], np.uint64)
    assert order.random_bits(_wide(*key), high, low).tolist() == [_wide(*result[:2])]


def test_numbers_do_not_depend_on_their_neighbours():
    high, low = np.full(1000, 5, np.uint64), np.arange(1000, dtype=np.uint64)
    bits = order.random_bits(3, high, low)
    assert np.array_equal(order.random_bits(3, high[::-7], low[::-7]), bits[::-7])
    assert len(np.unique(bits)) == 1000


def test_uniform_numbers_fill_the_unit_interval():
    low = np.arange(100_000, dtype=np.uint64)
    numbers = order.uniform(order.random_key(1, "sampling", 0), np.zeros_like(low), low)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    share = np.histogram(numbers, bins=20, range=(0, 1))[0] / len(low)
    assert np.abs(share - 0.05).max() < 0.004


def test_keys_differ_by_seed_purpose_and_numbers():
    keys = {order.random_key(s, p, e) for s in range(5) for p in ("window", "sampling") for e in range(5)}
    assert len(keys) == 50
    assert all(0 <= key < 2**64 for key in keys)
    assert order.random_key(1, "window", 23) != order.random_key(12, "window", 3)
