"""Updates that are kept back: the decision of `dynamic_fusion`, and what the loop makes of sites that send nothing."""

import hashlib
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml

from helpers import Federation, declare, flat, number_site, plain_module, table_site, table_sites, write_table_study
from plugin_helpers import failing
from polyclinic import Study
from polyclinic.channel.dynamic_fusion import DynamicFusion
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import PartError, SiteError, StudyError
from polyclinic.parts import CHANNEL_PARTS, FEDERATION, SitePart
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.site.round import Round
from polyclinic.study.job import Job

MODEL = {"mlp": {"hidden": [12], "norm": "batch"}}
BY_LOSS = {"dynamic_fusion": {"by": "loss"}}
#: (Round, site) of updates that the part `scripted` keeps back. In round 1 two sites do, in no round all.
KEPT_BACK = [(1, "Aachen"), (1, "Celle"), (3, "Aachen"), (4, "Bonn"), (4, "Celle"), (4, "Dresden")]
SITES = ["Aachen", "Bonn", "Celle", "Dresden"]


@pytest.fixture
def scripted():
    """A part that keeps back what `KEPT_BACK` says, or all of a round that is added to it."""
    rounds = set(KEPT_BACK)

    @CHANNEL_PARTS.add("scripted")
    class Scripted(SitePart):
        """Keeps updates back."""

        packs = True

        def sends(self, ended):
            return (ended.view.number, ended.view.name) not in rounds

    yield rounds
    CHANNEL_PARTS.remove("scripted")


def table(rows):
    """(Round, site) -> the row."""
    return {(row["round"], row["site"]): row for row in rows}


# The decision ---------------------------------------------------------------------------------------------------------


def decisions(values, by):
    """What a site decides in each round whose trained model measures so, and the best that it remembers."""
    part, found = DynamicFusion(by=by), []
    for value in values:
        other = {"accuracy": "loss", "loss": "accuracy"}[by]

        def measure(vector, cases, value=value, other=other):
            assert (vector, cases) == ("trained", "validation")
            return {by: value, other: -value}

        before = part.kept
        found.append(part.sends(SimpleNamespace(view=SimpleNamespace(measure=measure), vector="trained")))
        assert found[-1] == (part.kept is not before), "what is kept changes with what is sent, in a new dictionary"
    return found, part.kept["best"]


def test_an_update_passes_only_if_the_accuracy_is_above_all_that_were_sent():
    found, best = decisions([0.5, 0.5, 0.625, 0.5625, 0.625, math.nan, 0.6251], "accuracy")
    assert found == [True, False, True, False, False, False, True]
    assert (best.item(), best.dtype, best.shape) == (0.6251, torch.float64, ())


def test_a_loss_has_to_fall():
    found, best = decisions([3.5, 3.5, 3.25, 3.375, math.inf, 3.0, math.nan, -1.0, -0.5], "loss")
    assert found == [True, False, True, False, False, True, False, True, False]
    assert best.item() == 1.0, "a loss of −1, which that of survival may have"


def test_the_first_model_is_sent_whatever_its_accuracy():
    assert decisions([0.0, 0.0, 0.25], "accuracy")[0] == [True, False, True]


def test_it_decides_by_the_validation_cases_of_the_site(monkeypatch):
    """Of a real training: the accuracies of the models that sites trained say who sent one."""
    made = Federation(
        table_sites(part=None), ["dynamic_fusion"], training={"rounds": 6, "optimizer": {"sgd": {"lr": 0.5}}},
        evaluation={"folds": 3, "validation": 0.3},
    )  # fmt: skip
    seen = {site: [] for site in SITES}
    packed = Round._packed

    def watched(self, trained, own):
        inputs, targets = self.run.dataset.batch(self.run.parts.validation)
        network = plain_module(made.network(0), trained).eval()
        seen[self.run.site].append(float((network(inputs).argmax(1) == targets).double().mean()))
        return packed(self, trained, own)

    monkeypatch.setattr(Round, "_packed", watched)
    _, rows = made.rounds()
    for site, accuracies in seen.items():
        expected = [int(value > max(accuracies[:place], default=-1)) for place, value in enumerate(accuracies)]
        assert [row["sent"] for row in rows if row["site"] == site] == expected
    assert {row["sent"] for row in rows} == {0, 1}


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        {"fedavg": {}},
        {"scaffold": {}},
        {"fedbn": {"channel": [{"top_k": {"share": 0.3}}]}},
        {"fedadam": {"personal": "ditto"}},
        {"fedsgd": {}},
    ],
    ids=lambda method: next(iter(method)),
)
def test_where_all_sites_get_better_nothing_changes(method):
    """Small steps of the whole gradient on training cases: the loss falls everywhere, in every round."""
    training = {"rounds": 5, "batch_size": 64, "optimizer": {"sgd": {"lr": 0.01}}}
    ((name, options),) = method.items()
    channel = options.get("channel", [])
    states = []
    for entry in ({}, {"channel": [*channel, BY_LOSS]}):
        made = Federation(table_sites(), [{name: options | entry}], model="logistic", training=training)
        progress, rows = made.rounds()
        assert all(row["sent"] for row in rows)
        own = [tensor for kept in made.kept(progress).values() for tensor in (kept.own, *kept.personal.values())]
        states.append([progress.model(FEDERATION), *own])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


