"""Shares of one noise in a secure sum: how much it is, what it hides, who may be missing, and what does not go."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import Federation, declare, recorded, table_sites
from polyclinic.channel.distributed_noise import Share
from polyclinic.channel.secure_sum import About
from polyclinic.errors import SiteError, StudyError, TrainingError
from polyclinic.options import EntryError
from polyclinic.parts.building import build_parts, tell_parts
from polyclinic.privacy import Event, Ledger, epsilon
from polyclinic.privacy.discrete import discrete_gaussian
from polyclinic.privacy.draws import RepeatableDraws, SystemDraws
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped
from polyclinic.study.job import Job

SITES = {"Aachen": 12, "Bonn": 7, "Celle": 15, "Dresden": 9, "Essen": 10}
CLIP = {"clip": {"norm": 0.5}}
DELTA = 1e-5


def noisy(**options):
    return {"distributed_noise": options}


def federation(channel, sites=SITES, features=4, hidden=9, entry=None, **options):
    training = {"rounds": 1} | options.pop("training", {})
    options.setdefault("model", {"mlp": {"hidden": [hidden]}})
    return Federation(table_sites(sites, features=features, part=options.pop("part", "train")),
                      [{"fedavg": {"channel": channel, "label": "noisy", **(entry or {})}}], training=training,
                      **options)  # fmt: skip


def silent(made, function, site):
    """A site that does not answer."""
    original = made.engine.call

    def call(asked, requests):
        for name, reply in original(asked, requests):
            gone = (asked.rpartition("/")[2], name) == (function, site)
            yield name, SiteError("P401", f"{name} is away.", site=name) if gone else reply

    made.engine.call = call
    return made


# How much -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "largest", "together"), [("cases", 15, 53), ("uniform", 1, 5)])
@pytest.mark.parametrize(("away", "there"), [(None, 5), ("train", 4)])
def test_the_mean_has_the_noise_of_the_sites_that_are_there(weights, largest, together, away, there):
    """Four of five must be left, and one may be colluding: three shares are σ C, four or five of them are more.

    Without Bonn (7 cases) the mean is over 46 cases or 4 sites.
    """
    training = {"weights": weights, "quorum": 4}
    channels = ([CLIP, noisy(noise=2.0), "secure_sum"], [CLIP, "secure_sum"])
    found, plain = (federation(channel, features=400, hidden=50, training=training) for channel in channels)
    if away:
        found, plain = silent(found, away, "Bonn"), silent(plain, away, "Bonn")
        together -= 7 if weights == "cases" else 1
    noise = (found.state() - plain.state()).double()
    assert noise.std().item() == pytest.approx(2 * 0.5 * largest * math.sqrt(there / 3) / together, rel=0.03)
    assert abs(noise.mean().item()) < 5 * noise.std().item() / math.sqrt(len(noise))


def whole_numbers(weights, share, seed=0):
    """By hand: site -> its whole numbers with noise from the training's seed, as plain Python numbers."""
    made = federation([CLIP])
    with recorded(made.engine) as said:
        made.rounds()
    found = {}
    for function, site, _, reply in said:
        if function != "train":
            continue
        scaled = (reply.tensors["change"].double() * weights[site] / share.step).tolist()
        draws = RepeatableDraws(generator(seed, "parts", site, 0, 0, "distributed_noise"))
        noise = discrete_gaussian(len(scaled), share.deviation, draws).tolist()
        found[site] = [round(value) + one for value, one in zip(scaled, noise, strict=True)]  # half to even
    return made, found


@pytest.mark.parametrize("stacked", [False, True])
def test_it_is_the_sum_of_whole_numbers_with_their_noise_to_the_bit(stacked):
    channel = [CLIP, noisy(noise=3.0), "secure_sum"]
    size = 4 * 9 + 9 + 9 * 2 + 2
    share = Share.fit(3.0, 0.5, weights=size, most_weight=15.0, sites=5, honest=3)
    assert share.step == 2.0**-14  # 7.5 / 2^16 = 2^-13.1
    assert share.length == pytest.approx(7.5 * 2**14 + math.sqrt(size) / 2, rel=2e-6)
    assert share.deviation == pytest.approx(3 * share.length / math.sqrt(3), abs=1)
    made, found = whole_numbers(SITES, share)
    total = torch.tensor([sum(column) for column in zip(*found.values(), strict=True)], dtype=torch.float64)
    expected = made.initial(0)[:size] + (total * share.step / 53).float()
    state = federation(channel, stacked=stacked).state()
    if stacked:  # changes differ in the last bits
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-4)
    else:
        assert torch.equal(state, expected)


