"""What sites and server exchange besides the model, declared so that people can see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from polyclinic.errors import SiteError

#: The model itself.
MODEL = ("state", "change", "statistics")


def check_declared(names: Iterable[str], reveals: Iterable[str], site: str = "") -> None:
    """Refuse to send what nobody has declared.

    Args:
        names: of the tensors of a message: the model's, or ``part/name``.
        reveals: ``part/name`` of what may be sent besides.
        site: who sends it; none for the server.

    Raises:
        SiteError: P401 with the first name that is not declared.
    """
    known = {*MODEL, *reveals}
    for name in names:
        if name not in known:
            part, _, key = name.rpartition("/")
            who = f"the end of {part} at {f'site {site}' if site else 'the server'}" if part else f"a part at {site}"
            raise SiteError(
                "P401", f"What {who} sends as {key!r} is not declared, so it was not sent.",
                f"Say in the part's `reveals` what {key!r} could reveal; what a channel adds is called `part/name`.",
                site=site,
            )  # fmt: skip


@dataclass
class Traffic:
    """What went one way between the server and a site: how often each tensor of a name, shape and size.

    Attributes:
        sent: how often.
        size: bytes of the messages.
    """

    sent: Counter[tuple[str, tuple[int, ...], int]] = field(default_factory=Counter)
    size: int = 0

    def add(self, tensors: Mapping[str, Tensor], size: int) -> None:
        """Count a message of so many bytes."""
        self.size += size
        self.sent.update((name, tuple(t.shape), t.numel() * t.element_size()) for name, t in tensors.items())

    def describe(self) -> str:
        """Name, shape (and how often) and bytes of everything but the model.

        One entry a name and shape, separated by semicolons, by name: tensors of a message that was bytes come in an
        order that changes from run to run.
        """
        return "; ".join(
            f"{name} {list(shape)}{f' × {times}' if times > 1 else ''} {size * times} bytes"
            for (name, shape, size), times in sorted(self.sent.items(), key=lambda item: item[0][0])
            if name not in MODEL
        )
