"""Mistakes that authors of plug-ins may make: each is told in a sentence, and none gives a wrong number in silence."""

from dataclasses import replace
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field

from plugin_helpers import failing, federation
from polyclinic import catalogues
from polyclinic.client.personal.models import PERSONAL
from polyclinic.errors import PartError, PolyclinicError, StudyError
from polyclinic.methods import publish
from polyclinic.models.catalogue import MODELS
from polyclinic.options import EntryError
from polyclinic.parts import (
    CHANNEL_PARTS,
    LOCAL_PARTS,
    PROCEDURES,
    SERVER_PARTS,
    TOPOLOGIES,
    Aggregation,
    Answered,
    Grouping,
    Part,
    Procedure,
    ServerEnd,
    ServerPart,
    SiteEnd,
    SitePart,
)
from polyclinic.running.progress import Checkpoint
from polyclinic.server.selection import PARTICIPATION
from test_plugin_runs import command, table_study
from test_plugins import OWN, load, package  # noqa: F401 - `load` is a fixture

MEND = "Mend the package that brings the part; what each hook gives stands in docs/adding-a-part.md."
ALIKE = "All failed in the same way, so look for the cause in what they have in common: the study, its parts, its data."


@pytest.fixture(autouse=True)
def only_here():
    """What a test enters into the catalogues is gone after it."""
    before = catalogues._entered()
    yield
    catalogues._take_back(before)


def one(base, **found):
    return type("Found", (base,), {"__doc__": "A part.", **found})


def local(**hooks):
    """A study of a part at the sites."""
    LOCAL_PARTS.add("own")(one(SitePart, **hooks))
    return {"local": ["own"]}


def server(base=ServerPart, **hooks):
    SERVER_PARTS.add("own")(one(base, **hooks))
    return {"server": ["own"]}


def channel(here, there):
    """A study of a part of the channel, given the hooks of its ends."""
    ends = {"at_site": one(SiteEnd, **here), "at_server": one(ServerEnd, needs_each=True, **there)}
    hooks = {name: staticmethod(end) for name, end in ends.items()}
    CHANNEL_PARTS.add("own")(one(Part, reveals={"count": "nothing"}, **hooks))
    return {"channel": ["own"]}


def topology(stages):
    TOPOLOGIES.add("own")(one(Grouping, several=True, stages=stages))
    return {"topology": "own"}


def procedure(updates, **found):
    PROCEDURES.add("own")(one(Procedure, updates=updates, **found))
    return {"procedure": "own"}


def said(entry, **options):
    """What is said of a study."""
    with pytest.raises(PolyclinicError) as caught:
        federation(entry, **options).rounds()
    return str(caught.value)


# Hooks at a site ------------------------------------------------------------------------------------------------------


def nothing(*_):
    return None


def number(*_):
    return {"n": 3}


TENSORS = "expected a dictionary of tensors, `{}` for none"

AT_SITES = [
    ({"begin": nothing}, f"gave nothing in `begin`; {TENSORS}"),
    ({"begin": number}, f"gave something of type int as 'n' in `begin`; {TENSORS}"),
    ({"begin": lambda *_: [1]}, f"gave something of type list in `begin`; {TENSORS}"),
    ({"end": nothing}, f"gave nothing in `end`; {TENSORS}"),
    ({"close": nothing}, f"gave nothing in `close`; {TENSORS}"),
    ({"batch": nothing}, "gave nothing in `batch`; expected the batch, or `replace(batch, ...)`"),
    ({"drawn": lambda *_: [1], "loss": lambda *_: None}, f"gave something of type list in `drawn`; {TENSORS}"),
    ({"loss": lambda *_: 0.5}, "gave something of type float in `loss`; expected a tensor of one number, or None"),
    ({"loss": lambda self, batch, given: batch.outputs.sum(0)},
     "gave a tensor [2] in `loss`; expected a tensor of one number, or None"),
    ({"gradient": lambda self, gradient, *_: gradient * 2},
     "gave a tensor [52] in `gradient`; expected nothing: it changes `gradient` in place"),
    ({"class_weights": lambda *_: torch.ones(7)},
     "gave a tensor [7] in `class_weights`; expected a tensor [2] or None"),
]  # fmt: skip


