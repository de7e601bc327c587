"""Summaries that are told in sums: the plain results, and nothing of a site at the coordinator."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from elsewhere import Elsewhere, split_table
from helpers import site_of, table_sites, write_number_study, write_survival_study, write_table_study
from polyclinic.channel.said import said
from polyclinic.communication.message import Message
from polyclinic.data import combat, scaling
from polyclinic.data.preparation import STEPS, Landmarks
from polyclinic.engine import CheckedEngine, LocalEngine
from polyclinic.errors import DataError, PolyclinicError, SiteError, StudyError, TrainingError
from polyclinic.running.sums import ask_sum
from polyclinic.secure.exact import encode
from polyclinic.site.messages import Prepare
from polyclinic.site.schema import Known
from polyclinic.study.preparing import prepare
from polyclinic.study.results import Results
from polyclinic.study.runner import run_study
from polyclinic.study.study import Study

SIZES = {"Aachen": 40, "Bonn": 26, "Celle": 30, "Dresden": 22}
HIDDEN = {"privacy": {"summaries": "secure_sum"}}
SUMMED = {"share", "threshold", "sums", "evaluate"}
SCALING = [("common_scaling", {})]


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder)


# Summaries from sums --------------------------------------------------------------------------------------------------


def added(parts):
    """As the sums are: exact, and rounded once."""
    return {
        name: torch.tensor(
            [math.fsum(column) for column in zip(*(one[name].flatten().tolist() for one in parts), strict=True)],
            dtype=torch.float64,
        ).reshape(parts[0][name].shape)
        for name in parts[0]
    }


@pytest.mark.parametrize("shift", [0.0, 1e6, -3e4])
def test_scales_are_those_of_all_values_also_far_from_zero(shift):
    rng = np.random.default_rng(7)
    sites = [torch.from_numpy(rng.normal(shift + place, 1 + place, (30 + place, 4))) for place in range(4)]
    sites[1][::3, 2] = torch.nan
    sites[2][:, 3] = torch.nan
    own = [scaling.summarise(one, torch.arange(len(one))) for one in sites]
    first = added([scaling.sums(one) for one in own])
    centre = scaling.common_mean(first)
    found = scaling.of_sums(first, added([scaling.sums_about(one, centre) for one in own]))
    values = torch.cat(sites).numpy()
    deviation = np.nanstd(values - shift, axis=0)
    close = 1e-9 * deviation.min()
    np.testing.assert_array_equal(found.count, (~np.isnan(values)).sum(axis=0))
    np.testing.assert_allclose(
        found.mean - shift, np.nanmean(values - shift, axis=0), rtol=0, atol=1e-9 * deviation.min()
    )
    np.testing.assert_allclose((found.m2 / found.count).sqrt(), deviation, rtol=1e-9)
    plain = scaling.merge(own)
    np.testing.assert_allclose(found.mean, plain.mean, rtol=0, atol=close)
    np.testing.assert_allclose(found.m2, plain.m2, rtol=1e-9)


def test_a_feature_that_nobody_has_stays_as_it_was():
    own = [scaling.summarise(torch.full((5, 1), torch.nan), torch.arange(5)) for _ in range(3)]
    first = added([scaling.sums(one) for one in own])
    found = scaling.of_sums(first, added([scaling.sums_about(one, scaling.common_mean(first)) for one in own]))
    assert (found.count.item(), found.mean.item(), found.m2.item()) == (0, 0, 0)


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("covariates", [0, 2])
def test_combat_is_that_of_all_moments_also_far_from_zero(shift, covariates):
    rng = np.random.default_rng(11)
    sites = {}
    for place, cases in enumerate((40, 30, 26, 4)):  # the last one is too small to say anything
        x = rng.normal(60, 10, (cases, covariates))
        y = rng.normal(0, 1 + place / 3, (cases, 5)) + place + 0.05 * x.sum(axis=1, keepdims=True)
        y[::7, 1], y[:, 4] = np.nan, 3.0
        sites[f"site {place}"] = combat.summarise(
            torch.from_numpy(y + shift), torch.from_numpy(x), groups=[[0], [1]][:covariates]
        )
    names = [f"x{place}" for place in range(covariates)]
    plain, unusable = combat.estimate(sites, names)
    first = added([combat.sums(one) for one in sites.values()])
    about = added([combat.sums_about(one, combat.common_centre(first)) for one in sites.values()])
    found, same = combat.estimate_of(combat.Total.of_sums(first, about), names)
    assert torch.equal(unusable, same)
    assert unusable.tolist() == [False] * 4 + [True]
    np.testing.assert_allclose(found.grand_mean, plain.grand_mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.coefficients, plain.coefficients, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.variance, plain.variance, rtol=1e-9)


def test_landmarks_are_the_mean_of_all_cases():
    shared = {
        str(n): {"count": torch.tensor(float(n)).double(), "sum": torch.full((1, 11), 0.1 * n).double()}
        for n in (2, 3, 5)
    }
    step = Landmarks()
    found, _ = step.merge_sums(added(list(shared.values())), {})
    torch.testing.assert_close(found["standard"], step.merge(shared)[0]["standard"], rtol=1e-15, atol=0)
    assert step.sizes(2) == {"F": 2, "L": 11}


@pytest.mark.parametrize("name", ["combat", "common_scaling", "landmarks"])
def test_what_is_summed_has_the_shapes_that_the_step_says(name):
    assert STEPS[name].summed
    assert bool(STEPS[name].centres) == bool(STEPS[name].about)


# A sum over sites -----------------------------------------------------------------------------------------------------


def request(steps=SCALING, **changes):
    return Prepare.model_validate({
        "fold": 0, "folds": 2, "validation": 0.2, "split_seed": 0, "small_sites": "train", "steps": steps,
        "augmentation": [], "classes": 2, "hides": True, **changes,
    })  # fmt: skip


def sites(sizes=SIZES, **options):
    return LocalEngine(table_sites(sizes, part=None), **options)


def scale(engine, site="Aachen"):
    return engine.members[site].dataset._scaler


class Spy(LocalEngine):
    """Records what comes to the coordinator, and loses what it is told to lose: (function, site)."""

    def __init__(self, *given, lost=(), **options):
        self.lost, self.heard = lost, []
        super().__init__(*given, **options)

    def call(self, function, requests):
        for site, reply in super().call(function, requests):
            gone = (function, site) in self.lost
            reply = SiteError("P401", f"{site} is away.", site=site) if gone else reply
            self.heard.append((function, site, requests[site], reply))
            yield site, reply


def test_sites_scale_as_in_the_clear():
    plain, hidden = sites(), sites(serialise=True)
    prepare(plain, request(hides=False))
    prepare(hidden, request(), features=5)
    for name in ("mean", "deviation", "fill"):
        assert torch.equal(getattr(scale(plain), name), getattr(scale(hidden), name)), name


def test_the_coordinator_hears_masks():
    """Of each site numbers that look like any: bits half of the time, other ones each time, and not the site's."""
    heard = []
    for _ in range(2):
        engine = Spy(table_sites(SIZES, part=None), serialise=True)
        prepare(engine, request(), features=5)
        shares = [reply for function, _, _, reply in engine.heard if function == "share"]
        assert len(shares) == 2 * len(SIZES)
        assert {tuple(reply.tensors) for reply in shares} == {("masked",)}
        assert not any(reply.fields for reply in shares)
        heard.append([reply.tensors["masked"] for reply in shares])
    plain = LocalEngine(table_sites(SIZES, part=None))
    prepare(plain, request(hides=False))
    for site, first, again in zip(SIZES, *heard, strict=False):
        member = plain.members[site]
        numbers = scaling.sums(scaling.summarise(member.data.inputs, member.parts.train))
        vector = encode(torch.cat([torch.zeros(1).double(), numbers["count"], numbers["sum"]]))
        assert first.shape == again.shape == vector.shape
        assert not (first == vector).any()
        assert not (first == again).any()
        bits = np.unpackbits(np.frombuffer(first.numpy().tobytes(), dtype=np.uint8)).mean()
        assert 0.45 < bits < 0.55


