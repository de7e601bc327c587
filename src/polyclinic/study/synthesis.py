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
from polyclinic.study.pictures import structure_colour

#: A smaller chance is taken for copying.
SUSPICIOUS = 0.01
#: Of each class so many pictures are shown, in one row.
SHOWN = 8
#: Of those that were made from masks so many rows are shown.
_ROWS = 3
_FOUR, _COLOURS = 4, 3


def memorised(job: Job, made: Made) -> list[Row]:
    """A row for each site that compared made cases with its own."""
    rows = list[Row]()
    for site, told in made.told.items():
        one = Copied.of(told)
        if one.known:
            row = {
                "method": job.methods[0].label, RUN: job.run, "seed": job.seed, "fold": job.fold, "site": site,
                "masks": made.masks.get(site, 0), "made": one.made, "nearer": one.nearer, "held_out": one.held,
                "held_out_nearer": one.held_nearer, "expected": one.expected * one.made, "chance": one.chance,
                "nearness": one.made_median, "least_nearness": one.made_least, "held_out_nearness": one.held_median,
                "held_out_least_nearness": one.held_least, "passed": int(one.chance >= SUSPICIOUS),
            }  # fmt: skip
            rows.append({name: row[name] for name in MEMORISATION})
    return rows


def copy_notes(job: Job, made: Made, sites: Sequence[str], rows: Sequence[Row]) -> list[Note]:
    """What is to be said of them: that some may be copies, and where that was not looked at."""
    notes = list[Note]()
    if made.masks:
        each = ", ".join(f"{site} {count}" for site, count in made.masks.items())
        text = f"{job.title}: sites gave the server masks of patients, from which images were made: {each}."
        notes.append(Note("N280", text))
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
        few = "were held out for validation"
        if made.masks:
            few = "with a structure were kept aside (of twelve or more whose masks are shared one of four is)"
        text = f"whether made cases are copies was not looked at at {', '.join(absent)}, where fewer than two patients "
        notes.append(Note("N279", f"{job.title}: {text}{few} or no answer came."))
    return notes


def contact_sheet(made: Made, classes: int) -> Tensor | None:
    """Some made images, a row for each class, as one picture uint8 ``[3, H, W]``; None where they are no flat images.

    Of those that were made from masks each row stands above one of their masks, on which structures have the colours
    that they have elsewhere in the report. Each channel is stretched between its 1 and 99 % quantiles; of other than
    three channels the first is shown.
    """
    images = made.inputs
    if images.ndim != _FOUR:
        return None
    images = images if images.shape[1] == _COLOURS else images[:, :1].expand(-1, _COLOURS, -1, -1)
    channels = images.transpose(0, 1).flatten(1).double().numpy()
    low, high = (torch.from_numpy(np.quantile(channels, place, axis=1)).view(1, -1, 1, 1) for place in (0.01, 0.99))
    images = ((images - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).mul(255).round().to(torch.uint8)
    if made.labels.ndim > 1:
        chosen = torch.arange(len(images)) if len(images) <= _ROWS * SHOWN else _spread(len(images))
        pairs = zip(images[chosen].split(SHOWN), _coloured(made.labels[chosen, 0], classes).split(SHOWN), strict=True)
        return torch.cat([_row(one) for pair in pairs for one in pair], dim=1).contiguous()
    return torch.cat([_row(images[made.labels == label][:SHOWN]) for label in range(classes)], dim=1).contiguous()


def _spread(count: int) -> Tensor:
    """Positions of as many as are shown, of all sites."""
    return torch.linspace(0, count - 1, _ROWS * SHOWN).round().long()


def _coloured(masks: Tensor, classes: int) -> Tensor:
    """Masks ``[N, H, W]`` as pictures uint8 ``[N, 3, H, W]``, black where nothing is."""
    colours = [(0, 0, 0), *(tuple(bytes.fromhex(structure_colour(place)[1:])) for place in range(classes - 1))]
    return torch.tensor(colours, dtype=torch.uint8)[masks.long()].movedim(-1, 1)


def _row(images: Tensor) -> Tensor:
    """Images uint8 ``[N, 3, H, W]`` beside each other, with white for those that are missing ``[3, H + 1, W']``."""
    blank = torch.full((SHOWN - len(images), *images.shape[1:]), 255, dtype=torch.uint8)
    row = torch.nn.functional.pad(torch.cat([images, blank]), (0, 1, 0, 1), value=255)
    return row.permute(1, 2, 0, 3).flatten(2)


def shown_methods(table: pd.DataFrame) -> set[str]:
    """Labels of methods none of whose trainings is suspected, by the rows of ``memorisation.csv``."""
    return {str(method) for method, rows in table.groupby("method") if rows["passed"].all()}
