"""The homomorphic sum as a step of the channel: the mean of all to what is promised, and nothing of any site."""

import math
from types import SimpleNamespace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy import stats

from helpers import Federation, recorded, table_sites
from polyclinic.channel import homomorphic_round
from polyclinic.channel.ckks import Key, add_, check, primes
from polyclinic.channel.homomorphic_round import FLOOD, MOST_DISTANCE, STEP, Round, Terms, distance
from polyclinic.channel.said import read_said, said
from polyclinic.channel.secure_sum import About
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import SiteError, StudyError
from polyclinic.options import EntryError
from polyclinic.running.progress import Checkpoint
from polyclinic.secure import KeySigner
from polyclinic.shapes import Misfit
from polyclinic.study.job import Job

SITES = {"Aachen": 12, "Bonn": 7, "Celle": 15, "Dresden": 9, "Essen": 10}
MODEL = {"mlp": {"hidden": [9], "norm": "batch"}}
CLIPPED = [{"clip": {"norm": 0.5}}]
ONE = {"rounds": 1}
#: Of the mean of all, and of what 32-bit numbers round.
CLOSE = 2.0**-25 + 2.0**-23


def federation(channel=("homomorphic_sum",), entry=None, sites=SITES, **options):
    training = {"rounds": 2} | options.pop("training", {})
    method = {"fedavg": {"channel": list(channel), **(entry or {})}}
    options.setdefault("model", MODEL)
    return Federation(table_sites(sites), [method], training=training, **options)


def changed(made, change):
    """An engine whose questions and answers are changed: (function, site, asked) -> asked, or an error, or a reply."""
    original = made.engine.call

    def call(function, requests):
        verb = function.rpartition("/")[2]
        asked = {site: change(verb, site, one) for site, one in requests.items()}
        yield from original(function, {s: one for s, one in asked.items() if not isinstance(one, SiteError)})
        yield from ((site, one) for site, one in asked.items() if isinstance(one, SiteError))

    made.engine.call = call


def lying(made, verb, change):
    """A server that asks something else than it should: (site, tensors) -> tensors."""

    def asked(found, site, one):
        return type(one)(one.fields, change(site, dict(one.tensors))) if found == verb else one

    changed(made, asked)


def silent(made, *when):
    """Sites that can't be reached, given as (verb, site)."""
    away = SiteError("P401", "It is away.", site="x")
    changed(made, lambda verb, site, one: away if (verb, site) in when else one)


def spoilt(made, verb, change):
    """Answers that are something else: (site, tensors) -> tensors."""
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            if function.rpartition("/")[2] == verb and not isinstance(reply, Exception):
                reply = type(reply)(reply.fields, change(site, dict(reply.tensors)))
            yield site, reply

    made.engine.call = call


def messages(made):
    """All that was asked and answered while it trained: (verb, site, asked, reply)."""
    with recorded(made.engine) as found:
        made.rounds()
    return [(function.rpartition("/")[2], site, asked, reply) for function, site, asked, reply in found]


def means(sites=SITES, inside=None, channel=()):
    """Of the first round, the exact mean ``[Q]`` of what those inside would have sent without the sum."""
    found = messages(federation(channel, sites=sites, training=ONE))
    updates = {site: reply for verb, site, _, reply in found if verb == "train"}
    inside = inside or list(sites)
    total = sum(sites[site] for site in inside)
    return sum(
        torch.cat([updates[site].tensors[name].double() for name in ("change", "statistics")]) * (sites[site] / total)
        for site in inside
    )


def expected(made, mean):
    """The state after a round with this mean."""
    plan = made.plan()
    size, before = plan.selection.trainable, plan.selection.take(plan.initial)
    return torch.cat([before[:size].double() + mean[:size], mean[size:]])


# The sum --------------------------------------------------------------------------------------------------------------


def test_it_is_the_mean_by_weight():
    made = federation(training=ONE)
    state = made.state().double()
    torch.testing.assert_close(state, expected(made, means()), rtol=2.0**-23, atol=CLOSE)


def test_with_uniform_weights_it_is_the_plain_mean():
    training = {"rounds": 2, "weights": "uniform"}
    torch.testing.assert_close(
        federation(training=training).state(), federation((), training=training).state(), rtol=0, atol=2 * CLOSE
    )


