"""One site's answer is not as it should be: it is that site's failure, and the quorum decides."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Federation, image_sites, table_sites
from polyclinic.client.work import LocalResult, check_finite
from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine, Engine, LocalEngine, Reply
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.rounds import run_rounds
from polyclinic.site.messages import Evaluate

SIZES = {"Aachen": 20, "Bonn": 14, "Celle": 17, "Dresden": 12, "Essen": 9, "Fulda": 11}
BAD = "Celle"
NORM = {"mlp": {"hidden": [4], "norm": "batch"}}
#: Every way to put updates together, and parts that measure something or send more.
METHODS: dict[str, Any] = {
    name: {"fedavg": {"server": server}}
    for name, server in {
        "mean": [], "median": ["median"], "trimmed_mean": ["trimmed_mean"], "krum": ["krum"], "multi_krum":
        ["multi_krum"], "geometric_median": ["geometric_median"], "norm_bound": [{"norm_bound": {"bound": 0.5}}],
        "dos": ["dos"], "fltrust": [{"fltrust": {"trusted": "Aachen"}}], "fedadam": ["fedadam"], "ida": ["ida"],
        "simagg": ["simagg"], "regagg": ["regagg"], "afl": ["afl"], "propfair": ["propfair"], "qfedavg": ["qfedavg"],
        "fedcostwavg": ["fedcostwavg"], "fedpidavg": ["fedpidavg"], "auto_fedavg": ["auto_fedavg"],
        "fedce": ["fedce"], "normalised": ["normalised"],
    }.items()
} | {"scaffold": "scaffold"}  # fmt: skip


class Bad(Engine):
    """An engine in which one site's answers to a function are changed."""

    def __init__(self, inner: Engine, function: str, change: Any, silent: bool = False) -> None:
        self.inner, self.function, self.change, self.silent, self.sites = inner, function, change, silent, inner.sites
        self.holds_all = inner.holds_all

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        for site, reply in self.inner.call(function, requests):
            if site != BAD or function != self.function or not isinstance(reply, Message):
                yield site, reply
            elif self.silent:
                yield site, SiteError("P401", "It is silent.", site=site)
            else:
                yield site, self.change(reply)


def filled(name: str, value: float) -> Any:
    """One number of a tensor is ``value``."""

    def change(reply: Message) -> Message:
        tensor = reply.tensors[name].clone()
        tensor.view(-1)[-1] = value
        return Message(reply.fields, {**reply.tensors, name: tensor})

    return change


def filled_if_there(name: str, value: float) -> Any:
    return lambda reply: filled(name, value)(reply) if name in reply.tensors else reply


def said(**fields: Any) -> Any:
    return lambda reply: Message({**reply.fields, **fields}, reply.tensors)


def tensor_of(name: str, tensor: Tensor) -> Any:
    return lambda reply: Message(reply.fields, {**reply.tensors, name: tensor})


def without(name: str) -> Any:
    return lambda reply: Message(reply.fields, {key: t for key, t in reply.tensors.items() if key != name})


def trained(
    method: Any, change: Any, *, quorum: int | None, silent: bool = False, rounds: int = 2
) -> tuple[Tensor, list[str]]:
    """The model after the rounds, and the notes."""
    training = {"rounds": rounds, **({} if quorum is None else {"quorum": quorum})}
    federation = Federation(table_sites(SIZES), [method], model=NORM, training=training)
    plan = federation.plan()
    engine = CheckedEngine(Bad(federation.engine, "train", change, silent), plan.known)
    progress, _ = run_rounds(plan, engine)
    return progress.model("federation"), progress.failures


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_the_failure_of_its_site_alone(name: str, value: float) -> None:
    expected, _ = trained(METHODS[name], None, quorum=3, silent=True)
    for change in (filled("change", value), filled("statistics", value), said(loss=value)):
        state, notes = trained(METHODS[name], change, quorum=3)
        assert torch.equal(state, expected)
        assert len(notes) == 2
        assert all(BAD in note and "P301" in note and "finite" in note for note in notes)
        assert not any(other in note for other in SIZES if other != BAD for note in notes)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_quorum_the_error_names_site_and_field(name: str) -> None:
    with pytest.raises(PolyclinicError, match=rf"P301 Training at site {BAD} gave values .*change") as caught:
        trained(METHODS[name], filled("change", float("nan")), quorum=None)
    assert caught.value.code == "P301"


@pytest.mark.parametrize(
    ("method", "tensor"),
    [("scaffold", "control_variates/control_change"), ("qfedavg", "q_fair/start_loss"), ("fednova", "normalised/path")],
)
def test_what_a_part_sends_is_finite_and_of_its_shape(method: str, tensor: str) -> None:
    federation = Federation(table_sites(SIZES), [method], model=NORM)
    known = federation.plan().known.sent("train")
    (found,) = [name for name in known if name.split("/")[1] == tensor.split("/")[1]]
    expected, _ = trained(method, None, quorum=3, silent=True)
    for change, code in [
        (filled(found, float("nan")), "P301"), (filled(found, float("inf")), "P301"), (without(found), "P401"),
        (tensor_of(found, torch.zeros(3, 2)), "P401"), (tensor_of(found, torch.zeros(1, dtype=torch.int8)), "P401"),
    ]:  # fmt: skip
        state, notes = trained(method, change, quorum=3)
        assert torch.equal(state, expected)
        assert all(code in note and found in note for note in notes), notes


