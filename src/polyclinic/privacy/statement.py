"""What a guarantee must say of itself to mean something, as a sentence and as rows of a report.

The items are those by which NIST SP 800-226, Guidelines for evaluating differential privacy guarantees (2025), judges a
guarantee: ε, δ and the unit of privacy; neighbours and bounds of a unit's contribution; mechanism, sampling and how
losses add up; who is trusted; how the mechanism is implemented; utility and bias; access to the data, their
collection, and what else is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from polyclinic.privacy.events import number, refuse_unless

#: Field -> how a report calls it, in the order of the report.
TITLES = {
    "unit": "Unit of privacy",
    "neighbours": "Neighbouring data",
    "contribution": "Bound of a unit's contribution",
    "trust": "Who is trusted",
    "released": "What is released, and to whom",
    "mechanism": "Mechanism",
    "sampling": "Sampling",
    "epsilon": "ε",
    "delta": "δ",
    "budget": "Budget over the lifetime of the data",
    "accountant": "Accountant",
    "tuning": "Choice of settings",
    "implementation": "Implementation of the noise",
    "utility": "Utility and bias",
    "access": "Access to the data",
    "not_covered": "Not covered",
}

#: An ε that allows odds of more than a million to one.
_NEXT_TO_NOTHING = math.log(1e6)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A guarantee of differential privacy. Each text says it in words; none may be empty.

    Attributes:
        unit: what is protected, as a singular noun with its article ("a patient").
        neighbours: how two data sets differ that can't be told apart ("one has all cases of a patient more").
        contribution: how much one unit can change a result ("each patient's gradient is clipped to norm 1").
        trust: who sees what before noise is added ("each site, of its own patients", or "the server, of all updates").
        released: what is guaranteed to tell little, and who gets it.
        mechanism: which noise, and how much.
        sampling: which part of the units a step sees, and how it is chosen.
        epsilon: ε, above 0; infinite if there is no guarantee.
        delta: δ, above 0 and below 1.
        budget: ε that may be spent at most as long as the data exist, or infinite.
        accountant: how the losses of the steps were added up.
        tuning: whether settings were chosen on the same data, and if that is part of ε.
        implementation: where random numbers come from, and how numbers are rounded.
        utility: what the noise costs, and whom most.
        access: who can get at the data themselves, and how that is prevented.
        not_covered: what is not protected, each in a sentence.

    Raises:
        StudyError: P102 for a value out of range or an empty text.
    """

    unit: str
    neighbours: str
    contribution: str
    trust: str
    released: str
    mechanism: str
    sampling: str
    epsilon: float
    delta: float
    budget: float
    accountant: str
    tuning: str
    implementation: str
    utility: str
    access: str
    not_covered: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("epsilon", "budget"):
            value = getattr(self, name)
            above = value == math.inf or number(value) > 0
            refuse_unless(above, f"{TITLES[name]} of the statement", value, "a number above 0, or infinity")
        refuse_unless(0 < number(self.delta) < 1, "δ of the statement", self.delta, "a number above 0 and below 1")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str":
                said = isinstance(value, str) and value.strip() != ""
                refuse_unless(said, f'the statement\'s "{TITLES[field.name]}"', value, "words")
        said = bool(self.not_covered) and all(isinstance(one, str) and one.strip() for one in self.not_covered)
        refuse_unless(said, 'the statement\'s "Not covered"', self.not_covered, "a sentence at least")

    def sentence(self) -> str:
        """The guarantee in plain words."""
        if self.epsilon == math.inf:
            return f"Nothing is guaranteed to {self.unit}: ε is infinite. {self._lifetime()}"
        if self.epsilon > _NEXT_TO_NOTHING:
            likely = f"may make some outcomes of {self.released} more than a million times as likely"
        else:
            times = _rounded_up(math.exp(self.epsilon))
            likely = f"makes no outcome of {self.released} more than {times} times as likely"
        return (
            f"Whether {self.unit} is in the data {likely} (ε = {self.epsilon:g}), but for a probability of "
            f"{self.delta:g} (δ). Trusted: {self.trust}. {self._lifetime()}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Title and text of each item, in the order of `TITLES`."""
        texts = {
            "epsilon": "infinite: no guarantee" if self.epsilon == math.inf else f"{self.epsilon:g}",
            "delta": f"{self.delta:g}",
            "budget": self._lifetime(),
            "not_covered": " ".join(self.not_covered),
        }
        return [(title, texts.get(name) or str(getattr(self, name))) for name, title in TITLES.items()]

    def _lifetime(self) -> str:
        if self.budget == math.inf:
            return "No budget limits what later uses of the data may add."
        if self.epsilon > self.budget:
            return f"That is more than the budget of ε = {self.budget:g}."
        return f"The budget of the data is ε = {self.budget:g} in all."


def _rounded_up(value: float) -> str:
    """A factor of at least 1 with two decimals or as a whole number, never less than it is."""
    return f"{math.ceil(value * 100) / 100:.2f}" if value < 10 else f"{math.ceil(value):,}"
