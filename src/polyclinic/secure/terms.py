"""What all parties of a secure sum know before a round of it begins, the same at each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from polyclinic.errors import StudyError
from polyclinic.secure.binding import digest
from polyclinic.secure.graph import Shape

TRAINING_BYTES = 32
MOST_BITS = 1024


@dataclass(frozen=True)
class Terms:
    """One round of a secure sum. All keys, hashes and signatures are bound to it.

    A site takes these from the study that it agreed to, not from what the server says in the round.

    Attributes:
        training: 32 random bytes, of this training alone.
        number: of the round, from 1.
        attempt: how often the round was begun before; a round that is begun again has new keys.
        sites: names, in the order of the federation.
        shape: who has masks in common, and how many must be left.
        bits: k; sums are modulo 2^k. Vectors are int32 up to 32 bits, int64 beyond; beyond 64 each element has k / 64
            words of it.
        length: T, elements of a vector.
        least: a sum of fewer sites is refused.

    Raises:
        StudyError: P102, they can't be.
    """

    training: bytes
    number: int
    attempt: int
    sites: tuple[str, ...]
    shape: Shape
    bits: int
    length: int
    least: int = 3

    def __post_init__(self) -> None:
        count = len(self.sites)
        if len(self.training) != TRAINING_BYTES:
            raise StudyError("P102", f"A training's number has {len(self.training)} bytes; expected {TRAINING_BYTES}.",
                             "Draw it from the operating system.")  # fmt: skip
        if len(set(self.sites)) != count or self.shape.sites != count:
            raise StudyError("P102", f"Got {len(set(self.sites))} different names in a list of {count} sites, and a "
                             f"graph of {self.shape.sites}.", "Name each site once.")  # fmt: skip
        whole = self.bits % 64 == 0 and 64 < self.bits <= MOST_BITS
        if not (2 <= self.bits <= 64 or whole) or self.length < 1 or self.number < 1 or self.attempt < 0:
            raise StudyError(
                "P102", f"A secure sum got {self.bits} bits, {self.length} elements, round {self.number} and attempt "
                f"{self.attempt}; expected 2 to 64 bits (or whole words of 64, up to {MOST_BITS}), an element or more, "
                "a round from 1 and an attempt from 0.",
                "Give such numbers.",
            )  # fmt: skip
        if not 2 <= self.least <= count:
            raise StudyError(
                "P102",
                f"A secure sum of at least {self.least} sites is asked for, and there are {count}. "
                "Of a sum of two, each of the two knows the other's part: it takes its own off.",
                "Let more sites take part. Two sites that trust each other can allow it: `least` 2.",
            )

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for all of it."""
        shape = self.shape
        return digest(
            "terms", self.training, self.number, self.attempt, self.bits, self.length, self.least,
            shape.degree, shape.threshold, shape.agreement, *self.sites,
        )  # fmt: skip

    @cached_property
    def index(self) -> dict[str, int]:
        """Site -> its number, from 0; its shares are for the point one above."""
        return {site: place for place, site in enumerate(self.sites)}

    @property
    def words(self) -> int:
        """Of an element."""
        return max(1, self.bits // 64)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.length * self.words

    @property
    def needed(self) -> int:
        """So many sites must be there in every phase."""
        return max(self.least, self.shape.agreement)
