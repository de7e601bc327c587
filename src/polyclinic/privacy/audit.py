"""A lower bound of ε from guesses about canaries: what an attack that worked proves.

Source: Steinke, Nasr and Jagielski, Privacy auditing with one (1) training run, NeurIPS 2023, theorem 5.2.
"""

from __future__ import annotations

import math

from polyclinic.privacy.events import number, refuse_unless

#: No bound above this is told.
GREATEST = 500.0


def lower_bound(correct: int, guesses: int, delta: float, confidence: float = 0.95, *, canaries: int) -> float:
    """An ε that the training exceeds, with this confidence, whatever the attack is.

    Each of the canaries was put into the training data if a fair coin said so, independently. After the training it was
    guessed of some of them whether they had been in.

    Args:
        correct: number of guesses that are right.
        guesses: number of guesses, ``correct`` to ``canaries``.
        delta: δ of the guarantee that is put to the test, from 0 and below 1.
        confidence: probability with which the bound is below the truth, above 0 and below 1.
        canaries: number of canaries, those about which no guess was made, too.

    Returns:
        The bound, 0 if the guesses prove nothing, rounded down to 6 decimals.

    Raises:
        StudyError: P102 for a value out of range.
    """
    for name, value in (("correct guesses", correct), ("guesses", guesses), ("canaries", canaries)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        refuse_unless(whole and value >= 0, f"the number of {name}", value, "a whole number from 0")
    refuse_unless(correct <= guesses, "the number of correct guesses", correct, f"at most the {guesses} guesses")
    refuse_unless(guesses <= canaries, "the number of guesses", guesses, f"at most the {canaries} canaries")
    refuse_unless(0 <= number(delta) < 1, "δ", delta, "a number from 0 and below 1")
    refuse_unless(0 < number(confidence) < 1, "a confidence", confidence, "a number above 0 and below 1")
    low, high = 0.0, GREATEST
    if probability(correct, guesses, low, delta, canaries) > 1 - confidence:
        return 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        chance = probability(correct, guesses, middle, delta, canaries)
        low, high = (middle, high) if chance <= 1 - confidence else (low, middle)
    return math.floor(low * 1e6) / 1e6


def probability(correct: int, guesses: int, epsilon: float, delta: float, canaries: int) -> float:
    """How likely so many guesses are right, at most, if the training is (ε, δ)-differentially private.

    That is P(B >= c) + 2 m δ max over i of P(c > B >= c − i) / i, where B is binomial with ``guesses`` trials that
    succeed with probability exp(ε) / (1 + exp(ε)).
    """
    import numpy as np
    from scipy.stats import binom

    if correct == 0:
        return 1.0
    wrong = math.exp(-epsilon) / (1 + math.exp(-epsilon))
    # Counted by wrong guesses, so that no digits are lost where nearly all are right.
    chance = float(binom.cdf(guesses - correct, guesses, wrong))
    below = np.cumsum(binom.pmf(np.arange(guesses - correct + 1, guesses + 1), guesses, wrong))
    share = float(np.max(below / np.arange(1, correct + 1)))
    return min(chance + 2 * canaries * delta * share, 1.0)
