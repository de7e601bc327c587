"""A table that is the same up to its format gives the same study, or is refused."""

import csv
import io
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from polyclinic.data.open import open_data
from polyclinic.data.spec import DataSpec
from polyclinic.errors import DataError

SPEC = {
    "table": "t.csv", "site": "site", "subject": "id", "label": "label", "features": ["x", "code"],
    "categorical": ["code"],
}  # fmt: skip
WORDS = st.text(st.sampled_from("abé,;|\t\"' #-.01"), min_size=1, max_size=6).map(str.strip).filter(
    lambda text: text not in ("", "NA", "all") and not text.startswith("#")
)  # fmt: skip
NUMBERS = st.integers(-(10**6), 10**6) | st.sampled_from(["0.5", "-12.25", "1e-3", "", "123.456"])


@st.composite
def tables(draw):
    """Rows of site, patient, label, a number, a code, and a column that nothing uses."""
    codes = draw(st.lists(WORDS, min_size=2, max_size=4, unique=True))
    labels, sites = (
        draw(st.lists(WORDS, min_size=2, max_size=3, unique=True)),
        draw(st.lists(WORDS, min_size=1, max_size=3)),
    )
    rows = []
    for number in range(draw(st.integers(4, 9))):
        rows.append({
            "site": draw(st.sampled_from(sites)), "id": f"{number:03}", "label": draw(st.sampled_from(labels)),
            "x": str(draw(NUMBERS)), "code": draw(st.sampled_from(codes)), "other": draw(st.just("") | WORDS),
        })  # fmt: skip
    return rows


@st.composite
def formats(draw):
    """How a program may write a table."""
    return {
        "separator": draw(st.sampled_from([",", "\t", ";", "|"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "ends": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "mark": draw(st.booleans()),
        "named": draw(st.booleans()),
        "comment": draw(st.booleans()),
        "surplus": draw(st.integers(0, 2)),
        "blanks": draw(st.booleans()),
        "ended": draw(st.booleans()),
        "zeros": draw(st.sampled_from(["", ".0", ".00", "."])),
        "columns": draw(st.permutations(["site", "id", "label", "x", "code", "other"])),
        "order": draw(st.randoms(use_true_random=False)),
    }


def written(rows, form):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=form["separator"], quoting=form["quoting"], lineterminator=form["ends"])
    rows = list(rows)
    form["order"].shuffle(rows)
    padding = " " if form["blanks"] and form["quoting"] == csv.QUOTE_MINIMAL else ""
    for row in [{name: name for name in form["columns"]}, *rows]:
        cells = [row[name] for name in form["columns"]]
        if row["x"].lstrip("-").isdigit():
            cells[form["columns"].index("x")] += form["zeros"]
        writer.writerow([f"{cell}{padding}" for cell in cells] + [""] * form["surplus"])
    text = file.getvalue()
    text = text if form["ended"] else text.removesuffix(form["ends"])
    if form["named"]:
        text = f"sep={form['separator']}{form['ends']}{text}"
    elif form["comment"]:
        text = f"# made by a program{form['ends']}{text}"
    return text.encode("utf-8-sig" if form["mark"] else "utf-8")


def study(folder, content):
    """What a study takes from a table: for each site its patients with features and labels; names; or the refusal."""
    (folder / "t.csv").write_bytes(content)
    try:
        opened = open_data(DataSpec.model_validate(SPEC), folder, "labels")
    except DataError as error:
        return error
    sites = {
        site: sorted(zip(data.subjects, map(repr, data.inputs.tolist()), data.targets.tolist(), strict=True))
        for site, data in opened.sites.items()
    }
    return sites, opened.features, opened.classes


PLAIN = {"separator": ",", "quoting": csv.QUOTE_ALL, "ends": "\n", "mark": False, "named": True, "comment": False,
         "surplus": 0, "blanks": False, "ended": True, "zeros": "",
         "columns": ["site", "id", "label", "x", "code", "other"]}  # fmt: skip


class InOrder:
    def shuffle(self, rows):
        pass


@settings(max_examples=60)
@given(tables(), formats())
def test_the_format_changes_nothing(tmp_path_factory, rows, form):
    folder = tmp_path_factory.mktemp("formats", numbered=True)
    plain, other = study(folder, written(rows, PLAIN | {"order": InOrder()})), study(folder, written(rows, form))
    if not isinstance(plain, DataError) and not isinstance(other, DataError):
        assert other == plain


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_ordinary_tables_are_read_in_every_format(tmp_path, separator, quoting):
    rows = [
        {"site": f"Ward {i % 2}", "id": f"{i:03}", "label": "yes" if i % 3 else "no", "x": f"{i}", "code": f"0{i % 2}",
         "other": "a, b; c | d"}
        for i in range(12)
    ]  # fmt: skip
    plain = study(tmp_path, written(rows, PLAIN | {"order": InOrder()}))
    assert list(plain[0]) == ["Ward 0", "Ward 1"]
    assert plain[1:] == (["x", "code=00", "code=01"], ["no", "yes"])
    changes = [
        {}, {"ends": "\r\n"}, {"ends": "\r"}, {"mark": True}, {"named": False}, {"named": False, "comment": True},
        {"surplus": 2}, {"surplus": 1, "named": False}, {"blanks": True}, {"ended": False}, {"zeros": ".00"},
        {"columns": PLAIN["columns"][::-1]},
    ]  # fmt: skip
    for first, second in pairwise([*changes, {}]):
        form = PLAIN | {"separator": separator, "quoting": quoting, "order": InOrder()} | first | second
        assert study(tmp_path, written(rows, form)) == plain
