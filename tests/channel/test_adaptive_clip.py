"""Shortening to a length that follows a quantile of how long the sites' changes are, with and without noise."""

import importlib.util
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as normal

import polyclinic.channel.noise as noise_module
from channel_line import Line
from helpers import Federation, declare, recorded, table_sites
from plugin_helpers import failing
from polyclinic.channel.adaptive_clip import AdaptiveClip, _Following, _Shortening
from polyclinic.channel.secure_sum import About
from polyclinic.errors import SiteError
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION, Now, build_chain, build_part, build_parts
from polyclinic.privacy import Event, delta, epsilon
from polyclinic.running.progress import Checkpoint
from polyclinic.secure import Ring
from polyclinic.seeds import generator
from polyclinic.server.chain import Chain
from polyclinic.shapes import Shaped
from polyclinic.study.job import Job

MODEL = {"mlp": {"hidden": [9]}}
SITES = {"A": 33, "B": 24, "C": 27}
NOISY = {"central_noise": {"noise": 2.0}}


class Rounds:
    """Sites with given changes, a channel and a server, without training."""

    def __init__(self, channel, weights, size=2):
        self.entries = [(name, dict(options)) for name, options in channel]
        self.weights, self.size, self.number = weights, size, 0
        self.sites = {site: build_parts(self.entries) for site in weights}
        self.there = build_chain(self.entries, [], [])
        self.chain = Chain({name: part.at_server() for name, part in self.there.items()})

    @property
    def length(self):
        return self.there["adaptive_clip"].length

    def begin(self):
        self.chain.begin(Now(
            self.number, 100, 0.1, torch.zeros(self.size), torch.zeros(0), sum(self.weights.values()),
            self.weights, list(self.weights), [(self.size,)],
        ))  # fmt: skip

    def take(self, changes):
        """What each site sends."""
        sent = {}
        for site, change in changes.items():
            told = self.chain.send(site)
            packed = {"change": change.float(), "statistics": torch.zeros(0)}
            for name, part in self.sites[site].items():
                end = part.at_site()
                end.name = name
                received = {key.split("/")[1]: t for key, t in told.items() if key.startswith(f"{name}/")}
                end.begin(SimpleNamespace(name=site), received)
                packed = end.close(packed)
            sent[site] = packed
            self.chain.take(site, packed, self.weights[site])
        return sent

    def round(self, changes):
        """The step that comes out; the model was 0."""
        self.begin()
        self.take(changes)
        self.number += 1
        return self.chain.finish().state


def along(length, size=2):
    """A change of a length."""
    return torch.tensor([0.6, 0.8] + [0.0] * (size - 2)) * length


def federation(channel, data=None, **options):
    training = {"rounds": 4} | options.pop("training", {})
    entry = {"channel": channel, "label": "clipped"}
    return Federation(data or table_sites(SITES, part=None), [{"fedavg": entry}], model=MODEL, training=training,
                      **{"evaluation": {"folds": 2}, **options})  # fmt: skip


def with_budget(channel, budget):
    """A federation whose study has a budget."""
    made = federation(channel, training={"rounds": 3})
    declared = declare(
        model=MODEL, training={"rounds": 3, "batch_size": 8}, privacy=budget,
        evaluation={"folds": 2, "validation": 0, "best_round": "last"},
        methods=[{"fedavg": {"channel": channel, "label": "clipped"}}],
    )  # fmt: skip
    made.declaration = made.runner.declaration = made.runner.planner.declaration = declared
    return made


def told(made, **options):
    """The length that the sites are told in each round, and the state at the end."""
    with recorded(made.engine) as said:
        progress, _ = made.rounds(**options)
    found = {}
    for function, site, message, _ in said:
        if function == "train":
            found.setdefault(site, []).append(message.tensors["adaptive_clip/norm"].item())
    assert len({tuple(lengths) for lengths in found.values()}) == 1, "all sites are told the same"
    return next(iter(found.values())), progress.model(FEDERATION)


# The length -----------------------------------------------------------------------------------------------------------


