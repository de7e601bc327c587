"""The schema of messages at a site: what it is asked is refused with a sentence, or harmless."""

import copy
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import Federation, recorded, table_sites
from polyclinic.communication.message import Message
from polyclinic.data.opening.agreement import agree
from polyclinic.data.opening.census import Census
from polyclinic.data.opening.source import Source
from polyclinic.data.preparation import build_steps
from polyclinic.data.spec import DataSpec
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.shapes import Misfit, NotFinite, Shaped
from polyclinic.site.messages import Agree, AskGroups, Body, Compare, KeptTrial, Open, Spread
from polyclinic.site.messages import Test as Asked
from polyclinic.site.schema import FUNCTIONS, Known
from polyclinic.site.sums import PHASES
from polyclinic.tasks import TASKS, build_task
from polyclinic.tasks.base import TimeGrid

SITES = {"Aachen": 24, "Bonn": 17}
COMBAT: Any = (
    "combat",
    {"columns": [0], "features": ["x"], "covariates": {}, "empirical_bayes": True, "reference_site": None},
)
#: Fields of answers that the page tells in words: numbers of cases, steps, losses, pseudonyms, sentences.
SAID_IN_WORDS = {
    "train", "validation", "test", "classes", "note", "notes", "examples", "steps", "loss", "seconds", "cases",
    "metric", "metrics", "subject", "case", "worst", "median", "best",
}  # fmt: skip