@pytest.mark.parametrize(("hooks", "why"), AT_SITES, ids=[why for _, why in AT_SITES])
def test_what_a_hook_at_a_site_must_not_give(hooks, why):
    found = said(local(**hooks))
    assert found.startswith(
        f"P402 In round 1, 0 of 4 sites answered (4 needed). Aachen: P304 The part own at site Aachen {why}"
    )
    assert found.endswith(f"{MEND.removesuffix('.')}; likewise Bonn, Celle, Dresden. {ALIKE}")


def test_what_sites_must_not_tell_when_training_starts():
    assert said(local(meet=nothing)).startswith(f"P304 The part own at site Aachen gave nothing in `meet`; {TENSORS}")


def test_a_gradient_is_changed_in_place_by_sites_that_are_trained_together_too():
    entry = local(gradient=lambda self, gradient, *_: gradient * 2)
    assert "P304 The part own at site Aachen gave a tensor [52] in `gradient`" in said(entry, stacked=True)


def test_a_site_whose_part_fails_is_left_out_if_the_others_suffice():
    def begin(self, view, received):
        return None if view.name == "Bonn" else {}

    progress, rows = federation(local(begin=begin), training={"quorum": 3}).rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Celle", "Dresden"}
    assert "Bonn: P304 The part own at site Bonn gave nothing in `begin`" in progress.failures[0]


def test_causes_that_differ_are_told_one_by_one():
    def begin(self, view, received):
        return {"Aachen": {}, "Bonn": None}.get(view.name, {"n": len(view.name)})

    found = said(local(begin=begin))
    assert "Bonn: P304 The part own at site Bonn gave nothing" in found
    assert "Celle: P304 The part own at site Celle gave something of type int as 'n'" in found
    assert "; likewise Dresden. Mend the sites named" in found


# What is kept ---------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_tensors():
    def begin(self, view, received):
        self.kept = {"rounds": 1}
        return {}

    assert f"gave something of type int as 'rounds' in `kept`; {TENSORS}" in said(local(begin=begin))


def test_what_is_kept_is_not_written_to():
    """Else a round that does not count would be kept all the same."""

    def meet(self, view):
        self.kept = {"rounds": torch.zeros(1)}
        return {}

    def begin(self, view, received):
        self.kept["rounds"] += 1
        return {}

    assert (
        "P304 The part own at site Aachen gave 'rounds' other numbers in place in `kept`; "
        "expected a new tensor: others have this one."
    ) in said(local(meet=meet, begin=begin))


def test_the_model_that_a_site_received_is_not_written_to():
    def begin(self, view, received):
        view.vector.zero_()
        return {}

    assert "gave 'vector' other numbers in place in `begin`; expected a new tensor" in said(local(begin=begin))


def test_the_first_model_is_not_written_to():
    def meet(self, view):
        view.vector.zero_()
        return {}

    assert "gave 'vector' other numbers in place in `meet`; expected a new tensor" in said(local(meet=meet))


def test_a_model_that_is_measured_is_never_taken_for_another(monkeypatch):
    """Another model may have the memory of one that is gone, and a model may be written to."""
    found = []

    def begin(self, view, received):
        for scale in (1.0, 40.0, 0.5):
            found.append((scale, view.measure(view.vector * scale)["loss"]))
        own = view.vector.clone()
        for scale in (1.0, 40.0, 0.5):
            found.append((scale, view.measure(own.copy_(view.vector * scale))["loss"]))
        return {}

    federation(local(begin=begin)).rounds()
    assert len(found) == 6 * 3 * 4
    for start in range(0, len(found), 6):
        losses = dict(found[start : start + 3])
        assert len(set(losses.values())) == 3
        assert dict(found[start + 3 : start + 6]) == losses


@pytest.mark.parametrize("hook", ["take", "finish"])
def test_what_sites_are_sent_is_not_written_to_while_some_may_not_have_read_it(hook):
    """Else what a site gets would depend on which site answered before; when all have answered it is no harm."""

    def begin(self, now):
        if not hasattr(self, "count"):
            self.count = torch.zeros(1)

    def counted(self, given):
        self.count += 1
        return given

    entry = channel({}, {"begin": begin, "send": lambda self, site: {"count": self.count}, hook: counted})
    if hook == "take":
        assert "The part own gave 'count' other numbers in place in `take`; expected a new tensor" in said(entry)
    else:
        federation(entry).rounds()


