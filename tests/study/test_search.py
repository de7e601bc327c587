"""Hyper-parameter search: what is tried, how it is scored, that test cases play no part, and interruptions."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from helpers import Federation, declare, named, table_sites, write_number_study, write_table_study
from polyclinic.composition import METHODS
from polyclinic.errors import DataError, ResultsError, SiteError, StudyError, TrainingError
from polyclinic.methods import SharedModules
from polyclinic.options import describe_options
from polyclinic.parts import build_part
from polyclinic.rounds import Progress
from polyclinic.site import Site
from polyclinic.study.candidates import Choices, Interval
from polyclinic.study.declaration import Declaration
from polyclinic.study.display import Display
from polyclinic.study.jobs import JobRunner, best_score
from polyclinic.study.method_entries import COMPOSED
from polyclinic.study.report.page import write_report
from polyclinic.study.study import Study

SIZES = {"Aachen": 24, "Bonn": 16, "Celle": 20}
LR, BATCH, MOMENTUM = "training.optimizer.sgd.lr", "training.batch_size", "training.optimizer.sgd.momentum"


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    """The report takes longer than these studies; its section has a test of its own."""
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder: folder / "report.html")


# What is tried --------------------------------------------------------------------------------------------------------


def searching(*methods, seeds=(0,), **search):
    """A declaration with a search; the study's own learning rate is 0.1, its batch size 8."""
    training = {"batch_size": 8, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}
    return declare(methods=list(methods or ["fedavg"]), training=training, seeds=list(seeds), search=search)


def tried(declaration, label="fedavg"):
    method = next(method for method in declaration.study_methods if method.label == label)
    return [candidate.values for candidate in declaration.candidates(method)]


def test_few_combinations_are_all_tried_after_the_studys_own():
    found = tried(searching(trials=7, parameters={LR: [0.01, 0.1, 1], BATCH: [8, 16]}))
    assert found[0] == {LR: 0.1, BATCH: 8}
    assert len(found) == 6, "3 · 2, of which one is the study's own"
    assert {tuple(values.values()) for values in found} == set(product([0.01, 0.1, 1], [8, 16]))


def test_the_studys_own_values_count_as_a_trial():
    """Four combinations without the study's own are five configurations: one too many for four trials."""
    found = [tried(searching(trials=trials, parameters={LR: [0.01, 1], BATCH: [4, 16]})) for trials in (4, 5)]
    assert [len(values) for values in found] == [4, 5]
    assert found[0][0] == found[1][0] == {LR: 0.1, BATCH: 8}


FIVE = ["single", "fedavg", "fedprox", "fedadam", {"fedprox": {"label": "strong", "mu": 1.0}}]
OWN = {"fedprox": {"mu": {"log": [1e-4, 1]}}, "fedadam": {"lr": [0.001, 0.1], "beta1": {"uniform": [0, 0.9]}}}


@pytest.mark.parametrize("trials", [1, 2, 5, 11])
def test_every_method_gets_the_same_number_of_different_configurations(trials):
    shared = {LR: [0.003, 0.01, 0.1, 0.3], BATCH: [4, 8, 16]}
    declaration = searching(*FIVE, trials=trials, parameters=shared, methods=OWN)
    for method in declaration.study_methods:
        found = tried(declaration, method.label)
        assert found[0][LR] == 0.1
        assert found[0][BATCH] == 8
        assert len({tuple(values.values()) for values in found}) == len(found) == trials


def test_all_methods_see_the_same_values_of_shared_parameters_in_the_same_order():
    shared = {LR: [0.003, 0.01, 0.03, 0.3], BATCH: [4, 16, 32]}
    declaration = searching(*FIVE, trials=9, parameters=shared, methods=OWN)
    seen = [
        [(values[LR], values[BATCH]) for values in tried(declaration, method.label)]
        for method in declaration.study_methods
    ]
    assert all(one == seen[0] for one in seen)
    assert len(set(seen[0])) == 9, "none of the twelve comes twice before all were there"
    strong, plain = tried(declaration, "strong"), tried(declaration, "fedprox")
    assert (strong[0]["mu"], plain[0]["mu"]) == (1.0, 0.01)
    assert strong[1:] == plain[1:]
    alone = searching("fedprox", trials=9, parameters=shared, methods={"fedprox": OWN["fedprox"]})
    assert tried(alone, "fedprox") == plain, "other methods change nothing"
    other = searching("fedprox", seeds=[1], trials=9, parameters=shared, methods={"fedprox": OWN["fedprox"]})
    assert tried(other, "fedprox") != plain


def test_shared_values_come_again_when_all_were_there():
    """Two learning rates, seven draws of mu: each half of the draws has both rates."""
    own = {"fedprox": OWN["fedprox"]}
    found = tried(searching("fedprox", trials=7, parameters={LR: [0.01, 1]}, methods=own), "fedprox")
    rates = [values[LR] for values in found[1:]]
    assert [set(rates[i : i + 2]) for i in (0, 2, 4)] == [{0.01, 1}] * 3