@pytest.mark.parametrize("clipped", [False, True], ids=["by itself", "clipped"])
def test_what_the_server_sees_is_the_sum_with_the_noise_that_is_promised(clipped):
    """Its deviation is that of the flood, far more than CKKS makes, in whole steps; finer where changes are shorter."""
    channel, model = ((), {"mlp": {"hidden": [300], "norm": "batch"}})
    if clipped:
        channel, model = [{"clip": {"norm": 0.2}}], {"mlp": {"hidden": [300]}}
    unit = 0.25 if clipped else 1.0
    plain = messages(federation(channel, model=model, training=ONE))
    updates = {site: reply.tensors for verb, site, _, reply in plain if verb == "train"}
    exact = sum(
        torch.cat([updates[site][name].double() for name in ("change", "statistics")]) * (SITES[site] / 53)
        for site in SITES
    )
    found = messages(federation([*channel, "homomorphic_sum"], model=model, training=ONE))
    (total,) = [reply.tensors["total"] for verb, *_, reply in found if verb == "decrypt"]
    assert len(total) > 1800
    noise = (total - exact) / (FLOOD * unit)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert torch.equal(total / (STEP * unit), (total / (STEP * unit)).round())
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 0.1


@pytest.mark.parametrize("channel", [
    CLIPPED, ["top_k"], [{"top_k": {"share": 0.3, "values": "int8"}}], ["int8"],
    [{"random_k": {"places": "common", "share": 0.4}}], ["float16"],
], ids=str)  # fmt: skip
def test_it_is_the_mean_of_what_was_to_be_sent(channel):
    """In one round: what is chosen or rounded in a second one may turn on the noise that the sum adds."""
    found = federation([*channel, "homomorphic_sum"], training=ONE).state()
    plain = federation(channel, training=ONE).state()
    torch.testing.assert_close(found, plain, rtol=0, atol=2 * CLOSE)


def test_parts_that_need_only_a_mean_of_what_is_sent_go_with_it():
    training, entry = {"rounds": 3}, {"local": ["control_variates"]}
    made = federation(entry=entry, training=training)
    with recorded(made.engine) as found:
        state = made.state()
    torch.testing.assert_close(state, federation((), entry=entry, training=training).state(), rtol=0, atol=2e-6)
    assert (state - federation(training=training).state()).abs().max() > 1e-3, "or control variates do nothing"
    assert all(reply.tensors.keys() == {"change"} for function, _, _, reply in found if function == "train")


@pytest.mark.parametrize("how", ["serialised", "stacked", "processes"])
def test_all_engines_give_the_same_sum(how):
    plain = federation(()).state()
    if how == "processes":
        data = table_sites(SITES)
        engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
        try:
            state = federation(engine=engine).state()
        finally:
            engine.close()
    else:
        state = federation(serialise=how == "serialised", stacked=how == "stacked").state()
    torch.testing.assert_close(state, plain, rtol=0, atol=1e-5 if how == "stacked" else 2 * CLOSE)


def test_packed_bytes_are_the_same_sum():
    torch.testing.assert_close(
        federation(["homomorphic_sum", "zstd"]).state(), federation(()).state(), rtol=0, atol=2 * CLOSE
    )


# Who drops out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["advertise", "deal", "train", "agree", "decrypt"])
@pytest.mark.parametrize("gone", ["Aachen", "Bonn"])
def test_a_site_may_drop_out_in_any_phase(phase, gone):
    """Also the one that was to make the key, or to decrypt. Without its update the sum is that of the others."""
    made = federation(training={"rounds": 1, "quorum": 4})
    silent(made, (phase, gone))
    progress, rows = made.rounds()
    inside = [site for site in SITES if site != gone or phase in ("deal", "agree", "decrypt")]
    state = progress.model("federation").double()
    torch.testing.assert_close(state, expected(made, means(inside=inside)), rtol=2.0**-23, atol=CLOSE)
    shares = {row["site"]: row["share"] for row in rows}
    total = sum(SITES[site] for site in inside)
    assert shares == {site: pytest.approx(SITES[site] / total) for site in inside}


def test_the_key_of_another_is_taken_where_one_got_lost_on_its_way():
    made = federation(training=ONE)
    spoilt(made, "deal", lambda site, found: {} if site in ("Aachen", "Bonn") else found)
    with recorded(made.engine) as found:
        state = made.state().double()
    torch.testing.assert_close(state, expected(made, means()), rtol=2.0**-23, atol=CLOSE)
    assert [site for function, site, *_ in found if function.endswith("/deal")] == ["Aachen", "Bonn", "Celle"]


