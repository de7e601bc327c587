"""What is read of a DICOM header: an allow-list of tags, and what they mean.

Of the patient only four elements are looked at, in ``read_header`` alone, and none is kept: PatientID becomes a
pseudonym, PatientName is compared with the file's path, and name, birth date and sex become keyed hashes that tell
apart patients who share a number (``dicom_person``). Free texts (series description, protocol) are turned into words
of a fixed vocabulary at once.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from polyclinic.data.readers.dicom.contrast import TAGS as CONTRAST_TAGS
from polyclinic.data.readers.dicom.contrast import header_contrast
from polyclinic.data.readers.dicom.elements import Elements, read_elements
from polyclinic.data.readers.dicom.facts import FACT_TAGS, Facts, read_facts, unpack_number
from polyclinic.data.readers.dicom.person import PATIENT_TAGS, Person, read_person, subject_of
from polyclinic.data.readers.dicom.values import TAGS as VALUE_TAGS
from polyclinic.data.readers.dicom.values import header_scale
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

ALLOWED = {
    **FACT_TAGS,
    **PATIENT_TAGS,
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "sop_instance": 0x00080018,
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
    "series_description": 0x0008103E,
    "model": 0x00081090,
    "patient_name": 0x00100010,
    "patient_id": 0x00100020,
    "body_part": 0x00180015,
    "thickness": 0x00180050,
    "echo_time": 0x00180081,
    "echo_number": 0x00180086,
    "field_strength": 0x00180087,
    "gap": 0x00180088,
    "protocol": 0x00181030,
    "imager_spacing": 0x00181164,
    "scanned_spacing": 0x00182010,
    "siemens_creator": 0x00190010,
    "siemens_tiles": 0x0019100A,
    "study": 0x0020000D,
    "series": 0x0020000E,
    "acquisition": 0x00200012,
    "instance": 0x00200013,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "temporal": 0x00200100,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "spacing": 0x00280030,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "high_bit": 0x00280102,
    "signed": 0x00280103,
    "burned_in": 0x00280301,
    "recognizable": 0x00280302,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "modality_table": 0x00283000,
    "united_creator": 0x00650010,
    "united_tiles": 0x00651050,
    "shared_groups": 0x52009229,
    "frame_groups": 0x52009230,
    **CONTRAST_TAGS,
    **VALUE_TAGS,
}
"""Name -> tag of every element that scanning and reading may look at (the standard's names: PS3.6)."""
_TAGS = frozenset(ALLOWED.values())

_KINDS = (
    ("1.2.840.10008.1.3.10", "a DICOM directory"),
    ("1.2.840.10008.5.1.4.1.1.88.59", "a key object note"),
    ("1.2.840.10008.5.1.4.1.1.88.", "a structured report"),
    ("1.2.840.10008.5.1.4.1.1.9.", "a waveform"),
    ("1.2.840.10008.5.1.4.1.1.11.", "a presentation state"),
    ("1.2.840.10008.5.1.4.1.1.104.", "an enclosed document"),
    ("1.2.840.10008.5.1.4.1.1.66.4", "a segmentation object"),
    ("1.2.840.10008.5.1.4.1.1.66.", "a registration, surface or raw data object"),
    ("1.2.840.10008.5.1.4.1.1.4.2", "a spectrum"),
    ("1.2.840.10008.5.1.4.1.1.481.1", "an image"),
    ("1.2.840.10008.5.1.4.1.1.481.2", "an RT dose"),
    ("1.2.840.10008.5.1.4.1.1.481.3", "an RT structure set"),
    ("1.2.840.10008.5.1.4.1.1.481.", "an RT plan or record"),
)
_MODALITIES = {
    "SR": "a structured report",
    "SEG": "a segmentation object",
    "RTDOSE": "an RT dose",
    "RTSTRUCT": "an RT structure set",
    "RTPLAN": "an RT plan or record",
    "PR": "a presentation state",
    "KO": "a key object note",
    "REG": "a registration, surface or raw data object",
    "ECG": "a waveform",
    "DOC": "an enclosed document",
}
_VENDORS = {
    "siemens": "Siemens",
    "ge ": "GE",
    "g.e": "GE",
    "general electric": "GE",
    "philips": "Philips",
    "toshiba": "Canon",
    "canon": "Canon",
    "uih": "United Imaging",
    "united imaging": "United Imaging",
    "hitachi": "Hitachi",
    "fujifilm": "Fujifilm",
    "bruker": "Bruker",
    "hologic": "Hologic",
}
_HEAD = re.compile(r"head|brain|skull|face|schaedel|schädel|kopf|hirn|cerveau|crane|neuro|mprage|cerebr")
_NOT_NAMES = frozenset(("anon", "anonymous", "anonymized", "patient", "phantom", "removed", "test", "unknown", "none"))


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one file says of its image. The identifiers in it (UIDs) never leave the site.

    Attributes:
        path: the file.
        subject: pseudonym of the patient; "" where the header names none or no salt was given.
        syntax: transfer syntax UID, "" where the file does not state it.
        frames: number of frames in the file.
        orientation: direction cosines of a row and of a column, in DICOM's LPS axes.
        position: centre of the first voxel in millimetres, LPS.
        spacing: distance of rows, and of columns, in millimetres.
        gap: distance of slices as the header states it (SpacingBetweenSlices, else SliceThickness).
        slope, intercept: from stored to real values.
        tiles: number of slices laid out in one picture (mosaic); 0 where there is one.
        facts: what tells the images within a series apart.
        person: what tells patients apart who share a number; keyed hashes alone.
        contrast: word of a fixed vocabulary for what was measured (``T1w``, ``FLAIR``, ``CT``, ...).
        head: whether the header says that this is a head.
        face_removed: whether the header says that the face was removed.
        burned_in: whether the header says that text is burnt into the picture; None where it does not say.
        named_in_path: whether the patient's name or number occurs in the file's path.
        truncated: whether the file ends before its pixels do.
        pixel_start: where plain numbers of pixels begin in the file; -1 where they must be decoded.
        high_bit: the highest of the stored bits, counted from 0.
        grouped: whether there are functional groups.
        scanner_scale: Philips' scale slope, see `polyclinic.data.readers.dicom.values`.
        notes: as in ``Volume``.
    """

    path: Path
    subject: str
    sop_class: str
    sop_instance: str
    syntax: str
    study: str
    series: str
    modality: str
    vendor: str
    model: str
    field_strength: float | None
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    image_type: tuple[str, ...]
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    gap: float | None
    slope: float
    intercept: float
    tiles: int
    echo: str
    facts: Facts
    person: Person
    contrast: str
    head: bool
    face_removed: bool
    burned_in: bool | None
    named_in_path: bool
    truncated: bool
    pixel_start: int
    high_bit: int
    grouped: bool
    scanner_scale: float | None
    notes: tuple[Note, ...]

    @property
    def has_functional_groups(self) -> bool:
        """Whether the geometry stands in functional groups, a set for each frame (enhanced multi-frame objects)."""
        return self.grouped or self.sop_class in ENHANCED

    @property
    def about(self) -> dict[str, str | float]:
        """Scanner facts for ``Volume.about``."""
        facts: dict[str, str | float | None] = {
            "modality": self.modality,
            "vendor": self.vendor,
            "model": self.model,
            "field_strength": self.field_strength,
        }
        return {name: value for name, value in facts.items() if value}


ENHANCED = frozenset((
    "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.3", "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.6.2", "1.2.840.10008.5.1.4.1.1.30",
    "1.2.840.10008.5.1.4.1.1.128.1", "1.2.840.10008.5.1.4.1.1.130",
))  # fmt: skip
"""Enhanced and legacy converted CT, MR, PET; enhanced US volume; parametric map: without functional groups they have no
place."""
VOLUMES = ENHANCED | frozenset((
    "1.2.840.10008.5.1.4.1.1.13.1.1", "1.2.840.10008.5.1.4.1.1.13.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3",
    "1.2.840.10008.5.1.4.1.1.77.1.5.4",
))  # fmt: skip
"""These, 3D X-ray (angiography, craniofacial, breast tomosynthesis) and optical coherence tomography: frames of all of
them are slices, never times alone."""


def read_header(path: Path, *, salt: str = "", root: Path | None = None, home: str = "") -> Header:
    """Read what is allowed of a file's header.

    Args:
        path: the file.
        salt: makes the patient's pseudonym; without it the patient is not looked at.
        root: with it, the path below this folder is searched for the patient's name and number.
        home: as in `subject_of`.

    Raises:
        UnreadableError: the file can't be read, is no DICOM, is not an image, or lacks what an image needs.
    """
    elements = read_elements(path, _TAGS)
    texts = _Texts(elements)
    _refuse_other_objects(texts)
    rows, columns = texts.short("rows"), texts.short("columns")
    frames = texts.count("frames")
    if not (rows and columns and elements.pixels):
        if rows or columns or elements.pixels or texts.text("orientation"):
            raise UnreadableError("DICOM image is incomplete: its size or its pixels are missing")
        raise UnreadableError("DICOM object has no image")
    samples, bits = texts.short("samples") or 1, texts.short("bits_allocated") or 16
    expected = rows * columns * frames * samples * bits // 8
    if texts.text("photometric") == "YBR_FULL_422":
        expected = expected * 2 // 3
    free_text = " ".join((texts.text("series_description"), texts.text("protocol"))).lower()
    modality = texts.word("modality")
    vendor = _vendor(texts.text("manufacturer"))
    grouped = any(texts.raw(name) is not None for name in ("shared_groups", "frame_groups"))
    scale = header_scale(texts, modality, vendor, grouped=grouped)
    if elements.pixel_bytes >= max(2 * expected, 2):
        raise UnreadableError("pixels don't fit the size in the header")
    recognizable = texts.word("recognizable")
    return Header(
        path=path,
        subject=subject_of(texts.text("patient_id"), salt, home),
        sop_class=texts.text("sop_class"),
        sop_instance=texts.text("sop_instance"),
        syntax=elements.syntax,
        study=texts.text("study"),
        series=texts.text("series"),
        modality=modality,
        vendor=vendor,
        model=texts.text("model"),
        field_strength=_tesla(texts.numbers("field_strength", 1)),
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        bits_allocated=bits,
        bits_stored=texts.short("bits_stored") or bits,
        signed=texts.short("signed") == 1,
        photometric=texts.text("photometric"),
        image_type=tuple(word.strip() for word in texts.text("image_type").split("\\")),
        orientation=unit_axes(texts.numbers("orientation", 6)),
        position=texts.numbers("position", 3),
        spacing=_positive(texts.numbers("spacing", 2))
        or _positive(texts.numbers("imager_spacing", 2))
        or _positive(texts.numbers("scanned_spacing", 2)),
        gap=_gap(texts),
        slope=scale.slope,
        intercept=scale.intercept,
        tiles=_tiles(texts),
        echo=_echo(texts),
        contrast=header_contrast(texts, modality),
        facts=read_facts(texts, modality),
        person=read_person(texts, salt),
        head=bool(_HEAD.search(f"{texts.text('body_part').lower()} {free_text}")),
        face_removed="deface" in free_text or recognizable == "NO",
        burned_in={"YES": True, "NO": False}.get(texts.word("burned_in")),
        named_in_path=root is not None and _named(path, root, texts.text("patient_name"), texts.text("patient_id")),
        truncated=0 <= elements.pixel_bytes < expected,
        pixel_start=elements.pixel_start if _plain_numbers(texts, samples, bits) else -1,
        high_bit=_high_bit(texts, bits),
        grouped=grouped,
        scanner_scale=scale.scanner,
        notes=scale.notes,
    )


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts ``im2`` before ``im10``."""
    parts = re.split(r"([0-9]+)", text)
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts]