def test_what_is_put_under_a_name_counts_with_its_round_only():
    """Bonn's answer of round 2 is lost, so of three rounds it has kept two."""

    def begin(self, view, received):
        self.kept["rounds"] = self.kept.get("rounds", torch.zeros(1)) + 1
        return {}

    alone = federation(local(begin=begin), training={"quorum": 3})
    failing(alone.engine, (1, "Bonn"))
    kept = alone.kept(alone.rounds()[0])
    assert {site: found.parts["own"]["rounds"].item() for site, found in kept.items()} == {
        "Aachen": 3, "Bonn": 2, "Celle": 3, "Dresden": 3,
    }  # fmt: skip


# Sites that are trained together --------------------------------------------------------------------------------------


def knows_its_site(self, view, received):
    self.factor = float(view.count())
    return {}


def by_what_it_knows(self, gradient, weights, start, given):
    gradient.mul_(self.factor / 20)


def remembers(self, view, received):
    self.kept = {"factor": torch.tensor(float(view.count() + view.number))}
    return {}


def by_what_it_keeps(self, gradient, weights, start, given):
    gradient.mul_(self.kept["factor"] / 20)


def of_one_length(self, gradient, weights, start, given):
    gradient.div_(gradient.norm())


def only_if_long(self, gradient, weights, start, given):
    gradient.div_(gradient.norm().clamp_min(0.2))


def by_steps(self, gradient, weights, start, given):
    self.steps = getattr(self, "steps", 0) + 1
    gradient.div_(self.steps)


def shares(self, view, received):
    return {"factor": torch.tensor(view.count() / 20)}


def by_share(self, gradient, weights, start, given):
    gradient.mul_(given["factor"])


def of_any_shape(self, view, received):
    return {"factor": torch.ones(view.count()) / 20}


def by_sum(self, gradient, weights, start, given):
    gradient.mul_(given["factor"].sum())


@pytest.mark.parametrize("hooks", [
    {"begin": knows_its_site, "gradient": by_what_it_knows}, {"begin": remembers, "gradient": by_what_it_keeps},
    {"gradient": of_one_length}, {"gradient": only_if_long}, {"gradient": by_steps},
    {"begin": shares, "gradient": by_share}, {"begin": of_any_shape, "gradient": by_sum},
], ids=lambda hooks: hooks["gradient"].__name__)  # fmt: skip
def test_sites_that_are_trained_together_are_changed_as_each_alone(hooks):
    """The right value is that of sites one after another, each with an end of its own."""
    entry = local(**hooks)
    alone, together = (federation(entry, stacked=stacked) for stacked in (False, True))
    states = [each.state() for each in (alone, together)]
    assert torch.allclose(*states, rtol=0, atol=1e-5)
    assert (states[0] - federation().state()).abs().max() > 1e-3
    (trainer,) = together.engine._trainers.values()
    assert [rule.together for rule in trainer.rules] == [False]


def test_one_end_serves_all_sites_where_that_is_right():
    def begin(self, view, received):
        self.told = view.number
        return {"direction": view.vector[: view.trainable].clone()}

    def gradient(self, gradient, weights, start, given):
        length = gradient.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        gradient.div_(length).add_(weights - given["direction"], alpha=0.1)

    entry = local(begin=begin, gradient=gradient)
    alone, together = (federation(entry, stacked=stacked) for stacked in (False, True))
    assert torch.allclose(alone.state(), together.state(), rtol=0, atol=1e-5)
    (trainer,) = together.engine._trainers.values()
    assert [rule.together for rule in trainer.rules] == [True]


@pytest.mark.parametrize("method", ["fedprox", "scaffold", "feddyn"])
def test_published_rules_serve_all_sites_at_once(method):
    together = federation(method, stacked=True)
    together.rounds()
    (trainer,) = together.engine._trainers.values()
    assert [rule.together for rule in trainer.rules] == [True]


# Hooks at the server --------------------------------------------------------------------------------------------------

