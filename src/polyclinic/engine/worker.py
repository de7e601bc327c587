"""A worker process: answers messages on its standard input until that ends.

Run as ``python -m polyclinic.engine.worker THREADS DEVICE BLOCKS [SOCKET]`` by `polyclinic.engine.processes`: BLOCKS is
how many blocks of shared memory it may have, SOCKET the descriptor of the way on which they are handed over.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import torch

from polyclinic.communication.message import Message
from polyclinic.engine.blocks import Lender
from polyclinic.engine.cases import cases_received
from polyclinic.engine.channel import Channel
from polyclinic.errors import PolyclinicError, error_told
from polyclinic.site import CorruptibleSite, Site, Workspace


def serve(threads: int, device: str, blocks: int, files: socket.socket | None) -> None:
    """Answer until the coordinator closes the pipe."""
    # Who stops a job on a cluster tells all its processes. This one ends when the coordinator has said what there is.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whatever prints in this process must not end up between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    channel, lender = Channel(sys.stdin.buffer, answers, files), Lender(blocks)
    workspace, sites = Workspace(device), dict[str, Site]()
    while (found := channel.receive()) is not None:
        about, request = found
        try:
            reply, error = _answer(about["function"], about["site"], request, workspace, sites), {}
        except PolyclinicError as e:
            reply, error = Message(), {"error": error_told(e)}
        del found, request  # so that the answer can say which blocks are done with
        channel.send(reply, lender.lend, {**error, "reason": lender.reason})
        del reply


def _answer(function: str, name: str, request: Message, workspace: Workspace, sites: dict[str, Site]) -> Message:
    if function == "load":
        sites[name] = _load(name, request, workspace)
        return Message()
    return sites[name].handle(function, request)


def _load(name: str, request: Message, workspace: Workspace) -> Site:
    own = {kind: tensor.clone() for kind, tensor in request.tensors.items()}  # blocks of shared memory are for messages
    data = cases_received(name, request.fields, own)
    kind = CorruptibleSite if request.fields["corruptible"] else Site
    return kind(data, workspace, Path(request.fields["folder"]) if request.fields["folder"] else None)


if __name__ == "__main__":
    way = socket.socket(fileno=int(sys.argv[4])) if sys.argv[4:] else None
    serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), way)
