"""What a site says of the test cases whose predictions it keeps: metrics, sums and comparisons, of no single case."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polyclinic.site.kept import KeptRows, Trial
from polyclinic.site.messages import Compare, Compared, Tested
from polyclinic.statistics.calibration import Trust, site_trust
from polyclinic.statistics.evidence import Evidence, site_evidence
from polyclinic.tasks import Task, build_task
from polyclinic.tasks.base import Asked

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
    trials = ((one.name, Trial(one.run, one.method, one.trained_on)) for one in asked.trials)
    frames = [kept.get(trial).assign(method=name) for name, trial in trials]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"subject": []})
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
