"""Patients, visits and contrasts from names of files and folders as people keep them."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.data.readers.names.layout import tell
from polyclinic.data.readers.names.places import AMBIGUOUS, place
from polyclinic.data.readers.names.words import Role, cut, site_word

PEOPLE = [f"P{number:03}" for number in range(1, 7)]
DATES = ("2019-03-01", "2020-04-11")


def each(*templates, people=PEOPLE):
    """Every template for every patient: ``{p}`` is the name, ``{n}`` a number."""
    return [text.format(p=p, n=n) for n, p in enumerate(people, 1) for text in templates]


def look(paths):
    told = tell([tuple(path.split("/")) for path in paths])
    return told, place(told.files)


def summary(paths):
    """(patients, visits, contrasts, masks) and whether that is certain."""
    told, placed = look(paths)
    images = [one for one in placed.places if not one.is_mask]
    return (
        len({one.subject for one in images}),
        len({(one.subject, one.session) for one in images}),
        sorted({one.column for one in images}),
        sorted({one.column for one in placed.places if one.is_mask}),
        told.certain,
    )


LAYOUTS = {
    "pre-post": (each("{p}/T1_pre", "{p}/T1_post"), (6, 6, ["T1w_post", "T1w_pre"], [], True)),
    "patient-date": (
        each(*(f"{{p}}/{day}/{kind}" for day in DATES for kind in ("T1", "FLAIR"))),
        (6, 12, ["FLAIR", "T1w"], [], True),
    ),
    "date-in-name": (each("{p}_20190301_T1", "{p}_20200411_T1"), (6, 12, ["T1w"], [], True)),
    "date-of-month": (each("{p}_01MAR2019_T1", "{p}_11.04.2020_T1"), (6, 12, ["T1w"], [], True)),
    "patient-week": (each("{p}/week-000/T1", "{p}/week-012/T1"), (6, 12, ["T1w"], [], True)),
    "patient-visit": (each("{p}/visit1/flair", "{p}/visit2/flair"), (6, 12, ["FLAIR"], [], True)),
    "visit-short": (each("{p}/V01/flair", "{p}/V02/flair"), (6, 12, ["FLAIR"], [], True)),
    "sessions": (each("{p}/ses-01/T1", "{p}/ses-02/T1"), (6, 12, ["T1w"], [], True)),
    "wave-first": (each("wave1/{p}_T1", "wave2/{p}_T1"), (6, 12, ["T1w"], [], True)),
    "time-points": (each("{p}/T0/flair", "{p}/T1/flair"), (6, 12, ["FLAIR"], [], True)),
    "before-after": (each("{p}/pre/T1", "{p}/post/T1"), (6, 12, ["T1w"], [], True)),
    "operation": (each("{p}_preop_T1", "{p}_post-op_T1"), (6, 12, ["T1w"], [], True)),
    "brats-timepoints": (
        each(*(f"B-GLI-{{n:05}}-{t}/B-GLI-{{n:05}}-{t}-{kind}" for t in ("000", "001") for kind in ("t1c", "seg"))),
        (6, 12, ["T1ce"], ["mask"], True),
    ),
    "brats-2023": (
        each(*(f"B-GLI-{{n:05}}-000/B-GLI-{{n:05}}-000-{kind}" for kind in ("t1c", "t1n", "t2w", "t2f", "seg"))),
        (6, 6, ["FLAIR", "T1ce", "T1w", "T2w"], ["mask"], True),
    ),
    "brats-2020": (
        each(*(f"B20_Training_{{n:03}}/B20_Training_{{n:03}}_{kind}" for kind in ("flair", "t1ce", "seg"))),
        (6, 6, ["FLAIR", "T1ce"], ["mask"], True),
    ),
    "brats-flat": (
        each(*(f"B-GLI-{{n:05}}-{t}-{kind}" for t in ("000", "001") for kind in ("t1c", "seg"))),
        (6, 12, ["T1ce"], ["mask"], True),
    ),
    "dashes": (each("case-{n:02}-T1", "case-{n:02}-T2"), (6, 6, ["T1w", "T2w"], [], True)),
    "mask-of-a-contrast": (each("case_{n:02}_T1", "case_{n:02}_T1_seg"), (6, 6, ["T1w"], ["mask"], True)),
    "decathlon": (each("imagesTr/B_{n:03}", "labelsTr/B_{n:03}"), (6, 6, ["image"], ["mask"], True)),
    "nnunet": (
        each("imagesTr/B_{n:03}_0000", "imagesTr/B_{n:03}_0001", "labelsTr/B_{n:03}"),
        (6, 6, ["channel_0", "channel_1"], ["mask"], True),
    ),
    "nnunet-one-channel": (each("images/B_{n:03}_0000", "labels/B_{n:03}"), (6, 6, ["image"], ["mask"], True)),
    "mirrored": (each("images/{p}", "masks/{p}"), (6, 6, ["image"], ["mask"], True)),
    "mirrored-deep": (
        each(*(f"{kind}/{{p}}/v{v}/T1" for kind in ("images", "masks") for v in (1, 2))),
        (6, 12, ["T1w"], ["mask"], True),
    ),
    "sides": (each("{p}/knee_L", "{p}/knee_R"), (6, 6, ["knee_L", "knee_R"], [], True)),
    "runs": (each("{p}/T1_run1", "{p}/T1_run2"), (6, 6, ["T1w"], [], True)),
    "counted": (each("{p}/T1_1", "{p}/T1_2"), (6, 6, ["T1w"], [], True)),
    "series-numbers": (each("{p}_t1_mprage_{n}", "{p}_flair_1{n}"), (6, 6, ["FLAIR", "T1w"], [], True)),
    "numbers-alone": (each("{n}/1", "{n}/2"), (6, 12, ["image"], [], True)),
    "site": (
        [
            f"{site}/{p}/visit{v}/T1"
            for site, mine in (("north", "abc"), ("south", "def"))
            for p in mine
            for v in (1, 2)
        ],
        (6, 12, ["T1w"], [], True),
    ),
    "sites-with-equal-numbers": (
        [f"{site}/P{n}/visit{v}/T1" for site in ("north", "south") for n in (1, 2, 3) for v in (1, 2)],
        (6, 12, ["T1w"], [], False),
    ),
    "classes-with-equal-numbers": (
        [f"{group}/{n:03}" for group in ("AD", "CN") for n in range(1, 9)],
        (16, 16, ["image"], [], False),
    ),
    "maps-of-the-same-patients": (
        [f"{kind}/{n:03}" for kind in ("ktrans", "vp") for n in (3, 17, 22, 40, 56)],
        (5, 5, ["ktrans", "vp"], [], False),
    ),
    "groups": (
        [f"{group}/{group[:3]}{n:02}/T1" for group in ("controls", "patients") for n in range(1, 4)],
        (6, 6, ["T1w"], [], True),
    ),
    "initials": (
        [f"{name}/{kind}" for name in ("AB", "CD", "PD", "JS", "KL", "MN", "XY") for kind in ("T1", "FLAIR")],
        (7, 7, ["FLAIR", "T1w"], [], True),
    ),
    "amos": (
        [f"{kind}/amos_{n:04}" for n in range(6) for kind in ("imagesTr", "labelsTr")],
        (6, 6, ["image"], ["mask"], True),
    ),
    "numbered-frames": (
        [f"{1000 + n}/{frame:04}" for n in range(3) for frame in range(10)],
        (3, 30, ["image"], [], False),
    ),
    "follow-up": (
        each("{p}_baseline_T1", "{p}_follow-up_T1", "{p}_follow-up_T1_seg"),
        (6, 12, ["T1w"], ["mask"], True),
    ),
    "repetitions-in-words": (each("{p}/x_T1w_MPR1", "{p}/x_T1w_MPR2"), (6, 6, ["T1w"], [], True)),
    "tissues": (each("{p}/c1T1", "{p}/c2T1", "{p}/T1"), (6, 6, ["T1w", "c1T1", "c2T1"], [], True)),
    "unique-numbers": ([f"1.2.840.113.{n}.{n * 7}/T1" for n in range(5)], (5, 5, ["T1w"], [], True)),
    "biobank": (
        [f"{1000000 + n}_2025{field}_{visit}_0" for n in range(6) for field in (2, 3) for visit in (2, 3)],
        (6, 12, ["FLAIR", "T1w"], [], True),
    ),
    "oasis": (each("OAS1_{n:04}_MR1_mpr_n4_anon_sbj_111"), (6, 6, ["mpr"], [], True)),
    "oasis-2": (
        each(*(f"OAS2_{{n:04}}_MR{visit}/mpr-{run}" for visit in (1, 2) for run in (1, 2))),
        (6, 12, ["mpr"], [], True),
    ),
    "ixi": (
        [
            f"IXI{n:03}-{home}-{31 * n:04}-{kind}"
            for n, home in ((2, "Guys"), (12, "HH"), (13, "HH"))
            for kind in ("T1", "T2")
        ],
        (3, 3, ["T1w", "T2w"], [], True),
    ),
    "adni": (
        [
            f"{n:03}_S_{n:04}/MPR__GradWarp/2006-0{v}-02_12_31_52.0/I{n}{v}/"
            f"ADNI_{n:03}_S_{n:04}_MR_MPR__GradWarp_Br_20060{v}02123152975_S{n}{v}_I{n}{v}"
            for n in range(1, 7)
            for v in (1, 2)
        ],
        (6, 12, ["mpr"], [], True),
    ),
    "heart": (
        each(*(f"patient{{n:03}}/patient{{n:03}}_frame{f}{end}" for f in ("01", "12") for end in ("", "_gt"))),
        (6, 12, ["image"], ["mask"], True),
    ),
    "liver": (each("volume-{n}", "segmentation-{n}"), (6, 6, ["image"], ["mask"], True)),
    "organs": (
        each("s{n:04}/ct", "s{n:04}/segmentations/aorta", "s{n:04}/segmentations/liver"),
        (6, 6, ["CT"], ["aorta_mask", "liver_mask"], True),
    ),
    "white-matter": (
        each("{n}/orig/FLAIR", "{n}/pre/FLAIR", "{n}/wmh"),
        (6, 6, ["FLAIR_orig", "FLAIR_pre"], ["mask"], True),
    ),
    "raters": (
        each(*(f"training{{n:02}}_{v:02}_{kind}" for v in (1, 2) for kind in ("flair_pp", "mask1", "mask2"))),
        (6, 12, ["FLAIR"], ["mask1_mask", "mask2_mask"], True),
    ),
    "folder-a-plane": (
        [f"{plane}/P{n:03}" for plane in ("axial", "coronal") for n in range(6)],
        (6, 6, ["axial", "coronal"], [], True),
    ),
    "surnames": (
        [f"{name}_T1" for name in ("smith_john", "smith_anna", "doe_jane", "major_mary")],
        (4, 4, ["T1w"], [], True),
    ),
    "eight-digit-patients": (
        [f"{number}/T1" for number in ("19990101", "20010203", "12345678", "19991399")],
        (4, 4, ["T1w"], [], True),
    ),
    "one-patient": (["P1/T1", "P1/FLAIR", "P1/seg"], (1, 1, ["FLAIR", "T1w"], ["mask"], True)),
    "one-patient-two-days": ([f"P1/{day}/T1" for day in DATES], (1, 2, ["T1w"], [], True)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    paths, expected = LAYOUTS[name]
    assert summary(paths) == expected


def rows(paths):
    """The files of each patient's visit and run."""
    _, placed = look(paths)
    found = defaultdict(set)
    for path, one in zip(paths, placed.places, strict=True):
        if not one.reason:
            found[one.subject, one.session, one.run].add(path)
    return sorted(map(sorted, found.values()))