@pytest.mark.parametrize(
    ("method", "tensor"),
    [
        ("qfedavg", "start_loss"), ("fedcostwavg", "end_loss"), ("fednova", "path"),
        ({"fedavg": {"server": ["loss_weights"]}}, "end_loss"),
        ({"fedavg": {"server": [{"ida": {"times": "accuracy"}}]}}, "end_accuracy"),
    ],
)  # fmt: skip
def test_a_number_below_0_that_can_not_be_is_the_failure_of_its_site(method: Any, tensor: str) -> None:
    federation = Federation(table_sites(SIZES), [method], model=NORM)
    (found,) = [name for name in federation.plan().known.sent("train") if name.endswith(f"/{tensor}")]
    expected, _ = trained(method, None, quorum=3, silent=True)
    state, notes = trained(method, filled(found, -0.5), quorum=3)
    assert torch.equal(state, expected)
    assert len(notes) == 2
    assert all(f"P401 The answer of site {BAD} to 'train'" in note for note in notes)
    assert all(f"{found}: got -0.5, expected 0 or more" in note for note in notes)


def test_losses_below_0_go_with_rules_for_which_only_differences_count() -> None:
    for method, tensor in (("afl", "start_loss"), ("feddg_ga", "end_validation_loss")):
        federation = Federation(table_sites(SIZES), [method], model=NORM)
        (found,) = [name for name in federation.plan().known.sent("train") if name.endswith(f"/{tensor}")]
        assert trained(method, filled(found, -0.5), quorum=None)[1] == []


def test_counts_of_classes_are_not_below_0() -> None:
    federation = Federation(table_sites(SIZES), ["fedsld"], model=NORM)
    engine = Bad(federation.engine, "start", filled("label_shares/counts", -1.0))
    with pytest.raises(SiteError, match=f"P401 The answer of site {BAD} to 'start'.*got -1, expected 0 or more"):
        run_rounds(federation.plan(), CheckedEngine(engine, federation.plan().known))


@pytest.mark.parametrize("bad", ["Aachen", BAD])
@pytest.mark.parametrize(
    ("method", "tensor", "shape", "since"),
    [
        ("fed_align", "adversarial_alignment/features", (9, 3), 1),
        ("fed_align", "adversarial_alignment/features", (36,), 1),
        ("fed_align", "adversarial_alignment/features", (0, 4), 1),
        ("fed_align", "adversarial_alignment/discriminator", (7,), 2),
        ("fedharmony", "site_unlearning/mean", (3,), 1), ("fedharmony", "site_unlearning/deviation", (4, 1), 1),
        ("fedharmony", "site_unlearning/classifier", (7,), 2),
    ],
)  # fmt: skip
def test_features_of_another_network_are_the_failure_of_their_site(
    monkeypatch: pytest.MonkeyPatch, bad: str, method: str, tensor: str, shape: tuple[int, ...], since: int
) -> None:
    """Also where it is the first to answer. Whatever is of a later round comes in its first round, too."""
    monkeypatch.setattr(__name__ + ".BAD", bad)
    expected, _ = trained(method, None, quorum=3, silent=True, rounds=3)
    for change, code in (
        (tensor_of(tensor, torch.zeros(shape)), "P401"), (filled_if_there(tensor, float("nan")), "P301")
    ):  # fmt: skip
        state, notes = trained(method, change, quorum=3, rounds=3)
        told = [note for note in notes if code in note]
        assert len(told) == (3 if code == "P401" else 4 - since), notes
        assert all(bad in note for note in notes)
        if code == "P401" or since == 1:
            assert torch.equal(state, expected)


@pytest.mark.parametrize(
    "codes", [torch.zeros(9, 3), torch.zeros(36), torch.zeros(0, 4), torch.full((9, 4), torch.nan)]
)
def test_codes_that_can_not_be_are_the_failure_of_the_target_site(codes: Tensor) -> None:
    """Others go on as if it were silent."""
    method = {"fl_mrcm": {"target": BAD}}
    expected, _ = trained(method, None, quorum=3, silent=True, rounds=3)
    state, notes = trained(method, tensor_of("domain_identifier/codes", codes), quorum=3, rounds=3)
    assert torch.equal(state, expected)
    assert len(notes) == 3
    assert all(BAD in note and "domain_identifier/codes" in note for note in notes)


