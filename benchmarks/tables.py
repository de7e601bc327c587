"""How large the table of rounds gets: 300 sites and 200 rounds of a method.

A study of simulated sites is run for a few rounds, and the sizes are scaled up to 200. Lines are methods; columns are
`rounds.csv` as it was with words on what was sent in every row, as it is with numbers for them, and as Parquet. What
the numbers mean (`payloads.csv`) counts in the last two.

    python benchmarks/tables.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.study.study import Study
from polyclinic.study.table_files import write_table

SITES, ROUNDS, WANTED = 300, 10, 200
METHODS = ["fedavg", "scaffold", "qfedavg", "fedce"]


def study(folder: Path) -> Study:
    """A small network at many sites."""
    draw = np.random.default_rng(0)
    cases = 20 * SITES
    table = pd.DataFrame(draw.normal(size=(cases, 8)).round(3), columns=[f"value_{number}" for number in range(8)])
    table["hospital"] = [f"hospital-{number % SITES:03d}" for number in range(cases)]
    table["label"] = draw.integers(0, 2, cases)
    table.to_csv(folder / "cases.csv", index=False)
    return Study.of({
        "data": {"table": "cases.csv", "site": "hospital", "label": "label", "features": "value_*"},
        "model": {"mlp": {"hidden": [4]}}, "methods": METHODS, "training": {"rounds": ROUNDS, "local_steps": 1},
        "evaluation": {"holdout": 0.3, "validation": 0.3, "metrics": ["auc"], "bootstrap": 0},
    }, folder)  # fmt: skip


def worded(rounds: pd.DataFrame, payloads: pd.DataFrame) -> pd.DataFrame:
    """Rows of rounds with words on what was sent instead of numbers."""
    found = rounds.drop(columns="payloads")
    for way in ("up", "down"):
        words = {
            number: "; ".join(f"{one.payload} {one.shape} {one.bytes} bytes" for one in sent.itertuples())
            for number, sent in payloads[payloads["way"] == way].groupby("payloads")
        }
        found[f"extra_{way}"] = rounds["payloads"].map(words).fillna("")
    return found


def size(folder: Path, frame: pd.DataFrame, *, parquet: bool = False) -> int:
    """Bytes of a table as a file."""
    path = folder / ("table.parquet" if parquet else "table.csv")
    write_table(folder / "table.csv", frame, parquet=parquet)
    return path.stat().st_size


def main() -> None:
    """Print a line a method."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = study(folder).run(folder / "out")
        print(f"{SITES} sites, {WANTED} rounds; MB")
        print(f"{'method':10} {'words':>8} {'numbers':>8} {'Parquet':>8}")
        for method, rounds in results.rounds.groupby("method", sort=False):
            sent = results.payloads[results.payloads["payloads"].isin(rounds["payloads"])]
            times = WANTED / rounds["round"].nunique()
            sizes = (
                times * size(folder, worded(rounds, results.payloads)),
                times * size(folder, rounds) + size(folder, sent),
                times * size(folder, rounds, parquet=True) + size(folder, sent, parquet=True),
            )
            print(f"{method:10} " + " ".join(f"{one / 1e6:8.1f}" for one in sizes))


if __name__ == "__main__":
    sys.exit(main())
