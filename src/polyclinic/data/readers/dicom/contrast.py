"""What an image shows, as a word of a fixed vocabulary.

Of MR the sequence's own numbers count first: repetition, echo and inversion times in milliseconds, ScanningSequence,
the diffusion weighting, the contrast agent, and what the image type says. Words of the description come second. Where
both are silent, or contradict each other, the answer is ``MR``: an image whose weighting is not known.

The limits are those of routine protocols at 1.5 and 3 tesla, with gaps between them in which numbers say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Protocol

from polyclinic.data.readers.dicom.mr_words import Words, read_words

UNKNOWN = "MR"
TAGS = {
    "acquisition_contrast": 0x00089209,
    "agent": 0x00180010,
    "scanning_sequence": 0x00180020,
    "sequence_name": 0x00180024,
    "angio": 0x00180025,
    "repetition_time": 0x00180080,
    "inversion_time": 0x00180082,
    "echo_train": 0x00180091,
    "pulse_sequence": 0x00189005,
    "siemens_b_value": 0x0019100C,
}
"""Further elements of the allow-list of ``dicom_header``."""

_STATED = {
    "DIFFUSION": "DWI", "PERFUSION": "perfusion", "T1": "T1w", "T2": "T2w", "T2_STAR": "T2star",
    "PROTON_DENSITY": "PDw", "FLUID_ATTENUATED": "FLAIR", "STIR": "STIR", "TOF": "angio", "FLOW_ENCODED": "",
    "TAGGING": "",
}  # fmt: skip
"""AcquisitionContrast (PS3.3, C.8.13.3.1.1) -> word; "" for what has none."""
_WEIGHTINGS = ("T1w", "T2w", "T2star", "PDw", "FLAIR", "STIR")
_NO_TISSUE = frozenset((
    "PHASE", "PHASE MAP", "PHASE_MAP", "SUB", "SUBTRACT", "SUBTRACTION", "FA", "FRACTIONAL_ANISO", "TENSOR", "EADC",
    "T1 MAP", "T2 MAP", "T1_MAP", "T2_MAP", "T2_STAR MAP", "T2_STAR_MAP", "R2_STAR_MAP", "FIELD_MAP", "B0", "B1", "F",
    "FAT", "FAT_FRACTION", "MTT", "TTP", "RCBV", "RCBF", "CBV", "TMAX", "STD_DEVIATION",
))  # fmt: skip
"""Words of ImageType for what shows no tissue in a usual weighting."""
_MEANS_NO_TISSUE = frozenset((
    "phase", "real", "imaginary", "fat", "fat fraction", "exponential ADC", "anisotropy", "tensor", "difference",
    "deviation", "T1 map", "T2 map", "T2* map", "R2* map", "field map", "perfusion",
))  # fmt: skip
"""The same, as ``Facts.meanings`` has it."""
_PARTS_OF_COMPLEX = ("P", "R", "I")
_NO_AGENT = re.compile(r"\W*(?:|no|none|nil|ohne|sans|without|w/o|n/?a|unknown|0(?:\.0*)?\s*(?:ml|cc)?)\W*", re.I)
_DIFFUSION_NAME = re.compile(r"(?:ep|re|resolve)\w*_b\d|diff|dwi|dti", re.I)


@dataclass(frozen=True, slots=True)
class SequenceFacts:
    """What a header says of how an image was made.

    Attributes:
        description, protocol: free texts; the second is only asked where the first says nothing, and never about the
            agent, since it often names the whole examination.
        repetition, echo, inversion: milliseconds; None where not known.
        sequence: words of ScanningSequence (SE, GR, IR, EP).
        name: the sequence's name.
        image_type: words of ImageType.
        stated: AcquisitionContrast.
        agent: ContrastBolusAgent.
        angio: AngioFlag.
        echo_train: echoes in one train; 0 where not known.
        b_value: diffusion weighting in s/mm², None where not known.
    """

    description: str = ""
    protocol: str = ""
    repetition: float | None = None
    echo: float | None = None
    inversion: float | None = None
    sequence: frozenset[str] = frozenset()
    name: str = ""
    image_type: tuple[str, ...] = field(default=())
    stated: str = ""
    agent: str = ""
    angio: bool = False
    echo_train: int = 0
    b_value: float | None = None


class Texts(Protocol):
    """How elements of a header are looked up by name."""

    def text(self, name: str) -> str:
        """The element as text, "" where it is missing."""

    def word(self, name: str) -> str:
        """The element in capital letters."""

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """So many finite numbers, else None."""


def header_contrast(texts: Texts, modality: str) -> str:
    """``T1w``, ``FLAIR``, ``DWI``, ...; ``MR`` where that is not known; of other modalities their name."""
    if "LOCALIZER" in texts.word("image_type"):
        return "localizer"
    if modality != "MR":
        return re.sub(r"[^A-Z0-9]", "", modality) or "image"

    def number(name: str) -> float | None:
        found = texts.numbers(name, 1)
        return found[0] if found and found[0] > 0 else None

    b_value = number("siemens_b_value") if texts.text("siemens_creator") == "SIEMENS MR HEADER" else None
    return contrast_of(
        SequenceFacts(
            description=texts.text("series_description"),
            # General Electric's names the examination, not the series.
            protocol="" if texts.word("manufacturer").startswith("G") else texts.text("protocol"),
            repetition=number("repetition_time"),
            echo=number("echo_time"),
            inversion=number("inversion_time"),
            sequence=_parts(texts.word("scanning_sequence")),
            name=texts.text("sequence_name") or texts.text("pulse_sequence"),
            image_type=tuple(word.strip() for word in texts.word("image_type").split("\\")),
            stated=texts.word("acquisition_contrast"),
            agent=texts.text("agent"),
            angio=texts.word("angio") == "Y",
            echo_train=int(number("echo_train") or 0),
            b_value=b_value,
        )
    )


def contrast_of(facts: SequenceFacts) -> str:
    """A word of the vocabulary, or ``MR`` where none is certain.

    >>> contrast_of(SequenceFacts(description="AX T1 FLAIR", inversion=860, repetition=2200, echo=9))
    'T1w'
    >>> contrast_of(SequenceFacts(description="STIR EPILEPSY"))
    'STIR'
    """
    words, measured = read_words(facts.description), _stated(facts) or _measured(facts)
    if words.technique is None and words.weighting is None and not measured:
        protocol = read_words(facts.protocol)
        words = protocol._replace(agent=words.agent, resting=words.resting or protocol.resting)
    kind = _certain(facts, words)
    if kind is None:
        kind = words.technique
    if kind is None and words.resting and "EP" in facts.sequence:
        kind = "bold"
    if kind is not None:
        return kind or UNKNOWN
    weighting = _agreed(words, measured, facts.inversion)
    return "T1ce" if weighting == "T1w" and _after_agent(facts, words) else weighting or UNKNOWN


def frames_contrast(contrast: str, meanings: Set[str]) -> str:
    """The contrast of images whose frames or private elements say what they show, which the header's words do not.

    Args:
        contrast: as the header has it, of MR.
        meanings: as in ``Facts``.

    >>> frames_contrast("T1w", {"phase"}), frames_contrast("DWI", {"ADC"}), frames_contrast("T1w", {"water"})
    ('MR', 'ADC', 'T1w')
    """
    if contrast == "localizer":
        return contrast
    return "ADC" if "ADC" in meanings else UNKNOWN if meanings & _MEANS_NO_TISSUE else contrast


def _certain(facts: SequenceFacts, words: Words) -> str | None:
    """What the image type, the name of the sequence and AcquisitionContrast tell beyond doubt; "" for no tissue."""
    kinds = set(facts.image_type)
    if "ADC" in kinds:
        return "ADC"
    if kinds & _NO_TISSUE or any(part in _PARTS_OF_COMPLEX for part in facts.image_type[2:4]):
        return ""
    if words.technique is not None and words.technique != "DWI":
        return words.technique
    stated = _STATED.get(facts.stated)
    if stated is not None and stated not in _WEIGHTINGS:
        return stated
    if facts.name.lower().lstrip("*").startswith("swi"):
        return "SWI"
    if kinds & {"DIFFUSION", "TRACEW", "DWI"} or facts.b_value or _DIFFUSION_NAME.search(facts.name):
        return words.technique if words.technique is not None else "DWI"
    return "angio" if facts.angio else None


def _stated(facts: SequenceFacts) -> str:
    found = _STATED.get(facts.stated, "")
    return found if found in _WEIGHTINGS else ""


def _measured(facts: SequenceFacts) -> str:
    """The weighting that the numbers tell; "" where they don't."""
    echo, repetition, inversion = facts.echo, facts.repetition, facts.inversion
    if echo is None or "EP" in facts.sequence:
        return ""
    if "GR" in facts.sequence:
        if inversion is not None and 400 <= inversion <= 1500 and echo <= 8:
            return "T1w"  # prepared by an inversion, as MPRAGE is
        return "T2star" if echo >= 12 and inversion is None else ""
    if "SE" not in facts.sequence and "IR" not in facts.sequence and facts.echo_train < 2:
        return ""
    if inversion is not None:
        return _inverted(inversion, echo)
    if repetition is None or "IR" in facts.sequence:
        return ""
    if repetition <= 900 and echo <= 35:
        return "T1w"
    if repetition >= 1200 and echo >= 70:
        return "T2w"
    return "PDw" if repetition >= 1800 and echo <= 40 else ""


def _inverted(inversion: float, echo: float) -> str:
    """Spin echoes after an inversion, whose time tells what it suppresses: fat early, water late."""
    if 80 <= inversion <= 300:
        return "STIR"
    if 400 <= inversion <= 1300 and echo <= 45:
        return "T1w"
    return "FLAIR" if inversion >= 1500 and echo >= 60 else ""


def _agreed(words: Words, measured: str, inversion: float | None) -> str:
    """What words and numbers say together; "" where they contradict each other."""
    said = words.weighting
    if not said or not measured:
        # Words that name two weightings leave it to the numbers.
        return said or measured
    if words.inverted and inversion is None and (said, measured) != ("FLAIR", "T1w"):
        # Without the inversion time the other times look like those of T2 or proton density.
        return said
    if (said, measured) in (("T2w", "FLAIR"), ("T2w", "STIR"), ("FLAIR", "T1w"), ("T2w", "T2star")):
        return measured
    return said if said == measured else ""


def _after_agent(facts: SequenceFacts, words: Words) -> bool:
    """Whether the image was made after a contrast agent was given: its own description knows best."""
    if words.agent is not None:
        return words.agent
    return not _NO_AGENT.fullmatch(facts.agent)


def _parts(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split("\\")) - {""}