def test_a_methods_own_values_replace_shared_ones():
    parameters, own = {LR: [0.01, 0.1], BATCH: [8, 16]}, {"fedsgd": {LR: [1, 10]}}
    declaration = searching("fedavg", "fedsgd", trials=20, parameters=parameters, methods=own)
    assert {values[LR] for values in tried(declaration)} == {0.01, 0.1}
    assert {values[LR] for values in tried(declaration, "fedsgd")} == {0.1, 1, 10}


def test_what_is_said_of_a_label_counts_for_it_alone():
    methods = ["fedprox", {"fedprox": {"label": "strong", "mu": 1.0}}]
    declaration = searching(*methods, methods={"fedprox": {"mu": [0.1, 0.2]}, "strong": {"mu": [2, 3]}})
    assert [values["mu"] for values in tried(declaration, "fedprox")] == [0.01, 0.1, 0.2]
    assert [values["mu"] for values in tried(declaration, "strong")] == [1.0, 2, 3]


def test_a_method_without_parameters_is_as_the_study_has_it():
    declaration = searching("fedavg", "fedprox", methods={"fedprox": {"mu": [0.1]}})
    assert tried(declaration) == [{}]
    assert len(tried(declaration, "fedprox")) == 2


@given(low=st.floats(1e-6, 10), factor=st.floats(1.001, 1e6), log=st.booleans(), seed=st.integers(0, 1000))
def test_numbers_are_drawn_between_the_ends(low, factor, log, seed):
    source = torch.Generator().manual_seed(seed)
    assert low <= Interval(low, low * factor, log).draw(source) <= low * factor


@pytest.mark.parametrize(("log", "middle"), [(True, 0.01), (False, 0.50005)])
def test_half_of_the_numbers_are_below_the_middle(log, middle):
    source = torch.Generator().manual_seed(0)
    drawn = np.array([Interval(1e-4, 1, log).draw(source) for _ in range(2000)])
    assert abs((drawn < middle).mean() - 0.5) < 0.04, "3.6 standard errors"


def test_all_choices_are_drawn_as_often():
    source = torch.Generator().manual_seed(0)
    drawn = [Choices(("a", "b", "c")).draw(source) for _ in range(3000)]
    assert all(abs(drawn.count(name) - 1000) < 100 for name in "abc"), "3.9 standard errors"


def test_parameters_are_drawn_one_without_regard_to_the_other():
    space = {LR: {"uniform": [0.1, 0.9]}, MOMENTUM: {"uniform": [0.1, 0.9]}}
    found = tried(searching("fedprox", trials=101, parameters=space, methods={"fedprox": {"mu": {"uniform": [0, 1]}}}),
                  "fedprox")  # fmt: skip
    correlations = np.corrcoef([[values[name] for values in found[1:]] for name in (LR, MOMENTUM, "mu")])
    assert np.abs(correlations - np.eye(3)).max() < 0.3, "three standard errors"


def test_values_are_put_where_their_names_say():
    methods = [
        {"fedavg": {"server": {"fedadam": {"lr": 0.1}}, "local": [{"proximal": {"mu": 0.5}}], "label": "all"}},
        {"fedavg": {"training": {"optimizer": {"adam": {"lr": 0.5}}, "rounds": 7}, "label": "adam"}},
    ]
    shared = {"training.schedule": [{"step": {"step_size": 3}}], "training.local_steps": [4]}
    own = {"all": {"server.fedadam.lr": [0.2], "local.proximal.mu": [0.7], MOMENTUM: [0.3]},
           "adam": {"training.optimizer.adam.lr": [0.6]}}  # fmt: skip
    declaration = searching(*methods, trials=100, parameters=shared, methods=own)
    for method in declaration.study_methods:
        first, last = (declaration.candidates(method)[n] for n in (0, -1))
        assert first.method == method
        assert last.method.label == method.label
        assert last.method.training.schedule == {"step": {"step_size": 3}}
        assert (last.method.training.local_steps, last.method.training.local_epochs) == (4, None)
    combined, adam = (declaration.candidates(method) for method in declaration.study_methods)
    assert combined[0].values == {
        "training.schedule": None, "training.local_steps": None, "server.fedadam.lr": 0.1, "local.proximal.mu": 0.5,
        MOMENTUM: 0.9,
    }  # fmt: skip
    assert [(name, options["lr"]) for name, options in combined[-1].method.method.server] == [("fedadam", 0.2)]
    assert list(combined[-1].method.method.local) == [("proximal", {"mu": 0.7})]
    assert combined[-1].method.training.optimizer == {"sgd": {"lr": 0.1, "momentum": 0.3}}
    assert adam[-1].method.training.optimizer == {"adam": {"lr": 0.6}}
    assert adam[-1].method.training.rounds == 7


def parts(method):
    found = [getattr(method.method, part) for part in COMPOSED]
    return [one if isinstance(one, SharedModules) else list(one or ()) for one in found]


WITH_DEFAULTS = {name: "".join(describe_options(METHODS[name])) for name in METHODS}


