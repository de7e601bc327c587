"""Sites in worker processes of this machine, for networks that keep a core busy.

Workers are started as commands and spoken to in messages: nothing is pickled. Large tensors go through shared memory,
and one that goes to all sites is written once, see `polyclinic.engine.channel`. A site stays in its worker, so its
cases are sent once.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from torch import Tensor

from polyclinic.communication.message import Fields, Message
from polyclinic.data.cases import SiteData
from polyclinic.data.volumes.store import Volumes
from polyclinic.engine.base import Engine, Reply
from polyclinic.engine.blocks import Lender, OncePerCall, most_blocks
from polyclinic.engine.channel import Channel, Lend
from polyclinic.errors import PolyclinicError, SiteError
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
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        ours, theirs = _pair()
        self._files = ours
        passed = [] if theirs is None else [theirs.fileno()]
        command = [sys.executable, "-m", "polyclinic.engine.worker", str(threads), device, str(most), *map(str, passed)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
            pass_fds=passed,
        )  # fmt: skip
        if theirs is not None:
            theirs.close()
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("no pipe")
        self._channel = Channel(self._process.stdout, self._process.stdin, self._files)

    def load(self, data: SiteData, folder: Path | None, lend: Lend, *, corruptible: bool = False) -> None:
        """Send a site's cases; volumes stay where they are, the worker maps the same files."""
        fields: Fields = {
            "subjects": data.subjects, "cases": data.cases, "parts": data.parts,
            "spacings": None if data.spacings is None else [list(one) for one in data.spacings],
            "folder": None if folder is None else str(folder), "corruptible": corruptible,
        }  # fmt: skip
        pixels = {"inputs": data.inputs, "targets": data.targets}
        mapped = {name: found for name, found in pixels.items() if isinstance(found, Volumes)}
        fields["volumes"] = {name: [[str(file) for file in v.files], v.about] for name, v in mapped.items()}
        tensors = {name: found for name, found in pixels.items() if isinstance(found, Tensor)}
        if data.covariates is not None:
            tensors["covariates"] = data.covariates
        if data.labelled is not None:
            tensors["labelled"] = data.labelled
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
        found = None
        try:
            self._channel.send(request, lend, {"function": function, "site": site})
            found = self._channel.receive()
        except (OSError, ValueError):  # told below
            pass
        if found is None:
            epitaph = self._epitaph()
            if self._process.poll() is not None:
                self._channel.forget()
            raise SiteError("P403", f"The worker process of site {site} ended unexpectedly ({epitaph}).",
                            "Run the same command with --resume; or with fewer `engine: {workers: ...}`.",
                            site=site)  # fmt: skip
        about, reply = found
        self.reason = about["reason"]
        if "error" in about:
            raise _as_error(about["error"])
        return reply

    def _epitaph(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(timeout=5)
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            what = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            return what + (f": {last[0]}" if last else "")
        return "it does not answer"

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        if self._files is not None:
            self._files.close()
        self._turns.shutdown(cancel_futures=True)


def _pair() -> tuple[socket.socket | None, socket.socket | None]:
    """Two ends of a way for descriptors of files; none where the system can't hand them over."""
    if not hasattr(socket, "send_fds"):
        return None, None
    return socket.socketpair()


def _as_error(found: dict[str, str]) -> PolyclinicError:
    import polyclinic.errors

    kind = getattr(polyclinic.errors, found["kind"], PolyclinicError)
    error: PolyclinicError = kind(found["code"], found["message"], found["hint"])
    return error