def test_a_site_says_nothing_in_the_clear():
    engine = sites()
    prepare(engine, request(), features=5)
    engine.ask("prepare", dict.fromkeys(engine.sites, Message(request().fields())))
    for function in ("share", "describe"):
        with pytest.raises(
            SiteError, match=rf"P404 Site Aachen was asked to '{function}', and in this study it says that in sums"
        ):
            engine.ask(function, {"Aachen": Message()})
    with pytest.raises(SiteError, match=r"P404 .* no sum was begun for it"):
        engine.ask("share", {"Aachen": Message({}, {"boxes": said({})})})


def test_two_sites_are_refused():
    with pytest.raises(SiteError, match=r"P402 .* in sums of 3 sites or more, and 2 take part"):
        prepare(sites({"Aachen": 20, "Bonn": 22}), request(), features=5)
    engine = sites()
    engine.ask("prepare", dict.fromkeys(engine.sites, Message(request().fields())))
    told = {"session": bytes(32), "function": "share", "sites": ["Aachen", "Bonn"], "length": 11}
    with pytest.raises(SiteError, match=r"P402 .* and 2 take part"):
        engine.ask("sum_advertise", {"Aachen": Message({}, {"told": said(told)})})


@pytest.mark.parametrize("wrong", [
    {"sites": ["Bonn", "Celle", "Dresden"]}, {"function": "predict"}, {"length": 0}, {"session": b"short"}, {"more": 1},
    {"sites": ["Aachen", "Aachen", "Bonn"]}, {"sites": "Aachen"},
], ids=str)  # fmt: skip
def test_terms_that_are_none_are_refused(wrong):
    told = {"session": bytes(32), "function": "share", "sites": list(SIZES), "length": 11} | wrong
    with pytest.raises(SiteError, match=r"P404 Site Aachen takes no part in a sum"):
        sites().ask("sum_advertise", {"Aachen": Message({}, {"told": said(told)})})