AT_SERVER = [
    ({"take": nothing}, "gave nothing in `take`; expected a new `Update`, or the one given"),
    ({"finish": nothing}, "gave nothing in `finish`; expected a new `Step`, or the one given"),
    ({"finish": lambda self, step: replace(step, change=step.change[:3])},
     "gave a tensor [3] as change in `finish`; expected a tensor [52]"),
    ({"finish": lambda self, step: replace(step, change=torch.ones(1))},
     "gave a tensor [1] as change in `finish`; expected a tensor [52]"),
    ({"finish": lambda self, step: replace(step, statistics=torch.zeros(0))},
     "gave a tensor [0] as statistics in `finish`; expected a tensor [10]"),
    ({"send": lambda *_: {"x": 2.0}}, f"gave something of type float as 'x' in `send`; {TENSORS}"),
    ({"memory": number}, f"gave something of type int as 'n' in `memory`; {TENSORS}"),
    ({"begin": lambda self, now: list(self.ask("what", {"Atlantis": {}}))},
     "gave 'Atlantis' as a site in `ask('what', ...)`; expected sites of the training"),
    ({"begin": lambda self, now: list(self.ask("what", {"Bonn": None}))},
     f"gave nothing in `ask('what', ...)`; {TENSORS}"),
]  # fmt: skip


@pytest.mark.parametrize(("hooks", "why"), AT_SERVER, ids=[why for _, why in AT_SERVER])
def test_what_a_hook_at_the_server_must_not_give(hooks, why, tmp_path):
    with pytest.raises(PartError) as caught:
        federation(server(**hooks), folder=tmp_path).rounds(checkpoint=Checkpoint(tmp_path / "checkpoint.safetensors"))
    assert str(caught.value) == f"P304 The part own {why}. {MEND}"


def test_a_share_of_a_site_without_an_update():
    found = said(server(finish=lambda self, step: replace(step, shares={"Atlantis": 1.0})))
    assert found.startswith("P304 A part at the server gave a share of 'Atlantis', of whom no update came.")


def test_an_aggregation_that_gives_nothing():
    class Rule(ServerPart, Aggregation):
        """A rule."""

        def add(self, update):
            pass

        def done(self):
            pass

    SERVER_PARTS.add("own")(Rule)
    assert said({"server": ["own"]}).startswith("P304 The part own gave nothing in `done`; expected a new `Step`")


def test_what_is_known_of_a_round_is_there_without_a_word():
    """An own `begin` that does not call that of `ServerEnd`; half of each step, by hand."""
    entry = server(
        begin=nothing, finish=lambda self, step: replace(step, change=step.change * 5 * self.now.learning_rate)
    )
    once = {"rounds": 1}
    start, whole = federation().initial(0), federation(training=once).state()
    half = federation(entry, training=once).state()
    assert torch.allclose(half[:52] - start[:52], (whole[:52] - start[:52]) / 2, atol=1e-7)


@pytest.mark.parametrize(("here", "there", "why"), [
    ({}, {"open": nothing}, f"The part own gave nothing in `open`; {TENSORS}"),
    ({}, {"open": lambda self, packed: {"change": packed["change"]}},
     "The part own gave nothing as the statistics of site Aachen in `open`; expected [10] numbers with fractions"),
    ({}, {"open": lambda self, packed: {**packed, "change": packed["change"].long()}},
     "The part own gave a tensor [52] as the change of site Aachen with numbers of int64 in `open`; expected [52]"),
    ({"close": lambda self, packed: {**packed, "change": packed["change"][:4]}}, {},
     "A part or a procedure gave a tensor [4] as the change of site Aachen; expected [52] numbers with fractions."),
])  # fmt: skip
def test_a_channel_that_does_not_undo_what_it_did(here, there, why):
    assert said(channel(here, there)).startswith(f"P304 {why}")


# Groupings and procedures ---------------------------------------------------------------------------------------------

STAGES = "expected a list of stages, each `{model: [site, ...]}`"


@pytest.mark.parametrize(("stages", "why"), [
    (nothing, f"gave nothing in `stages`; {STAGES}"),
    (lambda *_: [], f"gave an empty list in `stages`; {STAGES}"),
    (lambda self, turn: {"m": turn.sites}, f"gave something of type dict in `stages`; {STAGES}"),
    (lambda self, turn: [turn.sites], f"gave something of type list among the stages in `stages`; {STAGES}"),
    (lambda self, turn: [{"m": "Bonn"}], f"gave something of type str as the sites of 'm' in `stages`; {STAGES}"),
    (lambda self, turn: [{"m": ["Atlantis"]}],
     "gave 'Atlantis' among the sites of 'm' in `stages`; expected sites of `turn.sites`"),
    (lambda self, turn: [{"m": turn.sites, "n": ["Bonn"]}],
     "gave Bonn twice in a stage in `stages`; expected each site at most once in a stage"),
])  # fmt: skip
def test_stages_that_can_not_be(stages, why):
    assert said(topology(stages)) == f"P304 The part own {why}. {MEND}"


