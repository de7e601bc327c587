"""FedDM: boxes become outlines as far as a site's model and those of two peers agree."""

from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from elsewhere import alike_elsewhere
from going_on import study_goes_on
from helpers import Federation, declare, image_sites, write_image_study
from outlines import bars, mean_dice
from polyclinic import Study
from polyclinic.candidates import code_of
from polyclinic.client.few_labels.calibrated_boxes import (
    CalibratedBoxes,
    _CustomisedPeers,
    calibrated,
    customised,
    front_boxes,
    likeliest,
)
from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.ignored import IGNORED
from polyclinic.parts import Batch, build_part
from polyclinic.parts.site_end import overrides
from polyclinic.seeds import generator
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

UNET = {"unet": {"channels": [2, 4], "residual_units": 0, "norm": "instance"}}
IN_1, IN_2, IN_BOTH = code_of([1]), code_of([2]), code_of([1, 2])
BOXES = {"labels": {"share": 0, "leaves": "box", "sites": ["Bonn", "Celle"]}}
SIZES = {"Aachen": 4, "Bonn": 5, "Celle": 3}


def federation(*methods, sites=None, preparation=BOXES, **options):
    sites = image_sites(SIZES, masks=True) if sites is None else sites
    training = {"rounds": 3, "batch_size": 8, "loss": "cross_entropy"} | options.pop("training", {})
    return Federation(sites, methods, task="segmentation", model=UNET, training=training, preparation=preparation,
                      **options)  # fmt: skip


def row(*values):
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 1, -1)


# Exact numbers --------------------------------------------------------------------------------------------------------


def test_a_smaller_box_is_in_front_and_what_may_be_anywhere_has_none():
    known = row(0, IN_1, IN_1, IN_BOTH, IN_2, IGNORED)
    assert front_boxes(known, 3).flatten().tolist() == [0, 1, 1, 2, 2, 0]
    assert front_boxes(known, 3, unannotated=[2]).flatten().tolist() == [0, 1, 1, 1, 0, 0]
    everywhere = row(IN_1, IN_1, IN_BOTH, IN_BOTH, IGNORED)
    assert front_boxes(everywhere, 3).flatten().tolist() == [0, 0, 2, 2, 0], "a name says of no pixel what it is"
    assert front_boxes(row(IN_1, IN_1), 2).flatten().tolist() == [0, 0]
    assert front_boxes(row(IGNORED, IGNORED), 2).flatten().tolist() == [0, 0]


def test_the_likeliest_pixels_of_a_box():
    box = torch.tensor([[1] * 10 + [0] * 2]).bool().view(1, 1, 1, 12)
    found = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5, 0.5, 1.0, 1.0]).view(1, 1, 1, 12)
    assert likeliest(found, box, 0.6).flatten().tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0]
    assert likeliest(found, box, 0.7).flatten().int().sum() == 7
    assert likeliest(found, box, 0.5).flatten().int().sum() == 10, "of five or fewer there is no choice"
    assert likeliest(found.fill_(0.3), box, 0.6).flatten().int().sum() == 10, "none is likelier than another"
    assert not likeliest(found, box & False, 1.0).any()
    found[..., ::2] += 1e-7
    assert likeliest(found, box, 0.6).flatten().int().sum() == 10, "as likely, but for a processor's rounding"


def test_agreement_and_disagreement_by_hand():
    """Of a box of 10 pixels each model chooses 6. Own: 0–5, proximal: 0–3, 6, 7, distal: 2–7. Own and distal: 2–5, of
    which 4 and 5 the proximal does not choose: background, as 6 and 7. 0, 1, 8 and 9 play no part."""

    def maps(*chosen):
        found = torch.full((1, 2, 1, 12), 0.2)
        found[0, 1, 0, list(chosen)] = 0.8
        return found

    known = row(*[IN_1] * 10, 0, IGNORED)
    boxes = front_boxes(known, 2)
    found = [maps(0, 1, 2, 3, 4, 5), maps(0, 1, 2, 3, 6, 7), maps(2, 3, 4, 5, 6, 7)]
    out = IGNORED
    assert calibrated(known, boxes, found, 0.6).flatten().tolist() == [out, out, 1, 1, 0, 0, 0, 0, out, out, 0, out]
    assert torch.equal(calibrated(known, boxes, found, 1.0), torch.where(boxes > 0, boxes, known))