def test_another_length_is_refused():
    with pytest.raises(SiteError, match=r"P404 .* it has 11 numbers, and 13 are to be summed"):
        prepare(sites(), request(), features=6)


@pytest.mark.parametrize("phase", ["sum_advertise", "sum_share", "share"])
def test_a_site_that_is_missing_in_a_scale_is_named_and_nothing_is_known(phase):
    engine = Spy(table_sites(SIZES, part=None), lost=[(phase, "Celle")])
    with pytest.raises(SiteError, match="Celle is away"):
        prepare(engine, request(), features=5)
    assert "sum_agree" not in {function for function, *_ in engine.heard}
    engine.lost = ()
    prepare(engine, request(), features=5)  # nobody has seen the same numbers, so they may be summed now
    assert scale(engine).mean.isfinite().all()


@pytest.mark.parametrize("phase", ["sum_agree", "sum_unmask"])
def test_a_site_that_is_gone_once_it_has_added_its_numbers_is_in_the_sum(phase):
    plain, engine = sites(), Spy(table_sites(SIZES, part=None), lost=[(phase, "Celle")])
    prepare(plain, request(hides=False))
    prepare(engine, request(), features=5)
    assert torch.equal(scale(plain).mean, scale(engine).mean)


def asked(engine, names):
    return ask_sum(engine, "share", dict.fromkeys(names, Message()), {"count": (5,), "sum": (5,)})


def test_the_same_numbers_are_not_summed_with_other_sites(tmp_path):
    """The difference would be what the missing site has."""
    message = dict.fromkeys(SIZES, Message(request().fields()))
    engine = sites(folder=tmp_path)
    engine.ask("prepare", message)
    checked = CheckedEngine(engine, Known(hides=True))
    first = asked(checked, SIZES)
    assert asked(checked, SIZES).total["sum"].tolist() == first.total["sum"].tolist()
    with pytest.raises(SiteError, match="summed before with other sites"):
        asked(checked, ["Aachen", "Bonn", "Dresden"])
    again = sites(folder=tmp_path)  # begun anew: their diaries know
    again.ask("prepare", message)
    with pytest.raises(SiteError, match="summed before with other sites"):
        asked(CheckedEngine(again, Known(hides=True)), ["Aachen", "Bonn", "Dresden"])
    other = dict.fromkeys(SIZES, Message(request(fold=1).fields()))
    again.ask("prepare", other)
    assert asked(CheckedEngine(again, Known(hides=True)), ["Aachen", "Bonn", "Dresden"]).sites == [
        "Aachen",
        "Bonn",
        "Dresden",
    ]


