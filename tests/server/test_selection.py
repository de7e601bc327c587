"""Who takes part in a round: what each way to choose does, and that it is the same whenever it is asked again."""

import pytest
import torch

from helpers import Federation, recorded, table_sites, trained_state
from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.server.selection import PARTICIPATION, Candidates

SITES = ["Aachen", "Bonn", "Celle", "Dresden", "Essen"]


def known(number=0, seed=0, weights=None, losses=None):
    return Candidates(number, seed, weights or dict.fromkeys(SITES, 1.0), losses or {})


def chosen(name, rounds=1, among=SITES, seed=0, **options):
    part = PARTICIPATION[name](**options)
    return [part.choose(among, known(number, seed)) for number in range(rounds)]


RANDOM = [
    ("uniform", {"sites": 2}),
    ("uniform", {"fraction": 0.5}),
    ("poisson", {"probability": 0.4}),
    ("highest_loss", {"sites": 2, "candidates": 3}),
    ("availability", {"probability": 0.4}),
]


@pytest.mark.parametrize(("name", "options"), RANDOM)
def test_a_choice_is_a_function_of_seed_and_round(name, options):
    first, again = chosen(name, 40, seed=1, **options), chosen(name, 40, seed=1, **options)
    assert first == again
    assert first != chosen(name, 40, seed=2, **options)
    assert len({tuple(sites) for sites in first}) > 5, "rounds differ"


@pytest.mark.parametrize(("name", "options"), RANDOM)
def test_the_chosen_are_some_of_the_sites_in_their_order(name, options):
    for sites in chosen(name, 40, **options):
        assert sites == [site for site in SITES if site in sites]


@pytest.mark.parametrize(("name", "options"), [RANDOM[2], RANDOM[4]])
def test_a_draw_of_its_own_depends_on_nobody_else(name, options):
    everyone = chosen(name, 40, **options)
    turned = chosen(name, 40, among=SITES[::-1], **options)
    few = chosen(name, 40, among=SITES[1:3], **options)
    for all_sites, other_order, some in zip(everyone, turned, few, strict=True):
        assert all_sites == other_order[::-1]
        assert some == [site for site in all_sites if site in SITES[1:3]]


@pytest.mark.parametrize(("options", "count"), [({"sites": 1}, 1), ({"sites": 3}, 3), ({"sites": 9}, 5),
                         ({"fraction": 0.4}, 2), ({"fraction": 0.01}, 1), ({"fraction": 1.0}, 5)])  # fmt: skip
def test_uniform_takes_a_fixed_number(options, count):
    assert {len(sites) for sites in chosen("uniform", 30, **options)} == {count}


def test_uniform_takes_each_pair_equally_often():
    """Ten pairs in 4000 rounds: 400 each, with a deviation of √(4000 · 0.1 · 0.9) = 19; five of them are allowed."""
    found = [tuple(sites) for sites in chosen("uniform", 4000, sites=2)]
    counts = {pair: found.count(pair) for pair in set(found)}
    assert len(counts) == 10
    assert all(abs(count - 400) < 95 for count in counts.values())


@pytest.mark.parametrize("name", ["poisson", "availability"])
def test_poisson_draws_each_site_by_itself(name):
    """3000 rounds with probability 0.3: the deviation of a site's share is 0.0084, and pairs are independent (0.09)."""
    found = chosen(name, 3000, probability=0.3)
    there = torch.tensor([[site in sites for site in SITES] for sites in found]).double()
    assert (there.mean(0) - 0.3).abs().max() < 0.042
    together = there.T @ there / 3000
    assert (together[~torch.eye(5, dtype=torch.bool)] - 0.09).abs().max() < 0.03
    assert [] in found, "or no round was empty"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_highest_loss_takes_the_highest(count):
    losses = {"Aachen": 0.5, "Bonn": 0.9, "Celle": 0.1, "Dresden": 0.9, "Essen": 0.7}
    part = PARTICIPATION["highest_loss"](sites=count)
    best = {1: ["Bonn"], 2: ["Bonn", "Dresden"], 4: ["Aachen", "Bonn", "Dresden", "Essen"]}
    assert part.choose(SITES, known(losses=losses)) == best[count]


