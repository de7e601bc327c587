"""What tells the images within one series apart: sequence, weighting, kind of picture, pass, and what was promised.

Times of day are compared with each other to tell passes apart, and are kept no longer than that; dates are not read.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

FACT_TAGS = {
    "acquisition_time": 0x00080032,
    "content_time": 0x00080033,
    "complex_component": 0x00089208,
    "kilovolts": 0x00180060,
    "inversion_time": 0x00180082,
    "trigger_time": 0x00181060,
    "kernel": 0x00181210,
    "flip_angle": 0x00181314,
    "b_value": 0x00189087,
    "siemens_b_value": 0x0019100C,
    "images_in_acquisition": 0x00201002,
    "philips_dd_creator": 0x20010010,
    "philips_b_value": 0x20011003,
    "ge_creator": 0x00430010,
    "ge_complex": 0x0043102F,
    "ge_b_value": 0x00431039,
    "united_mr_b_value": 0x00651009,
    "slice_count": 0x00540081,
}
"""Further elements of the allow-list of ``dicom_header``."""

_MEANINGS = {
    "phase": ("P", "PHASE", "PHASE MAP", "PHASE_MAP"),
    "real": ("R", "REAL"),
    "imaginary": ("I", "IMAGINARY"),
    "water": ("W", "WATER"),
    "fat": ("F", "FAT"),
    "in phase": ("IP", "IN_PHASE", "IN PHASE", "INPHASE"),
    "out of phase": ("OP", "OUT_PHASE", "OPP_PHASE", "OUT_OF_PHASE", "OPPOSED_PHASE", "OPPOSED", "OUTPHASE"),
    "fat fraction": ("FF", "FAT_FRACTION", "F_FRACTION", "PDFF"),
    "ADC": ("ADC", "ADC_UNSPECIFIED", "ADC MAP", "ADC_MAP", "AVDC"),
    "exponential ADC": ("EADC", "EXPONENTIAL", "EXP_ADC"),
    "anisotropy": ("FA", "FRACTIONAL_ANISO", "FA MAP"),
    "trace": ("TRACEW", "TRACE"),
    "tensor": ("TENSOR",),
    "maximum": ("MIP", "MAX_IP", "MAXIMUM", "PROJECTION IMAGE", "PROJECTION_IMAGE"),
    "minimum": ("MINIP", "MIN_IP", "MNIP", "MINIMUM"),
    "reformat": ("MPR", "CSA MPR", "REFORMATTED", "CURVED", "MPVR"),
    "rendering": ("VRT", "SSD", "VOLUME_RENDER", "SCREEN SAVE", "SCREEN_SAVE"),
    "difference": ("SUB", "SUBTRACT", "SUBTRACTION"),
    "mean": ("MEAN", "MEAN_MAP"),
    "deviation": ("STD_DEVIATION", "STDDEV"),
    "localizer": ("LOCALIZER", "SCOUT", "TOPOGRAM"),
    "T1 map": ("T1_MAP", "T1 MAP"),
    "T2 map": ("T2_MAP", "T2 MAP"),
    "T2* map": ("T2_STAR_MAP", "T2STAR_MAP", "T2* MAP"),
    "R2* map": ("R2_STAR_MAP", "R2STAR_MAP", "R2* MAP"),
    "field map": ("FIELD_MAP", "B0 MAP", "B0_MAP"),
    "perfusion": ("CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TMAX", "PBP", "TTD"),
    "MP2RAGE": ("UNI",),
}
_MEANING_OF = {word: meaning for meaning, words in _MEANINGS.items() for word in words}
_MAGNITUDE = frozenset(("M", "MAG", "MAGNITUDE", "MIXED"))
_GE_COMPLEX = {1: "phase", 2: "real", 3: "imaginary"}
_GE = "GEMS_PARM_01"
_TIME = re.compile(r"(\d\d):?(\d\d):?(\d\d(?:\.\d*)?)")


class Facts(NamedTuple):
    """What is known of one slice besides its pixels and its place. What is missing is None, 0, "" or empty.

    Attributes:
        meanings: what the picture shows, as far as words of the image type with a known meaning tell it (phase, water,
            ADC, ...); a magnitude image needs no word.
        words: the other words of the image type, in capital letters.
        echo_time, inversion_time: milliseconds.
        echo_number: as written.
        flip_angle: degrees.
        kernel: of the reconstruction.
        b_value: diffusion weighting in s/mm².
        temporal, acquisition, instance: TemporalPositionIdentifier, AcquisitionNumber, InstanceNumber.
        trigger: milliseconds after the R wave, or after the start of a dynamic scan.
        acquired, content: seconds since midnight (AcquisitionTime, ContentTime).
        thickness: of the slice, mm.
        between: distance of slices as SpacingBetweenSlices states it, mm.
        stated_images, stated_slices: how many there should be (ImagesInAcquisition, NumberOfSlices).
    """

    meanings: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    echo_time: float | None = None
    echo_number: str = ""
    inversion_time: float | None = None
    flip_angle: float | None = None
    kernel: str = ""
    kilovolts: float | None = None
    b_value: float | None = None
    temporal: int = 0
    acquisition: int = 0
    instance: int = 0
    trigger: float | None = None
    acquired: float | None = None
    content: float | None = None
    thickness: float | None = None
    between: float | None = None
    stated_images: int = 0
    stated_slices: int = 0


class Texts(Protocol):
    """How elements are looked up by name."""

    def text(self, name: str) -> str:
        """The element as text, "" where it is missing."""

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """So many finite numbers, else None."""

    def whole(self, name: str) -> int:
        """A whole number, else 0."""

    def short(self, name: str) -> int:
        """A binary number of 16 bits, else 0."""

    def binary(self, name: str) -> float | None:
        """A binary number of 32 or 64 bits with a fraction, or one in digits; else None."""


def read_facts(texts: Texts, modality: str) -> Facts:
    """The facts of a file's top level."""
    meanings, words = _split_words(texts.text("image_type").split("\\"))
    return Facts(
        meanings=meanings | _component(texts),
        words=words,
        echo_time=_number(texts, "echo_time"),
        echo_number=texts.text("echo_number"),
        inversion_time=_number(texts, "inversion_time"),
        flip_angle=_number(texts, "flip_angle"),
        kernel=texts.text("kernel").upper(),
        kilovolts=_number(texts, "kilovolts"),
        b_value=_b_value(texts) if modality == "MR" else None,
        temporal=texts.whole("temporal"),
        acquisition=texts.whole("acquisition"),
        instance=texts.whole("instance"),
        trigger=_number(texts, "trigger_time"),
        acquired=_seconds(texts.text("acquisition_time")),
        content=_seconds(texts.text("content_time")),
        thickness=_length(texts, "thickness"),
        between=_length(texts, "gap"),
        stated_images=texts.whole("images_in_acquisition"),
        stated_slices=texts.short("slice_count") if modality in ("PT", "NM") else 0,
    )


