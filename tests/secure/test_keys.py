"""Keys, seals, identities, and the texts that they are bound to."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as rsa_key
from hypothesis import given
from hypothesis import strategies as st
from secure_round import TRAINING, terms_of

from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.secure import KeySigner, KnownKeys, ServerRound, SiteRound, fit_shape
from polyclinic.secure import optional as optional_module
from polyclinic.secure.binding import UnfitError, bind, digest
from polyclinic.secure.keys import KeyPair, expand, seal, unseal
from polyclinic.secure.masks import add_masks_
from polyclinic.secure.roster import Advert, Roster, seed_hash

#: Of low order on Curve25519 or its twist, as little-endian numbers: 0, 1, two of order 8, p - 1, p, p + 1.
LOW = [
    0, 1, 325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20, 2**255 - 19, 2**255 - 18,
]  # fmt: skip


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_different_parts_never_give_the_same_text(first, second):
    assert (bind("test", *first) == bind("test", *second)) == (first == second)
    assert bind("test", *first) != bind("tests", *first)
    assert digest("test", *first) == hashlib.sha256(bind("test", *first)).digest()


def test_two_sites_find_the_same_key_and_a_third_another():
    one, two, three = KeyPair.new(), KeyPair.new(), KeyPair.new()
    assert one.common(two.public, b"context") == two.common(one.public, b"context")
    others = [one.common(two.public, b"other"), three.common(one.public, b"context"), one.common(three.public, b"")]
    assert len({one.common(two.public, b"context"), *others}) == 4
    assert KeyPair.of(one.secret).public == one.public


def test_a_key_is_that_of_rfc_5869():
    """Extract with a salt of zeros, expand by one block."""
    extracted = hmac.digest(bytes(32), b"secret", "sha256")
    assert expand(b"secret", b"context") == hmac.digest(extracted, b"context\x01", "sha256")


@pytest.mark.parametrize("number", LOW)
def test_keys_of_low_order_are_refused(number):
    with pytest.raises(UnfitError, match="of low order"):
        KeyPair.new().common(number.to_bytes(32, "little"), b"context")


def test_what_is_sealed_can_be_opened_with_its_key_and_context_alone():
    key, text, context = b"k" * 32, b"share" * 3, b"from a to b"
    sealed = seal(key, text, context)
    assert unseal(key, sealed, context) == text
    wrong = [
        (b"K" * 32, sealed, context),
        (key, sealed, b"from b to a"),
        (key, sealed[:-1], context),
        (key, b"", context),
    ]
    wrong += [(key, bytes([*sealed[:at], sealed[at] ^ 1, *sealed[at + 1 :]]), context) for at in range(len(sealed))]
    for case in wrong:
        with pytest.raises(UnfitError, match="can't be opened"):
            unseal(*case)


# What keys are bound to -----------------------------------------------------------------------------------------------


def roster_of(pairs, seed=b"s" * 32, **changes):
    terms = terms_of(4, **changes)
    return Roster(terms, {
        site: Advert(one.public, two.public, seed_hash(terms, site, seed))
        for site, (one, two) in zip(terms.sites, pairs, strict=True)
    })  # fmt: skip


def test_all_keys_depend_on_training_round_attempt_numbers_names_and_purpose():
    pairs = [(KeyPair.new(), KeyPair.new()) for _ in range(4)]
    other = bytes([*TRAINING[:-1], 7])
    cases = [{}, {"training": other}, {"number": 2}, {"attempt": 1}, {"bits": 31}, {"length": 6}, {"least": 4},
             {"shape": fit_shape(4, threshold=4)}]  # fmt: skip
    found = set()
    for changes in cases:
        roster = roster_of(pairs, **changes)
        first, second, third, _ = roster.terms.sites
        key, sign = roster.pair_mask(first, pairs[0][1], second)
        assert (key, -sign) == roster.pair_mask(second, pairs[1][1], first)
        found |= {key, roster.pair_mask(first, pairs[0][1], third)[0], roster.digest, roster.terms.digest}
        found |= {roster.own_mask(site, b"s" * 32) for site in (first, second)}
        found |= {roster.sealing(first, second), roster.sealing(second, first), roster.sealing(first, third)}
        found |= {roster.survivors_signed([first, second]), roster.adverts[first].signed(roster.terms, first)}
        found |= {roster.commitment(first, other, kind, b"share") for kind in (0, 1) for other in (second, third)}
        found |= {seed_hash(roster.terms, site, b"s" * 32) for site in (first, second)}
    assert len(found) == 17 * len(cases)


def test_each_two_sites_have_a_context_of_their_own(monkeypatch):
    contexts = []
    monkeypatch.setattr(KeyPair, "common", lambda pair, public, context: contexts.append(context) or b"")
    pairs = [(KeyPair.new(), KeyPair.new()) for _ in range(4)]
    roster = roster_of(pairs)
    for site, (_, pair) in zip(roster.terms.sites, pairs, strict=True):
        for other in roster.neighbours(site):
            roster.pair_mask(site, pair, other)
    assert len(contexts) == 12
    assert len(set(contexts)) == 6


def test_a_site_that_was_told_other_keys_has_another_roster():
    pairs = [(KeyPair.new(), KeyPair.new()) for _ in range(4)]
    swapped = [*pairs[:3], (pairs[3][0], KeyPair.new())]
    first, second = roster_of(pairs), roster_of(swapped)
    assert first.digest != second.digest
    one, two = first.terms.sites[:2]
    assert first.pair_mask(one, pairs[0][1], two) != second.pair_mask(one, pairs[0][1], two)


def test_a_list_of_keys_holds_none_twice():
    pairs = [(KeyPair.new(), KeyPair.new()) for _ in range(4)]
    with pytest.raises(UnfitError, match="keys are equal"):
        roster_of([*pairs[:3], (KeyPair.new(), pairs[0][0])])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"training": b"short"}, "5 bytes; expected 32"), ({"bits": 1}, "1 bits"), ({"bits": 65}, "65 bits"),
     ({"length": 0}, "0 elements"), ({"number": 0}, "round 0"), ({"attempt": -1}, "attempt -1"),
     ({"least": 1}, "at least 1 sites"), ({"least": 5}, "at least 5 sites"),
     ({"shape": fit_shape(5)}, "a graph of 5")],
)  # fmt: skip
def test_terms_that_can_not_be_are_refused(changes, sentence):
    with pytest.raises(StudyError, match=sentence) as caught:
        terms_of(4, **changes)
    assert caught.value.code == "P102"


def test_two_sites_are_refused_unless_it_is_asked_for():
    with pytest.raises(StudyError, match="Of a sum of two, each of the two knows the other's part"):
        terms_of(2)
    assert terms_of(2, least=2).needed == 2


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private_keys():
    return {
        "Aachen": Ed25519PrivateKey.generate(),
        "Bonn": ec_key(SECP256R1()),
        "Celle": rsa_key(65537, 2048),
        "Deyang": ec_key(SECP384R1()),
    }


def test_signatures_of_all_kinds_of_keys(private_keys):
    public = {site: key.public_key() for site, key in private_keys.items()}
    known = KnownKeys(public)
    for site, key in private_keys.items():
        signature = KeySigner(public, key).sign(b"what is signed")
        assert known.verify(site, b"what is signed", signature)
        assert not known.verify(site, b"what is signeD", signature)
        assert not known.verify(site, b"what is signed", signature[:-1])
        assert not known.verify(site, b"what is signed", b"")
        assert not any(known.verify(other, b"what is signed", signature) for other in {*public, "Nowhere"} - {site})


def test_nothing_secret_is_shown(private_keys):
    pair = KeyPair.new()
    assert "private" not in repr(pair)
    assert pair.secret.hex() not in repr(pair)
    assert repr(pair.secret)[2:-1] not in repr(pair)
    signer = KeySigner({}, private_keys["Bonn"])
    assert repr(signer) == "KeySigner()"
    site = SiteRound(terms_of(3), "Clinic 0")
    assert repr(site) == object.__repr__(site)


def test_without_cryptography_the_command_to_install_it_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(optional_module, "find_spec", lambda name: None)
    terms = terms_of(3)
    vector = torch.zeros(3, dtype=torch.int32)
    for needs in (lambda: SiteRound(terms, "Clinic 0"), lambda: ServerRound(terms), lambda: add_masks_(vector, [])):
        with pytest.raises(PolyclinicError, match=r"P503 .* pip install 'polyclinic\[secure\]'"):
            needs()
