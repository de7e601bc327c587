"""CLAIM 2024: the checklist for artificial intelligence in medical imaging.

Numbers are those of the original; what an item asks is said here in short words of our own.
"""

from polyclinic.study.report.checklists import of_data, of_exchange, of_results, of_training
from polyclinic.study.report.checklists.items import Checklist, Item

_TITLE, _INTRODUCTION, _DESIGN, _DATA = "Title and abstract", "Introduction", "Study design", "Data"
_REFERENCE, _PARTITIONS, _TESTING = "Reference standard", "Data partitions", "Testing data"
_MODEL, _TRAINING, _EVALUATION = "Model", "Training", "Evaluation"
_RESULTS, _DISCUSSION, _OTHER = "Results", "Discussion", "Other information"

CLAIM = Checklist(
    name="claim",
    title="CLAIM 2024",
    about="For artificial intelligence in medical imaging. Items are told in short words of our own: use the original "
    "list for a submission.",
    source="Tejani AS, Klontzas ME, Gatti AA, et al. Checklist for Artificial Intelligence in Medical Imaging (CLAIM): "
    "2024 update. Radiology: Artificial Intelligence 2024;6(4):e240300",
    items=(
        Item("1", _TITLE, "A study of artificial intelligence, and of which kind", (of_data.task, of_training.methods),
             "Say so in the title: federated learning, and the kind of network."),
        Item("2", _TITLE, "Abstract: design, methods, results, conclusions", (of_results.performance,),
             "Write the abstract."),
        Item("3", _INTRODUCTION, "Background, intended use and role", (), "Describe background and intended use."),
        Item("4", _INTRODUCTION, "Aims, objectives, hypotheses", (), "State them."),
        Item("5", _DESIGN, "Prospective or retrospective", (),
             "Say which. A study that reads tables of earlier examinations is retrospective."),
        Item("6", _DESIGN, "Goal of the study", (), "State it: feasibility, development, comparison of methods."),
        Item("7", _DATA, "Sources of data", (of_data.sites, of_data.where_run),
             "Name the source behind each site, with dates."),
        Item("8", _DATA, "Inclusion and exclusion", (of_data.selection,), "Give the clinical criteria."),
        Item("9", _DATA, "Preprocessing", (of_data.preparation,)),
        Item("10", _DATA, "Selection of subsets", (of_data.selection,),
             "Say why, if only parts of images or cases were used."),
        Item("11", _DATA, "De-identification", (of_data.pseudonyms,),
             "Say how data were de-identified at the sites before."),
        Item("12", _DATA, "Missing data", (of_data.missing,)),
        Item("13", _DATA, "Image acquisition", (of_data.images,), "Describe protocols and scanners of each site."),
        Item("14", _REFERENCE, "How the reference standard was obtained", (of_data.task,), "Define it, for each site."),
        Item("15", _REFERENCE, "Why this reference standard", (), "Give the reasons."),
        Item("16", _REFERENCE, "Source of annotations", (of_data.annotation,),
             "Say who annotated, with which experience."),
        Item("17", _REFERENCE, "Annotation of the test set", (),
             "Say whether test cases were annotated in another way."),
        Item("18", _REFERENCE, "Variability within and between annotators", (),
             "Give it, or say that it was not measured."),
        Item("19", _PARTITIONS, "How cases came into partitions", (of_data.split,)),
        Item("20", _PARTITIONS, "Level at which partitions are disjoint", (of_data.split_level,)),
        Item("21", _TESTING, "Intended sample size", (of_results.sample_size,),
             "Say which size was intended, and why."),
        Item("22", _MODEL, "The model in detail", (of_training.model, of_training.sharing)),
        Item("23", _MODEL, "Software", (of_training.versions, of_training.plugins)),
        Item("24", _MODEL, "Initial parameters", (of_training.start,)),
        Item("25", _TRAINING, "Training in detail",
             (of_training.training, of_training.participation, of_training.tuning)),
        Item("26", _TRAINING, "How the final model was chosen", (of_training.best_round,)),
        Item("27", _TRAINING, "Ensembling", (of_training.ensemble,)),
        Item("28", _EVALUATION, "Metrics", (of_results.metrics,)),
        Item("29", _EVALUATION, "Significance and uncertainty", (of_results.statistics, of_training.repetitions)),
        Item("30", _EVALUATION, "Robustness or sensitivity analysis", (of_results.robustness,)),
        Item("31", _EVALUATION, "Explainability", (of_results.explained,)),
        Item("32", _EVALUATION, "Evaluation on internal data", (of_results.internal,)),
        Item("33", _EVALUATION, "Test on external data", (of_results.external,)),
        Item("34", _EVALUATION, "Registration of a clinical trial", (), "Give the number, or say that it is no trial."),
        Item("35", _RESULTS, "Numbers included and excluded", (of_data.flow,)),
        Item("36", _RESULTS, "Characteristics of cases in each partition",
             (of_data.by_part, of_data.characteristics, of_data.images),
             "Add age, sex and clinical characteristics by site and partition."),
        Item("37", _RESULTS, "Performance with uncertainty", (of_results.performance, of_results.by_site)),
        Item("38", _RESULTS, "Diagnostic performance and its precision", (of_results.precision, of_results.calibrated)),
        Item("39", _RESULTS, "Failure analysis", (of_results.failures,),
             "Look at cases that were wrong, and say what they share."),
        Item("40", _DISCUSSION, "Limitations", (of_results.limits,), "Discuss limitations."),
        Item("41", _DISCUSSION, "Implications for practice", (), "Discuss them."),
        Item("42", _OTHER, "Protocol, additional details", (of_exchange.governance,),
             "Say where the protocol can be read."),
        Item("43", _OTHER, "Availability of software, model and data", (of_training.files, of_training.versions),
             "Say where software, model and data can be had, and under which terms."),
        Item("44", _OTHER, "Funding and role of funders", (), "Name them."),
    ),
)  # fmt: skip