@pytest.mark.parametrize("name", [name for name, told in WITH_DEFAULTS.items() if told and "(required)" not in told])
def test_the_options_of_every_method_reach_its_parts(name):
    """Also where the study file says everything, so that the parts that follow from the options stand in it, too."""
    data = {
        "table": "cases.csv",
        "site": "site",
        "label": "label",
        "image": "image",
        "size": [8, 8],
    }
    more = {}
    if name == "attention_mil":
        data |= {"bag": {}, "subject": "patient"}
        more = {"model": {"gated_attention": {"encoder": "resnet18"}}}
    if name == "fedmri":
        del data["label"]
        data |= {"size": [16, 16], "undersampling": {"acceleration": 4}}
        more = {"task": "reconstruction", "model": {"unrolled": {}}}
    if name == "graph_layer":
        del data["label"]
        data |= {"findings": ["a", "b"]}
        more = {"task": "multi_label"}
    if name in ("feddm", "fedmix"):
        del data["label"]
        data |= {"mask": "mask"}
        more = {"task": "segmentation", "model": {"unet": {"channels": [4, 8]}}}
    if any(build_part(part, options).needs_public for part, options in METHODS[name]().parts):
        data |= {"public": "public.csv"}
    entry = declare(data=data, methods=[name], **more).filled()["methods"][0]
    numbers = {option: value for option, value in entry[name].items() if type(value) is float}
    for option, value in numbers.items():
        other = value / 2 or 0.125
        declaration = declare(data=data, methods=[entry], **more, search={"methods": {name: {option: [other]}}})
        first, last = (candidate.method for candidate in declaration.candidates(declaration.study_methods[0]))
        wanted = declare(data=data, methods=[{name: {option: other}}], **more).study_methods[0]
        assert parts(last) == parts(wanted) != parts(first), option


def test_an_options_default_is_known_where_the_study_does_not_name_it():
    name = "training.optimizer.adam.lr"
    declaration = declare(training={"optimizer": "adam"}, search={"parameters": {name: [0.001]}}, methods=["fedavg"])
    assert tried(declaration) == [{name: 0.001}], "so it is not tried twice"


# What is refused ------------------------------------------------------------------------------------------------------

BASE = """\
data: {table: cases.csv, site: site, label: label, features: "x*"}
model: logistic
methods: [fedavg, fedprox, {fedprox: {label: adam, training: {optimizer: adam}}}]
search:
  trials: 3
  parameters:
    training.batch_size: [4, 8]
  methods:
    fedprox:
      mu: [0.1, 1]
"""
SHARED = "training.batch_size: [4, 8]"
BAD = [
    ("trials: 3", "trials: 0", "P102", 5, "got 0; expected a number above 0"),
    ("trials: 3", "trails: 3", "P103", 5, "`search` has no entry 'trails'. Did you mean 'trials'?"),
    (SHARED, "training.batchsize: [4]", "P103", 7,
     "fedavg with training.batchsize = 4: `training` has no entry 'batchsize'. Did you mean 'batch_size'?"),
    (SHARED, "batch_size: [4]", "P103", 7, "'batch_size' is no entry of `training`, which all methods have. "
     "Write training.batch_size."),
    (SHARED, "mu: [4]", "P103", 7, "'mu' is no entry of `training`, which all methods have. Options of one method "
     "stand under `search: {methods: ...}`."),
    (SHARED, "training.batch_size: [4, 0]", "P102", 7, "fedavg with training.batch_size = 0: got 0; expected a "),
    (SHARED, "training.batch_size: [4, 4]", "P102", 7, "the value 4 is there twice"),
    (SHARED, "training.batch_size: []", "P102", 7, "got []; expected a list of values, {uniform: [low, high]} or"),
    (SHARED, "training.batch_size: 4", "P102", 7, "got 4; expected a list of values"),
    (SHARED, "training.batch_size.x: [4]", "P104", 7, "`batch_size` is 32, which has no parts"),
    (SHARED, "training.batch_size: {uniform: [1, 9.5]}", "P102", 7, "got 9.5; expected a whole number"),
    (SHARED, "training.clip: {log: [0, 1]}", "P102", 7, "got [0, 1]; expected two numbers above 0, the smaller"),
    (SHARED, "training.clip: {uniform: [2, 1]}", "P102", 7, "got [2, 1]; expected two numbers, the smaller one first"),
    (SHARED, "training.clip: {normal: [2, 1]}", "P102", 7, "got {'normal': [2, 1]}; expected a list of values"),
    (SHARED, "training.clip: {log: [a, b]}", "P102", 7, "got {'log': ['a', 'b']}; expected a list of values"),
    (SHARED, "training.optimizer.sgd.lr: [1]", "P104", 7, "adam with training.optimizer.sgd.lr = 1: its `optimizer` is "
     "adam, not sgd. Name the one it has, or choose among whole entries: `optimizer: [{...}, {...}]`."),
    (SHARED, "training.optimizer: [sgdd]", "P103", 7, "'sgdd' is no optimizer"),
    (SHARED, "training.schedule.step.gamma: [1]", "P104", 7, "its `schedule` is none, not step"),
    (SHARED, "training.local_epochs: [2]\n    training.local_steps: [2]", "P102", 4, "exclude each other"),
    (SHARED, f"training.optimizer: [adam]\n    {LR}: [1]", "P104", 8, f"{LR} is part of training.optimizer"),
    ("mu: [0.1, 1]", "nu: [0.1]", "P103", 10, "fedprox with nu = 0.1: fedprox has no option 'nu'. Valid: mu."),
    ("mu: [0.1, 1]", "mu: [0.1, -1]", "P102", 10, "fedprox with mu = -1: got -1; expected a number of at least 0"),
    ("mu: [0.1, 1]", "label: [a]", "P104", 10, "`label` can't be searched as a whole"),
    ("mu: [0.1, 1]", "server.fedadam.lr: [1]", "P104", 10, "its `server` has mean, not fedadam"),
    ("mu: [0.1, 1]", "local.other.mu: [1]", "P104", 10, "its `local` has no parts, not other"),
    ("    fedprox:\n", "    fedproxx:\n", "P103", 9, "'fedproxx' is not among the study's methods. Did you mean"),
    ("    fedprox:\n", "    mix:\n", "P103", 9, "'mix' is not among the study's methods."),
    ("trials: 3", "seeds: []", "P102", 5, "`seeds` is empty"),
    ("trials: 3", "folds: 2", "P104", 5, "each fold has a search of its own, so `folds` means nothing"),
    ("trials: 3", "{nested: false, folds: 6}"[1:-1].replace(", ", "\n  "), "P102", 6, "got 6; the study has 5"),
    ("search:", "evaluation: {validation: 0}\nsearch:", "P104", 5, "a search chooses on validation patients"),
    (BASE[BASE.index("  parameters"):], "", "P102", 4, "there is nothing to search"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "code", "line", "message"), BAD, ids=[bad[1] or bad[4] for bad in BAD])
