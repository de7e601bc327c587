"""Parts that a plug-in brings, each in one file, keep what their papers promise; none needs a changed line in src."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polyclinic
from helpers import has_numbers, recorded, site_of, table_site, table_sites
from plugin_helpers import failing, federation, plugged_in
from polyclinic.communication.exchange import Traffic
from polyclinic.errors import SiteError, StudyError
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.parts import LOCAL_PARTS, SERVER_PARTS, Batch, Now, ServerPart, SitePart, Turn, Update, build_part
from polyclinic.running.progress import Checkpoint
from polyclinic.study.described import described
from polyclinic.study.job import Job
from polyclinic.tasks import build_task


@pytest.fixture(scope="module", autouse=True)
def more():
    with plugged_in() as package:
        yield package


def state_of(entry="fedavg", **options):
    return federation(entry, **options).state()


def close(found, expected, tolerance=1e-6):
    return torch.allclose(found, expected, rtol=0, atol=tolerance)


def test_no_part_of_the_plugin_is_known_to_the_package():
    source = "".join(path.read_text() for path in Path(polyclinic.__path__[0]).rglob("*.py"))
    names = ("largest", "masked_sum", "common_direction", "common_statistics", "consistency:", "clusters", "buffered")
    assert not [name for name in names if f'"{name}"' in source]


def test_a_run_writes_down_what_parts_of_a_plugin_say_for_a_report_without_it():
    (method,) = federation({"procedure": "split"}).declaration.study_methods
    words, source = described([method])["parts"]["split"]
    assert words.startswith("Split learning: in each step a site sends features and labels")
    assert source.startswith("Gupta and Raskar, Distributed learning of deep neural network over multiple agents")
    assert source.endswith("2018")


# A gradient rule ------------------------------------------------------------------------------------------------------


def projected(gradient, direction, strength=1.0):
    found = torch.tensor(gradient)
    part = build_part("common_direction", {"strength": strength})
    part.gradient(found, found, found, {"direction": torch.tensor(direction)})
    return found


def test_what_goes_back_is_taken_out_of_a_gradient():
    """⟨g, d⟩ = 3 · 2 + 1 · 0, ‖d‖² = 4: g − 6/4 d = (0, 1). A step along −g = (3, 1) would have gone back along d."""
    assert projected([3.0, 1.0], [2.0, 0.0]).tolist() == [0.0, 1.0]
    assert projected([3.0, 1.0], [2.0, 0.0], strength=0.5).tolist() == [1.5, 1.0]


def test_a_gradient_that_goes_on_is_left_alone():
    assert projected([-3.0, 1.0], [2.0, 0.0]).tolist() == [-3.0, 1.0]
    assert projected([3.0, 1.0], [0.0, 0.0]).tolist() == [3.0, 1.0]


def test_many_sites_are_projected_as_each_alone():
    gradient = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [1.0, 4.0]])
    direction = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    rows = [projected(g, d) for g, d in zip(gradient.tolist(), direction.tolist(), strict=True)]
    assert torch.equal(projected(gradient.tolist(), direction.tolist()), torch.stack(rows))


def test_the_gradient_rule_begins_in_the_second_round():
    entry = {"local": ["common_direction"]}
    assert torch.equal(state_of(entry, training={"rounds": 1}), state_of(training={"rounds": 1}))
    assert (state_of(entry) - state_of()).abs().max() > 1e-3
    assert torch.equal(state_of({"local": [{"common_direction": {"strength": 0}}]}), state_of())


@pytest.mark.parametrize("entry", [
    {"local": ["common_direction"]}, {"channel": [{"largest": {"share": 0.3}}]}, {"channel": ["masked_sum"]},
    {"procedure": "buffered", "server": ["mean", "stale"]}, {"topology": "clusters"},
], ids=str)  # fmt: skip
def test_sites_are_trained_together_to_the_same_model(entry):
    training = {"step_seconds": 1.0}
    alone, together = (federation(entry, training=training, stacked=stacked) for stacked in (False, True))
    models = [one.rounds()[0].models for one in (alone, together)]
    assert models[0].keys() == models[1].keys()
    assert all(close(models[0][name], models[1][name], 1e-5) for name in models[0])
    assert not together.engine.members["Bonn"].run.not_stackable
    if entry.get("procedure") != "buffered":
        assert together.engine._trainers, "or they were trained one after another"


# Statistics of inputs -------------------------------------------------------------------------------------------------


def test_statistics_of_all_sites_are_those_of_all_cases():
    """Site means 0 and 4 with deviation 1, weights 1 and 3: mean 3, variance 1 + (9 + 3 · 1) / 4 = 4."""
    end = build_part("common_statistics", {}).at_server()
    told = {name: torch.tensor([value], dtype=torch.float64) for name, value in {"a": 0.0, "b": 4.0}.items()}
    one = torch.ones(1, dtype=torch.float64)
    end.meet({name: {"mean": mean, "deviation": one} for name, mean in told.items()}, {"a": 1.0, "b": 3.0})
    assert {name: value.item() for name, value in end.send("a").items()} == {"mean": 3.0, "deviation": 2.0}


def test_a_batch_is_moved_towards_the_statistics_of_all():
    """Own mean 2 and deviation 1, all sites' 5 and 3: 4 → (4 − 2) · 3 + 5 = 11, half of the way 7.5."""
    end = build_part("common_statistics", {"strength": 0.5}).at_site()
    end._own = {"mean": torch.tensor([2.0]), "deviation": torch.tensor([1.0])}
    given = end.begin(None, {"mean": torch.tensor([5.0]), "deviation": torch.tensor([3.0])})
    nothing = torch.empty(0)
    for shape in ((1, 1), (1, 1, 2, 2)):
        batch = Batch(torch.full(shape, 4.0), nothing, None, nothing, 0, nothing, nothing)
        assert torch.equal(end.batch(batch, given).inputs, torch.full(shape, 7.5))