def test_a_site_without_a_key_is_told_so():
    made = federation(training={"rounds": 1, "quorum": 4})
    silent(made, ("advertise", "Celle"))
    progress, _ = made.rounds()
    assert any("Celle" in note and "took no part in finding a key" in note for note in progress.failures)


@pytest.mark.parametrize(("phase", "gone", "sentence"), [
    ("advertise", 3, "2 of 5 sites told a public key; 3 are needed"),
    ("deal", 5, "0 of 5 sites made a key for all"),
    ("train", 3, "2 of 5 sites sent their updates; 3 are needed"),
    ("agree", 3, "2 of 5 sites agreed to who is in the sum; 3 are needed"),
    ("decrypt", 5, "None of 5 sites decrypted the homomorphic sum of round 1"),
])  # fmt: skip
def test_with_too_few_left_nothing_is_known(phase, gone, sentence):
    made = federation(training={"rounds": 1, "quorum": 2})
    silent(made, *((phase, site) for site in list(SITES)[:gone]))
    with pytest.raises(SiteError, match=f"P402 .*{sentence}"):
        made.rounds()


def test_two_sites_are_too_few_unless_they_say_otherwise():
    sites = {"Aachen": 12, "Bonn": 7}
    with pytest.raises(SiteError, match=r"P402 .*the other's update"):
        federation(sites=sites).rounds()
    found = federation([{"homomorphic_sum": {"least": 2}}], sites=sites).state()
    torch.testing.assert_close(found, federation((), sites=sites).state(), rtol=0, atol=2 * CLOSE)


def test_a_mean_of_too_little_weight_is_not_precise():
    sites = {"Aachen": 400, "Bonn": 4, "Celle": 3, "Dresden": 3}
    made = federation(sites=sites, training={"rounds": 1, "quorum": 3})
    silent(made, ("train", "Aachen"))
    with pytest.raises(SiteError, match=r"P402 .*2\.44% of all sites' weight is left; 3\.12% are needed"):
        made.rounds()


def test_sites_that_are_not_chosen_have_no_key():
    training = {"rounds": 3, "participation": {"uniform": {"sites": 3}}}
    found, plain = (federation(channel, training=training).state() for channel in (["homomorphic_sum"], ()))
    torch.testing.assert_close(found, plain, rtol=0, atol=3 * CLOSE)


# What the server has --------------------------------------------------------------------------------------------------


def test_the_server_is_sent_no_key_in_the_clear(monkeypatch):
    made_keys, original = [], Key.new.__func__

    def new(cls):
        made_keys.append(original(cls))
        return made_keys[-1]

    monkeypatch.setattr(Key, "new", classmethod(new))
    found = messages(federation())
    seen = b"".join(
        tensor.contiguous().numpy().tobytes()
        for *_, asked, reply in found
        for message in (asked, reply)
        for tensor in message.tensors.values()
    )
    assert len(made_keys) == 2, "one for each round"
    for key in made_keys:
        secret = key.context.serialize(save_public_key=False, save_secret_key=True, save_galois_keys=False,
                                       save_relin_keys=False)  # fmt: skip
        pieces = [text[place : place + 32] for text in (key.text, secret) for place in range(200, 150_000, 5000)]
        assert len({*pieces}) > 50
        assert not any(piece in seen for piece in pieces)
    texts = [asked.tensors["homomorphic_sum/key"] for verb, _, asked, _ in found if verb == "train"
             and "homomorphic_sum/key" in asked.tensors]  # fmt: skip
    assert len(texts) == 8
    assert len(texts[0]) == len(made_keys[0].text) + 16


def test_what_leaves_a_site_is_uniform_and_new_in_each_run():
    sent = []
    for _ in range(2):
        found = messages(federation(training=ONE))
        sent += [reply.tensors["change"] for verb, *_, reply in found if verb == "train"]
    for tensor in sent:
        for place, prime in enumerate(primes()):
            shares = tensor.view(-1, 2, 2, 8192)[:, :, place].double() / prime
            assert stats.kstest(shares.flatten().numpy(), "uniform").pvalue > 1e-5
    numbers = torch.cat(sent)
    assert len(numbers.unique()) > 0.999 * len(numbers)


