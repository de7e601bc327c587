"""Declarations: defaults, labels, and that a filled-in study file asks for the same study."""

import re
from dataclasses import replace

import pytest
import yaml

from polyclinic.composition import METHODS
from polyclinic.options import EntryError
from polyclinic.study.declaration import Declaration
from polyclinic.study.method_entries import optimizer_of, schedule_of

TABLE = {"table": "cases.csv", "site": "site", "label": "label", "features": "x*"}
PICTURES = {"table": "cases.csv", "site": "site", "label": "label", "image": "image", "size": [16, 16]}
IMAGES = {"table": "cases.csv", "site": "site", "image": "image", "mask": "mask", "size": [16, 16]}

#: Methods for cases that are bags, and for several labels.
BAGS, FINDINGS = ["attention_mil"], ["graph_layer", "multi_task"]
#: Methods for reconstruction.
MEASURED = ["fedmri"]
#: Methods for masks.
MASKS = ["feddm", "fedmix", {"asyndgan": {"generator_rounds": 2, "masks": 8, "label": "made"}}]
#: Options that methods can't do without.
OPTIONS = {
    "fltrust": {"trusted": "A"},
    "fairfed": {"subgroup": "sex", "group": "F"},
    "public_teacher": {"weights": "teacher.safetensors"},
    "fl_mrcm": {"target": "A"},
}


def declared(**entries):
    return Declaration.check({"data": TABLE, "model": "logistic", **entries})


