"""A worker process: answers messages on its standard input until that ends.

Run as ``python -m polyclinic.engine.worker THREADS DEVICE`` by `polyclinic.engine.processes`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.volumes.store import Volumes
from polyclinic.engine.processes import read_frame, write_frame
from polyclinic.errors import PolyclinicError
from polyclinic.site import CorruptibleSite, Site, Workspace


def serve(threads: int, device: str) -> None:
    """Answer until the coordinator closes the pipe."""
    # Who stops a job on a cluster tells all its processes. This one ends when the coordinator has said what there is.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = sys.stdin.buffer
    # Whatever prints in this process must not end up between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    workspace, sites = Workspace(device), dict[str, Site]()
    while frame := read_frame(requests):
        ask = Message.from_bytes(frame)
        function, name = ask.fields["function"], ask.fields["site"]
        request = Message(ask.fields["fields"], ask.tensors)
        try:
            if function == "load":
                sites[name] = _load(name, request, workspace)
                reply = Message()
            else:
                reply = sites[name].handle(function, request)
            answer = Message({"fields": reply.fields}, reply.tensors)
        except PolyclinicError as error:
            kind = type(error).__name__
            answer = Message(
                {"error": {"kind": kind, "code": error.code, "message": error.message, "hint": error.hint}}
            )
        write_frame(answers, answer.to_bytes())


def _load(name: str, request: Message, workspace: Workspace) -> Site:
    fields = request.fields
    mapped = {
        kind: Volumes([Path(file) for file in files], about) for kind, (files, about) in fields["volumes"].items()
    }
    pixels: dict[str, Tensor | Volumes] = {**request.tensors, **mapped}
    data = SiteData(
        name, pixels["inputs"], pixels["targets"], fields["subjects"], fields["cases"], fields["parts"], Counts(),
        None if fields["spacing"] is None else tuple(fields["spacing"]), request.tensors.get("covariates"),
        labelled=request.tensors.get("labelled"),
    )  # fmt: skip
    kind = CorruptibleSite if fields["corruptible"] else Site
    return kind(data, workspace, Path(fields["folder"]) if fields["folder"] else None)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