def frame_facts(facts: Facts, find: Callable[[str, str], object], kinds: list[str]) -> Facts:
    """The facts of one frame, from its functional groups.

    Args:
        facts: of the whole object.
        find: value of an attribute within a functional group; None where it is missing.
        kinds: the frame's own image type, words joined by backslashes; empty where it has none.
    """
    words = re.split(r"\\|', '", kinds[0].strip("[]'")) if kinds else []
    meanings, others = _split_words(words) if words else (facts.meanings, facts.words)
    component = str(find("MRImageFrameTypeSequence", "ComplexImageComponent") or "").upper()
    if component in _MEANING_OF:
        meanings |= {_MEANING_OF[component]}
    return facts._replace(
        meanings=meanings,
        words=others,
        echo_time=_plain(find("MREchoSequence", "EffectiveEchoTime")) or facts.echo_time,
        kernel=str(find("CTReconstructionSequence", "ConvolutionKernel") or facts.kernel).upper(),
        b_value=_plain(find("MRDiffusionSequence", "DiffusionBValue")),
        temporal=int(_plain(find("FrameContentSequence", "TemporalPositionIndex")) or 0),
        acquisition=int(_plain(find("FrameContentSequence", "FrameAcquisitionNumber")) or facts.acquisition),
        trigger=_plain(find("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")),
        thickness=_plain(find("PixelMeasuresSequence", "SliceThickness")),
        between=_plain(find("PixelMeasuresSequence", "SpacingBetweenSlices")),
        instance=0,
        stated_images=0,
        stated_slices=0,
    )


def _split_words(words: list[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Known meanings, and the other words."""
    upper = {word.strip().upper() for word in words} - {""} - _MAGNITUDE
    known = {word for word in upper if word in _MEANING_OF}
    return frozenset(_MEANING_OF[word] for word in known), frozenset(upper - known)


def _component(texts: Texts) -> frozenset[str]:
    """Phase, real or imaginary part, where an element of its own tells it."""
    word = texts.text("complex_component").upper()
    if word in _MEANING_OF:
        return frozenset((_MEANING_OF[word],))
    if texts.text("ge_creator") == _GE:
        part = _GE_COMPLEX.get(texts.short("ge_complex"))
        return frozenset((part,)) if part else frozenset()
    return frozenset()


def _b_value(texts: Texts) -> float | None:
    """s/mm², from the standard's element or from those of vendors, who had it first."""
    value = texts.binary("b_value")
    if value is None and texts.text("siemens_creator") == "SIEMENS MR HEADER":
        value = texts.binary("siemens_b_value")
    if value is None and texts.text("philips_dd_creator") == "Philips Imaging DD 001":
        value = texts.binary("philips_b_value")
    if value is None and texts.text("united_creator") == "Image Private Header":
        value = texts.binary("united_mr_b_value")
    if value is None and texts.text("ge_creator") == _GE:
        first = texts.text("ge_b_value").split("\\")[0].strip()
        # GE adds 10⁹ to say that the number is exact.
        value = float(int(first) % 100_000) if first.isdecimal() and first.isascii() else None
    return value if value is not None and 0 <= value < 100_000 else None


def _number(texts: Texts, name: str) -> float | None:
    found = texts.numbers(name, 1)
    return found[0] if found else None


def _length(texts: Texts, name: str) -> float | None:
    found = _number(texts, name)
    return found if found and found > 0 else None


def _plain(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds(text: str) -> float | None:
    found = _TIME.match(text)
    if not found:
        return None
    hours, minutes, seconds = found.groups()
    return 3600.0 * int(hours) + 60.0 * int(minutes) + float(seconds)


def unpack_number(data: bytes, order: str) -> float | None:
    """A number of 32 or 64 bits with a fraction, or one in digits; None for anything else.

    >>> unpack_number(b"1000", "<"), unpack_number(bytes.fromhex("0000000000408f40"), "<")
    (1000.0, 1000.0)
    """
    text = data.strip(b" \0")
    if text and all(byte in b"0123456789.+-eE" for byte in text):
        try:
            return float(text)
        except ValueError:
            return None
    if len(data) not in (4, 8):
        return None
    (number,) = struct.unpack(order + ("f" if len(data) == 4 else "d"), data)
    return float(number) if math.isfinite(number) else None