def test_the_length_of_several_rounds_by_hand():
    """γ = 0.5, η = 0.2, weights 3, 1, 1: b̄ is 4/5, then 0, 3/5 and 1; C · exp(−0.2 (b̄ − 0.5))."""
    made = Rounds([("adaptive_clip", {"norm": 1.0})], {"A": 3.0, "B": 1.0, "C": 1.0})
    lengths = [(0.9, 0.5, 4.0), (2.0, 3.0, 4.0), (0.9, 5.0, 6.0), (0.0, 0.2, 0.1)]
    expected = 1.0
    for own, mean in zip(lengths, (0.8, 0.0, 0.6, 1.0), strict=True):
        sent = {site: along(length) for site, length in zip("ABC", own, strict=True)}
        step = made.round(sent)
        short = [min(length, expected) for length in own]
        torch.testing.assert_close(step, along((3 * short[0] + short[1] + short[2]) / 5), rtol=1e-6, atol=0)
        expected *= math.exp(-0.2 * (mean - 0.5))
        assert made.length == pytest.approx(expected, rel=1e-12)
    assert made.length == pytest.approx(math.exp(-0.06 + 0.1 - 0.02 - 0.1), rel=1e-12)


@pytest.mark.parametrize("quantile", [0.1, 0.3, 0.5, 0.75, 0.99])
def test_it_goes_to_the_quantile_of_lengths_that_stay_the_same(quantile):
    """21 sites: it ends where it is less than a step away from the length at which b̄ passes γ."""
    drawn = torch.randn(21, generator=generator("lengths"), dtype=torch.float64).mul(2).exp()
    own = {f"Site {place}": along(float(length)) for place, length in enumerate(drawn)}
    made = Rounds([("adaptive_clip", {"norm": 0.1, "quantile": quantile, "rate": 0.5})], dict.fromkeys(own, 1.0))
    for _ in range(150 if 0.2 < quantile < 0.8 else 600):
        made.round(own)
    place = math.ceil(21 * quantile - 1e-9)  # so many are at or below the quantile
    above = float(drawn.sort().values[place - 1])
    low, high = math.exp(-0.5 * (place / 21 - quantile)), math.exp(0.5 * (quantile - (place - 1) / 21))
    assert above * low * (1 - 1e-6) <= made.length <= above * high * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e30), st.floats(0.01, 100)), min_size=1, max_size=6),
       st.floats(1e-20, 1e20), st.floats(0.01, 1), st.floats(0.01, 50))  # fmt: skip
def test_each_change_is_within_the_length_and_b_says_if_it_was(sites, start, quantile, rate):
    weights = {f"S{place}": weight for place, (_, weight) in enumerate(sites)}
    own = {f"S{place}": along(length).float() for place, (length, _) in enumerate(sites)}
    made = Rounds([("adaptive_clip", {"norm": start, "quantile": quantile, "rate": rate})], weights)
    for _ in range(3):
        length = made.length
        made.begin()
        sent = made.take(own)
        found = 0.0
        for site, packed in sent.items():
            before = float(own[site].double().square().sum().sqrt())
            assert float(packed["change"].double().square().sum().sqrt()) <= length
            assert packed["adaptive_clip/within"].item() == (before <= length)
            found += weights[site] * (before <= length) / sum(weights.values())
        assert made.chain.finish().state.isfinite().all()
        moved = length * math.exp(-rate * (found - quantile))
        assert made.length == pytest.approx(min(max(moved, 2.0**-100), 2.0**100), rel=1e-9)


def test_the_length_stays_a_number_whatever_comes():
    made = Rounds([("adaptive_clip", {"norm": 1.0, "rate": 1e9})], {"A": 1.0})
    made.round({"A": along(2.0)})
    assert made.length == pytest.approx(2.0**100)
    made.round({"A": along(2.0)})
    assert made.length == pytest.approx(2.0**-100)
    assert made.take({"A": torch.tensor([float("nan"), 1.0])})["A"]["adaptive_clip/within"] == 0


def test_a_round_that_is_given_up_leaves_the_length_as_it_was():
    channel = [("adaptive_clip", {"norm": 1.0}), ("central_noise", {"noise": 2.0})]
    made, plain = (Rounds(channel, {"A": 1.0, "B": 1.0}) for _ in range(2))
    made.begin()
    made.take({"A": along(0.5)})
    assert made.length == 1.0
    for one in (made, plain):
        one.round({"A": along(3.0), "B": along(2.0)})
    assert made.length == plain.length != 1.0


