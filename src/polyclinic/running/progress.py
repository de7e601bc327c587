"""Where a training is, and its checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic, write_error
from polyclinic.parts import FEDERATION, Memory
from polyclinic.server.chain import named

Row = dict[str, Any]
Models = dict[str, Tensor]
#: Models, homes, losses, the exchanges that counted, and how often models were trained.
Before = tuple[Models, dict[str, str], dict[str, float], dict[str, int], dict[str, int]]


@dataclass
class Progress:
    """Everything a checkpoint holds besides the rows and what parts keep.

    Attributes:
        done: rounds done.
        first: the shared coordinates of the first state ``[Q]``.
        firsts: model -> the same of models that are not of the study's network.
        models: model -> its state now ``[Q]``; all sites share one, called "federation", unless the method has groups,
            or sites have different networks.
        homes: site -> the model that it shares.
        best_models, best_homes: those of the best round.
        best: group ("federation" or a site) -> (score to be lowered, round).
        stopped: groups that have lost patience.
        failures: sentences about rounds in which a site was left out.
        losses: training loss that each site reported last, in a round that counts.
        exchanges: how many times a site was asked to train.
        counted: site -> number of its last exchange that counted.
        trained: model -> in how many rounds it was trained, or on how many batches where one site trains after another.
        lost: sites that did not answer when they should have kept their part of the model of the best round.
        saved: site -> after how many rounds it last wrote a checkpoint of its own.
        beside: ``part/name`` -> what sites are sent beside the model when cases are predicted.
        best_beside: the same of the best round.
        needed: part -> what a model that is in use needs of it besides the network; known at the end.
    """

    done: int
    first: Tensor
    firsts: Models = field(default_factory=dict)
    models: Models = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    best_models: Models = field(default_factory=dict)
    best_homes: dict[str, str] = field(default_factory=dict)
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    exchanges: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)
    beside: Memory = field(default_factory=dict)
    best_beside: Memory = field(default_factory=dict)
    needed: dict[str, Memory] = field(default_factory=dict)

    def state(self, site: str) -> Tensor:
        """The model that a site shares, now ``[Q]``."""
        return self.model(self.homes.get(site, FEDERATION))

    def model(self, name: str) -> Tensor:
        """A model now ``[Q]``; the first state if it has not been trained yet."""
        return self.models.get(name, self._first(name))

    def best_state(self, site: str) -> Tensor:
        """The model of the best round that a site shares ``[Q]``."""
        name = self.best_homes.get(site, FEDERATION)
        return self.best_models.get(name, self._first(name))

    def _first(self, name: str) -> Tensor:
        return self.firsts.get(name, self.first)

    def now(self) -> Before:
        """What a round changes, so that it can be taken back."""
        return dict(self.models), dict(self.homes), dict(self.losses), dict(self.counted), dict(self.trained)

    def go_back(self, before: Before) -> None:
        """The round did not count: all is as it was when ``now`` gave ``before``."""
        self.models, self.homes, self.losses, self.counted, self.trained = before

    def is_best(self) -> None:
        """The models as they are now are the best so far."""
        self.best_models, self.best_homes, self.best_beside = dict(self.models), dict(self.homes), dict(self.beside)


class Checkpoint:
    """A training's progress on disk, replaced in one step after every round.

    The rows of finished rounds are appended to a file of their own; the checkpoint says how much of it counts.

    Args:
        folder: where the two files are.
        allowed: is asked before anything is written; it raises where another process goes on with the training.
    """

    def __init__(self, folder: Path, allowed: Callable[[], None] = lambda: None) -> None:
        self.allowed = allowed
        self.path, self.rows = folder / "checkpoint.safetensors", folder / "rounds.jsonl"
        self.memory: dict[str, Tensor] = {}
        self._length = 0

    def write(self, progress: Progress, memory: Mapping[str, Tensor], rows: list[Row]) -> None:
        """Add a round; ``memory`` is what the coordinator's ends of parts keep."""
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self.allowed()
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.rows.open("r+b" if self.rows.exists() else "wb") as file:
                file.seek(self._length)
                file.truncate()
                file.write(text)
        except OSError as error:
            raise write_error(self.rows, error) from error
        self._length += len(text)
        tensors = {f"memory/{name}": tensor for name, tensor in memory.items()}
        tensors |= {f"model/{name}": model for name, model in progress.models.items()}
        changed = {name: m for name, m in progress.best_models.items() if m is not progress.models.get(name)}
        tensors |= {f"best/{name}": model for name, model in changed.items()}
        tensors |= {f"beside/{name}": tensor for name, tensor in progress.best_beside.items()}
        kept = ("done", "homes", "best_homes", "best", "stopped", "failures", "losses", "exchanges", "counted",
                "trained", "lost", "saved")  # fmt: skip
        fields = {name: getattr(progress, name) for name in kept}
        fields |= {"length": self._length, "best_models": list(progress.best_models)}
        write_atomic(self.path, self._while_allowed(Message(fields, tensors).to_pieces()), durable=False)

    def _while_allowed(self, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Ask once more when all is written but its name: a machine may have stood still since."""
        yield from pieces
        self.allowed()

    def read(self, first: Tensor, firsts: Models | None = None) -> tuple[Progress, list[Row]] | None:
        """The progress saved, with all its rows, or None if there is none.

        Args:
            first, firsts: as in `Progress`.
        """
        if not self.path.is_file():
            return None
        try:
            message = Message.from_bytes(self.path.read_bytes())
        except ValueError as error:
            raise ResultsError(
                "P501", f"{self.path} is damaged ({error}).",
                f"Delete the folder {self.path.parent.name}, so that this training starts anew, and use --resume.",
            ) from None  # fmt: skip
        fields, tensors = dict(message.fields), message.tensors
        self._length = fields.pop("length")
        fields.setdefault("saved", dict.fromkeys(fields["counted"], fields["done"]))
        self.memory = named(tensors, "memory")
        lines = self.rows.read_bytes()[: self._length].decode().splitlines() if self._length else []
        models, others = named(tensors, "model"), named(tensors, "best")
        fields["best_models"] = {name: others.get(name, models.get(name)) for name in fields["best_models"]}
        fields["best"] = {group: (score, done) for group, (score, done) in fields["best"].items()}
        beside = named(tensors, "beside")
        progress = Progress(first=first, firsts=firsts or {}, models=models, best_beside=beside, **fields)
        return progress, [json.loads(line) for line in lines]
