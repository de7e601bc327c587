"""What a person should know of the masks of all sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from polyclinic.data.cases import SiteData
from polyclinic.data.masks.classes import MaskFacts
from polyclinic.notes import Note

#: Masks rarely mark more than this share of an image; the background, where it is taken for the foreground, does.
_MOST = 0.5
_MOST_VALUES = 6


def mask_notes(sites: Mapping[str, SiteData], *, named: bool) -> list[Note]:
    """Notes on masks whose values or whose place are not plain; they hold counts and values of masks.

    Args:
        sites: the usable cases.
        named: whether the study names structures, so that masks may cover whole images.
    """
    notes: list[Note] = []
    seen = {site: _Masks(site, data) for site, data in sites.items() if data.mask_facts}
    for masks in seen.values():
        notes += [note for note in (masks.several(), masks.spellings(), *masks.places()) if note is not None]
        if not named:
            notes += masks.coverage()
    return [*notes, *_spellings(seen)]


class _Masks:
    """The masks of one site."""

    def __init__(self, site: str, data: SiteData) -> None:
        self.site, self.cases, self.facts = site, data.cases, list(data.mask_facts or [])

    def _chosen(self, wanted: Callable[[MaskFacts], bool]) -> list[str]:
        return [case for case, facts in zip(self.cases, self.facts, strict=True) if wanted(facts)]

    def _note(self, number: str, wanted: Callable[[MaskFacts], bool], text: str) -> Note | None:
        cases = self._chosen(wanted)
        if not cases:
            return None
        return Note(number, f"{self._count(cases)} {text}", cases)

    def _count(self, cases: Sequence[str]) -> str:
        """How many masks have what follows."""
        whole = "the mask" if len(self.facts) == 1 else f"{len(cases)} of {len(self.facts)} masks"
        return f"Site {self.site}: {whole} {'has' if len(cases) == 1 else 'have'}"

    def several(self) -> Note | None:
        """Masks with more than one value besides the background, where the study does not name structures."""
        cases = self._chosen(lambda facts: facts.count > 1)
        if not cases:
            return None
        coloured = any(facts.coloured for facts in self.facts if facts.count > 1)
        values = sorted({value for facts in self.facts if facts.count > 1 for value in facts.values})
        what = "colours" if coloured else "values"
        listed = _listed(values, coloured=coloured)
        text = f"{self._count(cases)} several {what} besides the background ({listed}), and all of them count as "
        text += "foreground: name structures in `mask_classes`"
        text += "." if coloured else ", or say `mask: {above: 0}` if that is meant."
        return Note("N410", text, cases)

    def spellings(self) -> Note | None:
        """Masks with one value besides the background, and not the same in all."""
        written = sorted({facts.values[0] for facts in self.facts if facts.count == 1})
        if len(written) < 2:
            return None
        coloured = any(facts.coloured for facts in self.facts)
        text = f"Site {self.site}: masks write the foreground as different values: "
        return Note("N413", text + f"{_listed(written, coloured=coloured)}. Each of them counts as foreground.")

    def coverage(self) -> list[Note]:
        """All masks of the site cover everything, or more than half."""
        least = min(facts.share for facts in self.facts)
        masks = f"Site {self.site}: " + (f"all {len(self.facts)} masks cover" if self.facts[1:] else "the mask covers")
        if least == 1.0:
            text = f"{masks} everything: if the background has another value than 0, say `mask: {{background: VALUE}}`."
            return [Note("N411", text, self.cases)]
        if least > _MOST:
            text = f"{masks} more than half of the image: if foreground and background are swapped, say "
            return [Note("N412", f"{text}`mask: {{background: VALUE}}` with the value of the background.", self.cases)]
        return []

    def places(self) -> list[Note | None]:
        """How masks lie to their images."""
        notes = [
            self._note("N414", lambda facts: facts.alpha == "only",
                     "been taken from the transparency, because the picture has one colour."),
            self._note("N414", lambda facts: facts.alpha == "hidden",
                     "colours under transparent pixels, which count as background."),
            self._note("N415", lambda facts: facts.turned == "exif",
                     "another EXIF orientation than the image: both were turned upright, each by its own. "
                     "Look whether they fit."),
            self._note("N416", lambda facts: facts.turned == "axes",
                     "rows or columns that run another way than those of the image, in the same place: headers are "
                     "trusted. Say `mask: {grid: voxels}` if the voxels go together as they are, else "
                     "`mask: {grid: header}`."),
        ]  # fmt: skip
        moved = [facts.inside for facts in self.facts if facts.resampled]
        if moved:
            text = "other voxels than the image, to which headers brought them; at least "
            text += f"{100 * min(moved):.0f} % of the foreground lies in the image."
            notes.append(self._note("N417", lambda facts: facts.resampled, text))
        return notes

    def foreground(self) -> list[int]:
        """Values of the foreground in all masks."""
        return sorted({value for facts in self.facts for value in facts.values})


def _spellings(seen: Mapping[str, _Masks]) -> list[Note]:
    """A note where two sites have no value of the foreground in common."""
    written = {site: values for site, masks in seen.items() if (values := masks.foreground())}
    if all(set(one) & set(other) for one, other in combinations(written.values(), 2)):
        return []
    coloured = any(facts.coloured for masks in seen.values() for facts in masks.facts)
    there = "; ".join(f"{_listed(values, coloured=coloured)} at {site}" for site, values in written.items())
    text = f"Sites write the foreground of masks as different values: {there}. All of them count as foreground."
    return [Note("N413", text)]


def _listed(values: Sequence[int], *, coloured: bool = False) -> str:
    shown = [f"#{value:06x}" if coloured else str(value) for value in values[:_MOST_VALUES]]
    return ", ".join(shown) + (", ..." if len(values) > _MOST_VALUES else "")