def test_what_does_not_fit_is_refused_before_anything_is_run(tmp_path, old, new, code, line, message):
    assert old in BASE
    (tmp_path / "study.yaml").write_text(BASE.replace(old, new, 1))
    with pytest.raises(StudyError) as caught:
        Study.read(tmp_path / "study.yaml")
    assert caught.value.code == code
    assert f"study.yaml, line {line}, search" in str(caught.value)
    assert message in str(caught.value)


def test_the_filled_study_file_searches_the_same(tmp_path):
    (tmp_path / "study.yaml").write_text(BASE)
    declaration = Study.read(tmp_path / "study.yaml").declaration
    filled = declaration.filled()
    assert filled["search"] == {
        "trials": 3, "parameters": {BATCH: [4, 8]}, "methods": {"fedprox": {"mu": [0.1, 1]}}, "seeds": [1],
        "nested": True, "folds": None, "rounds": None, "choose_by": "loss",
    }  # fmt: skip
    again = Declaration.check(yaml.safe_load(yaml.safe_dump(filled)))
    assert again.filled() == filled
    for label in ("fedavg", "fedprox", "adam"):
        assert tried(again, label) == tried(declaration, label)
    assert "search" not in declare(methods=["fedavg"]).filled()


@pytest.mark.parametrize(
    ("methods", "parameters", "own"),
    [
        (["fedprox"], {BATCH: [4, 8]}, {"fedprox": {"mu": [0.1, 1]}}),
        (["fedavg", "mix"], {BATCH: [4, 8]}, {}),
    ],
)
def test_a_study_of_some_methods_searches_for_those(tmp_path, methods, parameters, own):
    (tmp_path / "study.yaml").write_text(BASE)
    search = Study.read(tmp_path / "study.yaml", methods=methods).declaration.search
    assert (search.parameters, search.methods) == (parameters, own)


def test_a_study_of_other_methods_searches_nothing(tmp_path):
    (tmp_path / "study.yaml").write_text(BASE.replace(f"  parameters:\n    {SHARED}\n", ""))
    assert Study.read(tmp_path / "study.yaml", methods=["fedavg"]).declaration.search is None


# Scores ---------------------------------------------------------------------------------------------------------------


def row(number, site, loss, auc=None):
    return {"round": number, "site": site, "validation_loss": loss, "validation_auc": auc}


def scored(rows, cases, best, **changes):
    """The score of a plan whose best rounds are ``best``: site -> round."""
    plan = replace(Federation(table_sites()).plan(), together=False, **changes)
    progress = Progress(2, torch.zeros(1), best={site: (0.0, number) for site, number in best.items()})
    return best_score(plan, progress, rows, cases)


def test_where_each_site_has_its_own_best_round_the_score_is_the_mean_over_all_cases():
    rows = [row(0, "A", 3.0, 0.5), row(0, "B", 2.0, 0.75), row(1, "A", 1.0, 1.0), row(1, "B", 4.0, 0.25)]
    cases = {"A": 6, "B": 2}
    assert scored(rows, cases, {"A": 1, "B": 0}) == (6 * 1 + 2 * 2) / 8
    assert scored(rows, cases, {"A": 0, "B": 0}) == (6 * 3 + 2 * 2) / 8
    # To be lowered, so the other way round for a metric of which more is better.
    assert scored(rows, cases, {"A": 1, "B": 0}, choose_by="metric") == -(6 * 1.0 + 2 * 0.75) / 8
    lower = scored(rows, cases, {"A": 1, "B": 0}, choose_by="metric", higher_is_better=False)
    assert lower == (6 * 1.0 + 2 * 0.75) / 8


def test_a_site_without_a_value_does_not_count_in_the_score():
    rows = [row(0, "A", 3.0), row(0, "B", None)]
    assert scored(rows, {"A": 4, "B": 0}, {"A": 0, "B": 0}) == 3.0
    assert scored(rows[1:], {"B": 0}, {"B": 0}) is None