class _Texts:
    """Values of elements by name; what is missing or no value of its kind is "", 0 or None."""

    def __init__(self, elements: Elements) -> None:
        self.values = elements.values
        self.order = "<" if elements.little_endian else ">"

    def text(self, name: str) -> str:
        value = self.values.get(ALLOWED[name])
        return value.decode("latin-1").strip(" \0") if value else ""

    def word(self, name: str) -> str:
        return self.text(name).upper()

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        text = self.text(name)
        if not text:
            return None
        try:
            found = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            return None
        return found if len(found) == count and all(map(math.isfinite, found)) else None

    def whole(self, name: str) -> int:
        found = self.numbers(name, 1)
        return int(found[0]) if found else 0

    def binary(self, name: str) -> float | None:
        """A binary number of 32 or 64 bits with a fraction, or one in digits; else None."""
        return unpack_number(self.values.get(ALLOWED[name], b""), self.order)

    def count(self, name: str) -> int:
        """A number of things, 1 where the element is missing or empty."""
        text = self.text(name)
        if not text:
            return 1
        if not (text.isdecimal() and text.isascii() and len(text) < 12) or int(text) == 0:
            raise UnreadableError("number of frames in the DICOM header is no number")
        return int(text)

    def short(self, name: str) -> int:
        value = self.values.get(ALLOWED[name], b"")
        return int(struct.unpack(self.order + "H", value[:2])[0]) if len(value) >= 2 else 0

    def raw(self, name: str) -> bytes | None:
        """The bytes of an element, None where it is missing."""
        return self.values.get(ALLOWED[name])


