"""Sites in worker processes of this machine, for networks that keep a core busy.

Workers are started as commands and spoken to in messages: nothing is pickled. Large tensors go through shared memory,
and one that goes to all sites is written once, see `polyclinic.engine.channel`. A site stays in its worker, so its
cases are sent once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from polyclinic.communication.message import Message
from polyclinic.data.cases import SiteData
from polyclinic.engine.base import Engine, Reply, SitesLost
from polyclinic.engine.blocks import Lender, OncePerCall, most_blocks
from polyclinic.engine.cases import cases_sent
from polyclinic.engine.channel import Lend
from polyclinic.engine.child import Child
from polyclinic.engine.reloading import Reloading
from polyclinic.errors import PolyclinicError, error_from
from polyclinic.notes import Note

log = logging.getLogger(__name__)


class ProcessEngine(Engine):
    """Sites shared out among worker processes.

    Args:
        data: the sites' cases, by name.
        workers: number of processes.
        threads: arithmetic threads of each.
        device: where networks run.
        folders: each site's own folder, or None.
        corruptible: whether messages may make the sites corrupt: for studies with an attack.
    """

    def __init__(
        self, data: Mapping[str, SiteData], *, workers: int, threads: int, device: str = "cpu",
        folders: Mapping[str, Path | None], corruptible: bool = False,
    ) -> None:  # fmt: skip
        self.sites, self.holds_all = list(data), True
        self._data, self._folders, self._corruptible = data, folders, corruptible
        most = most_blocks(workers + 1)
        self._lender = Lender(most)
        homes = share_out(data, workers)
        self._workers = [
            _Worker(threads, device, most, [site for site in data if homes[site] == number])
            for number in range(workers)
        ]
        self._home = {site: self._workers[number] for site, number in homes.items()}
        self._deaths = 0
        self._begin()
        try:
            Reloading(self, lambda: None, log.warning).do(lambda: None)
        except PolyclinicError:
            self.close()
            raise

    def _begin(self) -> None:
        """Nothing was asked."""
        self._arrived: SimpleQueue[tuple[str, Future[Message]]] = SimpleQueue()
        self._missing = 0

    def reload(self) -> None:
        """See `Engine.reload`. What other workers were asked meanwhile is waited for, and forgotten."""
        if all(worker.loaded for worker in self._workers):
            return
        for worker in self._workers:
            worker.finish()
        self._begin()
        for worker in self._workers:
            if not worker.loaded:
                self._deaths += worker.restart()
                for site in worker.sites:
                    worker.load(self._data[site], self._folders[site], self._lender.lend, corruptible=self._corruptible)
                worker.loaded = True

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`."""
        chosen = [site for site in self.sites if site in requests]
        shared = OncePerCall(self._lender, (t for site in chosen for t in requests[site].tensors.values()))
        waiting = {site: self._home[site].submit(function, site, requests[site], shared.lend) for site in chosen}
        for site in chosen:
            yield site, _result(waiting.pop(site))

    def post(self, site: str, function: str, request: Message) -> None:
        """See `Engine.post`."""
        self._missing += 1
        answer, arrived = self._home[site].submit(function, site, request, self._lender.lend), self._arrived
        answer.add_done_callback(lambda done: arrived.put((site, done)))

    def replies(self) -> Iterator[Reply]:
        """See `Engine.replies`."""
        while self._missing:
            site, answer = self._arrived.get()
            self._missing -= 1
            yield site, _result(answer)

    @property
    def notes(self) -> list[Note]:
        """See `Engine.notes`."""
        notes = death_notes(self._deaths)
        reasons = dict.fromkeys(filter(None, (self._lender.reason, *(worker.reason for worker in self._workers))))
        if not reasons:
            return notes
        return [*notes,
                Note("N106", f"Shared memory could not be had ({'; '.join(reasons)}), so that models went to and from "
                     "worker processes through pipes. Results are the same; large models take longer.")]  # fmt: skip

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()


def share_out(data: Mapping[str, SiteData], workers: int) -> dict[str, int]:
    """Which worker has which site: largest sites first, each to the worker with the fewest cases so far."""
    load = [0] * workers
    homes = {}
    for site in sorted(data, key=lambda name: -len(data[name])):
        homes[site] = load.index(min(load))
        load[homes[site]] += len(data[site])
    return homes


def _result(answer: Future[Message]) -> Message | PolyclinicError:
    try:
        return answer.result()
    except PolyclinicError as error:
        return error


def death_notes(deaths: int) -> list[Note]:
    """What is to be said of so many worker processes that ended unexpectedly."""
    if not deaths:
        return []
    processes = "A worker process" if deaths == 1 else f"{deaths} worker processes"
    return [Note("N109", f"{processes} ended unexpectedly. What had been begun was finished by others, from its last "
                 "checkpoint: results are the same.")]  # fmt: skip


class _Worker:
    """One process and the way to it.

    Args:
        threads: arithmetic threads.
        device: where networks run.
        most: blocks of shared memory at each end.
        sites: names of those that it runs.

    Attributes:
        reason: why it could not have shared memory; else empty.
        loaded: whether its sites are there; without them nothing is asked of it.
    """

    def __init__(self, threads: int, device: str, most: int, sites: Sequence[str]) -> None:
        self.reason, self.sites, self.loaded = "", sites, False
        self._turns = ThreadPoolExecutor(1)  # one message after another
        self._start = partial(Child, "polyclinic.engine.worker", [str(threads), device], most)
        self.child = self._start()

    def restart(self) -> bool:
        """A new process, if this one has ended; whether it had."""
        gone = self.child.is_gone
        if gone:
            self.child.close()
            self.child = self._start()
        return gone

    def finish(self) -> None:
        """Wait until all that was submitted has been answered."""
        self._turns.submit(lambda: None).result()

    def load(self, data: SiteData, folder: Path | None, lend: Lend, *, corruptible: bool = False) -> None:
        """Send a site's cases; volumes stay where they are, the worker maps the same files."""
        fields, tensors = cases_sent(data)
        fields |= {"folder": None if folder is None else str(folder), "corruptible": corruptible}
        self.ask("load", data.site, Message(fields, tensors), lend)

    def submit(self, function: str, site: str, request: Message, lend: Lend) -> Future[Message]:
        """Like ``ask``, after what was submitted before."""
        return self._turns.submit(self.ask, function, site, request, lend)

    def ask(self, function: str, site: str, request: Message, lend: Lend) -> Message:
        """Send a message and wait for the answer.

        Raises:
            PolyclinicError: what the site answered.
            SitesLost: the process is gone.
        """
        found, channel = None, self.child.channel
        if not self.loaded and function != "load":
            raise SitesLost(self.sites, "before it was asked")
        try:
            channel.send(request, lend, {"function": function, "site": site})
            found = channel.receive()
        except (OSError, ValueError):  # told below
            pass
        if found is None:
            self.loaded, epitaph = False, self.child.epitaph()
            self.child.close(patience=0)  # also one that only closed its pipe: it can't be spoken to
            channel.forget()
            raise SitesLost(self.sites, epitaph)
        about, reply = found
        self.reason = about["reason"]
        if "error" in about:
            raise error_from(about["error"])
        return reply

    def close(self) -> None:
        """End the process."""
        self.child.close()
        self._turns.shutdown(cancel_futures=True)
