"""Volumes from DICOM files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from polyclinic.data.readers.dicom.groups import group_planes
from polyclinic.data.readers.dicom.header import read_header
from polyclinic.data.readers.dicom.pixels import read_pixels
from polyclinic.data.readers.dicom.series import Series, build_series
from polyclinic.data.readers.volume import UnreadableError, Volume


def read_series(files: Iterable[Path]) -> Volume:
    """The voxels of the one image that the files hold; see ``find_one``."""
    return read_built_series(find_one(files))


def find_one(files: Iterable[Path]) -> Series:
    """The one image that the files hold, without its voxels.

    Slices are sorted by position along their normal; several time points at each position become the fourth axis.
    Rescale slope and intercept are applied (Philips MR: the scanner's own scale), MONOCHROME1 is inverted except in CT
    and PET, palettes and YBR become RGB.

    Args:
        files: DICOM files in any order. Objects that are no image (reports, presentation states) are passed over when
            there is an image.

    Raises:
        UnreadableError: with the reason, which names no file and quotes no header.
    """
    headers, reasons = [], []
    for path in files:
        try:
            headers.append(read_header(path))
        except UnreadableError as error:
            reasons.append(str(error))
    groups = group_planes(headers)
    if not groups:
        raise UnreadableError(min(reasons) if reasons else "folder has no DICOM file")
    damaged = [reason for reason in reasons if not reason.startswith("DICOM object")]
    if damaged:  # a slice is lost, even where those that are left make a stack
        raise UnreadableError(min(damaged))
    if len(groups) > 1:
        passes = any(note.number == "N511" for group in groups for note in group.notes)
        what = "DICOM images (several passes over the patient)" if passes else "DICOM images"
        raise UnreadableError(f"files hold {len(groups)} {what}, not one")
    return build_series(groups[0])


def read_built_series(series: Series) -> Volume:
    """The volume of a series whose planes are in order already.

    Raises:
        UnreadableError: the pixels can't be read.
    """
    values, notes = read_pixels(series)
    # Films in colour become luminance, so that only a single picture has colours.
    colour = values.ndim == 4 and series.shape[3] == 1
    told = series.all_notes + notes
    return Volume(values, series.affine, series.header.about, told, series.frames, colour=colour)