def test_highest_loss_takes_sites_first_whose_loss_is_not_known():
    part = PARTICIPATION["highest_loss"](sites=2)
    assert part.choose(SITES, known(losses={"Aachen": 9.0, "Bonn": 8.0, "Dresden": 7.0})) == ["Celle", "Essen"]
    assert part.choose(SITES, known(losses={site: 1.0 for site in SITES if site != "Celle"})) == ["Aachen", "Celle"]


def test_highest_loss_draws_its_candidates_by_weight():
    """With one candidate a round it is a draw in proportion to the weights, whatever the losses are: 0.6 ± 0.011."""
    part = PARTICIPATION["highest_loss"](sites=1, candidates=1)
    weights = {"Aachen": 6.0, "Bonn": 1.0, "Celle": 1.0, "Dresden": 1.0, "Essen": 1.0}
    losses = {site: float(number) for number, site in enumerate(SITES)}
    found = [part.choose(SITES, known(number, weights=weights, losses=losses))[0] for number in range(2000)]
    assert abs(found.count("Aachen") / 2000 - 0.6) < 0.055
    assert abs(found.count("Essen") / 2000 - 0.1) < 0.035


def test_availability_by_rounds_and_by_site():
    assert chosen("availability", 3, absent={"Bonn": [1, 3], "Essen": [2]}) == [
        ["Aachen", "Celle", "Dresden", "Essen"], ["Aachen", "Bonn", "Celle", "Dresden"],
        ["Aachen", "Celle", "Dresden", "Essen"],
    ]  # fmt: skip
    by_site = chosen("availability", 500, probability={"Bonn": 0.2})
    assert all(set(SITES) - set(sites) <= {"Bonn"} for sites in by_site)
    assert 60 < sum("Bonn" in sites for sites in by_site) < 140


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("uniform", {}, "uniform takes either `sites` or `fraction`"),
        ("uniform", {"sites": 1, "fraction": 0.5}, "uniform takes either `sites` or `fraction`"),
        ("highest_loss", {"sites": 3, "candidates": 2}, "highest_loss chooses 3 sites from 2 candidates"),
    ],
)
def test_options_that_contradict_each_other_are_refused(name, options, message):
    with pytest.raises(StudyError, match=message):
        PARTICIPATION[name](**options)


# In training ----------------------------------------------------------------------------------------------------------

SMALL = {"Aachen": 12, "Bonn": 9, "Celle": 8}


def federation(participation, *, rounds=4, methods=("fedavg",), **training):
    training = {"rounds": rounds, "participation": participation, **training}
    return Federation(table_sites(SMALL), methods, training=training)


def took_part(rows, rounds=4):
    return [[row["site"] for row in rows if row["round"] == number] for number in range(rounds)]


def test_only_the_chosen_are_asked_and_their_mean_is_taken():
    made = federation({"availability": {"absent": {"Aachen": [1], "Celle": [1]}}}, rounds=1)
    with recorded(made.engine) as said:
        progress, rows = made.rounds()
    ((site, request, reply),) = [(site, *exchange) for function, site, *exchange in said if function == "train"]
    assert site == "Bonn"
    assert torch.equal(progress.model(FEDERATION), trained_state(request, reply))
    assert [row["share"] for row in rows] == [1.0]


def test_shares_are_of_those_that_took_part():
    _, rows = federation({"availability": {"absent": {"Celle": [1]}}}, rounds=2).rounds()
    assert [row["share"] for row in rows] == pytest.approx([12 / 21, 9 / 21, 12 / 29, 9 / 29, 8 / 29])