def _refuse_other_objects(texts: _Texts) -> None:
    sop_class = texts.text("sop_class")
    for start, kind in _KINDS:
        if sop_class == start or (start.endswith(".") and sop_class.startswith(start)):
            if kind == "an image":
                return
            raise UnreadableError(f"DICOM object is {kind}, not an image")
    kind = _MODALITIES.get(texts.word("modality"), "")
    if kind:
        raise UnreadableError(f"DICOM object is {kind}, not an image")


def _plain_numbers(texts: _Texts, samples: int, bits: int) -> bool:
    """Whether stored numbers are pixels as they stand, if they are not compressed."""
    grey = texts.text("photometric") in ("MONOCHROME1", "MONOCHROME2") and samples == 1
    stored = texts.short("bits_stored")
    return grey and bits in (8, 16, 32) and 0 < stored <= bits and texts.raw("modality_table") is None


def _high_bit(texts: _Texts, bits: int) -> int:
    """HighBit, where it can be true; else that of pixels whose stored bits are the lowest."""
    lowest = (texts.short("bits_stored") or bits) - 1
    stated = texts.short("high_bit")
    return stated if lowest <= stated < bits else lowest


def _vendor(manufacturer: str) -> str:
    lowered = manufacturer.lower() + " "
    return next((name for start, name in _VENDORS.items() if lowered.startswith(start)), manufacturer)


