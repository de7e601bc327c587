"""What YAML would change and a study file does not: codes, times, dates and small words."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from polyclinic.errors import StudyError
from polyclinic.study.reading import read_yaml
from polyclinic.study.study import Study
from polyclinic.study.writing import study_text


@pytest.fixture
def read(tmp_path):
    """The content of a study file with this text."""

    def of(text):
        (tmp_path / "s.yaml").write_text(text + "\n", encoding="utf-8")
        return read_yaml(tmp_path / "s.yaml")[0]

    return of


TRICKY = ["010", "009", "0o17", "0x1F", "0b11", "1_000", "12:30:00", "12:30", "2021-01-01", "yes", "No", "on", "OFF",
          "y", "n", "1e3", "1.5E-3", ".5", "5.", "+1", "=", ".inf", ".nan", "999000011000000103", "0.12345678901234567",
          "2021-01-01 10:00:00", "190:20:30.15"]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
def test_values_of_a_table_are_what_is_written(read, text):
    content = read(f"data: {{where: {{code: {text}, other: [{text}, 3]}}, positive: {text}, classes: [{text}, 1.50]}}")
    assert content["data"] == {
        "where": {"code": text, "other": [text, 3]}, "positive": text, "classes": [text, 1.5],
    }  # fmt: skip


def test_plain_numbers_and_truth_stay_what_they_are(read):
    found = read("data: {positive: [1, -2, 0, 1.0, 0.5, true, FALSE, '1', 'true', a b]}")["data"]["positive"]
    assert found == [1, -2, 0, 1.0, 0.5, True, False, "1", "true", "a b"]
    assert [type(value) for value in found] == [int, int, int, float, float, bool, bool, str, str, str]


@pytest.mark.parametrize("text", [*TRICKY, "1", "1.0", "true", "null", "~"])
def test_names_are_what_is_written(read, text):
    content = read(
        f"data: {{tables: {{{text}: a.csv}}, where: {{{text}: 1}}}}\ntraining: {{local_epochs: {{{text}: 5}}}}"
    )
    assert content == {
        "data": {"tables": {text: "a.csv"}, "where": {text: 1}}, "training": {"local_epochs": {text: 5}},
    }  # fmt: skip


@pytest.mark.parametrize("text", [*TRICKY, "1", "1.0", "true"])
def test_columns_and_sites_are_what_is_written(read, text):
    content = read(
        f"study: {text}\n"
        f"data: {{table: {text}, site: {text}, columns: [{text}, b], categorical: [{text}], missing: [{text}],\n"
        f"  harmonisation: {{combat: {{groups: [{text}], reference_site: {text}}}}}}}\n"
        f"evaluation: {{split: {text}}}\n"
        f"attack: {{sites: [{text}], missing_class: {{label: 010}}}}\n"
        f"methods: [{{fedavg: {{label: {text}}}}}]"
    )
    assert content == {
        "study": text,
        "data": {
            "table": text, "site": text, "columns": [text, "b"], "categorical": [text], "missing": [text],
            "harmonisation": {"combat": {"groups": [text], "reference_site": text}},
        },
        "evaluation": {"split": text},
        "attack": {"sites": [text], "missing_class": {"label": "010"}},
        "methods": [{"fedavg": {"label": text}}],
    }  # fmt: skip


def test_numbers_of_sites_and_masks_stay_numbers(read):
    content = read("attack: {sites: 2}\ndata: {mask_classes: {core: [1, 4], no: 2}, size: [8, 8]}\nseed: 1_000")
    assert content["attack"] == {"sites": 2}
    assert content["data"] == {"mask_classes": {"core": [1, 4], "no": 2}, "size": [8, 8]}
    assert content["seed"] == 1000
    assert read("evaluation: {unseen_sites: true}\nreport: {overlays: no}") == {
        "evaluation": {"unseen_sites": True}, "report": {"overlays": False},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("seed: 1\ntraining: {rounds: 010}", 2, "010 with a 0 in front is a code, or a number in base 8 to YAML"),
        ("seed: 007", 1, "007 with a 0 in front is a code"),
        ("training:\n  rounds: 0o10", 2, "0o10 is a number in base 8 to some programs"),
        ("training:\n  time_budget: 1:30", 2, "1:30 is a time, or a number in base 60 to YAML"),
        ("model: {mlp: {hidden: [8, 008]}}", 1, "008 with a 0 in front is a code"),
        ("data:\n- 010", 2, "010 with a 0 in front"),
        ("data:\n  tables:\n    ? [a]\n    : b.csv", 3, "a list or a mapping can't be the name of an entry."),
    ],
)
def test_elsewhere_such_a_number_is_refused(read, text, line, expected):
    with pytest.raises(StudyError) as caught:
        read(text)
    assert str(caught.value).startswith(f"P102 s.yaml, line {line}: {expected}")


def test_in_quotes_everything_is_a_text(read):
    assert read("training: {rounds: '010'}\nmodel: \"12:30\"") == {"training": {"rounds": "010"}, "model": "12:30"}


def test_through_an_alias_a_scalar_is_what_its_place_says(read):
    content = read("data: {where: {code: &code 1e1, n: [*code]}}\nmodel: {mlp: {dropout: *code}}")
    assert content == {"data": {"where": {"code": "1e1", "n": ["1e1"]}}, "model": {"mlp": {"dropout": 10.0}}}


def test_aliases_do_not_multiply(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert len(read("\n".join(lines))) == 12


def test_a_key_twice_in_two_spellings(read):
    with pytest.raises(StudyError, match="the key '1' is given twice"):
        read("data: {tables: {1: a.csv, '1': b.csv}}")


@given(st.text(min_size=1, max_size=12) | st.sampled_from(TRICKY))
def test_a_study_file_that_was_written_reads_as_the_same_study(tmp_path_factory, text):
    content = {
        "study": text,
        "data": {"site": text, "where": {text: [text, 1, 0.5, True]}, "positive": text},
        "methods": [{"fedavg": {"label": text}}],
    }
    path = tmp_path_factory.mktemp("written") / "s.yaml"
    path.write_text(study_text(content), encoding="utf-8")
    assert read_yaml(path)[0] == content


def test_zero_padded_centres(tmp_path):
    rows = [
        f"{centre:03},P{centre}-{i},{'010' if i % 2 else '008'},{i % 7}" for centre in range(1, 13) for i in range(10)
    ]
    (tmp_path / "t.csv").write_text("centre,pid,icd,f\n" + "\n".join(rows) + "\n")
    (tmp_path / "s.yaml").write_text(
        "data: {table: t.csv, site: centre, subject: pid, label: icd, features: f,\n"
        "  where: {centre: [009, 010, 011, 012]}, positive: 010}\n"
        "model: logistic\nattack: {sites: [010], label_flip: {}}\n"
    )
    study = Study.read(tmp_path / "s.yaml")
    opened = study.open()
    assert list(opened.sites) == ["009", "010", "011", "012"]
    assert opened.classes == ["icd not 010", "icd 010"]
    assert opened.sites["009"].targets.tolist() == [0, 1] * 5
    assert study.declaration.corrupted_by.names == ("010",)


def test_a_site_called_no(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(
            "pid,on,f\n" + "".join(f"{name}{i},{'yn'[i % 2]},{i}\n" for i in range(6))
        )
    (tmp_path / "s.yaml").write_text(
        "data: {tables: {NO: a.csv, SE: b.csv}, subject: pid, label: on, positive: y, features: f}\nmodel: logistic\n"
    )
    opened = Study.read(tmp_path / "s.yaml").open()
    assert list(opened.sites) == ["NO", "SE"]
    assert opened.sites["NO"].targets.tolist() == [1, 0] * 3
