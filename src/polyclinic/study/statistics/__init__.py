"""From the long tables of a study to what it shows: means, intervals, comparisons within sites and over all cases."""

from polyclinic.study.statistics.summary import all_evidence, cost_of_unseen, summarise

__all__ = ["all_evidence", "cost_of_unseen", "summarise"]
