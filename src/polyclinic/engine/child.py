"""A process of this program that was started as a command, and the way to it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from polyclinic.engine.channel import Channel


class Child:
    """One process. Nothing is pickled: it is a command that reads messages from its standard input.

    Its last arguments are how many blocks of shared memory each end may have, and the descriptor of the socket on which
    these are handed over, if there is one. It is told of no key that is pressed: whoever started it ends it.

    Args:
        module: what is run.
        arguments: for it, before the two.
        most: how many blocks of shared memory each end may have.
        environment: variables that it has besides those of this process.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], most: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = _pair()
        self._files = ours
        passed = [] if theirs is None else [theirs.fileno()]
        command = [sys.executable, "-m", module, *arguments, str(most), *map(str, passed)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
            pass_fds=passed, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        if theirs is not None:
            theirs.close()
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("no pipe")
        self.channel = Channel(self._process.stdout, self._process.stdin, self._files)

    @property
    def number(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def epitaph(self) -> str:
        """How the process ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(timeout=5)
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            what = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            return what + (f": {last[0]}" if last else "")
        return "it does not answer"

    def kill(self) -> None:
        """End the process at once; who waits for its answer learns that it is gone."""
        self._process.kill()

    def close(self, patience: float = 2.0) -> None:
        """End the process, if it does not end by itself within some seconds once nothing more is asked of it."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        if self._files is not None:
            self._files.close()


def _pair() -> tuple[socket.socket | None, socket.socket | None]:
    """Two ends of a way for descriptors of files; none where the system can't hand them over."""
    if not hasattr(socket, "send_fds"):
        return None, None
    return socket.socketpair()