def test_statistics_are_told_once_and_those_of_all_in_every_round():
    _, rows = federation({"local": ["common_statistics"]}).rounds()
    assert [("deviation" in row["extra_up"], "deviation" in row["extra_down"]) for row in rows] == [
        (number == 0, True) for number in range(3) for _ in range(4)
    ]
    first, later = (next(row["bytes_up"] for row in rows if row["round"] == number) for number in (0, 1))
    assert has_numbers(first - later, 2 * 5 * 8)


def test_statistics_change_what_is_trained():
    assert torch.equal(state_of({"local": [{"common_statistics": {"strength": 0}}]}), state_of())
    assert (state_of({"local": ["common_statistics"]}) - state_of()).abs().max() > 1e-3


# Unlabelled cases -----------------------------------------------------------------------------------------------------


class FakeView:
    """A site with unlabelled cases."""

    task = build_task("classification", 2)

    def __init__(self, inputs):
        self.inputs, self.asked = inputs, []

    def count(self, part):
        assert part == "unlabelled"
        return len(self.inputs)

    def cases(self, index, part):
        assert part == "unlabelled"
        self.asked.append(index)
        return self.inputs[index], torch.full((len(index),), -1)


def consistency(inputs, seed=3, **options):
    part = build_part("consistency", options)
    model = build_model("logistic", {}, (2,), 2, seed=0)
    model.load(torch.tensor([3.0, -1.0, 0.5, 2.0, 0.1, -0.2]))
    view = FakeView(inputs)
    part.begin(view, {})
    nothing = torch.empty(0)
    batch = Batch(torch.zeros(4, 2), nothing, model, nothing, seed, nothing, nothing)
    return part.loss(batch, {}), view, model


def test_two_views_of_unlabelled_cases_are_compared():
    inputs = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    loss, view, model = consistency(inputs, weight=2.0, noise=0.5, cases=2)
    source = torch.Generator().manual_seed(3)
    index = torch.randint(3, (2,), generator=source)
    weight, bias = model.vector[:4].view(2, 2), model.vector[4:]
    views = [inputs[index] + 0.5 * torch.randn(2, 2, generator=source) for _ in range(2)]
    first, second = (torch.softmax(view @ weight.T + bias, 1) for view in views)
    assert torch.allclose(loss.float(), 2.0 * (second - first).square().mean())
    assert loss > 1e-4
    assert torch.equal(view.asked[0], index)