@pytest.mark.parametrize(
    ("method", "tensor"),
    [
        ("harmofl", "mean_amplitude/sum"),
        ("harmofl", "mean_amplitude/count"),
        ("elcfs", "frequency_episodes/bank"),
        ("style_transfer", "mean_style/deviations"),
    ],
)
def test_looks_of_other_images_are_the_failure_of_their_site(method: str, tensor: str) -> None:
    """All sites have to be there when training starts, so it ends; it names the site, also where it answers first."""
    network = {"cnn": {"channels": [2]}}
    for change in (
        tensor_of(tensor, torch.zeros(1, 3, 2)), tensor_of(tensor, torch.zeros(1, 1, 7, 5).double()), without(tensor),
        filled(tensor, -1.0), filled(tensor, float("inf")),
    ):  # fmt: skip
        federation = Federation(image_sites({BAD: 8, "Dresden": 6}), [method], model=network)
        engine = Bad(federation.engine, "start", change)
        with pytest.raises(PolyclinicError, match=rf"P[34]01 .*site {BAD} .*{tensor}"):
            run_rounds(federation.plan(), CheckedEngine(engine, federation.plan().known))


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "multi_krum", "geometric_median", "norm_bound"])
def test_robust_rules_stay_finite_where_an_update_is_huge(name: str) -> None:
    state, notes = trained(METHODS[name], filled("change", 1e30), quorum=None)
    assert state.isfinite().all()
    assert notes == []
    assert state.abs().max() < 100


def test_any_other_misfit_is_p401_and_says_what_was_expected() -> None:
    change = Federation(table_sites(SIZES), model=NORM).plan().known.sizes["T"]
    for bad, words in {
        "shape": (tensor_of("change", torch.zeros(3)), f"change: got [3], expected [T] = [{change}]"),
        "type": (tensor_of("change", torch.zeros(change).double()), "change: got float64, expected float32"),
        "missing": (without("statistics"), "statistics: it is missing"),
        "unknown": (tensor_of("../../etc/passwd", torch.zeros(1)), "got a tensor that is not known here"),
        "text": (said(examples="12"), "examples: got str"),
        "fraction": (said(examples=12.5), "examples: got 12.5"),
        "negative": (said(steps=-1), "steps: got -1"),
        "large": (said(steps=10**30), "steps: got a larger number"),
        "bool": (said(steps=True), "steps: got True"),
        "field": (said(note="x"), "note: got a field that is not known here"),
    }.values():
        _, notes = trained("fedavg", bad, quorum=3)
        assert len(notes) == 2
        assert all(f"The answer of site {BAD} to 'train'" in note and words in note for note in notes), notes


def test_answers_to_what_was_posted_are_checked_against_their_own_question() -> None:
    federation = Federation(table_sites(SIZES), model=NORM)
    plan = federation.plan()
    engine = CheckedEngine(Bad(federation.engine, "evaluate", said(cases=-1)), plan.known)
    engine.ask("start", dict.fromkeys(SIZES, Message(plan.start.fields(), {"initial": plan.initial})))
    state = {"state": plan.selection.take(plan.initial)}
    for site in ("Celle", "Aachen", "Celle"):
        engine.post(site, "model", Message({}, state))
        engine.post(site, "evaluate", Message(Evaluate(metric="auc").fields(), state))
    found = Counter((site, isinstance(reply, Message)) for site, reply in engine.replies())
    assert found == {("Celle", True): 2, ("Celle", False): 2, ("Aachen", True): 2}


def test_sites_agree_about_the_number_of_features() -> None:
    def wide(reply: Message) -> Message:
        return Message(reply.fields, {name: torch.zeros(9, dtype=torch.float64) for name in reply.tensors})

    data = table_sites(SIZES)
    with pytest.raises(
        SiteError, match=rf"P401 The answer of site {BAD} to 'share'.*got \[9\], expected \[F\] = \[5\]"
    ):
        Federation(data, engine=Bad(LocalEngine(data), "share", wide), preparation={"steps": [["common_scaling", {}]]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (said(subject=["P1"]), "subject: got 1 values, expected N = "),
        (said(subject=[1, 2]), "subject.0: got 1"),
        (said(extra=1), "extra: got a field that is not known"),
        (lambda reply: tensor_of("labels", torch.full_like(reply.tensors["labels"], 7))(reply), "a class that is not"),
        (lambda reply: tensor_of("labels", reply.tensors["labels"][:-1])(reply), "labels: got"),
    ],
)  # fmt: skip
def test_predictions_are_of_as_many_cases_everywhere(change: Any, words: str) -> None:
    data = table_sites(SIZES, part=None)
    federation = Federation(data, engine=Bad(LocalEngine(data), "predict", change), evaluation={"folds": 2})
    with pytest.raises(SiteError, match=f"P401 The answer of site {BAD} to 'predict' .*{words}"):
        federation.outcome()


def test_weights_whose_sum_float32_can_not_hold_are_finite() -> None:
    result = LocalResult(torch.full((4,), 3e38), steps=1, loss=0.5)
    assert check_finite(result, BAD) is result
    with pytest.raises(PolyclinicError, match=f"P301 .*{BAD}"):
        check_finite(LocalResult(torch.tensor([1.0, float("nan")]), steps=1, loss=0.5), BAD)