METHODS = [
    {"fedavg": {}},
    {"fedavg": {"training": {"optimizer_state": "keep", "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}}},
    {"scaffold": {"training": {"weights": "uniform"}}},
    {"feddyn": {"alpha": 0.1}},
    {"fedbn": {}},
    {"fedrep": {"head_epochs": 1}},
    {"fedavg": {"personal": "apfl"}},
    {"fedavgm": {}},
    {"fedpidavg": {}},
    {"auto_fedavg": {"lr": 10.0}},
    {"fourier": {"start": 0.3}},
    {"fedce": {}},
    {"fednova": {}},
    {"median": {}},
    {"moon": {}},
    {"fedavg": {"channel": [{"top_k": {"share": 0.2}}]}},
    {"fedavg": {"channel": ["power_sgd", "zstd"]}},
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_site_that_sends_nothing_is_as_if_its_answer_had_been_lost(method, scripted):
    """To the bit: the model, what sites keep, and what the parts at the server keep."""
    ((name, options),) = method.items()
    found = []
    for quiet in (True, False):
        channel = options.get("channel", [])
        entry = {name: options | {"channel": [*channel, "scripted"] if quiet else channel, "label": "it"}}
        made = Federation(table_sites(), [entry], model=MODEL, training={"rounds": 6, "quorum": 1})
        if not quiet:
            failing(made.engine, *KEPT_BACK)
        progress, rows = made.rounds()
        kept = made.kept(progress)
        own = {site: (one.own, one.personal, one.optimizers) for site, one in kept.items()}
        parts = {site: {n: t for n, t in one.parts.items() if n != "scripted"} for site, one in kept.items()}
        shares = {key: row["share"] for key, row in table(rows).items() if row["sent"]}
        found.append((progress.model(FEDERATION), own, parts, shares, progress.trained))
    assert_same(*found)


def assert_same(one, other):
    """Also tensors in dictionaries, tuples and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other


def test_the_model_is_the_mean_of_those_that_sent(scripted):
    """By hand: 33, 10, 5 and 20 cases, of which Bonn's and Dresden's count in round 1."""
    made = Federation(table_sites(), [{"fedavg": {"channel": ["scripted"]}}], training={"rounds": 2})
    changes, starts = {}, []
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            if function == "train" and requests[site].fields["round"] == 1:
                changes[site] = reply.tensors.get("change")
                starts.append(requests[site].tensors["state"])
            yield site, reply

    made.engine.call = call
    progress, rows = made.rounds()
    assert [site for site in SITES if changes[site] is None] == ["Aachen", "Celle"]
    mean = starts[0] + (10 * changes["Bonn"].double() + 20 * changes["Dresden"].double()) / 30
    torch.testing.assert_close(progress.model(FEDERATION).double(), mean, rtol=1e-6, atol=1e-7)
    shares = [row["share"] for row in rows if row["round"] == 1]
    assert shares == pytest.approx([0, 1 / 3, 0, 2 / 3])


# What the loop makes of it --------------------------------------------------------------------------------------------


def test_really_nothing_leaves_the_site_and_its_row_is_there(scripted):
    method = {"scaffold": {"channel": ["scripted"]}}
    made = Federation(table_sites(), [method], model=MODEL, training={"rounds": 5}, serialise=True)
    answers = {}
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            if function == "train":
                answers[requests[site].fields["round"], site] = reply
            yield site, reply

    made.engine.call = call
    _, rows = made.rounds()
    assert list(table(rows)) == [(number, site) for number in range(5) for site in SITES]
    for key, row in table(rows).items():
        reply = answers[key]
        quiet = key in KEPT_BACK
        assert (row["sent"], reply.tensors == {}) == (int(not quiet), quiet)
        assert row["bytes_up"] == len(reply.to_bytes())
        assert set(reply.fields) >= {"examples", "steps", "loss", "seconds"}
        assert row["bytes_down"] > 0
        assert row["loss"] > 0
        if quiet:
            assert (row["share"], row["extra_up"]) == (0.0, "")
            assert len(reply.to_bytes()) < 300
    for number in range(5):
        assert sum(row["share"] for row in rows if row["round"] == number) == pytest.approx(1)


FIVE = dict.fromkeys([*SITES, "Essen"], 12)


@pytest.mark.parametrize("method", ["fedavg", "fedavgm", "krum"])
def test_if_nobody_sends_anything_the_model_stays_and_the_round_is_done(method, scripted):
    scripted.clear()
    scripted |= {(2, site) for site in FIVE}
    made = Federation(table_sites(FIVE), [{method: {"channel": ["scripted"]}}], model=MODEL,
                      training={"rounds": 4, "quorum": 5})  # fmt: skip
    states, reports = [], []
    original = made.engine.call

    def call(function, requests):
        if function == "train":
            states.append(next(iter(requests.values())).tensors["state"].clone())
        yield from original(function, requests)

    made.engine.call = call
    progress, rows = made.rounds(report=lambda done, of: reports.append(done))
    assert reports == [1, 2, 3, 4]
    assert torch.equal(states[2], states[3])
    assert not torch.equal(states[1], states[2])
    assert not torch.equal(states[3], progress.model(FEDERATION))
    assert [row["sent"] for row in rows if row["round"] == 2] == [0] * 5
    assert progress.trained == {FEDERATION: 3}
    assert not progress.failures, "nothing went wrong"


def test_too_few_updates_for_a_rule_change_nothing_and_are_noted(scripted):
    """Krum outvotes one of five; in round 1 three send."""
    made = Federation(
        table_sites(FIVE), [{"krum": {"channel": ["scripted"]}}], training={"rounds": 3, "quorum": 5}
    )  # fmt: skip
    progress, rows = made.rounds()
    (note,) = progress.failures
    assert "Round 2 changed nothing" in note
    assert "3 answered" in note
    assert {row["round"] for row in rows} == {0, 2}
    scripted.clear()
    failing(made.engine, (1, "Bonn"), (1, "Celle"))
    with pytest.raises(SiteError, match="3 of 5 sites answered"):
        made.rounds()


def test_sites_that_send_nothing_are_there(scripted):
    """They count for the quorum, and what they say of their loss is heard."""
    made = Federation(table_sites(), [{"fedavg": {"channel": ["scripted"]}}], training={"rounds": 5, "quorum": 4})
    progress, rows = made.rounds()
    assert not progress.failures
    last = {row["site"]: row["loss"] for row in rows if row["round"] == 4}
    assert progress.losses == last
    assert progress.counted == {"Aachen": 17, "Bonn": 14, "Celle": 15, "Dresden": 16}, "of exchanges 1 to 20"


def test_one_that_is_late_is_late(scripted):
    """Aachen needs five steps: its silence comes too late as well."""
    training = {"rounds": 2, "participation": {"deadline": {"seconds": 3.5}}, "step_seconds": 1.0, "quorum": 3}
    made = Federation(table_sites(), [{"fedavg": {"channel": ["scripted"]}}], training=training)
    progress, rows = made.rounds()
    assert {row["site"] for row in rows} == {"Bonn", "Celle", "Dresden"}
    assert all("went on without Aachen" in note for note in progress.failures)
    assert len(progress.failures) == 2


def test_c_stays_the_mean_of_all_c_k(tmp_path):
    """Karimireddy 2020, algorithm 1, whoever sends."""
    method = {"scaffold": {"channel": [BY_LOSS]}}
    training = {"rounds": 8, "weights": "uniform", "optimizer": {"sgd": {"lr": 0.5}}}
    made = Federation(table_sites(part=None), [method], training=training, folder=tmp_path / "sites",
                      evaluation={"folds": 3, "validation": 0.3})  # fmt: skip
    progress, rows = made.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    assert {row["sent"] for row in rows} == {0, 1}
    own = [kept.parts["control_variates"]["control"] for kept in made.kept(progress).values()]
    saved = Checkpoint(tmp_path / "job")
    saved.read(progress.first)
    c = saved.memory["model federation/control_variates/control"]
    assert c.norm() > 0.01
    torch.testing.assert_close(torch.stack(own).mean(0), c, rtol=1e-4, atol=1e-6)


# Engines and interruptions --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


THREE = {"Aachen": 33, "Bonn": 14, "Celle": 17}
COMPOSED = [
    {"scaffold": {"channel": [BY_LOSS, {"top_k": {"share": 0.3}}]}},
    {"fedbn": {"channel": [BY_LOSS], "personal": "ditto", "server": "fedadam"}},
    "dynamic_fusion",
]


def outcome(method, folder=None, stop=None, data=None, **options):
    """Rows without times, predictions, and digests of the models; some updates are kept back."""
    made = Federation(
        data or table_sites(THREE, part=None), [method], model=MODEL,
        training={"rounds": 6, "optimizer": {"sgd": {"lr": 0.3}}},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"}, **options,
        **({} if folder is None else {"folder": folder / "sites"}),
    )  # fmt: skip

    def report(done, _):
        if done == stop:
            raise Killed

    checkpoint = None if folder is None else Checkpoint(folder / "job")
    found = made.runner.run(Job((made.method(),), 0, 0), made.fold, checkpoint=checkpoint, report=report)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found.rounds]
    (tensors,) = found.models.values()
    assert {row["sent"] for row in rows} == {0, 1}, "or nothing was tried"
    frames = [frame.to_csv() for frame in found.predictions]
    return rows, frames, {key: hashlib.sha256(t.numpy().tobytes()).hexdigest() for key, t in tensors.items()}


@pytest.mark.parametrize("method", COMPOSED, ids=["scaffold", "fedbn", "plain"])
def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(method, tmp_path):
    unbroken = outcome(method, tmp_path / "unbroken")
    for stop in range(1, 6):
        with pytest.raises(Killed):
            outcome(method, tmp_path / str(stop), stop)
        assert outcome(method, tmp_path / str(stop)) == unbroken


@pytest.fixture(scope="module")
def workers():
    """Three sites in two processes."""
    data = table_sites(THREE, part=None)
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    yield data, engine
    engine.close()


@pytest.mark.parametrize("method", COMPOSED, ids=["scaffold", "fedbn", "plain"])
def test_engines_agree(method, workers):
    torch.set_num_threads(1)  # as many as the workers have
    alone = outcome(method)
    assert outcome(method, serialise=True) == alone
    assert outcome(method, data=workers[0], engine=workers[1]) == alone
    together = outcome(method, stacked=True)[0]
    assert [row["sent"] for row in together] == [row["sent"] for row in alone[0]]
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone[0]], rel=1e-3)


# What is refused ------------------------------------------------------------------------------------------------------


def test_without_such_a_part_an_answer_without_an_update_is_the_sites_failure():
    made = Federation(table_sites(), training={"rounds": 1})
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            if function == "train" and site == "Bonn":
                reply.tensors.clear()
            yield site, reply

    made.engine.call = call
    with pytest.raises(SiteError, match=r"P401.*Bonn.*it is missing"):
        made.rounds()


def test_half_an_update_is_none(scripted):
    made = Federation(table_sites(), [{"fedavg": {"channel": ["scripted"]}}], model=MODEL)
    original = made.engine.call

    def call(function, requests):
        for site, reply in original(function, requests):
            if function == "train":
                del reply.tensors["change"]
            yield site, reply

    made.engine.call = call
    with pytest.raises(SiteError, match="change: it is missing"):
        made.rounds()


def test_a_part_says_yes_or_no():
    @CHANNEL_PARTS.add("vague")
    class Vague(SitePart):
        """Says something else."""

        def sends(self, ended):
            return None

    try:
        made = Federation({"Aachen": table_site("Aachen", 12)}, [{"fedavg": {"channel": ["vague"]}}])
        with pytest.raises(PartError, match="vague at site Aachen gave nothing in `sends`; expected True or False"):
            made.rounds()
    finally:
        CHANNEL_PARTS.remove("vague")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"channel": ["secure_sum"]}, "dynamic_fusion lets single sites send nothing, which secure_sum can't hide"),
        ({"topology": "cyclic"}, "in the topology cyclic each hands the model on"),
        ({"topology": "incremental"}, "in the topology incremental each hands the model on"),
    ],
)
def test_where_every_site_has_to_send_something_it_is_refused(entry, message):
    channel = {"channel": ["dynamic_fusion", *entry.get("channel", [])]}
    for method in ({"dynamic_fusion": entry}, {"fedavg": entry | channel}):
        with pytest.raises(StudyError, match=message) as caught:
            declare(methods=[method])
        assert caught.value.code == "P104"


def test_a_task_without_an_accuracy_goes_by_the_loss():
    with pytest.raises(StudyError, match="dynamic_fusion asks for the accuracy"):
        declare(methods=["dynamic_fusion"], task="regression")
    data = {name: number_site(name, cases, part=None) for name, cases in THREE.items()}
    training = {"rounds": 6, "optimizer": {"sgd": {"lr": 0.2}}}
    made = Federation(data, [BY_LOSS], training=training, task="regression", classes=0,
                      evaluation={"folds": 2, "validation": 0.3})  # fmt: skip
    _, rows = made.rounds()
    assert {row["sent"] for row in rows} == {0, 1}


# A study, and one round -----------------------------------------------------------------------------------------------


def test_a_study_tells_how_many_updates_were_kept_back(tmp_path):
    content = write_table_study(tmp_path, {"Aachen": 24, "Bonn": 18, "Celle": 20})
    content["training"]["rounds"] = 4
    content["methods"] = ["single", "fedavg", "dynamic_fusion"]
    found = Study.of(content, tmp_path).run(tmp_path / "out")
    rounds = found.rounds[found.rounds["method"] == "dynamic_fusion"]
    quiet = rounds[rounds["sent"] == 0]
    assert len(quiet)
    assert (quiet["bytes_up"] < 300).all()
    assert (quiet["share"] == 0).all()
    (note,) = [note for note in found.notes if note.number == "N811"]
    counts = ", ".join(f"{site} {count}" for site, count in quiet.groupby("site", sort=False).size().items())
    nobody = sum(1 for _, of in rounds.groupby(["seed", "fold", "round"]) if not of["sent"].any())
    assert note.startswith(f"dynamic_fusion: {len(quiet)} of 24 updates were kept back")
    assert f"({counts}); in {nobody} round" in note


def test_one_round_has_all_local_work_and_one_mean():
    """As the page of methods has it: three rounds' epochs at once, from plain PyTorch; each site sends one update."""
    made = Federation(
        {"Aachen": table_site("Aachen", 33), "Bonn": table_site("Bonn", 11)},
        ["fedavg", {"fedavg": {"training": {"rounds": 1, "local_epochs": 3}, "label": "one-shot"}}],
        training={"rounds": 3, "batch_size": 11, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}},
    )  # fmt: skip
    network, ends = made.network(0), {}
    for site, data in made.data.items():
        module = plain_module(network, network.vector).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        source = generator(0, "train", site, 0, 0)
        for _ in range(3):
            for batch in torch.randperm(len(data.targets), generator=source).split(11):
                optimizer.zero_grad()
                F.cross_entropy(module(data.inputs[batch]), data.targets[batch]).backward()
                optimizer.step()
        ends[site] = flat(network, module).double()
    progress, rows = made.rounds("one-shot")
    expected = (33 * ends["Aachen"] + 11 * ends["Bonn"]) / 44
    torch.testing.assert_close(progress.model(FEDERATION).double(), expected, rtol=1e-5, atol=1e-6)
    _, all_rows = made.rounds("fedavg")
    assert len(rows) == 2
    assert sum(row["steps"] for row in rows) == sum(row["steps"] for row in all_rows) == 12
    assert 3 * sum(row["bytes_up"] for row in rows) == sum(row["bytes_up"] for row in all_rows)


def test_examples_of_fewer_rounds_and_messages_can_be_read():
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    section = page.partition("### Fewer rounds, fewer messages")[2].partition("\n### ")[0]
    (block,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    methods = {method.label: method for method in declare(**yaml.safe_load(block)).study_methods}
    shot, plain = methods["one-shot"], methods["fedavg"]
    assert shot.method == plain.method
    assert (shot.training.rounds, shot.training.local_epochs) == (1, plain.training.rounds)