def said() -> tuple[Federation, list[tuple[str, str, Message, Any]]]:
    """A whole training with harmonised scaling and its tests, and every message in it."""
    sites = {
        name: replace(data, groups={"sex": ["F", "M"] * (len(data) // 2) + ["F"] * (len(data) % 2)})
        for name, data in table_sites(SITES, part=None).items()
    }  # fmt: skip
    federation = Federation(
        sites, ["scaffold"], evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
        preparation={"steps": [["common_scaling", {}]]},
    )  # fmt: skip
    with recorded(federation.engine) as found:
        federation.prepare(0)
        federation.outcome()
        state = {"state": federation.initial(0)}
        question = Asked(threshold=0.5, method="scaffold", kind="plain", trained_on="federation", floor=5)
        replies = federation.engine.ask("test", dict.fromkeys(SITES, Message(question.fields(), state)))
        trial = KeptTrial(run="scaffold-seed0-fold0", method="scaffold", trained_on="federation", name="scaffold")
        about: Any = {"task": "classification", "classes": 2, "metrics": ["auc", "acc"], "trials": [trial], "floor": 5}
        compared = Message(Compare(**about, bootstrap=100, trust=True).fields())
        federation.engine.ask("compare", dict.fromkeys(SITES, compared))
        totals = [replies["Bonn"].tensors[name] for name in TASKS["classification"].totalled]
        tensors = {
            "shares": torch.ones(1, 2, dtype=torch.float64),
            "totals0": torch.cat([one.double().flatten() for one in totals]),
        }  # fmt: skip
        federation.engine.ask("spread", dict.fromkeys(SITES, Message(Spread(**about).fields(), tensors)))
        asked = Message(AskGroups(**about, bootstrap=100).fields())
        federation.engine.ask("groups", dict.fromkeys(SITES, asked))
        for function in ("try", "model", "sums", "overlays", "keep", "spent", "save", "restore", "retain"):
            own = {
                "overlays": {"threshold": 0.5},
                "save": {"round": 1},
                "restore": {"round": 1},
                "retain": {"model": "7"},
            }
            asked = Message(own.get(function, {}), state if function in ("try", "model", "sums", "overlays") else {})
            federation.engine.ask(function, dict.fromkeys(SITES, asked))
    return federation, found


def opening(site: Any) -> dict[str, Message]:
    """What is asked so that a site opens its own cases again; its table is written first."""
    data, folder = site.data, Path(tempfile.mkdtemp(prefix="polyclinic-messages-"))
    table = pd.DataFrame(data.table.numpy(), columns=[f"x{place}" for place in range(data.table.shape[1])])
    table = table.assign(site=data.site, patient=data.subjects, dx=[f"kind {label}" for label in data.labels.tolist()])
    table.to_csv(folder / "cases.csv", index=False)
    site.source = Source(folder, site=data.site)
    spec = DataSpec(table="cases.csv", site="site", subject="patient", label="dx", features="x*")
    asked = Message(Open(data=spec, target="labels").fields())
    census = Census.model_validate(site.handle("open", asked).fields)
    told = Agree(agreement=agree({data.site: census}, spec, "labels"), notes=True)
    return {"open": asked, "agree": Message(told.fields())}


FEDERATION, SAID = said()
VALID = {function: request for function, site, request, _ in SAID if site == "Bonn"}
VALID |= opening(FEDERATION.engine.members["Bonn"])  # type: ignore[attr-defined]
VALID |= dict.fromkeys(PHASES, Message({}, {"told": torch.frombuffer(bytearray(b'["Bonn"]'), dtype=torch.uint8)}))
#: A training comes in this order.
ORDER = [function for function in ("open", "agree", "prepare", "share", "apply", "start", "train") if function in VALID]


def ready() -> Any:
    """A site in the middle of a training."""
    site = FEDERATION.engine.members["Bonn"]  # type: ignore[attr-defined]
    for function in ORDER:
        site.handle(function, VALID[function])
    return site


def test_every_function_is_in_the_schema_and_answers() -> None:
    assert set(VALID) == set(FUNCTIONS) - {"describe", "survival"}
    assert set(FUNCTIONS) == set(ready()._functions)
    for _, _, _, reply in SAID:
        assert isinstance(reply, Message)


@pytest.mark.parametrize("function", sorted(VALID))
def test_what_is_not_known_is_refused(function: str) -> None:
    site, request = ready(), VALID[function]
    with pytest.raises(SiteError, match=rf"P401 A message '{function}' to site Bonn .*surplus: got a field"):
        site.handle(function, Message({**request.fields, "surplus": 1}, request.tensors))
    for name in ("surplus", "../state", "part/name", "model/../x"):
        with pytest.raises(SiteError, match="got a tensor that is not known here"):
            site.handle(function, Message(request.fields, {**request.tensors, name: torch.zeros(1)}))


JUNK = st.one_of(
    st.none(), st.booleans(), st.sampled_from([-1, 0, 2**70, 0.5, float("nan"), float("inf"), -float("inf"), 1e308]),
    st.sampled_from(["", "3", "nan", "../../../etc/passwd", "x" * 100_000, "\x00"]),
    st.sampled_from([[], [1], ["a", {}], [["a", {}]], [[[[[[[[[[[]]]]]]]]]]], [0] * 200_000]),
    st.sampled_from([{}, {"a": 1}, {"../x": []}]),
)  # fmt: skip
TENSORS = st.sampled_from([
    torch.zeros(0), torch.zeros(()), torch.zeros(3), torch.full((12,), torch.nan), torch.zeros(12, dtype=torch.int64),
    torch.zeros(2, 6), torch.zeros(12).double(), torch.zeros(12, dtype=torch.bool), torch.zeros(12),
])  # fmt: skip
NAMES = st.sampled_from(
    ["state", "model", "model0", "model-1", "initial", "change", "../x", "a/b", "", "model99999999999"]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        inner = [one for key in value for one in places(value[key], (*path, key))]
    elif isinstance(value, list):
        inner = [one for key, each in enumerate(value[:4]) for one in places(each, (*path, key))]
    return [path, *inner] if path else inner


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_messages_are_refused_or_harmless(data: st.DataObject) -> None:
    function = data.draw(
        st.sampled_from([*sorted(VALID), "describe", "survival", "nothing", "control_variates/x", "/", "../x"])
    )
    request = VALID.get(function, Message())
    fields, tensors = copy.deepcopy(request.fields), dict(request.tensors)
    for _ in range(data.draw(st.integers(0, 2))):
        where = data.draw(st.sampled_from([*places(fields), ("surplus",)]))
        inner = fields
        for step in where[:-1]:
            inner = inner[step] if isinstance(inner, dict) and step in inner else {}
        if isinstance(inner, dict):
            inner[where[-1]] = copy.deepcopy(data.draw(JUNK))
    for _ in range(data.draw(st.integers(0, 2))):
        if tensors and data.draw(st.booleans()):
            del tensors[data.draw(st.sampled_from(sorted(tensors)))]
        else:
            tensors[data.draw(NAMES | st.sampled_from(sorted(tensors) or ["state"]))] = data.draw(TENSORS)
    site, told = ready(), ""
    try:
        reply = site.handle(function, Message(fields, tensors))
    except PolyclinicError as error:
        told = str(error)
    else:
        Message.from_bytes(reply.to_bytes())
    assert len(told) < 2000


def test_a_site_is_told_what_comes_first() -> None:
    site = Federation(table_sites(SITES)).engine.members["Bonn"]  # type: ignore[attr-defined]
    with pytest.raises(SiteError, match="P401 Site Bonn was asked to 'train' before a training was started"):
        site.handle("train", VALID["train"])
    with pytest.raises(SiteError, match="P401 A message asks for 'mine bitcoin', which no site does"):
        site.handle("mine bitcoin", Message())


def test_the_name_of_a_run_is_no_path() -> None:
    request = VALID["start"]
    for name in ("../../x", "/tmp/x", "a/b", "", "a b", "x" * 201):  # noqa: S108 - a path is what is refused
        with pytest.raises(SiteError, match="run: "):
            ready().handle("start", Message({**request.fields, "run": name}, request.tensors))


def test_a_model_of_another_size_is_refused() -> None:
    request = VALID["start"]
    with pytest.raises(SiteError, match=r"was sent a model of 5 numbers; the network that the message names has 12"):
        ready().handle("start", Message(request.fields, {"initial": torch.zeros(5)}))
    with pytest.raises(SiteError, match=r"state: got \[5\], expected \[Q\] = \[12\]"):
        ready().handle("train", Message(VALID["train"].fields, {**VALID["train"].tensors, "state": torch.zeros(5)}))


def bodies() -> list[type[Body]]:
    kinds = [kind for f in FUNCTIONS.values() for kind in (f.asked, f.answered)]
    return [kind if isinstance(kind, type) else kind(Known()) for kind in kinds]


def test_whole_numbers_stay_whole_and_no_text_is_a_number() -> None:
    fields = {"round": 1, "exchange": 2, "learning_rate": 1, "turn": 0}
    kind = FUNCTIONS["train"].asked
    assert kind.model_validate(fields).fields() == {"round": 1, "exchange": 2, "learning_rate": 1.0}
    for name, value in [("round", 1.0), ("round", "1"), ("round", True), ("learning_rate", "0.1"),
                        ("learning_rate", float("nan")), ("exchange", 0)]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            kind.model_validate({**fields, name: value})
    for body in bodies():
        assert body.model_config["extra"] == "forbid"


def test_the_architecture_tells_every_function_and_tensor() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## Messages between coordinator and site")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    told = {name: cells[1:3] for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])}
    assert set(told) == {*FUNCTIONS, "part/verb"}

    def names(tensors: Any, known: Known, asked: Message) -> set[str]:
        found = tensors(known, asked) if callable(tensors) else tensors
        return {name.split("/")[-1].rstrip("*") for name in found}

    grid = TimeGrid((1.0,), (1.0,))
    knowns = [Known(task=build_task(name, 2, next(iter(TASKS[name].losses)), grid=grid)) for name in TASKS]
    knowns += [Known(step=step) for step in build_steps([("common_scaling", {}), ("landmarks", {}), COMBAT])]
    for function, schema in FUNCTIONS.items():
        for known in knowns:
            for asked in (Message(), Message({}, {"before": torch.zeros(1, 1)})):
                for cell, tensors in zip(told[function], (schema.asked_tensors, schema.answered_tensors), strict=False):
                    assert names(tensors, known, asked) <= set(re.findall(r"`(\w+)`", cell)), function
            fields = schema.answered if isinstance(schema.answered, type) else schema.answered(known)
            assert fields.model_fields.keys() <= SAID_IN_WORDS | set(re.findall(r"`(\w+)`", told[function][1])), (
                function
            )


# Shapes ---------------------------------------------------------------------------------------------------------------


def test_dimensions_are_known_or_agree() -> None:
    sizes = {"C": 2}
    Shaped("float64", "N", "C").check(torch.zeros(7, 2).double(), sizes)
    assert sizes == {"C": 2, "N": 7}
    with pytest.raises(Misfit, match=r"^got \[6\], expected \[N\] = \[7\]$"):
        Shaped("int64", "N").check(torch.zeros(6, dtype=torch.int64), sizes)
    with pytest.raises(Misfit, match=r"^got \[7, 3\], expected \[N, C\] = \[7, 2\]$"):
        Shaped("float64", "N", "C").check(torch.zeros(7, 3).double(), sizes)
    with pytest.raises(Misfit, match=r"^got \[1\], expected \[\]$"):
        Shaped("float64").check(torch.zeros(1).double(), sizes)
    with pytest.raises(Misfit, match=r"^got float32, expected float64 or int64$"):
        Shaped("float64|int64", None).check(torch.zeros(1), sizes)
    with pytest.raises(Misfit, match=r"^got 11 numbers, expected 10 at most$"):
        Shaped("", None).check(torch.zeros(11), {}, most=10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_one_value_that_is_not_finite_is_found_among_large_ones(kind: str, value: float) -> None:
    tensor = torch.full((1000,), 60_000.0).to(getattr(torch, kind))  # in half precision their sum is not finite
    Shaped(kind, None).check(tensor, {})
    tensor[617] = value
    with pytest.raises(NotFinite, match="not finite"):
        Shaped(kind, None).check(tensor, {})
    Shaped(kind, None, finite=False).check(tensor, {})