def test_what_is_not_of_a_box_may_be_of_another():
    """Nobody looked for structure 2, so that what is no 1 is background or 2."""
    known = row(*[IN_BOTH] * 10, IN_2)
    found = [torch.rand(1, 3, 1, 11, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    masks = calibrated(known, front_boxes(known, 3, unannotated=[2]), found, 0.6).flatten().tolist()
    assert masks[-1] == IN_2
    assert {1, IN_2} <= set(masks) <= {1, IN_2, IGNORED}


def by_logits(box, logits, share):
    """The rule as a loop over one picture: 1 is learned, 0 is background, 255 plays no part.

    Args:
        box: bool ``[N]``.
        logits: of the structure in the box, by the site's model and both peers' ``[3, N]``.
        share: p.
    """
    number, chosen = int(box.sum() * share + 1e-6), []
    for values in logits:
        limit = sorted(values[box])[-number] if number > 5 else -np.inf
        chosen.append({place for place in np.flatnonzero(box) if values[place] >= limit})
    own, near, far = chosen
    found = np.where(box, IGNORED, 0)
    for place in own & far:
        found[place] = 1
    for place in (own | near) - (own & near):
        found[place] = 0
    return found


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 24), st.floats(0.05, 1))
def test_a_picture_by_another_way(seed, size, share):
    rng = np.random.default_rng(seed)
    logits, box = np.round(rng.normal(size=(3, 30)), 1), np.zeros(30, dtype=bool)
    box[rng.permutation(30)[:size]] = True
    known = row(*np.where(box, IN_1, 0).tolist())
    found = [torch.from_numpy(np.stack([-one, one])).sigmoid().view(1, 2, 1, 30) for one in logits]
    masks = calibrated(known, front_boxes(known, 2), found, share)
    assert masks.flatten().tolist() == by_logits(box, logits, share).tolist()


