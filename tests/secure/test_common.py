"""A secret in common: all sites have it, and nothing that passes by leads to it."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polyclinic.secure import KeySigner
from polyclinic.secure.binding import UnfitError
from polyclinic.secure.common import BOX_BYTES, CommonSecret

SITES = ["Aachen", "Bonn", "Celle"]
TERMS = bytes(range(32))


@pytest.fixture
def signers():
    private = {site: Ed25519PrivateKey.generate() for site in SITES}
    public = {site: key.public_key() for site, key in private.items()}
    return {site: KeySigner(public, key) for site, key in private.items()}


def parties(signers=None, terms=TERMS):
    made = {site: CommonSecret(terms, SITES, site, signers and signers[site]) for site in SITES}
    return made, {site: one.advertise() for site, one in made.items()}


@pytest.mark.parametrize("signed", [False, True])
def test_all_sites_find_the_same_keys(signers, signed):
    made, adverts = parties(signers if signed else None)
    boxes = made["Bonn"].deal(adverts)
    assert {site: len(box) for site, box in boxes.items()} == {"Aachen": BOX_BYTES, "Celle": BOX_BYTES}
    for site in ("Aachen", "Celle"):
        assert not made[site].known
        made[site].open("Bonn", adverts["Bonn"], boxes[site])
    keys = {one.key("purpose", "a", 1) for one in made.values()}
    assert [len(key) for key in keys] == [32]
    others = {made["Bonn"].key("purpose", "a", 2), made["Bonn"].key("other", "a", 1), made["Bonn"].key("purpose", "a1")}
    assert len(others | keys) == 4


def test_secrets_and_boxes_are_new_each_time():
    found = set()
    for _ in range(3):
        made, adverts = parties()
        boxes = made["Bonn"].deal(adverts)
        found |= {made["Bonn"].key("x"), *boxes.values(), adverts["Bonn"]["key"]}
    assert len(found) == 12


def test_a_box_opens_for_its_receiver_in_its_round_from_its_dealer_alone():
    made, adverts = parties()
    boxes = made["Bonn"].deal(adverts)
    wrong = {
        "another's box": ("Bonn", adverts["Bonn"], boxes["Aachen"]),
        "changed": ("Bonn", adverts["Bonn"], bytes([boxes["Celle"][0] ^ 1]) + boxes["Celle"][1:]),
        "another dealer": ("Aachen", adverts["Bonn"], boxes["Celle"]),
        "another dealer's key": ("Bonn", adverts["Aachen"], boxes["Celle"]),
        "shorter": ("Bonn", adverts["Bonn"], boxes["Celle"][:-1]),
        "no box": ("Bonn", adverts["Bonn"], None),
        "no dealer": (None, adverts["Bonn"], boxes["Celle"]),
        "itself": ("Celle", adverts["Celle"], boxes["Celle"]),
        "a stranger": ("Mallory", adverts["Bonn"], boxes["Celle"]),
        "no key": ("Bonn", {}, boxes["Celle"]),
        "a key of low order": ("Bonn", {"key": bytes(32), "signature": b""}, boxes["Celle"]),
    }
    for what, told in wrong.items():
        with pytest.raises(UnfitError):
            made["Celle"].open(*told)
        assert not made["Celle"].known, what
    made["Celle"].open("Bonn", adverts["Bonn"], boxes["Celle"])


def test_another_round_has_other_terms():
    made, adverts = parties()
    late = CommonSecret(bytes(32), SITES, "Celle")
    boxes = made["Bonn"].deal({**adverts, "Celle": late.advertise()})
    with pytest.raises(UnfitError, match="what site Bonn sealed can't be opened"):
        late.open("Bonn", adverts["Bonn"], boxes["Celle"])


def test_it_is_dealt_and_opened_once():
    made, adverts = parties()
    boxes = made["Bonn"].deal(adverts)
    made["Celle"].open("Bonn", adverts["Bonn"], boxes["Celle"])
    again = made["Aachen"].deal(adverts)
    for refused in (
        lambda: made["Bonn"].deal(adverts),
        lambda: made["Celle"].deal(adverts),
        lambda: made["Celle"].open("Aachen", adverts["Aachen"], again["Celle"]),
    ):
        with pytest.raises(UnfitError, match="have a secret already"):
            refused()


def test_whose_secret_got_lost_takes_that_of_another():
    made, adverts = parties()
    made["Bonn"].deal(adverts)
    lost = made["Bonn"].key("x")
    boxes = made["Celle"].deal(adverts)
    made["Bonn"].open("Celle", adverts["Celle"], boxes["Bonn"])
    assert made["Bonn"].key("x") == made["Celle"].key("x") != lost


@pytest.mark.parametrize("adverts", [None, [], {}, {"Mallory": {}}, {"Bonn": None}, {"Bonn": {"key": bytes(32)}}])
def test_a_list_without_the_dealers_own_key_is_refused(adverts):
    made, _ = parties()
    with pytest.raises(UnfitError):
        made["Bonn"].deal(adverts)
    assert not made["Bonn"].known
    with pytest.raises(UnfitError, match="not known here"):
        made["Bonn"].key("x")


@pytest.mark.parametrize(
    "advert", [None, {}, {"key": bytes(31)}, {"key": "x" * 32}, {"key": bytes(32), "signature": b""}]
)
def test_a_site_without_a_fit_key_gets_no_box_and_others_do(advert):
    made, adverts = parties()
    assert set(made["Bonn"].deal({**adverts, "Celle": advert})) == {"Aachen"}


def test_keys_that_the_sites_did_not_sign_for_this_round_count_for_nothing(signers):
    made, adverts = parties(signers)
    _, old = parties(signers, bytes(32))
    own = CommonSecret(TERMS, SITES, "Celle").advertise()
    for forged in (own, old["Celle"], {**own, "signature": adverts["Celle"]["signature"]},
                   {**adverts["Celle"], "signature": adverts["Aachen"]["signature"]}):  # fmt: skip
        dealer = CommonSecret(TERMS, SITES, "Bonn", signers["Bonn"])
        told = {"Bonn": dealer.advertise(), "Aachen": adverts["Aachen"], "Celle": forged}
        assert set(dealer.deal(told)) == {"Aachen"}
    unsigned, plain = parties()
    boxes = unsigned["Bonn"].deal({**plain, "Celle": adverts["Celle"]})
    with pytest.raises(UnfitError, match="the key of site Bonn is not signed by it for this round"):
        made["Celle"].open("Bonn", plain["Bonn"], boxes["Celle"])