def test_of_sites_that_drop_out_the_sum_is_that_of_the_others():
    engine = Spy(table_sites(SIZES, part=None), lost=[("share", "Bonn")])
    engine.ask("prepare", dict.fromkeys(SIZES, Message(request().fields())))
    found = asked(engine, SIZES)
    assert found.sites == ["Aachen", "Celle", "Dresden"]
    assert list(found.failures) == ["Bonn"]
    members = [engine.members[site] for site in found.sites]
    own = [scaling.sums(scaling.summarise(one.data.inputs, one.parts.train)) for one in members]
    assert found.total["sum"].tolist() == added(own)["sum"].tolist()
    engine.lost = [("share", "Bonn"), ("share", "Celle")]
    with pytest.raises(SiteError, match=r"P402 .*Bonn: P401 Bonn is away; likewise Celle"):
        asked(engine, SIZES)


def test_values_that_cannot_be_summed_are_told_by_their_number():
    """A site says itself which of its values are no numbers; what only is too large for a sum is counted."""
    data = table_sites(SIZES, part=None)
    data["Bonn"] = site_of("Bonn", torch.full((20, 5), torch.inf), torch.arange(20) % 2, None)
    with pytest.raises(TrainingError, match=r"P301 .* site Bonn gave values that are not finite numbers"):
        prepare(LocalEngine(data), request(), features=5)
    data = {
        site: replace(one, covariates=torch.rand(len(one), 1).double())
        for site, one in table_sites(SIZES, part=None).items()
    }
    data["Bonn"] = replace(data["Bonn"], covariates=1e95 * data["Bonn"].covariates)
    options = {"columns": [0], "features": ["x0"], "covariates": {"age": ["age"]}, "empirical_bayes": True}
    steps = [("combat", options | {"reference_site": None}), *SCALING]
    with pytest.raises(DataError, match=r"P207 1 of 4 sites have values that are not finite numbers"):
        prepare(LocalEngine(data), request(steps), features=5)


# Studies --------------------------------------------------------------------------------------------------------------


def covariates(entries, folder):
    """Sites differ in mean, spread and unit, one of them far from zero; some cells are missing."""
    table, rng = pd.read_csv(folder / "cases.csv"), np.random.default_rng(3)
    table["age"] = rng.integers(20, 80, len(table))
    table["sex"] = np.where(rng.random(len(table)) < 0.5, "F", "M")
    number = table["site"].map({site: place for place, site in enumerate(SIZES)}).to_numpy()
    table["x0"] = table["x0"] * (1 + number) + 3 * number + 0.05 * table["age"]
    table["x1"] += 1e6
    table.loc[::9, "x2"] = np.nan
    table.sample(frac=1, random_state=1).to_csv(folder / "cases.csv", index=False)
    entries["data"] |= {"harmonisation": {"combat": {"covariates": ["age", "sex"]}}, "scaling": "federated"}
    return entries


def declared(folder, write=write_table_study, **changes):
    entries = write(folder, SIZES) | {"methods": ["fedavg", "fedbn"], "seeds": [0]} | changes
    entries["training"] |= {"rounds": 2}
    entries["evaluation"] = entries["evaluation"] | {"folds": None, "holdout": 0.3}
    return entries


def run(entries, folder, out="out", **options) -> Results:
    return Study.of(entries, folder).run(folder / out, **options)


def same(hidden, plain, tolerance=0.0):
    first, second = (pd.read_csv(one.folder / "results.csv") for one in (hidden, plain))
    pd.testing.assert_frame_equal(first, second, rtol=tolerance, atol=tolerance, check_exact=not tolerance)


def test_a_study_has_the_results_of_one_in_the_clear(tmp_path):
    entries = covariates(declared(tmp_path, methods=["single", "mix", "fedavg", "fedbn"]), tmp_path)
    plain, hidden = run(entries, tmp_path, "plain"), run(entries | HIDDEN, tmp_path, "hidden")
    same(hidden, plain, 1e-4)
    assert (plain.folder / "harmonisation.csv").exists()
    assert not (hidden.folder / "harmonisation.csv").exists(), "it is of each site"
    (note,) = [one["text"] for one in json.loads((hidden.folder / "notes.json").read_text()) if one["number"] == "N812"]
    assert "single has a model of each site alone" in note
    assert "harmonisation.csv" in note
    rounds = pd.read_csv(hidden.folder / "rounds.csv").query("method == 'fedavg'")
    assert (rounds.groupby(["fold", "round"])["validation_loss"].nunique() == 1).all(), "of all sites together"
    before = pd.read_csv(plain.folder / "rounds.csv").query("method == 'fedavg'")
    folds = [group for _, group in before.groupby(["fold", "round"])]
    assert len(folds) == 2
    assert before.groupby(["fold", "round"])["validation_loss"].nunique().eq(len(SIZES)).all()


