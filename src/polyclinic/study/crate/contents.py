"""Which files of a results folder go into a crate: a list of what is known, so that nothing else slips in."""

from __future__ import annotations

#: Media type of each ending.
FORMATS = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".safetensors": "application/octet-stream",
}
#: The study file: what the run was given.
STUDY = "study.yaml"
#: File -> what it holds. All of these may leave the house; see docs/results-files.md.
FILES = {
    STUDY: "The study file with every default filled in.",
    "provenance.json": "Versions, machine, seeds, times and the fingerprint of the data.",
    "results.csv": "Every metric of every model at every site.",
    "summary.csv": "Means, intervals and tests.",
    "comparisons.csv": "Each method with others, within sites.",
    "site_comparisons.csv": "Each site's own differences between methods.",
    "calibration.csv": "Calibration intercept and slope at each site.",
    "decisions.csv": "Decision curves at each site.",
    "score_counts.csv": "Counts of scores between thresholds, where sites keep their predictions.",
    "confusion.csv": "Counts of true and called classes, where sites keep their predictions.",
    "thresholds.csv": "Thresholds of decision, where sites keep their predictions.",
    "unseen.csv": "What each method loses at sites left out of training.",
    "subgroups.csv": "Results by groups of patients.",
    "survival.csv": "Curves of survival at each site and of risk groups, in steps of five cases or more.",
    "log_rank.csv": "Log-rank tests of higher against lower predicted risk, stratified by site.",
    "rounds.csv": "What happened in each round at each site.",
    "payloads.csv": "What was sent besides the model in a round: names, shapes, times and bytes.",
    "exchanged.csv": "What could be revealed by what was sent besides the model.",
    "sites.csv": "Cases found, used and rejected at each site.",
    "flow.csv": "Where each site's cases went: rejected, training, validation, test.",
    "characteristics.csv": "How many of each group of patients are in each part.",
    "search.csv": "Every configuration that was tried, and its validation score.",
    "privacy.csv": "What trainings with noise cost the privacy of patients or sites.",
    "backdoor.csv": "Whether the mark of a backdoor was obeyed.",
    "memorisation.csv": "Whether cases that a method made are copies of training cases.",
    "harmonisation.csv": "Features at each site before and after harmonisation.",
    "notes.json": "Notes for the reader.",
}
#: Left out unless it is asked for.
PREDICTIONS = "predictions.csv"
ABOUT_PREDICTIONS = "A row for each test case, with pseudonyms: data about single patients."
ATTENTION = "attention.csv"
ABOUT_ATTENTION = "How much each instance of each tested bag counted, with pseudonyms: data about single patients."
REPORT = "report.html"
ABOUT_REPORT = "The report of the study; opens in a browser without a network."
MODELS = "models/"
#: Of the model that a study ended with.
FINAL_MODEL = {
    "model/model.yaml": "What the final model is, and what it needs of cases.",
    "model/weights.safetensors": "Weights of the final model.",
    "model/preparation.safetensors": "How cases are prepared for the final model.",
    "model/test-vectors.safetensors": "Synthetic inputs of the final model with its outputs.",
    "model/card.html": "Card of the final model.",
    "model/card.md": "Card of the final model, as text.",
    "model/study.yaml": "The study that made the final model.",
    "model/provenance.json": "How the final model was made.",
}
ABOUT_MODELS = "The trained models: tensors in safetensors files, without code."
ABOUT_CHECKLIST = "A checklist for reporting, filled as far as the run goes."
