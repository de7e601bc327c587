"""A server that lies: what it does to learn a site's vector, and the sentence with which the sites refuse."""

import itertools
from dataclasses import replace

import pytest
import torch
from secure_round import Play, Secret, names, splits, terms_of

from polyclinic.errors import SiteError
from polyclinic.secure import Shape, SiteRound, fit_shape
from polyclinic.secure.keys import KeyPair
from polyclinic.secure.masks import add_masks_
from polyclinic.secure.roster import KEY, SEED
from polyclinic.secure.shares import rebuild

FIRST = "Clinic 0"


def refused(call, sentence):
    """The call is refused by the first site with P404 and the sentence, and the site is done with the round."""
    with pytest.raises(SiteError, match=f"Site {FIRST} refuses a secure sum in round 1: .*{sentence}") as caught:
        call()
    assert caught.value.code == "P404"
    assert caught.value.site == FIRST


def over(site):
    """Nothing more is had of a site, and its secrets are gone."""
    for call in (site.advertise, lambda: site.agree(names(4)), lambda: site.unmask({}), lambda: site.share({})):
        refused(call, "This round is over here")
    assert not {"_sealing", "_masking", "_seed"} & vars(site).keys()
    assert not site._held


# Phases ---------------------------------------------------------------------------------------------------------------


def test_phases_can_not_be_left_out_or_repeated():
    play = Play(terms_of(4)).until("advertise")
    site = play.sites[FIRST]
    refused(site.advertise, "It was asked to advertise, and must share next. Each is done once.")
    over(site)
    for phase in ("share", "mask", "agree"):
        play = Play(terms_of(4)).until(phase)
        site = play.sites[FIRST]
        refused(
            lambda site=site, play=play: site.share(play.keys), "This round is over|It was asked to share, and must"
        )
        over(site)
    play = Play(terms_of(4)).until("mask")
    refused(lambda: play.sites[FIRST].unmask({}), "It was asked to unmask, and must agree next")
    over(play.sites[FIRST])


def test_a_second_vector_is_not_masked_with_the_same_masks():
    play = Play(terms_of(4)).until("mask")
    site, vector = play.sites[FIRST], torch.zeros(5, dtype=torch.int32)
    refused(lambda: site.mask(vector, play.boxes[FIRST]), "It was asked to mask, and must agree next")
    assert not vector.any()
    over(site)


def test_the_round_is_over_once_shares_were_revealed():
    play = Play(terms_of(4)).until("agree")
    assert not any(site.revealed for site in play.sites.values())
    play.run()
    assert all(site.revealed for site in play.sites.values())
    over(play.sites[FIRST])


# Both secrets of a site -----------------------------------------------------------------------------------------------


def test_a_site_reveals_one_share_of_each_site_by_the_one_list_that_it_signed():
    play = Play(terms_of(5), gone={"Clinic 3": "mask"}).until("unmask")
    for site, revealed in play.revealed.items():
        kinds = {owner: share[0] for owner, share in revealed.items()}
        assert kinds == {owner: KEY if owner == "Clinic 3" else SEED for owner in names(5)}, site


def test_a_second_list_is_refused():
    play = Play(terms_of(5)).until("mask")
    site = play.sites[FIRST]
    site.agree(names(5))
    refused(lambda: site.agree(names(4)), "It was asked to agree, and must unmask next")
    over(site)


def test_unmasking_twice_is_refused():
    play = Play(terms_of(5)).until("agree")
    site = play.sites[FIRST]
    assert len(site.unmask(play.signatures)) == 5
    refused(lambda: site.unmask(play.signatures), "This round is over here")