def test_only_the_second_view_is_learned_from():
    loss, _, model = consistency(torch.tensor([[1.0, 2.0], [0.5, 0.5]]), noise=0.5)
    loss.backward()
    assert model.gradient.abs().max() > 1e-4


def test_without_noise_or_cases_nothing_is_added():
    assert consistency(torch.ones(3, 2), noise=0.0)[0] == 0
    assert consistency(torch.empty(0, 2))[0] is None
    assert consistency(torch.ones(3, 2), weight=0.0)[0] is None


# Top-k ----------------------------------------------------------------------------------------------------------------


def test_all_of_all_weights_are_fedavg():
    assert torch.equal(state_of({"channel": [{"largest": {"share": 1}}]}), state_of())


@given(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), st.floats(0.05, 1))
@settings(max_examples=50)
def test_what_was_sent_and_what_is_left_are_all_changes(values, share):
    """Over rounds: the sum of what the server opens, and what is left at the site, is the sum of the changes."""
    part = build_part("largest", {"share": share})
    here, there = part.at_site(), part.at_server()
    here.name = there.name = "largest"
    there.now = SimpleNamespace(weights=torch.zeros(4))
    total, opened = torch.zeros(4), torch.zeros(4)
    for number, value in enumerate(values):
        change = torch.tensor([value, 1.0, -2.0, 0.5 * number])
        packed = there.open(here.close({"change": change, "statistics": torch.zeros(0)}))
        total, opened = total + change, opened + packed["change"]
        assert (packed["change"] != 0).sum() <= -(-share * 4 // 1)
    assert close(opened + here.kept["left"], total, 1e-3)


def test_the_largest_changes_are_sent():
    part = build_part("largest", {"share": 0.5})
    here = part.at_site()
    here.name = "largest"
    packed = here.close({"change": torch.tensor([0.1, -3.0, 2.0, 0.0])})
    assert dict(zip(packed["largest/places"].tolist(), packed["change"].tolist(), strict=True)) == {1: -3.0, 2: 2.0}
    assert torch.equal(here.kept["left"], torch.tensor([0.1, 0.0, 0.0, 0.0]))


def test_what_is_left_counts_only_with_its_round():
    """Bonn's answer of the second round is lost; the third goes on from what was left after the first."""
    entry, kept = {"channel": [{"largest": {"share": 0.3}}]}, []
    for rounds in (1, 2, 3):
        one = federation(entry, training={"rounds": rounds, "quorum": 3})
        failing(one.engine, (1, "Bonn"))
        progress, _ = one.rounds()
        run = one.engine.members["Bonn"].run
        run.settle(progress.counted["Bonn"])
        kept.append(run.kept.parts["largest"]["left"])
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_less_is_sent():
    rows = [federation({"channel": [{"largest": {"share": share}}]}).rounds()[1][-1] for share in (1, 0.1)]
    # Of 52 weights 6, each with its place, and ten statistics.
    assert has_numbers(rows[0]["bytes_up"], (52 * 2 + 10) * 4)
    assert has_numbers(rows[1]["bytes_up"], (6 * 2 + 10) * 4)
    assert rows[1]["extra_up"] == "largest/places [6] 24 bytes"


# A secure sum ---------------------------------------------------------------------------------------------------------

SECURE = {"channel": ["masked_sum"]}


@pytest.mark.parametrize("weights", ["cases", "uniform"])
@pytest.mark.parametrize("absent", [(), ((1, "Bonn"),), ((0, "Aachen"), (1, "Dresden"), (2, "Bonn"), (2, "Celle"))])
def test_a_secure_sum_is_the_mean_of_those_who_answered(weights, absent):
    states = []
    for entry in ("fedavg", SECURE):
        one = federation(entry, training={"quorum": 2, "weights": weights})
        failing(one.engine, *absent)
        states.append(one.state())
    assert close(*states)
    assert (states[0] - state_of(training={"rounds": 1})).abs().max() > 1e-3


def test_what_a_site_sends_looks_like_noise():
    one = federation(SECURE)
    with recorded(one.engine) as said:
        one.rounds()
    sent = [reply.tensors for function, _, _, reply in said if function == "train"]
    bits = torch.stack([(tensors["change"] >> place) & 1 for tensors in sent for place in range(64)]).double()
    assert {tensors["change"].dtype for tensors in sent} == {torch.int64}
    assert abs(bits.mean() - 0.5) < 0.02
    plain = federation()
    with recorded(plain.engine) as said:
        plain.rounds()
    change = next(reply.tensors["change"] for function, _, _, reply in said if function == "train")
    first = sent[0]["change"].double()
    assert abs(torch.corrcoef(torch.stack([first, change.double()]))[0, 1]) < 0.5


def test_masks_are_told_only_where_somebody_is_missing():
    verbs = []
    for absent in ((), ((1, "Bonn"),)):
        one = federation(SECURE, training={"quorum": 2})
        failing(one.engine, *absent)
        with recorded(one.engine) as said:
            _, rows = one.rounds()
        verbs.append([(function, site) for function, site, _, _ in said if function.startswith("masked_sum/")])
    keys = [("masked_sum/keys", site) for site in table_sites()]
    assert verbs[0] == keys
    assert verbs[1] == [*keys, *(("masked_sum/unmask", site) for site in ("Aachen", "Celle", "Dresden"))]
    told = [row for row in rows if "masked_sum/mask" in row["extra_up"]]
    assert [(row["round"], row["site"]) for row in told] == [(1, "Aachen"), (1, "Celle"), (1, "Dresden")]
    usual = next(row for row in rows if row["round"] == 2)
    assert has_numbers(told[0]["bytes_up"] - usual["bytes_up"], 8 * (52 + 10))


def test_sites_that_do_not_take_part_are_not_masked_with():
    training = {"participation": {"uniform": {"sites": 2}}}
    one = federation(SECURE, training=training)
    with recorded(one.engine) as said:
        found = one.state()
    assert close(found, state_of(training=training))
    assert not [function for function, *_ in said if function == "masked_sum/unmask"]


def test_a_sum_of_one_is_refused():
    one = federation(SECURE, training={"quorum": 1})
    failing(one.engine, (0, "Aachen"), (0, "Bonn"), (0, "Celle"))
    with pytest.raises(SiteError, match="P402 A secure sum of one"):
        one.rounds()


@pytest.mark.parametrize(("entry", "named"), [
    ({"server": ["median"]}, "median"), ({"server": ["mean", "norm_bound"]}, "norm_bound"),
    ({"local": ["control_variates"]}, "control_variates"), ({"channel": ["masked_sum", "largest"]}, "largest"),
    ({"server": ["qfedavg"]}, "qfedavg"),
])  # fmt: skip
def test_what_needs_single_updates_is_refused_beside_a_secure_sum(entry, named):
    with pytest.raises((EntryError, StudyError), match=f"P104 .*{named}") as caught:
        federation({"channel": ["masked_sum"], **entry})
    assert "masked_sum" in str(caught.value)


def test_other_parts_go_with_a_secure_sum():
    for entry in ({"server": ["mean", {"fedadam": {"lr": 0.01}}]}, {"local": ["dynamic_regularisation"]}):
        assert close(state_of({**entry, **SECURE}), state_of(entry), 1e-5)


# Clusters -------------------------------------------------------------------------------------------------------------


def opposite_sites():
    """Four sites with the same features; at two of them the labels are the other way round."""
    found = {}
    for name, cases in {"Aachen": 33, "Bonn": 20, "Celle": 25, "Dresden": 20}.items():
        site = table_site(name, cases)
        targets = 1 - site.targets if name in ("Celle", "Dresden") else site.targets
        found[name] = site_of(name, site.inputs, targets, part=None)
    return found


EVALUATION = {"folds": 2, "validation": 0.25, "best_round": "loss"}


def clustered(**options):
    entry = {"topology": "clusters"}
    return federation(entry, opposite_sites(), evaluation=EVALUATION, training={"rounds": 12}, **options)


def test_clusters_find_the_sites_that_belong_together():
    progress, _ = clustered().rounds()
    groups = {name: {site for site, home in progress.homes.items() if home == name} for name in progress.models}
    assert sorted(groups.values(), key=sorted) == [{"Aachen", "Bonn"}, {"Celle", "Dresden"}]
    assert set(progress.models) == {"cluster 1", "cluster 2"}


def scores(one, outcome, cluster, site):
    """What a cluster's model predicts for a site's test cases ``[N]``."""
    (tensors,) = outcome.models.values()
    own = {key.removeprefix(f"{cluster}/"): t.flatten() for key, t in tensors.items() if key.startswith(f"{cluster}/")}
    network, member = one.template, one.engine.members[site]
    network.load(torch.cat([own[entry.name] for entry in network.layout.entries]))
    network.module.eval()
    return torch.softmax(network.module(member.dataset.batch(member.parts.test)[0]), 1)[:, 1].detach()


def test_each_site_is_tested_with_its_own_cluster():
    one = clustered()
    outcome = one.outcome()
    homes = {}
    for frame in outcome.predictions:
        site, found = frame["site"].iloc[0], torch.tensor(frame["score"].to_numpy()).float()
        fits = [name for name in ("cluster 1", "cluster 2") if close(scores(one, outcome, name, site), found)]
        (homes[site],) = fits
    assert homes["Aachen"] == homes["Bonn"] != homes["Celle"] == homes["Dresden"]


def test_a_cluster_is_trained_by_its_sites_alone():
    """After the sites were dealt out, the model of a cluster is fedavg of its two sites."""
    one = federation({"topology": "clusters"}, training={"rounds": 1})
    progress, _ = one.rounds()
    for name, model in progress.models.items():
        own = {site: data for site, data in table_sites().items() if progress.homes[site] == name}
        assert len(own) == 2
        assert close(model, state_of("fedavg", data=own, training={"rounds": 1}))


def test_a_site_that_can_not_judge_stays():
    part = build_part("clusters", {})
    part.restore({"a": torch.tensor(1), "b": torch.tensor(1)})
    models = {"cluster 1": torch.zeros(1), "cluster 2": torch.ones(1)}

    def ask(verb, asked):
        for site, sent in asked.items():
            loss = sent["state"].sum() if site == "b" else None
            yield site, SiteError("P401", "away") if loss is None else {"loss": loss}

    assert part.stages(Turn(1, 2, ["a", "b"], models, ask, 0)) == [{"cluster 1": ["b"], "cluster 2": ["a"]}]


@pytest.mark.parametrize("share", ["all", "no_norm"])
def test_sites_that_keep_something_are_judged_with_it(share):
    one = federation({"topology": "clusters", "share": share}, training={"rounds": 2})
    progress, rows = one.rounds()
    size = one.plan().selection.size
    assert all(len(model) == size for model in progress.models.values())
    last = [row for row in rows if row["round"] == 1]
    assert all(has_numbers(row["bytes_down"], 3 * 4 * size, 3) for row in last), "both were judged, and one was trained"


def test_an_unseen_site_gets_the_mean_of_all_models():
    one = clustered()
    outcome = one.runner.run(Job((one.method(),), 0, 0, without="Bonn"), one.fold)
    (frame,) = outcome.predictions
    assert set(frame["site"]) == {"Bonn"}
    models = [scores(one, outcome, name, "Bonn") for name in ("cluster 1", "cluster 2")]
    assert not close(*models, 0.05)
    assert close((models[0] + models[1]) / 2, torch.tensor(frame["score"].to_numpy()).float())


# Servers that do not wait ---------------------------------------------------------------------------------------------

#: A step of Dresden takes as long as ten of the others; in a round there are 4, 2, 1 and 3 steps.
SPEEDS = {"step_seconds": {"Aachen": 1.0, "Bonn": 1.0, "Celle": 1.0, "Dresden": 4.0}}


def test_who_is_ready_first_comes_first():
    """Rounds take 4, 2, 1 and 12 seconds. Celle is ready at 1 and Bonn at 2, when both begin again: Celle at 3, Aachen
    at 4, where it comes before Bonn; Bonn 4, Celle 5; Celle 6, Bonn 7; Aachen 8, Celle 8; Bonn 9, Celle 9."""
    one = federation({"procedure": "buffered"}, training={"rounds": 6, **SPEEDS})
    _, rows = one.rounds()
    order = ["".join(row["site"][0] for row in rows if row["round"] == number) for number in range(6)]
    assert order == ["CB", "CA", "BC", "CB", "AC", "BC"]


def test_waiting_for_all_is_fedavg():
    entry = {"procedure": {"buffered": {"size": 4}}, "server": ["mean", "stale"]}
    assert close(state_of(entry, training=SPEEDS), state_of())


def test_a_late_change_is_one_of_the_model_that_the_site_got():
    """Bonn makes two steps, until Aachen is ready: its change is that of its training from the first model."""
    entry = {"procedure": {"buffered": {"size": 1}}, "server": ["mean", "stale"]}
    data = {name: table_site(name, cases) for name, cases in {"Aachen": 33, "Bonn": 10}.items()}
    speeds = {"step_seconds": {"Aachen": 1.5, "Bonn": 1.0}, "optimizer": {"sgd": {"lr": 0.1}}}
    one = federation(entry, data, training={"rounds": 3, **speeds})
    with recorded(one.engine) as said:
        progress, rows = one.rounds()
    assert [row["site"] for row in rows] == ["Bonn", "Bonn", "Aachen"]
    asked = [request for function, _, request, _ in said if function == "train"]
    assert torch.equal(asked[2].tensors["state"], asked[0].tensors["state"]), "Aachen got the first model"
    change = [reply.tensors["change"] for function, _, _, reply in said if function == "train"][2]
    before = federation(entry, data, training={"rounds": 2, **speeds}).rounds()[0].model("federation")
    found = progress.model("federation")[: len(change)] - before[: len(change)]
    assert close(found, change / 3**0.5)


def test_old_changes_are_shortened_by_their_lag():
    part = build_part("stale", {"power": 0.5})
    update = Update("a", torch.tensor([6.0]), torch.tensor([1.0]), 1.0)
    assert part.take(replace(update, lag=3)).change.tolist() == [3.0]
    assert part.take(update) is update


def test_speeds_are_needed():
    with pytest.raises(StudyError, match="P104 Nobody says how fast Aachen is"):
        federation({"procedure": "buffered"}).rounds()


# Split learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1, "momentum": 0.9}}, {"adam": {"lr": 0.01}}], ids=str)
@pytest.mark.parametrize("serialise", [False, True])
def test_split_learning_is_fedavg(optimizer, serialise):
    training = {"optimizer": optimizer, "local_epochs": 2}
    found = state_of({"procedure": "split"}, training=training, serialise=serialise)
    assert close(found, state_of(training=training))


def test_split_learning_is_plain_training_at_one_site():
    data = {"Aachen": table_site("Aachen", 33)}
    assert close(state_of({"procedure": "split"}, data=data), state_of(data=data))


def test_a_round_tells_all_that_was_said_in_its_steps():
    _, rows = federation({"procedure": "split"}).rounds()
    row = next(row for row in rows if row["site"] == "Dresden")  # 20 cases: steps of 8, 8 and 4
    assert row["steps"] == 3
    assert row["examples"] == 20
    assert row["extra_up"].split("; ")[0].startswith("split/features [8, 5] × 2 320 bytes")
    assert "split/features [4, 5] 80 bytes" in row["extra_up"]
    assert has_numbers(row["bytes_up"], 62 * 4 + 20 * 5 * 4 + 20 * 8, 5)
    assert has_numbers(row["bytes_down"], 62 * 4 + 20 * 5 * 4, 5)


@pytest.mark.parametrize(("entry", "training", "why"), [
    ({"local": ["proximal"]}, {}, "proximal has nothing to change"), ({}, {"clip": 1.0}, "`clip` means nothing"),
    ({}, {"class_weights": "balanced"}, "`class_weights` means nothing"),
    ({}, {"optimizer_state": "keep"}, "no optimiser is kept"), ({"personal": "ditto"}, {}, "ditto"),
], ids=str)  # fmt: skip
def test_what_only_local_training_heeds_is_refused(entry, training, why):
    with pytest.raises((EntryError, StudyError), match=f"P104 .*{why}"):
        federation({"procedure": "split", **entry}, training=training)


def test_split_learning_needs_all_of_the_model():
    with pytest.raises(StudyError, match="P104 Split learning shares the whole model"):
        federation({"procedure": "split", "share": "no_norm"}).rounds()


# What holds for all ---------------------------------------------------------------------------------------------------

ALL = {
    "common_direction": {"local": ["common_direction"]},
    "common_statistics": {"local": ["common_statistics"]},
    "largest": {"channel": [{"largest": {"share": 0.3}}]},
    "masked_sum": SECURE,
    "clusters": {"topology": "clusters"},
    "buffered": {"procedure": "buffered", "server": ["mean", "stale"]},
    "split": {"procedure": "split"},
}


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def outcome(entry, folder, stop=None):
    one = federation(
        entry, table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None), folder=folder / "sites",
        training={"rounds": 5, "step_seconds": {"Aachen": 1.0, "Bonn": 0.5, "Celle": 9.0}},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip

    def report(done, _):
        if done == stop:
            raise Killed

    found = one.runner.run(Job((one.method(),), 0, 0), one.fold, checkpoint=Checkpoint(folder / "job"), report=report)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found.rounds]
    (tensors,) = found.models.values()
    frames = [frame.to_csv() for frame in found.predictions]
    return rows, frames, {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}