def test_what_is_saved_is_taken_back_to_the_last_bit():
    made, again = (Rounds([("adaptive_clip", {"norm": 0.3})], {"A": 1.0, "B": 2.0}) for _ in range(2))
    made.round({"A": along(0.1), "B": along(5.0)})
    again.chain.restore(made.chain.memory())
    assert again.length == made.length != 0.3


def test_with_a_length_that_no_change_reaches_it_is_fedavg():
    data = table_sites(SITES, part=None)
    _, state = told(federation([{"adaptive_clip": {"norm": 1e6, "quantile": 1.0}}], data))
    plain = Federation(data, ["fedavg"], model=MODEL, training={"rounds": 4}, evaluation={"folds": 2}).state()
    assert torch.equal(state, plain)


# Noise ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ones(monkeypatch):
    """All random numbers of `central_noise` are 1, so that the noise is its deviation."""
    monkeypatch.setattr(noise_module, "gaussian", lambda count, draws: torch.ones(count, dtype=torch.float64))


def test_noise_on_the_changes_and_on_the_mean_by_hand(ones):
    """σ = 2, a fifth of the cost for b̄, weights 3, 1, 1: σ_Δ = 2 / √0.8, σ_b = 2 / (2 √0.2), both times 3/5."""
    channel = [("adaptive_clip", {"norm": 1.0, "share": 0.2, "rate": 0.3}), ("central_noise", {"noise": 2.0})]
    made = Rounds(channel, {"A": 3.0, "B": 1.0, "C": 1.0}, size=4)
    of_change, of_mean = 2 / math.sqrt(0.8), 1 / math.sqrt(0.2)
    assert of_change == pytest.approx((2**-2 - (2 * of_mean) ** -2) ** -0.5), "theorem 1"
    length = 1.0
    for own, mean in (((0.5, 2.0, 2.0), 0.6), ((9.0, 9.0, 9.0), 0.0), ((0.0, 0.0, 9.0), 0.8)):
        step = made.round({site: along(size, 4) for site, size in zip("ABC", own, strict=True)})
        assert step[2:].tolist() == pytest.approx([of_change * length * 0.6] * 2, rel=1e-6)
        length *= math.exp(-0.3 * (mean + of_mean * 0.6 - 0.5))
        assert made.length == pytest.approx(length, rel=1e-9)


def test_the_noise_that_is_drawn_is_as_large_as_the_length_of_the_round():
    """In the second round C is exp(−0.5 (b̄ + noise − 0.5)), whatever the noise was; σ C 1/2 / √0.9."""
    size = 60_000
    channel = [("adaptive_clip", {"norm": 1.0, "rate": 0.5}), ("central_noise", {"noise": 3.0})]
    made, lengths = Rounds(channel, {"A": 1.0, "B": 1.0}, size), []
    for _ in range(3):
        lengths.append(made.length)
        step = made.round({"A": along(0.7, size), "B": along(4.0, size)})
        deviation = 3 / math.sqrt(0.9) * lengths[-1] / 2
        assert step[2:].double().std().item() == pytest.approx(deviation, rel=0.015)
    assert len(set(lengths)) == 3


def test_the_mean_has_as_much_noise_as_is_said():
    """η = 1, γ = b̄: the logarithm of the length has the noise's own deviation, 2 / (2 √0.1) · 1/2 in each round."""
    made = Rounds([("adaptive_clip", {"rate": 1.0}), ("central_noise", {"noise": 2.0})], {"A": 1.0, "B": 1.0})
    moves = []
    for _ in range(1500):
        made.there["adaptive_clip"].length = 1.0
        made.round({"A": along(0.5), "B": along(2.0)})
        moves.append(math.log(made.length))
    found = torch.tensor(moves, dtype=torch.float64)
    assert found.std().item() == pytest.approx(0.5 / math.sqrt(0.1), rel=0.06)
    assert abs(found.mean().item()) < 4 * 0.5 / math.sqrt(0.1 * 1500)


