"""Sites in worker processes of this machine, for networks that keep a core busy.

Workers are started as commands and spoken to in messages over pipes: nothing is pickled. A site stays in its worker, so
its cases are sent once.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from torch import Tensor

from polyclinic.communication.message import Fields, Message
from polyclinic.data.cases import SiteData
from polyclinic.data.volumes.store import Volumes
from polyclinic.engine.base import Engine, Reply
from polyclinic.errors import PolyclinicError, SiteError


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
        self.sites = list(data)
        self._workers = [_Worker(threads, device) for _ in range(workers)]
        self._home = {site: self._workers[number] for site, number in share_out(data, workers).items()}
        self._pool = ThreadPoolExecutor(workers)
        try:
            for site, cases in data.items():
                self._home[site].load(cases, folders[site], corruptible=corruptible)
        except PolyclinicError:
            self.close()
            raise

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`."""
        waiting: dict[str, Future[Message]] = {site: Future() for site in self.sites if site in requests}
        for worker in self._workers:
            members = [site for site in waiting if self._home[site] is worker]
            if members:
                self._pool.submit(_serve, worker, function, {s: (requests[s], waiting[s]) for s in members})
        for site in list(waiting):
            try:
                yield site, waiting.pop(site).result()
            except PolyclinicError as error:
                yield site, error

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()
        self._pool.shutdown(cancel_futures=True)


def share_out(data: Mapping[str, SiteData], workers: int) -> dict[str, int]:
    """Which worker has which site: largest sites first, each to the worker with the fewest cases so far."""
    load = [0] * workers
    homes = {}
    for site in sorted(data, key=lambda name: -len(data[name])):
        homes[site] = load.index(min(load))
        load[homes[site]] += len(data[site])
    return homes


def _serve(worker: _Worker, function: str, requests: Mapping[str, tuple[Message, Future[Message]]]) -> None:
    """Ask one worker for its sites one after another."""
    for site, (request, answer) in requests.items():
        try:
            answer.set_result(worker.ask(function, site, request))
        except BaseException as error:
            answer.set_exception(error)


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, threads: int, device: str) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        command = [sys.executable, "-m", "polyclinic.engine.worker", str(threads), device]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )

    def load(self, data: SiteData, folder: Path | None, *, corruptible: bool = False) -> None:
        """Send a site's cases; volumes stay where they are, the worker maps the same files."""
        fields: Fields = {"subjects": data.subjects, "cases": data.cases, "parts": data.parts, "spacing": data.spacing,
                  "folder": None if folder is None else str(folder), "corruptible": corruptible}  # fmt: skip
        pixels = {"inputs": data.inputs, "targets": data.targets}
        mapped = {name: found for name, found in pixels.items() if isinstance(found, Volumes)}
        fields["volumes"] = {name: [[str(file) for file in v.files], v.about] for name, v in mapped.items()}
        tensors = {name: found for name, found in pixels.items() if isinstance(found, Tensor)}
        if data.covariates is not None:
            tensors["covariates"] = data.covariates
        if data.labelled is not None:
            tensors["labelled"] = data.labelled
        self.ask("load", data.site, Message(fields, tensors))

    def ask(self, function: str, site: str, request: Message) -> Message:
        """Send a message and wait for the answer.

        Raises:
            PolyclinicError: what the site answered.
            SiteError: P403 if the process is gone.
        """
        fields = {"function": function, "site": site, "fields": request.fields}
        try:
            write_frame(self._process.stdin, Message(fields, request.tensors).to_bytes())
            answer = read_frame(self._process.stdout)
        except (OSError, ValueError):
            answer = b""
        if not answer:
            raise SiteError("P403", f"The worker process of site {site} ended unexpectedly ({self._epitaph()}).",
                            "Run the same command with --resume; or with fewer `engine: {workers: ...}`.",
                            site=site)  # fmt: skip
        reply = Message.from_bytes(answer)
        if "error" in reply.fields:
            raise _as_error(reply.fields["error"])
        return Message(reply.fields["fields"], reply.tensors)

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


def _as_error(found: dict[str, str]) -> PolyclinicError:
    import polyclinic.errors

    kind = getattr(polyclinic.errors, found["kind"], PolyclinicError)
    error: PolyclinicError = kind(found["code"], found["message"], found["hint"])
    return error


def write_frame(stream: IO[bytes] | None, data: bytes) -> None:
    """Write ``data`` with its length in front."""
    if stream is None:
        raise ValueError("no pipe")
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes] | None) -> bytes:
    """What ``write_frame`` wrote; empty at the end of the stream."""
    if stream is None:
        raise ValueError("no pipe")
    length = int.from_bytes(stream.read(8), "little")
    return stream.read(length)
