"""Sites in worker processes of this machine, for networks that keep a core busy.

Workers are started as commands and spoken to in messages: nothing is pickled. Large tensors go through shared memory,
and one that goes to all sites is written once, see `polyclinic.engine.channel`. A site stays in its worker, so its
cases are sent once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from polyclinic.communication.message import Message
from polyclinic.data.cases import SiteData
from polyclinic.engine.base import Engine, Reply
from polyclinic.engine.blocks import Lender, OncePerCall, most_blocks
from polyclinic.engine.cases import cases_sent
from polyclinic.engine.channel import Lend
from polyclinic.engine.child import Child
from polyclinic.errors import PolyclinicError, SiteError, error_from
from polyclinic.notes import Note


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
        most = most_blocks(workers + 1)
        self._lender = Lender(most)
        self._workers = [_Worker(threads, device, most) for _ in range(workers)]
        self._home = {site: self._workers[number] for site, number in share_out(data, workers).items()}
        self._arrived: SimpleQueue[tuple[str, Future[Message]]] = SimpleQueue()
        self._missing = 0
        try:
            for site, cases in data.items():
                self._home[site].load(cases, folders[site], self._lender.lend, corruptible=corruptible)
        except PolyclinicError:
            self.close()
            raise

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
        answer = self._home[site].submit(function, site, request, self._lender.lend)
        answer.add_done_callback(lambda done: self._arrived.put((site, done)))

    def replies(self) -> Iterator[Reply]:
        """See `Engine.replies`."""
        while self._missing:
            site, answer = self._arrived.get()
            self._missing -= 1
            yield site, _result(answer)

    @property
    def notes(self) -> list[Note]:
        """See `Engine.notes`."""
        reasons = dict.fromkeys(filter(None, (self._lender.reason, *(worker.reason for worker in self._workers))))
        if not reasons:
            return []
        return [Note("N106", f"Shared memory could not be had ({'; '.join(reasons)}), so that models went to and from "
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


class _Worker:
    """One process and the way to it.

    Attributes:
        reason: why it could not have shared memory; else empty.
    """

    def __init__(self, threads: int, device: str, most: int) -> None:
        self.reason = ""
        self._turns = ThreadPoolExecutor(1)  # one message after another
        self.child = Child("polyclinic.engine.worker", [str(threads), device], most)

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
            SiteError: P403 if the process is gone.
        """
        found, channel = None, self.child.channel
        try:
            channel.send(request, lend, {"function": function, "site": site})
            found = channel.receive()
        except (OSError, ValueError):  # told below
            pass
        if found is None:
            epitaph = self.child.epitaph()
            if self.child.is_gone:
                channel.forget()
            raise SiteError("P403", f"The worker process of site {site} ended unexpectedly ({epitaph}).",
                            "Run the same command with --resume; or with fewer `engine: {workers: ...}`.",
                            site=site)  # fmt: skip
        about, reply = found
        self.reason = about["reason"]
        if "error" in about:
            raise error_from(about["error"])
        return reply

    def close(self) -> None:
        """End the process."""
        self.child.close()
        self._turns.shutdown(cancel_futures=True)