@pytest.mark.parametrize(("noise", "share", "rounds"), [(2.0, 0.1, 10), (5.0, 0.5, 40), (1.0, 0.01, 1)])
def test_the_two_releases_together_cost_what_is_stated(noise, share, rounds):
    """Another site's data move the mean of changes by 2 C and b̄ by 1, in units of the largest share."""
    of_change, of_mean = noise / math.sqrt(1 - share), noise / (2 * math.sqrt(share))
    both = [Event.gaussian(of_change / 2, count=rounds), Event.gaussian(of_mean, count=rounds)]
    (event,) = build_part("central_noise", {"noise": noise}).spends(rounds, None)
    stated = epsilon([event.times(rounds)], 1e-5)
    assert epsilon(both, 1e-5) == pytest.approx(stated, rel=2e-3)
    apart = math.sqrt(rounds * ((2 / of_change) ** 2 + (1 / of_mean) ** 2))  # of one Gaussian, by its distance
    exact = normal.cdf(apart / 2 - stated / apart) - math.exp(stated) * normal.cdf(-apart / 2 - stated / apart)
    assert exact == pytest.approx(1e-5, rel=0.02)
    assert delta(both, stated) == pytest.approx(1e-5, rel=0.02)


def test_a_training_states_what_its_rounds_cost():
    (row,) = federation([{"adaptive_clip": {}}, NOISY]).outcome().privacy
    assert (row["site"], row["unit"], row["steps"]) == ("federation", "a site", 4)
    assert row["epsilon"] == epsilon([Event.gaussian(1.0, count=4)], 1e-5)


def test_noise_is_found_for_a_budget():
    """It keeps the budget and leaves next to nothing of it, as after `clip`."""
    (row,) = with_budget(["adaptive_clip", "central_noise"], {"epsilon": 2.0, "delta": 1e-4}).outcome().privacy
    assert 1.99 < row["epsilon"] <= 2.0


def test_without_noise_the_mean_of_the_round_has_none():
    """What was hidden in a round is not in the next."""
    made = Rounds([("adaptive_clip", {"norm": 1.0}), ("central_noise", {"noise": 2.0})], {"A": 1.0})
    made.round({"A": along(1.0)})
    assert made.there["adaptive_clip"].hidden != 0
    made.begin()
    assert made.there["adaptive_clip"].hidden == 0


# With other steps -----------------------------------------------------------------------------------------------------


SUMS = [
    pytest.param("secure_sum", id="secure_sum"),
    pytest.param({"secure_sum": {"least": 2, "group_size": 2}}, id="groups"),
    pytest.param("homomorphic_sum", marks=pytest.mark.skipif(
        importlib.util.find_spec("tenseal") is None, reason="needs tenseal")),
]  # fmt: skip


@pytest.mark.parametrize("noise", [[], [NOISY]], ids=["bare", "noisy"])
@pytest.mark.parametrize("hiding", SUMS)
def test_the_length_goes_as_well_where_the_server_sees_sums(hiding, noise):
    data = table_sites({"A": 33, "B": 10, "C": 27, "D": 20}, part=None)
    channel = [{"adaptive_clip": {"norm": 0.3, "quantile": 0.4}}, *noise]
    with recorded((made := federation([*channel, hiding], data)).engine) as said:
        made.rounds()
    sent = {name for function, _, _, reply in said if function == "train" for name in reply.tensors}
    assert sent == {"change"}, "what each site told is in the sum"
    kinds = {reply.tensors["change"].dtype for function, _, _, reply in said if function == "train"}
    assert kinds == {torch.int64 if hiding == "homomorphic_sum" else torch.int32}
    lengths, state = told(federation([*channel, hiding], data))
    plain, reference = told(federation(channel, data))
    assert lengths == pytest.approx(plain, rel=1e-6)
    assert len(set(plain)) == 4
    torch.testing.assert_close(state, reference, rtol=0, atol=2e-6)


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="needs cryptography")
@pytest.mark.parametrize("norm", [1e-3, 0.3, 1e6])
def test_a_secure_sum_is_as_precise_as_the_length_of_the_round(norm):
    """One of 32 bits for changes up to C, to the bit, and b̄ to seven digits, however far C is from 1."""
    data, training = table_sites(SITES, part=None), {"rounds": 2, "weights": "uniform"}
    made = federation([{"adaptive_clip": {"norm": norm}}], data, training=training)
    with recorded(made.engine) as said:
        made.rounds()
    sent = [r.tensors for f, _, asked, r in said if f == "train" and asked.fields["round"] == 0]
    ring = Ring.fit(norm, 3, total_weight=3.0, bits=32)
    mean = ring.decode(sum(ring.encode(packed["change"].double(), 1.0).long() for packed in sent)).mean.float()
    made = federation([{"adaptive_clip": {"norm": norm}}, "secure_sum"], data, training={**training, "rounds": 1})
    assert torch.equal(made.state(), made.initial(0) + mean)
    within = sum(float(packed["adaptive_clip/within"]) for packed in sent) / 3
    made = federation([{"adaptive_clip": {"norm": norm}}, "secure_sum"], data, training=training)
    assert told(made)[0][1] == pytest.approx(norm * math.exp(-0.2 * (within - 0.5)), rel=1e-7)