@pytest.mark.parametrize(
    "engine", [{"mode": "stacked"}, {"mode": "processes", "workers": 2}, {"mode": "sequential", "jobs": 2}], ids=str
)
def test_all_engines_find_the_same(engine, tmp_path):
    entries = covariates(declared(tmp_path, methods=["fedavg", "fedadam"], **HIDDEN), tmp_path) | {"model": "logistic"}
    first = run(entries, tmp_path, "sequential")
    other = run(entries | {"engine": {"threads": 1, **engine}}, tmp_path, "other")
    same(first, other, 1e-5 if engine["mode"] == "stacked" else 0.0)


class Heard:
    """What comes to the coordinator in a study."""

    def __init__(self, monkeypatch, kind=LocalEngine):
        self.said, original = [], kind.call

        def call(engine, function, requests):
            for site, reply in original(engine, function, requests):
                self.said.append((function, site, reply))
                yield site, reply

        monkeypatch.setattr(kind, "call", call)

    def names(self, function):
        return {tuple(reply.tensors) for one, _, reply in self.said if one == function}


@pytest.mark.parametrize(("write", "entries"), [
    (write_table_study, {}), (write_number_study, {}), (write_survival_study, {}),
], ids=["classes", "numbers", "survival"])  # fmt: skip
def test_what_a_study_hears_of_sites_is_under_masks(write, entries, tmp_path, monkeypatch):
    content = declared(tmp_path, write, **entries)
    content["data"]["scaling"] = "federated"
    plain, heard = run(content, tmp_path, "plain"), Heard(monkeypatch)
    hidden = run(content | HIDDEN, tmp_path, "hidden")
    same(hidden, plain, 1e-6)
    counted = Counter(function for function, *_ in heard.said)
    expected = SUMMED - {"sums"} - ({"threshold"} if write is not write_table_study else set())
    assert expected <= counted.keys()
    for function in SUMMED & counted.keys():
        assert heard.names(function) == {("masked",)}, function
        assert not any(reply.fields for one, _, reply in heard.said if one == function)


def test_survival_at_times_has_its_sums_under_masks(tmp_path, monkeypatch):
    content = declared(tmp_path, write_survival_study)
    content["evaluation"] |= {"times": [200, 500], "metrics": ["concordance", "brier"]}
    plain, heard = run(content, tmp_path, "plain"), Heard(monkeypatch)
    hidden = run(content | HIDDEN, tmp_path, "hidden")
    same(hidden, plain, 1e-6)
    assert heard.names("sums") == {("masked",)}


def test_hospitals_say_no_usual_values_either(tmp_path):
    content = covariates(declared(tmp_path, **HIDDEN), tmp_path)
    content["evaluation"] |= {"predictions": "sites", "bootstrap": 0}
    folders = split_table(tmp_path)
    engine, heard = Elsewhere(folders), []
    original = engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            heard.append((function, reply))
            yield site, reply

    engine.call = call
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    run_study(Study.read(tmp_path / "study.yaml"), tmp_path / "there", engine=engine)
    here = run(content, tmp_path, "here")
    same(Results(tmp_path / "there"), here)
    facts = [reply.fields for function, reply in heard if function == "agree"]
    assert facts
    assert not any(one.keys() & {"medians", "deviations", "usual_time"} for one in facts)
    assert all(tuple(reply.tensors) == ("masked",) for function, reply in heard if function in SUMMED)


