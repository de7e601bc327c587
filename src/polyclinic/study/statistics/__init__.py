"""From the long tables of a study to what it shows: means, intervals, comparisons within sites and over all cases."""

from polyclinic.study.statistics.summary import all_evidence, all_trust, cost_of_unseen, summarise

__all__ = ["all_evidence", "all_trust", "cost_of_unseen", "summarise"]