def test_a_term_by_hand():
    """Seven pixels; the box is the first six, all of which are chosen at p = 1: −log σ(1) of each and −log σ(2) of the
    last, whose logit is −2. With p = 0.99 five would be chosen, which are few."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.tensor([1.0]))
    inputs, known = torch.tensor([1.0] * 6 + [-2.0]).view(1, 1, 1, 7), row(*[IN_1] * 6, 0)
    task = build_task("segmentation", 2, ("cross_entropy", {}))
    view = SimpleNamespace(task=task, unannotated=(), number=3, whole=lambda state: state,
                           count=lambda part="train": int(part == "unlabelled"),
                           hints=lambda index, seed: (inputs[index], known[index]))  # fmt: skip
    end = CalibratedBoxes(weight=2.0, doubted=0.01, ramp=0).at_site()
    peers = end.begin(view, {"proximal": torch.tensor([-5.0]), "distal": torch.tensor([3.0])})
    nothing = torch.empty(0)
    batch = Batch(inputs, nothing, model, torch.tensor([1.0]), 0, nothing, nothing)
    expected = 2 * (6 * 0.313262 + 0.126928) / 7
    assert end.loss(batch, {}).item() == pytest.approx(expected, abs=1e-5)
    assert end.loss(batch, peers).item() == pytest.approx(expected, abs=1e-5)
    known.fill_(IN_1)
    assert end.loss(batch, {}) is None, "of a name alone nothing is learned"
    known.fill_(0)
    assert end.loss(batch, {}) is not None, "a picture without a structure is background"


def test_peers_by_hand():
    """Probabilities of a logit a x + b at three made-up cases of one pixel, 0, 0.5 and 1. A: 0.5 each. B (b = 1): 0.73.
    C (a = 4, b = −2): 0.12, 0.5, 0.88. From A, B is nearer at 0 and 1 (0.23 to 0.38) and C at 0.5."""
    layer = nn.Conv2d(1, 1, 1)
    model = FlatModule(nn.Sequential(layer), [layer])
    states = [torch.tensor(one) for one in ([0.0, 0.0], [0.0, 1.0], [4.0, -2.0])]
    cases = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    task = build_task("segmentation", 2)
    near, far = customised(model, task, states, cases)
    assert near == [1, 0, 0], "from B: A, A (as C), C; from C: A, A, B"
    assert far == [2, 0, 1], "from A: C, B, C; from B: C, A (as C), A; from C: B, B, A"
    assert customised(model, task, states[:2], cases) == ([1, 0], [1, 0])
    assert customised(model, task, [states[0]] * 3, cases) == ([1, 0, 0], [1, 0, 0]), "the first of several"


def test_who_is_sent_what():
    layer = nn.Conv2d(1, 1, 1)
    end = _CustomisedPeers(3, kept=True)
    end.name = "calibrated_boxes"
    end.workplace = SimpleNamespace(network=FlatModule(nn.Sequential(layer), [layer], shape=(1, 1, 1)),
                                    task=build_task("segmentation", 2))  # fmt: skip
    now = SimpleNamespace(seed=0, fold=0, everyone=dict.fromkeys("ABC", 1.0))
    states = {"A": torch.tensor([0.0, 0.0]), "B": torch.tensor([0.0, 1.0]), "C": torch.tensor([0.0, -5.0])}
    end.begin(now)
    assert end.send("A") == {}, "in the first round there is no peer"
    end.latest = {name: {"model": state} for name, state in states.items()}
    end.begin(now)
    assert torch.equal(end.send("B")["proximal"], states["A"])
    assert torch.equal(end.send("B")["distal"], states["C"])
    assert end.send("D") == {}, "it was away so far"
    end.latest = {"A": end.latest["A"]}
    end.begin(now)
    assert end.send("A") == {}


# A whole training by another way -------------------------------------------------------------------------------------


def test_three_rounds_by_another_way():
    """A step a round with plain PyTorch: masks at Aachen, boxes at Bonn and Celle, changes put together by hand."""
    options = {"doubted": 0.4, "ramp": 2, "samples": 7, "decay": 0.5}
    made = federation({"feddm": options}, training={"local_steps": 1})
    network, rate = made.network(0), 0.1
    names = [entry.name for entry in network.layout.entries]
    blocks = [name.partition(".adn")[0].partition(".conv")[0] for name in names]
    sizes = [entry.size for entry in network.layout.entries]
    data = {name: (site.inputs.float() / 255, site.targets.float()) for name, site in made.data.items()}
    drawn = torch.rand(7, *made.shape, generator=generator("calibrated_boxes", 0, 0))
    model, last, history = made.initial(0).clone(), {}, None

    def logits(vector, inputs):
        return functional_call(network.module, network.layout.split(vector), (inputs,))

    for number in range(3):
        share, peers, updates = 1 - 0.4 * min(number / 2, 1), {}, {}
        for site in last:
            others = {}
            for other in last:
                maps = [logits(last[one], drawn).sigmoid().detach() for one in (site, other)]
                others[other] = (maps[0] - maps[1]).flatten(1).norm(dim=1)
            others.pop(site)
            ballots = torch.stack(list(others.values()))
            peers[site] = [list(others)[votes.bincount(minlength=2).argmax()]
                           for votes in (ballots.argmin(0), ballots.argmax(0))]  # fmt: skip
        for site, (inputs, boxes) in data.items():  # masks are squares, so their boxes are the same
            vector = model.clone().requires_grad_()
            outputs, masks = logits(vector, inputs), boxes
            if site != "Aachen" and peers:
                models = [model, *(last[name] for name in peers[site])]
                found = [logits(one, inputs).detach().flatten(1).numpy() for one in models]
                masks = [by_logits(box.flatten().bool().numpy(), [one[place] for one in found], share)
                         for place, box in enumerate(boxes)]  # fmt: skip
                masks = torch.from_numpy(np.stack(masks)).view_as(boxes).float()
            losses = F.binary_cross_entropy_with_logits(outputs, masks.clamp_max(1), reduction="none")
            counted = masks != IGNORED
            loss = ((losses * counted).flatten(1).sum(1) / counted.flatten(1).sum(1)).mean()
            updates[site] = -rate * torch.autograd.grad(loss, vector)[0]
        last = {site: model + change for site, change in updates.items()}
        scaled = [change * 3 * SIZES[site] / 12 for site, change in updates.items()]
        step = torch.stack(scaled).mean(0)
        if history is not None:
            step, where = (
                step.clone(),
                torch.tensor([blocks.index(name) for name in blocks]).repeat_interleave(torch.tensor(sizes)),
            )
            for block in where.unique():
                one, two, three = sorted((change[where == block] for change in scaled),
                                         key=lambda own: -float(own @ history[where == block]))  # fmt: skip
                step[where == block] = without_conflict(without_conflict(one, three), two, history[where == block]) / 3
        history = step if history is None else 0.5 * history + 0.5 * step
        model = model + step
    torch.testing.assert_close(made.state(), model, rtol=0, atol=2e-6)
    other = federation({"feddm": options | {"doubted": 0.0}}, training={"local_steps": 1})
    assert not torch.allclose(other.state(), model, rtol=0, atol=1e-5)


def without_conflict(one, other, _=None):
    dot = min(float(one @ other), 0.0)
    return one - dot * other / (other @ other) + other - dot * one / (one @ one)


# Identities -----------------------------------------------------------------------------------------------------------


def test_without_weight_it_is_fedavg_to_the_bit():
    found = federation("fedavg", {"fedavg": {"local": [{"calibrated_boxes": {"weight": 0}}], "label": "new"}})
    assert torch.equal(found.state("new"), found.state("fedavg"))


def test_boxes_that_are_outlines_are_learned_as_masks_until_there_are_peers():
    """Squares fill their boxes, and each site has one step of all its cases."""
    one_step = {"local_steps": 1, "rounds": 2}
    masks = federation("fedavg", preparation={}, training=one_step)
    boxes = federation({"fedavg": {"local": [{"calibrated_boxes": {"doubted": 0}}]}}, training=one_step)
    torch.testing.assert_close(boxes.state(), masks.state(), rtol=0, atol=1e-6)
    doubted = {"fedavg": {"local": [{"calibrated_boxes": {"doubted": 0.4, "ramp": 0}}]}}
    states = [federation(doubted, training=one_step | {"rounds": rounds}).state() for rounds in (1, 2)]
    first = federation("fedavg", preparation={}, training=one_step | {"rounds": 1})
    torch.testing.assert_close(states[0], first.state(), rtol=0, atol=1e-6)
    assert not torch.allclose(states[1], masks.state(), rtol=0, atol=1e-5)


def test_it_is_for_masks():
    for task in ("classification", "regression", "survival"):
        with pytest.raises(StudyError, match="P104"):
            declare(task=task, methods=["feddm"])


# What sites send and are sent -----------------------------------------------------------------------------------------


def test_what_is_told_is_said():
    part = build_part("calibrated_boxes", {})
    assert set(part.shapes) == set(part.reveals)
    assert not overrides(part.at_site(), "end"), "sites send nothing more than their update"
    with pytest.raises(StudyError, match="needs each site's update"):
        declare(task="segmentation", data=MASKS, model=UNET, methods=[{"feddm": {"channel": ["secure_sum"]}}])
    with pytest.raises(StudyError, match="needs whole models"):
        declare(task="segmentation", data=MASKS, model=UNET, methods=[{"feddm": {"share": "body"}}])


MASKS = {"table": "cases.csv", "site": "site", "image": "image", "mask": "mask", "size": [16, 16], "box": "box"}


def test_a_site_s_policy_must_allow_that_its_model_is_handed_on():
    from polyclinic.federation.ends.policy import refusals
    from polyclinic.federation.site_file import Policy

    def refused(method, **policy):
        study = declare(task="segmentation", data=MASKS, model=UNET, methods=[method])
        return list(refusals(Policy(floor=1, predictions=True, overlays=True, **policy), study, ""))

    (why,) = refused("feddm")
    assert "sends the site's own model to other sites (calibrated_boxes)" in why
    assert not refused("feddm", personal_models=True)
    noisy = {"fedavg": {"local": ["calibrated_boxes"], "channel": ["clip", {"gaussian_noise": {"noise": 1}}]}}
    assert not refused(noisy), "noise is in what is handed on"
    assert refused({"fedperl": {"peers": 1}})
    assert not refused("fedperl")


@pytest.mark.parametrize("wrong", ["short", "nan"])
def test_a_malformed_answer_is_its_sites_failure_and_nobodys_peer(wrong):
    made = federation("feddm", training={"quorum": 2, "rounds": 3})
    original, sent = made.engine.call, {}

    def call(function, requests):
        if function == "train":
            sent.update({site: set(message.tensors) for site, message in requests.items()})
        for site, reply in original(function, requests):
            if (function, site) == ("train", "Bonn"):
                change = reply.tensors["change"]
                change = change[:3] if wrong == "short" else change * torch.nan
                reply = Message(reply.fields, {**reply.tensors, "change": change})
            yield site, reply

    made.engine.call = call
    progress, rows = made.rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Celle"}
    assert ("P301" if wrong == "nan" else "P401") in progress.failures[0]
    assert made.state().isfinite().all()
    peers = {"calibrated_boxes/proximal", "calibrated_boxes/distal"}
    assert peers <= sent["Celle"]
    assert not peers & sent["Bonn"], "it never had a model that counted"


@pytest.mark.parametrize("wrong", ["length", "missing"])
def test_a_site_refuses_what_are_no_peers(wrong):
    made = federation("feddm", training={"rounds": 2})
    original = made.engine.call

    def call(function, requests):
        name = "calibrated_boxes/distal"
        for site, message in requests.items() if function == "train" else ():
            if name in message.tensors:
                kept = {key: tensor for key, tensor in message.tensors.items() if key != name}
                requests[site] = Message(message.fields, kept | ({name: torch.zeros(3)} if wrong == "length" else {}))
        yield from original(function, requests)

    made.engine.call = call
    with pytest.raises(PolyclinicError, match="P401"):
        made.rounds()


# Studies --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")


def study(folder, **entries):
    """Three sites; all of west have boxes, some of south names, boxes or nothing at all, north masks."""
    content = write_image_study(folder, {"north": 8, "south": 8, "west": 6})
    table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    weak = (table["site"] == "west") | ((table["site"] == "south") & (table.index % 2 == 1))
    table["box"] = np.where(weak & (table.index % 3 > 0), "1 1 6 6", "")
    table["seen"] = np.where(weak & (table.index % 3 == 0), "foreground", "")
    table.loc[weak, "mask"] = ""
    table.to_csv(folder / "cases.csv", index=False)
    content["data"] |= {"box": "box", "label": "seen"}
    content["training"] |= {"rounds": 3}
    methods = [{"feddm": {"ramp": 1, "samples": 2}}]
    evaluation = content["evaluation"] | {"folds": None, "holdout": 0.3}
    return content | {"methods": methods, "evaluation": evaluation} | entries


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("engine", [{"mode": "processes", "workers": 2}], ids=str)
def test_every_engine_gives_the_same(tmp_path, engine):
    content = study(tmp_path)
    results = [
        Study.of(content | {"engine": {"threads": 1, **one}}, tmp_path).run(tmp_path / name)
        for name, one in (("here", {"mode": "sequential", "jobs": 1}), ("there", engine))
    ]
    here, there = (result.predictions["dice"].to_numpy() for result in results)
    assert here == pytest.approx(there, abs=1e-5)
    assert set(results[0].rounds["site"]) == {"north", "south", "west"}


@pytest.mark.usefixtures("without_report")
def test_sites_elsewhere_give_the_same_numbers(tmp_path):
    content = study(tmp_path)
    content["evaluation"] |= {"predictions": "coordinator"}
    alike_elsewhere(content, tmp_path, ("predictions.csv", "flow.csv", "sites.csv"))


@pytest.mark.usefixtures("without_report")
def test_a_study_that_was_stopped_ends_the_same(tmp_path):
    study_goes_on(study(tmp_path), tmp_path, after=2)


# Benefit --------------------------------------------------------------------------------------------------------------


def test_models_outline_what_fills_little_of_its_box():
    """A certain case: the structure is a bar across its box, most of which is background that looks as it does outside.
    The site with masks never saw the bright squares that others have outside of their boxes. FedAvg, which has the
    masks alone, outlines these, too; who takes boxes for outlines marks the background in them."""
    training = {"rounds": 8, "batch_size": 4, "local_steps": 8, "optimizer": {"adam": {"lr": 0.015}}}
    methods = {"fedavg": {}, "boxes": {"doubted": 0}, "feddm": {"doubted": 0.6}}
    gains = []
    for seed in range(3):
        sites = {"Aachen": bars("Aachen", 6, seed, squares=False)}
        sites |= {name: bars(name, 12, seed, squares=True) for name in ("Bonn", "Celle")}
        entries = [
            {"feddm": {"cases": 8, "ramp": 3, "samples": 4, "label": name} | options} if options else name
            for name, options in methods.items()
        ]
        found = Federation(
            sites, entries, task="segmentation", preparation=BOXES, training=training,
            model={"unet": {"channels": [8, 16], "residual_units": 0, "norm": "instance"}},
        )  # fmt: skip
        plain, boxes, new = (
            np.mean([mean_dice(found, label, sites[name]) for name in ("Bonn", "Celle")]) for label in methods
        )
        gains.append((new - plain, new - boxes))
    assert np.min(gains) > 0, gains
    assert np.mean(gains, axis=0).min() > 0.05, gains
