"""Patterns of paths, such as ``{subject}/{session}/{contrast}.nii.gz``: what a person says where names can't tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from polyclinic.data.readers.names.named import Named
from polyclinic.data.readers.names.words import Role, cut
from polyclinic.errors import DataError

FIELDS = ("site", "subject", "session", "contrast", "run", "mask")
"""What may stand in braces."""
_PIECE = re.compile(r"\{[^{}/]*\}|\*\*/?|\*|[^{}*]+|.", re.S)
_EXPECTED = 'Expected a path such as "{subject}/{session}/{contrast}.nii.gz"'
_EXAMPLE = (
    "Fields are {site}, {subject} (needed), {session}, {contrast}, {run} and {mask}; * stands for any letters within a "
    "name and ** for any folders."
)


@dataclass(frozen=True)
class Fit:
    """How a pattern reads a path.

    Attributes:
        named: patient, visit, contrast.
        site: the site, "" where the pattern does not tell it.
        layout: the pattern.
    """

    named: Named
    site: str
    layout: str


@dataclass(frozen=True)
class Pattern:
    """A pattern of paths relative to a site's folder.

    A field matches letters within one name. First fields and stars are tried without the separators that stand beside
    them (``{subject}_{contrast}`` takes ``P1_T1`` apart in one way), then fields alone, then with separators in both. A
    path that can be taken apart in several ways (``P_1_T1``) does not fit. A field that stands twice means the same.
    """

    text: str
    _ways: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern.

        Raises:
            DataError: P203 when a field is unknown or missing, or fields stand side by side.
        """
        plain = text.strip().removeprefix("./")
        pieces: list[str] = _PIECE.findall(plain)
        _check(text, plain, pieces)
        if not re.search(r"\.nii(\.gz)?$|\*$", plain):
            pieces.append("\0")
        ways = [
            (_compile(pieces, plain_fields, plain_stars, greedy=False), _compile(pieces, plain_fields, plain_stars))
            for plain_fields, plain_stars in ((True, True), (True, False), (False, False))
        ]
        return cls(plain, tuple(ways))

    @property
    def tells_site(self) -> bool:
        """Whether the site stands in the pattern."""
        return "{site}" in self.text

    def fit(self, path: str) -> Fit | None:
        """What the pattern says of a path with ``/`` between folders; None where it does not fit in just one way."""
        found = [(first.fullmatch(path), last.fullmatch(path)) for first, last in self._ways]
        match, other = next((pair for pair in found if pair[0]), (None, None))
        if match is None or other is None or match.groupdict() != other.groupdict():
            return None
        fields = {name: text.strip() for name, text in match.groupdict().items()}
        if not all(fields.values()):
            return None
        return Fit(_named(path, fields, self.text), fields.get("site", ""), self.text)


def _check(text: str, plain: str, pieces: list[str]) -> None:
    def refuse(what: str) -> DataError:
        return DataError("P203", f"`--pattern`: got {text!r}, {what}. {_EXPECTED}.", _EXAMPLE)

    if not plain or plain.startswith("/") or "\\" in plain:
        raise refuse("which is no path relative to the folder")
    fields = [piece[1:-1] for piece in pieces if len(piece) > 1 and piece.startswith("{")]
    if any(piece in "{}" for piece in pieces):
        raise refuse("with a brace that has no partner")
    unknown = next((field for field in fields if field not in FIELDS), None)
    if unknown is not None:
        raise refuse(f"with the unknown field {{{unknown}}}")
    if "subject" not in fields:
        raise refuse("which has no {subject}")
    wild = [piece.startswith(("{", "*")) and not piece.endswith("/") for piece in pieces]
    if any(one and other for one, other in pairwise(wild)):
        raise refuse("with nothing between two fields or wildcards")


def _compile(pieces: list[str], plain_fields: bool, plain_stars: bool, *, greedy: bool = True) -> re.Pattern[str]:
    """The pattern as an expression whose pieces take as much as they can, or as little (``greedy`` is false).

    Plain fields and stars hold none of the separators that stand beside them.
    """
    lazy = "" if greedy else "?"
    seen: set[str] = set()
    parts = []
    for number, piece in enumerate(pieces):
        if piece.startswith("{"):
            name = piece[1:-1]
            parts.append(
                f"(?P={name})" if name in seen else f"(?P<{name}>[^/{_beside(pieces, number, plain_fields)}]+{lazy})"
            )
            seen.add(name)
        elif piece == "**/":
            parts.append(f"(?:.*{lazy}/)?{lazy}")
        elif piece == "**":
            parts.append(f".*{lazy}")
        elif piece == "*":
            parts.append(f"[^/{_beside(pieces, number, plain_stars)}]*{lazy}")
        elif piece == "\0":
            parts.append(r"\.[nN][iI][iI](?:\.[gG][zZ])?")
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts), re.S)


def _beside(pieces: list[str], number: int, plain: bool) -> str:
    """The separators that stand beside fields and wildcards of the same name as piece ``number``, for a set."""
    if not plain:
        return ""
    first = max((n for n in range(number) if "/" in pieces[n]), default=0)
    last = min((n for n in range(number + 1, len(pieces)) if "/" in pieces[n]), default=len(pieces) - 1)
    found = set()
    for piece in pieces[first : last + 1]:
        if not piece.startswith(("{", "*", "\0")):
            found |= {letter for letter in (piece[0], piece[-1]) if not letter.isalnum()} - {"/"}
    return "".join(re.escape(letter) for letter in sorted(found))


def _named(path: str, fields: dict[str, str], text: str) -> Named:
    """The fields, with words of ``{contrast}`` and ``{mask}`` read as everywhere."""
    levels = tuple(re.sub(r"\.nii(\.gz)?$", "", path, flags=re.I).split("/"))
    named = Named(levels, [()] * len(levels))
    named.subject = (fields["subject"],)
    named.parts = [fields["session"]] if "session" in fields else []
    named.run = fields.get("run", "")
    literal = re.sub(r"\{[^{}]*\}", " ", text)
    named.is_mask = "mask" in fields or any(word.role == Role.MASK for name in literal.split("/") for word in cut(name))
    for word in cut(fields.get("contrast", "")):
        if word.role == Role.MASK:
            named.is_mask = True
            named.details += [word.value] if word.value else []
        elif word.role == Role.CONTRAST and not named.shows:
            named.shows = word.value
        else:
            named.details.append(word.text)
    if not named.shows and not named.is_mask:
        named.shows, named.details = "_".join(named.details), []
    for word in cut(fields.get("mask", "")):
        if word.role != Role.MASK or word.value:
            named.details.append(word.value or word.text)
    return named
