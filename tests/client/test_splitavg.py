"""SplitAVG: the head learns at the server from the features of all sites' batches at once."""

import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, image_sites, recorded, site_of, table_site, table_sites
from plugin_helpers import failing
from polyclinic.communication.message import Message
from polyclinic.errors import PolyclinicError, SiteError, StudyError
from polyclinic.options import EntryError
from polyclinic.running.progress import Checkpoint
from polyclinic.study.job import Job

NORM = {"mlp": {"hidden": [6], "norm": "batch"}}
PART = "concatenated_features"


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def tables(*methods, **options):
    options = {"model": NORM, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(options.pop("data", None) or table_sites(), list(methods), **options)


def body_and_head(shape, outputs):
    """Outputs h b x of one feature: one weight in the body, one in the head, both 1 at first."""
    body, head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    body.weight.data.fill_(1.0)
    head.weight.data.fill_(1.0)
    return nn.Sequential(body, head), [head]


def test_a_step_by_hand():
    """Numbers 1 and 3 at A (x = 1, 1), 5 at B (x = 2): in their unit the mean is 3, the deviation s = √(8/3).

    Loss of a case is (h b x − y)²; with h = b = 1 and y = −2/s, 0, 2/s the slopes of the outputs are 2 (x − y) / 3.
    That of h is Σ 2 (x − y) x / 3; each body has the slopes of its own cases.
    """
    data = {
        "A": site_of("A", torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0])),
        "B": site_of("B", torch.tensor([[2.0]]), torch.tensor([5.0])),
    }
    with catalogued("cut", body_and_head):
        made = Federation(data, ["splitavg"], model="cut", task="regression", classes=0)
        found, scale = made.state(), made.plan().start.target_scale
    x, y = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0])
    assert scale == pytest.approx((3.0, (8 / 3) ** 0.5))
    wanted = (y - 3) / (8 / 3) ** 0.5
    slopes = 2 * (x - wanted) * x / 3
    head = 1 - 0.1 * slopes.sum()
    bodies = 1 - 0.1 * slopes[:2].sum(), 1 - 0.1 * slopes[2]
    close(found, [float(2 / 3 * bodies[0] + 1 / 3 * bodies[1]), float(head)], 1e-5)


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}},
                                       {"adam": {"lr": 0.01}}], ids=str)  # fmt: skip
def test_one_site_is_plain_training(optimizer):
    data = {"Aachen": table_site("Aachen", 33)}
    training = {"optimizer": optimizer, "local_epochs": 2}
    close(
        tables("splitavg", data=data, training=training).state(),
        tables("fedavg", data=data, training=training).state(),
        1e-5,
    )


def test_sites_with_a_batch_each_are_trained_as_their_pool_but_for_their_bodies():
    """Without a body that learns it is one training of the head on all cases: here the only weights are the head's."""
    training = {"batch_size": 128, "rounds": 5}
    made = tables("splitavg", "mix", model="logistic", training=training)
    close(made.state("splitavg"), made.state("mix"), 1e-5)


def test_where_each_site_has_one_class_the_head_knows_both():
    """In a round of many steps a site's own head forgets what it does not see; at the server it always sees all."""
    source = torch.Generator().manual_seed(2)
    data = {}
    for label, site in enumerate("AB"):
        inputs = torch.randn(32, 2, generator=source) * 0.3 + (2.0 * label - 1)
        data[site] = site_of(site, inputs, torch.full((32,), label), None)
    for seed in range(3):
        made = tables("fedavg", "splitavg", data=data, model="logistic", evaluation={"folds": 2},
                      training={"rounds": 2, "local_epochs": 20, "optimizer": {"sgd": {"lr": 0.5}}})  # fmt: skip
        loss = {}
        for label in ("fedavg", "splitavg"):
            frames = made.runner.run(Job((made.method(label),), seed, 0), made.fold).predictions
            loss[label] = sum(float((frame["score"] - frame["label"]).abs().mean()) for frame in frames)
        assert loss["splitavg"] < 0.8 * loss["fedavg"]


def test_a_round_tells_all_that_was_said_in_its_steps():
    made = tables("splitavg", training={"rounds": 1})
    with recorded(made.engine) as said:
        _, rows = made.rounds()
    asked = [(function, site) for function, site, _, _ in said if function.startswith(PART)]
    assert {site: asked.count((f"{PART}/backward", site)) for site in made.data} == {
        "Aachen": 4, "Bonn": 2, "Celle": 1, "Dresden": 3}  # fmt: skip
    assert {row["site"]: (row["steps"], row["examples"]) for row in rows} == {
        "Aachen": (4, 33), "Bonn": (2, 10), "Celle": (1, 5), "Dresden": (3, 20)}  # fmt: skip
    assert f"{PART}/features" in rows[0]["extra_up"]