@pytest.mark.parametrize("told", [1, 2, 3, 4])
def test_different_lists_for_different_sites_are_refused_where_sites_have_identities(told):
    """So many of six sites are told that the last one dropped out, and all signatures are passed on."""
    play = Play(terms_of(6, shape=fit_shape(6, threshold=5))).until("mask")
    lists = {site: names(5) if place < told else names(6) for place, site in enumerate(names(6))}
    signatures = {site: one.agree(lists[site]) for site, one in play.sites.items()}
    refused(
        lambda: play.sites[FIRST].unmask(signatures), f"{told} sites signed the list .* that this site signed; 5 are"
    )
    over(play.sites[FIRST])


def test_signatures_of_another_site_round_or_list_do_not_count():
    play, other = Play(terms_of(4)).until("mask"), Play(terms_of(4, number=2)).until("agree")
    good = {site: one.agree(names(4)) for site, one in play.sites.items() if site != FIRST}
    own = play.sites[FIRST].agree(names(4))
    wrong = {"Clinic 1": good["Clinic 2"], "Clinic 2": other.signatures["Clinic 2"], "Clinic 3": b"", FIRST: own}
    refused(lambda: play.sites[FIRST].unmask(wrong), "1 sites signed the list")
    play = Play(terms_of(4)).until("mask")
    play.sites[FIRST].agree(names(4))
    refused(lambda: play.sites[FIRST].unmask(None), "no signatures of the list")


def test_signatures_of_sites_that_are_not_in_the_list_do_not_count():
    play = Play(terms_of(5)).until("mask")
    signed = play.server._roster.survivors_signed(names(4))
    signatures = {site: play.sites[site].agree(names(4)) for site in names(3)}
    signatures["Clinic 4"] = Secret("Clinic 4").sign(signed)
    refused(lambda: play.sites[FIRST].unmask(signatures), "3 sites signed the list .* 4 are needed")


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_without_identities_no_split_of_the_sites_gives_both_secrets(count):
    """Each honest site is told one of two lists; fewer than a third are corrupt and give both shares of the victim."""
    shape = fit_shape(count)
    for corrupt in range((count - 1) // 3 + 1):
        honest = count - corrupt
        for first, second in splits(range(honest)):
            both = min(len(first), len(second)) + corrupt >= shape.threshold
            assert not both, (first, second)
    half = count // 2
    assert any(min(len(first), len(second)) >= half for first, second in splits(range(count)))  # so t > n / 2


def test_without_identities_a_server_that_tells_two_lists_has_too_few_shares_of_both():
    """It plays the protocol for real, with the best split of five sites, and gets neither all nor anything else."""
    terms = terms_of(5)
    play = Play(terms, signed=False).until("mask")
    victim, holders = "Clinic 4", names(4)
    shares = {SEED: [], KEY: []}
    for place, site in enumerate(holders):
        listed = names(5) if place % 2 else names(4)
        play.sites[site].agree(listed)
        told = play.sites[site].unmask({})[victim]
        shares[told[0]].append((terms.index[site] + 1, int.from_bytes(told[1:], "little")))
    play.sites[victim].agree(names(5))
    told = play.sites[victim].unmask({})[victim]
    shares[told[0]].append((5, int.from_bytes(told[1:], "little")))
    assert {kind: len(held) for kind, held in shares.items()} == {SEED: 3, KEY: 2}
    for held in shares.values():
        assert len(held) < terms.shape.threshold


def test_a_vector_that_came_too_late_stays_masked():
    """The server has it, and after the round also the site's key; its own mask is still there."""
    terms = terms_of(5, length=1000)
    play = Play(terms, gone={"Clinic 4": "agree"}).until("share")
    late = play.sites["Clinic 4"].mask(play.vectors["Clinic 4"].clone(), play.boxes["Clinic 4"])
    play.gone = {"Clinic 4": "mask"}
    play.run()
    pairs = [
        (terms.index[site] + 1, int.from_bytes(told["Clinic 4"][1:], "little")) for site, told in play.revealed.items()
    ]
    assert {told["Clinic 4"][0] for told in play.revealed.values()} == {KEY}
    pair = KeyPair.of(rebuild(pairs, terms.shape.threshold).to_bytes(32, "little"))
    roster = play.server._roster
    assert pair.public == roster.adverts["Clinic 4"].mask
    masks = [roster.pair_mask("Clinic 4", pair, other) for other in names(4)]
    seed = play.sites["Clinic 4"]._seed
    add_masks_(late, [(key, -sign) for key, sign in masks])
    assert not (late == play.vectors["Clinic 4"]).any()
    assert torch.equal(add_masks_(late, [(roster.own_mask("Clinic 4", seed), -1)]), play.vectors["Clinic 4"])


# Lists of survivors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ([FIRST], "has 1 sites; 4 are needed"),
        ([], "without this site"),
        (names(3), "has 3 sites; 4 are needed"),
        (names(5)[1:], "without this site, which is here"),
        ([*names(5), FIRST], "names a site twice"),
        ([*names(4), "Clinic 9"], "names sites that had no keys"),
        ([*names(5), None], "or something else"),
        (FIRST, "without this site"),
        (None, "without this site"),
        (names(5), "has Clinic 4, with which no mask is in common"),
    ],
)
def test_lists_that_can_not_be_are_refused(listed, sentence):
    """Clinic 4 shared nothing with this site."""
    play = Play(terms_of(5), gone={"Clinic 4": "share"}).until("mask")
    refused(lambda: play.sites[FIRST].agree(listed), sentence)
    over(play.sites[FIRST])


