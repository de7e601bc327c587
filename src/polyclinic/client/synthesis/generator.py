"""The generator at the server: what it makes, how it learns, and what is kept of it between rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyclinic.client.optimizers import restore_state, state_of
from polyclinic.errors import StudyError
from polyclinic.models.generative import Generator
from polyclinic.parts import Memory, Stage
from polyclinic.randomness import own_randomness
from polyclinic.state import FlatModule

#: Inputs that are made together where nothing is learned.
AT_ONCE = 64
#: Adam's, with a first mean that forgets sooner: with the usual 0.9 the two networks swing (Radford et al., ICLR 2016).
BETAS = (0.5, 0.999)


class Maker:
    """The generator at the server.

    Args:
        stage: of the round.
        latent, width, lr: see `polyclinic.client.synthesis.made_cases.SyntheticCases`.
        memory: what `memory` gave where a training goes on; else empty.
    """

    def __init__(self, stage: Stage, latent: int, width: int, lr: float, memory: Memory) -> None:
        shape, self.latent, self.classes = stage.network.shape, latent, stage.task.classes
        if len(shape) not in (1, 3):
            raise StudyError("P104", f"synthetic_cases makes rows of tables and flat images, and inputs are {shape}.",
                             "Leave the method out, or take slices.")  # fmt: skip
        self.device = stage.network.vector.device
        with own_randomness(stage.generator("generator").initial_seed()):
            module = Generator(shape, self.classes, latent=latent, width=width)
        self.network = FlatModule(module, device=self.device)
        self._optimizer = torch.optim.Adam([self.network.weights], lr=lr, betas=BETAS)
        self._cases: dict[str, Tensor] = {}
        if "generator" in memory:
            self.network.load(memory["generator"])
        groups: dict[str, Memory] = {"adam": {}, "cases": self._cases}
        for key, tensor in memory.items():
            group, _, name = key.partition("/")
            groups.get(group, {})[name] = tensor
        restore_state(self._optimizer, [self.network.weights], groups["adam"])

    def memory(self) -> Memory:
        """For a checkpoint."""
        adam = state_of(self._optimizer, [self.network.weights])
        return {
            "generator": self.network.vector.cpu().clone(),
            **{f"adam/{name}": tensor.cpu().clone() for name, tensor in adam.items()},
            **{f"cases/{site}": cases for site, cases in self._cases.items()},
        }

    def met(self, cases: Mapping[str, Tensor]) -> None:
        """Sites told how many training cases of each class they have ``[C]``."""
        self._cases |= cases

    def of(self, site: str) -> Tensor:
        """How frequent classes are at a site ``[C]``."""
        cases = self._cases[site].double()
        return cases / cases.sum()

    def everyone(self, stage: Stage) -> Tensor:
        """How frequent they are at all sites that ever answered, by their weights ``[C]``."""
        return torch.stack([stage.weights[site] * self.of(site) for site in sorted(self._cases)]).sum(0)

    def drawn(self, source: torch.Generator, count: int, frequent: Tensor) -> tuple[Tensor, Tensor]:
        """Random numbers ``[count, Z]`` and classes ``[count]``."""
        labels = torch.multinomial(frequent, count, replacement=True, generator=source)
        return torch.randn(count, self.latent, generator=source), labels

    @torch.no_grad()
    def inputs(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """What is made of them ``[count, ...]``, on the network's device."""
        pairs = zip(numbers.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
        return torch.cat([self.network.module(some.to(self.device), of.to(self.device)) for some, of in pairs])

    def make(self, drawn: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """What is made of several draws, one after another ``[N, ...]``, with gradient."""
        numbers, labels = (torch.cat(parts).to(self.device) for parts in zip(*drawn, strict=True))
        made: Tensor = self.network.module(numbers, labels)
        return made

    def learn(self, made: Tensor, gradient: Tensor) -> None:
        """A step down the gradient for what was made."""
        self.network.gradient.zero_()
        made.backward(gradient.to(self.device))
        self._optimizer.step()
