"""The end of a study at a site: a process that answers messages about this study alone."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nvflare.collab import collab

from polyclinic.communication.message import Message, Piece
from polyclinic.data.opening.census import Census
from polyclinic.data.opening.source import Source
from polyclinic.engine import LocalEngine
from polyclinic.engine.planner import choose_device, cores
from polyclinic.errors import FederationError, PolyclinicError, SiteError
from polyclinic.federation.audit_log import AuditLog, told
from polyclinic.federation.ends.agreed import Agreed
from polyclinic.federation.ends.hours import Hours
from polyclinic.federation.ends.policy import check_approval, check_policy
from polyclinic.federation.job import STUDY_FILE, study_hash
from polyclinic.federation.remote.calls import Alive, AnsweredOnce, Pieces, size
from polyclinic.federation.remote.large_messages import prepare
from polyclinic.federation.remote.wire import MOST_BYTES, failure_to_pieces
from polyclinic.federation.site_file import SITE_FILE, SiteFile
from polyclinic.federation.trust.identity import Identity
from polyclinic.limits import Body
from polyclinic.parts import Hiding, build_parts
from polyclinic.site.messages import Agree, Open, Prepare, Retain, Start, Train
from polyclinic.site.schema import read_body
from polyclinic.site.spending import LEDGER, Spending
from polyclinic.site.sums import MASKED
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.given.plugins import used_plugins

log = logging.getLogger(__name__)

#: Messages that must be as the study has them.
_AGREED: dict[str, type[Body]] = {
    "open": Open, "agree": Agree, "prepare": Prepare, "start": Start, "train": Train, "retain": Retain,
}  # fmt: skip
#: Functions by which something of single cases, or a part of the model that is the site's own, leaves the site.
_ASKS_FOR = {"predict": "predictions", "overlays": "overlays", "model": "personal_models"}


class SiteEnd:
    """Answers messages about the study of one job; made by FLARE in the site's process for it."""

    def __init__(self) -> None:
        prepare()
        self._member: Member | None = None
        self._once: AnsweredOnce | None = None
        self._lock = threading.Lock()  # FLARE calls from several threads

    @collab.publish  # type: ignore[untyped-decorator]
    def answer(self, envelope: str, message: list[bytes]) -> tuple[str, list[Piece]]:
        """Answer a call; see `polyclinic.federation.remote.calls`.

        What is none has no answer: of an error FLARE would send a traceback, with paths.
        """
        if collab.caller != "server":
            return "", []
        with self._lock:
            if self._once is None:
                here = Here.now()
                self._once = AnsweredOnce(here.job, lambda function, asked: self._answered(here, function, asked))
        try:
            said, found = self._once(envelope, message)
        except ValueError:
            return "", []
        return said, list(found)

    @collab.publish  # type: ignore[untyped-decorator]
    def alive(self) -> str:
        """What the site is doing just now; answered while it is at work."""
        if collab.caller != "server":
            return ""
        return (Alive(function="", seconds=0.0) if self._once is None else self._once.now()).model_dump_json()

    def _answered(self, here: Here, function: str, message: Pieces) -> Pieces:
        def answer() -> Pieces:
            if self._member is None:
                self._member = Member(here.kit, here.name, here.study, here.researcher)
            return self._member.answer(function, message)

        return answered(here.name, function, answer)


def answered(site: str, function: str, answer: Callable[[], Pieces]) -> Pieces:
    """What ``answer`` gives; what goes wrong is an answer, too, without a traceback, which the site's log has."""
    try:
        return answer()
    except PolyclinicError as error:
        log.warning("%s: %s", function[:80], error)
        return failure_to_pieces(error)
    except Exception:
        log.exception("answering %s", function[:80])
        text = f"Site {site} failed; its log says why."
        return failure_to_pieces(SiteError("P401", text, "Ask the site to look at its log.", site=site))


@dataclass(frozen=True)
class Here:
    """What FLARE says of the process that an end runs in.

    Attributes:
        job: its identifier.
        kit: folder of the party's kit.
        name: of the party.
        study: the study file that came with the job.
        researcher: who asked for it.
    """

    job: str
    kit: Path
    name: str
    study: Path
    researcher: str

    @classmethod
    def now(cls) -> Here:
        """As it is while a call is answered."""
        context = collab.fl_ctx
        job = str(context.get_job_id())
        about = context.get_prop("__job_meta__") or {}
        study = Path(collab.workspace.get_app_config_dir(job)) / STUDY_FILE
        kit = Path(collab.workspace.get_root_dir())
        return cls(job, kit, str(collab.site_name), study, str(about.get("submitter_name", "")))


