"""Data that are opened at each site alone are what they are where all stand in one table."""

import csv
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from polyclinic.data.open import open_data
from polyclinic.data.opening.agreement import agree
from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.opening.holder import Holder
from polyclinic.data.spec import DataSpec
from polyclinic.errors import PolyclinicError

COLUMNS = ("site", "patient", "dx", "x1", "x2", "code", "ward", "age")
#: Codes as people write them: numbers in several spellings, words, gaps, and codes that only look like numbers.
CODES = st.sampled_from(["1", "1.0", "2", "02", "", "a", "A", "1E2", "100", "yes"])
LABELS = st.sampled_from(["0", "1", "1.0", "2", "", "NA"])
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["A", "B", "C"]), st.integers(0, 9).map(lambda n: f"p{n}"), LABELS,
        st.floats(-5, 5).map(lambda x: f"{x:.3f}"), st.sampled_from(["", "1", "2.5", "-3"]), CODES, CODES,
        st.sampled_from(["30", "41.5", "67", ""]),
    ),
    min_size=4, max_size=40,
)  # fmt: skip
ENTRIES = st.fixed_dictionaries({
    "unlabelled": st.sampled_from(["reject", "use"]),
    "imputation": st.sampled_from(["mean", "drop"]),
    "categorical": st.sampled_from([[], ["code"], ["code", "ward"]]),
    "harmonisation": st.sampled_from([
        "none", {"combat": {"covariates": ["age"]}}, {"combat": {"covariates": ["ward"]}},
        {"combat": {"covariates": ["age"], "groups": ["ward"]}},
    ]),
    "positive": st.sampled_from([None, 1, ["1", "2"], "> 0.5"]),
    "categories": st.sampled_from([{}, {"code": [1, "a", "yes"]}]),
})  # fmt: skip


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def apart(spec, folder, sites):
    """The cases and the cohort of sites each of which reads a table of its own."""
    holders = {site: Holder(spec, folder / site, "labels", only=site) for site in sites}
    agreement = agree({site: holder.census(site) for site, holder in holders.items()}, spec, "labels")
    found = {site: holder.open(site, agreement) for site, holder in holders.items()}
    facts = {site: holder.facts(site) for site, holder in holders.items()}
    cohort = Cohort.of(facts, agreement, spec, "labels", [])
    return {site: data for site, data in found.items() if data is not None}, cohort


def same(one, other):
    return torch.equal(torch.nan_to_num(one, nan=-77.0), torch.nan_to_num(other, nan=-77.0))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, entries=ENTRIES)
def test_each_site_alone_opens_what_all_together_open(rows, entries):
    if entries["categories"] and "code" not in entries["categorical"]:
        entries = {**entries, "categories": {}}
    entries = {key: value for key, value in entries.items() if value is not None}
    spec = DataSpec.model_validate({
        "table": "t.csv", "site": "site", "subject": "patient", "label": "dx", "features": ["x1", "x2"], **entries,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "t.csv", rows)
        sites = sorted({row[0] for row in rows})
        for site in sites:
            (folder / site).mkdir()
            write(folder / site / "t.csv", [row for row in rows if row[0] == site])
        try:
            together = open_data(spec, folder, "labels")
        except PolyclinicError as error:
            event(error.code)
            with pytest.raises(PolyclinicError, match=error.code):
                apart(spec, folder, sites)
            return
        event("opened")
        alone, cohort = apart(spec, folder, sites)
    assert cohort.features == together.features
    assert cohort.classes == together.classes
    assert cohort.covariates == together.covariates
    assert list(alone) == list(together.sites)
    for site, data in together.sites.items():
        mine = alone[site]
        assert same(data.inputs, mine.inputs)
        assert same(data.targets, mine.targets)
        assert data.subjects == mine.subjects
        assert data.counts.rejected == mine.counts.rejected
        assert data.counts.unlabelled == mine.counts.unlabelled
        assert (data.covariates is None) == (mine.covariates is None)
        assert data.covariates is None or same(data.covariates, mine.covariates)
    left = {site: dict(counts.rejected) for site, counts in together.left_out.items()}
    assert left == {site: facts.rejected for site, facts in cohort.left_out.items()}
