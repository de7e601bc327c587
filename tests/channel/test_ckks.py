"""Encrypted vectors: what is decrypted is the sum of what was encrypted, and nothing that comes in ends the process."""

import struct
import zlib

import numpy as np
import pytest
import tenseal as ts
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tenseal.sealapi import SEC_LEVEL_TYPE, CoeffModulus

from polyclinic.channel import ckks
from polyclinic.channel.ckks import DEGREE, MOST, NOISE, NUMBERS, PRIME_BITS, SCALE, Key, add_, check, normal, primes
from polyclinic.shapes import Misfit


@pytest.fixture(scope="module")
def key():
    return Key.new()


def summed(key, vectors):
    """Decrypted, of vectors that were added encrypted."""
    length = len(vectors[0])
    total = check(key.encrypt(vectors[0]), length).clone()
    for vector in vectors[1:]:
        add_(total, check(key.encrypt(vector), length))
    return key.decrypt(total, length)


# Parameters -----------------------------------------------------------------------------------------------------------


def test_parameters_are_of_128_bits_by_the_standard_and_have_room_for_the_largest_sum():
    assert sum(PRIME_BITS) <= ckks.MOST_PRIME_BITS == CoeffModulus.MaxBitCount(DEGREE, SEC_LEVEL_TYPE.TC128)
    first, second = primes()
    assert first != second
    assert all(prime % (2 * DEGREE) == 1 and prime.bit_length() == 60 for prime in primes())
    assert first * second / 2 > MOST * SCALE
    assert 2 * max(primes()) < 2**63, "two whole numbers are added in 64 bits"


def test_with_less_security_there_is_no_key(monkeypatch):
    monkeypatch.setattr(ckks, "PRIME_BITS", (60, 60, 60, 60))
    with pytest.raises((ValueError, RuntimeError)):
        Key.new()


# Sums -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.sampled_from([1, 2, 4095, 4096, 4097, 9000]), st.sampled_from([1e-9, 1.0, 2.0**23]),
       st.integers(0, 2**32))  # fmt: skip
def test_it_is_the_sum(key, number, length, size, seed):
    drawn = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(length, dtype=torch.float64, generator=drawn) * (size / 8) + size / 3 for _ in range(number)]
    found, expected = summed(key, vectors), sum(vectors)
    assert (found - expected).abs().max() <= 2.0**-48 * float(expected.abs().max())


def test_small_numbers_beside_large_ones_keep_their_digits(key):
    vector = torch.full((5000,), -3e-4, dtype=torch.float64)
    vector[7] = 2.0**24
    found = key.decrypt(check(key.encrypt(vector), 5000), 5000)
    wrong = (found - vector).abs()
    assert wrong[7] <= 2.0**-27, "two units in the last place of 2^24"
    assert wrong.index_fill(0, torch.tensor([7]), 0.0).max() < 2.0**-28, "one of them"
    assert (found[4096:] - vector[4096:]).abs().max() < 2.0**-60, "the second ciphertext has no large number"


def test_numbers_are_added_as_tenseal_adds_them(key):
    vectors = [torch.linspace(-1, 1, 4096, dtype=torch.float64), torch.linspace(5, -2, 4096, dtype=torch.float64)]
    sent = [check(key.encrypt(vector), 4096) for vector in vectors]
    mine = add_(sent[0].clone(), sent[1])
    theirs = ts.ckks_vector_from(key.context, key._put_together(sent[0][0]))
    theirs += ts.ckks_vector_from(key.context, key._put_together(sent[1][0]))
    _, members, _ = ckks._taken_apart(theirs.serialize())
    assert torch.equal(torch.frombuffer(bytearray(members[97:]), dtype=torch.int64), mine.flatten())
    for place, prime in enumerate(primes()):
        pairs = zip(*(one[0, 1, place, :500].tolist() for one in sent), strict=True)
        assert mine[0, 1, place, :500].tolist() == [(a + b) % prime for a, b in pairs]


def test_the_noise_of_encryption_is_what_is_computed(key):
    """Of sums of three, since their noise must be known: √3 times that of one."""
    zeros = torch.zeros(4096, dtype=torch.float64)
    found = torch.cat([summed(key, [zeros, zeros, zeros]) for _ in range(6)])
    assert float(found.std()) == pytest.approx(NOISE * 3**0.5, rel=0.05)
    assert abs(float(found.mean())) < 5 * NOISE


def test_a_vector_is_never_encrypted_the_same_way_twice(key):
    vector = torch.ones(10, dtype=torch.float64)
    first, second = key.encrypt(vector), key.encrypt(vector)
    assert (first != second).double().mean() > 0.999
    for place, prime in enumerate(primes()):
        shares = first.view(2, 2, -1)[:, place].double() / prime
        assert stats.kstest(shares.flatten().numpy(), "uniform").pvalue > 1e-4


# Keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_that_was_read_decrypts_and_another_one_does_not(key):
    text = bytes(key.text)
    ckks._READ.clear()
    again, other = Key.read(text), Key.new()
    assert again.context is not key.context
    vector = torch.arange(50, dtype=torch.float64)
    sent = check(again.encrypt(vector), 50)
    assert (key.decrypt(sent, 50) - vector).abs().max() < 1e-12
    assert (other.decrypt(sent, 50) - vector).abs().max() > 1


def test_a_key_is_read_once_in_a_process_and_forgotten_with_its_last_user():
    first = Key.new()
    assert Key.read(first.text) is first
    held = len(ckks._READ)
    del first
    assert len(ckks._READ) == held - 1


@pytest.mark.parametrize("public", [True, False], ids=["public", "nothing"])
def test_what_has_no_secret_key_is_none(key, public):
    text = key.context.serialize(save_public_key=public, save_secret_key=False, save_galois_keys=False,
                                 save_relin_keys=False)  # fmt: skip
    with pytest.raises(Misfit, match="something else than a key"):
        Key.read(text)


@pytest.mark.parametrize("text", [b"", b"\x00", b"no key", bytes(1000)], ids=["empty", "zero", "words", "zeros"])
def test_other_bytes_are_no_key(text):
    with pytest.raises(Misfit, match="something else than a key"):
        Key.read(text)


def test_a_key_that_is_too_long_is_not_read():
    with pytest.raises(Misfit, match=r"got a key of 1048577 bytes, expected 1048576 at most"):
        Key.read(bytes(2**20 + 1))


# What comes in --------------------------------------------------------------------------------------------------------


BAD = {
    "shorter": lambda sent: sent[:-1],
    "a ciphertext less": lambda sent: sent[:NUMBERS],
    "in rows": lambda sent: sent.view(2, -1),
    "of 32 bits": lambda sent: sent.int(),
    "with fractions": lambda sent: sent.double(),
    "empty": lambda sent: sent[:0],
    "negative": lambda sent: sent.index_fill(0, torch.tensor([9]), -1),
    "the first prime": lambda sent: sent.index_fill(0, torch.tensor([8191]), primes()[0]),
    "the second prime": lambda sent: sent.index_fill(0, torch.tensor([NUMBERS + 8192]), primes()[1]),
    "the least": lambda sent: sent.index_fill(0, torch.tensor([3]), -(2**63)),
    "the largest": lambda sent: sent.index_fill(0, torch.tensor([3]), 2**63 - 1),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_ciphertext_is_refused(key, bad):
    sent = key.encrypt(torch.ones(5000, dtype=torch.float64))
    check(sent, 5000)
    with pytest.raises(Misfit):
        check(BAD[bad](sent), 5000)


def test_whatever_was_checked_can_be_decrypted(key):
    """Zeros, the largest numbers, and any in between: the process goes on."""
    shape = (1, 2, 2, DEGREE)
    highest = torch.tensor(primes()).view(1, 1, 2, 1) - 1
    for numbers in (torch.zeros(shape).long(), highest.expand(shape).clone(), torch.randint(0, 2**59, shape)):
        assert key.decrypt(check(numbers.flatten(), 4096), 4096).isfinite().all()


@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_ciphertexts_are_read_however_seal_packs_them(key, compression):
    whole = ts.ckks_vector(key.context, [0.5] * 4096).serialize()
    before, members, after = ckks._taken_apart(whole)
    packed = zlib.compress(members) if compression == "zlib" else members
    magic, size, major, minor, _, nothing, _ = struct.unpack("<HBBBBHQ", before[-16:])
    kind = 1 if compression == "zlib" else 0
    header = struct.pack("<HBBBBHQ", magic, size, major, minor, kind, nothing, 16 + len(packed))
    text = before[:-16] + ckks._varint(16 + len(packed)) + header + packed + after
    assert ckks._taken_apart(text) == (before[:-16] + header, members, after)


# Noise ----------------------------------------------------------------------------------------------------------------


def test_noise_is_normal_and_from_the_key_alone():
    found = normal(200_001, bytes(32))
    assert torch.equal(found, normal(200_001, bytes(32)))
    other = normal(200_001, bytes([*bytes(31), 1]))
    assert abs(float(np.corrcoef(found, other)[0, 1])) < 0.01
    assert stats.kstest(found.numpy(), "norm").pvalue > 0.001
    assert abs(float(np.corrcoef(found[:100_000], found[100_001:])[0, 1])) < 0.015, "a pair has one length"
    assert float(found.abs().max()) > 4
    assert [len(normal(count, bytes(32))) for count in (0, 1, 2, 7)] == [0, 1, 2, 7]