STUDIES = {
    "least": {},
    "every method": {
        "methods": [
            {name: OPTIONS.get(name, {})}
            for name in sorted(METHODS)
            if name not in [*BAGS, *FINDINGS, *MEASURED, *MASKS]
        ],
        "data": {**PICTURES, "public": "public.csv"},  # some are for images
        "evaluation": {"subgroups": ["sex"]},
    },
    "reconstruction": {
        "task": "reconstruction",
        "methods": [*MEASURED, "fedavg"],
        "data": {
            "table": "cases.csv",
            "site": "site",
            "image": "image",
            "size": [16, 16],
            "undersampling": {"acceleration": 4},
        },
        "model": {"unrolled": {"cascades": 2}},
    },
    "bags": {
        "methods": BAGS,
        "data": {**TABLE, "subject": "patient", "bag": {"most": 50}},
        "model": {"gated_attention": {"encoder": {"mlp": {"hidden": [8]}}}},
    },
    "findings": {
        "methods": FINDINGS,
        "task": "multi_label",
        "data": {"table": "cases.csv", "site": "site", "features": "x*", "findings": ["tb", "edema"]},
    },
    "compositions": {
        "methods": [
            "fedavg",
            {"fedavg": {"share": "no_norm", "server": {"fedadam": {"lr": 0.1}}, "local": [{"proximal": {"mu": 0.5}}]}},
            {"fedprox": {"mu": 0.1, "server": "fedyogi", "training": {"rounds": 7, "local_steps": 3}}},
            {"single": {"label": "alone", "training": {"optimizer": {"adam": {"lr": 1e-3}}}}},
            {"ditto": {"personal": None}},
            {"fedrep": {"personal": None}},
        ]
    },
    "steps": {"training": {"local_steps": 5, "schedule": {"cosine_annealing": {"T_max": 10}}, "clip": 1, "quorum": 2}},
    "class weights": {"training": {"class_weights": [1, 2.5]}},
    "split": {"evaluation": {"split": "part", "threshold": 0.3, "unseen_sites": True}},
    "unseen": {"evaluation": {"unseen_sites": ["fedavg"], "metrics": ["bac", "auc"]}, "seed": 3},
    "seeds": {"seeds": [3, 1], "engine": {"mode": "stacked", "threads": 2}},
    "positive": {"data": {**TABLE, "positive": "< 1", "where": {"age": ">= 3", "sex": ["f", "m"], "kept": True}}},
    "segmentation": {"task": "segmentation", "data": IMAGES, "model": {"unet": {"channels": [4, 8]}}},
    "masks": {"task": "segmentation", "data": IMAGES, "model": {"unet": {"channels": [4, 8]}}, "methods": MASKS},
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_filled_study_asks_for_the_same(name):
    declaration = declared(**STUDIES[name])
    filled = declaration.filled()
    again = Declaration.check(yaml.safe_load(yaml.safe_dump(filled, sort_keys=False)))
    assert again.filled() == filled
    assert [m.label for m in again.study_methods] == [m.label for m in declaration.study_methods]
    methods = [
        [replace(m.method, local=list(m.method.local), server=list(m.method.server)) for m in d.study_methods]
        for d in (again, declaration)
    ]
    assert methods[0] == methods[1]
    trainings = [
        [
            (m.training.model_copy(update={"local_epochs": None}), optimizer_of(m.training), schedule_of(m.training))
            for m in checked.study_methods
        ]
        for checked in (again, declaration)
    ]
    for (one, *one_parts), (other, *other_parts) in zip(*trainings, strict=True):
        assert one_parts == other_parts
        ignored = {"optimizer", "loss"}  # named with their defaults in the filled one
        assert one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


def test_the_filled_study_says_everything():
    filled = declared().filled()
    assert filled["training"]["rounds"] == 50
    assert filled["training"]["local_epochs"] == 1
    assert filled["training"]["loss"] == "cross_entropy"
    assert filled["training"]["optimizer"] == {"sgd": {"lr": 0.01, "momentum": 0.9}}
    assert filled["evaluation"]["folds"] == 5
    assert filled["evaluation"]["metrics"] == ["auc", "acc", "bac", "sen", "spe", "f1", "ap", "brier", "ece"]
    assert filled["seeds"] == [0]
    assert filled["methods"][4] == {
        "fedavg": {
            "label": "fedavg", "share": "all", "personal": None, "channel": [], "server": [{"mean": {}}], "local": [],
            "topology": "star", "procedure": "local",
        }
    }  # fmt: skip
    assert "seed" not in filled


def test_the_example_of_the_design_is_accepted():
    text = """
    study: Autism against control from regional brain volumes
    data: {table: abide.csv, site: SITE_ID, subject: SUB_ID, label: DX_GROUP, features: "vol_*", scaling: per_site}
    task: classification
    model: {mlp: {hidden: [64]}}
    training: {rounds: 50, local_epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.05, momentum: 0.9}}}
    evaluation: {folds: 5, metrics: [auc, acc, bac, sen, spe], threshold: validation, unseen_sites: true}
    methods: [single, cross, ensemble, mix, fedavg, fedsgd, fedprox, {fedprox: {mu: 0.1, share: no_norm}}]
    seeds: [0, 1, 2]
    """
    labels = [method.label for method in Declaration.check(yaml.safe_load(text)).study_methods]
    assert labels[-2:] == ["fedprox", "fedprox(mu=0.1, share=no_norm)"]


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ("fedavg", "fedavg"),
        ({"fedavg": None}, "fedavg"),
        ({"fedavg": {}}, "fedavg"),
        ({"fedavg": {"share": "all"}}, "fedavg"),
        ({"fedprox": {"mu": 0.1}}, "fedprox(mu=0.1)"),
        ({"fedprox": {"mu": 0.1, "share": "no_norm"}}, "fedprox(mu=0.1, share=no_norm)"),
        ({"fedavg": {"server": "fedadam"}}, "fedavg(server=fedadam)"),
        ({"fedavg": {"server": {"fedadam": {"lr": 0.1, "tau": 0.01}}}}, "fedavg(server=fedadam(lr=0.1, tau=0.01))"),
        ({"fedavg": {"local": [{"proximal": {"mu": 2}}]}}, "fedavg(local=proximal(mu=2))"),
        ({"fedavg": {"label": "mine", "share": "body"}}, "mine"),
        ({"fedbn": {"personal": None}}, "fedbn"),
        ({"ditto": {"personal": None}}, "ditto(personal=shared_model)"),
    ],
)
def test_labels_say_what_is_different(entry, label):
    (method,) = declared(methods=[entry]).study_methods
    assert method.label == label


@pytest.mark.parametrize("name", ["ditto", "apfl", "fedrep"])
def test_the_own_model_of_a_method_can_be_taken_out(name):
    with_it, without = declared(methods=[name, {name: {"personal": None}}]).study_methods
    assert with_it.method.personal is not None
    assert without.method == replace(with_it.method, personal=None)


def test_a_long_label_made_of_options_is_shortened():
    """Labels of methods that differ in a late option differ, too; one with a sign that labels can't have is refused."""
    entry = {"fedavg": {"local": [{"proximal": {"mu": 0.123456789}}], "server": {"fedadam": {
        "lr": 0.123456789, "beta1": 0.123456789, "beta2": 0.123456789}}}}  # fmt: skip
    (method,) = declared(methods=[entry]).study_methods
    assert re.fullmatch(r"fedavg\(server=fedadam\(lr=0\.123456789, .*\.\.\. [0-9a-f]{6}\)", method.label)
    assert len(method.label) == 80
    assert declared(methods=[entry]).study_methods[0].label == method.label
    other = {
        "fedavg": {**entry["fedavg"], "server": {"fedadam": {"lr": 0.123456789, "beta2": 0.5, "beta1": 0.123456789}}}
    }
    assert len({one.label for one in declared(methods=[entry, other]).study_methods}) == 2
    with pytest.raises(EntryError, match="give another with `label:`"):
        declared(methods=[{"fltrust": {"trusted": "a|b"}}])
    entry["fedavg"]["label"] = "adam"
    assert declared(methods=[entry]).study_methods[0].label == "adam"
    with pytest.raises(EntryError) as caught:
        declared(methods=[{"fedavg": {"label": "a" * 81}}])
    assert "`label:`" not in str(caught.value), "who gave a label knows that there is one"


