"""Words that the tables of a results folder are written with, for those who write them and those who read them."""

from __future__ import annotations

#: Added to the label of a method that is tested at a site it was trained without.
UNSEEN = " (unseen site)"
#: Added to the label of a method that was trained with corrupt sites among the others.
ATTACKED = " (attacked)"
#: Endings of labels by which results tell how a method was run.
KINDS_OF_RUN = (UNSEEN, ATTACKED)
#: Columns of ``search.csv`` before and after those of the parameters.
BEFORE, AFTER = ["method", "fold", "without", "trial"], ["score", "chosen", "note"]
#: Columns of ``harmonisation.csv``.
DESCRIBED = ["site", "feature", "stage", "count", "mean", "deviation", "low", "median", "high"]
STAGES = ("before", "after")
