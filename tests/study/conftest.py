"""A finished study that several tests read and none changes."""

import numpy as np
import pandas as pd
import pytest

from helpers import write_table_study
from polyclinic.study.study import Study

SIZES = {"Aachen": 40, "Bonn": 30, "Celle": 36, "Dessau": 4}


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory):
    """Results of four sites: three cases of Aachen have no label, none of Dessau has one; Bonn lacks some values."""
    folder = tmp_path_factory.mktemp("finished")
    entries = write_table_study(folder, SIZES)
    table = pd.read_csv(folder / "cases.csv")
    table.loc[table["site"] == "Dessau", "diagnosis"] = np.nan
    table.loc[[0, 1, 2], "diagnosis"] = np.nan
    table.loc[table.index[table["site"] == "Bonn"][:6], "x1"] = np.nan
    table.to_csv(folder / "cases.csv", index=False)
    entries["evaluation"] |= {"bootstrap": 60, "unseen_sites": ["fedavg"]}
    entries["training"]["rounds"] = 2
    entries["methods"] = ["single", "fedavg", "fedbn"]
    entries["search"] = {"trials": 2, "parameters": {"training.optimizer.sgd.lr": [0.1, 0.02]}, "nested": False}
    Study.of(entries, folder).run(folder / "out")
    return folder / "out"