def test_the_order_of_a_list_does_not_matter():
    play = Play(terms_of(5)).until("mask")
    lists = {site: names(5)[::-1] if site == FIRST else names(5) for site in names(4)}
    signatures = {site: play.sites[site].agree(listed) for site, listed in lists.items()}
    assert len(play.sites[FIRST].unmask(signatures)) == 5


def test_a_list_that_falls_apart_is_refused():
    """On a sparse graph: all neighbours of one site are said to have dropped out."""
    terms = terms_of(32, length=1, shape=Shape(32, 4, 3, 20))
    play = Play(terms, signed=False).until("mask")
    roster = play.server._roster
    circle, half = roster.graph._circle, terms.shape.degree // 2
    assert 2 * half <= 32 - terms.needed
    place = circle.index(0)
    gone = {circle[(place + step) % 32] for step in range(-half, half + 1)} - {0}
    listed = [site for number, site in enumerate(terms.sites) if number not in gone]
    refused(lambda: play.sites[FIRST].agree(listed), "fall into groups without common masks")


# Keys -----------------------------------------------------------------------------------------------------------------


def swap(keys, **changes):
    """What the server tells, with other keys of the second site."""
    return keys | {"Clinic 1": keys["Clinic 1"] | changes}


@pytest.mark.parametrize("name", ["seal", "mask", "seed"])
def test_swapped_keys_are_refused_where_sites_have_identities(name):
    play = Play(terms_of(4)).until("advertise")
    refused(lambda: play.sites[FIRST].share(swap(play.keys, **{name: KeyPair.new().public})),
            "keys of site Clinic 1 are not signed by it for this round")  # fmt: skip
    over(play.sites[FIRST])


@pytest.mark.parametrize("other", [{"number": 2}, {"attempt": 1}, {"training": b"t" * 32}, {"length": 6}])
def test_keys_that_a_site_signed_for_another_round_are_refused(other):
    play, old = Play(terms_of(4)).until("advertise"), Play(terms_of(4, **other)).until("advertise")
    refused(
        lambda: play.sites[FIRST].share(play.keys | {"Clinic 1": old.keys["Clinic 1"]}), "not signed by it for this"
    )


def test_keys_without_signature_or_signed_by_another_are_refused():
    for forge in (lambda one: b"", lambda one: Secret("Clinic 2").sign(one)):
        play = Play(terms_of(4)).until("advertise")
        keys = swap(play.keys, signature=forge(play.keys["Clinic 1"]["signature"]))
        refused(lambda play=play, keys=keys: play.sites[FIRST].share(keys), "Clinic 1 are not signed by it")


