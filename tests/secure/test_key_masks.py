"""Masks: known bytes, an independent keystream, uniformity, and arithmetic that wraps without harm."""

import tracemalloc

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from polyclinic.secure.masks import CHUNK, add_masks_, container, reduce_, signed_

KEYS = [bytes([number]) * 32 for number in range(1, 5)]
DTYPES = [torch.int32, torch.int64]


def keystream(key, count, dtype):
    """The whole keystream at once, as Python numbers."""
    size = torch.empty(0, dtype=dtype).element_size()
    drawn = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size * count))
    return [int.from_bytes(drawn[start : start + size], "little", signed=True) for start in range(0, len(drawn), size)]


def wrapped(values, bits):
    return [(value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for value in values]


def test_the_mask_of_the_zero_key_is_the_known_block_of_aes():
    """AES-256 of a zero block with a zero key: dc95c078 a2408989 ad48a214 92842087."""
    found = add_masks_(torch.zeros(4, dtype=torch.int32), [(bytes(32), 1)])
    assert [value % 2**32 for value in found.tolist()] == [0x78C095DC, 0x898940A2, 0x14A248AD, 0x87208492]
    (first, second) = add_masks_(torch.zeros(2, dtype=torch.int64), [(bytes(32), 1)]).tolist()
    assert [first % 2**64, second % 2**64] == [0x898940A278C095DC, 0x8720849214A248AD]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_masks_are_the_keystream_added_and_subtracted_across_chunks(dtype, off):
    bits = 8 * torch.empty(0, dtype=dtype).element_size()
    count = 2 * CHUNK // (bits // 8) + off
    start = torch.arange(count, dtype=dtype) * 7919 - 2 ** (bits - 1)
    masks = [(KEYS[0], 1), (KEYS[1], -1), (KEYS[2], 1)]
    streams = [keystream(key, count, dtype) for key, _ in masks]
    expected = [v + a - b + c for v, a, b, c in zip(start.tolist(), *streams, strict=True)]
    assert add_masks_(start.clone(), masks).tolist() == wrapped(expected, bits)


@settings(max_examples=40)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50), st.integers(2, 64), st.data())
def test_what_is_added_can_be_taken_off_in_a_ring_of_any_size(values, bits, data):
    dtype = container(bits)
    vector = torch.tensor(wrapped(values, 8 * torch.empty(0, dtype=dtype).element_size()), dtype=dtype)
    masks = [(key, data.draw(st.sampled_from([1, -1]))) for key in KEYS]
    masked = reduce_(add_masks_(vector.clone(), masks), bits)
    if bits not in (32, 64):
        assert all(0 <= value < 2**bits for value in masked.tolist())
    found = signed_(add_masks_(masked, [(key, -sign) for key, sign in masks]), bits)
    assert found.tolist() == wrapped(vector.tolist(), bits)


def test_it_works_in_place_and_in_little_memory():
    vector = torch.zeros(2_000_000, dtype=torch.int64)
    place = vector.data_ptr()
    add_masks_(vector[:10], [(KEYS[0], 1)])
    tracemalloc.start()
    found = add_masks_(vector, [(key, 1) for key in KEYS])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is vector
    assert vector.data_ptr() == place
    assert peak < 4 * CHUNK


def test_no_two_elements_and_no_two_keys_have_a_mask_in_common():
    masks = [add_masks_(torch.zeros(200_000, dtype=torch.int64), [(key, 1)]) for key in KEYS]
    assert len(torch.cat(masks).unique()) == 800_000  # by chance two are equal in one of 60 million cases


@pytest.mark.parametrize("bits", [8, 13, 32, 64])
def test_masks_are_uniform(bits):
    """Keys are fixed, so the numbers are always the same."""
    zeros = torch.zeros(1_000_000, dtype=container(bits))
    values = reduce_(add_masks_(zeros, [(KEYS[3], 1)]), bits).numpy()
    ones = [float(((values >> bit) & 1).mean()) for bit in range(bits)]
    assert np.abs(np.array(ones) - 0.5).max() < 5 * 0.5 / 1000
    for shift in range(0, bits - 7, 8):
        assert chisquare(np.bincount((values >> shift) & 255, minlength=256)).pvalue > 1e-4
    if bits == 13:
        assert chisquare(np.bincount(values, minlength=8192)).pvalue > 1e-4


@pytest.mark.parametrize(
    "vector",
    [torch.zeros(4), torch.zeros(4, dtype=torch.int16), torch.zeros(2, 2, dtype=torch.int32),
     torch.zeros(8, dtype=torch.int32)[::2], torch.zeros(4, dtype=torch.int64, device="meta")],
)  # fmt: skip
def test_other_vectors_are_refused(vector):
    with pytest.raises(ValueError, match=r"expected contiguous int32 or int64|in the processor's memory"):
        add_masks_(vector, [(KEYS[0], 1)])


@pytest.mark.parametrize("mask", [(b"short", 1), (bytes(32), 0), (bytes(32), 2)])
def test_other_keys_and_signs_are_refused_without_the_key(mask):
    with pytest.raises(ValueError, match="expected 32, and 1 or -1") as caught:
        add_masks_(torch.zeros(4, dtype=torch.int32), [mask])
    assert "short" not in str(caught.value)