class Member:
    """A site in one study.

    Args:
        kit: folder of the site's start-up kit.
        party: name of the kit.
        study: the study file that came with the job.
        researcher: who asked for the study.

    Raises:
        FederationError: P604, the site does not take part; P605, its own file can't be used; P602 or P608, its kit
            can't be.
    """

    def __init__(self, kit: Path, party: str, study: Path, researcher: str) -> None:
        import torch

        file = SiteFile.read(kit / "local" / SITE_FILE)
        self.name, self.policy = file.name or party, file.policy
        text = study.read_text(encoding="utf-8")
        self.declaration = CheckedStudy.read(study, named=True).declaration
        self.agreed = Agreed(self.declaration, self.name)
        mark = study_hash(text)
        self.audit = AuditLog(kit)
        about = {"study": mark, "researcher": researcher}
        try:
            check_policy(self.name, self.policy, self.declaration, researcher)
            check_approval(self.name, self.policy, kit, mark, text)
        except FederationError as error:
            self.audit.add("study refused", **about, reason=error.message)
            raise
        self.audit.add("study joined", **about)
        data = kit / "data"
        _link(data, file.data)
        floor = self.policy.floor
        self.source = Source(data, site=self.name, floor=floor, places=list(file.data.values()))
        torch.set_num_threads(self.declaration.engine.threads or cores())
        folder = kit / "studies" / mark[:16]
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)  # pseudonyms, predictions: for the site's own user only
        self.hours = Hours(self.name, folder / "hours.json", self.policy.hours)
        self.engine = LocalEngine([self.name], source=self.source, device=choose_device(file.device), folder=folder)
        member = self.engine.members[self.name]
        member.floor, member.identity = floor, Identity(kit, self.name)
        lifetime = None if self.policy.privacy is None else (self.policy.privacy.epsilon, self.policy.privacy.delta)
        member.spending = Spending(self.name, kit / LEDGER, real=True, study=f"{mark[:16]} ", lifetime=lifetime)
        self._hidden_by = list[str]()

    def answer(self, function: str, message: Pieces) -> Pieces:
        """Answer a message of the coordinator.

        Raises:
            PolyclinicError: it is none, or asks for what does not belong to the study.
        """
        if function == "hello":
            about = {"site": self.name, "version": version("polyclinic"), "plugins": used_plugins(self.declaration)}
            return Message(about).to_pieces()
        if size(message) > MOST_BYTES:
            raise SiteError("P401", f"A message to site {self.name} is too large.", site=self.name)
        try:
            request = Message.from_pieces(message)
        except ValueError:
            raise SiteError("P401", f"What came to site {self.name} is no message.", site=self.name) from None
        begun = time.monotonic()
        try:
            self.hours.check()
            reply = self._answer(function, request)
            data = reply.to_pieces()
        except PolyclinicError as error:
            asked = told(request.tensors, message)
            self.audit.add("refused", function=function[:80], asked=asked, reason=error.message)
            raise
        finally:
            self.hours.add(time.monotonic() - begun)
        asked, left = told(request.tensors, message), told(reply.tensors, data)
        by = self._hidden_by if function == "train" else ["secure_sum"] if MASKED in reply.tensors else []
        hidden = {"hidden_by": by} if by else {}
        self.audit.add("answered", function=function, asked=asked, left=left, **hidden)
        return data

    def _answer(self, function: str, request: Message) -> Message:
        """The answer to a message that belongs to the study.

        Raises:
            PolyclinicError: it does not, or the site fails.
        """
        self._check(function, request)
        ((_, reply),) = self.engine.call(function, {self.name: request})
        if isinstance(reply, PolyclinicError):
            raise reply
        if function == "open":
            self.agreed.census = Census.model_validate(reply.fields)
        if function == "start":
            parts = build_parts(self.engine.members[self.name].run.declared.parts)
            self._hidden_by = [name for name, part in parts.items() if isinstance(part.at_server(), Hiding)]
        if self._has_too_few(function, reply):
            raise FederationError("P604", f"Site {self.name} does not take part: it has too few patients.",
                                  "Run the study without it.")  # fmt: skip
        return reply

    def _has_too_few(self, function: str, reply: Message) -> bool:
        """Whether the site has fewer patients than its policy wants: in its tables, before it says anything of them, or
        once its images were read."""
        if function == "open":
            return self.source.patients() < self.policy.patients
        return function == "agree" and reply.fields["patients"] < self.policy.patients

    def _check(self, function: str, request: Message) -> None:
        """Whether a message belongs to the study.

        Raises:
            FederationError: P604, it asks for something else.
        """
        wanted = _ASKS_FOR.get(function)
        if wanted is not None and not getattr(self.policy, wanted):
            raise self._refused(f"a message asks to {function}, and {wanted.replace('_', ' ')} may not leave")
        body = _AGREED.get(function)
        if body is not None:
            wrong = self.agreed.refusal(read_body(body, function, request, self.name))
            if wrong:
                raise self._refused(wrong)

    def _refused(self, what: str) -> FederationError:
        return FederationError("P604", f"Site {self.name} does not take part any longer: {what}.",
                               "Let all sites and the coordinator run the same version of Polyclinic.")  # fmt: skip


def _link(folder: Path, data: dict[str, Path]) -> None:
    """A folder in which each name of data leads to its place."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for name, place in data.items():
        draft = folder / f".{os.getpid()}.{name}"
        draft.symlink_to(place)
        draft.replace(folder / name)
