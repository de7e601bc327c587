"""Patterns of paths."""

import pytest

from polyclinic.data.readers.names.pattern import Pattern
from polyclinic.errors import DataError


def fields(text, path):
    fit = Pattern.parse(text).fit(path)
    if fit is None:
        return None
    named = fit.named
    return fit.site, *named.subject, *named.parts, named.run, named.shows, *named.details, named.is_mask


def test_fields():
    assert fields("{subject}/{session}/{contrast}.nii.gz", "P1/2019/T1.nii.gz") == ("", "P1", "2019", "", "T1w", False)
    assert fields("{site}/{subject}_r{run}.nii", "north/P1_r2.nii") == ("north", "P1", "2", "", False)
    assert fields("{subject}/{contrast}", "P1/T1_brain.nii.gz") == ("", "P1", "", "T1w", "brain", False)
    assert fields("{subject}/{contrast}", "P1/T1_brain.nii") == ("", "P1", "", "T1w", "brain", False)
    assert fields("{subject}/{contrast}.nii", "P1/odd kind.nii") == ("", "P1", "", "odd_kind", False)
    assert fields("{subject}/{contrast}.nii", "P1/T1_seg.nii") == ("", "P1", "", "T1w", True)
    assert fields("{subject}/{mask}.nii", "P1/liver.nii") == ("", "P1", "", "", "liver", True)
    assert fields("masks/{subject}.nii", "masks/P1.nii") == ("", "P1", "", "", True)


def test_wildcards_and_repeated_fields():
    assert fields("**/{subject}/*/{contrast}.nii", "a/b/P1/x/T1.nii")[1] == "P1"
    assert fields("**/{subject}/*/{contrast}.nii", "P1/x/T1.nii")[1] == "P1"
    assert fields("{subject}/{subject}_{contrast}.nii", "P_1/P_1_T1.nii")[1:] == ("P_1", "", "T1w", False)
    assert fields("{subject}/{subject}_{contrast}.nii", "P_1/P_2_T1.nii") is None
    assert fields("{subject}/**", "P1/a/b/c.nii")[1] == "P1"
    assert fields("{subject}.nii.gz", "my.dotted.name.nii.gz")[1] == "my.dotted.name"


def test_paths_that_can_be_taken_apart_in_several_ways_do_not_fit():
    assert fields("{subject}_{contrast}.nii", "P1_T1.nii")[1] == "P1"
    assert fields("{subject}_{contrast}.nii", "P_1_T1.nii") is None
    assert fields("P_{subject}_{contrast}.nii", "P_1_T1.nii")[1] == "1"
    assert fields("{subject}-{session}-{contrast}.nii", "G-00001-000-t1c.nii") is None
    assert fields("**/{subject}/**/{contrast}.nii", "a/b/c/T1.nii") is None


def test_a_star_may_hold_separators_where_fields_do_not():
    assert fields("{subject}/*_{contrast}.nii", "P1/P1_2019_T1.nii") == ("", "P1", "", "T1w", False)
    assert fields("{subject}_*.nii", "P1_a_b.nii")[1] == "P1"
    assert fields("*_{subject}_*.nii", "a_P1_b_c.nii") is None


def test_what_does_not_fit():
    for path in ("P1/T1.nii.gz", "P1/v1/T1.mnc", "P1/v1/x/T1.nii.gz", "/v1/T1.nii.gz", "P1/v1/ .nii.gz"):
        assert fields("{subject}/{session}/{contrast}.nii.gz", path) is None, path


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{session}/{contrast}.nii", "which has no {subject}"),
        ("{patient}/{contrast}.nii", "with the unknown field {patient}"),
        ("{subject}{session}.nii", "with nothing between two fields"),
        ("{subject}*.nii", "with nothing between two fields"),
        ("{subject/x.nii", "with a brace that has no partner"),
        ("/data/{subject}.nii", "which is no path relative to the folder"),
        ("a\\{subject}.nii", "which is no path relative to the folder"),
        ("", "which is no path relative to the folder"),
    ],
)
def test_bad_patterns(text, what):
    with pytest.raises(DataError, match="P203") as caught:
        Pattern.parse(text)
    assert what in caught.value.message
    assert repr(text) in caught.value.message
    assert 'Expected a path such as "{subject}/{session}/{contrast}.nii.gz"' in caught.value.message