def test_images_and_masks():
    data = image_sites({"Aachen": 9, "Bonn": 7}, masks=True, size=16)
    made = Federation(data, ["splitavg"], task="segmentation", classes=2,
                      model={"unet": {"channels": [4, 8], "norm": "batch"}})  # fmt: skip
    assert made.state().isfinite().all()


@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options):
    assert torch.equal(tables("splitavg", **options).state(), tables("splitavg").state())


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        made = tables("splitavg", model={"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}},
                      training={"rounds": 3}, folder=folder / "sites")  # fmt: skip

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        return made.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0].model("federation")

    whole = train(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        assert torch.equal(train(tmp_path / str(stop)), whole)


def changing(engine, site, function, change):
    """An engine in which a site's answers to a question are changed."""
    original = engine.call

    def call(asked, requests):
        for name, reply in original(asked, requests):
            yield name, change(reply) if (asked, name) == (function, site) and isinstance(reply, Message) else reply

    engine.call = call


def without(site, **options):
    """The model of a federation without a site."""
    data = {name: one for name, one in table_sites().items() if name != site}
    return tables("splitavg", data=data, **options).state()


def batch(**changed):
    def change(reply):
        if "features" not in reply.tensors:
            return reply
        return Message(
            reply.fields, {**reply.tensors, **{name: one(reply.tensors[name]) for name, one in changed.items()}}
        )

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (batch(features=lambda one: one[:, :3]), "features: got"),
        (batch(features=lambda one: one * torch.nan), "P301"),
        (batch(targets=lambda one: one[:1]), "that are not theirs"),
        (batch(targets=lambda one: one + 7), "that are not theirs"),
        (batch(targets=lambda one: one.float()), "that are not theirs"),
        (lambda reply: Message(reply.fields, {}), "sent no batch"),
    ],
)  # fmt: skip
def test_a_batch_that_is_none_is_its_site_s_failure(change, words):
    training = {"rounds": 1, "quorum": 2}
    made = tables("splitavg", training=training)
    changing(made.engine, "Bonn", f"{PART}/forward", change)
    progress, rows = made.rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Celle", "Dresden"}
    assert any("Bonn" in note and words in note for note in progress.failures), progress.failures
    close(progress.model("federation"), without("Bonn", training=training), 1e-6)


def test_a_site_that_is_lost_in_a_step_is_left_out():
    made = tables("splitavg", training={"rounds": 1, "quorum": 2})
    changing(made.engine, "Dresden", f"{PART}/backward", lambda reply: SiteError("P401", "Dresden is gone."))
    progress, rows = made.rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Bonn", "Celle"}
    assert progress.model("federation").isfinite().all()
    made = tables("splitavg", training={"rounds": 1})
    changing(made.engine, "Dresden", f"{PART}/backward", lambda reply: SiteError("P401", "Dresden is gone."))
    with pytest.raises(PolyclinicError, match="Dresden is gone"):
        made.rounds()


def test_a_head_that_breaks_down_is_said_so():
    made = tables("splitavg", training={"rounds": 3, "optimizer": {"sgd": {"lr": 1e30}}})
    with pytest.raises(PolyclinicError, match="P301"):
        made.rounds()


def test_what_can_not_be_is_refused():
    for entry, why in (
        ({"local": ["proximal"]}, "proximal has nothing to change"), ({"share": "no_norm"}, "shares all of the model"),
        ({"channel": ["secure_sum"]}, "secure_sum has nothing to change"), ({"personal": "ditto"}, "ditto"),
    ):  # fmt: skip
        with pytest.raises(EntryError, match=f"P104 .*{why}"):
            tables({"splitavg": entry})
    for build, why in (
        (lambda shape, outputs: (nn.Linear(shape[0], outputs), []), "head, which must be one layer"),
        (averaging, "no average over all batches"),
    ):
        with catalogued("cut", build):
            made = tables("splitavg", model="cut")
            with pytest.raises(StudyError, match=f"P104 .*{why}"):
                made.rounds()


def averaging(shape, outputs):
    head = nn.Linear(3, outputs)
    return nn.Sequential(nn.Linear(shape[0], 3), nn.BatchNorm1d(3, momentum=None), head), [head]


def test_a_site_that_is_away_at_first_is_left_out():
    made = tables("splitavg", training={"rounds": 2, "quorum": 2})
    failing(made.engine, (0, "Bonn"))
    assert made.state().isfinite().all()
