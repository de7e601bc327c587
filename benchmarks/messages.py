"""What fewer rounds and fewer messages save, and what they cost. About half a minute a repeat on two cores:

POLYCLINIC_DATA=... python benchmarks/messages.py [--repeats N] [--model JSON] [--rounds N]

The study of heart disease at four hospitals is repeated with other splits and initial models. A line a method: updates
that sites sent in a training, bytes to the server, rounds in which nobody sent anything, and the AUC and accuracy over
all cases with the mean difference to `fedavg` in the same repeat and its 95 % interval (Student's t over the repeats).
The patients are the same in all repeats, so intervals speak of other splits and initial models, not of other hospitals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import t as student

from polyclinic import Study

STUDY = Path(__file__).parent.parent / "studies" / "heart-disease.yaml"
METRICS = ("auc", "acc")


def repeated(number: int, model: Any, rounds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summary and rounds of a repeat."""
    content = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    once = {"rounds": 1, "local_epochs": rounds}
    content |= {
        "model": model,
        "methods": [
            "ensemble", "fedavg", {"fedavg": {"training": once, "label": "one-shot"}},
            {"dynamic_fusion": {"label": "dynamic_fusion by accuracy"}},
            {"dynamic_fusion": {"by": "loss", "label": "dynamic_fusion by loss"}},
        ],
        "seeds": [number],
        "evaluation": {"folds": 5, "metrics": list(METRICS), "split_seed": number, "bootstrap": 0},
    }  # fmt: skip
    content["training"] |= {"rounds": rounds}
    found = Study.of(content, STUDY.parent).run()
    return found.summary.assign(repeat=number), found.rounds.assign(repeat=number)


def compared(values: pd.DataFrame, method: str) -> str:
    """Mean of a method over the repeats, and its difference to fedavg."""
    apart = values[method] - values["fedavg"]
    half = student.ppf(0.975, len(apart) - 1) * apart.sem()
    return f"{values[method].mean():.4f} ({apart.mean():+.4f} ± {half:.4f})"


def main() -> None:
    """All lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--model", type=json.loads, default="logistic")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    summaries, tables = zip(
        *(repeated(number, given.model, given.rounds) for number in range(given.repeats)), strict=True
    )  # fmt: skip
    summary, rounds = pd.concat(summaries), pd.concat(tables)
    summary = summary[summary["over"] == "all"]
    scores = {
        metric: summary[summary["metric"] == metric].pivot(index="repeat", columns="method", values="mean")
        for metric in METRICS
    }
    trainings = given.repeats * 5
    for method in scores["auc"].columns:
        mine = rounds[rounds["method"] == method]
        nobody = int((mine.groupby(["repeat", "fold", "round"])["sent"].sum() == 0).sum())
        told = ", ".join(f"{metric} {compared(values, method)}" for metric, values in scores.items())
        up = mine["bytes_up"].sum()
        cost = (
            f"{mine['sent'].sum() / trainings:6.1f} updates, {up / trainings:7.0f} bytes up, {nobody / trainings:5.1f} "
            "rounds without any"
        )
        print(f"{method:<28} {cost if up else 'models travel once':<60} {told}", flush=True)


if __name__ == "__main__":
    main()
