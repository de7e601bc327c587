"""Which parts of a method make no sense together; said when the study file is read."""

from __future__ import annotations

from collections.abc import Callable

from polyclinic.methods import Method
from polyclinic.study.compatibility import channel, made_cases, networks, noise, rule, training, turns
from polyclinic.study.compatibility.networks import (
    models_per_network,
    predicts_together,
    sends_site_models,
    trains_apart,
)
from polyclinic.study.compatibility.noise import around_changes, protecting
from polyclinic.study.compatibility.refusing import Local, Refusal
from polyclinic.study.compatibility.training import too_few_rounds

__all__ = [
    "Local", "Refusal", "around_changes", "models_per_network", "predicts_together", "protecting", "refusal",
    "sends_site_models", "too_few_rounds", "trains_apart",
]  # fmt: skip

#: The first that has something to say is heard.
_CHECKS: tuple[Callable[[Method, Local], Refusal | None], ...] = (
    rule.absent, rule.twice, networks.variants, networks.own_networks, channel.encoded, channel.shared_noise,
    noise.unbounded, rule.one_aggregation, rule.order, rule.returned, channel.hidden, channel.quiet,
    training.gradient_at_start, training.gradient_step, training.linear_steps, training.task,
    training.distilled, turns.one_by_one, turns.procedure, networks.personal, networks.adapted, networks.beside,
    training.pretraining, made_cases.made_cases,
)  # fmt: skip


def refusal(method: Method, local: Local) -> Refusal | None:
    """Why the parts of ``method`` make no sense together; None if they do."""
    return next(filter(None, (check(method, local) for check in _CHECKS)), None)