def test_several_ways_are_applied_one_after_another():
    absent = {"Aachen": [1, 2], "Bonn": [3, 4]}
    _, rows = federation([{"availability": {"absent": absent}}, {"uniform": {"sites": 1}}]).rounds()
    for number, sites in enumerate(took_part(rows)):
        assert len(sites) == 1
        assert sites[0] not in [site for site, away in absent.items() if number + 1 in away]


def test_a_round_without_sites_is_skipped_and_noted():
    absent = {site: [2, 3] for site in SMALL}
    skipping = federation({"availability": {"absent": absent}})
    states = []
    with recorded(skipping.engine) as said:
        progress, rows = skipping.rounds()
        states = [request.tensors["state"] for function, site, request, _ in said if (function, site) ==
                  ("train", "Bonn")]  # fmt: skip
    assert took_part(rows) == [list(SMALL), [], [], list(SMALL)]
    assert progress.failures == [
        "Round 2 was skipped with 0 of 3 sites there (1 needed).",
        "Round 3 was skipped with 0 of 3 sites there (1 needed).",
    ]
    once = federation({"availability": {"absent": {}}}, rounds=1).state()
    assert torch.equal(states[1], once), "round 4 starts from what round 1 gave"


def test_a_round_below_the_quorum_is_skipped():
    absent = {"Aachen": [1, 2], "Bonn": [2, 3]}
    progress, rows = federation({"availability": {"absent": absent}}, quorum=2).rounds()
    assert took_part(rows) == [["Bonn", "Celle"], [], ["Aachen", "Celle"], list(SMALL)]
    assert progress.failures == ["Round 2 was skipped with 1 of 3 sites there (2 needed)."]


def test_a_training_in_which_every_round_is_skipped_is_an_error():
    with pytest.raises(SiteError, match="P402 None of 4 rounds changed the model"):
        federation({"availability": {"absent": {site: [1, 2, 3, 4] for site in SMALL}}}).rounds()


@pytest.mark.parametrize("name", ["uniform", "highest_loss"])
def test_a_quorum_that_can_not_be_met_is_refused_when_read(name):
    with pytest.raises(PolyclinicError, match="`participation` leaves 2 sites and `quorum` wants 3"):
        federation({name: {"sites": 2}}, quorum=3)
    federation({name: {"sites": 3}}, quorum=3)


