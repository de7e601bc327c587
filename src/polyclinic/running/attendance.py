"""Who takes part, who is late, and whether those that answer suffice: judged here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence

from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.parts import FEDERATION, Answered, Groups
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress
from polyclinic.server.selection import Candidates

_MEND = "Mend the sites named, or set a lower `training: {quorum: ...}`."
_SAME = "All failed in the same way, so look for the cause in what they have in common: the study, its parts, its data."


class BrokenDown(Exception):  # noqa: N818 - it is no error
    """A simulated attack has driven the model to values that are not numbers."""


class BudgetSpent(Exception):  # noqa: N818 - it is no error
    """Sites have spent what the training may cost their patients' privacy: it ends with the model that it has."""


class Attendance:
    """Judges one round.

    Args:
        plan: says what is asked of the sites.
        progress: where the training is; notes are added to its ``failures``.

    Attributes:
        silent: sites that failed in this round, with the cause.
        quiet: whether a site was there in this round and kept its update back.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.silent: dict[str, PolyclinicError] = {}
        self.quiet = False
        out = plan.pretrain_only if progress.done >= plan.pretraining else ()
        self._active = [site for site in plan.sites if site not in (*progress.stopped, *out)]
        self._needed = min(plan.quorum or 1, len(self._active))
        self._failures: dict[str, PolyclinicError] = {}
        self._late: set[str] = set()

    @property
    def _round(self) -> str:
        return f"ound {self.progress.done + 1}"

    def note(self, text: str) -> None:
        """Something that happened to the training."""
        self.progress.failures.append(text)

    def chosen(self) -> list[str]:
        """Who takes part in the round; nobody if too few are there."""
        progress, plan = self.progress, self.plan
        known = Candidates(progress.done, plan.start.seed, plan.weights, progress.losses)
        for part in plan.participation:
            self._active = part.choose(self._active, known)
        if len(self._active) >= self._needed:
            return self._active
        self.note(
            f"R{self._round} was skipped with {len(self._active)} of {len(plan.sites)} sites there "
            f"({self._needed} needed)."
        )
        return []

    def counts(self, answered: Answered) -> bool:
        """Whether an answer of a stage counts: there is one, and it is in time."""
        site, found = answered.site, answered.packed
        if isinstance(found, PolyclinicError):
            self._failures[site] = self.silent[site] = found
            return False
        own = self.plan.start.work.of(site)
        said, speed = answered.said, own.step_seconds
        seconds = said["seconds"] if speed is None else speed * said["steps"]
        if all(part.in_time(site, seconds) for part in self.plan.participation):
            self.quiet |= not found
            return True
        text = f"its answer took {seconds:.3g} s, longer than the deadline allows."
        self._failures[site] = SiteError("P402", text, site=site)
        self._late.add(site)
        return False

    def suffices(self, answered: int, asked: int, *, alone: bool) -> bool:
        """Whether a stage in which so many of those asked answered changes anything. Too few because some were late,
        which the study file allows, is noted; because of failures it is an error.

        Where sites are asked ``alone``, one after another, the model passes one by, and they are counted at the end of
        the round.
        """
        failures, late, plan = self._failures, self._late, self.plan
        self._failures, self._late = {}, set()
        if not failures:
            return True
        failed = {site: error for site, error in failures.items() if site not in late}
        causes, names = causes_of(failures, late), ", ".join(failures)
        needed = min(plan.quorum or asked, asked)
        if any(error.code == "P306" for error in failed.values()):
            raise BudgetSpent(causes)
        if alone and (not failed or plan.quorum is not None):
            self.note(f"R{self._round} went on without {names}. {causes}")
            return answered > 0
        if not failed:
            enough = answered >= max(1, min(plan.quorum or 1, asked))
            consequence = f"went on without {names}" if enough else "changed nothing, with too few answers"
            self.note(f"R{self._round} {consequence}. {causes}")
            return enough
        if self._broke_down(failed.values()):
            if plan.together and answered < needed:
                raise BrokenDown(causes)
            if not plan.together:  # the others have their own models and go on
                self.progress.stopped += failed
                self.note(f"{', '.join(failed)} broke down in r{self._round}. {causes}")
                return answered > 0
        if len(failures) == 1 and needed >= asked:
            raise next(iter(failed.values()))
        if answered < needed or not plan.together:
            raise _too_few(f"In r{self._round}", answered, asked, needed, failures, late)
        self.note(f"R{self._round} went on without {names}. {causes}")
        return True

    def counts_in_all(self, answered: Sequence[str], stages: Sequence[Groups]) -> bool:
        """Whether enough sites answered in a round of several stages."""
        asked = {site for groups in stages for sites in groups.values() for site in sites}
        if len(set(answered)) >= min(self._needed, len(asked)):
            return True
        text = f"In r{self._round}, {len(set(answered))} of {len(self._active)} sites answered ({self._needed} needed)."
        if self.silent and self._broke_down(self.silent.values()):
            raise BrokenDown(f"{text} {causes_of(self.silent)}")
        if self.silent:
            raise SiteError("P402", text, "Mend the sites that failed, or set a lower `training: {quorum: ...}`.")
        self.note(f"{text} It changed nothing.")
        return False

    def excuses(self, error: PolyclinicError, model: str) -> bool:
        """Whether a round whose parts at the server failed with ``error`` just does not change the ``model``: sites do
        not all take part in each round, or some kept their updates back, and these were too few for the parts."""
        if (self.plan.participation or self.quiet) and error.code == "P402":
            self.note(f"R{self._round} changed nothing{'' if model == FEDERATION else f' in {model}'}. {error}")
            return True
        if self.plan.endures and error.code == "P301":  # a site's loss, for example, which a part goes by
            raise BrokenDown(str(error)) from None
        return False

    def _broke_down(self, failures: Iterable[PolyclinicError]) -> bool:
        """Whether sites failed because a simulated attack has driven the model to values that are not numbers."""
        return self.plan.endures and all(error.code == "P301" for error in failures)


def gather(
    engine: Engine, function: str, requests: Mapping[str, Message], quorum: int | None, notes: list[str],
    silent: set[str] | None = None, among: Iterable[str] = (),
) -> dict[str, Message]:  # fmt: skip
    """The answers to a message, of all sites, or of as many as the quorum wants; those that failed are noted.

    Args:
        engine: who runs the sites.
        function: what they are asked.
        requests: site -> the message.
        quorum: least number of sites that must answer; None for all.
        notes: is added to.
        silent: sites that failed before; those that fail now are added.
        among: all sites that the quorum is about, where they are asked a few at a time; by default those asked now.

    Raises:
        SiteError: P402 if fewer sites than the quorum answered.
        PolyclinicError: a site failed, and all must answer.
    """
    answers: dict[str, Message] = {}
    failures: dict[str, PolyclinicError] = {}
    for site, reply in engine.call(function, requests):
        if isinstance(reply, PolyclinicError):
            failures[site] = reply
        else:
            answers[site] = reply
    if failures:
        leave_out(function, failures, {*requests, *among}, quorum, notes, set() if silent is None else silent)
    return answers


def leave_out(
    function: str, failures: Mapping[str, PolyclinicError], everyone: Collection[str], quorum: int | None,
    notes: list[str], silent: set[str],
) -> None:  # fmt: skip
    """Go on without sites that failed when asked something, if those that are left suffice; see `gather`.

    Args:
        function: what they were asked.
        failures: site -> why it has no answer that counts.
        everyone: all sites that the quorum is about.
        quorum: least number of sites that must answer; None for all.
        notes: is added to.
        silent: sites that failed before; these are added.

    Raises:
        SiteError: P402 if fewer sites than the quorum are left.
        PolyclinicError: a site failed, and all must answer.
    """
    silent |= failures.keys()
    needed, left = min(quorum or len(everyone), len(everyone)), len(set(everyone) - silent)
    if left < needed:
        if len(failures) == 1 and needed == len(everyone):
            raise next(iter(failures.values()))
        raise _too_few(f"When asked to {function}", left, len(everyone), needed, failures)
    text = f"When asked to {function}, {', '.join(failures)} did not answer. {causes_of(failures)}"
    if text not in notes:
        notes.append(text)


def _too_few(
    when: str, answered: int, asked: int, needed: int, failures: Mapping[str, PolyclinicError],
    late: Container[str] = (),
) -> SiteError:  # fmt: skip
    same = answered == 0 and len(failures) > 1 and len(_alike(failures, late)) == 1
    return SiteError(
        "P402", f"{when}, {answered} of {asked} sites answered ({needed} needed). {causes_of(failures, late)}",
        _SAME if same else _MEND,
        causes=[error.code for error in failures.values()],
    )  # fmt: skip


def causes_of(failures: Mapping[str, PolyclinicError], late: Container[str] = ()) -> str:
    """What a note says of failures; a ``late`` answer is none, so it has no number."""
    said = []
    for (first, *others), cause in _alike(failures, late):
        said.append(f"{first}: {cause.removesuffix('.')}" + (f"; likewise {', '.join(others)}" if others else ""))
    return "; ".join(said) + "."


def _alike(failures: Mapping[str, PolyclinicError], late: Container[str]) -> list[tuple[list[str], str]]:
    """Sites that failed for the same cause, but for their names, and what it is at the first of them."""
    found: dict[str, tuple[list[str], str]] = {}
    for site, error in failures.items():
        cause = error.message if site in late else str(error)
        key = re.sub(rf"(?<!\w){re.escape(site)}(?!\w)", "…", cause)
        found.setdefault(key, ([], cause))[0].append(site)
    return list(found.values())
