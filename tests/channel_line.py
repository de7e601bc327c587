"""One site, a channel and a server, without training: what a site sends is written down, and what the server sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import polyclinic.catalogues  # noqa: F401 - the parts enter their catalogues
from polyclinic.parts import Memory, Now, Part, build_chain
from polyclinic.seeds import generator
from polyclinic.server.chain import Chain
from polyclinic.shapes import Shaped


class Line:
    """A channel of parts.

    Args:
        entries: their names with options.
        shapes: of the weights.
        statistics: how many there are.
        seed: of the training.
    """

    def __init__(
        self, *entries: tuple[str, Mapping[str, Any]], shapes: Sequence[tuple[int, ...]], statistics: int = 0,
        seed: int = 3, site: str = "Aachen",
    ) -> None:  # fmt: skip
        self.entries = [(name, dict(options)) for name, options in entries]
        self.shapes, self.statistics, self.seed, self.site, self.number = list(shapes), statistics, seed, site, 0
        self.size = sum(int(torch.tensor(shape).prod()) for shape in self.shapes)
        built = build_chain(self.entries, [], [])
        self.parts: dict[str, Part] = {name: built[name] for name, _ in self.entries}
        self.ends = {name: part.at_site() for name, part in self.parts.items()}
        for name, end in self.ends.items():
            end.name = name
        there = build_chain(self.entries, [], [])  # parts of its own, as in another process
        self.chain = Chain({name: part.at_server() for name, part in there.items()})

    def send(self, change: Tensor, statistics: Tensor | None = None) -> Memory:
        """What leaves the site in the next round."""
        self.chain.begin(
            Now(
                self.number, 100, 0.1, torch.zeros(self.size), torch.zeros(self.statistics), 1.0, {self.site: 1.0},
                [self.site], self.shapes, self.seed,
            )
        )  # fmt: skip
        sent = self.chain.send(self.site)
        view = SimpleNamespace(
            name=self.site, shapes=self.shapes, number=self.number,
            generator=lambda *names: generator(self.seed, self.site, self.number, *names),
        )  # fmt: skip
        packed = {"change": change, "statistics": torch.zeros(self.statistics) if statistics is None else statistics}
        for name, end in self.ends.items():
            end.begin(view, {key.removeprefix(f"{name}/"): t for key, t in sent.items() if key.startswith(f"{name}/")})
        for end in self.ends.values():
            packed = end.close(packed)
        self.number += 1
        return packed

    def see(self, packed: Memory) -> Memory:
        """What the server makes of it."""
        return self.chain._opened(self.site, packed, list(self.chain.ends))

    def through(self, change: Tensor) -> Tensor:
        """A change as the server sees it."""
        return self.see(self.send(change))["change"]

    @property
    def declared(self) -> Mapping[str, Shaped]:
        """What is said of what leaves the site."""
        found: Mapping[str, Shaped] = {"change": Shaped("float32", "T"), "statistics": Shaped("float32", "S")}
        for part in self.parts.values():
            leaving = part.leaves(found, {"T": self.size, "S": self.statistics})
            found = {} if leaving is None else leaving
        return found

    def kept(self, name: str) -> Memory:
        """What a part keeps at the site."""
        return self.ends[name].kept


def size(packed: Memory) -> int:
    """Bytes of an update."""
    return sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
