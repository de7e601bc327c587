"""Events: what is refused, what is one, and JSON."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.errors import StudyError
from polyclinic.privacy import Event, merged
from polyclinic.privacy.events import MOST_STEPS

events = st.builds(
    Event,
    st.sampled_from(["gaussian", "laplace", "concentrated", "pure"]),
    st.floats(1e-300, 1e300),
    st.floats(1e-300, 1),
    st.integers(0, 10**6),
)


@pytest.mark.parametrize("parameter", [0, -1.0, math.nan, math.inf, -math.inf, True, "1", None, 10**400])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "concentrated", "pure"])
def test_a_parameter_is_a_finite_number_above_0(mechanism, parameter):
    with pytest.raises(StudyError, match=r"P102 The parameter of the mechanism .* is .*, expected a number above 0"):
        Event(mechanism, parameter)


@pytest.mark.parametrize("rate", [0, -0.1, 1.0000001, math.nan, math.inf, True, "1", None])
def test_a_rate_is_above_0_and_at_most_1(rate):
    with pytest.raises(StudyError, match=r"P102 A sampling rate is .*, expected a number above 0 and at most 1"):
        Event.gaussian(1.0, rate)


@pytest.mark.parametrize("count", [-1, 1.0, True, math.nan, None, MOST_STEPS + 1])
def test_a_count_is_a_whole_number(count):
    with pytest.raises(StudyError, match=r"P102 A number of steps is .*, expected a whole number from 0"):
        Event.gaussian(1.0, count=count)


def test_other_mechanisms_and_bare_steps_with_noise_are_refused():
    with pytest.raises(
        StudyError, match=r"P103 There is no mechanism 'gauss'. Valid: gaussian, laplace, concentrated, pure, bare"
    ):
        Event("gauss", 1.0)
    with pytest.raises(StudyError, match=r"P102 The parameter of a step without noise is 1.0, expected 0"):
        Event("bare", 1.0)


@given(events)
def test_json_gives_the_same_event(event):
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


@pytest.mark.parametrize("fields", [{}, [], {"mechanism": "pure"}, {**Event.pure(1).to_json(), "more": 1}])
def test_other_fields_are_no_event(fields):
    with pytest.raises(StudyError, match=r"P102 An event is .*, expected"):
        Event.from_json(fields)


@given(st.lists(events, max_size=6), st.randoms())
def test_equal_events_are_one_in_whatever_order(several, random):
    mixed = [event.times(part) for event in several for part in (event.count // 3, event.count - event.count // 3)]
    random.shuffle(mixed)
    assert merged(mixed) == merged(several)
    assert sum(event.count for event in merged(mixed)) == sum(event.count for event in several)
    kinds = [event.times(0) for event in merged(mixed)]
    assert kinds == sorted(set(kinds))


def test_steps_that_are_none_vanish():
    assert merged([Event.gaussian(1, 1, 0), Event.gaussian(1), Event.gaussian(1.0, 1.0, 2)]) == (
        Event("gaussian", 1.0, 1.0, 3),
    )


def test_the_package_loads_nothing_heavy():
    code = (
        "import sys, polyclinic.privacy;"
        "print(*[name for name in ('numpy', 'scipy', 'torch', 'opacus', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
