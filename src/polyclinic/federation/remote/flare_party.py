"""A site at the other end of FLARE's connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyclinic.federation.remote.calls import Alive, Pieces
from polyclinic.federation.remote.engine import Gone, Unreachable


class FlareParty:
    """Calls the functions that the end of a study at a site publishes.

    Args:
        proxy: of ``nvflare.collab``.
        gone: whether FLARE knows that the site's process has ended.
    """

    def __init__(self, proxy: Any, gone: Callable[[], bool] = lambda: False) -> None:
        self.proxy, self._gone = proxy, gone

    def answer(self, envelope: str, message: Pieces, seconds: float) -> tuple[object, object]:
        """See `polyclinic.federation.remote.engine.Party`."""
        found = self._called("answer", seconds, envelope=envelope, message=list(message))
        return tuple(found) if isinstance(found, list | tuple) and len(found) == 2 else (None, None)

    def alive(self, seconds: float) -> Alive:
        """See `polyclinic.federation.remote.engine.Party`."""
        found = self._called("alive", seconds)
        try:
            return Alive.model_validate_json(found)
        except ValueError:
            return Alive(function="", seconds=0.0)  # it said something

    def _called(self, function: str, seconds: float, **given: Any) -> Any:
        from nvflare.collab.api import CollabCallError

        if self._gone():
            raise Gone
        try:
            return getattr(self.proxy(timeout=seconds), function)(**given)
        except CollabCallError as error:
            if isinstance(error.cause, TimeoutError):
                raise TimeoutError from None
            raise Unreachable from None