@pytest.mark.parametrize("name", ALL)
def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(name, tmp_path):
    unbroken = outcome(ALL[name], tmp_path / "unbroken")
    for stop in (1, 2, 4):
        with pytest.raises(Killed):
            outcome(ALL[name], tmp_path / str(stop), stop)
        found = outcome(ALL[name], tmp_path / str(stop))
        assert found[1:] == unbroken[1:]
        if name != "masked_sum":
            assert found[0] == unbroken[0]
        else:  # keys are new after a restart, and their exchange is written down again
            assert [r["loss"] for r in found[0]] == [r["loss"] for r in unbroken[0]]


@pytest.mark.parametrize("name", ALL)
def test_all_work_where_the_loop_skips_and_leaves_out_sites(name):
    training = {"rounds": 4, "quorum": 2, "step_seconds": 1.0,
                "participation": [{"availability": {"absent": {"Bonn": [1, 2], "Celle": [3]}}}]}  # fmt: skip
    one = federation(ALL[name], training=training)
    failing(one.engine, (1, "Dresden"))
    progress, rows = one.rounds()
    assert all(state.isfinite().all() for state in progress.models.values())
    assert {row["round"] for row in rows} == {0, 1, 2, 3}
    assert "Dresden" in "".join(progress.failures) or name in ("buffered", "split")