@pytest.mark.parametrize("hiding", SUMS[::2])
def test_a_server_that_tells_sites_different_lengths_gets_nothing(hiding, monkeypatch):
    """The others' changes would be next to nothing, and the sum that of A."""
    data, send = table_sites({"A": 33, "B": 10, "C": 27, "D": 20}, part=None), _Following.send
    low = {"norm": torch.tensor(1e-30, dtype=torch.float64)}
    monkeypatch.setattr(_Following, "send", lambda self, site: send(self, site) if site == "A" else low)
    with pytest.raises(SiteError, match=r"P402 .*B: P404 Site B .*something else than what all sites .*likewise C, D"):
        federation([{"adaptive_clip": {"norm": 0.3}}, hiding], data).rounds()


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="needs cryptography")
def test_sites_that_agree_on_different_lengths_have_no_sum():
    """A server that tells each site the length that it then sends it, too: their keys are of different terms."""
    about = About(bytes(32), 0, ("A", "B", "C"), 1.0, 3.0, 1.0, (0.3).hex())
    part = build_parts([("adaptive_clip", {}), ("secure_sum", {})])["secure_sum"]
    part.given, part.sizes = {"change": Shaped("float32", "T")}, {"T": 3}
    told = [part.agreed(replace(about, alike=length.hex()), 0)[0].training for length in (0.3, 0.3, 1e-30)]
    assert told[0] == told[1] != told[2]


def test_what_comes_after_it_is_fitted_to_what_it_gives():
    """Codings keep what they did not send in the units of the change, so a length that moves is nothing to them."""
    line = Line(("adaptive_clip", {"norm": 1.0}), ("top_k", {"share": 0.25}), shapes=[(4,)])
    seen = [line.through(torch.ones(4)) for _ in range(4)]
    assert [float(one.norm()) for one in seen] == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("stacked", [False, True])
def test_training_in_other_engines_gives_the_same(stacked):
    channel = [{"adaptive_clip": {"norm": 0.3}}]
    lengths, state = told(federation(channel, serialise=not stacked, stacked=stacked))
    reference, plain = told(federation(channel))
    assert lengths == pytest.approx(reference, rel=1e-9)
    torch.testing.assert_close(state, plain, rtol=0, atol=0 if not stacked else 1e-5)


def test_a_site_whose_answer_is_lost_is_not_in_the_mean():
    data = table_sites(SITES, part=None)
    channel = [{"adaptive_clip": {"norm": 1e3, "quantile": 0.5}}]  # all are within
    made = federation(channel, data, training={"quorum": 2})
    failing(made.engine, (1, "B"))
    lengths, _ = told(made)
    assert lengths == pytest.approx([1e3 * math.exp(-0.1 * number) for number in range(4)], rel=1e-12)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("noise", [[], [NOISY]], ids=["bare", "noisy"])
def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(noise, tmp_path):
    def run(folder, stop=None):
        made = federation([{"adaptive_clip": {"norm": 0.3}}, *noise], folder=folder / "sites")

        def report(done, _):
            if done == stop:
                raise Killed

        found = made.runner.run(Job((made.method(),), 0, 0), made.fold, checkpoint=Checkpoint(folder / "job"),
                                report=report)  # fmt: skip
        (tensors,) = found.models.values()
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, found.privacy

    whole = run(tmp_path / "whole")
    for stop in (1, 3):
        with pytest.raises(Killed):
            run(tmp_path / str(stop), stop)
        assert run(tmp_path / str(stop)) == whole


