"""Every part with every other: a pair either trains a round or is refused with a sentence when the study is read.

Parts come from the catalogues, so a new one is tried with all others without a word here, unless it has options that
must be given: then `OPTIONS` needs an entry.
"""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from safetensors.torch import save_file

from helpers import Federation, declare, image_sites, table_sites
from polyclinic.client.personal.models import PERSONAL
from polyclinic.errors import StudyError
from polyclinic.methods import SHARES
from polyclinic.options import describe_options
from polyclinic.parts import (
    CHANNEL_PARTS,
    FEDERATION,
    LOCAL_PARTS,
    PROCEDURES,
    SERVER_PARTS,
    TOPOLOGIES,
    Aggregation,
    build_part,
)
from polyclinic.rounds import run_rounds
from polyclinic.server.selection import PARTICIPATION
from polyclinic.study.job import Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.public import Public

#: Options of the parts that can't do without, or whose defaults suit many sites or rounds.
OPTIONS = {
    "uniform": {"sites": 7},
    "poisson": {"probability": 1.0},
    "highest_loss": {"sites": 7},
    "deadline": {"seconds": 3600},
    "fltrust": {"trusted": "Site A"},
    "domain_identifier": {"target": "Site A"},
    "equal_opportunity": {"subgroup": "sex", "group": "F"},
    "heterofl": {"widths": {"Site B": 0.5, "Site C": 0.3}},
    "synthetic_cases": {"generator_rounds": 0, "network_steps": 2},
    "federated_gan": {"generator_rounds": 0, "network_steps": 2},
    "gaussian_noise": {"noise": 0.1},
    "laplace_noise": {"noise": 0.1},
    "sparse_vector": {"epsilon": 10.0},
    "central_noise": {"noise": 0.1},
    "distributed_noise": {"noise": 0.1},
    "dp_sgd": {"noise": 0.5},
    "modules": ["0"],
    "teacher": {"weights": "teacher.safetensors"},
    "ensemble_distillation": {"steps": 2},
    "attention_distillation": {"steps": 2},
    "momentum_contrast": {"pretraining_rounds": 1},
    "style_curves": {"style_rounds": 2, "cases": 8},
}
#: What else a method has with a part that can't do without, unless the pair itself says it.
NEEDS: dict[str, dict[str, object]] = {
    **{
        name: {"channel": ["clip"], "share": "no_norm_statistics"}
        for name in ("gaussian_noise", "laplace_noise", "sparse_vector", "central_noise", "distributed_noise")
    },
}
#: The step of the channel that must come directly after another.
NEXT = {"distributed_noise": "secure_sum"}
#: Parts that are not for networks with batch normalisation, and are tried with another.
NOT_FOR_BATCH_NORM = ("dp_sgd",)
#: Parts that do something else in the first round than later.
TWO_ROUNDS = ("momentum_contrast",)
#: Parts that are for images, and are tried on some.
FOR_IMAGES = tuple(
    name for name in (*LOCAL_PARTS, *CHANNEL_PARTS) if build_part(name, OPTIONS.get(name, {})).images_only
)
#: Enough sites for rules that must outvote one (Bulyan needs 4 f + 3), also where one is not chosen.
SITES = {f"Site {letter}": cases for letter, cases in zip("ABCDEFGH", (7, 6, 5, 4, 6, 5, 4, 7), strict=True)}
ALL = {
    "local": [("local", name) for name in LOCAL_PARTS],
    "channel": [("channel", name) for name in CHANNEL_PARTS],
    "server": [("server", name) for name in SERVER_PARTS],
    "personal": [("personal", name) for name in PERSONAL],
    "share": [("share", name) for name in (*SHARES, "modules") if name != "none"],
    "topology": [("topology", name) for name in TOPOLOGIES],
    "procedure": [("procedure", name) for name in PROCEDURES],
    "participation": [("participation", name) for name in PARTICIPATION],
}
FAMILIES = {family: parts for family, parts in ALL.items() if parts}
CATALOGUES = {
    "local": LOCAL_PARTS, "channel": CHANNEL_PARTS, "server": SERVER_PARTS, "personal": PERSONAL,
    "topology": TOPOLOGIES, "procedure": PROCEDURES, "participation": PARTICIPATION,
}  # fmt: skip
#: Entries of a method that are lists.
LISTS = {"local", "channel", "server"}
TRAINING = {"rounds": 1, "batch_size": 4, "optimizer": {"sgd": {"lr": 0.05}}}
MODEL = {"mlp": {"hidden": [3], "norm": "batch"}}
IMAGES = {"table": "cases.csv", "site": "site", "image": "image", "label": "label", "size": [8, 8]}


def entry(family, name):
    """The part as a study file names it."""
    return {name: OPTIONS[name]} if name in OPTIONS else name


def method_of(*parts):
    """A method of a study file with these parts."""
    options: dict[str, object] = {"label": " with ".join(name for _, name in parts)}
    for family, name in parts:
        if family == "participation":
            options["training"] = {"participation": entry(family, name)}
        elif family in LISTS:
            options.setdefault(family, []).append(entry(family, name))
        else:
            options[family] = entry(family, name)
    for _, name in parts:
        for key, needed in NEEDS.get(name, {}).items():
            if key == "share":
                options.setdefault(key, needed)
            elif not [one for one in needed if one in options[key]]:
                options[key] = [*needed, *options[key]]
        if following := NEXT.get(name):
            others = [one for one in options["channel"] if one != following]
            place = 1 + next(place for place, one in enumerate(others) if name in one)
            options["channel"] = [*others[:place], following, *others[place:]]
    return {"fedavg": options}