def test_a_study_that_was_stopped_in_a_sum_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    """In three places: shares are out, and the coordinator never knew the sum."""
    entries = covariates(declared(tmp_path, methods=["fedbn"], **HIDDEN), tmp_path)
    whole = run(entries, tmp_path, "whole")
    original = LocalEngine.call

    class KilledError(Exception):
        pass

    for stop in ("share", "evaluate", "threshold"):
        last = [""]

        def call(engine, function, requests, *, stop=stop, last=last):
            last[0] = last[0] if function.startswith("sum_") else function
            yield from original(engine, function, requests)
            if function == "sum_unmask" and last[0] == stop:
                raise KilledError

        with monkeypatch.context() as patched:
            patched.setattr(LocalEngine, "call", call)
            with pytest.raises(KilledError):
                run(entries, tmp_path, "stopped", resume=stop != "share")
    again = run(entries, tmp_path, "stopped", resume=True)
    for name in ("results.csv", "rounds.csv", "predictions.csv"):
        tables = [pd.read_csv(one.folder / name) for one in (whole, again)]
        first, second = (table.drop(columns="seconds", errors="ignore") for table in tables)
        pd.testing.assert_frame_equal(first, second)


def test_with_a_quorum_validation_and_threshold_go_on_without_a_site(tmp_path, monkeypatch):
    entries = declared(tmp_path, methods=["fedavg"], **HIDDEN)
    entries["training"] |= {"quorum": 3}
    original = LocalEngine.call

    def call(engine, function, requests):
        for site, reply in original(engine, function, requests):
            gone = function in ("evaluate", "threshold") and site == "Bonn"
            yield site, SiteError("P401", "Bonn is away.", site="Bonn") if gone else reply

    monkeypatch.setattr(LocalEngine, "call", call)
    found = run(entries, tmp_path)
    notes = " ".join(one["text"] for one in json.loads((found.folder / "notes.json").read_text()))
    assert "When asked to evaluate, Bonn did not answer" in notes
    rounds = pd.read_csv(found.folder / "rounds.csv")
    assert rounds.query("site == 'Bonn'")["validation_loss"].isna().all()
    assert rounds.query("site != 'Bonn'")["validation_loss"].notna().all()


def test_a_model_that_breaks_down_everywhere_has_no_score(tmp_path):
    entries = declared(tmp_path, methods=["fedavg"], model="logistic", **HIDDEN)
    entries["training"] |= {"optimizer": {"sgd": {"lr": 1e25}}, "rounds": 1}
    try:
        found = run(entries, tmp_path)
    except PolyclinicError as error:
        assert error.code in ("P301", "P402")  # noqa: PT017 - training may find it first
        return
    notes = " ".join(one["text"] for one in json.loads((found.folder / "notes.json").read_text()))
    assert "not finite" in notes or "diverged" in notes


@pytest.mark.parametrize(("changes", "words"), [
    ({"evaluation": {"unseen_sites": True}}, "less that over the others would be the summary of that site"),
    ({"data": {"harmonisation": {"combat": {"reference_site": "Bonn"}}}}, "`reference_site` makes the summary of one"),
    ({"privacy": {"summaries": "masks"}}, "secure_sum"),
], ids=["unseen", "reference", "name"])  # fmt: skip
def test_what_would_show_a_site_is_refused(changes, words, tmp_path):
    entries = declared(tmp_path, **HIDDEN)
    entries["data"]["scaling"] = "federated"
    for key, value in changes.items():
        entries[key] = {**entries[key], **value}
    with pytest.raises(StudyError, match=words):
        Study.of(entries, tmp_path)


def test_a_study_of_two_sites_is_refused_and_without_a_site_it_counts_the_others(tmp_path):
    entries = write_table_study(tmp_path, {"Aachen": 30, "Bonn": 24}) | {"methods": ["fedavg"]} | HIDDEN
    with pytest.raises(SiteError, match=r"P402 .* and 2 take part"):
        run(entries, tmp_path)
    entries = write_table_study(tmp_path, {"Aachen": 30, "Bonn": 24, "Celle": 20}) | {"methods": ["fedavg"]} | HIDDEN
    entries["evaluation"] |= {"unseen_sites": True}
    with pytest.raises(SiteError, match=r"P402 .* and 2 take part"):
        run(entries, tmp_path)


def test_the_package_is_asked_for_when_the_study_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("polyclinic.study.declaration.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"P503 .*cryptography"):
        Study.of(declared(tmp_path, **HIDDEN), tmp_path)
