"""Studies whose sites keep their predictions: the same numbers, and no row of a patient."""

import yaml

from helpers import write_image_study, write_number_study, write_table_study
from polyclinic.study.study import Study

SIZES = {"Aachen": 47, "Bonn": 61, "Celle": 53}
WITHIN = ("comparisons.csv", "site_comparisons.csv", "calibration.csv", "decisions.csv")
METHODS = ["single", "cross", "ensemble", "mix", "fedavg", "fedbn"]


def entries(folder, task="classification", methods=METHODS, **changes):
    """A study file of small sites."""
    if task == "classification":
        found = write_table_study(folder, SIZES, classes=changes.pop("classes", 2))
    elif task == "regression":
        found = write_number_study(folder, SIZES)
    else:
        found = write_image_study(folder, SIZES)
    found = found | {"methods": methods, "seeds": [0, 1], "engine": {"mode": "sequential", "threads": 1}}
    found["evaluation"] = found.get("evaluation", {}) | {"folds": 2, "bootstrap": 100} | changes.pop("evaluation", {})
    return found | changes


def run(entries, folder, name, predictions, **evaluation):
    content = entries | {"evaluation": entries["evaluation"] | {"predictions": predictions} | evaluation}
    return finished(content, folder, name)


def finished(content, folder, name, **options):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return Study.read(path).run(folder / name, **options)


def test_the_same_numbers_wherever_predictions_are(tmp_path):
    content = entries(tmp_path)
    here, there = (run(content, tmp_path, name, name) for name in ("coordinator", "sites"))
    for name in WITHIN:
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes(), name
