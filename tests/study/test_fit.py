"""What is said of a study whose parts do not fit its data or its network, and of training gone wrong."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from helpers import declare, write_table_study
from polyclinic.errors import StudyError
from polyclinic.models import build_model
from polyclinic.study.job import Fold, SiteParts
from polyclinic.study.notes import diverged, idle_parts, rows_as_patients, ungrouped
from polyclinic.study.study import Study

SIZES = {"Aachen": 12, "Bonn": 12, "Celle": 12, "Dresden": 12}


@pytest.mark.parametrize(
    ("participation", "message"),
    [
        ({"uniform": {"sites": 9}}, "chooses among 9 sites in each round, and there are 4: Aachen, Bonn"),
        ({"highest_loss": {"sites": 5}}, "chooses among 5 sites"),
        ({"highest_loss": {"sites": 2, "candidates": 6}}, "chooses among 6 sites"),
        (["poisson", {"uniform": {"sites": 5}}], "chooses among 5 sites"),
    ],
)
def test_participation_of_more_sites_than_there_are_is_refused(tmp_path, participation, message):
    entries = write_table_study(tmp_path, SIZES)
    entries["training"]["participation"] = participation
    for ask in (Study.check, lambda study: study.run(tmp_path / "out")):
        with pytest.raises(StudyError, match=f"P104 .*{message}.* Give a number of at most 4."):
            ask(Study.of(entries, tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("subgroup", "options", "message"),
    [
        ("sex", {"group": "f"}, "looks at the group 'f' of the subgroup 'sex', whose groups are 'F', 'M'"),
        ("sex", {"group": "not known"}, "whose groups are 'F', 'M'"),
        ({"x1": [-9, 0, 9]}, {"group": "0 to below 9"}, "whose groups are '-9 to below 0', '0 to 9'"),
    ],
)
def test_a_group_that_is_not_there_is_found_by_a_check(tmp_path, subgroup, options, message):
    entries = write_table_study(tmp_path, SIZES)
    table = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    table.assign(sex=[("F", "M", "")[row % 3] for row in range(len(table))]).to_csv(tmp_path / "cases.csv", index=False)
    entries["evaluation"]["subgroups"] = [subgroup]
    column = subgroup if isinstance(subgroup, str) else next(iter(subgroup))
    entries["methods"] = ["fedavg", {"fairfed": {"subgroup": column, **options}}]
    with pytest.raises(StudyError, match=f"P104 .*{message}"):
        Study.of(entries, tmp_path).check()
    entries["methods"][1]["fairfed"]["group"] = "F" if column == "sex" else "0 to 9"
    Study.of(entries, tmp_path).check()


def test_a_rule_for_two_classes_is_refused_for_three_by_a_check(tmp_path):
    entries = write_table_study(tmp_path, SIZES, classes=3)
    entries["evaluation"] |= {"subgroups": [{"x1": [-9, 0, 9]}], "metrics": ["acc"]}
    entries["methods"] = ["fedavg", {"fairfed": {"subgroup": "x1", "group": "0 to 9"}}]
    with pytest.raises(StudyError, match=r"P104 equal_opportunity \(fairfed.*\) is for 2 classes, and there are 3"):
        Study.of(entries, tmp_path).check()


def test_participation_of_all_sites_is_fine(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    entries["training"]["participation"] = {"highest_loss": {"sites": 4, "candidates": 4}}
    Study.of(entries, tmp_path).check()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"local_steps": {"Aachn": 3}}, "`training: {local_steps: ...}` names the site 'Aachn'"),
        ({"participation": {"availability": {"probability": {"Aachn": 0.5}}}}, "names the site 'Aachn'"),
    ],
)
def test_a_site_that_is_not_there_is_found_by_a_check(tmp_path, training, message):
    entries = write_table_study(tmp_path, SIZES)
    entries["training"] |= training
    with pytest.raises(StudyError, match=f"P103 .*{message}.* Did you mean 'Aachen'?"):
        Study.of(entries, tmp_path).check()


@pytest.mark.parametrize(("entry", "delta", "words"), [
    ({"local": [{"dp_sgd": {"noise": 1}}]}, 0.125, "1/8, one by the number of training patients of site Dresden"),
    ({"channel": ["clip", {"gaussian_noise": {"noise": 1}}]}, 0.5, "1/8, one by the number of training patients"),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}]}, 0.25, "1/4, one by the number of sites"),
])  # fmt: skip
def test_a_delta_that_allows_to_tell_one_patient_is_refused(tmp_path, entry, delta, words):
    """Two of three folds of 12 patients are 8, each with two images."""
    entries = write_table_study(tmp_path, {**SIZES, "Bonn": 9})
    table = pd.read_csv(tmp_path / "cases.csv")
    pd.concat([table, table]).to_csv(tmp_path / "cases.csv", index=False)
    entries |= {"methods": [{"fedavg": entry}], "model": "logistic", "privacy": {"delta": delta}}
    entries["evaluation"] |= {"folds": 3, "validation": 0, "best_round": "last"}
    with pytest.raises(StudyError, match=f"P102 .*{words}"):
        Study.of(entries, tmp_path).run(tmp_path / "out")
    Study.of(entries | {"privacy": {"delta": 0.12}}, tmp_path).run(tmp_path / "out")


@pytest.mark.parametrize(("entry", "subject", "told"), [
    ({"local": [{"dp_sgd": {"noise": 1}}]}, None, True), ({"local": [{"dp_sgd": {"noise": 1}}]}, "patient", False),
    ({"channel": ["clip", {"central_noise": {"noise": 1}}]}, None, False), ({}, None, False),
])  # fmt: skip
def test_noise_for_rows_instead_of_patients_is_told(entry, subject, told):
    study = declare(methods=["single", {"fedavg": {**entry, "label": "noisy"}}])
    study = study.model_copy(update={"data": study.data.model_copy(update={"subject": subject})})
    fold = Fold(0, {"A": 6, "B": 1200}, {"A": 2, "B": 0}, {"A": 2, "B": 3}, {})
    found = [str(note) for note in rows_as_patients(study, [fold])]
    assert len(found) == told
    if told:
        assert found[0].startswith("noisy: noise protects one row, since")
        assert "each of 1,213 rows of 2 sites counts as a patient" in found[0]


def test_an_attack_that_reaches_no_method_is_refused(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    entries |= {"methods": ["single", "mix"], "attack": {"sites": 1, "sign_flip": {}}}
    with pytest.raises(StudyError, match=r"P104 .*attack\.sign_flip: .* no method of this study has one: single, mix"):
        Study.of(entries, tmp_path).check()
    Study.of(entries | {"attack": {"sites": 1, "label_flip": {}}}, tmp_path).check()  # their cases can be corrupt


def notes(model, *methods, **training):
    study = declare(model=model, methods=list(methods), training=training)
    return idle_parts(study, build_model(*study.model_part, (3,), 2).layout)


def test_methods_without_anything_to_work_on_are_told():
    same = "{} is the same as without its rule {} here: {}."
    empty = "logistic has no layers before its head"
    assert notes("logistic", "moon") == [same.format("moon", "model_contrastive", empty)]
    assert notes({"mlp": {"hidden": []}}, "moon") == [
        same.format("moon", "model_contrastive", "mlp has no layers before its head")
    ]
    assert notes({"logistic": {"norm": "batch"}}, "moon") == notes("mlp", "moon", "fedprox") == []
    once = "it is zero in the first local step of a round, and there is no other"
    assert notes("mlp", "fedprox", "scaffold", local_steps=1) == [same.format("fedprox", "proximal", once)]
    assert notes("logistic", "fedbn") == [
        "fedbn shares the whole model here: logistic has nothing of what it would keep at the sites."
    ]


def rounds(**losses):
    """Rows of rounds.csv: method -> loss at the sites A and B in each round."""
    return pd.DataFrame([
        {"method": method, "run": "plain", "seed": 0, "fold": 0, "round": number, "site": site, "loss": loss}
        for method, each in losses.items() for number, pair in enumerate(each)
        for site, loss in zip("AB", pair, strict=True)
    ])  # fmt: skip


FOLD = Fold(0, {"A": 10, "B": 10}, {}, {}, {"A": [9, 1], "B": [9, 1]})


def test_sites_that_can_not_tell_how_a_group_fares_are_told():
    """At B the test part alone has women, at C nobody's sex is known, D trains nothing."""
    sexes = {
        "A": {"F": [3, 0, 1], "M": [2, 1, 1]}, "B": {"F": [0, 0, 4], "M": [5, 1, 1]},
        "C": {"F": [5, 0, 0], "not known": [4, 1, 1]}, "D": {},
    }  # fmt: skip
    counted = {site: SiteParts([], [], {"sex": groups}) for site, groups in sexes.items()}
    fold = Fold(0, {"A": 5, "B": 5, "C": 9, "D": 0}, {}, {}, {}, counted=counted)
    study = declare(methods=["fedavg", {"fairfed": {"subgroup": "sex", "group": "F", "label": "fair"}}],
                    evaluation={"subgroups": ["sex"]})  # fmt: skip
    assert ungrouped(study, [fold]) == [
        "fair: no training case is in the group 'F' of 'sex', or none in another known one, at B, C (2 of 4 sites). "
        "equal_opportunity can't tell there how differently the model treats them."
    ]
    assert ungrouped(study, [replace(fold, counted={"A": counted["A"]})]) == []


