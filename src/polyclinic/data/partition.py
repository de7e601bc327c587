"""Simulated sites: patients shared out anew, so that sites differ in one thing only, by a known amount.

Real hospitals differ in everything at once. To see whether a method cures the kind of difference that it claims to
cure, the same patients are dealt to sites that differ in their labels alone, in their sizes alone, or in nothing.

Let p be the shares of the J sites, drawn from the symmetric Dirichlet distribution Dir_J(alpha):

- ``label_skew``: each class has a draw p of its own, as in Yurochkin et al., Bayesian Nonparametric Federated Learning
  of Neural Networks (ICML 2019). Sites then differ in size too. Hsu et al., Measuring the Effects of
  Non-Identical Data Distribution (2019) draw the classes' shares of each site instead, for sites of one size.
- ``quantity_skew``: one p for all classes (Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022).
- ``even``: p = 1 / J.

The papers deal images. Here patients are dealt, each with all cases, by the patient's most frequent class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from polyclinic.data.spec import DataSpec, Partition, Target
from polyclinic.data.splits import patient_cases, patient_classes
from polyclinic.data.tables.rows import Rows
from polyclinic.errors import DataError
from polyclinic.notes import Note
from polyclinic.options import EntryError
from polyclinic.seeds import derive_seed

#: Draws of shares before a partition is given up.
MOST_DRAWS = 1000


def check_partition(spec: DataSpec, target: Target) -> None:
    """Stop where the partition does not suit what is to be predicted.

    Raises:
        EntryError: P104, label skew without classes.
    """
    if spec.partition is not None and spec.partition.label_skew is not None and target != "labels":
        raise EntryError(
            "P104", f"label skew shares out classes, and {target} have none.", "Use `quantity_skew` or `even`.",
            place=("data", "partition", "label_skew"),
        )  # fmt: skip


def site_names(partition: Partition) -> list[str]:
    """``Site 1``, ``Site 2``, ..."""
    return [f"Site {number}" for number in range(1, partition.sites + 1)]


def partition_rows(
    rows: Rows,
    kept: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32] | None,
    partition: Partition,
    *,
    subjects_named: bool,
) -> list[Note]:
    """Give every row a simulated site, in place, and return notes.

    All rows of a patient go to one site; equal names are one patient, whatever table or site they come from. Patients
    of whom no row can be used are dealt in turn, so that their rows are still counted once. So are those of whom no
    case has a label, in an order of their own: the others are dealt as if they were not there. Rows that name no site
    belong to none, as without a partition.

    Args:
        rows: all rows, with their patients.
        kept: bool ``[N]``, which of them are used.
        labels: classes or numbers of the rows used, in their order; None for masks.
        partition: what the study file asks for.
        subjects_named: whether a column names the patients; without one each row is a patient.

    Raises:
        DataError: P206 when no site can have as many patients as ``least`` asks for.
    """
    origin = rows.origin
    used, placed = origin[kept], origin["site"].notna().to_numpy()
    known = rows.labelled[kept]
    positions = patient_cases(used["subject"][known].tolist())
    home = share_out(patient_classes(positions, None if labels is None else torch.tensor(labels[known])), partition)
    others = sorted(set(used["subject"]) - set(home))
    home |= _in_turn(others, partition)
    found = origin["subject"].map(home).to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    strays = np.isnan(found) & placed
    found[strays] = pd.factorize(origin["subject"].fillna(origin["case"])[strays])[0] % partition.sites
    names = np.array(site_names(partition), dtype=object)
    origins = used.groupby("subject")["site"].nunique()
    said = _sentence(partition, len(home) - len(others), used["site"].nunique(), subjects_named=subjects_named)
    if others:
        people = "patients" if subjects_named else "cases"
        said += f" {len(others)} {people} without a label were dealt in turn."
    notes = [Note("N102", said)]
    shared = int((origins > 1).sum())
    if shared:
        are = "patient name stands" if shared == 1 else "patient names stand"
        text = f"{shared} {are} at more than one site of the data: each was taken for one person."
        notes.append(Note("N201", text, origins.index[origins > 1]))
    origin.loc[placed, "site"] = names[found[placed].astype(np.int64)]
    return notes


def share_out(classes: dict[str, int], partition: Partition) -> dict[str, int]:
    """Patient -> number of the site, from 0. It depends on names, classes and the seed, not on the order of patients.

    Patients stand class after class, shuffled within each class, and each goes to the site that is furthest behind
    what its shares say up to here. So a site has less than one patient more than its shares of the classes so far; with
    equal shares the patients are dealt in turn.

    Args:
        classes: patient -> class.
        partition: what the study file asks for.

    Raises:
        DataError: P206 when the patients are too few, or no draw of shares gives every site ``least`` of them.
    """
    sites, least = partition.sites, partition.least
    if len(classes) < sites * least:
        raise DataError(
            "P206",
            f"{len(classes)} patients can't be shared out among {sites} sites with at least {least} each.",
            f"Lower `sites` or `least` of `partition`: {sites} x {least} = {sites * least} patients are needed.",
        )
    random = np.random.default_rng(derive_seed(partition.seed, "partition"))
    names = [sorted(classes)[position] for position in random.permutation(len(classes))]
    names.sort(key=classes.__getitem__)  # stable: keeps the shuffled order within each class
    kinds, of_patients = np.unique([classes[name] for name in names], return_inverse=True)
    for _ in range(MOST_DRAWS):
        shares = draw_shares(partition, len(kinds), random)
        # No site gets a whole patient more than its shares: most draws need not be dealt to see that they won't do.
        if (np.bincount(of_patients) @ shares).min() + 1 <= least:
            continue
        dealt = _deal(shares[of_patients])
        if np.bincount(dealt, minlength=sites).min() >= least:
            return dict(zip(names, dealt.tolist(), strict=True))
    raise DataError(
        "P206",
        f"In {MOST_DRAWS} draws of {_kind(partition)} never had all {sites} sites at least {least} of the "
        f"{len(classes)} patients.",
        "Raise `alpha` of `partition`, or lower its `least` or `sites`.",
    )


def _in_turn(names: list[str], partition: Partition) -> dict[str, int]:
    """Patient -> number of the site, for patients without a label, in sorted order."""
    random = np.random.default_rng(derive_seed(partition.seed, "partition", "unlabelled"))
    return {names[place]: turn % partition.sites for turn, place in enumerate(random.permutation(len(names)).tolist())}


def draw_shares(partition: Partition, classes: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Each site's share of each class: float64 ``[classes, sites]``, rows add up to 1."""
    if partition.label_skew is not None:
        return random.dirichlet(np.full(partition.sites, partition.label_skew.alpha), size=classes)
    if partition.quantity_skew is not None:
        shares = random.dirichlet(np.full(partition.sites, partition.quantity_skew.alpha))
    else:
        shares = np.full(partition.sites, 1 / partition.sites)
    return np.tile(shares, (classes, 1))


def _deal(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Site of each patient ``[N]``, from the shares ``[N, sites]`` of the patients' classes."""
    given = np.zeros(shares.shape[1])
    dealt = np.empty(len(shares), dtype=np.int64)
    for position, expected in enumerate(shares.cumsum(axis=0)):
        dealt[position] = (expected - given).argmax()
        given[dealt[position]] += 1
    return dealt


def _kind(partition: Partition) -> str:
    if partition.label_skew is not None:
        return f"label skew (Dirichlet {partition.label_skew.alpha:g}, seed {partition.seed})"
    if partition.quantity_skew is not None:
        return f"quantity skew (Dirichlet {partition.quantity_skew.alpha:g}, seed {partition.seed})"
    return f"even shares (seed {partition.seed})"


def _sentence(partition: Partition, patients: int, sites: int, *, subjects_named: bool) -> str:
    people = f"{patients} patients" if subjects_named else f"{patients} cases"
    origin = f" of {sites} sites" if sites > 1 else ""
    return f"Sites are simulated: {people}{origin} were shared out among {partition.sites} with {_kind(partition)}."