def test_what_was_sent_is_told_by_name():
    """Bytes turned back into tensors may bring them in any order."""
    one, two = {"a/b": torch.zeros(2), "a/a": torch.zeros(1)}, {"a/a": torch.zeros(1), "a/b": torch.zeros(2)}
    texts = []
    for first, second in ((one, two), (two, one)):
        traffic = Traffic()
        for message in (first, second, {"a/b": torch.zeros(3), "change": torch.zeros(9)}):
            traffic.add(message, 100)
        texts.append(traffic.describe())
    assert texts == ["a/a [1] × 2 8 bytes; a/b [2] × 2 16 bytes; a/b [3] 12 bytes"] * 2
    assert traffic.size == 300


def test_what_is_not_declared_does_not_leave_a_site():
    class Telling(SitePart):
        """Tells more than it says."""

        def end(self, ended, given):
            return {"patients": torch.ones(3)}

    LOCAL_PARTS.add("telling")(Telling)
    try:
        one = federation({"local": ["telling"]})
        with pytest.raises(SiteError, match="P401 What the end of telling at site Aachen sends as 'patients'"):
            one.rounds()
    finally:
        LOCAL_PARTS.remove("telling")


def test_a_round_knows_its_sites():
    found = []

    class Looking(ServerPart):
        """Looks who is there."""

        def begin(self, now: Now) -> None:
            super().begin(now)
            found.append(list(now.sites))

    SERVER_PARTS.add("looking")(Looking)
    try:
        federation(
            {"server": ["mean", "looking"]},
            training={"rounds": 2, "participation": {"availability": {"absent": {"Bonn": [2]}}}},
        ).rounds()
    finally:
        SERVER_PARTS.remove("looking")
    assert found == [["Aachen", "Bonn", "Celle", "Dresden"], ["Aachen", "Celle", "Dresden"]]
