"""From the values of a mask file to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ImageColor

from polyclinic.data.masks.values import Table, check_foreground, tabulate, whole_numbers
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.data.spec import DataSpec
from polyclinic.errors import StudyError
from polyclinic.ignored import IGNORED

#: Class indices are bytes, of which 0 is the background and ``IGNORED`` is no class.
MOST_STRUCTURES = 254
#: So many values of a mask are kept for a person to see.
_SHOWN = 6


@dataclass(frozen=True)
class MaskFacts:
    """What was seen in one mask.

    Attributes:
        values: values of the foreground where the study does not name structures, the first few of them in order.
        count: how many there are.
        share: of the pixels that count, which are foreground (0 to 1).
        coloured: whether the values are colours, ``0xRRGGBB``.
        alpha: ``only`` where the mask was taken from the transparency of a picture, ``hidden`` where transparent pixels
            had a colour and are background, else "".
        turned: how the mask lies to its image: ``exif`` where just one of both was turned by its EXIF orientation,
            ``axes`` where rows run another way in a volume, else "".
        resampled: whether the mask of a volume has other voxels than its image.
        inside: share of the foreground that lies in the image.
        vanished: classes that the file has, and of which the mask that is used has nothing left.
    """

    values: Sequence[int] = ()
    count: int = 0
    share: float = 0.0
    coloured: bool = False
    alpha: str = ""
    turned: str = ""
    resampled: bool = False
    inside: float = 1.0
    vanished: Sequence[int] = ()


@dataclass(frozen=True)
class MaskClasses:
    """Which values of a mask are which structure. Colours are numbers ``0xRRGGBB``.

    Attributes:
        names: of the classes, background first.
        values: values of each structure, in the order of ``names[1:]``; None: everything that is no background.
        complete: whether a value that belongs to no structure makes the mask unusable; else it is background.
        above: what is larger is foreground; None where values are names of structures.
        background: values of the background.
        ignore: values of what plays no part.
        nan: whether what is no number is ``background``, or plays no part (``ignore``); "" makes the mask unusable.
        colours: whether values are colours.
        palette: what counts of a picture with a palette: ``colour`` or ``index``; None: colours, unless the study
            gives numbers.
    """

    names: tuple[str, ...] = ("background", "foreground")
    values: tuple[tuple[int, ...], ...] | None = None
    complete: bool = False
    above: float | None = None
    background: tuple[int, ...] = (0,)
    ignore: tuple[int, ...] = ()
    nan: Literal["", "background", "ignore"] = ""
    colours: bool = False
    palette: Literal["colour", "index"] | None = None

    @classmethod
    def of(cls, spec: DataSpec) -> MaskClasses:
        """What ``mask`` and ``mask_classes`` of a study say.

        With a list of names the structures are the values 1, 2, ... and another value is a mistake; with
        ``{name: values}`` values that are not named are background, because atlases mark far more than a study needs.
        Colours that are not named are a mistake: they come from soft edges or lossy files.

        Raises:
            StudyError: P102 when names or values are missing, there twice, or out of range; P104 when entries exclude
                each other.
        """
        meaning, given = spec.mask_meaning, spec.mask_classes
        background, background_nan, background_colour = _read(meaning.background, "`background` of `mask`")
        ignore, ignore_nan, ignore_colour = _read(meaning.ignore, "`ignore` of `mask`")
        names, values, colours = ["foreground"], None, background_colour or ignore_colour
        if given is not None:
            _check_names(list(given))
            names = list(given)
            read = [_read(given[name], "`mask_classes`") for name in given] if isinstance(given, dict) else []
            values = [one for one, _, _ in read] or [[number] for number in range(1, len(given) + 1)]
            colours = colours or any(colour for _, _, colour in read)
        background = background or [0]
        _check_values(values or [], background, ignore)
        if meaning.above is not None and (given is not None or colours or meaning.background not in ([0], ["nan"])):
            raise StudyError(
                "P104", "`above` of `mask` makes two classes, and goes with no other values or colours.",
                "Take out `above`, or `mask_classes` and `background`.",
            )  # fmt: skip
        if colours:
            _check_colours(meaning.background, meaning.ignore, given, spec)
        nan: Literal["", "background", "ignore"] = ""
        if ignore_nan or background_nan or meaning.above is not None:
            nan = "ignore" if ignore_nan else "background"
        return cls(
            ("background", *names), None if values is None else tuple(map(tuple, values)),
            colours if isinstance(given, dict) else given is not None, meaning.above, tuple(background), tuple(ignore),
            nan, colours, meaning.palette,
        )  # fmt: skip

    @property
    def several(self) -> bool:
        """Whether there is more than one structure besides the background."""
        return len(self.names) > 2

    @property
    def numbered(self) -> bool:
        """Whether the study says what numbers mean, so that a mask must hold numbers and not colours."""
        said = self.values is not None or self.above is not None or self.ignore or self.background != (0,)
        return bool(said) and not self.colours

    def encode(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Class index of each pixel or voxel, in the shape of ``values``; see ``read``."""
        return self.read(values)[0]

    def read(
        self, values: npt.NDArray[np.generic], *, coloured: bool = False, lossy: bool = False
    ) -> tuple[npt.NDArray[np.uint8], MaskFacts]:
        """Class index of each pixel or voxel, in the shape of ``values``, and what was seen.

        Args:
            values: numbers, or colours ``0xRRGGBB``.
            coloured: whether they are colours.
            lossy: whether the file's format changes values (JPEG).

        Raises:
            UnreadableError: the values are no whole numbers, negative, or others than a mask has; one of them belongs
                to no structure and must; or nothing is left to learn from.
        """
        if values.dtype.kind not in "biuf":
            raise UnreadableError("mask is not of plain numbers")
        missing: npt.NDArray[np.bool_] | None = None
        if values.dtype.kind == "f" and np.isnan(values.min()):
            if not self.nan:
                raise UnreadableError(
                    "mask has values that are no whole numbers (NaN): say `mask: {background: nan}` if they are"
                )
            missing = np.isnan(values)
            values = np.where(missing, values.dtype.type(0), values)
        if self.above is not None:
            found, counts, seen = self._compared(values), None, np.zeros(0, dtype=np.int64)
        else:
            table = tabulate(whole_numbers(values))
            classes, seen = self._class_of(table, coloured=coloured, lossy=lossy)
            found, counts = table.spread(classes), np.bincount(classes, table.counts, minlength=256)
        if missing is not None:
            found[missing], counts = (IGNORED if self.nan == "ignore" else 0), None
        if counts is None:
            counts = np.bincount(found.reshape(-1), minlength=256)
        known = int(counts[:IGNORED].sum())
        if not known:
            raise UnreadableError("mask leaves out everything (`ignore`)")
        share = 1.0 - float(counts[0]) / known
        return found, MaskFacts(tuple(seen[:_SHOWN].tolist()), len(seen), share, coloured)

    def _compared(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """1 where values are above the limit."""
        numbers: npt.NDArray[Any] = values.astype(np.uint8) if values.dtype.kind == "b" else values
        if not np.isfinite(numbers).all():
            raise UnreadableError("mask has infinite values")
        found: npt.NDArray[np.uint8] = (numbers > self.above).astype(np.uint8)
        if self.ignore:
            found[np.isin(numbers, self.ignore)] = IGNORED
        return found

    def _class_of(
        self, table: Table, *, coloured: bool, lossy: bool
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Class index of each distinct value, and those that are foreground without a name."""
        distinct = table.values
        ignored, plain = np.isin(distinct, self.ignore), np.isin(distinct, self.background)
        indices = np.zeros(len(distinct), dtype=np.uint8)
        rest = ~(ignored | plain)
        if self.values is None:
            check_foreground(distinct[rest], background=bool(plain.any()), coloured=coloured, lossy=lossy)
            indices[rest] = 1
        else:
            for index, wanted in enumerate(self.values, start=1):
                indices[np.isin(distinct, wanted)] = index
            unknown = rest & (indices == 0)
            if unknown.any() and (self.complete or lossy):
                what = "colour" if coloured or self.colours else "value"
                lost = " (JPEG files change values)" if lossy else ""
                raise UnreadableError(f"mask has a {what} that is none of `mask_classes`{lost}")
        indices[ignored] = IGNORED
        return indices, distinct[rest] if self.values is None else distinct[:0]


def vanished(found: npt.NDArray[Any], used: npt.NDArray[np.uint8]) -> list[int]:
    """Classes of the foreground that ``found`` (a mask as it was read) has and ``used`` has not."""
    there = np.bincount(found.reshape(-1), minlength=256)[1:IGNORED] > 0
    left = np.bincount(used.reshape(-1), minlength=256)[1:IGNORED] > 0
    gone: list[int] = (np.flatnonzero(there & ~left) + 1).tolist()
    return gone


def _read(given: int | str | Sequence[int | str], where: str) -> tuple[list[int], bool, bool]:
    """The numbers of an entry, whether ``nan`` is among them, and whether colours are."""
    numbers: list[int] = []
    nan = colour = False
    for value in [given] if isinstance(given, int | str) else given:
        if value == "nan":
            nan = True
        elif isinstance(value, int) or value.strip().removeprefix("-").isdecimal():
            numbers.append(int(value))
        else:
            try:
                red, green, blue = ImageColor.getrgb(value)[:3]
            except ValueError:
                hint = 'Give whole numbers, `nan`, or colours such as "#ff0000" (in quotes) or red.'
                raise StudyError("P102", f"{where} has the value {value!r}.", hint) from None
            numbers.append((red << 16) + (green << 8) + blue)
            colour = True
    return numbers, nan, colour


def _need(fulfilled: object, message: str, hint: str) -> None:
    if not fulfilled:
        raise StudyError("P102", message, hint)


def _check_names(names: list[str]) -> None:
    _need(names, "`mask_classes` names no structure or one without a value.", "Give at least one each.")
    _need(len(names) <= MOST_STRUCTURES, f"`mask_classes` has {len(names)} structures.", f"Up to {MOST_STRUCTURES}.")
    for name in names:
        plain = name.strip() and not set("[],\n") & set(name) and name != "background"
        _need(plain, f"`mask_classes` has the name {name!r}.", "Give a name without brackets and commas.")
        _need(names.count(name) == 1, f"`mask_classes` has {name!r} twice.", "Give each structure a name of its own.")


def _check_values(values: Sequence[Sequence[int]], background: list[int], ignore: list[int]) -> None:
    _need(all(values), "`mask_classes` names no structure or one without a value.", "Give at least one each.")
    every = [value for own in values for value in own]
    for value in every:
        plain = value > 0 if background == [0] else value not in background
        why = "Values are above 0, which is the background." if background == [0] else "That is the background."
        _need(plain, f"`mask_classes` has the value {value}.", why)
        _need(every.count(value) == 1, f"`mask_classes` has the value {value} twice.", "A value is one structure.")
    for value in ignore:
        hint = "A value has one meaning: take it out of the one or the other."
        _need(value not in every, f"`ignore` of `mask` has the value {value}, which `mask_classes` names.", hint)
        _need(value not in background, f"`ignore` of `mask` has the value {value} of the background.", hint)


def _check_colours(background: Sequence[int | str], ignore: Sequence[int | str], given: object, spec: DataSpec) -> None:
    """Stop where colours and numbers are mixed, or masks are volumes."""
    named: list[int | str] = [*background, *ignore]
    for values in given.values() if isinstance(given, dict) else []:
        named += [values] if isinstance(values, int | str) else values
    hint = 'Give all of them as numbers, or all as colours such as "#ff0000".'
    numbers = [value for value in named if isinstance(value, int) and value]  # black is 0 either way
    _need(not numbers and not isinstance(given, list), "Values of masks are numbers and colours.", hint)
    _need(spec.preprocessing is None, "Masks of volumes have numbers, not colours.", "Give the numbers of structures.")
    _need("nan" not in named, "A colour is always a number: `nan` means nothing here.", "Take it out.")
    _need(spec.mask_meaning.palette != "index", "`palette: index` means numbers, not colours.", "Take it out.")
