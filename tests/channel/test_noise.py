"""Noise on what leaves a site, or on the mean: how much it is, what it costs, and what does not go with it."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from channel_line import Line
from helpers import Federation, declare, table_sites
from polyclinic.errors import SiteError, StudyError
from polyclinic.options import EntryError
from polyclinic.parts import Step, build_part
from polyclinic.privacy import Budget, Event, Ledger, epsilon
from polyclinic.privacy.draws import RepeatableDraws, SystemDraws, gaussian, laplace
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.site.spending import Spending
from polyclinic.study.job import Job

MODEL = {"mlp": {"hidden": [9]}}
CLIP = {"clip": {"norm": 0.5}}
DELTA = 1e-5


def federation(channel, data=None, **options):
    training = {"rounds": 3} | options.pop("training", {})
    return Federation(data or table_sites(), [{"fedavg": {"channel": channel, "label": "noisy"}}], model=MODEL,
                      training=training, **options)  # fmt: skip


class Noisy(Line):
    """A channel of one site with noise from a seed, or from the system."""

    def __init__(self, *entries, system=False, **options):
        super().__init__(*entries, **options)
        self.system = system
        for end in self.ends.values():
            begin = end.begin

            def with_draws(view, received, begin=begin):
                view.draws = lambda *names: (
                    SystemDraws() if self.system else RepeatableDraws(generator(3, self.number, *names))
                )
                return begin(view, received)

            end.begin = with_draws


# How much -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [False, True])
def test_gaussian_noise_has_the_deviation_that_the_clip_says(system):
    """σ C = 1.5 · 0.2 = 0.3, around a change that is shortened from length 5 to 0.2."""
    line = Noisy(("clip", {"norm": 0.2}), ("gaussian_noise", {"noise": 1.5}), shapes=[(40_000,)], system=system)
    change = torch.zeros(40_000)
    change[:2] = torch.tensor([3.0, 4.0])
    sent = line.send(change)["change"]
    rest = sent[2:].double()
    assert rest.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(rest.mean().item()) < 5 * 0.3 / 200
    assert rest.square().mean().sqrt().div(rest.abs().mean()).item() == pytest.approx(math.sqrt(math.pi / 2), rel=0.02)


@pytest.mark.parametrize("system", [False, True])
def test_laplace_noise_has_the_scale_that_is_asked_for(system):
    """b C = 0.5 · 2 = 1: mean size 1, deviation √2; the change is shortened from Σ|Δ| = 8 to 2."""
    line = Noisy(("laplace_noise", {"norm": 2.0, "noise": 0.5}), shapes=[(40_000,)], system=system)
    change = torch.zeros(40_000)
    change[0], change[1] = 6.0, -2.0
    sent = torch.stack([line.send(change)["change"].double() for _ in range(60)])
    rest = sent[0, 2:]
    assert rest.abs().mean().item() == pytest.approx(1.0, rel=0.03)
    assert rest.std().item() == pytest.approx(math.sqrt(2), rel=0.03)
    assert sent[:, 0].mean().item() == pytest.approx(1.5, abs=4 * math.sqrt(2 / 60))
    assert sent[:, 1].mean().item() == pytest.approx(-0.5, abs=4 * math.sqrt(2 / 60))


def test_the_two_sources_draw_from_the_same_distributions():
    for draw in (gaussian, laplace):
        seeded, system = (draw(200_000, source) for source in (RepeatableDraws(generator("a")), SystemDraws()))
        marks = torch.tensor([0.001, 0.05, 0.25, 0.5, 0.8, 0.99, 0.9995], dtype=torch.float64)
        torch.testing.assert_close(seeded.quantile(marks), system.quantile(marks), rtol=0.08, atol=0.02)


def test_the_sparse_vector_sends_a_share_of_values_around_the_clipped_ones():
    """With next to no noise (ε = 1e9): the first that pass, clipped; those below the threshold never."""
    options = {"epsilon": 1e9, "share": 0.25, "bound": 0.5, "threshold": 0.1}
    line, change = Noisy(("sparse_vector", options), shapes=[(40,)]), torch.full((40,), 0.05)
    change[:20:2], change[1:20:2] = 3.0, -0.3
    often = torch.zeros(40)
    for _ in range(200):
        sent = line.send(change)["change"]
        assert int((sent != 0).sum()) == 10
        torch.testing.assert_close(sent[sent > 0], torch.full_like(sent[sent > 0], 0.5), rtol=0, atol=1e-4)
        torch.testing.assert_close(sent[sent < 0], torch.full_like(sent[sent < 0], -0.3), rtol=0, atol=1e-4)
        often += sent != 0
    assert not often[20:].any()
    assert often[:20].min() > 60, "they are gone through in an order by lot"


def test_the_sparse_vector_has_as_much_noise_as_its_epsilon_asks_for():
    """c = 5 of 50 weights, γ = 2, ε = 3: (2 c)^⅔ = 4.64, ε₃ = 3 · 4.64 / (1 + 2 · 4.64) = 1.354, scale 2 c γ / ε₃."""
    line = Noisy(("sparse_vector", {"epsilon": 3.0, "share": 0.1, "bound": 2.0}), shapes=[(50,)])
    change = torch.full((50,), 1.0)
    values = torch.cat([(sent := line.send(change)["change"])[sent != 0] for _ in range(4000)]).double()
    assert (values - 1).abs().mean().item() == pytest.approx(2 * 5 * 2 / 1.3541, rel=0.05)


def test_central_noise_is_as_large_as_the_share_of_the_largest_site():
    """Weights 3, 1, 1: σ C · 3 / 5 = 2 · 0.5 · 0.6."""
    sites = {"Aachen": 30, "Bonn": 10, "Celle": 10}
    data = table_sites(sites, features=400)
    options = {"training": {"rounds": 1}}
    noisy, plain = (
        Federation(data, [{"fedavg": {"channel": channel}}], model={"mlp": {"hidden": [50]}}, **options).state()
        for channel in ([CLIP, {"central_noise": {"noise": 2.0}}], [CLIP])
    )
    assert (noisy - plain).double().std().item() == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("hidden", ["secure_sum", {"secure_sum": {"least": 2, "group_size": 2}}], ids=str)
def test_central_noise_is_as_large_where_the_server_sees_sums(hidden):
    """Weights 3, 1, 1, 1 in one sum or in two groups: σ C · 3 / 6 = 2 · 0.5 · 0.5."""
    data = table_sites({"Aachen": 30, "Bonn": 10, "Celle": 10, "Dresden": 10}, features=400)
    noisy, plain = (
        Federation(data, [{"fedavg": {"channel": channel, "label": "x"}}], model={"mlp": {"hidden": [50]}}).state()
        for channel in ([CLIP, {"central_noise": {"noise": 2.0}}, hidden], [CLIP, hidden])
    )
    assert (noisy - plain).double().std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("part", ["gaussian_noise", "central_noise"])
def test_folds_have_noise_of_their_own(part, monkeypatch):
    import polyclinic.channel.noise as module

    drawn = []

    def noted(count, draws):
        drawn.append(gaussian(count, draws))
        return drawn[-1]

    monkeypatch.setattr(module, "gaussian", noted)
    made = federation([CLIP, {part: {"noise": 1.0}}], table_sites({"A": 33, "B": 24, "C": 27}, part=None),
                      evaluation={"folds": 2})  # fmt: skip
    made.rounds()
    made.fold = made.prepare(1)
    made.rounds()
    assert len({tuple(one.tolist()) for one in drawn}) == len(drawn) >= 6


def test_seeds_and_rounds_have_noise_of_their_own():
    made = federation([CLIP, {"gaussian_noise": {"noise": 1.0}}])
    assert torch.equal(made.state(), made.state())
    assert not torch.equal(made.state(seed=1) - made.initial(1), made.state() - made.initial(0))


# What it costs --------------------------------------------------------------------------------------------------------


def rows(channel, **options):
    options = {"evaluation": {"folds": 2}, **options}
    made = federation(channel, table_sites({"Aachen": 33, "Bonn": 24, "Celle": 27}, part=None), **options)
    return made, made.outcome().privacy


@pytest.mark.parametrize(("part", "events"), [
    # A site's data in the place of others: the change may move by twice the norm.
    ({"gaussian_noise": {"noise": 3.0}}, [Event.gaussian(1.5, count=3)]),
    ({"laplace_noise": {"noise": 4.0}}, [Event.pure(0.5, count=3)]),
    ({"sparse_vector": {"epsilon": 0.7}}, [Event.pure(0.7, count=3)]),
])  # fmt: skip
def test_a_training_costs_all_its_rounds_at_each_site(part, events):
    _, found = rows([CLIP, part])
    assert [row["site"] for row in found] == ["Aachen", "Bonn", "Celle"]
    assert {row["epsilon"] for row in found} == {epsilon(events, DELTA)}
    assert {(row["unit"], row["steps"], row["delta"]) for row in found} == {("a patient", 3, DELTA)}


def test_the_server_s_noise_is_for_sites():
    _, (row,) = rows([CLIP, {"central_noise": {"noise": 3.0}}])
    assert (row["site"], row["unit"], row["units"]) == ("federation", "a site", 3)
    assert row["epsilon"] == epsilon([Event.gaussian(1.5, count=3)], DELTA)
    assert math.isnan(row["lifetime_epsilon"]), "what other trainings cost is not known"


def test_several_trainings_cost_more_than_one():
    made = federation([CLIP, {"gaussian_noise": {"noise": 3.0}}], table_sites({"A": 33, "B": 24, "C": 27}, part=None),
                      evaluation={"folds": 2})  # fmt: skip
    first, second = (made.outcome(seed=seed).privacy for seed in (0, 1))
    assert first[0]["epsilon"] == first[0]["lifetime_epsilon"] == second[0]["epsilon"]
    assert second[0]["lifetime_epsilon"] == epsilon([Event.gaussian(1.5, count=6)], DELTA)


def with_budget(channel, budget, topology="star", **options):
    made = federation(channel, table_sites({"A": 33, "B": 24, "C": 27}, part=None), evaluation={"folds": 2}, **options)
    declared = declare(
        model=MODEL, training={"rounds": 3, "batch_size": 8, **options.get("training", {})}, privacy=budget,
        evaluation={"folds": 2, "validation": 0, "best_round": "last"},
        methods=[{"fedavg": {"channel": channel, "topology": topology, "label": "noisy"}}],
    )  # fmt: skip
    made.declaration = made.runner.declaration = made.runner.planner.declaration = declared
    return made


@pytest.mark.parametrize("part", ["gaussian_noise", "laplace_noise", "sparse_vector", "central_noise"])
def test_noise_is_found_for_a_budget(part):
    """It keeps the budget and leaves next to nothing of it."""
    for row in with_budget([CLIP, part], {"epsilon": 2.0, "delta": 1e-4}).outcome().privacy:
        assert 1.99 < row["epsilon"] <= 2.0


@pytest.mark.parametrize("part", ["gaussian_noise", "central_noise"])
def test_training_ends_with_the_budget_and_its_model_is_used(part):
    """Noise 3: a round costs ε = 3.38 at 1e-5 or so; three are within 7, ten are not."""
    channel, training = [CLIP, {part: {"noise": 3.0}}], {"rounds": 10}
    allowed = max(n for n in range(1, 11) if epsilon([Event.gaussian(1.5, count=n)], DELTA) <= 7)
    assert 1 <= allowed < 10
    found = with_budget(channel, {"epsilon": 7.0}, training=training).outcome()
    assert {row["round"] for row in found.rounds} == set(range(allowed))
    assert all(row["epsilon"] <= 7 and row["steps"] == allowed for row in found.privacy)
    assert any(f"ended after {allowed} of 10 rounds" in note for note in found.notes)
    assert len(found.predictions)


@pytest.mark.parametrize("part", [{"channel": [CLIP, {"gaussian_noise": {"noise": 1.0}}]},
                                  {"local": [{"dp_sgd": {"noise": 1.0}}]}], ids=str)  # fmt: skip
def test_each_turn_in_a_round_has_noise_of_its_own(part, monkeypatch):
    """In the topology incremental a site has several turns in a round: four, of six rounds over four sites."""
    import polyclinic.channel.noise as channel
    import polyclinic.client.private.noise as local

    drawn = []

    def noted(count, draws):
        drawn.append(gaussian(count, draws))
        return drawn[-1]

    monkeypatch.setattr(channel, "gaussian", noted)
    monkeypatch.setattr(local, "gaussian", noted)
    made = Federation(table_sites(), [{"fedavg": {**part, "topology": "incremental"}}], model=MODEL,
                      training={"rounds": 6, "local_steps": 1})  # fmt: skip
    made.rounds()
    assert len(drawn) == len({tuple(one.tolist()) for one in drawn}) == 24


def test_turns_in_a_round_keep_the_budget():
    """Noise 3: two turns are within ε = 3.2 at 1e-3, and the first of three sites has three in the first round."""
    channel, budget = [CLIP, {"gaussian_noise": {"noise": 3.0}}], {"epsilon": 3.2, "delta": 1e-3}
    assert epsilon([Event.gaussian(1.5, count=2)], 1e-3) <= 3.2 < epsilon([Event.gaussian(1.5, count=3)], 1e-3)
    made = with_budget(channel, budget, training={"rounds": 12}, topology="incremental")
    with pytest.raises(SiteError, match=r"P306 No round .*A has spent .* in 2 rounds"):
        made.rounds()
    assert made.engine.members["A"].spending.total() == (Event.gaussian(1.5, count=2),)


@pytest.mark.parametrize(("part", "words"), [
    ("gaussian_noise", "first round alone costs the patients of site A .*ε = 1 at"),
    ("central_noise", "server's noise"),
])  # fmt: skip
def test_a_budget_that_no_round_keeps_is_said(part, words):
    with pytest.raises(SiteError, match=f"P306 No round .*{words}"):
        with_budget([CLIP, {part: {"noise": 0.5}}], {"epsilon": 1.0}).rounds()


def test_rounds_within_a_budget_are_as_many_as_fit():
    events = (Event.gaussian(1.5),)
    for budget in (0.5, 3.0, 5.0, 9.0, 100.0):
        expected = max([n for n in range(1, 21) if epsilon([Event.gaussian(1.5, count=n)], DELTA) <= budget], default=0)
        assert Budget(budget, DELTA).rounds(events, 20) == expected


def test_a_run_that_was_stopped_costs_no_less_and_no_more(tmp_path):
    """In a simulation the same noise comes again, so nothing more is told; the ledger has each round once."""

    class Killed(BaseException):
        pass

    def run(folder, stop=None):
        made = federation(
            [CLIP, {"gaussian_noise": {"noise": 3.0}}], table_sites({"A": 33, "B": 24, "C": 27}, part=None),
            evaluation={"folds": 2}, training={"rounds": 4}, folder=folder / "sites",
        )  # fmt: skip

        def report(done, _):
            if done == stop:
                raise Killed

        job = Job((made.method(),), 0, 0)
        found = made.runner.run(job, made.fold, checkpoint=Checkpoint(folder / "job"), report=report)
        (tensors,) = found.models.values()
        return found.privacy, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    whole = run(tmp_path / "whole")
    for stop in (1, 3):
        with pytest.raises(Killed):
            run(tmp_path / str(stop), stop)
        assert run(tmp_path / str(stop)) == whole
        ledger = Ledger(tmp_path / str(stop) / "sites" / "A" / "privacy.jsonl")
        assert [(entry.round, entry.attempt) for entry in ledger.entries()] == [(n, 1) for n in range(4)]


def test_at_a_hospital_a_round_that_is_done_again_costs_again(tmp_path: Path):
    spending = Spending("Aachen", tmp_path / "privacy.jsonl", real=True)
    for number in (0, 1, 1, 2):
        spending.record("run", number, [Event.gaussian(2.0)])
    assert spending.of("run") == (Event.gaussian(2.0, count=4),)
    again = Spending("Aachen", tmp_path / "privacy.jsonl", real=True)
    again.record("run", 2, [Event.gaussian(2.0)])
    again.record("other", 0, [Event.gaussian(2.0)])
    assert again.of("run") == (Event.gaussian(2.0, count=5),)
    assert again.total() == (Event.gaussian(2.0, count=6),)
    assert again.rounds("run", 2) == 5


# What leaves besides --------------------------------------------------------------------------------------------------


def test_the_training_loss_stays_at_the_site():
    _, found = federation([CLIP, {"gaussian_noise": {"noise": 1.0}}]).rounds()
    assert all(math.isnan(row["loss"]) for row in found)
    _, found = federation([CLIP]).rounds()
    assert all(math.isfinite(row["loss"]) for row in found)


# What does not go together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "words"), [
    ({"channel": ["gaussian_noise"]}, "no step before it bounds"),
    ({"channel": ["central_noise"]}, "no step before it bounds"),
    ({"channel": [{"gaussian_noise": {"noise": 1}}, "clip"]}, "no step before it bounds"),
    ({"channel": ["clip", "float16", {"gaussian_noise": {"noise": 1}}]}, "works on the change"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}], "server": ["median"]}, "a mean of all"),
    ({"channel": ["clip", {"gaussian_noise": {"noise": 1}}], "local": ["control_variates"]}, "tells more of a site"),
    ({"channel": ["clip", {"gaussian_noise": {"noise": 1}}], "local": ["label_shares"]}, "tells more of a site"),
    ({"channel": ["clip", {"gaussian_noise": {"noise": 1}}], "server": ["loss_weights"]}, "tells more of a site"),
    ({"channel": ["clip", {"gaussian_noise": {"noise": 1}}],
      "training": {"participation": {"highest_loss": {"sites": 2}}}}, "training loss"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}], "server": ["norm_bound"]}, "what others count for"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}, "top_k"]}, "which can be longer"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}, "qsgd", "zstd"]}, "which can be longer"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}, "power_sgd", "secure_sum"]}, "which can be longer"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}], "training": {"class_weights": "balanced"}}, "exact counts"),
    ({"local": [{"dp_sgd": {"noise": 1}}], "training": {"class_weights": "balanced"}}, "exact counts of patients"),
    ({"local": ["dp_sgd"], "channel": ["clip", "gaussian_noise"]}, "from the budget, which"),
    ({"local": ["dp_sgd"], "channel": ["clip", {"gaussian_noise": {"noise": 1}}]}, "which gaussian_noise spends, too"),
    ({"local": [{"dp_sgd": {"noise": 1}}], "channel": ["clip", "gaussian_noise"]}, "which dp_sgd spends, too"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_sentence(entry, words):
    with pytest.raises(EntryError, match="P104") as caught:
        Federation(table_sites(), [{"fedavg": entry}], model=MODEL)
    assert words in str(caught.value)


def test_what_a_coding_sends_later_is_longer_than_the_clip_says():
    """Why it is refused under `central_noise`: four weights of 1/2 in each round, of which one is sent."""
    line = Line(("clip", {"norm": 1.0}), ("top_k", {"share": 0.25}), shapes=[(4,)])
    lengths = [float(line.through(torch.ones(4)).norm()) for _ in range(4)]
    assert lengths == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("share", ["body", "head", "no_norm", "no_norm_statistics"])
def test_whole_models_of_which_noise_reaches_a_part_alone_are_refused(share):
    noisy = {"channel": [CLIP, {"gaussian_noise": {"noise": 1}}], "share": share}
    with pytest.raises(EntryError, match=r"P104 .*keeps at the sites has no noise of gaussian_noise"):
        Federation(table_sites(), [{"fedavg": noisy}], model=MODEL, evaluation={"unseen_sites": True})
    Federation(table_sites(), [{"fedavg": noisy}], model=MODEL)
    for entry in ({**noisy, "share": "all"}, {"local": [{"dp_sgd": {"noise": 1}}], "share": share}):
        Federation(table_sites(), [{"fedavg": entry}], model=MODEL, evaluation={"unseen_sites": True})


def test_sums_of_training_patients_without_noise_are_refused():
    entry = {"task": "survival", "methods": [{"fedavg": {"channel": [CLIP, {"gaussian_noise": {"noise": 1}}]}}]}
    times = {"evaluation": {"times": [30, 60]}}
    with pytest.raises(EntryError, match=r"P104 .*sums over training patients"):
        declare(**entry, **times)
    declare(**entry)
    declare(**entry, **times, training={"loss": "discrete_time"})


@pytest.mark.parametrize("entry", [
    {"local": ["dp_sgd"], "channel": ["clip", "central_noise"]},
    {"local": [{"dp_sgd": {"noise": 1}}], "channel": ["clip", {"gaussian_noise": {"noise": 1}}]},
    {"channel": ["clip", {"central_noise": {"noise": 1}}, "zstd"]},
    {"channel": ["clip", {"gaussian_noise": {"noise": 1}}, "top_k"]},
    {"local": ["dp_sgd"], "server": ["norm_bound"]},
    {"local": ["dp_sgd"], "training": {"class_weights": [1, 4]}},
], ids=str)  # fmt: skip
def test_what_goes_together_is_not_refused(entry):
    Federation(table_sites(), [{"fedavg": {**entry, "label": "x"}}], model=MODEL)


@pytest.mark.parametrize("noise", [0, -1, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("part", ["gaussian_noise", "laplace_noise", "central_noise"])
def test_noise_that_is_none_is_refused(part, noise):
    with pytest.raises(EntryError, match="P102"):
        federation([CLIP, {part: {"noise": noise}}])


@pytest.mark.parametrize("budget", [
    {"epsilon": 0}, {"epsilon": -1}, {"epsilon": float("nan")}, {"epsilon": float("inf")}, {"delta": 0}, {"delta": 1},
    {"delta": float("nan")},
])  # fmt: skip
def test_budgets_that_are_none_are_refused(budget):
    channel = [CLIP, {"gaussian_noise": {"noise": 1.0}}]
    with pytest.raises(EntryError, match="P102"):
        with_budget(channel, budget)


def test_a_budget_without_noise_is_refused():
    with pytest.raises(EntryError, match=r"P104 .*no method has noise"):
        with_budget([CLIP], {"epsilon": 1.0})


def test_noise_without_a_size_and_without_a_budget_is_refused():
    for part in ("gaussian_noise", "laplace_noise", "sparse_vector", "central_noise"):
        with pytest.raises(StudyError, match=r"P102 .*no `privacy`"):
            federation([CLIP, part]).rounds()


@pytest.mark.parametrize("part", ["gaussian_noise", "laplace_noise", "sparse_vector", "central_noise"])
def test_statistics_of_batches_would_be_without_noise(part):
    options = {"epsilon": 1.0} if part == "sparse_vector" else {"noise": 1.0}
    made = Federation(table_sites(), [{"fedavg": {"channel": [CLIP, {part: options}]}}],
                      model={"mlp": {"hidden": [5], "norm": "batch"}})  # fmt: skip
    with pytest.raises(StudyError, match=r"P104 .*statistics of normalisation"):
        made.rounds()


def test_a_change_of_any_size_is_shortened_to_the_length():
    for scale in (1e-30, 1e-3, 1.0, 7.0, 1e30):
        change = torch.tensor([3.0, -4.0, 12.0]) * scale
        sent = build_part("clip", {"norm": 2.0}).close({"change": change})["change"].double()
        assert float(sent.norm()) <= 2.0
        assert float(sent.norm()) == pytest.approx(min(2.0, 13 * scale), rel=1e-6)
        assert torch.allclose(sent / sent.norm(), change.double() / change.double().norm())


def test_a_site_s_own_budget_is_for_all_its_trainings(tmp_path: Path):
    """Trainings of three rounds: the one in which all together would cost more than 4 ends before that."""
    channel, data = [CLIP, {"gaussian_noise": {"noise": 6.0}}], {"A": 33, "B": 24, "C": 27}
    allowed = max(n for n in range(1, 10) if epsilon([Event.gaussian(3.0, count=n)], DELTA) <= 4.0)
    assert 3 < allowed < 9
    sites = table_sites(data, part=None)
    done = []
    for seed in (0, 1, 2):
        made = federation(channel, sites, evaluation={"folds": 2})
        site = made.engine.members["B"]  # a new process each time, at the same ledger
        site.spending = Spending("B", tmp_path / "privacy.jsonl", real=True, lifetime=(4.0, DELTA))
        try:
            found = made.outcome(seed=seed)
        except SiteError as error:
            if "by its policy" not in str(error):
                raise
            done.append(0)
            continue
        done.append(len({row["round"] for row in found.rounds}))
        row = next(row for row in found.privacy if row["site"] == "B")
        assert row["lifetime_epsilon"] <= 4.0
    assert sum(done) == allowed


@pytest.mark.parametrize("name", ["gaussian_noise", "laplace_noise", "sparse_vector", "central_noise"])
def test_a_part_that_knows_no_size_of_noise_sends_nothing_rather_than_no_noise(name):
    """Such as at a site whose server has left `clip` or the budget out of what it tells."""
    end = build_part(name, {})
    end._draws = RepeatableDraws(generator("a"))
    packed = {"change": torch.ones(4), "statistics": torch.zeros(0)}
    step = Step(torch.ones(4), torch.zeros(0), {"A": 1.0})
    end.now = SimpleNamespace(seed=0, fold=0, number=0, real=False)
    with pytest.raises(StudyError, match=r"P102 .*nothing is sent"):
        end.finish(step) if name == "central_noise" else end.close(packed)
    if name == "gaussian_noise":
        bare = build_part(name, {"noise": 1.0})
        bare._draws = end._draws
        with pytest.raises(StudyError, match=r"P102 .*no bound of the change"):
            bare.close(packed)