# Whole studies --------------------------------------------------------------------------------------------------------


def small(folder, **search):
    """Four methods, three configurations each, of which the middle one is good."""
    entries = write_table_study(folder, SIZES)
    entries["methods"] = ["single", "cross", "mix", "fedbn", "fedprox"]
    entries["evaluation"] |= {"validation": 0.3}
    own = {"fedprox": {"mu": [0.1, 1.0]}}
    return entries | {"search": {"trials": 3, "parameters": {LR: [1e-4, 0.3]}, "methods": own, **search}}


def run(entries, folder, out="out", **options):
    return Study.of(entries, folder).run(folder / out, **options)


def contents(out):
    """Bytes of the files that must be the same in every run."""
    names = ("results.csv", "predictions.csv", "summary.csv", "sites.csv", "study.yaml", "notes.json", "search.csv")
    files = [out / name for name in names] + sorted((out / "models").glob("*"))
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    entries = small(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyclinic.study.runner.write_report", lambda folder: folder / "report.html")
        return folder, entries, run(entries, folder)


def test_each_method_and_fold_has_a_search(finished):
    _, _, results = finished
    table = results.search
    assert list(table.columns) == ["method", "run", "fold", "without", "trial", LR, "mu", "score", "chosen", "note"]
    assert list(dict.fromkeys(table["method"])) == ["single", "cross", "mix", "fedbn", "fedprox"]
    for (method, _), rows in table.groupby(["method", "fold"]):
        assert list(rows["trial"]) == [0, 1, 2]
        assert rows[LR].iloc[0] == 0.1
        assert set(rows[LR]) <= {0.1, 1e-4, 0.3}
        assert rows["mu"].notna().all() == (method == "fedprox")
        assert rows["chosen"].sum() == 1
        assert rows.loc[rows["chosen"], "score"].item() == rows["score"].min()
    assert set(table["fold"]) == {0, 1}
    assert set(table["without"]) == set(table["note"]) == {""}


def with_values(entries, method, row):
    """The study of one method with the values of a row of search.csv, and no search."""
    options = {} if np.isnan(row["mu"]) else {"mu": float(row["mu"])}
    entry = {method: {**options, "label": method, "training": {"optimizer": {"sgd": {"lr": float(row[LR]),
                                                                                     "momentum": 0.9}}}}}  # fmt: skip
    return {key: value for key, value in entries.items() if key != "search"} | {"methods": [entry]}


def by_hand(results, method, fold):
    """The validation score, from the rounds of a study without search, the parts' sizes and the definition."""
    rounds = results.rounds.query("fold == @fold")
    predictions = results.predictions.query("fold == @fold and method == @method")
    tested = predictions.groupby("site").size()
    if method == "mix":
        return rounds["validation_loss"].min()
    trained = rounds.groupby("site")["examples"].first()
    cases = pd.Series(SIZES) - trained - tested
    assert (cases > 0).all()
    losses = rounds.pivot(index="round", columns="site", values="validation_loss")
    if method == "single":
        return (losses.min() * cases).sum() / cases.sum()
    return ((losses * cases).sum(axis=1) / cases.sum()).min()


@pytest.mark.parametrize("method", ["single", "mix", "fedbn", "fedprox"])
def test_scores_are_those_of_the_configurations_and_the_best_one_is_tested(finished, tmp_path, method):
    folder, entries, results = finished
    (tmp_path / "cases.csv").write_bytes((folder / "cases.csv").read_bytes())
    table, chosen = results.search.query("method == @method"), []
    for number, rows in table.groupby("trial"):
        for _, row in rows.iterrows():
            again = run(with_values(entries, method, row) | {"seeds": [1]}, tmp_path, f"{number}-{row['fold']}")
            assert row["score"] == pytest.approx(by_hand(again, method, row["fold"]), rel=1e-12)
            if row["chosen"]:
                chosen.append((row["fold"], row))
    for fold, row in chosen:
        tested = run(with_values(entries, method, row) | {"seeds": [0]}, tmp_path, f"chosen-{fold}")
        pairs = [frame[(frame["fold"] == fold) & (frame["method"] == method)].reset_index(drop=True)
                 for frame in (tested.predictions, results.predictions)]  # fmt: skip
        pd.testing.assert_frame_equal(*pairs, check_exact=True)


def test_one_training_serves_methods_that_are_trained_in_the_same_way(finished):
    table = finished[2].search.drop(columns="method")
    parts = [table[finished[2].search["method"] == name].reset_index(drop=True) for name in ("single", "cross")]
    assert parts[0].equals(parts[1])


class Noting(Display):
    """Notes the jobs that were run, what was asked of the sites for each, and the numbers of their rounds."""

    def __init__(self, monkeypatch=None):
        self.ran, self.skipped, self.asked, self.rounds = [], [], {}, {}
        if monkeypatch is not None:
            original = Site.handle

            def handle(site, function, request):
                self.asked.setdefault(self.ran[-1] if self.ran else "before", set()).add(function)
                return original(site, function, request)

            monkeypatch.setattr(Site, "handle", handle)

    def job(self, number, title, skipped):
        (self.skipped if skipped else self.ran).append(title)

    def round(self, done, total):
        self.rounds.setdefault(self.ran[-1], set()).add(total)


def test_a_search_asks_no_site_about_test_cases(tmp_path, monkeypatch):
    display = Noting(monkeypatch)
    run(small(tmp_path, rounds=2), tmp_path, display=display)
    searched = {title for title in display.ran if title.startswith("search: ")}
    assert len(searched) == 4 * 3
    assert "search: single + cross, trial 1 of 3" in searched
    harmless = {"prepare", "start", "train", "evaluate", "keep", "save"}
    assert set().union(*(display.asked[title] for title in searched)) == harmless
    assert all("predict" in display.asked[title] for title in set(display.ran) - searched)
    assert {title: display.rounds[title] for title in searched} == {title: {2} for title in searched}
    assert set().union(*(display.rounds[title] for title in set(display.ran) - searched)) == {3}


def test_what_the_test_cases_are_changes_nothing_that_is_chosen(tmp_path):
    entries = small(tmp_path)
    entries["evaluation"] = {"split": "part", "validation": 0.3, "metrics": ["auc", "acc"], "bootstrap": 0}
    table = pd.read_csv(tmp_path / "cases.csv")
    table["part"] = np.where(np.arange(len(table)) % 4 == 3, "test", "train")
    table.to_csv(tmp_path / "cases.csv", index=False)
    first = run(entries, tmp_path, "first")
    test = table["part"] == "test"
    table.loc[test, ["x0", "x1", "x2"]] = np.random.default_rng(0).normal(50, 30, size=(int(test.sum()), 3))
    table.loc[test, "diagnosis"] = table.loc[test, "diagnosis"].to_numpy()[::-1]
    table.to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries, tmp_path, "second")
    assert (first.folder / "search.csv").read_bytes() == (second.folder / "search.csv").read_bytes()
    assert not first.predictions["score"].equals(second.predictions["score"])


