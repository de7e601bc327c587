"""What a site says of the test cases whose predictions it keeps: metrics, sums and comparisons, of no single case."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polyclinic.data.statistics import LEAST_CASES
from polyclinic.errors import SiteError
from polyclinic.site.kept import KeptRows, Trial
from polyclinic.site.messages import (
    AskGroups,
    AskSurvival,
    Compare,
    Compared,
    Groups,
    KeptTrial,
    Spread,
    Spreads,
    Survival,
    Tested,
)
from polyclinic.statistics.calibration import Trust, site_trust
from polyclinic.statistics.evidence import Evidence, site_evidence
from polyclinic.statistics.samples import Cases
from polyclinic.statistics.subgroups import groups_to_tensors, site_groups
from polyclinic.statistics.survival import site_survival, survival_to_tensors
from polyclinic.tasks import Task, build_task
from polyclinic.tasks.base import Asked, Totals

Tensors = dict[str, Tensor]


def tested(rows: pd.DataFrame, task: Task, asked: Asked, floor: int) -> tuple[Tested, Tensors]:
    """Metrics and totals of the test cases of one model.

    Args:
        rows: the predictions.
        task: whose they are.
        asked: what is measured.
        floor: with fewer patients than these only how many there are is said.
    """
    cases, patients = len(rows), rows["subject"].nunique()
    if patients < max(floor, 1):
        return Tested(cases=cases, patients=patients, withheld=True), {}
    names = task.result_metrics(asked.names, asked.classes)
    values = task.values(rows, names)
    found = {"values": np.array([values[name] for name in names])} | task.totals(rows, names)
    return Tested(cases=cases, patients=patients), {name: torch.from_numpy(of.copy()) for name, of in found.items()}


def compared(kept: KeptRows, asked: Compare, floor: int) -> tuple[Compared, Tensors]:
    """Evidence of the methods, and whether their probabilities can be trusted.

    Args:
        kept: the site's predictions.
        asked: what of them is compared.
        floor: with fewer patients than these only how many there are is said.

    Raises:
        SiteError: P401, the site has not kept some of them.
    """
    rows = _named(kept, asked.trials)
    patients = rows["subject"].nunique()
    if patients < max(floor, 1):
        return Compared(patients=patients), {}
    task = build_task(asked.task, asked.classes)
    evidence = site_evidence(rows, asked.task, asked.classes, asked.metrics, bootstrap=asked.bootstrap)
    trust = site_trust(rows) if asked.trust and task.ranked(rows) is not None else {}
    first = next(iter(evidence.values()), None)
    known = {method: one for method, one in trust.items() if one is not None}
    said = Compared(
        patients=patients, metrics=list(evidence), methods=[] if first is None else list(first.methods),
        seeds=[] if first is None else list(first.seeds), trusted=list(known),
        several=[method for method in trust if method not in known],
    )  # fmt: skip
    return said, _evidence_tensors(evidence) | _trust_tensors(known)


def groups(kept: KeptRows, asked: AskGroups, floor: int) -> tuple[Groups, Tensors]:
    """Metrics of groups of patients; with fewer patients than ``floor`` only how many there are is said.

    Raises:
        SiteError: P401, the site has not kept some of the predictions.
    """
    rows = _named(kept, asked.trials)
    patients = rows["subject"].nunique()
    if patients < max(floor, 1):
        return Groups(patients=patients), {}
    said = site_groups(
        rows, asked.task, asked.classes, asked.metrics, bootstrap=asked.bootstrap, floor=max(floor, 1)
    )  # fmt: skip
    answer = Groups(
        patients=patients, metrics=list(said.metrics), places=[tuple(place) for place in said.found],
        withheld=list(said.withheld), mixed=list(said.mixed),
    )  # fmt: skip
    return answer, groups_to_tensors(said)


def survival(kept: KeptRows, asked: AskSurvival, floor: int) -> tuple[Survival, Tensors]:
    """Curves of survival and sums of log-rank tests; with fewer patients than ``floor`` nothing but their number.

    Raises:
        SiteError: P401, the site has not kept some of the predictions, or they are of no times.
    """
    rows = _named(kept, asked.trials)
    patients = rows["subject"].nunique()
    if patients < max(floor, 1):
        return Survival(patients=patients), {}
    if "time" not in rows:
        raise SiteError(
            "P401", f"Site {kept.site} was asked for survival, and kept predictions that are of no times.", "Ask only "
            "in a study of survival.", site=kept.site,
        )  # fmt: skip
    said = site_survival(rows, np.array(asked.steps), floor=max(floor, LEAST_CASES))
    return Survival(patients=patients, methods=list(said.methods)), survival_to_tensors(said)


def _named(kept: KeptRows, trials: Sequence[KeptTrial]) -> pd.DataFrame:
    """The rows of some trials, under the names that they are asked by."""
    found = [kept.get(Trial(one.run, one.method, one.trained_on)).assign(method=one.name) for one in trials]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"subject": []})


def spread(
    kept: KeptRows, asked: Spread, tensors: Tensors, floor: int, seen: MutableMapping[Trial, bytes]
) -> tuple[Spreads, Tensors]:
    """Covariance of methods' metrics over all sites' cases, as far as it comes from this site's patients.

    Each patient contributes to each method's mean what its cases do, see `polyclinic.tasks.Task.influence`; patients of
    a site are drawn as many as there are, so what they contribute varies about its mean.

    Args:
        kept: the site's predictions.
        asked: by what and of what.
        tensors: how much each trial counts, and the totals of all sites.
        floor: with fewer patients than these only how many there are is said.
        seen: totals that were sent before; others of the same trial are refused: many would tell of patients.

    Raises:
        SiteError: P401, the site has not kept some of them, or the totals are none of this task or not the same.
    """
    task, methods = build_task(asked.task, asked.classes), list(dict.fromkeys(one.name for one in asked.trials))
    trials = [Trial(one.run, one.method, one.trained_on) for one in asked.trials]
    frames = [kept.get(trial) for trial in trials]
    people = sorted({subject for frame in frames for subject in frame["subject"]})
    if len(people) < max(floor, 1):
        return Spreads(patients=len(people)), {}
    shares = tensors["shares"].numpy()
    given = np.zeros((len(asked.metrics), len(methods), len(people)))
    for number, (one, trial, frame) in enumerate(zip(asked.trials, trials, frames, strict=True)):
        sent = tensors.get(f"totals{number}", torch.zeros(0))
        own = task.totals(frame, asked.metrics)
        totals = _shaped(sent, {name: own[name] for name in task.totalled}, kept.site)
        mark = sent.numpy().tobytes()
        if seen.setdefault(trial, mark) != mark:
            raise _misfit(kept.site, "other totals than before")
        places = np.searchsorted(people, frame["subject"].to_numpy(str))
        found = task.influence(frame, totals, asked.metrics) * shares[number][:, None]
        found = np.where(shares[number][:, None] > 0, found, 0.0)
        for metric in range(len(asked.metrics)):
            np.add.at(given[metric, methods.index(one.name)], places, found[metric])
    apart = given - given.mean(axis=-1, keepdims=True)
    covariance = apart @ apart.transpose(0, 2, 1) * len(people) / max(len(people) - 1, 1)
    rows = pd.concat([f.assign(method=o.name) for f, o in zip(frames, asked.trials, strict=True)], ignore_index=True)
    cases = Cases(rows, asked.task, asked.classes, asked.metrics)
    counted = [[cases.counted(metric, m, cases.groups(cases.rows[m])) for m in methods] for metric in asked.metrics]
    numbers = {"covariance": covariance, "counted": np.array(counted, dtype=np.float64)}
    return Spreads(patients=len(people), methods=methods), {name: torch.from_numpy(of) for name, of in numbers.items()}


def _shaped(sent: Tensor, own: Totals, site: str) -> Totals:
    """Totals of all sites from one vector, as the site's ``own`` are.

    Raises:
        SiteError: P401, they are not.
    """
    sizes = [values.size for values in own.values()]
    if not sizes or sent.shape != (sum(sizes),):
        raise _misfit(site, "totals that are none of this task")
    parts = np.split(sent.numpy(), np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(values.shape).astype(values.dtype)
        for (name, values), part in zip(own.items(), parts, strict=True)
    }


def _misfit(site: str, what: str) -> SiteError:
    return SiteError(
        "P401", f"Site {site} was asked to 'spread' with {what}.",
        "Let all sites and the server run the same version of Polyclinic, and the study anew.", site=site,
    )  # fmt: skip


def _evidence_tensors(evidence: Mapping[str, Evidence]) -> Tensors:
    names = ("values", "differences", "variances", "patients") if evidence else ()
    found = {name: np.stack([getattr(one, name) for one in evidence.values()]) for name in names}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _trust_tensors(trust: Mapping[str, Trust]) -> Tensors:
    if not trust:
        return {}
    each = list(trust.values())
    lines = [(one.intercept.value, one.intercept.variance, one.slope.value, one.slope.variance) for one in each]
    return {
        "counts": torch.tensor([(one.cases, one.positive) for one in each]),
        "lines": torch.tensor(lines, dtype=torch.float64),
        "benefit": torch.from_numpy(np.stack([one.benefit for one in each])),
        "everybody": torch.from_numpy(np.stack([one.everybody for one in each])),
    }
