"""Tasks in which a site measures each of its test cases, and a metric is the mean over cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.shapes import Shaped
from polyclinic.tasks.base import Asked, Floats, Measure, Task, Totals


class MeasuredByCase(Task):
    """A site sends ``metrics``, names, and ``values`` float64 ``[N, M]`` of its test cases; NaN where one is not
    defined, which no mean counts.
    """

    case_by_case = True
    sends: ClassVar = {"values": Shaped("float64", "N", "M", finite=False)}
    says: ClassVar = {"metrics": list[str]}
    totalled: ClassVar = {"sums": Shaped("float64", "metrics"), "known": Shaped("int64", "metrics", least=0)}

    def misfit(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], asked: Asked) -> str:
        """The metrics are those that were asked for."""
        wanted = self.result_metrics(asked.names, asked.classes)
        if list(fields["metrics"]) != wanted or tensors["values"].shape[1] != len(wanted):
            return f"metrics: got {len(fields['metrics'])} names, expected {', '.join(wanted)}"
        return ""

    def columns(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], threshold: float) -> dict[str, Any]:
        """A column for each metric."""
        values = tensors["values"].numpy()
        return {name: values[:, column] for column, name in enumerate(fields["metrics"])}

    def known(self, names: Iterable[str], cases: pd.DataFrame) -> list[str]:
        """Those that each case has."""
        return [name for name in names if name in cases]

    def values(self, cases: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
        """Mean over the cases, leaving out NaN."""
        return {name: float(cases[name].mean()) for name in names}

    def measure(self, cases: pd.DataFrame, names: Sequence[str]) -> Measure:
        """Mean over the cases of values that each case has already, leaving out NaN."""
        values = cases[list(names)].to_numpy(np.float64)

        def measure(rows: NDArray[np.intp], weights: Floats) -> Floats:
            known = ~np.isnan(values[rows])
            totals = np.where(known, values[rows], 0.0).T @ weights
            counts = known.T.astype(np.float64) @ weights
            means: Floats = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
            return means

        return measure

    def totals(self, cases: pd.DataFrame, names: Sequence[str]) -> Totals:
        """``sums`` of each metric over the cases that have it, and how many are ``known``, both [metrics]."""
        values = cases[list(names)].to_numpy(np.float64)
        known = ~np.isnan(values)
        return {"sums": np.where(known, values, 0.0).sum(axis=0), "known": known.sum(axis=0)}

    def from_totals(self, totals: Totals, names: Sequence[str]) -> dict[str, float]:
        """Mean over the cases that have a value."""
        parts = zip(names, totals["sums"], totals["known"], strict=True)
        return {name: float(total / known) if known else float("nan") for name, total, known in parts}

    def influence(self, cases: pd.DataFrame, totals: Totals, names: Sequence[str]) -> Floats:
        """See `Task.influence`; a case without a value counts for nothing."""
        values = cases[list(names)].to_numpy(np.float64).T
        known = np.maximum(totals["known"], 1)[:, None]
        found = (values - totals["sums"][:, None] / known) / known
        return np.where(totals["known"][:, None] > 0, np.where(np.isnan(values), 0.0, found), np.nan)
