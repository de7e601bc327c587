"""What the server tells each site once, before the first round."""

from __future__ import annotations

from collections.abc import Mapping

from polyclinic.errors import PolyclinicError
from polyclinic.parts import Memory, ServerEnd, Update


class Telling(ServerEnd):
    """Tells sites something when training starts or goes on; those that were away then, when they are asked to train.

    At a site it is the question ``tell``, or comes with the model, so it may come twice.
    """

    def tell(self, told: Mapping[str, Memory]) -> None:
        """Tell each site its own."""
        self._left = dict(told)
        for site, answer in self.ask("tell", told):
            if not isinstance(answer, PolyclinicError):
                del self._left[site]

    def send(self, site: str) -> Memory:
        """The same, to a site that was away."""
        return self._left.get(site, {})

    def take(self, update: Update) -> Update:
        """A site that has trained has been told."""
        self._left.pop(update.site, None)
        return update
