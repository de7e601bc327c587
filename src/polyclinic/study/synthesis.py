"""What is told of cases that a method made: whether they are copies, and pictures of those that are none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polyclinic.client.synthesis.memorisation import Copied
from polyclinic.notes import Note
from polyclinic.parts import Made
from polyclinic.running.progress import Row
from polyclinic.study.columns import MEMORISATION
from polyclinic.study.job import Job
from polyclinic.study.kinds import RUN

#: A smaller chance is taken for copying.
SUSPICIOUS = 0.01
#: Of each class so many pictures are shown, in one row.
SHOWN = 8
_FOUR, _COLOURS = 4, 3


def memorised(job: Job, made: Made) -> list[Row]:
    """A row for each site that compared made cases with its own."""
    rows = list[Row]()
    for site, told in made.told.items():
        one = Copied.of(len(made.inputs), told)
        if one.known:
            row = {
                "method": job.methods[0].label, RUN: job.run, "seed": job.seed, "fold": job.fold, "site": site,
                "made": one.made, "nearer": one.nearer, "held_out": one.held, "held_out_nearer": one.held_nearer,
                "expected": one.expected * one.made, "chance": one.chance, "nearness": one.made_median,
                "least_nearness": one.made_least, "held_out_nearness": one.held_median,
                "held_out_least_nearness": one.held_least, "passed": int(one.chance >= SUSPICIOUS),
            }  # fmt: skip
            rows.append({name: row[name] for name in MEMORISATION})
    return rows


def copy_notes(job: Job, made: Made, sites: Sequence[str], rows: Sequence[Row]) -> list[Note]:
    """What is to be said of them: that some may be copies, and where that was not looked at."""
    notes = list[Note]()
    for row in rows:
        if not row["passed"]:
            chance = "below 0.0001" if row["chance"] < 1e-4 else f"{row['chance']:.4f}"
            text = f"at site {row['site']} {row['nearer']} of {row['made']} made cases are as near to training cases "
            text += f"as only {row['held_out_nearer']} of {row['held_out']} held-out ones are. If they were no copies, "
            text += f"{row['expected']:.0f} would be, and the chance of so many is {chance}. The generator may repeat "
            text += "patients' cases: don't give away what it makes, nor models of it. More cases, fewer "
            text += "`generator_rounds` or a smaller `width` help."
            notes.append(Note("N278", f"{job.title}: {text}"))
    compared = {row["site"] for row in rows}
    absent = [site for site in sites if site not in compared]
    if absent:
        text = f"whether made cases are copies was not looked at at {', '.join(absent)}, where fewer than two patients "
        notes.append(Note("N279", f"{job.title}: {text}were held out for validation or no answer came."))
    return notes


def contact_sheet(made: Made, classes: int) -> Tensor | None:
    """Some made images, a row for each class, as one picture uint8 ``[3, H, W]``; None where they are no flat images.

    Each channel is stretched between its 1 and 99 % quantiles; of other than three channels the first is shown.
    """
    images = made.inputs
    if images.ndim != _FOUR:
        return None
    images = images if images.shape[1] == _COLOURS else images[:, :1].expand(-1, _COLOURS, -1, -1)
    channels = images.transpose(0, 1).flatten(1).double().numpy()
    low, high = (torch.from_numpy(np.quantile(channels, place, axis=1)).view(1, -1, 1, 1) for place in (0.01, 0.99))
    images = ((images - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).mul(255).round().to(torch.uint8)
    rows = list[Tensor]()
    for label in range(classes):
        chosen = images[made.labels == label][:SHOWN]
        blank = torch.full((SHOWN - len(chosen), *images.shape[1:]), 255, dtype=torch.uint8)
        row = torch.nn.functional.pad(torch.cat([chosen, blank]), (0, 1, 0, 1), value=255)
        rows.append(row.permute(1, 2, 0, 3).flatten(2))
    return torch.cat(rows, dim=1).contiguous()


def shown_methods(table: pd.DataFrame) -> set[str]:
    """Labels of methods none of whose trainings is suspected, by the rows of ``memorisation.csv``."""
    return {str(method) for method, rows in table.groupby("method") if rows["passed"].all()}
