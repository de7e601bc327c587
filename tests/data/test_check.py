from collections import Counter

import pandas as pd
import pytest
import torch

from polyclinic.data.cases import Counts, SiteData, reasons_text
from polyclinic.data.check import quality_notes
from polyclinic.data.opening.facts import SiteFacts, facts_frame

NAN = float("nan")


def frame_of(sites, classes, *, subjects_named=True):
    facts = {data.site: SiteFacts.of(data, len(classes), subjects_named=subjects_named) for data in sites}
    return facts_frame(facts, classes)


def test_a_row_for_each_site(make_site):
    first = make_site([0, 1, 1], ["p", "q", "q"], inputs=torch.tensor([[1.0, NAN], [1.0, NAN], [2.0, 3.0]]))
    first.counts = Counts(6, 3, Counter({"x is missing": 2, "dx is missing": 1}))
    second = make_site([0, 0], site="B", inputs=torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
    frame = frame_of([first, second], ["no", "yes"])
    expected = pd.DataFrame(
        {
            "site": ["A", "B"],
            "found": [6, 2],
            "used": [3, 2],
            "rejected": [3, 0],
            "reasons": ["x is missing (2), dx is missing (1)", ""],
            "patients": [2, 2],
            "class: no": [1, 2],
            "class: yes": [2, 0],
            "missing": [100 * 2 / 6, 0.0],
            "duplicates": [1, 0],
        }
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_segmentation():
    masks = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    masks[0, 0, 0] = 1
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    data = SiteData("A", images, masks, ["p", "q"], ["1", "2"], None, Counts(2, 2))
    row = frame_of([data], ["background", "foreground"], subjects_named=False).iloc[0]
    assert row["foreground"] == pytest.approx(0.25)
    assert (row["patients"], row["missing"], row["duplicates"]) == (2, 0.0, 1)


def test_reasons():
    assert reasons_text(Counter({"b": 1, "a": 1, "c": 5})) == "c (5), a (1), b (1)"


def test_features_constant_within_a_site_are_listed_once(make_site):
    sites = {
        "A": make_site([0, 1], inputs=torch.tensor([[1.0, 1.0], [1.0, 2.0]])),
        "B": make_site([0, 1], inputs=torch.tensor([[2.0, 5.0], [3.0, 5.0]])),
    }
    assert quality_notes(sites, ["x", "y"], ["0", "1"], subjects_named=False) == [
        "Features that are constant within a site, though not over all: A (x), B (y)."
    ]


def test_many_constant_features_are_counted(make_site):
    sites = {
        "A": make_site([0, 1], inputs=torch.tensor([[1.0] * 6 + [1.0], [1.0] * 6 + [2.0]])),
        "B": make_site([0, 1], inputs=torch.tensor([[2.0] * 7, [3.0] * 7])),
    }
    assert quality_notes(sites, list("tuvwxyz"), ["0", "1"], subjects_named=False) == [
        "Features that are constant within a site, though not over all: A (6)."
    ]


def test_long_lists_are_cut(make_site):
    sites = {"A": make_site([0, 1], inputs=torch.zeros(2, 7))}
    warnings = quality_notes(sites, list("abcdefg"), ["0", "1"], subjects_named=False)
    assert "7 features are constant over all sites: a, b, c, d, e and 2 more." in warnings