def all_of(stage):
    return stage.train({site: stage.state(site) for site in stage.sites})


def twice(self, stage):
    for _ in range(2):
        yield from all_of(stage)


def doubled(self, stage):
    for answered in all_of(stage):
        yield from (answered, answered)


def unnamed(self, stage):
    for answered in all_of(stage):
        yield answered.packed


def silent(self, stage):
    for site in stage.sites:
        yield Answered(site, {"change": stage.state(site)[:52], "statistics": stage.state(site)[52:]}, {"examples": 1})


def foreign(self, stage):
    yield from stage.train({"Atlantis": stage.state("Bonn")})


@pytest.mark.parametrize(("updates", "why"), [
    (nothing, "gave nothing in `updates`; expected to `yield` an `Answered` for each site"),
    (unnamed, "gave something of type dict in `updates`; expected an `Answered` for each site"),
    (doubled,
     "gave an answer of 'Aachen' again in `updates`; expected one answer at most of each site of `stage.sites`"),
    (twice, "gave Aachen to train again in `updates`; expected each site at most once in a stage"),
    (foreign, "gave 'Atlantis' to train in `updates`; expected sites of `stage.sites`"),
    (silent, "gave an answer that says no 'steps' in `updates`; expected `said` to have it"),
])  # fmt: skip
def test_updates_that_can_not_be(updates, why):
    assert said(procedure(updates)) == f"P304 The part own {why}. {MEND}"


def test_a_procedure_that_asks_nobody():
    found = said(procedure(lambda self, stage: iter(())))
    assert found.startswith("P402 None of 3 rounds changed the model")
    assert "or none was asked to train." in found


# Loading --------------------------------------------------------------------------------------------------------------


def options(**types):
    """A part with options, of types."""

    class Options(SitePart):
        """A part."""

        def __init__(self, *, mu=1.0):
            self.mu = mu

    Options.__init__.__annotations__ = types
    return Options


class ByPlace(SitePart):
    """A part."""

    def __init__(self, mu: float = 1.0):
        self.mu = mu


class NoSum(ServerPart, Aggregation):
    """A rule."""

    def add(self, update):
        pass


@pytest.mark.parametrize(("bring", "why"), [
    (lambda: LOCAL_PARTS.add("own")(dict),
     "'own' under `local` has to be a subclass of Part (such as SitePart and ServerPart)"),
    (lambda: LOCAL_PARTS.add("own")(lambda: SitePart()), "'own' under `local` has to be a subclass of Part"),
    (lambda: LOCAL_PARTS.add("own")(one(Grouping, stages=nothing)), "'own' under `local` has to be a subclass of Part"),
    (lambda: TOPOLOGIES.add("own")(one(SitePart)), "'own' under `topology` has to be a subclass of Grouping"),
    (lambda: PERSONAL.add("own")(one(SitePart)), "'own' under `personal` has to be a subclass of Personal"),
    (lambda: PARTICIPATION.add("own")(dict), "'own' under `participation` has to be a subclass of Participation"),
    (lambda: TOPOLOGIES.add("own")(one(Grouping)), "'own' lacks stages, which a Grouping of its kind must have"),
    (lambda: PROCEDURES.add("own")(one(Procedure)), "'own' lacks updates, which a Procedure of its kind must have"),
    (lambda: SERVER_PARTS.add("own")(NoSum), "'own' lacks done, which a Part of its kind must have"),
    (lambda: LOCAL_PARTS.add("own")(ByPlace), "'own' has 'mu' among its arguments by place, and options are given by "
     "name: `def __init__(self, *, mu: ...)`"),
    (lambda: LOCAL_PARTS.add("own")(options()), "the options of 'own' can't be checked: the option 'mu' of "),
    (lambda: LOCAL_PARTS.add("own")(options(mu="Absent")),
     "the options of 'own' can't be checked: name 'Absent' is not defined"),
    (lambda: MODELS.add("own")(options()), "the options of 'own' can't be checked"),
    (lambda: LOCAL_PARTS.add(7)(one(SitePart)), "7 is no name for a part"),
    (lambda: publish("own", "", "", "", topology="ring"), "the method own has a part 'ring' under `topology`, which"),
    (lambda: publish("own", "", "", "", personal="ring"), "the method own has a part 'ring' under `personal`, which"),
    (lambda: publish("own", "", "", "", local=["median"]), "the method own has a part 'median' under `local`, which"),
    (lambda: publish("own", "", "", "", share="half"), "the method own shares 'half'; expected one of all, "),
])  # fmt: skip
def test_what_is_no_part_is_not_loaded(load, bring, why):  # noqa: F811 - the fixture
    (found,) = load(own=bring)
    assert found.problem.startswith(f"ValueError: {why}")
    assert not any("own" in names or 7 in names for names in catalogues._entered().values())