@pytest.mark.parametrize("nested", [True, False])
def test_a_site_that_is_left_out_has_no_part_in_its_own_search(tmp_path, nested):
    """The site's cases are replaced by others: the searches without it stay the same, those with it do not."""
    entries = small(tmp_path, nested=nested, trials=2) | {"methods": ["fedavg", "fedprox"]}
    entries["evaluation"] |= {"unseen_sites": ["fedavg"], "folds": 2}
    first = run(entries, tmp_path, "first").search
    table = pd.read_csv(tmp_path / "cases.csv")
    other = table["site"] == "Bonn"
    table.loc[other, ["x0", "x1", "x2"]] = np.random.default_rng(0).normal(5, 3, size=(int(other.sum()), 3))
    table.to_csv(tmp_path / "cases.csv", index=False)
    second = run(entries, tmp_path, "second").search
    if not nested:
        assert set(first["method"]) == {"fedavg", "fedprox"}
        assert first["without"].eq("").all()
        assert first["fold"].isna().all()
        return
    assert set(named(first)["method"]) == {"fedavg", "fedprox", "fedavg (unseen site)"}
    assert first["without"].eq("").equals(first["run"] == "plain")
    assert set(first["without"]) == {"", *SIZES}
    same = first["score"] == second["score"]
    assert same.equals(first["without"] == "Bonn")


def test_one_search_for_all_folds_takes_the_mean_over_folds_and_seeds(tmp_path):
    methods, display = {"methods": ["single", "fedprox"]}, Noting()
    each = run(small(tmp_path, seeds=[5]) | methods, tmp_path, "each").search
    other = run(small(tmp_path, seeds=[6]) | methods, tmp_path, "other").search
    entries = small(tmp_path, nested=False, folds=2, seeds=[5, 6]) | methods
    one = run(entries, tmp_path, "one", display=display)
    keys = ["method", "trial"]
    means = pd.concat([each, other]).groupby(keys, sort=False)["score"].mean()
    found = one.search.set_index(keys)["score"]
    assert found.to_dict() == pytest.approx(means.to_dict(), rel=1e-12)
    assert one.search["fold"].isna().all()
    assert one.search.groupby("method")["chosen"].sum().eq(1).all()
    titles = [title.startswith("search: ") for title in display.ran]
    assert titles == [True] * (2 * 3 * 2 * 2) + [False] * (2 * 2), "the search comes first"


@pytest.mark.parametrize("nested", [True, False])
def test_a_study_with_a_fixed_split_can_be_searched(tmp_path, nested):
    entries = small(tmp_path, nested=nested)
    entries["evaluation"] = {"split": "part", "metrics": ["auc"], "bootstrap": 0}
    table = pd.read_csv(tmp_path / "cases.csv")
    table["part"] = np.resize(["train", "train", "train", "validation", "test", "test"], len(table))
    table.to_csv(tmp_path / "cases.csv", index=False)
    assert len(run(entries, tmp_path).search) == 5 * 3


def test_the_highest_metric_is_chosen(tmp_path):
    results = run(small(tmp_path, choose_by="metric"), tmp_path)
    for _, rows in results.search.groupby(["method", "fold"]):
        assert rows["score"].between(0, 1).all()
        assert rows.loc[rows["chosen"], "score"].item() == rows["score"].max()
        assert rows["score"].nunique() > 1
        assert rows["chosen"].to_numpy().argmax() == rows["score"].to_numpy().argmax(), "the first of equals"


