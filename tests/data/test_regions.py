"""Regional volumes from maps and an atlas: exact sums, other grids, and what can't be used."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from polyclinic import cli
from polyclinic.data.readers.volume import Volume
from polyclinic.data.regions import Atlas, read_atlas, regional_volumes, regions_table
from polyclinic.errors import DataError


def affine(spacing: float = 2.0, origin: tuple[float, float, float] = (-10.0, -10.0, -10.0)) -> np.ndarray:
    found = np.diag([spacing, spacing, spacing, 1.0])
    found[:3, 3] = origin
    return found


def two_halves() -> Atlas:
    labels = np.ones((10, 10, 10), dtype=np.int64)
    labels[5:] = 3
    return Atlas(labels, affine(), {1: "low", 3: "high"})


def save(values: np.ndarray, path: Path, where: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine() if where is None else where), path)
    return path


# Volumes --------------------------------------------------------------------------------------------------------------


def test_volumes_are_sums_of_probability_times_voxel_volume():
    """500 voxels of 8 mm3: 4 ml at probability 1."""
    values = np.ones((10, 10, 10))
    values[5:] = 0.25
    assert regional_volumes(Volume(values, affine()), two_halves()) == {"low": 4.0, "high": 1.0}


def test_one_voxel_is_worked_by_hand():
    values = np.zeros((10, 10, 10))
    values[7, 2, 2], values[0, 0, 0] = 0.5, 0.125
    assert regional_volumes(Volume(values, affine()), two_halves()) == {"low": 0.001, "high": 0.004}


@given(flip=st.tuples(st.booleans(), st.booleans(), st.booleans()), order=st.permutations(range(3)))
def test_turned_maps_have_the_same_volumes(flip: tuple[bool, bool, bool], order: list[int]):
    values = np.random.default_rng(0).random((10, 10, 10))
    plain = regional_volumes(Volume(values, affine()), two_halves())
    where = affine()
    for axis, flipped in enumerate(flip):
        if flipped:
            values = np.flip(values, axis)
            where[:, 3] += 9 * where[:, axis]
            where[:, axis] *= -1
    turned = Volume(values.transpose(order), where[:, [*order, 3]])
    assert regional_volumes(turned, two_halves()) == pytest.approx(plain)


def test_a_finer_map_is_measured_on_its_own_grid():
    values = np.ones((20, 20, 20))
    fine = Volume(values, affine(1.0, (-10.5, -10.5, -10.5)))
    assert regional_volumes(fine, two_halves()) == pytest.approx({"low": 4.0, "high": 4.0})


def test_a_smaller_map_counts_what_it_covers():
    values = np.ones((8, 10, 10))
    assert regional_volumes(Volume(values, affine()), two_halves()) == pytest.approx({"low": 4.0, "high": 2.4})


# What can't be used ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        (Volume(np.full((10, 10, 10), 255.0), affine()), "values from 255 to 255; expected probabilities"),
        (Volume(np.full((10, 10, 10), -0.5), affine()), "values from -0.5 to -0.5; expected probabilities"),
        (Volume(np.full((10, 10, 10), np.nan), affine()), "expected probabilities between 0 and 1"),
        (Volume(np.ones((10, 10, 10, 2)), affine()), "A map has 4 dimensions; expected 3."),
        (Volume(np.ones((10, 10, 10)), affine(origin=(90.0, 0.0, 0.0))), "the map covers 0 % of the atlas"),
        (Volume(np.ones((10, 10, 10)), affine(0.5)), "the map covers 2 % of the atlas"),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_maps_that_do_not_fit_are_told(volume: Volume, sentence: str):
    with pytest.raises(DataError, match="P203") as raised:
        regional_volumes(volume, two_halves())
    assert sentence in str(raised.value)


def test_an_atlas_is_read_with_its_names(tmp_path: Path):
    path = save(two_halves().labels.astype(np.int16), tmp_path / "atlas.nii.gz")
    assert read_atlas(path).names == {1: "region_1", 3: "region_3"}
    names = tmp_path / "atlas.tsv"
    names.write_text("index\tname\n1\tlow\n2\tunused\n3\thigh\n", encoding="utf-8")
    assert read_atlas(path, names).names == {1: "low", 3: "high"}


@pytest.mark.parametrize(
    ("values", "names", "code", "sentence"),
    [
        (np.full((3, 3, 3), 0.5), None, "P203", "holds whole numbers from 0"),
        (np.zeros((3, 3, 3)), None, "P203", "holds no region: every voxel is 0"),
        (np.ones((3, 3, 3)), "label,name\n2,low\n", "P203", "names no region 1"),
        (np.ones((3, 3, 3)), "labels,name\n1,low\n", "P202", "has no column 'label'. Did you mean 'labels'?"),
        (np.ones((3, 3, 3)), "label,region\n1,low\n", "P202", "has no column 'name'"),
        (np.ones((3, 3, 3)), "label,name\none,low\n", "P203", "something that is not a whole number"),
        (np.ones((3, 3, 3)), "label,name\n1,low\n2,low\n", "P203", "a number or a name twice"),
        (np.ones((3, 3, 3)), "", "P201", "can't be read as a table"),
    ],
)
def test_atlases_that_do_not_fit_are_told(
    values: np.ndarray, names: str | None, code: str, sentence: str, tmp_path: Path
):
    path = save(values.astype(np.float32), tmp_path / "atlas.nii.gz")
    table = None if names is None else tmp_path / "atlas.csv"
    if table is not None and names is not None:
        table.write_text(names, encoding="utf-8")
    with pytest.raises(DataError, match=code) as raised:
        read_atlas(path, table)
    assert sentence in str(raised.value)


# The table ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for number in (1, 2):
        save(np.full((10, 10, 10), number / 4, np.float32), folder / f"sub-{number}_grey.nii.gz")
    return folder


def test_a_folder_gives_a_row_for_each_file(maps: Path):
    seen: list[tuple[int, int]] = []
    table = regions_table(maps, two_halves(), lambda *counts: seen.append(counts))
    assert table["subject"].tolist() == ["sub-1", "sub-2"]
    assert table["high"].tolist() == [1.0, 2.0]
    assert seen == [(1, 2), (2, 2)]


def test_a_manifest_keeps_who_they_are(maps: Path, tmp_path: Path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "site,subject,map,diagnosis,other\nnorth,007,maps/sub-2_grey.nii.gz,control,x\n", encoding="utf-8"
    )
    table = regions_table(manifest, two_halves())
    assert table.columns.tolist() == ["site", "subject", "diagnosis", "low", "high"]
    assert table.iloc[0].tolist() == ["north", "007", "control", 2.0, 2.0]


def test_the_command_writes_the_table(maps: Path, tmp_path: Path):
    atlas = save(two_halves().labels.astype(np.int16), tmp_path / "atlas.nii.gz")
    out = tmp_path / "out" / "regions.csv"
    result = CliRunner().invoke(
        cli.app, ["regions", "--maps", str(maps), "--atlas", str(atlas), "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert pd.read_csv(out)["region_3"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "content", "code", "sentence"),
    [
        ("nowhere", None, "P201", "nowhere can't be found"),
        ("manifest.csv", "site,subject\nn,1\n", "P202", "has no column with maps"),
        ("manifest.csv", "subject,map\n", "P203", "has no rows"),
        (
            "manifest.csv",
            "subject,map\n1,gone.nii.gz\n",
            "P201",
            "there is no such file. This is row number 1 of 1 of the manifest.",
        ),
        ("manifest.csv", "subject,map\n1,manifest.csv\n", "P201", "it is no readable NIfTI file"),
    ],
)
def test_missing_maps_are_told(name: str, content: str | None, code: str, sentence: str, tmp_path: Path):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=code) as raised:
        regions_table(tmp_path / name, two_halves())
    assert sentence in str(raised.value)


def test_an_empty_folder_and_a_truncated_map_are_told(maps: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no NIfTI file"):
        regions_table(tmp_path / "empty", two_halves())
    path = maps / "sub-2_grey.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"no readable NIfTI file. This is file number 2 of 2 in the order of names"):
        regions_table(maps, two_halves())


def test_the_phantoms_maps_and_atlas_fit_together(tmp_path: Path):
    pytest.importorskip("nilearn")
    from polyclinic.data.phantom import Phantom
    from polyclinic.data.phantom.write import Wanted, write_phantom

    write_phantom(Phantom(sites=1, spacing=3.0), 1, tmp_path / "out", Wanted("nifti", maps=True))
    atlas = read_atlas(tmp_path / "out" / "atlas.nii.gz", tmp_path / "out" / "atlas.csv")
    table = regions_table(tmp_path / "out" / "manifest.csv", atlas)
    measured = pd.read_csv(tmp_path / "out" / "regions.csv")
    names = list(atlas.names.values())
    assert table[names].sum(axis=1).to_numpy() == pytest.approx(measured[names].sum(axis=1).to_numpy(), rel=0.02)
    assert np.median(np.abs(table[names] / measured[names] - 1)) < 0.03
