"""Rounds with an honest server: exact sums, drop-outs, answers that do not fit, and what masks hide."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from secure_round import PHASES, Play, names, plain_sum, terms_of, vectors_of

from polyclinic.errors import SiteError
from polyclinic.secure import Ring, ServerRound, SiteRound, fit_shape
from polyclinic.secure import server as server_module
from polyclinic.secure import site as site_module

GONE = st.sampled_from(PHASES)


# Sums -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(
    count=st.integers(3, 12), bits=st.sampled_from([2, 17, 31, 32, 33, 63, 64]), low=st.booleans(),
    signed=st.booleans(), seed=st.integers(0, 1000),
    gone=st.lists(st.sampled_from([*PHASES, *["never"] * 12]), min_size=12, max_size=12),
)  # fmt: skip
def test_the_sum_is_that_of_the_survivors_or_nothing_is_known(count, bits, low, signed, gone, seed):
    shape = fit_shape(count, threshold=count // 2 + 1 if low else None)
    terms = terms_of(count, bits=bits, shape=shape)
    play = Play(terms, vectors_of(terms, seed), dict(zip(terms.sites, gone, strict=False)), signed=signed)
    left = {phase: len(play.there(phase)) for phase in PHASES[:-1]}
    short = [phase for phase, sites in left.items() if sites < (shape.threshold if phase == "unmask" else terms.needed)]
    if short:
        with pytest.raises(SiteError, match="needed") as caught:
            play.run()
        assert caught.value.code == "P402"
        assert not hasattr(play, "total")
        assert len(play.revealed) < shape.threshold  # so no secret can be rebuilt
        return
    total = play.run()
    assert play.survivors == play.there("mask")
    assert total.dtype == (torch.int32 if bits <= 32 else torch.int64)
    assert total.tolist() == plain_sum(terms, play.vectors, play.survivors)
    assert play.server.failed == {}


@pytest.mark.parametrize(("count", "signed"), [(31, True), (60, True), (200, False)])
def test_many_sites_on_a_sparse_graph(count, signed):
    terms = terms_of(count, length=3, bits=40)
    assert not terms.shape.complete
    phases = ["advertise", "share", "mask", "mask", "agree", "unmask"]
    gone = {terms.sites[7 * number]: phase for number, phase in enumerate(phases[: count // 7])}
    play = Play(terms, gone=gone, signed=signed)
    assert play.run().tolist() == plain_sum(terms, play.vectors, play.survivors)
    assert len(play.survivors) == count - sum(phase in PHASES[:3] for phase in gone.values())
    assert {len(shared) for shared in play.shared.values()} <= set(range(terms.shape.degree, terms.shape.degree + 2))


def test_two_sites_that_trust_each_other():
    terms = terms_of(2, least=2)
    play = Play(terms)
    assert play.run().tolist() == plain_sum(terms, play.vectors, terms.sites)


def test_more_than_half_is_not_enough_where_the_least_number_is_higher():
    terms = terms_of(5, shape=fit_shape(5, threshold=3), least=5)
    with pytest.raises(SiteError, match="4 of 5 sites sent their vectors; 5 are needed"):
        Play(terms, gone={"Clinic 1": "mask"}).run()


@pytest.mark.parametrize("bits", [32, 64])
def test_a_weighted_mean_is_that_of_the_plain_whole_numbers(bits):
    generator = torch.Generator().manual_seed(3)
    ring = Ring.fit(2.0, 5, most_weight=300.0, bits=bits)
    rows = {site: torch.rand(1000, generator=generator) * 4 - 2 for site in names(5)}
    weights = dict(zip(names(5), (17.0, 300.0, 128.0, 5.0, 77.0), strict=True))
    vectors = {site: ring.encode(rows[site], weights[site]) for site in rows}
    play = Play(terms_of(5, bits=bits, length=1001), vectors, {"Clinic 3": "mask"})
    total = play.run()
    plain = sum(vectors[site] for site in play.survivors)
    assert torch.equal(total, plain)
    decoded = ring.decode(total)
    assert decoded.weight == 522
    expected = sum(rows[site].double() * weights[site] for site in play.survivors) / 522
    torch.testing.assert_close(decoded.mean, expected, rtol=0, atol=3 * ring.step / 522)


def test_messages_are_plain_bytes_of_the_sizes_told():
    play = Play(terms_of(4))
    play.run()
    advert = play.adverts["Clinic 1"]
    assert {name: (type(one), len(one)) for name, one in advert.items()} == dict.fromkeys(
        ("seal", "mask", "seed", "signature"), (bytes, 32)
    )
    assert {site: len(one) for site, one in play.shared["Clinic 1"].items()} == {
        "Clinic 0": 146, "Clinic 1": 64, "Clinic 2": 146, "Clinic 3": 146,
    }  # fmt: skip
    assert {site: len(one) for site, one in play.revealed["Clinic 1"].items()} == dict.fromkeys(names(4), 34)
    told = [play.keys, play.boxes, play.survivors, play.signatures, play.revealed]
    assert pickle.loads(pickle.dumps(told)) == told  # noqa: S301 - our own
    assert play.masked["Clinic 1"].dtype == torch.int32


def test_the_vector_is_masked_in_place():
    play = Play(terms_of(4)).until("share")
    vector = play.vectors["Clinic 0"].clone()
    assert play.sites["Clinic 0"].mask(vector, play.boxes["Clinic 0"]) is vector
    assert not torch.equal(vector, play.vectors["Clinic 0"])


# Answers that do not fit ----------------------------------------------------------------------------------------------


def flipped(text):
    return bytes([*text[:-1], text[-1] ^ 1])


ADVERTS = {
    "nothing": lambda one: None,
    "a field less": lambda one: {"seal": one["seal"]},
    "a short key": lambda one: one | {"mask": one["mask"][:-1]},
    "text": lambda one: one | {"seed": "x" * 32},
    "no signature": lambda one: one | {"signature": b""},
    "signature of another type": lambda one: one | {"signature": None},
    "another key": lambda one: one | {"mask": flipped(one["mask"])},
    "low order": lambda one: one | {"mask": bytes(32)},
    "the same key twice": lambda one: one | {"seal": one["mask"]},
}


#: Without identities there is nothing wrong with these.
OF_IDENTITIES = {"no signature", "another key"}


@pytest.mark.parametrize(
    ("kind", "signed"),
    [(kind, signed) for kind in ADVERTS for signed in (True, False) if signed or kind not in OF_IDENTITIES],
)
def test_keys_that_do_not_fit_are_the_failure_of_their_site(kind, signed):
    play = Play(terms_of(5), signed=signed)
    adverts = {site: one.advertise() for site, one in play.sites.items()}
    adverts["Clinic 2"] = ADVERTS[kind](adverts["Clinic 2"])
    keys = play.server.keys(adverts)
    assert keys.keys() == set(names(5)) - {"Clinic 2"}
    assert play.server.failed.keys() == {"Clinic 2"}
    go_on(play, keys)


def test_a_key_of_another_site_is_refused():
    play = Play(terms_of(5), signed=False)
    adverts = {site: one.advertise() for site, one in play.sites.items()}
    adverts["Clinic 4"] = adverts["Clinic 4"] | {"seal": adverts["Clinic 1"]["mask"]}
    assert "Clinic 4" not in play.server.keys(adverts)
    assert play.server.failed == {"Clinic 4": "Its keys are not new."}


def go_on(play, keys):
    """The rest of the round with those that are in the list of keys."""
    play.keys, play._done = keys, 1
    play.gone = dict.fromkeys(set(play.terms.sites) - keys.keys(), "advertise")
    assert play.run().tolist() == plain_sum(play.terms, play.vectors, sorted(keys))


BOXES = {
    "nothing": lambda one: None,
    "one less": lambda one: dict(list(one.items())[1:]),
    "one more": lambda one: one | {"Clinic 9": bytes(146)},
    "a short box": lambda one: one | {"Clinic 0": one["Clinic 0"][:-1]},
    "its own of the size of the others": lambda one: one | {"Clinic 2": bytes(146)},
    "text": lambda one: one | {"Clinic 0": "box"},
}


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_that_do_not_fit_are_the_failure_of_their_site(kind):
    play = Play(terms_of(5)).until("advertise")
    shared = {site: one.share(play.keys) for site, one in play.sites.items()}
    shared["Clinic 2"] = BOXES[kind](shared["Clinic 2"])
    play.boxes, play._done = play.server.boxes(shared), 2
    assert play.server.failed.keys() == {"Clinic 2"}
    assert "Clinic 2" not in play.boxes
    assert all("Clinic 2" not in boxes for boxes in play.boxes.values())
    play.gone = {"Clinic 2": "mask"}
    assert play.run().tolist() == plain_sum(play.terms, play.vectors, [s for s in names(5) if s != "Clinic 2"])


VECTORS = {
    "nothing": lambda one: None,
    "bytes": lambda one: one.numpy().tobytes(),
    "too short": lambda one: one[:-1],
    "too wide": lambda one: one.long(),
    "floats": lambda one: one.float(),
    "a row of it": lambda one: one[None],
}


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_that_do_not_fit_are_the_failure_of_their_site(kind):
    play = Play(terms_of(5)).until("share")
    for site, one in play.sites.items():
        masked = one.mask(play.vectors[site].clone(), play.boxes[site])
        play.server.add(site, VECTORS[kind](masked) if site == "Clinic 2" else masked)
    play.survivors, play._done = play.server.survivors(), 3
    assert play.server.failed == {"Clinic 2": "Its vector is not torch.int32 [5]."}
    play.gone = {"Clinic 2": "agree"}
    assert play.run().tolist() == plain_sum(play.terms, play.vectors, [s for s in names(5) if s != "Clinic 2"])


def test_a_vector_counts_once_and_only_of_those_that_were_asked():
    play = Play(terms_of(5), gone={"Clinic 3": "share"}).until("share")
    for site in play.there("share"):
        masked = play.sites[site].mask(play.vectors[site].clone(), play.boxes[site])
        play.server.add(site, masked)
    for site in ("Clinic 0", "Clinic 3", "Clinic 9"):
        play.server.add(site, masked)
    play.survivors, play._done = play.server.survivors(), 3
    assert play.server.failed.keys() == {"Clinic 0", "Clinic 3", "Clinic 9"}
    assert play.run().tolist() == plain_sum(play.terms, play.vectors, play.there("share"))


@pytest.mark.parametrize("change", [lambda one: b"", lambda one: None, flipped])
def test_a_signature_that_does_not_fit_is_the_failure_of_its_site(change):
    play = Play(terms_of(5)).until("mask")
    agreed = {site: one.agree(play.survivors) for site, one in play.sites.items()}
    agreed["Clinic 2"] = change(agreed["Clinic 2"])
    play.signatures, play._done = play.server.signatures(agreed), 4
    assert play.server.failed.keys() == {"Clinic 2"}
    assert play.run().tolist() == plain_sum(play.terms, play.vectors, names(5))
    assert "Clinic 2" not in play.revealed


REVEALED = {
    "nothing": lambda one: None,
    "one less": lambda one: dict(list(one.items())[1:]),
    "a short share": lambda one: one | {"Clinic 0": one["Clinic 0"][:-1]},
    "a wrong share": lambda one: one | {"Clinic 0": flipped(one["Clinic 0"])},
    "that of another": lambda one: one | {"Clinic 0": one["Clinic 1"]},
    "the other kind": lambda one: one | {"Clinic 0": bytes([1 - one["Clinic 0"][0]]) + one["Clinic 0"][1:]},
    "a wrong share of one that dropped out": lambda one: one | {"Clinic 4": flipped(one["Clinic 4"])},
}


@pytest.mark.parametrize("kind", REVEALED)
@pytest.mark.parametrize("wrong", [1, 2])
def test_wrong_shares_are_the_failure_of_who_revealed_them(kind, wrong):
    """Six sites, of which four must reveal; one dropped out."""
    play = Play(terms_of(6, shape=fit_shape(6, threshold=4)), gone={"Clinic 4": "mask"}).until("agree")
    revealed = {site: play.sites[site].unmask(play.signatures) for site in play.survivors}
    bad = ["Clinic 2", "Clinic 3"][:wrong]
    revealed |= {site: REVEALED[kind](revealed[site]) for site in bad}
    if wrong == 2:
        with pytest.raises(SiteError, match="3 sites revealed fitting shares of site Clinic 0; 4 are needed"):
            play.server.sum(revealed)
    else:
        assert play.server.sum(revealed).tolist() == plain_sum(play.terms, play.vectors, play.survivors)
    assert list(play.server.failed) == bad


@pytest.mark.parametrize("kind", ["_seed", "_masking"])
def test_a_site_whose_shares_give_no_secret_is_named(kind):
    """It deals shares of other secrets than those that it uses."""
    gone = {} if kind == "_seed" else {"Clinic 2": "mask"}
    play = Play(terms_of(5, shape=fit_shape(5, threshold=3)), gone=gone).until("advertise")
    dealer = play.sites["Clinic 2"]
    used = getattr(dealer, kind)
    setattr(dealer, kind, bytes(32) if kind == "_seed" else type(used).new())
    dealt = dealer.share(play.keys)
    setattr(dealer, kind, used)
    dealer.share = lambda keys: dealt
    with pytest.raises(SiteError, match=r"shares that site Clinic 2 dealt .* do not give its secret") as caught:
        play.run()
    assert caught.value.code == "P401"
    assert caught.value.site == "Clinic 2"


def test_causes_stand_in_the_error():
    play = Play(terms_of(4), gone={"Clinic 0": "advertise"})
    adverts = {site: play.sites[site].advertise() for site in names(4)[1:]}
    sentence = (
        "2 of 4 sites advertised keys; 3 are needed. Clinic 2: The mask of site Clinic 2 has 31 bytes; expected 32."
    )
    with pytest.raises(SiteError, match=sentence):
        play.server.keys(adverts | {"Clinic 2": adverts["Clinic 2"] | {"mask": bytes(31)}})


def test_the_server_goes_through_its_phases_in_order():
    server = ServerRound(terms_of(4))
    for call in (lambda: server.sum({}), lambda: server.add("Clinic 0", None), server.survivors):
        with pytest.raises(ValueError, match=r"out of turn|after `boxes`"):
            call()
    play = Play(terms_of(4))
    play.run()
    with pytest.raises(ValueError, match="`keys` is out of turn"):
        play.server.keys({})
    with pytest.raises(ValueError, match="after `boxes`"):
        play.server.add("Clinic 0", play.masked["Clinic 0"])


def test_a_site_that_is_not_of_the_federation_has_no_round():
    with pytest.raises(ValueError, match="not among the sites"):
        SiteRound(terms_of(4), "Clinic 4")


@pytest.mark.parametrize("vector", [torch.zeros(5, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)])
def test_another_vector_is_refused_before_anything_is_masked(vector):
    play = Play(terms_of(4)).until("share")
    with pytest.raises(ValueError, match=r"expected torch.int32 \[5\]"):
        play.sites["Clinic 0"].mask(vector, play.boxes["Clinic 0"])
    play.run()


# What masks hide ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_masked_vectors_are_uniform_whatever_is_in_them(bits):
    """The probability that this fails by chance is below 10^-6."""
    length = 200_000
    terms = terms_of(4, bits=bits, length=length)
    dtype = torch.int32 if bits <= 32 else torch.int64
    slope = torch.arange(length, dtype=dtype) % 1000
    play = Play(terms, {site: slope.clone() for site in terms.sites}).until("mask")
    for masked in play.masked.values():
        values = masked.numpy()
        assert bits > 16 or (values.min() >= 0 and values.max() < 2**bits)
        for shift in range(0, bits, 8):
            assert chisquare(np.bincount((values >> shift) & 255, minlength=256)).pvalue > 1e-9
        ones = np.array([((values >> bit) & 1).mean() for bit in range(bits)])
        assert np.abs(ones - 0.5).max() < 7 * 0.5 / np.sqrt(length)
        for lag in (0, 1, 1000):  # with the input, and with itself further on
            other = slope.numpy() if lag == 0 else np.roll(values, lag)
            assert abs(np.corrcoef(values.astype(float), other.astype(float))[0, 1]) < 7 / np.sqrt(length)
    first, second = list(play.masked.values())[:2]
    assert abs(np.corrcoef(first.double(), second.double())[0, 1]) < 7 / np.sqrt(length)


def test_rounds_have_nothing_in_common():
    """The same terms, sites and vectors, as if a round were begun again without a new number."""
    terms = terms_of(4, bits=64, length=10_000)
    vectors = vectors_of(terms)
    plays = [Play(terms, vectors).until("mask") for _ in range(2)]
    masks = [play.masked[site] - vectors[site] for play in plays for site in terms.sites]
    assert len(torch.cat(masks).unique()) == 8 * 10_000
    texts = [
        [one for advert in play.adverts.values() for name, one in advert.items() if name != "signature"]
        + [box for boxes in play.shared.values() for box in boxes.values()]
        for play in plays
    ]
    assert len(set(texts[0])) == len(texts[0])
    assert not set(texts[0]) & set(texts[1])


def test_each_mask_is_used_once_by_a_site_and_once_the_other_way_by_its_neighbour(monkeypatch):
    used = []
    real = site_module.add_masks_

    def recorded(vector, masks, words):
        used.append(list(masks))
        return real(vector, masks, words)

    monkeypatch.setattr(site_module, "add_masks_", recorded)
    removed = []
    monkeypatch.setattr(server_module, "add_masks_", lambda vector, masks, words: removed.append(list(masks)) or vector)
    for number in (1, 2):
        Play(terms_of(5, number=number), gone={"Clinic 4": "mask"}).run()
    masks = [mask for one in used for mask in one]
    assert len(set(masks)) == len(masks) == 2 * 4 * 5
    keys = [key for key, _ in masks]
    both = {key for key in keys if keys.count(key) == 2}
    assert {(key, -sign) for key, sign in masks if key in both} == {mask for mask in masks if mask[0] in both}
    assert len(both) == 2 * 6  # each two of the four that are in the sum
    alone = {mask for mask in masks if mask[0] not in both}  # each one's own, and those with the site that is gone
    assert {(key, -sign) for one in removed for key, sign in one} == alone
    assert len(alone) == 2 * 8