def test_the_lowest_error_is_chosen(tmp_path):
    entries = write_number_study(tmp_path, SIZES) | {"methods": ["fedavg"]}
    entries["evaluation"] |= {"best_round": "metric", "metrics": ["mae"], "bootstrap": 0}
    entries["search"] = {"parameters": {"training.optimizer.adam.lr": [1e-5, 0.2]}, "rounds": 5}
    for _, rows in run(entries, tmp_path).search.groupby("fold"):
        assert rows.loc[rows["chosen"], "score"].item() == rows["score"].min()
        assert rows["score"].min() > 1, "in years, not in standard deviations"


def test_where_the_last_round_is_tested_the_last_round_is_scored(tmp_path):
    """With a large learning rate the loss of the last round is not the best one."""
    entries = small(tmp_path) | {"methods": ["fedavg"]}
    entries["search"] = {"parameters": {LR: [30.0]}, "seeds": [4]}
    best, last = (
        run(entries | {"evaluation": entries["evaluation"] | {"best_round": by}}, tmp_path, by).search["score"]
        for by in ("loss", "last")
    )
    assert (best <= last).all()
    assert (best < last).any()


def test_stacked_sites_search_as_well(finished, tmp_path):
    folder, entries, _ = finished
    (tmp_path / "cases.csv").write_bytes((folder / "cases.csv").read_bytes())
    search = entries["search"] | {"parameters": {LR: [1e-4, 0.3], BATCH: [4, 16]}}
    sequential, stacked = (
        run(
            entries | {"methods": ["fedbn", "fedprox"], "search": search, "engine": {"mode": mode, "threads": 1}},
            tmp_path,
            mode,
        ).search
        for mode in ("sequential", "stacked")
    )
    assert stacked.drop(columns=["score"]).equals(sequential.drop(columns=["score"]))
    np.testing.assert_allclose(stacked["score"], sequential["score"], atol=1e-4)


def test_no_site_is_corrupt_in_a_search_and_the_attacked_training_has_its_values(tmp_path):
    """Without an attack the search is the same; with the chosen values alone the attacked predictions are the same."""
    entries = small(tmp_path, nested=False, methods={}) | {"methods": ["fedavg"]}
    entries["attack"] = {"sites": ["Celle"], "label_flip": {}}
    attacked = run(entries, tmp_path, "attacked")
    clean = run({key: value for key, value in entries.items() if key != "attack"}, tmp_path, "clean")
    assert (attacked.folder / "search.csv").read_bytes() == (clean.folder / "search.csv").read_bytes()
    row = attacked.search[attacked.search["chosen"]].iloc[0]
    assert row[LR] == 0.3, "or the attacked training would show nothing"
    again = run(with_values(entries, "fedavg", {LR: row[LR], "mu": float("nan")}), tmp_path, "again")
    assert again.predictions.equals(attacked.predictions)
    assert set(named(again.predictions)["method"]) == {"fedavg", "fedavg (attacked)"}


# Trials that fail -----------------------------------------------------------------------------------------------------


def test_a_trial_that_diverges_is_noted_and_not_chosen(tmp_path):
    entries = small(tmp_path) | {"methods": ["fedavg", "mix"]}
    entries["search"] = {"parameters": {LR: [1e30]}}
    table = run(entries, tmp_path).search
    diverged = table[table[LR] == 1e30]
    assert len(diverged) == 4
    assert diverged["score"].isna().all()
    assert not diverged["chosen"].any()
    assert diverged["note"].str.contains("P301").all()
    assert table[table[LR] == 0.1]["chosen"].all()


def test_where_all_trials_diverge_the_study_says_so(tmp_path):
    entries = small(tmp_path) | {"methods": ["fedavg"], "search": {"parameters": {LR: [1e30]}}}
    entries["training"]["optimizer"] = {"sgd": {"lr": 1e29}}
    with pytest.raises(
        TrainingError, match="No configuration of fedavg that was searched gave a validation score"
    ) as e:
        run(entries, tmp_path)
    assert e.value.code == "P301"


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (SiteError("P402", "Too few.", causes=["P301", "P301"]), False),
        (SiteError("P402", "Too few.", causes=["P301", "P403"]), True),
        (SiteError("P402", "Too few."), True),
        (TrainingError("P303", "Out of memory."), True),
        (TrainingError("P301", "Not a number."), False),
    ],
)
def test_failures_of_other_kinds_stop_the_study(tmp_path, monkeypatch, error, stops):
    original = JobRunner.attempt

    def attempt(self, job, fold, **options):
        if job.trial == 1:
            raise error
        return original(self, job, fold, **options)

    monkeypatch.setattr(JobRunner, "attempt", attempt)
    entries = small(tmp_path) | {"methods": ["fedavg"], "search": {"parameters": {LR: [0.3]}}}
    if stops:
        with pytest.raises(type(error), match=error.message):
            run(entries, tmp_path)
    else:
        assert run(entries, tmp_path).search["note"].tolist() == ["", str(error)] * 2


