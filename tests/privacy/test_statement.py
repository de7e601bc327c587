"""The words of a guarantee."""

import math
import re

import pytest

from polyclinic.errors import StudyError
from polyclinic.privacy import Statement
from polyclinic.privacy.statement import TITLES

TEXTS = {
    "unit": "a patient",
    "neighbours": "One has all cases of a patient more than the other.",
    "contribution": "The gradient of each patient is clipped to norm 1.",
    "trust": "each site, of its own patients",
    "released": "the models that leave a site",
    "mechanism": "Gaussian noise with standard deviation 1.1",
    "sampling": "Each patient takes part in a step with probability 0.02.",
    "accountant": "prv",
    "tuning": "Settings were fixed before.",
    "implementation": "Random numbers of the operating system.",
    "utility": "Small groups lose most.",
    "access": "Data stay at the sites.",
}


def statement(**changes):
    numbers = {
        "epsilon": 2.0,
        "delta": 1e-5,
        "budget": 8.0,
        "not_covered": ("What all patients share.", "Counts."),
    }
    return Statement(**(TEXTS | numbers | changes))


def test_the_sentence_in_plain_words():
    assert statement().sentence() == (
        "Whether a patient is in the data makes no outcome of the models that leave a site more than 7.39 times as "
        "likely (ε = 2), but for a probability of 1e-05 (δ). Trusted: each site, of its own patients. The budget of "
        "the data is ε = 8 in all."
    )


@pytest.mark.parametrize(
    ("epsilon", "says"),
    [(0.001, "no outcome of the models that leave a site more than 1.01 times"), (math.log(7.390001), "7.40 times"),
     (3.0, "21 times"), (8.0, "2,981 times"), (20.0, "may make some outcomes .* more than a million times"),
     (5000.0, "may make some outcomes .* more than a million times")],
)  # fmt: skip
def test_the_factor_is_rounded_up(epsilon, says):
    assert re.search(f"{says} as likely", statement(epsilon=epsilon, budget=math.inf).sentence())


def test_no_guarantee_says_so():
    found = statement(epsilon=math.inf)
    assert found.sentence() == (
        "Nothing is guaranteed to a patient: ε is infinite. That is more than the budget of ε = 8."
    )
    assert ("ε", "infinite: no guarantee") in found.rows()


def test_the_budget():
    assert statement(epsilon=9.0).sentence().endswith("That is more than the budget of ε = 8.")
    assert statement(budget=math.inf).sentence().endswith("No budget limits what later uses of the data may add.")


def test_rows_have_every_item_in_their_order():
    rows = statement().rows()
    assert [title for title, _ in rows] == list(TITLES.values())
    found = dict(rows)
    assert (found["ε"], found["δ"], found["Unit of privacy"]) == ("2", "1e-05", "a patient")
    assert found["Not covered"] == "What all patients share. Counts."
    assert set(TITLES) == set(Statement.__dataclass_fields__)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["", "  ", None, 3])
def test_no_text_may_be_empty(name, text):
    with pytest.raises(StudyError, match=f'P102 The statement\'s "{TITLES[name]}" is .*, expected words'):
        statement(**{name: text})


@pytest.mark.parametrize(
    "values",
    [{"epsilon": 0}, {"epsilon": -1}, {"epsilon": math.nan}, {"epsilon": True}, {"epsilon": -math.inf}, {"delta": 0},
     {"delta": 1}, {"delta": math.nan}, {"budget": 0}, {"budget": math.nan}, {"budget": None}, {"not_covered": ()},
     {"not_covered": ("",)}],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(values):
    with pytest.raises(StudyError, match=r"P102 .*, expected"):
        statement(**values)