def test_masks_stand_beside_their_images():
    paths = each("{p}/T1_run1", "{p}/T1_run2", "{p}/T1_run2_seg", people=["A1", "B2"])
    expected = [[f"{p}/T1_run1"] for p in ("A1", "B2")] + [[f"{p}/T1_run2", f"{p}/T1_run2_seg"] for p in ("A1", "B2")]
    assert rows(paths) == sorted(expected)
    paths = each("im/{p}_20190301_T1", "im/{p}_20200411_T1", "masks/{p}_20200411", people=["A1", "B2", "C3"])
    assert rows(paths) == sorted(
        row
        for p in ("A1", "B2", "C3")
        for row in ([f"im/{p}_20190301_T1"], [f"im/{p}_20200411_T1", f"masks/{p}_20200411"])
    )


def test_runs_share_a_row_and_series_numbers_do_not_tear_it():
    names = ("T1_run1", "T1_run2", "FLAIR_run2", "FLAIR_run2_seg", "T2", "T2_seg")
    assert rows([f"{p}/{name}" for p in ("A1", "B2") for name in names]) == sorted(
        [f"{p}/{name}" for name in row]
        for p in ("A1", "B2")
        for row in (["T1_run1"], ["FLAIR_run2", "FLAIR_run2_seg", "T1_run2"], ["T2", "T2_seg"])
    )
    _, placed = look([f"{p}/{name}" for p in ("A1", "B2", "C3") for name in ("3_t1", "4_flair", "7_t1")])
    assert {one.column: one.run for one in placed.places if one.column == "FLAIR"} == {"FLAIR": ""}
    assert {one.run for one in placed.places} == {"", "3", "7"}