def test_a_plugin_can_not_end_the_program(load):  # noqa: F811 - the fixture
    def leave():
        raise SystemExit("no licence found")

    (found,) = load(own=leave)
    assert found.problem == "SystemExit: no licence found"


def test_options_that_do_not_go_together_are_told_when_the_study_is_read():
    class Own(SitePart):
        """A part."""

        def __init__(self, *, low: float = 0.0, high: float = 1.0) -> None:
            if low > high:
                raise ValueError("low is above high")

    LOCAL_PARTS.add("own")(Own)
    with pytest.raises(EntryError, match=r"P102 .*own can't be made with these options: low is above high"):
        federation({"local": [{"own": {"low": 2.0}}]})


@pytest.mark.parametrize(("hook", "end"), [("at_site", "SiteEnd"), ("at_server", "ServerEnd")])
def test_a_part_without_an_end_is_told_when_the_study_is_read(hook, end):
    LOCAL_PARTS.add("own")(one(Part, **{hook: nothing}))
    with pytest.raises(StudyError, match=rf"P304 .*The part own gave nothing in `{hook}`; expected a `{end}`"):
        federation({"local": ["own"]})


def test_a_part_is_given_its_options_alike_at_both_ends():
    """A tuple is a list in a message, so it is one at the server, too."""
    found = []

    class Own(Part):
        """A part."""

        def __init__(self, *, pair: tuple[int, int] = (1, 2), kind: Literal["a", "b"] = "a") -> None:
            found.append((pair, kind))

    LOCAL_PARTS.add("own")(Own)
    federation({"local": [{"own": {"pair": [3, 4]}}]}, serialise=True).rounds()
    assert len(found) > 4
    assert all(own == ([3, 4], "a") for own in found)


def test_labels_of_options_that_have_options():
    class Own(SitePart):
        """A part."""

        def __init__(self, *, table: dict[str, Annotated[float, Field(ge=0)]] | None = None) -> None:
            pass

    LOCAL_PARTS.add("own")(Own)
    labels = [
        federation({"local": [{"own": {"table": table}}]}).method().label
        for table in ({"a": 1.0}, {"a": 1.0, "b": 2.0}, {})
    ]
    assert labels == [
        "fedavg(local=own(table=(a: 1.0)))", "fedavg(local=own(table=(a: 1.0, b: 2.0)))", "fedavg(local=own(table=()))",
    ]  # fmt: skip


# On the command line --------------------------------------------------------------------------------------------------

RAISING = """
from polyclinic.parts import SERVER_PARTS, ServerPart

@SERVER_PARTS.add("own")
class Own(ServerPart):
    '''Fails.'''

    def finish(self, step):
        raise KeyError("x")
"""


def test_an_error_in_a_plugin_is_a_sentence_that_says_whose_it_is(tmp_path):
    study = table_study(tmp_path, {"own": {"server": ["own"]}})
    found = command("run", study, "--out", tmp_path / "out", lib=package(tmp_path / "lib", "1.0", RAISING))
    assert found.returncode == 1
    said = " ".join(found.stderr.split())
    assert "Error P304 The plug-in own (own-parts 1.0) failed: KeyError: 'x'. It is not Polyclinic itself" in said
    assert "Traceback" not in found.stderr
    log = (tmp_path / "out" / "error.log").read_text()
    assert "in finish" in log
    assert "KeyError: 'x'" in log


def test_a_study_is_not_resumed_without_its_plugin(tmp_path):
    """Its parts are unknown then; that the plug-in is gone is said first."""
    lib, study = package(tmp_path / "lib", "1.0", OWN), table_study(tmp_path, {"own": {"local": ["own"]}})
    command("run", study, "--out", tmp_path / "out", lib=lib, dying=[1])
    found = command("run", study, "--out", tmp_path / "out", "--resume")
    assert found.returncode == 1
    words = " ".join(found.stderr.split())
    assert "P501" in words
    assert "was started with other plug-ins: own-parts 1.0. Now there are: none." in words