@pytest.mark.parametrize("signed", [True, False])
def test_a_site_finds_its_own_keys_changed_or_missing(signed):
    for change in (lambda keys: {s: one for s, one in keys.items() if s != FIRST},
                   lambda keys: keys | {FIRST: SiteRound(terms_of(4), FIRST, Secret(FIRST)).advertise()}):  # fmt: skip
        play = Play(terms_of(4), signed=signed).until("advertise")
        refused(
            lambda play=play, change=change: play.sites[FIRST].share(change(play.keys)), "has not what this site adv"
        )


def test_without_identities_swapped_keys_do_not_open_what_sites_sealed():
    """The server tells the first site a key of its own for the second; the others are told the true ones."""
    play = Play(terms_of(4), signed=False).until("advertise")
    false = swap(play.keys, seal=KeyPair.new().public)
    shared = {site: one.share(false if site == FIRST else play.keys) for site, one in play.sites.items()}
    boxes = play.server.boxes(shared)
    vector = torch.zeros(5, dtype=torch.int32)
    refused(lambda: play.sites[FIRST].mask(vector, boxes[FIRST]), "its sender was told other keys")
    assert not vector.any()


@pytest.mark.parametrize("name", ["seal", "mask", "seed"])
def test_without_identities_nothing_opens_where_sites_were_told_other_keys_of_a_third(name):
    play = Play(terms_of(4), signed=False).until("advertise")
    false = play.keys | {"Clinic 3": play.keys["Clinic 3"] | {name: KeyPair.new().public}}
    shared = {site: play.sites[site].share(false if site == FIRST else play.keys) for site in names(3)}
    boxes = {site: shared[site][FIRST] for site in names(3)[1:]}
    vector = torch.zeros(5, dtype=torch.int32)
    refused(lambda: play.sites[FIRST].mask(vector, boxes), "its sender was told other keys")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda keys: dict(list(keys.items())[:2]), "Keys of 2 sites are there; 3 are needed"),
        (lambda keys: keys | {"Clinic 9": keys["Clinic 1"]}, "names sites that are not of this federation"),
        (lambda keys: swap(keys, mask=keys["Clinic 2"]["mask"]), "advertised keys are equal"),
        (lambda keys: swap(keys, mask=b"short"), "has 5 bytes; expected 32"),
        (lambda keys: swap(keys, more=b""), "other fields"),
        (lambda keys: swap(keys, seal=bytes(32)), "of low order"),
        (lambda keys: None, "names sites that are not"),
    ],
)
def test_lists_of_keys_that_can_not_be_are_refused(change, sentence):
    play = Play(terms_of(4), signed=False).until("advertise")
    refused(lambda: play.sites[FIRST].share(change(play.keys)), sentence)
    over(play.sites[FIRST])


def test_a_mask_key_of_low_order_is_refused_before_anything_is_masked():
    play = Play(terms_of(4), signed=False).until("advertise")
    corrupt = play.sites["Clinic 1"]
    corrupt._advert = replace(corrupt._advert, mask=bytes([1]) + bytes(31))
    shared = {site: one.share(play.keys | {"Clinic 1": corrupt._advert.message()}) for site, one in play.sites.items()}
    vector = torch.zeros(5, dtype=torch.int32)
    boxes = {site: shared[site][FIRST] for site in names(4)[1:]}
    refused(lambda: play.sites[FIRST].mask(vector, boxes), "A public key is of low order")
    assert not vector.any()


# Boxes ----------------------------------------------------------------------------------------------------------------


def mask_with(play, boxes):
    vector = torch.zeros(5, dtype=torch.int32)
    refused(lambda: play.sites[FIRST].mask(vector, boxes), "The box of site Clinic 1 can't be opened")
    assert not vector.any()
    over(play.sites[FIRST])