def test_a_mask_that_may_belong_to_several_images_is_refused():
    for paths in (
        each("{p}/v1/T1", "{p}/v2/T1", "masks/{p}_mask"),
        each("{p}/T1_run1", "{p}/T1_run2", "{p}/T1_seg"),
        each("{p}/T1_run1", "{p}/T1_run2", "{p}/FLAIR", "{p}/lesion"),
        each("{p}/a/T1", "{p}/T1 (1)", "{p}/T1 (2)", "{p}/lesion"),
    ):
        _, placed = look(paths)
        assert {one.reason for one in placed.places if one.is_mask} == {AMBIGUOUS}, paths
        assert {one.reason for one in placed.places if not one.is_mask} == {""}


def test_a_mask_takes_the_only_visit():
    _, placed = look(each("{p}/ses-1/T1", "masks/{p}_mask"))
    assert {one.session for one in placed.places} == {"ses-1"}
    _, placed = look(each("{p}_T1", "masks/{p}_20200101_mask"))
    assert {one.session for one in placed.places} == {""}


def test_masks_without_an_image_are_counted():
    _, placed = look([*each("{p}/2019-03-01/T1"), "P001/2020-04-11/seg", "P009/2019-03-01/seg"])
    assert placed.strangers == 2


def test_series_of_one_day_are_one_visit():
    paths = each("{p}_20190301103011_T1", "{p}_20190301104500_FLAIR", "{p}_2020-04-11_10-30-11_T1")
    assert summary(paths)[:3] == (6, 12, ["FLAIR", "T1w"])