def test_a_method_may_have_a_training_of_its_own():
    entries = ["fedavg", {"fedavg": {"label": "steps", "training": {"local_steps": 4, "optimizer": "adam"}}}]
    plain, changed = declared(methods=entries, training={"rounds": 9, "local_epochs": 2}).study_methods
    assert (plain.training.rounds, plain.training.local_epochs, plain.training.local_steps) == (9, 2, None)
    assert (changed.training.rounds, changed.training.local_epochs, changed.training.local_steps) == (9, None, 4)
    assert optimizer_of(changed.training) == ("adam", {})


def test_methods_differ_only_in_the_parts_that_are_given():
    entry = {"fedprox": {"mu": 0.1, "share": "no_norm", "server": {"fedadam": {"lr": 0.01}}}}
    (method,) = declared(methods=[entry]).study_methods
    assert method.method.local == [("proximal", {"mu": 0.1})]
    assert method.method.share == "no_norm"
    assert method.method.server == [("fedadam", {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 0.001})]
    assert (method.method.scope, method.method.work, method.method.tests) == ("federation", "train", "own")


@pytest.mark.parametrize(
    ("wanted", "unseen"),
    [(False, []), (True, ["mix", "fedavg", "near"]), (["fedavg"], ["fedavg"]), (["fedprox", "mix"], ["mix", "near"])],
)
def test_which_methods_are_also_tested_at_unseen_sites(wanted, unseen):
    methods = ["single", "cross", "ensemble", "mix", "fedavg", {"fedprox": {"label": "near"}}]
    declaration = declared(methods=methods, evaluation={"unseen_sites": wanted})
    assert [m.label for m in declaration.study_methods if declaration.is_unseen(m)] == unseen


@pytest.mark.parametrize("name", ["SGD", "sgd", "AdamW", "adam_w", "RMSprop"])
def test_optimisers_are_found_by_pytorchs_name_or_a_plain_one(name):
    assert optimizer_of(declared(training={"optimizer": name}).training)[0] == name.lower().replace("_", "")


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "cosine_annealing", "cosineannealing"])
def test_schedules_are_found_by_pytorchs_name_or_a_plain_one(name):
    training = declared(training={"schedule": {name: {"T_max": 5}}}).training
    assert schedule_of(training) == ("cosineannealing", {"T_max": 5})


BASELINES = {
    "by name": (["single", "fedavg"], {"single": "single", "fedavg": "fedavg"}),
    "none": (["mix", "fedprox"], {}),
    "labels tell nothing": (
        [{"fedprox": {"label": "single"}}, {"mix": {"label": "fedavg"}}, {"fedavg": {"label": "mean"}}],
        {"fedavg": "mean"},
    ),
    "the first with the catalogue's parts": (
        [{"fedavg": {"server": "median", "label": "fedavg"}}, {"fedavg": {"label": "a"}}, {"fedavg": {"label": "b"}}],
        {"fedavg": "a"},
    ),
    "the study's own training goes before another": (
        [{"fedavg": {"label": "long", "training": {"rounds": 99}}}, "fedavg"],
        {"fedavg": "fedavg"},
    ),
    "another training, where there is no other": (
        [{"single": {"label": "long", "training": {"rounds": 99}}}],
        {"single": "long"},
    ),
    "no parts of its own": ([{"fedavg": {"share": "body"}}], {}),
}


@pytest.mark.parametrize(("methods", "found"), BASELINES.values(), ids=BASELINES)
def test_baselines_are_known_by_their_parts(methods, found):
    declaration = declared(methods=methods)
    assert declaration.baselines == found
    # The study file with every default filled in spells the same parts out.
    assert Declaration.check(declaration.filled()).baselines == found


def test_a_label_may_end_with_anything_but_stands_once():
    for label in ("fedavg (attacked)", "fedavg (unseen site)", "x (unseen site) (attacked)"):
        assert declared(methods=["fedavg", {"fedprox": {"label": label}}]).study_methods[1].label == label
    with pytest.raises(EntryError, match="is there twice"):
        declared(methods=[{"fedavg": {"label": "a"}}, {"fedprox": {"label": "a"}}])
