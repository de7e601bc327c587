"""What a study found, as tables: summary and comparisons, calibration, groups of patients, survival."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from polyclinic.data.opening.cohort import Cohort
from polyclinic.study.declaration import Declaration
from polyclinic.study.flow import characteristics_table
from polyclinic.study.folder import Folder
from polyclinic.study.found import Found
from polyclinic.study.job import Fold
from polyclinic.study.statistics import all_evidence, all_trust, cost_of_unseen, summarise
from polyclinic.study.statistics.calibration import calibration_tables
from polyclinic.study.statistics.subgroups import subgroup_table
from polyclinic.study.statistics.survival import common_times, survival_tables
from polyclinic.study.statistics.within import within_tables


def write_findings(
    folder: Folder, declaration: Declaration, cohort: Cohort, found: Found, folds: Mapping[int, Fold],
    scored: Mapping[str, bool],
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Write all tables that follow from results and their evidence, but for the last ones.

    Args:
        folder: of the results.
        declaration: the study.
        cohort: what is known of its sites.
        found: what was found.
        folds: the sites' parts.
        scored: whether each site can be scored by itself.

    Returns:
        ``summary.csv``, and ``unseen.csv``: what it costs to be unseen.
    """
    baselines = declaration.baselines
    folder.note({"baselines": baselines})
    evidence = all_evidence(found.results, found.source, dict(scored))
    compared, at_sites = within_tables(evidence, baselines, declaration.metrics[0])
    folder.write("comparisons.csv", compared)
    folder.write("site_comparisons.csv", at_sites)
    calibration, decisions = calibration_tables(all_trust(found.results, found.source, dict(scored)))
    if len(calibration):
        folder.write("calibration.csv", calibration)
        folder.write("decisions.csv", decisions)
    summary = summarise(found.results, found.source, dict(scored), baselines=baselines, evidence=evidence)
    unseen = cost_of_unseen(found.results, found.source, dict(scored))
    _write_groups(folder, declaration, cohort, found, folds)
    return summary, unseen


def _write_groups(
    folder: Folder, declaration: Declaration, cohort: Cohort, found: Found, folds: Mapping[int, Fold]
) -> None:
    """Results by groups of patients, and how long groups of higher and lower risk live."""
    evaluation = declaration.evaluation
    if evaluation.subgroups:
        least, columns = evaluation.subgroup_patients, [one.column for one in evaluation.grouped_by]
        binary = declaration.target == "labels" and len(cohort.classes) == 2
        table = subgroup_table(found.source, found.results, columns=columns, binary=binary, least=least)
        folder.write("subgroups.csv", table)
        folder.write("characteristics.csv", characteristics_table(dict(folds), least))
    if declaration.target == "times":
        longest = max(facts.round_time or 0.0 for facts in cohort.facts.values())
        steps = common_times(longest, declaration.grid.edges)
        curves, tests = survival_tables(found.source, found.results, steps)
        folder.write("survival.csv", curves)
        folder.write("log_rank.csv", tests)