def test_spellings_of_a_visit_are_one():
    assert summary(each("{p}/2019-03-01/T1", "{p}/20190301/FLAIR", "{p}/2020-04-11/T1"))[:2] == (6, 12)


def test_what_cannot_be_known_is_said():
    assert not look([f"{n}00{n}_{n}111/T1" for n in range(1, 7)] + ["1001_9999/T1"])[0].certain
    assert not look([f"{day}/T1" for day in DATES])[0].certain
    assert not look([f"{kind}/P{n:03}" for kind in ("left-one", "other") for n in range(6)])[0].certain
    assert not look(each("{p}L", "{p}R"))[0].certain


def test_endings_of_numbers():
    assert summary(each("{p}L", "{p}R"))[:3] == (6, 6, ["L", "R"])
    assert summary(each("{p}V1_T1", "{p}V2_T1"))[:3] == (6, 12, ["T1w"])
    assert summary([f"{name}_sa" for name in ("A0S9V9", "B0D3K1", "C1E4P0", "D9W2Q7")])[:2] == (4, 4)


def test_training_and_test_patients_of_one_name_are_two():
    paths = [f"{part}/{kind}/case_{n}" for part in ("train", "test") for kind in ("images", "masks") for n in range(3)]
    told, placed = look(paths)
    assert told.split == 3
    assert len({one.subject for one in placed.places}) == 6
    assert all(len(row) == 2 for row in rows(paths))