def _tesla(found: tuple[float, ...] | None) -> float | None:
    if not found or found[0] <= 0:
        return None
    # Some scanners write gauss (15000), some millitesla (1500).
    return found[0] / (10000 if found[0] >= 5000 else 1000) if found[0] > 100 else found[0]


def _positive(found: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return found if found and min(found) > 0 else None


def unit_axes(found: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Two unit vectors at right angles (six numbers), else None."""
    if not found:
        return None
    row, column = found[:3], found[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    across = sum(a * b for a, b in zip(row, column, strict=True))
    good = all(abs(length - 1) < 0.01 for length in lengths) and abs(across) < 0.01
    return found if good else None


def _gap(texts: _Texts) -> float | None:
    for name in ("gap", "thickness"):
        found = texts.numbers(name, 1)
        if found and found[0] > 0:
            return found[0]
    return None


def _tiles(texts: _Texts) -> int:
    kinds = texts.text("image_type").split("\\")
    if "MOSAIC" in kinds:
        stated = texts.short("siemens_tiles") if texts.text("siemens_creator") == "SIEMENS MR HEADER" else 0
        return stated or -1  # -1: to be looked up in the vendor's own header
    if "VFRAME" in kinds and texts.text("united_creator") == "Image Private Header":
        return texts.whole("united_tiles")
    return 0


def _echo(texts: _Texts) -> str:
    time = texts.numbers("echo_time", 1)
    return f"{texts.text('echo_number')}/{time[0]:.1f}" if time else texts.text("echo_number")


def _named(path: Path, root: Path, name: str, number: str) -> bool:
    place = "/".join(path.relative_to(root).parts).lower() if path.is_relative_to(root) else path.name.lower()
    words = set(re.split(r"[\W_]+", place))
    return any(
        part in words or (len(part) >= 5 and part in place)
        for part in _identifying_parts([*re.split(r"[\^=\s,]+", name.lower()), number.lower()])
    )


def _identifying_parts(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if len(part) >= 3 and part not in _NOT_NAMES and not set(part) <= set("*.x-_0")]
