"""All sites in this process, one after another or stacked."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polyclinic.client.stacked.training import StackedCases, StackedTrainer
from polyclinic.communication.message import Message
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.opening.source import Source
from polyclinic.data.splits import Parts
from polyclinic.engine.base import Engine, Reply
from polyclinic.errors import PolyclinicError
from polyclinic.notes import Note
from polyclinic.seeds import derive_seed
from polyclinic.site import CorruptibleSite, Site, Workspace
from polyclinic.site.messages import Start
from polyclinic.site.round import Round

log = logging.getLogger(__name__)


#: How many trainers are kept at most: one for each phase and each set of sites that has trained together.
MOST_TRAINERS = 16


class LocalEngine(Engine):
    """Sites in this process.

    Args:
        data: the sites' cases, by name; or names of sites that open them when they are asked to.
        source: where these find them.
        device: where networks run.
        folder: the sites' own folders are made in here; None keeps nothing on disk.
        stacked: train sites together with `torch.func.vmap`.
        serialise: turn every message into bytes and back, as a network would.
        corruptible: whether messages may make the sites corrupt: for studies with an attack.
    """

    def __init__(
        self,
        data: Mapping[str, SiteData] | Sequence[str],
        *,
        source: Source | None = None,
        device: str = "cpu",
        folder: Path | None = None,
        stacked: bool = False,
        serialise: bool = False,
        corruptible: bool = False,
    ) -> None:
        self.workspace, self.source = Workspace(device), source
        kind = CorruptibleSite if corruptible else Site
        found = data if isinstance(data, Mapping) else dict(zip(data, data, strict=True))
        self.members = {name: kind(cases, self.workspace, source=source) for name, cases in found.items()}
        self.sites = list(self.members)
        self.serialise = serialise
        self.settle(device=device, stacked=stacked, folder=folder)

    holds_all = True

    def settle(self, *, device: str, stacked: bool, folder: Path | None) -> None:
        """Decide where networks run, whether sites are trained together, and where their own folders are made."""
        self.stacked, self.workspace.device = stacked, torch.device(device)
        for name, site in self.members.items():
            site.settle(folder / folder_name(name) if folder else None)
        self._forget()

    def compared(self) -> list[Note] | None:
        """See `Engine.compared`."""
        return None if self.source is None else self.source.notes()

    def public(self) -> Tensor | None:
        """See `Engine.public`."""
        return next((site.data.public for site in self.members.values() if hasattr(site, "data")), None)

    def keep(self, sites: list[str]) -> None:
        """See `Engine.keep`."""
        super().keep(sites)
        self.members = {site: self.members[site] for site in self.sites}

    def _forget(self) -> None:
        """Trainers and the cases that they train on are made anew."""
        self._trainers: dict[tuple[int | str, ...], StackedTrainer] = {}
        self._cases = StackedCases(self.workspace.device)

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`."""
        if function == "start":
            self._forget()
        if self.serialise:
            requests = {site: Message.from_bytes(request.to_bytes()) for site, request in requests.items()}
        chosen = {site: requests[site] for site in self.sites if site in requests}
        replies = self._train(chosen) if function == "train" else self._each(function, chosen)
        for site, reply in replies:
            again = self.serialise and isinstance(reply, Message)
            yield site, Message.from_bytes(reply.to_bytes()) if again and isinstance(reply, Message) else reply

    def _train(self, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """One after another, or together; where sites have different networks, together with those of the same. Sites
        without labels are trained by themselves."""
        groups = dict[tuple[int, str], list[str]]()
        for site in requests if self.stacked and len(requests) > 1 else ():
            run = self.members[site].run
            groups.setdefault((id(run.network), "" if len(run.parts.train) else site), []).append(site)
        if len(groups) < 2:
            together = self._stacks(list(requests))
            yield from self._train_stacked(requests) if together else self._each("train", requests)
            return
        replies = dict[str, Message | PolyclinicError]()
        for sites in groups.values():
            own = {site: requests[site] for site in sites}
            replies |= dict(self._train_stacked(own) if self._stacks(sites) else self._each("train", own))
        for site in requests:
            yield site, replies[site]

    def _stacks(self, sites: list[str]) -> bool:
        """Whether these sites, of one network, are trained together."""
        return self.stacked and len(sites) > 1 and not self.members[sites[0]].run.not_stackable

    def _each(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        for site, request in requests.items():
            try:
                yield site, self.members[site].handle(function, request)
            except PolyclinicError as error:
                yield site, error

    def _train_stacked(self, requests: Mapping[str, Message]) -> Iterator[Reply]:
        started = time.perf_counter()
        failed: dict[str, PolyclinicError] = {}
        try:
            works = {site: self.members[site].begin_training(request) for site, request in requests.items()}
            for phase in range(next(iter(works.values())).phases):
                self._train_phase(works, phase, failed)
        except Exception:  # one after another, so that the site that fails is named and the others answer
            log.info("Training the sites together failed; they are trained one after another.")
            self._forget()
            yield from self._each("train", requests)
            return
        seconds = (time.perf_counter() - started) / len(works)
        for site, work in works.items():
            if site in failed:
                yield site, failed[site]
                continue
            try:
                answer: Reply = site, work.finish(seconds)
            except Exception as error:  # told as the site's failure, like one in its training
                answer = site, self.members[site].failure("train", error)
            yield answer

    def _train_phase(self, works: dict[str, Round], phase: int, failed: dict[str, PolyclinicError]) -> None:
        """One job of every site that has not failed in a phase before."""
        going = [site for site in works if site not in failed]
        if not going:
            return
        jobs = [works[site].job(phase) for site in going]
        key: tuple[int | str, ...] = (phase, *going)
        if key not in self._trainers:
            run = self.members[going[0]].run
            if len(self._trainers) == MOST_TRAINERS:
                del self._trainers[next(iter(self._trainers))]
            self._trainers[key] = StackedTrainer(run.network, run.task, works[going[0]].work(phase), jobs, self._cases)
        for site, result in zip(going, self._trainers[key].train(jobs), strict=True):
            if isinstance(result, PolyclinicError):
                failed[site] = result
            else:
                works[site].took(result)

    def pool(self, name: str, sites: list[str], asked: Start | None = None) -> LocalEngine:
        """One site that has the prepared cases of ``sites`` (inside one process: the reference without privacy).

        They are the cases that the sites have in the training that ``asked`` declares, which may make some of them bad.
        """
        members = [self.members[site] for site in sites]
        cases = [(member.dataset, member.parts) if asked is None else member.cases(asked) for member in members]
        dataset = Dataset.pool([dataset for dataset, _ in cases], name)
        offsets = [0]
        for member in members:
            offsets.append(offsets[-1] + len(member.data))
        parts = {
            part: torch.cat([getattr(own, part) + offset for (_, own), offset in zip(cases, offsets, strict=False)])
            for part in ("train", "validation", "test", "unlabelled")
        }
        engine = LocalEngine([], device=str(self.workspace.device))
        engine.workspace = self.workspace
        nothing = SiteData(name, torch.empty(0), torch.empty(0), [], [], None, Counts())
        folder = members[0].folder.parent / "pool" if members[0].folder else None
        site = _Pool(nothing, self.workspace, folder)
        pooled = Parts(parts["train"], parts["validation"], parts["test"], unlabelled=parts["unlabelled"])
        site.adopt(dataset, pooled, members[0].fold)
        engine.members, engine.sites = {name: site}, [name]
        return engine


class _Pool(Site):
    """The cases of several sites, adopted as they are: those that are to be corrupt are so already."""

    refused = frozenset()


def folder_name(site: str) -> str:
    """Name of a site's folder."""
    # File systems take 255 bytes; of those a letter may need four.
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in site)[:60]
    return safe if safe == site else f"{safe}-{derive_seed(site) % 16**6:06x}"
