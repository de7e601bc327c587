"""What is told from one file's path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from polyclinic.data.readers.names.words import Word

Levels = tuple[str, ...]
"""A path's folders and, last, its file name without ending."""


@dataclass
class Named:
    """What the name of one file says.

    Attributes:
        levels: its path.
        words: for each level.
        is_mask: whether voxels are labels.
        shows: what it shows, as far as a word says it.
        parts: words of the visit.
        run: word of the repetition.
        details: further words of the contrast, or of what a mask marks.
        row: words without a meaning of their own, outermost first.
        subject: words of the patient.
        labels: (level, start) of a word -> what it was taken for.
        matched: whether an image has the mask's patient.
    """

    levels: Levels
    words: list[tuple[Word, ...]]
    is_mask: bool = False
    shows: str = ""
    parts: list[str] = field(default_factory=list)
    run: str = ""
    details: list[str] = field(default_factory=list)
    row: tuple[tuple[int, Word], ...] = ()
    subject: tuple[str, ...] = ()
    labels: dict[tuple[int, int], str] = field(default_factory=dict)
    matched: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """The words of ``row``."""
        return tuple(word.text for _, word in self.row)

    @property
    def signature(self) -> tuple[str, ...]:
        """What words with a meaning say, but for dates: two images of one patient that differ in it need no other word.

        Dates are left out, since all images of a hospital may differ in them.
        """
        parts = (visit_key(part) for part in self.parts if not re.search(r"\d{4}", part))
        return (*parts, "|", self.run, self.shows, *self.details)

    def label(self, level: int, word: Word, what: str) -> None:
        """Remember what a word was taken for."""
        self.labels[level, word.start] = what


def visit_key(part: str) -> str:
    """``ses-01`` and ``ses_1`` are one visit, ``2019-03-01`` and ``20190301`` as well."""
    plain = re.sub(r"[-_.\s]", "", part.lower())
    return plain if re.fullmatch(r"\d{8}", plain) else re.sub(r"(?<!\d)0+(?=\d)", "", plain)
