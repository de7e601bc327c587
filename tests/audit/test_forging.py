"""False updates by hand: what corrupt sites send in place of what they have learned, and what stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from helpers import Federation, table_sites
from polyclinic.audit.forging import Corrupt, ForgingEngine
from polyclinic.audit.poisoning import Attack, variances
from polyclinic.audit.updates import UPDATES, largest_z
from polyclinic.communication.message import Message
from polyclinic.engine import Engine, LocalEngine, Reply
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.state import Role


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


#: The state that sites were sent: two weights, a running mean and a running variance.
STATE = t(1.0, 2.0, 50.0, 4.0)
VARIANCES = torch.tensor([False, False, False, True])
#: What four sites end with: changes (1, 0), (0, 2), (2, 2) and (−1, 4) of weights; (1, 1), (2, −1), (3, 2) and (4, 0)
#: of statistics.
ENDED = {"A": t(2, 2, 51, 5), "B": t(1, 4, 52, 3), "C": t(3, 4, 53, 6), "D": t(0, 6, 54, 4)}


def packed(state: Tensor, start: Tensor = STATE, trainable: int = 2) -> dict[str, Tensor]:
    """What a site sends of the state that it ended with."""
    return {"change": state[:trainable] - start[:trainable], "statistics": state[trainable:].clone()}


def ended(reply: Message, start: Tensor = STATE) -> Tensor:
    """The state that a site says it ended with."""
    change = reply.tensors["change"]
    return torch.cat([start[: len(change)] + change, reply.tensors["statistics"]])


class Answering(Engine):
    """Sites that give fixed answers; it notes what they are asked."""

    def __init__(self, answers: Mapping[str, Message | PolyclinicError]) -> None:
        self.answers, self.sites, self.asked = answers, list(answers), list[str]()
        self.closed = False

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        self.asked.append(function)
        for site in self.sites:
            if site in requests:
                yield site, self.answers[site]

    def close(self) -> None:
        self.closed = True


def honest(extras: Mapping[str, Mapping[str, Tensor]] = {}) -> dict[str, Message]:
    return {
        site: Message({"examples": 9, "loss": 0.5}, {**packed(state), **extras.get(site, {})})
        for site, state in ENDED.items()
    }


def forger(
    attack: str, sites: Sequence[str], answers: Mapping[str, Message | PolyclinicError], *, seed: int = 0,
    trainable: int = 2, variance: Tensor = VARIANCES[2:], **options: Any,
) -> ForgingEngine:  # fmt: skip
    return ForgingEngine(
        Answering(answers), Corrupt(UPDATES[attack](**options), frozenset(sites), trainable, seed, variance)
    )


def trained(engine: Engine, *, state: Tensor = STATE, number: int = 0, turn: int = 0) -> dict[str, Any]:
    """What the coordinator gets."""
    fields = {"round": number, "learning_rate": 0.1, **({"turn": turn} if turn else {})}
    return dict(engine.call("train", dict.fromkeys(engine.sites, Message(fields, {"state": state}))))


def sent(attack: str, *sites: str, number: int = 0, turn: int = 0, **options: Any) -> dict[str, list[float]]:
    """All that sites send, with the weights first."""
    answers = honest()
    found = trained(forger(attack, sites, answers, **options), number=number, turn=turn)
    assert list(found) == list(ENDED), "in site order"
    for site, reply in found.items():
        assert reply is answers[site] or site in sites
        assert reply.fields == answers[site].fields
        assert torch.equal(ended(answers[site]), ENDED[site]), "honest answers are not written to"
    return {site: ended(reply).tolist() for site, reply in found.items()}


def weights(attack: str, *sites: str, **options: Any) -> dict[str, list[float]]:
    return {site: state[:2] for site, state in sent(attack, *sites, **options).items()}


HONEST = {site: state.tolist() for site, state in ENDED.items()}


# Weights --------------------------------------------------------------------------------------------------------------


def test_signs_are_flipped_and_changes_made_larger() -> None:
    assert weights("sign_flip", "C")["C"] == [-1.0, 0.0]  # (1, 2) - (2, 2)
    assert weights("sign_flip", "C", "D", scale=2.0) == {
        "A": [2, 2], "B": [1, 4], "C": [-3.0, -2.0], "D": [3.0, -6.0],
    }  # fmt: skip
    assert weights("scaling", "B", scale=5.0)["B"] == [1.0, 12.0]  # (1, 2) + 5 (0, 2)


def test_scaling_by_the_inverse_of_its_share_replaces_the_model() -> None:
    still = {site: Message({}, packed(ENDED["B"] if site == "B" else STATE)) for site in ENDED}
    found = trained(forger("scaling", "B", still, scale=5.0))
    share = {"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4}
    mean = sum((share[site] * ended(reply) for site, reply in found.items()), torch.zeros(4))
    assert torch.allclose(mean[:2], ENDED["B"][:2])


def test_noise_is_as_wide_as_told_and_a_function_of_names() -> None:
    change = torch.full((20_000,), 0.25)
    nothing = torch.zeros(0)
    answers = {
        "A": Message({}, {"change": change + 1, "statistics": nothing}),
        "B": Message({}, {"change": change, "statistics": nothing}),
    }
    engine = forger(
        "gaussian_noise", "B", answers, trainable=20_000, variance=torch.zeros(0, dtype=torch.bool), deviation=4.0
    )
    noise = trained(engine, state=torch.zeros(20_000))["B"].tensors["change"]
    assert abs(float(noise.std()) - 1.0) < 0.03  # 4 · 0.25
    assert abs(float(noise.mean())) < 0.03
    first = sent("gaussian_noise", "A", "B")
    assert first == sent("gaussian_noise", "A", "B")
    assert first["A"] != sent("gaussian_noise", "A", "B", number=1)["A"] != sent("gaussian_noise", "A", seed=1)["A"]


def test_noise_is_the_same_as_in_earlier_versions() -> None:
    """Numbers of a version in which the loop forged answers."""
    extras = {"A": t(1, 0), "B": t(3, 4), "C": t(-1, 3), "D": t(2, 2)}
    answers = honest({site: {"rule/x": extra} for site, extra in extras.items()})
    engine = forger("gaussian_noise", "BC", answers, seed=7, deviation=2.0)
    for number, turn, told in (
        (0, 0, {"B": ([3.621403694152832, 3.771744728088379], [5.274188995361328, 3.987971782684326]),
                "C": ([9.05987548828125, 7.651640892028809], [5.2452392578125, 0.16052298247814178])}),
        (3, 2, {"B": ([0.5887672305107117, 2.0738534927368164], [12.313200950622559, 4.681734085083008]),
                "C": ([-0.9175944328308105, 3.0248658657073975], [-1.5006791353225708, 3.7469804286956787])}),
    ):  # fmt: skip
        found = trained(engine, number=number, turn=turn)
        for site, (state, extra) in told.items():
            assert ended(found[site])[:2].tolist() == pytest.approx(state, rel=1e-6)
            assert found[site].tensors["rule/x"].tolist() == pytest.approx(extra, rel=1e-6)


@pytest.mark.parametrize(
    ("sites", "corrupt", "share"),
    [
        (50, 24, 24 / 26),  # the paper's example: ⌊26⌋ − 24 = 2 supporters, (50 − 24 − 2) / 26
        (10, 4, 4 / 6),  # ⌊6⌋ − 4 = 2, (10 − 4 − 2) / 6
        (5, 2, 2 / 3),  # ⌊3.5⌋ − 2 = 1, (5 − 2 − 1) / 3
    ],
)
def test_how_far_corrupt_sites_may_stray(sites: int, corrupt: int, share: float) -> None:
    assert math.isclose(largest_z(sites, corrupt), norm.ppf(share))


def test_small_federations_leave_no_room() -> None:
    assert largest_z(4, 1) == 0.0  # (4 − 1 − 2) / 3 is below a half
    assert largest_z(2, 1) == largest_z(1, 1) == 0.0
    attack = Attack("alie", {"z": None}, ("A",))
    assert "z = 0" in attack.note(4)
    assert Attack("alie", {"z": 1.0}, ("A",)).note(4) == Attack("alie", {"z": None}, ("A", "B")).note(5) == ""


def test_a_little_is_enough_by_hand() -> None:
    found = sent("alie", "A", "C", z=2.0)
    # (1, 2) + mean (1.5, 1) + 2 · deviation (0.5, 1); (50, 4) + mean (2, 1.5) + 2 · deviation (1, 0.5)
    assert found["A"] == found["C"] == [3.5, 5.0, 54.0, 6.5]
    alone = sent("alie", "A", z=1.0)["A"]  # one site has no deviation: all four are known to it
    changes = np.array([[1, 0, 1, 1], [0, 2, 2, -1], [2, 2, 3, 2], [-1, 4, 4, 0]])
    assert np.allclose(alone, STATE.numpy() + changes.mean(0) + changes.std(0))
    reckoned = sent("alie", "A", "B")["A"]  # ⌊3⌋ − 2 = 1 supporter: (4 − 2 − 1) / 2, z = 0
    assert reckoned == [1.5, 3.0, 51.5, 4.0]


def test_inner_products_by_hand() -> None:
    assert weights("inner_product", "A", epsilon=2.0)["A"] == pytest.approx([1 - 2 / 3, 2 - 2 * 8 / 3])
    together = sent("inner_product", "A", "B")
    # −((2, 2) + (−1, 4)) / 2 and −((3, 2) + (4, 0)) / 2
    assert together["A"] == together["B"] == [0.5, -1.0, 46.5, 3.0]
    assert weights("inner_product", "A", "B", "C", "D")["A"] == [0.0, 2.0]  # no honest site: −(1, 0)


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "options", "expected"),
    [
        ("sign_flip", {"scale": 1.0}, [47.0, 2.0]),  # (50, 4) − (3, 2)
        ("sign_flip", {"scale": 3.0}, [41.0, 0.0]),  # a variance of 4 − 6 is sent as 0
        ("scaling", {"scale": 3.0}, [59.0, 10.0]),
        ("inner_product", {"epsilon": 3.0}, [43.0, 4.0]),  # honest sites have (1, 1), (2, −1) and (4, 0)
        ("false_statistics", {"factor": 1000.0}, [53.0, 6000.0]),
        ("false_statistics", {"factor": 0.5}, [53.0, 3.0]),
    ],
)
def test_statistics_are_forged_about_what_was_received(
    attack: str, options: dict[str, float], expected: list[float]
) -> None:
    found = sent(attack, "C", **options)
    assert found["C"][2:] == pytest.approx(expected)
    assert {site: state for site, state in found.items() if site != "C"} == {
        site: state for site, state in HONEST.items() if site != "C"
    }


def test_noise_in_statistics_is_noise_of_its_own_and_never_a_variance_below_zero() -> None:
    size = 20_000
    start, change = torch.full((2 * size,), 5.0), torch.cat([torch.full((size,), 0.25), torch.full((size,), 2.0)])
    variance = torch.arange(2 * size) >= 3 * size // 2
    engine = forger(
        "gaussian_noise", "A", {"A": Message({}, packed(start + change, start, size))}, trainable=size,
        variance=variance[size:], deviation=4.0,
    )  # fmt: skip
    state = ended(trained(engine, state=start)["A"], start)
    noise = (state - start)[:size], (state - start)[size : 3 * size // 2]
    assert abs(float(noise[0].std()) - 1.0) < 0.03  # 4 · 0.25
    assert abs(float(noise[1].std()) - 8.0) < 0.3  # 4 · 2
    assert abs(float(torch.corrcoef(torch.stack([noise[0][: size // 2], noise[1]]))[0, 1])) < 0.05
    assert float(state[variance].min()) == 0.0
    assert abs(float((state[variance] == 0).float().mean()) - norm.cdf(-5 / 8)) < 0.02


def test_false_statistics_come_with_weights_that_are_honest_to_the_bit() -> None:
    extras = {site: {"rule/x": torch.rand(3)} for site in ENDED}
    answers = honest(extras)
    uneven = Message({}, {**packed(t(0.1, 1 / 3, 50.123, 4.7)), "rule/x": torch.rand(3)})
    found = trained(forger("false_statistics", "BC", {**answers, "B": uneven}, factor=2.0))["B"]
    assert torch.equal(found.tensors["change"], uneven.tensors["change"])
    mean, variance = found.tensors["statistics"].tolist()
    assert [mean, variance / 2] == uneven.tensors["statistics"].tolist()
    assert torch.equal(found.tensors["rule/x"], uneven.tensors["rule/x"])


def test_which_coordinates_are_variances() -> None:
    federation = Federation(table_sites(), model={"mlp": {"hidden": [3, 2], "norm": "batch"}})
    layout = federation.template.layout
    found = variances(layout, layout.select(set(Role)))
    assert int(found.sum()) == 3 + 2
    start = federation.template.vector
    assert not found[: layout.trainable].any()
    assert start[found].tolist() == [1.0] * 5  # PyTorch's initial running variance; running means begin at 0
    shared = layout.select({Role.NORM_STATISTIC})
    assert variances(layout, shared).sum() == 5
    assert variances(layout, layout.select({Role.WEIGHT, Role.HEAD})).sum() == 0


# What goes with a state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "options", "expected"),
    [
        ("sign_flip", {"scale": 2.0}, (2.0, -6.0)),  # −2 (−1, 3)
        ("scaling", {"scale": 3.0}, (-3.0, 9.0)),
        ("inner_product", {"epsilon": 0.5}, (-1.0, -1.0)),  # −0.5 · mean of (1, 0) and (3, 4)
        ("alie", {"z": 1.0}, (1 + math.sqrt(8 / 3), 7 / 3 + math.sqrt(26 / 9))),  # of all, since only one is corrupt
    ],
)
def test_what_goes_with_an_update_is_forged_in_the_same_way(
    attack: str, options: dict[str, float], expected: tuple[float, float]
) -> None:
    """A and B are honest with (1, 0) and (3, 4), C with (−1, 3) is not.

    Means are 1 and 7/3; squared deviations (0 + 4 + 4) / 3 = 8/3 and (49 + 25 + 4) / 27 = 26/9.
    """
    extras = {"A": t(1, 0), "B": t(3, 4), "C": t(-1, 3)}
    answers = {
        site: Message({}, {"rule/x": extra.view(2, 1), **packed(STATE), "rule/n": torch.tensor([3])})
        for site, extra in extras.items()
    }
    a, b, c = trained(forger(attack, "C", answers, **options)).values()
    assert a is answers["A"]
    assert b is answers["B"]
    assert list(c.tensors) == ["rule/x", "change", "statistics", "rule/n"], "in the order of the honest answer"
    assert c.tensors["rule/x"].shape == (2, 1)
    assert c.tensors["rule/x"].flatten().tolist() == pytest.approx(expected)
    assert c.tensors["rule/n"].tolist() == [3]  # a count stays honest
    assert extras["C"].tolist() == [-1, 3]


def test_noise_in_what_goes_with_an_update_is_noise_of_its_own() -> None:
    change = torch.full((20_000,), 0.25)
    engine = forger(
        "gaussian_noise", "A",
        {"A": Message({}, {"change": change, "statistics": torch.zeros(0), "rule/x": 2 * change})}, trainable=20_000,
        variance=torch.zeros(0, dtype=torch.bool), deviation=4.0,
    )  # fmt: skip
    found = trained(engine, state=torch.zeros(20_000))["A"].tensors
    assert abs(float(found["rule/x"].std()) - 2.0) < 0.06  # 4 · 0.5
    assert abs(float((found["rule/x"] * found["change"]).mean())) < 0.06


def test_each_turn_of_a_round_has_noise_of_its_own() -> None:
    found = [sent("gaussian_noise", "B", turn=turn)["B"] for turn in (0, 1, 2, 1)]
    assert found[0] != found[1] != found[2] != found[0]
    assert found[3] == found[1]


# The engine -----------------------------------------------------------------------------------------------------------


def test_each_site_is_forged_about_the_state_that_it_was_sent() -> None:
    states = {site: STATE + number for number, site in enumerate(ENDED)}
    answers = {site: Message({}, packed(ENDED[site], state)) for site, state in states.items()}
    engine = forger("sign_flip", "AB", answers)
    requests = {site: Message({"round": 0}, {"state": state}) for site, state in states.items()}
    found = dict(engine.call("train", requests))
    for site in "AB":
        reply = found[site]
        assert isinstance(reply, Message)
        honest_variance, received = ENDED[site][3], states[site]
        assert torch.equal(ended(reply, received)[:3], (2 * received - ENDED[site])[:3])
        assert ended(reply, received)[3] == max(2 * received[3] - honest_variance, 0)


def test_everything_but_training_goes_through() -> None:
    answers = honest()
    engine = forger("sign_flip", "ABCD", answers)
    inner = engine.inner
    assert isinstance(inner, Answering)
    for function in ("start", "evaluate", "predict", "model"):
        found = engine.ask(function, dict.fromkeys("DA", Message()))
        assert found == {"A": answers["A"], "D": answers["D"]}
    assert inner.asked == ["start", "evaluate", "predict", "model"]
    assert engine.sites == list("ABCD")
    engine.close()
    assert inner.closed


def test_a_failure_stays_a_failure_and_nobody_knows_what_it_would_have_been() -> None:
    error = SiteError("P401", "It failed.", site="C")
    answers = {**honest(), "C": error, "A": error}
    found = trained(forger("inner_product", "AB", answers))
    assert found["A"] is found["C"] is error
    assert ended(found["B"]).tolist() == [2.0, -2.0, 46.0, 4.0]  # −(−1, 4), −(4, 0): D alone is honest
    assert trained(forger("alie", "AC", answers)) == answers, "no corrupt site has answered"


def test_a_corrupt_site_whose_update_is_kept_back_sends_none_and_nobody_knows_what_it_would_have_been() -> None:
    quiet = Message({"examples": 9, "loss": 0.5})
    answers = {**honest(), "C": quiet, "A": quiet}
    found = trained(forger("inner_product", "AB", answers))
    assert found["A"] is found["C"] is quiet
    assert ended(found["B"]).tolist() == [2.0, -2.0, 46.0, 4.0]  # as if A and C had failed
    assert trained(forger("alie", "AC", answers)) == answers


def test_an_attack_is_put_around_an_engine() -> None:
    federation = Federation(table_sites({"Aachen": 12, "Bonn": 9}), model={"mlp": {"hidden": [3], "norm": "batch"}})
    engine, layout = federation.engine, federation.template.layout
    selection = layout.select(set(Role))
    flip = Attack("label_flip", {"fraction": 1.0}, ("Bonn",)).around(engine, layout, selection, 0)
    assert flip is engine, "cases are changed at the site"
    false = Attack("false_statistics", {"factor": 100.0}, ("Bonn",)).around(engine, layout, selection, 0)
    plan = federation.plan()
    false.ask("start", dict.fromkeys(engine.sites, Message(plan.start.fields(), {"initial": plan.initial})))
    request = Message({"round": 0, "exchange": 1, "learning_rate": 0.1}, {"state": plan.initial})
    found = false.ask("train", dict.fromkeys(engine.sites, request))
    assert isinstance(engine, LocalEngine)
    engine.ask("start", dict.fromkeys(engine.sites, Message(plan.start.fields(), {"initial": plan.initial})))
    clean = engine.ask("train", dict.fromkeys(engine.sites, request))
    variance = variances(layout, selection)[layout.trainable :]
    for name, tensor in clean["Aachen"].tensors.items():
        assert torch.equal(found["Aachen"].tensors[name], tensor)
    assert torch.equal(found["Bonn"].tensors["change"], clean["Bonn"].tensors["change"])
    bonn, true = found["Bonn"].tensors["statistics"], clean["Bonn"].tensors["statistics"]
    assert torch.equal(bonn[~variance], true[~variance])
    assert torch.equal(bonn[variance], 100 * true[variance])
