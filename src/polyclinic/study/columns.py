"""Words that the tables of a results folder are written with, for those who write them and those who read them."""

from __future__ import annotations

from polyclinic.study.kinds import RUN

#: Columns of ``search.csv`` before and after those of the parameters.
BEFORE, AFTER = ["method", RUN, "fold", "without", "trial"], ["score", "chosen", "note"]
#: Columns of ``unseen.csv``.
UNSEEN_COLUMNS = ["method", "metric", "over", "seen", "unseen", "difference", "low", "high", "p", "p_adjusted"]
#: Columns of ``comparisons.csv`` and of ``site_comparisons.csv``.
COMPARED = [
    "method", RUN, "metric", "versus", "sites", "difference", "low", "high", "p", "p_adjusted", "between", "unlike",
    "expected_low", "expected_high",
]  # fmt: skip
COMPARED_SITES = ["method", RUN, "metric", "versus", "site", "difference", "error", "weight"]
#: Columns of ``calibration.csv`` and of ``decisions.csv``.
CALIBRATION = [
    "method", RUN, "site", "cases", "positive", "intercept", "intercept_low", "intercept_high", "slope", "slope_low",
    "slope_high", "intercept_expected_low", "intercept_expected_high", "slope_expected_low", "slope_expected_high",
]  # fmt: skip
DECISIONS = ["method", RUN, "site", "threshold", "net_benefit", "act_on_all"]
#: Columns of ``score_counts.csv`` and of ``confusion.csv``.
SCORE_COUNTS = ["method", RUN, "seed", "fold", "trained_on", "label", "score", "cases"]
CONFUSION = ["method", RUN, "seed", "fold", "trained_on", "label", "called", "cases"]
#: Columns of ``thresholds.csv``.
THRESHOLDS = ["method", RUN, "seed", "fold", "trained_on", "threshold"]
#: In it, of which label a threshold is, where there are several.
FINDING = "finding"
#: Columns of ``survival.csv`` and of ``log_rank.csv``.
SURVIVAL = ["method", RUN, "site", "group", "time", "at_risk", "events", "censored", "survival", "low", "high"]
#: Groups in it: all cases of a site (or those of all sites), and those of higher and lower predicted risk.
ALL, HIGHER, LOWER = "all", "higher", "lower"
LOG_RANK = [
    "method", RUN, "sites", "cases", "higher", "observed", "expected", "variance", "statistic", "p",
]  # fmt: skip
#: Columns of ``privacy.csv``.
NOISY_PARTS, TRUST = "part", "trust"
PRIVACY = [
    "method", RUN, "seed", "fold", "site", NOISY_PARTS, TRUST, "unit", "units", "steps", "mechanism", "delta",
    "epsilon", "accountant", "lifetime_epsilon", "without_noise", "source",
]  # fmt: skip
#: Columns of ``exchanged.csv``.
EXCHANGED = ["method", "payload", "reveals"]
#: In them the model itself, of methods that share some of its modules.
MODEL = "model"
#: Columns of ``payloads.csv``; the first of them is also one of ``rounds.csv``.
PAYLOADS = "payloads"
PAYLOAD_COLUMNS = [PAYLOADS, "way", "payload", "shape", "times", "bytes"]
#: Columns of ``harmonisation.csv``.
DESCRIBED = ["site", "feature", "stage", "count", "mean", "deviation", "low", "median", "high"]
STAGES = ("before", "after")
#: Columns of ``memorisation.csv``.
MEMORISATION = [
    "method", RUN, "seed", "fold", "site", "masks", "made", "nearer", "held_out", "held_out_nearer", "expected",
    "chance", "nearness", "least_nearness", "held_out_nearness", "held_out_least_nearness", "passed",
]  # fmt: skip
#: File with pictures of what methods made, by method.
MADE = "made.safetensors"
#: Columns of ``flow.csv``.
FLOW = ["site", "stage", "fold", "what", "cases", "patients"]
#: Columns of ``subgroups.csv``.
SUBGROUPS = [
    "method", RUN, "subgroup", "group", "cases", "patients", "metric", "sites", "value", "low", "high", "gap_sites",
    "gap", "gap_low", "gap_high", "note",
]  # fmt: skip
#: Columns of ``characteristics.csv``.
CHARACTERISTICS = ["site", "subgroup", "group", "fold", "stage", "cases", "patients", "note"]
#: Column of ``rounds.csv``: whether the model of this round is the one that is tested.
CHOSEN = "chosen"