def test_what_is_exchanged_is_said():
    reveals = federation([{"adaptive_clip": {}}]).plan().reveals
    assert set(reveals) == {"adaptive_clip/norm", "adaptive_clip/within"}
    assert "no longer than" in reveals["adaptive_clip/within"]


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "words"), [
    ({"channel": ["adaptive_clip", {"gaussian_noise": {"noise": 1}}]}, "gaussian_noise does not add noise to that"),
    ({"channel": ["adaptive_clip", {"laplace_noise": {"noise": 1}}]}, "laplace_noise does not add noise to that"),
    ({"channel": ["adaptive_clip", {"distributed_noise": {"noise": 1}}, "secure_sum"]}, "does not add noise to that"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}, "adaptive_clip"]}, "central_noise does not add noise"),
    ({"channel": ["adaptive_clip", "clip", {"central_noise": {"noise": 1}}]}, "central_noise does not add noise"),
    ({"channel": ["adaptive_clip", {"central_noise": {"noise": 1}}], "server": ["median"]}, "a mean of all"),
    ({"channel": ["adaptive_clip", {"central_noise": {"noise": 1}}, "int8"]}, "which can be longer"),
    ({"channel": ["adaptive_clip", {"central_noise": {"noise": 1}}, {"gaussian_noise": {"noise": 1}}]},
     "gaussian_noise does not add noise to that"),
    ({"channel": ["adaptive_clip"], "topology": "cyclic"}, "the model goes from site to site"),
    ({"channel": ["top_k", "adaptive_clip"]}, "works on the change"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_sentence(entry, words):
    with pytest.raises(EntryError, match="P104") as caught:
        Federation(table_sites(), [{"fedavg": {**entry, "label": "x"}}], model=MODEL)
    assert words in str(caught.value)


@pytest.mark.parametrize("entry", [
    {"channel": ["adaptive_clip"], "local": [{"dp_sgd": {"noise": 1}}]},
    {"channel": ["adaptive_clip", {"central_noise": {"noise": 1}}], "local": [{"dp_sgd": {"noise": 1}}]},
    {"channel": ["adaptive_clip", {"central_noise": {"noise": 1}}, "zstd"]},
    {"channel": ["adaptive_clip", "int8"], "server": ["median"]},
], ids=str)  # fmt: skip
def test_what_goes_together_trains(entry):
    made = Federation(table_sites(), [{"fedavg": {**entry, "label": "x"}}], model=MODEL, training={"rounds": 2})
    assert made.state().isfinite().all()


@pytest.mark.parametrize("options", [
    {"norm": 0}, {"norm": float("nan")}, {"quantile": 0}, {"quantile": 1.1}, {"rate": 0}, {"rate": -1}, {"share": 0},
    {"share": 1}, {"share": "0.5"}, {"quantile": True},
])  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(EntryError, match="P102"):
        federation([{"adaptive_clip": options}])


@pytest.mark.parametrize("length", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_a_length_that_is_none_sends_nothing(length):
    end = AdaptiveClip().at_site()
    end.name = "adaptive_clip"
    received = {} if length is None else {"norm": torch.tensor(length, dtype=torch.float64)}
    with pytest.raises(SiteError, match=r"P401 Site A was told a length of .*expected a number above 0"):
        end.begin(SimpleNamespace(name="A"), received)


@pytest.mark.parametrize("within", [7.0, -1.0, float("nan")])
def test_a_site_that_tells_something_else_has_failed(within, monkeypatch):
    close = _Shortening.close
    monkeypatch.setattr(_Shortening, "close", lambda self, packed: {
        **close(self, packed), "adaptive_clip/within": torch.tensor(within)})  # fmt: skip
    with pytest.raises(SiteError, match="P402") as caught:
        federation([{"adaptive_clip": {}}]).rounds()
    assert "adaptive_clip/within" in str(caught.value) or "not finite" in str(caught.value)
