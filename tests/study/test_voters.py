"""Sites that train nothing, and whose validation cases count in what is chosen."""

import pandas as pd
import pytest
import torch
import yaml

from helpers import Federation, recorded, scaling_steps, table_site, write_table_study
from polyclinic.data.splits import split, voting
from polyclinic.errors import DataError, StudyError
from polyclinic.parts import FEDERATION
from polyclinic.study.planning import cannot_vote
from polyclinic.study.study import Study

SIZES = {"Aachen": 30, "Bonn": 24, "Celle": 26}
SPLIT = {"folds": 3, "validation": 0.25}


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")


def sites(*names):
    return {name: table_site(name, SIZES[name], part=None) for name in names or SIZES}


def made(*methods, voters=("Celle",), data=None, **options):
    preparation = {"validation": 0.25, "voters": list(voters), **options.pop("preparation", {})}
    training = {"rounds": 3, **options.pop("training", {})}
    evaluation = {**SPLIT, "best_round": "loss", "voters": list(voters)}
    return Federation(data or sites(), list(methods) or ["fedavg"], preparation=preparation, training=training,
                      evaluation=evaluation, **options)  # fmt: skip


def test_what_would_be_training_cases_are_validation_cases():
    parts = split(table_site("Celle", 26, part=None), folds=3, fold=0, validation=0.25, seed=0)
    found = voting(parts, votes=True)
    assert found.train.tolist() == []
    assert found.validation.tolist() == sorted(parts.train.tolist() + parts.validation.tolist())
    assert torch.equal(found.test, parts.test)
    assert torch.equal(voting(parts, votes=False).validation, parts.validation)


def test_the_model_is_that_of_the_other_sites_to_the_bit_and_the_voter_is_asked_to_train_nothing():
    federation = made()
    with recorded(federation.engine) as said:
        progress, rows = federation.rounds()
    alone = made(voters=(), data=sites("Aachen", "Bonn")).rounds()[0]
    assert torch.equal(progress.model(FEDERATION), alone.model(FEDERATION))
    assert {row["site"] for row in rows} == {"Aachen", "Bonn"}
    asked = [function for function, site, _, _ in said if site == "Celle"]
    assert asked == ["start", "evaluate", "evaluate", "evaluate"]


def test_the_best_round_is_chosen_by_the_mean_over_the_cases_of_all_that_vote():
    federation = made()
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    rounds = [{}, {}, {}]
    for function, site, _, reply in said:
        if function == "evaluate":
            next(one for one in rounds if site not in one)[site] = reply.fields
    scores = []
    for one in rounds:
        assert one.keys() == SIZES.keys()
        cases = sum(fields["cases"] for fields in one.values())
        scores.append(sum(fields["cases"] * fields["loss"] for fields in one.values()) / cases)
    best = min(range(3), key=scores.__getitem__)
    assert progress.best[FEDERATION] == (pytest.approx(scores[best]), best)
    assert rounds[0]["Celle"]["cases"] == federation.fold.validation["Celle"] > federation.fold.validation["Aachen"]


def test_a_voter_can_change_which_round_is_the_best():
    """Its labels are swapped: each round that is better elsewhere is worse there, and it has most of the cases."""
    data = sites("Aachen", "Bonn")
    wrong = table_site("Celle", 200, part=None)
    wrong.labels.copy_(1 - wrong.labels)
    with_it = made(data={**data, "Celle": wrong}).rounds()[0]
    without = made(data=data, voters=()).rounds()[0]
    assert (with_it.best[FEDERATION][1], without.best[FEDERATION][1]) == (0, 2)


def test_a_voter_scales_its_cases_by_those_that_it_would_train_on():
    steps = {"steps": scaling_steps("per_site")}
    federation, trained = made(preparation=steps), made(voters=(), preparation=steps)
    scaled, expected = (one.engine.members["Celle"].dataset.batch(torch.arange(26))[0] for one in (federation, trained))
    assert torch.equal(scaled, expected)
    assert scaled.abs().max() > 0


def test_a_voter_has_its_say_in_the_threshold_and_is_tested():
    federation = made()
    with recorded(federation.engine) as said:
        outcome = federation.outcome()
    assert {site for function, site, _, _ in said if function == "threshold"} == SIZES.keys()
    tested = {site for function, site, _, _ in said if function == "predict"}
    assert tested == SIZES.keys()
    assert outcome.notes == []


def test_without_a_validation_share_voters_alone_choose():
    federation = made(preparation={"validation": 0.0})
    with recorded(federation.engine) as said:
        federation.rounds()
    found = {site: reply.fields["cases"] for function, site, _, reply in said if function == "evaluate"}
    assert found["Celle"] > 0
    assert found["Aachen"] == found["Bonn"] == 0


def test_a_voter_that_is_away_is_a_site_that_did_not_answer():
    federation = made(training={"quorum": 2})
    original = federation.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            away = (function, site) == ("evaluate", "Celle")
            yield site, DataError("P204", "Celle is away.") if away else reply

    federation.engine.call = call
    progress, _ = federation.rounds()
    assert "Celle did not answer" in progress.failures[0]
    assert FEDERATION in progress.best


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("fedavg", ""),
        ("lora", ""),
        ({"heterofl": {"widths": {"Bonn": 0.5}}}, ""),
        ("fedbn", "parts of the model stay"),
        ("ditto", "parts of the model stay"),
        ("single", "a model of its own"),
        ("mix", "validated on the pool"),
    ],
)
def test_who_can_not_vote_is_not_asked(method, why):
    model = {"mlp": {"hidden": [4], "norm": "batch"}}
    federation = made(method, model=model)
    found = cannot_vote(federation.method().method, federation.plan().selection)
    assert why in found
    assert bool(found) is bool(why)
    assert list(federation.plan().voters) == ([] if why else ["Celle"]) or why == "validated on the pool"
    if why != "validated on the pool":
        federation.rounds()


