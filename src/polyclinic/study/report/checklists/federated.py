"""A checklist for federated studies of medical images. There was none, so this one is ours.

Every item has its reason and, where there is one, the source that found it missing in published studies, in
``docs/federated-checklist.md``.
"""

from polyclinic.study.report.checklists import of_data, of_exchange, of_results, of_training
from polyclinic.study.report.checklists.items import Checklist, Item

_FEDERATION, _DATA, _LEARNING = "The federation", "Data at each site", "Learning"
_EXCHANGE, _EVALUATION, _AGAIN = "Exchange and privacy", "Evaluation", "Repeating it"

FEDERATED = Checklist(
    name="federated",
    title="Federated studies",
    about="What a reader of a federated study must know besides what TRIPOD+AI and CLAIM ask for. A list of "
    "Polyclinic's own, with reasons in its documentation (federated-checklist.md).",
    source="",
    items=(
        Item("F1", _FEDERATION, "Sites: how many, which, real or simulated", (of_data.sites,),
             "Say what each site is, and why these sites."),
        Item("F2", _FEDERATION, "Where the sites ran: one computer, or hospitals with a network between them",
             (of_data.where_run, of_training.machine)),
        Item("F3", _FEDERATION, "Joins, leaves, missed rounds", (of_exchange.presence, of_training.participation)),
        Item("F4", _FEDERATION, "Sites that failed or were left out", (of_exchange.failures,)),
        Item("F5", _FEDERATION, "Governance: who coordinates, agreements, what each site allowed",
             (of_exchange.governance,),
             "Name coordinator, agreements and ethical approval of every site."),
        Item("F6", _DATA, "Flow of cases at each site, with reasons", (of_data.flow, of_data.flow_by_site)),
        Item("F7", _DATA, "Classes at each site and in each part", (of_data.classes, of_data.by_part)),
        Item("F8", _DATA, "Characteristics of patients and scanners, by site and part",
             (of_data.characteristics, of_data.images),
             "Give age, sex and clinical characteristics of each site, by training, validation and test part."),
        Item("F9", _DATA, "Missing data at each site", (of_data.missing,),
             "Say why values are missing, where sites differ."),
        Item("F10", _DATA, "How labels and masks were made at each site, and how good they are", (of_data.annotation,),
             "Say who annotated at each site, by which protocol, and how well annotators agree."),
        Item("F11", _DATA, "The same patient at several sites", (of_data.overlap,)),
        Item("F12", _DATA, "Preparation: what is fitted where, and what is shared for it",
             (of_data.preparation, of_exchange.harmonised)),
        Item("F13", _LEARNING, "Methods: what is shared, how updates are put together and weighted",
             (of_training.methods, of_training.sharing)),
        Item("F14", _LEARNING, "Where training started, and versions of model and data",
             (of_training.start, of_training.versions)),
        Item("F15", _LEARNING, "Rounds, local work, optimiser", (of_training.training, of_training.converged)),
        Item("F16", _LEARNING, "Tuning: the same budget for every method, on which data", (of_training.tuning,)),
        Item("F17", _LEARNING, "How round and threshold were chosen, and from whose cases",
             (of_training.best_round, of_results.threshold)),
        Item("F18", _LEARNING, "Time of each method", (of_training.time,)),
        Item("F19", _EXCHANGE, "What was exchanged, how much, how often", (of_exchange.traffic,)),
        Item("F20", _EXCHANGE, "What that could reveal of patients", (of_exchange.reveals, of_exchange.evidence)),
        Item("F21", _EXCHANGE, "Protection: noise with its budget, secure sums, encryption", (of_exchange.protection,)),
        Item("F22", _EXCHANGE, "Attacks and corrupt sites that were tried", (of_exchange.attacks,)),
        Item("F23", _EXCHANGE, "What leaves at the end: models, predictions", (of_training.files, of_data.pseudonyms),
             "Say who may get the models, and on which terms."),
        Item("F24", _EVALUATION, "Baselines: each site alone, all data pooled, plain averaging",
             (of_training.baselines,)),
        Item("F25", _EVALUATION, "Split within sites, by patient, the same for all methods",
             (of_data.split, of_data.split_level)),
        Item("F26", _EVALUATION, "Sample size, and how wide intervals are to be expected", (of_results.sample_size,),
             "Say how many cases were planned."),
        Item("F27", _EVALUATION, "Results of every site, not of the mean alone", (of_results.by_site,)),
        Item("F28", _EVALUATION, "Comparison within sites, and how unlike sites are",
             (of_results.heterogeneity, of_results.statistics)),
        Item("F29", _EVALUATION, "Sites that took no part in training", (of_results.unseen,)),
        Item("F30", _EVALUATION, "Calibration at each site", (of_results.calibrated,)),
        Item("F31", _EVALUATION, "Groups of patients", (of_data.subgroups,), "Say which groups matter, and why."),
        Item("F32", _EVALUATION, "Cases that went wrong", (of_results.failures,),
             "Look at them site by site, and say what they share."),
        Item("F33", _EVALUATION, "Chance in training: seeds", (of_training.repetitions,)),
        Item("F34", _AGAIN, "Study file, software, machine",
             (of_exchange.governance, of_training.versions, of_training.machine),
             "Say where study file and code can be had."),
        Item("F35", _AGAIN, "What was planned before and what was changed", (),
             "Say what was registered, and what was decided after results were seen."),
    ),
)  # fmt: skip