def test_a_method_whose_loss_ends_far_above_guessing_is_told():
    study = declare(methods=["single", "fedavg", "fedbn"])
    # Guessing between two classes costs log 2 < 1, and 20 times 1 is far above; only the last round counts.
    table = rounds(single=[(0.7, 0.7), (0.6, 0.1)], fedavg=[(0.7, 0.7), (0.6, 1.3e9)], fedbn=[(900, 21), (19.9, 0.6)])
    assert diverged(study, table, [FOLD]) == [
        "Training diverged: its loss ends far above that of a model that guesses, at 1.3e+09 for fedavg (site B, "
        "round 2). Lower the learning rate (`training: {optimizer: ...}`), or set `training: {clip: 1.0}`."
    ]
    assert diverged(study, rounds(single=[(0.7, 20.1)], fedavg=[(math.inf, 1)]), [FOLD])[0].count("for ") == 2


def test_losses_that_are_high_by_the_weights_of_classes_are_no_divergence():
    table = rounds(fedavg=[(25.0, 25.0)])
    assert diverged(declare(methods=["fedavg"]), table, [FOLD])
    # 20 cases, 2 of them of the second class, which so weighs 20 / (2 * 2) = 5.
    for weights in ("balanced", [1, 5]):
        assert not diverged(declare(methods=["fedavg"], training={"class_weights": weights}), table, [FOLD])