@pytest.mark.parametrize("old", [{"number": 2}, {"attempt": 1}, {"training": b"t" * 32}, {}])
def test_boxes_of_another_round_are_refused(old):
    play, before = (Play(terms_of(4, **changes)).until("share") for changes in ({}, old))
    mask_with(play, play.boxes[FIRST] | {"Clinic 1": before.boxes[FIRST]["Clinic 1"]})


def test_boxes_for_another_site_or_of_another_are_refused():
    play = Play(terms_of(4)).until("share")
    mask_with(play, play.boxes[FIRST] | {"Clinic 1": play.boxes["Clinic 2"]["Clinic 1"]})
    play = Play(terms_of(4)).until("share")
    mask_with(play, play.boxes[FIRST] | {"Clinic 1": play.boxes[FIRST]["Clinic 2"]})
    play = Play(terms_of(4)).until("share")
    mask_with(play, play.boxes[FIRST] | {"Clinic 1": play.shared[FIRST]["Clinic 1"]})  # its own, sent back


@pytest.mark.parametrize("at", [64, 100, 145])
def test_a_changed_box_is_refused(at):
    play = Play(terms_of(4)).until("share")
    box = bytearray(play.boxes[FIRST]["Clinic 1"])
    box[at] ^= 4
    mask_with(play, play.boxes[FIRST] | {"Clinic 1": bytes(box)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda boxes: boxes | {"Clinic 1": bytes([boxes["Clinic 1"][0] ^ 1]) + boxes["Clinic 1"][1:]},
            "holds other shares",
        ),
        (lambda boxes: boxes | {"Clinic 1": boxes["Clinic 1"][:-1]}, "has 145 bytes; expected 146"),
        (lambda boxes: boxes | {"Clinic 1": None}, "is NoneType; expected 146 bytes"),
        (lambda boxes: boxes | {FIRST: boxes["Clinic 1"]}, "of sites that are no neighbours"),
        (lambda boxes: boxes | {"Clinic 9": boxes["Clinic 1"]}, "of sites that are no neighbours"),
        (lambda boxes: {"Clinic 1": boxes["Clinic 1"]}, "Shares of 2 sites are there; 3 are needed"),
        (lambda boxes: {}, "Shares of 1 sites are there; 3 are needed"),
        (lambda boxes: None, "no neighbours"),
    ],
)
def test_boxes_that_can_not_be_are_refused(change, sentence):
    play = Play(terms_of(4)).until("share")
    vector = torch.zeros(5, dtype=torch.int32)
    refused(lambda: play.sites[FIRST].mask(vector, change(play.boxes[FIRST])), sentence)
    assert not vector.any()
    over(play.sites[FIRST])


@pytest.mark.parametrize(("threshold", "least", "there"), [(4, 3, 3), (3, 5, 4)])
def test_both_the_threshold_and_the_least_number_must_be_there(threshold, least, there):
    play = Play(terms_of(5, shape=fit_shape(5, threshold=threshold), least=least)).until("share")
    boxes = dict(list(play.boxes[FIRST].items())[: there - 1])
    vector = torch.zeros(5, dtype=torch.int32)
    refused(lambda: play.sites[FIRST].mask(vector, boxes), f"Shares of {there} sites are there; {there + 1} are needed")


# What is told -----------------------------------------------------------------------------------------------------


def test_no_refusal_tells_a_secret():
    """Every refusal of a list in the last phases, looked through for the site's secrets in all their forms."""
    play = Play(terms_of(4)).until("mask")
    site = play.sites[FIRST]
    held = [part for pair in site._held.values() for part in pair]
    secrets = [site._seed, site._masking.secret, site._sealing.secret, *held]
    with pytest.raises(SiteError) as caught:
        site.agree([FIRST])
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__} {site!r}"
    assert caught.value.__cause__ is None
    for secret, form in itertools.product(secrets, (bytes.hex, repr, lambda one: str(int.from_bytes(one, "little")))):
        assert form(secret) not in shown