def test_updates_are_sixteen_times_as_large():
    model = {"mlp": {"hidden": [4096 * 4 // 8 - 12]}}  # a little less than four ciphertexts
    plain, encrypted = (
        federation(channel, model=model, training=ONE).rounds()[1][-1]["bytes_up"]
        for channel in ((), ["homomorphic_sum"])
    )
    assert 15.5 < encrypted / plain < 17.5


# A server that asks for more ------------------------------------------------------------------------------------------


def told(tensors, **others):
    return {"terms": said({**read_said(tensors["terms"], "terms"), **others})}


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


LIES = {
    "all the weight on one site": ("advertise", lambda site, asked: told(asked, weight=1e6, most=1e6, total=1e7)),
    "its cases for one, 1 for all others": (
        "advertise", lambda site, asked: told(asked, weight=12.0 if site == "Aachen" else 1.0, most=15.0, total=16.0)),
    "1 for one that counts by cases": ("advertise", lambda site, asked: told(asked, weight=1.0)),
    "more than all": ("advertise", lambda site, asked: told(asked, total=3.0)),
    "another total for one": ("advertise", lambda site, asked: told(asked, total=1e9 if site != "Bonn" else 53.0)),
    "two sites alone": ("advertise", lambda site, asked: told(asked, sites=["Aachen", "Bonn"])),
    "others alone": ("advertise", lambda site, asked: told(asked, sites=["A", "B", "C"])),
    "a site twice": ("advertise", lambda site, asked: told(asked, sites=["Aachen", "Bonn", "Celle", site, site])),
    "not a number": ("advertise", lambda site, asked: told(asked, weight="1")),
    "no terms": ("advertise", lambda site, asked: {"terms": torch.zeros(3, dtype=torch.uint8)}),
    "no keys": ("deal", lambda site, asked: {"adverts": said({})}),
    "its own key alone": ("deal", lambda site, asked: {
        "adverts": said({site: read_said(asked["adverts"], "adverts")[site]})}),
    "keys of others": ("deal", lambda site, asked: {
        "adverts": said(read_said(asked["adverts"], "adverts") | {"Mallory": {"key": bytes(32), "signature": b""}})}),
    "no box": ("train", lambda site, asked: without(asked, "homomorphic_sum/box")),
    "another key": ("train", lambda site, asked: {
        **asked, "homomorphic_sum/key": torch.zeros(590_000, dtype=torch.uint8)}),
    "a box for another": ("train", lambda site, asked: {
        **asked, "homomorphic_sum/box": said({"dealer": "Bonn", "advert": {"key": bytes(range(32)), "signature": b""},
                                              "box": bytes(48)})}),
    "a sum of one": ("agree", lambda site, asked: {"survivors": said([site])}),
    "a sum of two": ("agree", lambda site, asked: {"survivors": said([s for s in SITES if s in ("Essen", site)])}),
    "other survivors for each": ("agree", lambda site, asked: {
        "survivors": said([s for s in SITES if s in {*list(SITES)[:3], site}])}),
    "no survivors": ("agree", lambda site, asked: {"survivors": said(None)}),
    "nobody agreed": ("decrypt", lambda site, asked: {**asked, "agreements": said({})}),
    "they agreed to something else": ("decrypt", lambda site, asked: {
        **asked, "agreements": said(dict.fromkeys(SITES, bytes(32)))}),
    "no sum": ("decrypt", lambda site, asked: without(asked, "sum")),
    "half a sum": ("decrypt", lambda site, asked: {**asked, "sum": asked["sum"][:100]}),
    "no ciphertext": ("decrypt", lambda site, asked: {**asked, "sum": asked["sum"] - 2**61}),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_sites_refuse_a_server_that_asks_for_more(lie):
    made = federation(training=ONE)
    verb, change = LIES[lie]
    with recorded(made.engine) as found:
        lying(made, verb, change)
        with pytest.raises(SiteError):
            made.rounds()
    replies = [(asked.rpartition("/")[2], reply) for asked, *_, reply in found if not isinstance(reply, Exception)]
    assert not [reply for asked, reply in replies if asked == "decrypt"], "no sum was told"
    if verb == "advertise" and "another total" not in lie:  # there all others go on
        assert not [reply for asked, reply in replies if asked == "train"]


def shaped(tensor):
    return tensor.view(-1, 2, 2, 8192)


def scaled(tensor, factor):
    total = shaped(tensor).clone()
    for _ in range(factor - 1):
        add_(total, shaped(tensor))
    return total.flatten()


SUMS = {
    "one site's update": lambda sent, asked: sent["Bonn"],
    "one site's update five times": lambda sent, asked: scaled(sent["Bonn"], 5),
    "all but one": lambda sent, asked: add_(
        add_(add_(shaped(sent["Aachen"]).clone(), shaped(sent["Bonn"])), shaped(sent["Celle"])),
        shaped(sent["Dresden"])).flatten(),
    "one site twice": lambda sent, asked: add_(shaped(asked["sum"]).clone(), shaped(sent["Celle"])).flatten(),
    "values of one site and the check of all": lambda sent, asked: torch.cat(
        [sent["Bonn"].view(2, -1)[0], asked["sum"].view(2, -1)[1]]),
    "zeros": lambda sent, asked: torch.zeros_like(asked["sum"]),
    "something else": lambda sent, asked: torch.arange(len(asked["sum"])),
}  # fmt: skip


@pytest.mark.parametrize("sum_", SUMS)
def test_sites_decrypt_nothing_but_the_sum_they_agreed_to(sum_):
    """Not even ciphertexts that the server puts together from those of the sites."""
    made = federation(model={"mlp": {"hidden": [600]}}, training=ONE)
    sent = {}
    spoilt(made, "train", lambda site, tensors: sent.update({site: tensors["change"]}) or tensors)
    lying(made, "decrypt", lambda site, asked: {**asked, "sum": SUMS[sum_](sent, asked)})
    with recorded(made.engine) as found, pytest.raises(SiteError, match=r"P402 .*is not the sum of what 5 sites sent"):
        made.rounds()
    assert len(sent["Bonn"]) == 2 * 32768
    replies = [reply for function, *_, reply in found if function.endswith("/decrypt")]
    assert len(replies) == 5
    assert all(isinstance(reply, SiteError) for reply in replies)


def test_a_site_decrypts_once():
    made = federation(training=ONE)
    original, second = made.engine.call, []

    def call(function, requests):
        for site, reply in original(function, requests):
            if function.endswith("/decrypt"):
                second.extend(original(function, requests))
            yield site, reply

    made.engine.call = call
    made.rounds()
    assert second
    assert all("no sum was begun" in str(reply) for _, reply in second)


def round_of(vectors, bound=2.0**24):
    """Sites that have agreed, the encrypted sum of their vectors ``[T]``, and their agreements."""
    names = [f"Site {place}" for place in range(len(vectors))]
    about = About(bytes(32), 0, tuple(names), 1.0, float(len(names)), 1.0)
    layout = {"change": len(vectors[0])}
    known = Terms.fit(about, 0, layout, bound, 2)
    sites = {name: Round(known, 1.0, 0, SimpleNamespace(name=name, identity=None)) for name in names}
    adverts = {name: site.advertise() for name, site in sites.items()}
    boxes, key = sites["Site 0"].deal(adverts)
    for name in names[1:]:
        sites[name].open({"dealer": "Site 0", "advert": adverts["Site 0"], "box": boxes[name]}, key)
    total = torch.zeros(0)
    for site, vector in zip(sites.values(), vectors, strict=True):
        sent = check(site.encrypt(vector), known.length)
        total = add_(total, sent) if len(total) else sent.clone()
    return sites, total.flatten(), {name: site.agree(names) for name, site in sites.items()}


UGLY = {
    "usual": lambda drawn: 1e-2 * torch.randn(5000, generator=drawn),
    "tiny": lambda drawn: 1e-8 * torch.randn(4095, generator=drawn),
    "the largest": lambda drawn: (torch.rand(9000, generator=drawn) - 0.5) * 2.0**25,
    "one large": lambda drawn: torch.randn(6000, generator=drawn).index_fill(0, torch.tensor([5]), 2.0**24),
    "zeros": lambda drawn: torch.zeros(4096),
    "one number": lambda drawn: torch.randn(1, generator=drawn),
}


@pytest.mark.parametrize("ugly", UGLY)
@pytest.mark.parametrize("count", [2, 7])
def test_an_honest_sum_passes_the_check_with_room_to_spare(monkeypatch, ugly, count):
    monkeypatch.setattr(homomorphic_round, "ROUNDING", homomorphic_round.ROUNDING / 32)
    drawn = torch.Generator().manual_seed(count)
    vectors = [UGLY[ugly](drawn) for _ in range(count)]
    sites, total, agreements = round_of(vectors)
    mean = sum(vector.double() for vector in vectors) / count
    found = sites["Site 1"].decrypt(agreements, total)
    assert (found - mean).abs().max() < 2.0**-25 + 2.0**-50 * float(mean.abs().max())


@pytest.mark.parametrize("place", [0, 4094, 4999])
def test_a_sum_in_which_one_number_is_another_does_not_pass(place):
    drawn = torch.Generator().manual_seed(1)
    sites, total, agreements = round_of([1e-2 * torch.randn(5000, generator=drawn) for _ in range(3)])
    bit = torch.zeros(5001, dtype=torch.float64)
    bit[place] = 1e-6
    spoilt_ = add_(check(total, 5001).clone(), check(sites["Site 0"]._key.encrypt(bit), 5001)).flatten()
    with pytest.raises(Misfit, match="is not the sum of what 3 sites sent"):
        sites["Site 1"].decrypt(agreements, spoilt_)
    assert sites["Site 2"].decrypt(agreements, total).isfinite().all()


# A site that sends something else -------------------------------------------------------------------------------------


UPDATES = {
    "too short": lambda change: change[:-1],
    "empty": lambda change: change[:0],
    "bytes": lambda change: torch.zeros(300, dtype=torch.uint8),
    "of 32 bits": lambda change: change.int(),
    "negative": lambda change: change - 2**60,
    "too large": lambda change: torch.full_like(change, 2**62),
    "one prime": lambda change: change.index_fill(0, torch.tensor([8192]), primes()[1]),
}


@pytest.mark.parametrize("bad", UPDATES)
def test_what_is_no_ciphertext_is_that_sites_failure(bad):
    made = federation(training={"rounds": 1, "quorum": 4})

    def change(site, found):
        return {"change": UPDATES[bad](found["change"])} if site == "Bonn" else found

    spoilt(made, "train", change)
    progress, rows = made.rounds()
    inside = [site for site in SITES if site != "Bonn"]
    assert [row["site"] for row in rows] == inside
    state = progress.model("federation").double()
    torch.testing.assert_close(state, expected(made, means(inside=inside)), rtol=2.0**-23, atol=CLOSE)


def test_a_ciphertext_of_another_key_spoils_the_round_and_is_noticed():
    made = federation(training=ONE)
    other = Key.new()

    def change(site, tensors):
        return {"change": other.encrypt(torch.ones(4000).double())} if site == "Bonn" else tensors

    spoilt(made, "train", change)
    with pytest.raises(SiteError, match=r"P402 .*is not the sum of what 5 sites sent"):
        made.rounds()


@pytest.mark.parametrize(
    "total", [lambda t: t[:-1], lambda t: t.float(), lambda t: torch.zeros(0)], ids=["short", "32 bits", "empty"]
)
def test_another_site_is_asked_where_one_tells_no_sum(total):
    made = federation(training=ONE)
    spoilt(made, "decrypt", lambda site, found: {"total": total(found["total"])} if site == "Aachen" else found)
    torch.testing.assert_close(made.state().double(), expected(made, means()), rtol=2.0**-23, atol=CLOSE)


def test_a_value_beyond_the_bound_is_told():
    made = federation(training=ONE)
    for member in made.engine.members.values():
        train = member._functions["train"]

        def wide(asked, tensors, member=member, train=train):
            end = member.run.ends["homomorphic_sum"]
            close = type(end).close
            end.close = lambda packed: close(end, {**packed, "statistics": packed["statistics"] + 2.0**25})
            return train(asked, tensors)

        member._functions["train"] = wide
    with pytest.raises(SiteError, match=r"P301 .* 0 are not finite and \d+ are beyond the bound of 1\.67772e\+07"):
        made.rounds()


# Parameters -----------------------------------------------------------------------------------------------------------


def terms(sites=3, numbers=10, bound=1.0):
    names = tuple(f"Site {place}" for place in range(sites))
    return Terms.fit(About(bytes(32), 0, names, 1.0, float(sites), 1.0), 0, {"change": numbers}, bound, 3)


@pytest.mark.parametrize(
    ("bound", "unit"), [(1.0, 1.0), (0.5, 0.5), (0.3, 0.5), (1e-3, 2.0**-9), (7.0, 1.0), (2.0**24, 1.0)]
)
def test_a_unit_is_the_bound_or_one(bound, unit):
    assert terms(bound=bound).unit == unit


def test_what_has_no_room_is_refused_with_numbers():
    with pytest.raises(StudyError, match=r"P102 .*values up to 1e\+08; it has room for 3\.35544e\+07"):
        terms(bound=1e8)
    with pytest.raises(StudyError, match=r"P102 .*room"):
        federation([{"clip": {"norm": 1e9}}, "homomorphic_sum"], model={"mlp": {"hidden": [9]}}).rounds()


def test_what_is_too_long_for_a_message_is_refused_with_numbers():
    assert terms(numbers=2**25 - 1).length == 2**25
    with pytest.raises(StudyError, match=r"P102 .*of 33554432 numbers; a message has room for 33554431"):
        terms(numbers=2**25)


def test_what_would_tell_of_the_key_is_refused_with_numbers():
    assert distance(2**24, 32) < 2.0**-35
    assert distance(2**25, 1000) < MOST_DISTANCE, "any sum that a message has room for, of a thousand sites"
    with pytest.raises(StudyError, match=r"P102 .*30000 sites' 30000001 numbers .* 2\^-2\d\.\d, and 2\^-30"):
        terms(30_000, 30_000_000)


def test_the_distance_is_that_of_two_normal_distributions():
    """Of one number, one site and one answer the exact total variation is below, and near."""
    shift = homomorphic_round.NOISE / FLOOD
    exact = math.erf(shift / 2 / math.sqrt(2))  # of N(0, 1) and N(shift, 1)
    assert exact < distance(1, 1) < 1.3 * exact
    assert distance(400, 1) == pytest.approx(20 * distance(1, 1))
    assert distance(1, 9) == pytest.approx(9 * distance(1, 1))
    assert MOST_DISTANCE < 1e-9


# Groups ---------------------------------------------------------------------------------------------------------------


GROUPED = [{"homomorphic_sum": {"group_size": 3}}]
NINE = {f"Site {letter}": 8 + number for number, letter in enumerate("ABCDEFGHI")}


def groups_of(found):
    """Members of each group, as its sites were told."""
    told = {
        site: read_said(asked.tensors["terms"], "terms")["sites"]
        for verb, site, asked, _ in found
        if verb == "advertise"
    }
    groups = {tuple(members) for members in told.values()}
    assert all(site in members for site, members in told.items())
    assert sorted(site for members in groups for site in members) == sorted(told)
    return groups


def test_a_robust_rule_works_on_sums_of_groups():
    """Ten sites in groups of three, three and four: the median is that of three means."""
    sites = NINE | {"Site J": 20}
    made = federation(GROUPED, {"server": ["median"]}, sites, training=ONE)
    found = messages(made)
    groups = groups_of(found)
    assert sorted(map(len, groups)) == [3, 3, 4]
    assert len([1 for verb, *_ in found if verb == "decrypt"]) == 3
    each = torch.stack([means(sites, list(members)) for members in groups])
    plan = made.plan()
    size, before = plan.selection.trainable, plan.selection.take(plan.initial)
    right = before[:size].double() + each[:, :size].median(0).values
    torch.testing.assert_close(made.state()[:size].double(), right, rtol=0, atol=CLOSE)


def test_of_each_group_enough_must_be_left():
    made = federation(GROUPED, {"training": {"quorum": 8}}, NINE, training=ONE)
    silent(made, ("train", "Site C"))
    with pytest.raises(SiteError, match=r"P402 .*2 of 3 sites sent their updates; 3 are needed"):
        made.rounds()


def test_the_mean_of_all_groups_is_that_of_all_sites():
    made = federation(GROUPED, sites=NINE, training=ONE)
    torch.testing.assert_close(made.state().double(), expected(made, means(NINE)), rtol=0, atol=CLOSE)


def test_groups_have_keys_of_their_own():
    found = messages(federation(GROUPED, sites=NINE, training=ONE))
    groups = groups_of(found)
    keys = {site: asked.tensors.get("homomorphic_sum/key") for verb, site, asked, _ in found if verb == "train"}
    for members in groups:
        dealer, *others = members
        assert keys[dealer] is None, "it made it"
        assert all(torch.equal(keys[others[0]], keys[site]) for site in others)
    assert len({key.numpy().tobytes() for key in keys.values() if key is not None}) == len(groups) == 3


def test_too_few_sites_for_two_groups_are_one():
    made = federation(GROUPED, training=ONE)
    (group,) = groups_of(messages(made))
    assert group == tuple(SITES)


def test_a_round_is_not_summed_again_with_other_sites(tmp_path):
    """The difference of both sums would be Bonn's update."""

    def once(change=lambda made: None):
        made = federation(training={"rounds": 1, "quorum": 4}, folder=tmp_path)
        change(made)
        return made.state()

    first = once()
    with pytest.raises(SiteError, match=r"P402 .*0 of 5 sites agreed to who is in the sum"):
        once(lambda made: silent(made, ("train", "Bonn")))
    torch.testing.assert_close(once(), first, rtol=0, atol=CLOSE)


# With other parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [
    {"server": ["median"]}, {"server": ["multi_krum"]}, {"server": ["qfedavg"]}, {"server": ["normalised"]},
])  # fmt: skip
def test_what_compares_updates_is_refused(entry):
    with pytest.raises((EntryError, StudyError), match=r"P104 .*homomorphic_sum"):
        federation(entry=entry)


def test_two_sums_are_refused():
    with pytest.raises((EntryError, StudyError), match=r"P104 .*a sum alone"):
        federation(["secure_sum", "homomorphic_sum"])


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def identities():
    private = {site: Ed25519PrivateKey.generate() for site in SITES}
    public = {site: key.public_key() for site, key in private.items()}
    return {site: KeySigner(public, key) for site, key in private.items()}


def signing(made, identities):
    """Sites get their identities when they start."""
    original = made.engine.call

    def call(function, requests):
        for site, member in made.engine.members.items():
            if getattr(member, "run", None) is not None:
                member.run.view.identity = identities[site]
        yield from original(function, requests)

    made.engine.call = call


def test_sites_sign_their_keys(identities):
    made = federation(training=ONE)
    signing(made, identities)
    with recorded(made.engine) as found:
        state = made.state().double()
    torch.testing.assert_close(state, expected(made, means()), rtol=2.0**-23, atol=CLOSE)
    adverts = [read_said(reply.tensors["advert"], "advert") for function, *_, reply in found
               if function.endswith("advertise")]  # fmt: skip
    assert [len(advert["signature"]) for advert in adverts] == [64] * 5


@pytest.mark.parametrize("where", ["advertise", "train"])
def test_a_server_can_not_put_a_key_of_its_own_in_their_place(identities, where):
    """For a receiver's it gets no secret, and a dealer's is not believed."""
    made = federation(training={"rounds": 1, "quorum": 4})
    signing(made, identities)
    own = {"key": homomorphic_round.CommonSecret(b"", ["x"], "x").advertise()["key"], "signature": bytes(64)}
    if where == "advertise":
        spoilt(made, "advertise", lambda site, found: {"advert": said(own)} if site == "Celle" else found)
    else:

        def change(site, asked):
            if site != "Celle":
                return asked
            box = read_said(asked["homomorphic_sum/box"], "box")
            return {**asked, "homomorphic_sum/box": said({**box, "advert": own})}

        lying(made, "train", change)
    progress, rows = made.rounds()
    assert [row["site"] for row in rows] == [site for site in SITES if site != "Celle"]
    assert any("Celle" in note for note in progress.failures)


# Stopped and resumed --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def test_a_run_that_was_stopped_goes_on_with_new_keys_to_the_same_model(tmp_path):
    def outcome(folder, stop=None):
        made = federation(folder=folder / "sites", training={"rounds": 3})

        def report(done, _):
            if done == stop:
                raise Killed

        job = Job((made.method(),), 0, 0)
        found = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        (tensors,) = found.models.values()
        return tensors

    unbroken = outcome(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(Killed):
            outcome(tmp_path / str(stop), stop)
        for name, tensor in outcome(tmp_path / str(stop)).items():
            torch.testing.assert_close(tensor, unbroken[name], rtol=0, atol=3 * CLOSE)