def test_layouts_and_examples_name_no_patient():
    _, placed = look(each("Anna {p}/2019-03-01/Anna {p}_T1", "Anna {p}/2019-03-01/Anna {p}_lesion_seg"))
    shown = {text for one in placed.places for text in (one.layout, one.example)}
    assert shown == {
        "{subject}/{session}/{subject}_{contrast}",
        "***/####-##-##/***_T1",
        "{subject}/{session}/{subject}_{mask}",
        "***/####-##-##/***_lesion_seg",
    }


def test_a_word_of_one_patient_alone_names_no_column():
    paths = [*each("{p}/T1", "{p}/T1_brain"), "P001/T1_smith", "P001/smith_seg", "P001/seg", "P002/seg"]
    _, placed = look(paths)
    assert not any("smith" in text for one in placed.places for text in (one.column, one.session, one.layout))


# Properties


def free(name):
    words = cut(name)
    return len(words) == 1 and not words[0].role and not site_word(name)


NAMES = st.one_of(
    st.lists(st.from_regex(r"[a-z]{4,9}", fullmatch=True).filter(free), min_size=6, max_size=6, unique=True),
    st.lists(st.integers(0, 999).map("P{:03}".format), min_size=6, max_size=6, unique=True),
    st.lists(st.integers(3_000_000, 9_999_999).map(str), min_size=6, max_size=6, unique=True),
    st.lists(st.from_regex(r"[A-F][0-9][A-F0-9]{6}", fullmatch=True).filter(free), min_size=6, max_size=6, unique=True),
)
NESTABLE = [
    ("{p}/T1_pre", "{p}/T1_post"),
    ("{p}/2019-03-01/T1", "{p}/2020-04-11/T1", "{p}/2020-04-11/FLAIR", "{p}/2020-04-11/T1_seg"),
    ("{p}_20190301_T1", "{p}_20200411_T1"),
    ("{p}/week-000/T1", "{p}/week-012/T1"),
    ("G-{p}-000/G-{p}-000-t1c", "G-{p}-001/G-{p}-001-t1c", "G-{p}-001/G-{p}-001-seg"),
    ("{p}-T1", "{p}-T2", "{p}-T2-seg"),
    ("images/{p}", "masks/{p}"),
    ("imagesTr/B_{p}_0000", "imagesTr/B_{p}_0001", "labelsTr/B_{p}"),
    ("{p}/knee_L", "{p}/knee_R"),
    ("{p}/T1_run1", "{p}/T1_run2", "{p}/T1_run2_seg"),
]


def partition(paths):
    """Which files are of one patient, which of one row, and what each shows."""
    _, placed = look(paths)
    people, found = defaultdict(set), defaultdict(set)
    for number, one in enumerate(placed.places):
        people[one.subject].add(number)
        found[one.subject, one.session, one.run].add(number)
    return (
        sorted(map(sorted, people.values())),
        sorted(map(sorted, found.values())),
        [(one.column, one.is_mask, one.reason) for one in placed.places],
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NESTABLE), NAMES, st.lists(st.sampled_from(["data", "x", "My Study (2)", "export_7"]), max_size=3)
)
def test_neither_names_of_patients_nor_nesting_matter(templates, names, above):
    plain = partition(each(*templates))
    top = "/".join([*above, ""])
    assert partition(each(*(top + text for text in templates), people=names)) == plain


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([paths for paths, _ in LAYOUTS.values()]), st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(paths, random):
    _, placed = look(paths)
    order = list(range(len(paths)))
    random.shuffle(order)
    _, again = look([paths[number] for number in order])
    assert [placed.places[number] for number in order] == again.places


def test_words():
    roles = {
        name: [word.role for word in cut(name)] for name in ("T2-FLAIR", "T1_Gd", "week_12", "brainmask", "unmasked")
    }
    assert roles == {
        "T2-FLAIR": [Role.CONTRAST],
        "T1_Gd": [Role.CONTRAST],
        "week_12": [Role.VISIT],
        "brainmask": [Role.MASK],
        "unmasked": [Role.NONE],
    }
