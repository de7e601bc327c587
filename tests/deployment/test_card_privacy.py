"""What a model card says of privacy: of this training, of those that chose it, and of what the model has."""

from types import SimpleNamespace

import pytest

from polyclinic.study.final_model.card import _privacy
from polyclinic.study.final_model.description import Seen, Usual

ROW = {"site": "Aachen", "unit": "a patient", "epsilon": 7.99, "delta": 0.001, "lifetime_epsilon": 7.99}


def said(seen, **record):
    return " ".join(one for one in _privacy(SimpleNamespace(seen=seen), record) if isinstance(one, str))


@pytest.mark.parametrize(("results", "added"), [({}, False), ({"data_sha256": "0" * 64}, True)])
def test_trainings_that_chose_this_one_are_not_passed_over(results, added):
    assert ("adds to that" in said(Seen(), privacy=[ROW], study_results=results)) == added


def test_usual_values_are_named_where_the_model_has_them():
    """With `summaries: secure_sum` it has none."""
    usual = Usual(median=1.0, deviation=0.5, low=0.0, high=2.0)
    assert "usual values" in said(Seen(features={"age": usual}))
    assert "usual values" not in said(Seen())
