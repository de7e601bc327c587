"""Whether the study in a results folder was run to its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyclinic.study.table_files import has_table

#: What ``status`` says of a study that was run to its end: with all results, or without those of sites that did not
#: answer when they were tested.
FINISHED, INCOMPLETE = "finished", "incomplete"
#: Folder of the model that a study ends with.
MODEL_FOLDER = "model"


def is_finished(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the study in a folder was run to its end, so that nothing is left to resume."""
    return record.get("status") in (FINISHED, INCOMPLETE) and (
        has_table(folder / "results.csv") or (folder / MODEL_FOLDER).is_dir()
    )


def is_incomplete(folder: Path) -> bool:
    """Whether the study in a folder was run to its end, but some results are missing."""
    return read_record(folder).get("status") == INCOMPLETE


def read_record(folder: Path) -> dict[str, Any]:
    """The provenance in a results folder; empty where none can be read."""
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