def test_a_whole_study_that_diverges_says_so(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    table = pd.read_csv(tmp_path / "cases.csv")
    table["diagnosis"] = table["diagnosis"].sample(frac=1, random_state=0).to_numpy()  # nothing to be learned
    table.to_csv(tmp_path / "cases.csv", index=False)
    entries |= {"model": "logistic", "methods": ["fedavg"]}
    assert not Study.of(entries, tmp_path).run(tmp_path / "fine").notes
    entries["training"]["optimizer"] = {"sgd": {"lr": 1e3}}
    found = Study.of(entries, tmp_path).run(tmp_path / "out").notes
    assert [note.split(":")[0] for note in found] == ["Training diverged"]
    assert "Training diverged" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_mixed_precision_on_a_processor_is_float32_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder: folder)
    entries = write_table_study(tmp_path, {"A": 12, "B": 12}) | {"methods": ["fedavg"]}
    plain = Study.of(entries, tmp_path).run(tmp_path / "plain")
    engine = {**entries["engine"], "precision": "mixed", "device": "cpu"}
    mixed = Study.of(entries | {"engine": engine}, tmp_path).run(tmp_path / "mixed")
    assert [note.number for note in mixed.notes] == ["N105"]
    pd.testing.assert_frame_equal(mixed.results, plain.results)
