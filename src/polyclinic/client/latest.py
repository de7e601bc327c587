"""What each site told last, at the server."""

from __future__ import annotations

import torch

from polyclinic.parts import Memory, Now, ServerEnd, Step, Update


class Latest(ServerEnd):
    """Keeps what each site told last, for parts that send sites what others told.

    Attributes:
        latest: site -> what counts of its last update, in site order; of sites that were away that of a round before.
        new: the same of the round that goes on.
    """

    needs_each = True  # whose is what

    def __init__(self) -> None:
        self.latest, self.new = dict[str, Memory](), dict[str, Memory]()

    def told(self, update: Update) -> Memory:
        """What counts of an update; nothing leaves what was there."""
        return {name: tensor.clone() for name, tensor in self.sent(update).items()}

    def begin(self, now: Now) -> None:
        """Forget what a round that was given up has left."""
        super().begin(now)
        self.new = {}

    def take(self, update: Update) -> Update:
        """What a site told."""
        found = self.told(update)
        if found:
            self.new[update.site] = found
        return update

    def finish(self, step: Step) -> Step:
        """It counts. In site order, whoever answered first."""
        found = self.latest | self.new
        self.latest = {site: found[site] for site in self.now.everyone if site in found}
        return step

    def memory(self) -> Memory:
        """All of it."""
        return {f"{name} {site}": tensor for site, own in self.latest.items() for name, tensor in own.items()}

    def restore(self, memory: Memory) -> None:
        """Take it back. What a subclass keeps besides has no space in its name."""
        self.latest = {}
        for key, tensor in memory.items():
            name, _, site = key.partition(" ")
            if site:
                self.latest.setdefault(site, {})[name] = tensor


class LatestModels(Latest):
    """Keeps each site's model at the end of the last round that it took part in.

    Args:
        kept: whether any is kept.
    """

    def __init__(self, *, kept: bool = True) -> None:
        super().__init__()
        self._kept = kept

    def told(self, update: Update) -> Memory:
        """θ_k ``[Q]``, with statistics."""
        if not self._kept:
            return {}
        return {"model": torch.cat([self.now.weights + update.change, update.statistics])}

    @property
    def models(self) -> dict[str, torch.Tensor]:
        """Site -> its model, in site order."""
        return {site: told["model"] for site, told in self.latest.items()}