def test_a_trial_that_went_on_without_a_site_says_so(tmp_path, monkeypatch):
    original = Site.handle

    def handle(site, function, request):
        if function == "train" and site.name == "Bonn" and request.fields["round"] == 1:
            raise TrainingError("P303", "Out of memory.")
        return original(site, function, request)

    monkeypatch.setattr(Site, "handle", handle)
    entries = small(tmp_path) | {"methods": ["fedavg"], "search": {"parameters": {LR: [0.3]}}}
    entries["training"]["quorum"] = 2
    table = run(entries, tmp_path).search
    assert table["note"].str.startswith("Round 2 went on without Bonn.").all()
    assert table["score"].notna().all()


def test_without_validation_cases_nothing_is_begun(tmp_path):
    entries = small(tmp_path)
    entries["evaluation"]["validation"] = 0.001
    table = pd.read_csv(tmp_path / "cases.csv").groupby("site").head(4)
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match="No site has validation patients in fold 0, by which a search chooses"):
        run(entries, tmp_path)
    assert not (tmp_path / "out").exists()


# Interruptions --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def killed(entries, folder, monkeypatch, out, moment):
    """Run the study until the n-th file would be put into its place."""
    original, left = Path.replace, [moment]

    def replace(path, target):
        left[0] -= 1
        if left[0] <= 0:
            raise Killed
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            run(entries, folder, out)


@pytest.mark.parametrize("moment", [4, 10, 11, 47, 101])
def test_a_search_that_was_killed_goes_on_to_the_same_bytes(finished, tmp_path, monkeypatch, moment):
    folder, entries, results = finished
    (tmp_path / "cases.csv").write_bytes((folder / "cases.csv").read_bytes())
    killed(entries, tmp_path, monkeypatch, "killed", moment)
    run(entries, tmp_path, "killed", resume=True)
    assert contents(tmp_path / "killed") == contents(results.folder)
    assert not (tmp_path / "killed" / "jobs").exists()


def test_finished_trials_are_not_run_again_and_leave_no_models(tmp_path):
    entries = small(tmp_path)

    class Stopping(Display):
        def job(self, number, title, skipped):
            if number == 7:
                raise Killed

    with pytest.raises(Killed):
        run(entries, tmp_path, display=Stopping())
    assert not list((tmp_path / "out" / "sites").glob("*/*.safetensors"))
    display = Noting()
    run(entries, tmp_path, resume=True, display=display)
    assert len(display.skipped) == 7
    assert len(display.ran) == 2 * (4 * 3 + 4) - 7


@pytest.mark.parametrize("change", [{"trials": 2}, None])
def test_another_search_is_not_resumed(tmp_path, monkeypatch, change):
    entries = small(tmp_path)
    killed(entries, tmp_path, monkeypatch, "out", 30)
    other = entries | {"search": None if change is None else entries["search"] | change}
    with pytest.raises(ResultsError, match="it differs in `search`"):
        run(other, tmp_path, resume=True)


# Without a search, and the report -------------------------------------------------------------------------------------


def test_a_study_without_a_search_has_no_traces_of_one(tmp_path):
    entries = {key: value for key, value in small(tmp_path).items() if key != "search"}
    results = run(entries, tmp_path)
    assert not (results.folder / "search.csv").exists()
    assert "search" not in yaml.safe_load((results.folder / "study.yaml").read_text())
    write_report(results.folder)
    assert "hyper-parameters" not in (results.folder / "report.html").read_text().lower()
    with pytest.raises(ResultsError, match="The study searched nothing"):
        _ = results.search


def test_the_report_says_what_was_tried_and_chosen(finished):
    _, _, results = finished
    text = write_report(results.folder).read_text(encoding="utf-8")
    section = text[text.index('<h2 id="search">') :].split("</section>")[0]
    assert "up to 3 configurations were tried" in section
    assert "scored on validation patients (loss). No test patient was looked at." in section
    assert "Each fold has a search of its own" in section
    assert "nested" not in section
    table = results.search
    for method, rows in table.groupby("method"):
        line = section[section.index(f'<th scope="row">{method}</th>') :].split("</tr>")[0]
        assert f"{rows[rows['chosen']]['score'].mean():.4g}" in line
        assert f"{rows[rows['trial'] == 0]['score'].mean():.4g}" in line
        assert all(f"{value:g}" in line for value in rows.loc[rows["chosen"], LR])
    (results.folder / "report.html").unlink()


def test_the_report_says_where_one_search_serves_all_folds(tmp_path):
    entries = small(tmp_path, nested=False, choose_by="metric", rounds=2) | {"methods": ["mix", "fedavg", "fedprox"]}
    entries["search"] |= {"parameters": {}}
    entries["evaluation"] |= {"unseen_sites": ["fedprox"]}
    results = run(entries, tmp_path)
    text = write_report(results.folder).read_text(encoding="utf-8")
    section = text[text.index('<h2 id="search">') :].split("</section>")[0]
    assert "for at most 2 rounds and scored on validation patients (Area under the ROC curve)" in section
    assert (
        "One search, on 1 fold, serves all folds. Its validation patients are test patients of other folds" in section
    )
    assert "Sites that were left out of training had a part in the search." in section
    assert "Nothing was searched for mix, fedavg." in section