class Tried:
    """A federation whose sites are made once; each pair is a study of its own on them."""

    def __init__(self, folder):
        self.folder = folder
        tables, images = (
            {
                name: replace(one, groups={"sex": ["FM"[row % 2] for row in range(len(one))]}, public=public)
                for name, one in made.items()
            }
            for made, public in (
                (table_sites(SITES, features=3), torch.randn(6, 3)),
                (image_sites(SITES), image_sites({"Z": 6})["Z"].inputs),
            )
        )
        self.made = {
            (kind, norm): Federation(data, model={kind: {**options, "norm": norm}}, training=TRAINING)
            for kind, data, options in (("mlp", tables, {"hidden": [3]}), ("cnn", images, {"channels": [3]}))
            for norm in ("batch", "none")
        }

    def round(self, method):
        """One round with a method; the state after it.

        Raises:
            StudyError: the study is refused.
        """
        kind = "cnn" if any(name in str(method) for name in FOR_IMAGES) else "mlp"
        norm = "none" if any(name in str(method) for name in NOT_FOR_BATCH_NORM) else "batch"
        made, folder = self.made[kind, norm], self.folder / kind / norm
        if not folder.is_dir():
            folder.mkdir(parents=True)
            state = {name: tensor.clone() for name, tensor in made.template.module.state_dict().items()}
            save_file(state, folder / "teacher.safetensors")
        rounds = {"rounds": 2} if any(name in str(method) for name in TWO_ROUNDS) else {}
        declaration = declare(model=made.declaration.model, training=TRAINING | rounds, methods=[method],
                              evaluation={"validation": 0, "best_round": "last", "subgroups": ["sex"]}, public=True,
                              **({"data": IMAGES} if kind == "cnn" else {}))  # fmt: skip
        public = Public((6, 2), made.public)
        runner = JobRunner(
            declaration, made.engine, made.local, made.template, made.initial, ["class 0", "class 1"], public=public
        )  # fmt: skip
        runner.planner.folder = folder
        plan = runner.plan(Job((declaration.study_methods[0],), 0, 0), made.fold, made.fold.training_sites)
        progress, rows = run_rounds(plan, made.engine)
        assert rows
        return progress.model(FEDERATION)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    return Tried(tmp_path_factory.mktemp("teachers"))


def try_pairs(tried, pairs):
    """(Pairs that ran, sentences of those that did not); anything else is told with the pair's name."""
    ran, refused, wrong = [], {}, []
    for pair in pairs:
        try:
            state = tried.round(method_of(*pair))
            if not state.isfinite().all():
                wrong.append(f"{pair}: the state is not finite")
            ran.append(pair)
        except StudyError as error:
            if error.code not in {"P102", "P104"} or len(error.message.split()) < 5 or not error.hint:
                wrong.append(f"{pair}: refused with {error}")
            refused[pair] = str(error)
        except Exception as error:
            wrong.append(f"{pair}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    return ran, refused


def puts_together(name):
    """Whether a part is an aggregation."""
    return isinstance(build_part(name, OPTIONS.get(name, {})).at_server(), Aggregation)


def required(family, name):
    """Options of a part that have no default."""
    return [option for option in describe_options(CATALOGUES[family][name]) if "(required)" in option]


@pytest.mark.parametrize("family", sorted(CATALOGUES))
def test_parts_with_options_that_must_be_given_have_them_here(family):
    missing = [name for name in CATALOGUES[family] if required(family, name) and name not in OPTIONS]
    assert not missing, f"{', '.join(missing)} can't be built without options: add an entry to OPTIONS in this file."


def test_every_part_runs_by_itself(tried):
    parts = [(part,) for family in FAMILIES.values() for part in family]
    _, refused = try_pairs(tried, parts)
    needing = ("the task is classification", "works with a private part")
    elsewhere = {part for part, sentence in refused.items() if any(words in sentence for words in needing)}
    assert refused.keys() == elsewhere, f"with everything else plain these can't be used at all: {refused}"


@pytest.mark.parametrize("families", list(combinations(FAMILIES, 2)), ids=" x ".join)
def test_parts_of_two_kinds_run_together_or_are_refused(tried, families):
    first, second = families
    ran, refused = try_pairs(tried, [(a, b) for a in FAMILIES[first] for b in FAMILIES[second]])
    assert ran, f"nothing of {first} goes with anything of {second}: {refused}"


@pytest.mark.parametrize("family", ["local", "server", "channel"])
def test_parts_of_one_kind_run_together_or_are_refused(tried, family):
    pairs = list(combinations(FAMILIES[family], 2))
    ran, refused = try_pairs(tried, pairs)
    assert ran
    for pair in pairs:
        if family == "server" and all(puts_together(name) for _, name in pair):
            assert pair in refused


def test_ways_to_choose_run_one_after_another(tried):
    for first, second in combinations(PARTICIPATION, 2):
        both = [entry("participation", first), entry("participation", second)]
        method = {"fedavg": {"label": "both", "training": {"participation": both}}}
        try:
            assert tried.round(method).isfinite().all()
        except Exception as error:
            pytest.fail(f"{first} with {second}: {error}")


def test_a_pair_is_the_same_stacked():
    """Sharing, rules and sampling are the same code for stacked sites; one of each, to be sure."""
    method = {"fedavg": {"local": ["proximal", "control_variates"], "share": "no_norm", "server": ["normalised"],
                         "training": {"participation": {"uniform": {"sites": 4}}}}}  # fmt: skip
    training = {**TRAINING, "rounds": 3}
    states = [
        Federation(table_sites(SITES, features=3), [method], model=MODEL, training=training, stacked=stacked).state()
        for stacked in (False, True)
    ]
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
