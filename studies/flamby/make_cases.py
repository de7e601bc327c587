"""Write the table of the study heart-disease.yaml: the cases, features and parts of FLamby's Fed-Heart-Disease.

``POLYCLINIC_DATA=... python studies/flamby/make_cases.py FOLDER`` writes ``FOLDER/cases.csv``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from sklearn.model_selection import train_test_split

SITES = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal"),
    "num",
]
#: Hardly measured outside Cleveland.
LEFT_OUT = ["slope", "ca", "thal"]
CATEGORICAL = ["cp", "restecg"]
#: Seed and share of the one split that all published numbers are of.
SPLIT_SEED, TRAINED = 43, 0.66


def cases(source: Path) -> pd.DataFrame:
    """The 740 patients without missing values: ``site``, ``part``, ``label`` and 13 features.

    Of a categorical column the first value has no column of its own. A third of each site's patients are tested,
    stratified by label where each label has three patients or more.

    Args:
        source: folder with the four files processed.SITE.data.
    """
    tables = []
    for site in SITES:
        table = pd.read_csv(source / f"processed.{site}.data", header=None, names=COLUMNS, na_values="?")
        table = table.drop(columns=LEFT_OUT).dropna().reset_index(drop=True)
        table = table.astype(dict.fromkeys(CATEGORICAL, int))
        table["label"] = (table.pop("num") > 0).astype(int)
        several = table["label"].value_counts().reindex([0, 1], fill_value=0).min() > 2
        _, tested = train_test_split(
            np.arange(len(table)), test_size=1.0 - TRAINED, train_size=TRAINED, random_state=SPLIT_SEED,
            stratify=table["label"] if several else None,
        )  # fmt: skip
        table["part"] = np.where(table.index.isin(tested), "test", "train")
        tables.append(table.assign(site=site))
    return pd.get_dummies(pd.concat(tables, ignore_index=True), columns=CATEGORICAL, drop_first=True, dtype=int)


def main(folder: Annotated[Path, typer.Argument(help="Where to write cases.csv.")]) -> None:
    """Write the table."""
    folder.mkdir(parents=True, exist_ok=True)
    cases(Path(os.environ["POLYCLINIC_DATA"]) / "heart-disease").to_csv(folder / "cases.csv", index=False)


if __name__ == "__main__":
    typer.run(main)