def test_each_site_round_fold_and_seed_has_noise_of_its_own(monkeypatch):
    import polyclinic.channel.distributed_noise as module

    drawn = []

    def noted(*asked):
        drawn.append(discrete_gaussian(*asked))
        return drawn[-1]

    monkeypatch.setattr(module, "discrete_gaussian", noted)
    made = federation([CLIP, noisy(noise=1.0), "secure_sum"], part=None, evaluation={"folds": 2},
                      training={"rounds": 2})  # fmt: skip
    for fold in (0, 1):
        made.fold = made.prepare(fold)
        made.rounds()
    made.rounds(seed=1)
    assert len({tuple(one.tolist()) for one in drawn}) == len(drawn) == 5 * 2 * 3


# What it hides --------------------------------------------------------------------------------------------------------


def longest(weights, share, weight, norm):
    """Whole numbers of a change of length ``norm`` that rounding makes as long as it can."""
    level = norm / math.sqrt(weights) * weight / share.step
    return torch.full((weights,), (math.floor(level - 0.5) + 0.5 + 1e-9) * share.step / weight, dtype=torch.float64)


@settings(max_examples=150, deadline=None)
@given(
    noise=st.floats(0.05, 300), norm=st.floats(1e-4, 1e4), weights=st.integers(1, 5000), most=st.floats(0.5, 5000),
    sites=st.integers(3, 40), spare=st.integers(0, 20), seed=st.integers(0, 9), near=st.booleans(),
)  # fmt: skip
@example(noise=1.0, norm=1.0, weights=1, most=1.0, sites=3, spare=0, seed=0, near=True)
def test_no_change_is_longer_than_the_noise_is_for(noise, norm, weights, most, sites, spare, seed, near):
    """Whole numbers of every change are within the length, rounding costs 1 % of it at most, and the largest sum with
    the largest noise does not wrap."""
    part = build_parts([("clip", {"norm": norm}), ("distributed_noise", {"noise": noise, "bits": 64})])
    made = part["distributed_noise"]
    honest = max(sites - spare, 1)
    ring, share = made.agreed(weights, sites, honest + 1, most_weight=most, total_weight=most * sites)
    if near:
        values = longest(weights, share, most, norm)
    else:
        values = torch.randn(weights, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        values *= norm / values.norm()
    numbers = ring.encode(values.clamp(-norm, norm), most)[:-1]
    length = math.sqrt(sum(one * one for one in numbers.tolist()))
    assert length <= share.length <= 1.01 * most * norm / share.step
    assert math.sqrt(honest) * share.deviation >= noise * length
    assert sites * math.ceil(most * norm / share.step + 1) + share.most < 2 ** (ring.bits - 1)
    assert share.deviation * math.sqrt(honest) <= noise * share.length * 1.0001 + math.sqrt(honest)


def test_rounding_that_makes_a_change_longer_is_within_the_bound():
    """All of 4096 numbers are rounded up by a half: the whole numbers are √T / 2 = 32 longer, and that is the bound."""
    share = Share.fit(1.0, 1.0, weights=4096, most_weight=1.0, sites=3, honest=2)
    assert share.step == 2.0**-16
    values = longest(4096, share, 1.0, 1.0)
    numbers = (values / share.step).round()
    assert float(values.norm()) <= 1
    assert float(numbers.norm() - values.norm() / share.step) == pytest.approx(32, abs=1e-3)
    assert float(numbers.norm()) <= share.length == pytest.approx(65536 + 32, rel=1e-5)


def test_a_change_that_no_clip_has_shortened_is_not_sent():
    part = build_parts([("clip", {"norm": 1.0}), ("distributed_noise", {"noise": 1.0})])["distributed_noise"]
    part._draws = SystemDraws()
    _, share = part.agreed(4, 3, 3, most_weight=1.0, total_weight=3.0)
    numbers = torch.full((4,), round(0.51 / share.step), dtype=torch.int32)
    with pytest.raises(TrainingError, match=r"P301 .*length 1\.01999, and the noise is for 1\.00002"):
        part.add_(numbers, share)
    assert torch.equal(numbers, torch.full((4,), round(0.51 / share.step), dtype=torch.int32))
    part.add_(numbers // 2, share)


def agreed(sites, least=3, *, noise=1.0, colluding=1, weights=None, threshold=None, **options):
    """What all parties find of a sum of so many sites."""
    entries = [("clip", {"norm": 1.0}), ("distributed_noise", {"noise": noise, "colluding": colluding, **options}),
               ("secure_sum", {"least": least, "threshold": threshold})]  # fmt: skip
    parts = build_parts(entries)
    shaped = {"change": Shaped("float32", "T"), "statistics": Shaped("float32", "S")}
    tell_parts(parts, dict.fromkeys(parts, shaped), {"T": 1000, "S": 0})
    weights = weights or [1.0] * sites
    about = About(b"t" * 32, 0, tuple(f"site {n}" for n in range(sites)), max(weights), sum(weights), weights[0])
    return parts["secure_sum"].agreed(about, 0)


@pytest.mark.parametrize(("sites", "least", "colluding", "honest"), [
    (3, 3, 1, 2), (5, 3, 1, 3), (5, 3, 0, 4), (5, 5, 2, 3), (8, 4, 3, 3), (30, 3, 1, 20), (50, 3, 1, 39), (2, 2, 1, 1),
])  # fmt: skip
def test_shares_are_for_the_fewest_sites_that_a_sum_is_opened_with(sites, least, colluding, honest):
    """More than two thirds of up to 30, and four fifths of 50; and the site itself is one of those that count."""
    terms, ring, share = agreed(sites, least, colluding=colluding)
    assert share.honest == honest == terms.needed - colluding
    assert math.sqrt(honest) * share.deviation >= share.length
    assert terms.bits == ring.bits == 32


def test_a_server_that_names_fewer_sites_gets_greater_shares():
    few, many = agreed(4)[2], agreed(12)[2]
    assert (few.honest, many.honest) == (2, 8)
    assert few.deviation == pytest.approx(2 * many.deviation, rel=1e-4)


def test_the_largest_weight_counts():
    """A site of 3 of 5 cases moves the sum three times as far as one of 1."""
    share, equal = agreed(3, weights=[3.0, 1.0, 1.0])[2], agreed(3)[2]
    assert share.step * share.deviation == pytest.approx(3 * equal.step * equal.deviation, rel=1e-3)


# What it costs --------------------------------------------------------------------------------------------------------


def test_a_round_costs_each_site_what_a_concentrated_step_costs():
    made = federation([CLIP, noisy(noise=3.0), "secure_sum"], part=None, evaluation={"folds": 2},
                      training={"rounds": 3})  # fmt: skip
    found = made.outcome().privacy
    assert [row["site"] for row in found] == list(SITES)
    expected = epsilon([Event.concentrated(1.5, 3)], DELTA)
    for row in found:
        assert (row["unit"], row["steps"], row["epsilon"]) == ("a patient", 3, expected)
        assert (row["part"], row["accountant"]) == ("distributed_noise", "rdp")
        assert row["mechanism"] == "discrete Gaussian, noise 1.5 × 3"
        assert row["trust"] == ("the patient's own site, and all but 1 of the sites in its secure sum, to add their "
                                "shares of the noise")  # fmt: skip


def with_budget(channel, rounds, budget):
    training, folds = {"rounds": rounds, "batch_size": 8}, {"folds": 2, "validation": 0, "best_round": "last"}
    made = federation(channel, part=None, evaluation=folds, training=training)
    declared = declare(model={"mlp": {"hidden": [9]}}, training=training, privacy=budget, evaluation=folds,
                       methods=[{"fedavg": {"channel": channel, "label": "noisy"}}])  # fmt: skip
    made.declaration = made.runner.declaration = made.runner.planner.declaration = declared
    return made


def test_noise_is_found_for_a_budget_the_same_at_sites_and_server():
    made = with_budget([CLIP, noisy(), "secure_sum"], 3, {"epsilon": 2.0, "delta": 1e-4})
    for row in made.outcome().privacy:
        assert 1.99 < row["epsilon"] <= 2.0


def test_training_ends_with_the_budget():
    made = with_budget([CLIP, noisy(noise=3.0), "secure_sum"], 10, {"epsilon": 7.0})
    allowed = max(n for n in range(1, 11) if epsilon([Event.concentrated(1.5, n)], DELTA) <= 7)
    assert 1 <= allowed < 10
    found = made.outcome()
    assert {row["round"] for row in found.rounds} == set(range(allowed))
    assert all(row["epsilon"] <= 7 and row["steps"] == allowed for row in found.privacy)


def test_without_a_size_and_without_a_budget_it_is_refused():
    with pytest.raises(StudyError, match=r"P102 .*no `privacy`"):
        federation([CLIP, noisy(), "secure_sum"]).rounds()


def test_a_run_that_was_stopped_costs_no_less_and_has_the_same_noise(tmp_path):
    class Killed(BaseException):
        pass

    def run(folder, stop=None):
        made = federation([CLIP, noisy(noise=3.0), "secure_sum"], part=None, evaluation={"folds": 2},
                          training={"rounds": 3}, folder=folder / "sites")  # fmt: skip

        def report(done, _):
            if done == stop:
                raise Killed

        found = made.runner.run(Job((made.method(),), 0, 0), made.fold, checkpoint=Checkpoint(folder / "job"),
                                report=report)  # fmt: skip
        (tensors,) = found.models.values()
        return found.privacy, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "stopped", 1)
    assert run(tmp_path / "stopped") == whole
    ledger = Ledger(tmp_path / "stopped" / "sites" / "Aachen" / "privacy.jsonl")
    assert [(entry.round, entry.attempt, entry.events) for entry in ledger.entries()] == [
        (n, 1, (Event.concentrated(1.5),)) for n in range(3)
    ]


def test_a_round_that_is_done_again_at_hospitals_has_new_noise_and_costs_again(tmp_path):
    """The first time its sum is not opened: too few sites sign. What was drawn then is never used again."""
    made = federation([CLIP, noisy(noise=3.0), "secure_sum"], folder=tmp_path / "sites")
    drawn = []
    for site in made.engine.members.values():
        site.spending.real = True
    import polyclinic.channel.distributed_noise as module

    original = module.discrete_gaussian

    def noted(count, deviation, draws):
        assert isinstance(draws, SystemDraws)
        drawn.append(original(count, deviation, draws))
        return drawn[-1]

    module.discrete_gaussian = noted
    try:
        call = made.engine.call
        silent(silent(made, "agree", "Bonn"), "agree", "Celle")
        with pytest.raises(SiteError, match="P402"):
            made.rounds()
        made.engine.call = call
        made.rounds()
    finally:
        module.discrete_gaussian = original
    assert len({tuple(one.tolist()) for one in drawn}) == len(drawn) == 10
    spent = made.engine.members["Aachen"].spending.total()
    assert spent == (Event.concentrated(1.5, 2),)


# What does not go together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "words"), [
    ({"channel": ["clip", noisy(noise=1)]}, "Name `secure_sum` directly after it"),
    ({"channel": ["clip", noisy(noise=1), "homomorphic_sum"]}, "a share of the noise of a secure sum, and none comes"),
    ({"channel": ["clip", noisy(noise=1), "zstd", "secure_sum"]}, "comes after zstd"),
    ({"channel": ["clip", "secure_sum", noisy(noise=1)]}, "comes after secure_sum"),
    ({"channel": [noisy(noise=1), "secure_sum"]}, "no step before it bounds"),
    ({"channel": ["clip", {"gaussian_noise": {"noise": 1}}, noisy(noise=1), "secure_sum"]}, "no step before it bounds"),
    ({"channel": ["clip", noisy(noise=1), "secure_sum"], "local": ["control_variates"]}, "tells more of a site"),
    ({"channel": ["clip", noisy(noise=1), "secure_sum"], "server": ["median"]}, "shows the server their sum alone"),
    ({"channel": ["clip", noisy(noise=1, colluding=3), "secure_sum"]}, "one of 3 sites, and with 3 of them colluding"),
    ({"channel": ["clip", noisy(noise=1, colluding=2), {"secure_sum": {"least": 2}}]}, "one of 2 sites, and with 2"),
    ({"channel": ["clip", noisy(), "secure_sum"], "local": ["dp_sgd"]}, "from the budget, which"),
    ({"channel": ["clip", noisy(noise=1), "secure_sum"], "training": {"class_weights": "balanced"}}, "exact counts"),
    ({"channel": ["clip", noisy(noise=1), "secure_sum"], "topology": "cyclic"}, "server between"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_sentence(entry, words):
    with pytest.raises(EntryError, match="P104") as caught:
        Federation(table_sites(SITES), [{"fedavg": entry}], model={"mlp": {"hidden": [5]}})
    assert words in str(caught.value)


@pytest.mark.parametrize("options", [
    {"noise": 0}, {"noise": -1}, {"noise": float("nan")}, {"noise": "1"}, {"noise": 1, "colluding": -1},
    {"noise": 1, "colluding": 0.5}, {"noise": 1, "bits": 16}, {"noise": 1, "colluding": False},
], ids=str)  # fmt: skip
def test_options_that_are_none_are_refused(options):
    with pytest.raises(EntryError, match="P102"):
        federation([CLIP, noisy(**options), "secure_sum"])


@pytest.mark.parametrize(("options", "words"), [
    ({"noise": 9000.0}, r"need 35 bits in steps of .* with noise of up to .*; 32 are there"),
    ({"noise": 1e300}, r"can't be shared by 3 sites: .* too much"),
])  # fmt: skip
def test_noise_that_can_t_be_is_refused_with_numbers(options, words):
    with pytest.raises(StudyError, match=f"P102 .*{words}"):
        federation([CLIP, noisy(**options), "secure_sum"]).rounds()


def test_what_does_not_fit_into_32_bits_fits_into_64():
    made = federation([CLIP, noisy(noise=9000.0, bits=64), "secure_sum"])
    with recorded(made.engine) as said:
        made.rounds()
    sent = [reply.tensors["change"] for function, _, _, reply in said if function == "train"]
    assert {tensor.dtype for tensor in sent} == {torch.int64}


def test_so_little_noise_that_sums_are_no_gaussians_is_refused():
    """With 1e-9 a share is the least that there is, σ = 1: enough for two sites; not for a million."""
    assert Share.fit(1e-9, 1.0, weights=10, most_weight=1.0, sites=3, honest=2).deviation == 1
    with pytest.raises(StudyError, match=r"P102 .*too little"):
        Share.fit(1e-7, 1.0, weights=10**15, most_weight=1e-3, sites=10**6, honest=10**6)


def test_statistics_of_batches_would_be_without_noise():
    made = federation([CLIP, noisy(noise=1.0), "secure_sum"], model={"mlp": {"hidden": [5], "norm": "batch"}})
    with pytest.raises(StudyError, match=r"P104 .*statistics of normalisation"):
        made.rounds()


def test_a_part_that_no_sum_adds_says_so_at_the_site():
    """Such as at a site whose server has left `secure_sum` out of what it tells."""
    part = build_parts([("clip", {}), ("distributed_noise", {"noise": 1.0})])["distributed_noise"]
    part.name = "distributed_noise"
    with pytest.raises(StudyError, match=r"P104 .*no secure sum adds"):
        part.at_site().meet(None)
    part = build_parts([("clip", {}), ("distributed_noise", {"noise": 1.0, "colluding": 3})])["distributed_noise"]
    with pytest.raises(StudyError, match=r"P102 .*opened with 3 of them or more, and 3 may be colluding: no noise"):
        part.agreed(4, 4, 3, most_weight=1.0, total_weight=4.0)
    bare = build_parts([("distributed_noise", {"noise": 1.0}), ("secure_sum", {})])["distributed_noise"]
    with pytest.raises(StudyError, match=r"P102 .*no bound of the change"):
        bare.agreed(4, 3, 3, most_weight=1.0, total_weight=3.0)


def test_groups_have_sums_with_noise_of_their_own():
    """Of two groups of three or more sites each sum has its own noise; a robust rule may compare them."""
    sites = dict.fromkeys("ABCDEFG", 8)
    channel = [CLIP, noisy(noise=2.0), {"secure_sum": {"group_size": 3}}]
    for entry in ({}, {"server": ["median"]}):
        assert federation(channel, sites=sites, entry=entry).state().isfinite().all()
