"""Fields of messages, and kinds of values in them with their limits: whole numbers stay whole, and no text is read as a
number."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints

from polyclinic.paths import MOST, checked

#: Whole numbers from 0 and from 1 on, as far as a float64 has them all.
Count = Annotated[int, Strict(), Field(ge=0, le=2**53)]
Positive = Annotated[int, Strict(), Field(ge=1, le=2**53)]
#: How often something is done, and how many of a kind there are.
Times = Annotated[int, Strict(), Field(ge=1, le=10**6)]
#: Number of classes; 0 where numbers are predicted.
Classes = Annotated[int, Strict(), Field(ge=0, le=10**4)]
#: A seed.
Seed = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]
#: Yes or no.
Switch = Annotated[bool, Strict()]
#: Finite numbers.
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
#: Any number: a model that broke down has a loss that is none.
Measured = Annotated[float, Strict()]
#: What something is called; it may be a name that people gave.
Name = Annotated[str, Strict(), StringConstraints(max_length=1000)]
#: What becomes a part of a file's name.
FileName = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.-]+$")]
#: A pattern of module paths, see `polyclinic.paths`.
Pattern = Annotated[str, Strict(), AfterValidator(checked)]
Patterns = Annotated[list[Pattern], Field(max_length=MOST)]
#: What is shown to people.
Sentence = Annotated[str, Strict(), StringConstraints(max_length=10_000)]

#: Values that options of a part have at most, all together, and how deep they may be in each other.
MOST_VALUES, DEEPEST = 100_000, 8


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they are if they are JSON values, and not too many.

    Raises:
        ValueError: they are not.
    """
    left, waiting = MOST_VALUES, [(options, 0)]
    while waiting:
        value, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ValueError("these are too many options")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("names of options are texts")
            waiting += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(one, depth + 1) for one in value]
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError("options are finite numbers")
        elif not isinstance(value, str | int | None):
            raise ValueError("options are JSON values")
    return options


#: Options of a part that is named; which there are, the part knows.
Options = Annotated[dict[str, Any], AfterValidator(_plain)]
#: Name and options of a part.
NamedPart = tuple[Name, Options]


class Body(BaseModel):
    """The fields of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fields(self) -> dict[str, Any]:
        """As JSON values; what is not set is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Nothing(Body):
    """No fields."""
