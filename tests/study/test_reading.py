"""Study files: what a person can get wrong, and where the message points."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from helpers import write_table_study
from polyclinic.errors import StudyError
from polyclinic.options import EntryError
from polyclinic.study.reading import expand_variables, located, read_yaml
from polyclinic.study.study import Study

BASE = """\
study: Test
data:
  table: cases.csv
  site: site
  label: label
  features: "x*"
task: classification
model: {mlp: {hidden: [4]}}
training:
  rounds: 2
  batch_size: 8
  optimizer: {sgd: {lr: 0.1}}
evaluation:
  folds: 2
methods: [fedavg]
"""


@pytest.fixture
def study_file(tmp_path):
    """Write a study file: BASE with a text replaced."""

    def write(old="", new="", text=BASE):
        assert old in text
        path = tmp_path / "study.yaml"
        path.write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
        return path

    return write


def sentence(path):
    with pytest.raises(StudyError) as caught:
        Study.read(path)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_the_base_is_fine(study_file):
    study = Study.read(study_file())
    assert study.name == "study.yaml"
    assert [method.label for method in study.declaration.study_methods] == ["fedavg"]


# YAML -----------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "nowhere.yaml"
    assert sentence(path) == f"P101 There is no file {path}. Give the path of a study file (YAML)."


def test_a_folder(tmp_path):
    assert sentence(tmp_path) == (
        f"P101 {tmp_path} can't be read: Is a directory. Give the path of a study file (YAML)."
    )


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes(b"study: \xff\xfe")
    assert sentence(path) == f"P101 {path} can't be read: it is not UTF-8 text. Give the path of a study file (YAML)."


@pytest.mark.parametrize(("text", "got"), [("", "NoneType"), ("- a\n- b\n", "list"), ("fedavg\n", "str")])
def test_yaml_without_entries(study_file, text, got):
    assert sentence(study_file(text=text)) == (
        f"P101 study.yaml: got {got}, expected entries such as `data:`. See docs/study-file.md for an example."
    )


CHECK = "Check indentation, colons, and quotes around texts with special characters."


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  rounds: 2\n",
            "\t rounds: 2\n",
            "line 10: not valid YAML: found character '\\t' that cannot start any token.",
        ),
        ("folds: 2\n", "folds: [2\n", "line 15: not valid YAML: expected ',' or ']', but got ':'."),
        ("study: Test", "study: Test: again", "line 1: not valid YAML: mapping values are not allowed here."),
        ("batch_size: 8", "rounds: 3", "line 11: not valid YAML: the key 'rounds' is given twice."),
        ("methods:", "data: {}\nmethods:", "line 15: not valid YAML: the key 'data' is given twice."),
        ("{lr: 0.1}", "{lr: 0.1, lr: 0.2}", "line 12: not valid YAML: the key 'lr' is given twice."),
    ],
)
def test_what_is_not_valid_yaml(study_file, old, new, expected):
    assert sentence(study_file(old, new)) == f"P101 study.yaml, {expected} {CHECK}"


def test_yaml_can_not_make_objects(study_file):
    assert "could not determine a constructor for the tag" in sentence(
        study_file("study: Test", "study: !!python/object/apply:os.getcwd []")
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("2.e-1", 0.2), ("-3e+2", -300.0), ("0.5", 0.5), ("1.5e3", 1500.0),
        ("e3", "e3"), ("1e", "1e"), ("'1e-3'", "1e-3"), ("10", 10), ("1e-3x", "1e-3x"),
    ],
)  # fmt: skip
def test_numbers_with_an_exponent_are_numbers(study_file, text, value):
    content, _ = read_yaml(study_file(text=f"a: {text}\n"))
    assert content == {"a": value}
    assert type(content["a"]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("numbers") / "a.yaml"
    path.write_text(f"a: {value!r}\n")
    assert read_yaml(path)[0] == {"a": value}


# Variables ------------------------------------------------------------------------------------------------------------


def test_variables_of_the_environment_are_filled_in(study_file, monkeypatch):
    monkeypatch.setenv("SCANS", "/somewhere")
    study = Study.read(study_file("cases.csv", "${SCANS}/a_${SCANS}.csv"))
    assert study.declaration.data.table == "/somewhere/a_/somewhere.csv"


def test_a_variable_that_is_not_set(study_file, monkeypatch):
    monkeypatch.delenv("SCANS", raising=False)
    assert sentence(study_file("cases.csv", "${SCANS}/cases.csv")) == (
        "P105 study.yaml, line 3, data.table: The environment variable SCANS is not set. "
        "Set it, for example: export SCANS=/folder/with/the/data"
    )


def test_variables_are_found_in_lists_and_tables(monkeypatch):
    monkeypatch.setenv("X", "1")
    content = {"a": ["${X}", {"b": "c${X}"}], "d": 5, "e": "$X {X}"}
    assert expand_variables(content) == {"a": ["1", {"b": "c1"}], "d": 5, "e": "$X {X}"}
    with pytest.raises(EntryError) as caught:
        expand_variables({"a": ["", {"b": "${NO_SUCH_VARIABLE}"}]})
    assert caught.value.place == ("a", 1, "b")


# Places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ((), "s.yaml"),
        (("data", "table"), "s.yaml, line 3, data.table"),
        (("data", "absent"), "s.yaml, line 2, data.absent"),
        (("absent",), "s.yaml, absent"),
        (("methods", 0), "s.yaml, line 15, methods[1]"),
        (("methods", 7), "s.yaml, line 15, methods[8]"),
        (("training", "optimizer", "sgd", "lr"), "s.yaml, line 12, training.optimizer.sgd.lr"),
        (("model", "mlp", "hidden", 0), "s.yaml, line 8, model.mlp.hidden[1]"),
    ],
)
def test_the_line_of_the_deepest_entry_that_is_there(place, where):
    error = located(EntryError("P102", "no.", "Hint.", place=place), "s.yaml", BASE)
    assert error.message == f"{where}: no."
    assert error.hint == "Hint."


def test_the_line_where_entries_stand_one_below_the_other():
    text = "methods:\n  - fedavg\n\n  # a comment\n  - fedprox:\n      mu: 1\n      label: x\n"
    assert yaml.safe_load(text)["methods"][1] == {"fedprox": {"mu": 1, "label": "x"}}
    error = located(EntryError("P102", "no.", place=("methods", 1, "fedprox", "label")), "s.yaml", text)
    assert error.message == "s.yaml, line 7, methods[2].fedprox.label: no."


def test_without_a_file_the_entry_is_named():
    content = {**yaml.safe_load(BASE), "methods": ["fedavgg"]}
    with pytest.raises(StudyError) as caught:
        Study.of(content)
    assert str(caught.value) == "P103 study, methods[1]: 'fedavgg' is no method. Did you mean 'fedavg'?"


# Entries --------------------------------------------------------------------------------------------------------------

IMAGE = "image: path\n  size: [32, 32]"
BAD = [
    # A wrong name, at each level.
    ("study:", "studdy:", "P103", 1, "studdy", "A study file has no entry 'studdy'. Did you mean 'study'?"),
    ("table:", "tabel:", "P103", 3, "data.tabel", "`data` has no entry 'tabel'. Did you mean 'table'?"),
    ("rounds:", "round:", "P103", 10, "training.round", "`training` has no entry 'round'. Did you mean 'rounds'?"),
    ("folds:", "fold:", "P103", 14, "evaluation.fold", "`evaluation` has no entry 'fold'. Did you mean 'folds'?"),
    ("methods: [fedavg]", "engine: {thread: 1}", "P103", 15, "engine.thread",
     "`engine` has no entry 'thread'. Did you mean 'threads'?"),
    ("methods: [fedavg]", "report: {overlay: false}", "P103", 15, "report.overlay",
     "`report` has no entry 'overlay'. Did you mean 'overlays'?"),
    ("{hidden: [4]}", "{hiden: [4]}", "P103", 8, "model.mlp.hiden",
     "mlp has no option 'hiden'. Did you mean 'hidden'?"),
    ("lr:", "lrr:", "P103", 12, "training.optimizer.sgd.lrr", "sgd has no option 'lrr'. Did you mean 'lr'?"),
    ("[fedavg]", "[{fedprox: {muu: 1}}]", "P103", 15, "methods[1].fedprox.muu",
     "fedprox has no option 'muu'. Did you mean 'mu'?"),
    ("[fedavg]", "[{fedavg: {mu: 1}}]", "P103", 15, "methods[1].fedavg.mu",
     "fedavg has no option 'mu'. fedavg has no options."),
    ("[fedavg]", "[{fedavg: {training: {round: 3}}}]", "P103", 15, "methods[1].fedavg.training.round",
     "`training` has no entry 'round'. Did you mean 'rounds'?"),
    ("[fedavg]", "[{fedavg: {server: {fedadam: {rate: 1}}}}]", "P103", 15, "methods[1].fedavg.server.fedadam.rate",
     "fedadam has no option 'rate'. Valid: lr, beta1, beta2, tau."),
    # A name of a part that there is not.
    ("mlp", "mpl", "P103", 8, "model", "'mpl' is no model. Did you mean 'mlp'?"),
    ("sgd", "sgdd", "P103", 12, "training.optimizer", "'sgdd' is no optimizer. Did you mean 'sgd'?"),
    ("sgd", "lbfgs", "P103", 12, "training.optimizer", "'lbfgs' is no optimizer. Valid: adadelta, adafactor, "
     "adagrad, adam, adamax, adamw, asgd, nadam, radam, rmsprop, rprop, sgd."),
    ("[fedavg]", "[fedavgg]", "P103", 15, "methods[1]", "'fedavgg' is no method. Did you mean 'fedavg'?"),
    ("[fedavg]", "[single, {fedproxy: {mu: 1}}]", "P103", 15, "methods[2]",
     "'fedproxy' is no method. Did you mean 'fedprox'?"),
    ("[fedavg]", "[{fedavg: {server: fedadm}}]", "P103", 15, "methods[1].fedavg.server",
     "'fedadm' is no server rule. Did you mean 'fedadam'?"),
    ("[fedavg]", "[{fedavg: {local: [proximl]}}]", "P103", 15, "methods[1].fedavg.local[1]",
     "'proximl' is no local rule. Did you mean 'proximal'?"),
    ("[fedavg]", "[{fedavg: {share: heads}}]", "P103", 15, "methods[1].fedavg.share",
     "'heads' can't be shared. Did you mean 'head'?"),
    ("[fedavg]", "[{fedavg: {share: [head]}}]", "P103", 15, "methods[1].fedavg.share",
     "['head'] can't be shared. Did you mean 'head'?"),
    ("batch_size: 8", "loss: focall", "P103", 11, "training.loss",
     "'focall' is no loss of classification. Did you mean 'focal'?"),
    ("batch_size: 8", "schedule: exponental", "P103", 11, "training.schedule",
     "'exponental' is no learning-rate schedule. Did you mean 'exponential'?"),
    ("batch_size: 8", "schedule: {step: {step_size: 10, gama: 3}}", "P103", 11, "training.schedule.step.gama",
     "step has no option 'gama'. Did you mean 'gamma'?"),
    ("folds: 2", "metrics: [auc, dice]", "P103", 14, "evaluation.metrics[2]",
     "'dice' is no metric of classification. Valid: auc, acc, bac, sen, spe, f1, ap, brier, ece."),
    ("folds: 2", "unseen_sites: [fedprox]", "P103", 14, "evaluation.unseen_sites[1]",
     "'fedprox' is not among the study's methods. Valid: fedavg."),
    ('features: "x*"', IMAGE + "\n  augmentation: [RandFlp]", "P103", 8, "data.augmentation",
     "'RandFlp' is no image augmentation. Did you mean 'RandFlip'?"),
    # A wrong type or value.
    ("{hidden: [4]}", "{hidden: 4}", "P102", 8, "model.mlp.hidden", "got 4; expected a list."),
    ("{hidden: [4]}", "{hidden: [4, -1]}", "P102", 8, "model.mlp.hidden[2]", "got -1; expected a number above 0."),
    ("{hidden: [4]}", "{norm: bach}", "P102", 8, "model.mlp.norm", "got 'bach'; expected 'none', 'batch' or 'layer'."),
    ("batch_size: 8", "batch_size: many", "P102", 11, "training.batch_size",
     "got 'many'; expected a whole number."),
    ("batch_size: 8", "batch_size: 0", "P102", 11, "training.batch_size", "got 0; expected a number above 0."),
    ("batch_size: 8", "quorum: 0", "P102", 11, "training.quorum", "got 0; expected a number above 0."),
    ("batch_size: 8", "weights: unifrom", "P102", 11, "training.weights",
     "got 'unifrom'; expected 'cases' or 'uniform'."),
    ("batch_size: 8", "class_weights: balance", "P102", 11, "training.class_weights",
     "got 'balance'; expected 'none' or 'balanced', or a list."),
    ("batch_size: 8", "class_weights: [1, -2]", "P102", 11, "training.class_weights[2]",
     "got -2; expected a number above 0."),
    ("batch_size: 8", "schedule: step", "P102", 11, "training.schedule.step.step_size",
     "the entry 'step_size' is missing."),
    ("batch_size: 8", "schedule: {step: {step_size: 0}}", "P102", 11, "training.schedule.step.step_size",
     "got 0; expected a number of at least 1."),
    ("batch_size: 8", "schedule: {multi_step: {milestones: [1, late]}}", "P102", 11,
     "training.schedule.multi_step.milestones[2]", "got 'late'; expected a whole number."),
    ("batch_size: 8", "schedule: {one_cycle: {max_lr: 1, total_steps: 1}}", "P102", 11, "training.schedule.onecycle",
     "onecycle can't be used with {max_lr: 1.0, total_steps: 1}: Tried to step 2 times. The specified number of total "
     "steps is 1. See torch.optim.lr_scheduler.OneCycleLR for what it takes."),
    ("lr: 0.1", "lr: -0.1", "P102", 12, "training.optimizer.sgd.lr", "got -0.1; expected a number of at least 0."),
    ("lr: 0.1", "lr: fast", "P102", 12, "training.optimizer.sgd.lr", "got 'fast'; expected a number."),
    ("lr: 0.1", "lr:", "P102", 12, "training.optimizer.sgd.lr", "got no value; expected a number."),
    ("lr: 0.1", "nesterov: 3", "P102", 12, "training.optimizer.sgd.nesterov", "got 3; expected true or false."),
    ("lr: 0.1", "nesterov: true", "P102", 12, "training.optimizer.sgd",
     "sgd can't be used with {nesterov: True}: Nesterov momentum requires a momentum and zero dampening. "
     "See torch.optim.SGD for what it takes."),
    ("sgd: {lr: 0.1}", "adam: {betas: [0.9]}", "P102", 12, "training.optimizer.adam.betas",
     "got [0.9]; expected one more value."),
    ("{sgd: {lr: 0.1}}", "5", "P102", 12, "training.optimizer",
     "got 5; expected a text, or entries {name: value}."),
    ("{sgd: {lr: 0.1}}", "{sgd: 0.1}", "P102", 12, "training.optimizer",
     "got {'sgd': 0.1}; expected the name of an optimizer, or {name: {option: value}}."),
    ("folds: 2", "folds: 1", "P102", 14, "evaluation.folds", "got 1; expected a number of at least 2."),
    ("folds: 2", "metrics: auc", "P102", 14, "evaluation.metrics", "got 'auc'; expected a list."),
    ("folds: 2", "threshold: 2", "P102", 14, "evaluation.threshold",
     "got 2; expected 'validation', or a number below 1."),
    ("folds: 2", "validation: 1", "P102", 14, "evaluation.validation", "got 1; expected a number below 1."),
    ("folds: 2", "best_round: first", "P102", 14, "evaluation.best_round",
     "got 'first'; expected 'loss', 'metric' or 'last'."),
    ("task: classification", "task: clasification", "P102", 7, "task",
     "got 'clasification'; expected 'classification', 'multi_label', 'reconstruction', 'regression', 'segmentation' or "
     "'survival'."),
    ("[fedavg]", "fedavg", "P102", 15, "methods", "got 'fedavg'; expected a list."),
    ("[fedavg]", "[3]", "P102", 15, "methods[1]", "got 3; expected a text, or entries {name: value}."),
    ("[fedavg]", "[{fedavg: 3}]", "P102", 15, "methods[1]",
     "got {'fedavg': 3}; expected the name of a method, or {name: {option: value}}."),
    ("[fedavg]", "[{fedprox: {mu: -1}}]", "P102", 15, "methods[1].fedprox.mu",
     "got -1; expected a number of at least 0."),
    ("[fedavg]", "[{fedprox: {mu: .inf}}]", "P102", 15, "methods[1].fedprox.mu", "got inf; expected a finite number."),
    ("[fedavg]", "[{fedavgm: {momentum: 1}}]", "P102", 15, "methods[1].fedavgm.momentum",
     "got 1; expected a number below 1."),
    ("[fedavg]", "[{fedavg: {local: proximal}}]", "P102", 15, "methods[1].fedavg.local",
     "got 'proximal'; expected a list of parts."),
    ("[fedavg]", "[{fedavg: {training: {rounds: 0}}}]", "P102", 15, "methods[1].fedavg.training.rounds",
     "got 0; expected a number above 0."),
    ("[fedavg]", "[{fedavg: {training: 3}}]", "P102", 15, "methods[1].fedavg.training",
     "got 3; expected entries of `training`."),
    ("[fedavg]", "[{fedavg: {label: 'a<b>'}}]", "P102", 15, "methods[1].fedavg.label",
     "got the label 'a<b>'; expected up to 80 letters, digits, blanks or . , = ( ) [ ] + - : / * ? !."),
    ("methods: [fedavg]", "seeds: [a]", "P102", 15, "seeds[1]",
     "got 'a'; expected a whole number."),
    ("methods: [fedavg]", "engine: {mode: parallel}", "P102", 15, "engine.mode",
     "got 'parallel'; expected 'auto', 'sequential', 'stacked' or 'processes'."),
    ("methods: [fedavg]", "engine: fast", "P102", 15, "engine", "got 'fast'; expected entries {name: value}."),
    ("table: cases.csv", "table: cases.csv\n  scaling: global", "P102", 4, "data.scaling",
     "got 'global'; expected 'per_site', 'federated' or 'none'."),
    ('features: "x*"', "image: path\n  size: [32]", "P102", 7, "data.size", "got [32]; expected one more value."),
    ('features: "x*"', "image: path\n  size: [4, 4]", "P102", 7, "data.size",
     "got [4, 4]; expected at least 8 pixels each way."),
    ('features: "x*"', 'features: "x*"\n  subject_pattern: "("', "P102", 7, "data.subject_pattern",
     "not a regular expression: missing ), unterminated subpattern at position 0."),
    # An entry that is missing, too many, or twice.
    ("model: {mlp: {hidden: [4]}}\n", "", "P102", None, "model", "the entry 'model' is missing."),
    ("model: {mlp: {hidden: [4]}}\n", "model:\n", "P102", 8, "model", "the entry 'model' is missing."),
    ("  label: label\n", "", "P102", 2, "data.label",
     "the entry 'label' is missing: the column with the class to predict."),
    ("  site: site\n", "", "P102", 2, "data.site",
     "the entry 'site' is missing: the column of `table` that names the site. "
     "Without such a column, `partition` can make simulated sites."),
    ("  site: site\n", "  site: site\n  partition: {sites: 1, even: {}}\n", "P102", 5, "data.partition.sites",
     "got 1; expected a number of at least 2."),
    ("  site: site\n", "  partition:\n    label_skew: {alpha: 1}\n", "P102", 4, "data.partition.sites",
     "the entry 'sites' is missing."),
    ("  site: site\n", "  partition:\n    sites: 2\n    label_skew: {alpha: 0}\n", "P102", 6,
     "data.partition.label_skew.alpha", "got 0; expected a number above 0."),
    ("  site: site\n", "  partition:\n    sites: 2\n    label_skew:\n", "P102", 6,
     "data.partition.label_skew.alpha", "the entry 'alpha' is missing."),
    ("  site: site\n", "  partition:\n    sites: 2\n    quantity_skew: {alfa: 1}\n", "P103", 6,
     "data.partition.quantity_skew.alfa", "`quantity_skew` has no entry 'alfa'. Did you mean 'alpha'?"),
    ("  site: site\n", "  partition:\n    sites: 2\n    label_scew: {alpha: 1}\n", "P103", 6,
     "data.partition.label_scew", "`partition` has no entry 'label_scew'. Did you mean 'label_skew'?"),
    ("  site: site\n", "  partition: {sites: 2}\n", "P102", 4, "data.partition",
     "it is not said how sites differ; give one of label_skew, quantity_skew, even."),
    ("  site: site\n", "  partition: {sites: 2, even: {}, label_skew: {alpha: 1}}\n", "P102", 4, "data.partition",
     "label_skew and even exclude each other; give one of label_skew, quantity_skew, even."),
    ("  table: cases.csv\n", "", "P102", 2, "data.table",
     "give either `table` (one file with a `site` column) or `tables` (one file a site)."),
    ("  table: cases.csv\n", "  table: cases.csv\n  tables: {a: u.csv}\n", "P102", 3, "data.table",
     "give either `table` (one file with a `site` column) or `tables` (one file a site)."),
    ('  features: "x*"\n', "", "P102", 2, "data.features",
     "give `features` (columns of the table) or `image` (column with image files)."),
    ('features: "x*"', "image: path", "P102", 2, "data.size",
     "the entry 'size' is missing: [height, width] in pixels to which images are brought. "
     "For NIfTI and DICOM give `preprocessing` instead."),
    ("folds: 2", "folds: 2\n  split: part", "P102", 15, "evaluation.split",
     "`folds` and `split` exclude each other; give one."),
    ("batch_size: 8", "local_epochs: 1\n  local_steps: 4", "P102", 12, "training.local_steps",
     "`local_epochs` and `local_steps` exclude each other; give one."),
    ("methods: [fedavg]", "seed: 1\nseeds: [1]", "P102", 15, "seed",
     "`seed` and `seeds` exclude each other; give one."),
    ("methods: [fedavg]", "seeds: []", "P102", 15, "seeds", "`seeds` is empty; give at least one."),
    ("[fedavg]", "[]", "P102", 15, "methods", "`methods` is empty; give at least one."),
    ("[fedavg]", "[fedavg, single, fedavg]", "P102", 15, "methods[3]",
     "The method fedavg is there twice. Give one of them another `label:`."),
    ("[fedavg]", "[fedavg, {fedprox: {label: fedavg}}]", "P102", 15, "methods[2]",
     "The method fedavg is there twice. Give one of them another `label:`."),
    # Parts that can't be combined.
    ("[fedavg]", "[{fedavg: {server: [fedadam, fedadam]}}]", "P104", 15, "methods[1].fedavg.server",
     "The part fedadam is there twice. Name it once."),
    ("[fedavg]", "[{fedavg: {server: [fedadam, normalised]}}]", "P104", 15, "methods[1].fedavg.server",
     "fedadam comes before normalised, so it would be given updates that normalised has changed and not yet changed "
     "back. Name normalised before fedadam."),
    ("[fedavg]", "[{fedavg: {local: [dynamic_regularisation], server: {feddyn: {alpha: 1}}}}]", "P103", 15,
     "methods[1].fedavg.server", "'feddyn' is no server rule: it is a method. Its parts are "
     "`local: [dynamic_regularisation]`."),
    ("[fedavg]", "[{fedavg: {local: [proximal, cyclic]}}]", "P103", 15, "methods[1].fedavg.local[2]",
     "'cyclic' is no local rule: it is a method. Name a part, or use the method by itself."),
    ("[fedavg]", "[{scaffold: {topology: cyclic}}]", "P104", 15, "methods[1].scaffold.topology",
     "control_variates needs a server between the sites; in the topology cyclic the model goes from site to site. "
     "Use `topology: star`."),
    ("[fedavg]", "[{fedadam: {topology: incremental}}]", "P104", 15, "methods[1].fedadam.topology",
     "fedadam puts several answers together; in the topology incremental there is only one at a time. "
     "Use `topology: star`."),
    ("[fedavg]", "[{incremental: {training: {participation: poisson}}}]", "P104", 15, "methods[1].incremental",
     "In the topology incremental each site has one turn, and `participation` chooses sites anew each round. "
     "Leave out `participation`, or use `topology: cyclic`."),
    ("[fedavg]", "[{incremental: {training: {early_stopping: 3}}}]", "P104", 15, "methods[1].incremental",
     "In the topology incremental each site has one turn, and `early_stopping` would end training before the last "
     "sites have theirs. Leave out `early_stopping` (for this method alone: `training: {early_stopping: null}`), or "
     "use `topology: cyclic`."),
    ("[fedavg]", "[{scaffold: {training: {optimizer: adam}}}]", "P104", 15, "methods[1].scaffold",
     "control_variates reads the mean gradient off the way a site went, which works for sgd (also with momentum), "
     "not for adam. Use `optimizer: {sgd: {lr: ...}}`."),
    ("[fedavg]", "[{fedavg: {server: normalised, training: {optimizer: adam}}}]", "P104", 15,
     "methods[1].fedavg.server", "normalised reads the mean gradient off the way a site went, which works for sgd "
     "(also with momentum), not for adam. Use `optimizer: {sgd: {lr: ...}}`."),
    ("[fedavg]", "[{fednova: {training: {optimizer_state: keep}}}]", "P104", 15, "methods[1].fednova",
     "normalised supposes that local momentum starts anew each round. Use `optimizer_state: reset`."),
    ("[fedavg]", "[{mix: {topology: cyclic}}]", "P104", 15, "methods[1].mix.topology",
     "mix has no server, so `topology` means nothing. Use a federated method such as fedavg."),
    ("[fedavg]", "[{fedavg: {topology: ring}}]", "P103", 15, "methods[1].fedavg.topology",
     "'ring' is no topology. Valid: star, cyclic, incremental."),
    # Who takes part, and unequal work.
    ("batch_size: 8", "participation: everybody", "P103", 11, "training.participation",
     "'everybody' is no way to choose sites. Valid: uniform, poisson, highest_loss, availability, deadline."),
    ("batch_size: 8", "participation: [poisson, {uniform: {site: 2}}]", "P103", 11,
     "training.participation[2].uniform.site", "uniform has no option 'site'. Did you mean 'sites'?"),
    ("batch_size: 8", "participation: uniform", "P102", 11, "training.participation",
     "uniform takes either `sites` or `fraction`. Give one of them."),
    ("batch_size: 8", "participation: deadline", "P102", 11, "training.participation.deadline.seconds",
     "the entry 'seconds' is missing."),
    ("batch_size: 8", "participation: {poisson: {probability: 0}}", "P102", 11,
     "training.participation.poisson.probability", "got 0; expected a number above 0."),
    ("batch_size: 8", "participation: {availability: {absent: {A: [0]}}}", "P102", 11,
     "training.participation.availability.absent.A[1]", "got 0; expected a number above 0."),
    ("batch_size: 8", "participation: {uniform: {sites: 2}}\n  quorum: 3", "P104", 12, "training.quorum",
     "`participation` leaves 2 sites and `quorum` wants 3, so every round would be skipped. "
     "Lower the quorum, or let more sites take part."),
    ("batch_size: 8", "local_steps: {A: 0}", "P102", 11, "training.local_steps.A", "got 0; expected a number above 0."),
    ("batch_size: 8", "local_epochs: {A: 1}\n  local_steps: {A: 2}", "P102", 12, "training.local_steps.A",
     "A has both `local_epochs` and `local_steps`; give one."),
    ("batch_size: 8", "time_budget: -1", "P102", 11, "training.time_budget",
     "got -1; expected a number above 0, or entries {name: value}."),
    ("[fedavg]", "[{single: {share: all}}]", "P104", 15, "methods[1].single.share",
     "single has no server, so `share` means nothing. Use a federated method such as fedavg."),
    ("[fedavg]", "[{mix: {server: fedadam}}]", "P104", 15, "methods[1].mix.server",
     "mix has no server, so `server` means nothing. Use a federated method such as fedavg."),
    ("[fedavg]", "[{cross: {local: [proximal]}}]", "P104", 15, "methods[1].cross.local",
     "cross has no server, so `local` means nothing. Use a federated method such as fedavg."),
    ("[fedavg]", "[{fedsgd: {local: [proximal]}}]", "P104", 15, "methods[1].fedsgd.local",
     "fedsgd takes its one gradient at the global state, where the proximal term is zero. Use a method that "
     "trains locally, such as fedavg."),
    ("[fedavg]", "[{fedprox: {local: [proximal]}}]", "P104", 15, "methods[1].fedprox.local",
     "The part proximal is there twice. Name it once."),
    ("[fedavg]", "[{fedce: {server: [fedce, normalised]}}]", "P104", 15, "methods[1].fedce.server",
     "fedce sends sites what others sent, and with normalised that is no model. Leave normalised out, or choose "
     "another aggregation."),
    ("[fedavg]", "[{fedavg: {share: none}}]", "P103", 15, "methods[1].fedavg.share",
     "'none' can't be shared. To share nothing, use the method single."),
    ("methods: [fedavg]", "engine: {mode: stacked, precision: mixed}", "P104", 15, "engine.precision",
     "Stacked training has no mixed precision. Use `mode: sequential`, or `precision: float32`."),
    ("folds: 2\nmethods: [fedavg]", "unseen_sites: [cross]\nmethods: [cross]", "P104", 14, "evaluation.unseen_sites[1]",
     "cross trains each site alone. Every site is unseen to the others in `cross`."),
    ('features: "x*"', 'features: "x*"\n  scaling: federated\n  imputation: median', "P102", 8, "data.imputation",
     "medians can't be put together from summaries. Use `imputation: mean`, or per_site scaling."),
    ('features: "x*"', 'features: "x*"\n  augmentation: [RandFlip]', "P102", 7, "data.augmentation",
     "augmentation is for images; this study has features."),
    ('features: "x*"', 'features: "x*"\n  image: path', "P102", 6, "data.features",
     "a study has either `features` or `image`, not both."),
    ("task: classification", "task: segmentation", "P102", 2, "data.mask",
     "segmentation needs `image` and `mask`: columns with image and mask files."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "code", "line", "place", "message"), BAD, ids=[f"{b[4]}: {b[1]}" for b in BAD])
def test_a_mistake_is_told_with_file_line_and_entry(study_file, old, new, code, line, place, message):
    where = "study.yaml, " + (f"line {line}, " if line else "") + place
    assert sentence(study_file(old, new)) == f"{code} {where}: {message}"


SEGMENTATION = BASE.replace('features: "x*"', "image: path\n  mask: mask\n  size: [32, 32]").replace(
    "task: classification", "task: segmentation"
)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("class_weights: balanced",
         "P104 study.yaml, line 13, training.class_weights: segmentation has no class weights."),
        ("loss: hinge", "P103 study.yaml, line 13, training.loss: 'hinge' is no loss of segmentation. "
         "Valid: dice_cross_entropy, dice, cross_entropy, dice_focal, focal."),
    ],
)  # fmt: skip
def test_mistakes_in_segmentation(study_file, new, message):
    Study.read(study_file(text=SEGMENTATION))
    assert sentence(study_file("batch_size: 8", new, SEGMENTATION)) == message


def test_methods_of_the_command_line_replace_those_of_the_file(study_file):
    path = study_file("[fedavg]", "[single, {fedprox: {mu: 2, label: near}}, fedavg]")
    study = Study.read(path, ["near", "fedavg", "fedbn"])
    assert [(m.label, m.name) for m in study.declaration.study_methods] == [
        ("near", "fedprox"), ("fedavg", "fedavg"), ("fedbn", "fedbn"),
    ]  # fmt: skip
    assert study.declaration.study_methods[0].entry["fedprox"]["mu"] == 2
    with pytest.raises(StudyError, match=r"--method fedbnn: there is no such method\. Did you mean 'fedbn'\?"):
        Study.read(path, ["fedbnn"])


@pytest.mark.parametrize("method", [{"fltrust": {"trusted": "Bonn"}}, {"fl_mrcm": {"target": "Bonn"}}])
def test_a_site_that_a_rule_goes_by_is_in_every_training(tmp_path, method):
    study = write_table_study(tmp_path, {"Aachen": 20, "Bonn": 20, "Celle": 20}) | {"methods": [method]}
    study["evaluation"] |= {"unseen_sites": True}
    with pytest.raises(StudyError, match=r"P104 .* needs Bonn in every training"):
        Study.of(study, tmp_path).run(tmp_path / "out")