# Whole studies --------------------------------------------------------------------------------------------------------


def entries_of(folder, **evaluation):
    entries = write_table_study(folder, {"Aachen": 24, "Bonn": 15, "Celle": 18})
    entries["methods"] = ["single", "mix", "fedavg", "fedbn", {"heterofl": {"widths": {"Bonn": 0.5}}}, "lora", "bitfit"]
    entries["training"] = {**entries["training"], "rounds": 2}
    entries["evaluation"] = {**entries["evaluation"], **evaluation}
    return entries


def test_a_study_with_unequal_computers_and_a_site_that_votes(tmp_path):
    entries = entries_of(tmp_path, voters=["Celle"], unseen_sites=["fedavg"])
    Study.of(entries, tmp_path).run(tmp_path / "out")
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert "Celle" not in set(rounds["site"])
    federated = results[results["method"].isin(["fedavg", "heterofl(widths=(Bonn: 0.5))", "lora", "bitfit", "fedbn"])]
    assert {"Aachen", "Bonn", "Celle"} <= set(federated[federated["run"] == "plain"]["tested_on"])
    notes = (tmp_path / "out" / "notes.json").read_text()
    assert "N265" in notes
    assert "Celle trains nothing" in notes
    assert "Not for fedbn: parts of the model stay at the sites that train." in notes
    mean = rounds[rounds["run"] == "plain"].groupby(["method", "site"])["bytes_up"].mean()
    assert mean["heterofl(widths=(Bonn: 0.5))", "Bonn"] < mean["heterofl(widths=(Bonn: 0.5))", "Aachen"]


def test_a_resumed_study_ends_with_the_same_bytes(tmp_path):
    entries = entries_of(tmp_path, voters=["Celle"])
    entries["methods"] = entries["methods"][4:]
    Study.of(entries, tmp_path).run(tmp_path / "whole")
    done = []

    def stop(*_):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    study = Study.of(entries, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        from polyclinic.running.progress import Checkpoint

        write = Checkpoint.write
        patch.setattr(Checkpoint, "write", lambda self, *args: (write(self, *args), stop())[0])
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "again")
    Study.of(entries, tmp_path).run(tmp_path / "again", resume=True)
    for name in ("results.csv", "predictions.csv", "notes.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"voters": ["Cele"]}, r"P103 .*'Cele'"),
        ({"voters": ["Aachen", "Bonn", "Celle"]}, "P104 .*none is left to train"),
        ({"voters": ["Bonn"]}, "P104 heterofl.* names Bonn, which trains nothing"),
        ({"voters": ["Aachen"], "unseen_sites": ["heterofl(widths=(Bonn: 0.5))"]}, "P104 .*nobody train the whole"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, words):
    with pytest.raises(StudyError, match=words):
        Study.of(entries_of(tmp_path, **changes), tmp_path).run(tmp_path / "out")


@pytest.mark.parametrize("labels", [{"labels": {"share": 0, "sites": ["Bonn"]}}, {"unlabelled": "use"}])
def test_a_site_without_labels_is_nobody_who_trains_the_whole_network(tmp_path, labels):
    entries = entries_of(tmp_path)
    entries["data"] |= labels
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    table.loc[(table["site"] == "Bonn") & ("unlabelled" in labels), "diagnosis"] = ""
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries["methods"] = [{"heterofl": {"widths": {"Aachen": 0.5, "Celle": 0.5}}}]
    with pytest.raises(StudyError, match=r"P104 .*nobody train the whole network"):
        Study.of(entries, tmp_path).run(tmp_path / "out")


def test_a_voter_without_labels_has_no_say(tmp_path):
    entries = entries_of(tmp_path, voters=["Celle"])
    entries["data"] |= {"labels": {"share": 0, "sites": ["Celle"]}}
    entries["methods"] = ["fedavg"]
    Study.of(entries, tmp_path).run(tmp_path / "out")
    assert "Celle trains nothing; no case there can be validated on" in (tmp_path / "out" / "notes.json").read_text()


def test_a_class_that_voters_alone_have_is_named(tmp_path):
    entries = entries_of(tmp_path, voters=["Celle"])
    entries["methods"] = ["fedavg"]
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    rare = table.index[table["site"] == "Celle"][:3]
    table.loc[rare, "diagnosis"] = "rare"
    table.to_csv(tmp_path / "cases.csv", index=False)
    Study.of(entries, tmp_path).run(tmp_path / "out")
    said = (tmp_path / "out" / "notes.json").read_text()
    assert "No case that is trained on has the class 'rare', and 3 of theirs have it (Celle 3)" in said
    table.loc[table.index[table["site"] != "Celle"][:4], "diagnosis"] = "rare"
    table.to_csv(tmp_path / "cases.csv", index=False)
    Study.of(entries, tmp_path).run(tmp_path / "known")
    assert "No case that is trained on" not in (tmp_path / "known" / "notes.json").read_text()


def test_voters_stand_in_the_study_that_is_written(tmp_path):
    entries = entries_of(tmp_path, voters=["Celle"])
    entries["methods"] = ["fedavg"]
    Study.of(entries, tmp_path).run(tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
    assert written["evaluation"]["voters"] == ["Celle"]
