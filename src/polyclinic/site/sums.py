"""A site in sums over sites: what it says of its cases leaves it under masks, see `polyclinic.secure.sums`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyclinic.channel.said import read_said, said
from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.secure import Signer, SiteRound
from polyclinic.secure.binding import UnfitError
from polyclinic.secure.exact import encode, fits
from polyclinic.secure.sums import SumTerms
from polyclinic.shapes import Misfit
from polyclinic.site.diary import Diary

#: Tensor of a question whose answer is to be summed: the other sites' shares, sealed for this one.
BOXES = "boxes"
#: Tensor of the answer.
MASKED = "masked"
#: Of a sum: how many sites had numbers that could not be summed.
BROKEN = "broken"
#: Of validation: how many cases have a loss and a metric, their sums, and how many sites have any; with shapes.
EVALUATED = {"cases": (2,), "sums": (2,), "sites": ()}
#: Functions whose answers can be summed, of a preparation and of a training.
PREPARING, TRAINING = frozenset({"share"}), frozenset({"threshold", "sums", "evaluate"})
#: What sites are asked before and after.
PHASES = ("sum_advertise", "sum_share", "sum_agree", "sum_unmask")


class SiteSums:
    """One site's part in sums, one at a time: `answer` in each phase, and `mask` in between.

    Args:
        site: its name.
    """

    def __init__(self, site: str) -> None:
        self.site = site
        self._round: SiteRound | None = None
        self._key = ""

    def answer(self, phase: str, told: Tensor | None, signer: Signer | None, diary: Diary) -> Message:
        """What the site says in a phase.

        Args:
            phase: one of `PHASES`.
            told: what it is told.
            signer: signs for the site, if it has a certificate.
            diary: remembers with which sites the same was summed.

        Raises:
            SiteError: P402 or P404, it is refused.
        """
        try:
            return Message({}, {"said": said(self._answered(phase, read_said(told, "told"), signer, diary))})
        except (Misfit, UnfitError) as error:
            self._round = None
            raise self._refused(str(error)) from None
        except PolyclinicError:
            self._round = None
            raise

    def _answered(self, phase: str, told: Any, signer: Signer | None, diary: Diary) -> Any:
        if phase == "sum_advertise":
            about = SumTerms.read(told)
            if self.site not in about.sites or about.function not in PREPARING | TRAINING:
                raise UnfitError("it is not about something that this site adds to a sum")
            self._about, self._key = about, ""
            self._round = SiteRound(about.terms(), self.site, signer)
            return self._round.advertise()
        if self._round is None:
            raise UnfitError("no sum was begun")
        if phase == "sum_share":
            return self._round.share(told)
        if not self._key:
            raise UnfitError("it was not asked what is to be summed")
        if phase == "sum_agree":
            if not isinstance(told, list) or not all(isinstance(one, str) for one in told):
                raise UnfitError("the list of those in the sum is none")
            self._survivors = hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()
            if diary.recall(self._key) not in (None, self._survivors):
                raise UnfitError("the same was summed before with other sites, and the difference would be their part")
            return self._round.agree(told)
        revealed = self._round.unmask(told)
        diary.note(self._key, self._survivors)  # before it leaves
        self._round = None
        return revealed

    def mask(self, function: str, answer: Message, boxes: Tensor, context: Sequence[bytes]) -> Message:
        """An answer as it leaves the site.

        Args:
            function: what was asked.
            answer: what the site would have answered.
            boxes: what the question came with.
            context: what is known again: what this stands for is summed with the same sites only.

        Raises:
            SiteError: P404, no sum was begun for it.
        """
        numbers = torch.cat([one.flatten() for _, one in sorted(to_sum(function, answer).items())])
        try:
            if self._round is None or self._about.function != function or self._key:
                raise UnfitError("no sum was begun for it")
            if len(numbers) != self._about.length:
                raise UnfitError(f"it has {len(numbers)} numbers, and {self._about.length} are to be summed")
            masked = self._round.mask(encode(numbers), read_said(boxes, BOXES))
        except (Misfit, UnfitError) as error:
            self._round = None
            raise self._refused(str(error), function) from None
        marked = hashlib.sha256()
        for piece in (function.encode(), *context):
            marked.update(len(piece).to_bytes(8, "little") + piece)
        self._key = f"sum {marked.hexdigest()}"
        return Message({}, {MASKED: masked})

    def _refused(self, why: str, function: str = "") -> SiteError:
        what = f" of what it answers to {function!r}" if function else ""
        return SiteError(
            "P404", f"Site {self.site} takes no part in a sum{what}: {why.removesuffix('.')}.",
            "Let all sites and the server run the same version of Polyclinic, and the same sites take part.",
            site=self.site,
        )  # fmt: skip


def to_sum(function: str, answer: Message) -> dict[str, Tensor]:
    """The numbers of an answer by name, float64; of one that can't be summed zeros, and a 1 as `BROKEN`.

    Of validation the loss and the metric by cases: `EVALUATED`. A sum with one that is no number would tell nothing.
    """
    numbers = _evaluated(answer) if function == "evaluate" else answer.tensors
    found = {name: one.double() for name, one in numbers.items()}
    broken = not all(bool(fits(one).all()) for one in found.values())
    if broken:
        found = {name: torch.zeros_like(one) for name, one in found.items()}
    return {**found, BROKEN: torch.tensor(float(broken), dtype=torch.float64)}


def _evaluated(answer: Message) -> dict[str, Tensor]:
    values = [answer.fields.get(name) for name in ("loss", "metric")]
    cases = [0.0 if value is None else float(answer.fields["cases"]) for value in values]
    totals = [count * (value or 0.0) for count, value in zip(cases, values, strict=True)]
    known = float(values[0] is not None)
    numbers = zip(EVALUATED, (cases, totals, known), strict=True)
    return {name: torch.tensor(one, dtype=torch.float64) for name, one in numbers}