def test_all_sites_judge_a_round_in_which_some_took_part():
    made = Federation(
        table_sites(SMALL, part=None), training={"rounds": 3, "participation": {"uniform": {"sites": 1}}},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip
    with recorded(made.engine) as said:
        _, rows = made.rounds()
    assert [site for function, site, _, _ in said if function == "evaluate"] == list(SMALL) * 3
    assert all(row["validation_loss"] > 0 for row in rows)


def test_a_skipped_round_is_not_looked_at():
    made = Federation(
        table_sites(SMALL, part=None),
        training={"rounds": 3, "participation": {"availability": {"absent": {site: [2] for site in SMALL}}}},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip
    with recorded(made.engine) as said:
        made.rounds()
    assert [site for function, site, _, _ in said if function == "evaluate"] == list(SMALL) * 2


@pytest.mark.parametrize("method", ["single", "mix"])
def test_methods_without_a_server_train_every_site_in_every_round(method):
    _, rows = federation({"uniform": {"sites": 1}}, methods=[method], rounds=2).rounds()
    assert len(rows) == 2 * 3


def test_the_highest_loss_is_the_one_reported_last():
    """Each site goes once, since nothing is known of it; then the one with the highest loss of those."""
    _, rows = federation({"highest_loss": {"sites": 1}}).rounds()
    assert took_part(rows)[:3] == [["Aachen"], ["Bonn"], ["Celle"]]
    losses = {row["site"]: row["loss"] for row in rows[:3]}
    assert rows[3]["site"] == max(losses, key=losses.get)


# Deadlines ------------------------------------------------------------------------------------------------------------


def test_a_deadline_goes_by_the_declared_speed():
    """Batches of 4 are three steps at Aachen with 1 s each, which takes 3 s; the others are ten times as fast."""
    speed = {"Aachen": 1.0, "Bonn": 0.1, "Celle": 0.1}
    made = federation({"deadline": {"seconds": 2}}, rounds=2, step_seconds=speed, batch_size=4)
    progress, rows = made.rounds()
    assert took_part(rows, 2) == [["Bonn", "Celle"]] * 2
    assert [row["share"] for row in rows[:2]] == pytest.approx([9 / 17, 8 / 17])
    assert progress.failures == [
        f"Round {number} went on without Aachen. Aachen: its answer took 3 s, longer than the deadline allows."
        for number in (1, 2)
    ]
    others = {site: cases for site, cases in SMALL.items() if site != "Aachen"}
    alone = Federation(table_sites(others), training={"rounds": 2, "batch_size": 4})
    torch.testing.assert_close(progress.model(FEDERATION), alone.state(), msg="as if Aachen were not there")


def test_a_site_that_is_too_late_forgets_what_it_learned_as_the_coordinator_knows_nothing_of_it(tmp_path):
    """Nothing of Aachen counts, so c_k stays 0 there. Two steps with 0.1 make it (w - w_k) / 0.2 at the others; c is
    the mean of all three."""
    training = {"rounds": 1, "batch_size": 4, "step_seconds": {"Aachen": 1.0},
                "participation": {"deadline": {"seconds": 2}}}  # fmt: skip
    made = Federation(table_sites(SMALL), ["scaffold"], training=training)
    with recorded(made.engine) as said:
        progress, rows = made.rounds(checkpoint=Checkpoint(tmp_path))
    assert took_part(rows, 1) == [["Bonn", "Celle"]]
    changes = {site: reply.tensors["change"] for function, site, _, reply in said if function == "train"}
    kept = {site: kept.parts["control_variates"]["control"] for site, kept in made.kept(progress).items()}
    assert not kept["Aachen"].any()
    assert changes["Aachen"].any()
    for site in ("Bonn", "Celle"):
        torch.testing.assert_close(kept[site], changes[site] / -0.2)
    saved = Checkpoint(tmp_path)
    saved.read(progress.first)
    common = saved.memory["model federation/control_variates/control"]
    torch.testing.assert_close(common, 9 / 29 * kept["Bonn"] + 8 / 29 * kept["Celle"])


def test_too_few_answers_in_time_leave_the_state():
    speed = {"Aachen": 1.0, "Bonn": 1.0, "Celle": 0.1}
    made = federation({"deadline": {"seconds": 0.5}}, rounds=2, step_seconds=speed, quorum=2)
    with pytest.raises(SiteError, match="P402 None of 2 rounds"):
        made.rounds()
    plan = federation({"deadline": {"seconds": 0.5}}, rounds=2, step_seconds=speed).plan()
    assert plan.quorum is None


def test_a_deadline_without_declared_speeds_goes_by_the_time_measured():
    progress, rows = federation({"deadline": {"seconds": 3600}}, rounds=1).rounds()
    assert took_part(rows, 1) == [list(SMALL)]
    assert not progress.failures
    with pytest.raises(SiteError, match="P402 None of 1 rounds"):
        federation({"deadline": {"seconds": 1e-9}}, rounds=1).rounds()


def test_a_round_without_the_site_that_the_rule_goes_by_changes_nothing():
    """FLTrust can't do without the site it trusts; with sampling that is no failure of the study."""
    training = {"rounds": 6, "participation": {"uniform": {"sites": 2}}}
    federation = Federation(table_sites(), [{"fltrust": {"trusted": "Bonn"}}], training=training)
    progress, rows = federation.rounds()
    took_part = {number: {row["site"] for row in rows if row["round"] == number} for number in range(6)}
    counted = {number for number, sites in took_part.items() if sites}
    assert 0 < len(counted) < 6
    assert all("Bonn" in took_part[number] for number in counted)
    assert sum("changed nothing" in sentence and "Bonn" in sentence for sentence in progress.failures) == 6 - len(
        counted
    )
