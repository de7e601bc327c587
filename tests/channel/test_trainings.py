"""Trainings through every step of the channel: messages as bytes, interrupted, and with answers that get lost."""

import hashlib

import pytest
import torch

from helpers import Federation, table_sites
from plugin_helpers import failing
from polyclinic.parts import CHANNEL_PARTS
from polyclinic.running.progress import Checkpoint
from polyclinic.study.job import Job

MODEL = {"mlp": {"hidden": [12], "norm": "batch"}}
#: Options with which a step changes something in so small a network.
OPTIONS = {
    "top_k": {"share": 0.1, "values": "int8"}, "random_k": {"share": 0.3}, "power_sgd": {"rank": 1},
    "gaussian_noise": {"noise": 1e-3}, "central_noise": {"noise": 1e-3}, "laplace_noise": {"norm": 9.0, "noise": 1e-4},
    "distributed_noise": {"noise": 1e-3},
    "dynamic_fusion": {"by": "loss"}, "sparse_vector": {"epsilon": 1e9, "share": 0.9, "bound": 9.0},
}  # fmt: skip
NOISE = ("gaussian_noise", "laplace_noise", "sparse_vector", "central_noise", "distributed_noise")
#: Of steps for images alone see their own tests.
NAMES = sorted(name for name in CHANNEL_PARTS if not CHANNEL_PARTS[name].images_only)
#: Numbers that come back from encryption are near, and new each time.
EXACT = [name for name in NAMES if name != "homomorphic_sum"]
#: Those with which less is sent, also of so small a network (zstd has heads).
SHORTER = ["bfloat16", "float16", "int8", "power_sgd", "qsgd", "random_k", "top_k"]
#: Those that keep something at the sites.
KEEPING = ["bfloat16", "float16", "int8", "power_sgd", "random_k", "top_k"]


def entry(name):
    if name in NOISE:
        following = ["secure_sum"] if name == "distributed_noise" else []
        channel = ["clip", {name: OPTIONS[name]}, *following]
        return {"fedavg": {"channel": channel, "share": "no_norm_statistics", "label": name}}
    return {"fedavg": {"channel": [{name: OPTIONS.get(name, {})}]}}


def federation(name, data=None, **options):
    training = {"rounds": 3} | options.pop("training", {})
    method = entry(name) if name else "fedavg"
    return Federation(data or table_sites(), [method], model=MODEL, training=training, **options)


@pytest.mark.parametrize("name", EXACT)
def test_messages_as_bytes_give_the_same_bytes(name):
    states = [federation(name, serialise=serialise).state() for serialise in (False, True)]
    assert torch.equal(*states)


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_trained_together_to_the_same_model(name):
    """What is rounded may fall on the other side where sums were added up in another order; then feedback makes it up.

    What is drawn by chance is drawn alike."""
    alone, together = (federation(name, stacked=stacked) for stacked in (False, True))
    torch.testing.assert_close(alone.state(), together.state(), rtol=0, atol=5e-3)
    assert together.engine._trainers, "or they were trained one after another"


@pytest.mark.parametrize("name", NAMES)
def test_less_is_sent_and_the_model_is_near(name):
    """After thirty rounds the loss of what was trained is that of fedavg up to a tenth of what training gained."""
    training = {"rounds": 30, "local_epochs": 2}
    made, plain = federation(name, training=training), federation(None, training=training)
    (progress, rows), (reference, full) = made.rounds(), plain.rounds()
    if name in SHORTER:
        assert rows[-1]["bytes_up"] < full[-1]["bytes_up"]
    if name in NOISE:  # which don't tell their loss
        return
    losses = [[row["loss"] for row in found if row["round"] == 29] for found in (rows, full)]
    first = sum(row["loss"] for row in full if row["round"] == 0)
    gained = first - sum(losses[1])
    assert sum(losses[0]) - sum(losses[1]) < 0.25 * gained, (losses, first)
    assert (progress.model("federation") != reference.model("federation")).any() or name not in SHORTER


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def outcome(name, folder, stop=None):
    one = federation(
        name, table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None), folder=folder / "sites",
        training={"rounds": 5}, evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
    )  # fmt: skip

    def report(done, _):
        if done == stop:
            raise Killed

    found = one.runner.run(Job((one.method(),), 0, 0), one.fold, checkpoint=Checkpoint(folder / "job"), report=report)
    rows = [{key: str(value) for key, value in row.items() if key != "seconds"} for row in found.rounds]
    (tensors,) = found.models.values()
    frames = [frame.to_csv() for frame in found.predictions]
    return rows, frames, {key: hashlib.sha256(t.numpy().tobytes()).hexdigest() for key, t in tensors.items()}


@pytest.mark.parametrize("name", EXACT)
def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(name, tmp_path):
    unbroken = outcome(name, tmp_path / "unbroken")
    for stop in (1, 2, 4):
        with pytest.raises(Killed):
            outcome(name, tmp_path / str(stop), stop)
        assert outcome(name, tmp_path / str(stop)) == unbroken


@pytest.mark.parametrize("name", KEEPING)
def test_what_is_left_counts_only_with_its_round(name):
    """Bonn's answer of the second round is lost; the third goes on from what was left after the first."""
    kept = []
    for rounds in (1, 2, 3):
        one = federation(name, training={"rounds": rounds, "quorum": 3})
        failing(one.engine, (1, "Bonn"))
        progress, _ = one.rounds()
        run = one.engine.members["Bonn"].run
        run.settle(progress.counted["Bonn"])
        kept.append(run.kept.parts[name]["left"])
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])
    assert kept[0].any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOISE])
def test_each_of_several_models_and_private_parts_go_with_it(name):
    """With `share: body` T is less than all weights; what is kept has that length."""
    one = Federation(table_sites(), [{"fedbn": {"channel": [{name: OPTIONS.get(name, {})}], "label": "a"}},
                                     {"fedper": {"channel": [{name: OPTIONS.get(name, {})}], "label": "b"}}],
                     model=MODEL, training={"rounds": 2})  # fmt: skip
    for label in ("a", "b"):
        progress, rows = one.rounds(label)
        assert progress.model("federation").isfinite().all()
        assert len(rows) == 8
        plan = one.plan(label)
        for kept in one.kept(progress).values():
            left = kept.parts[name].get("left", torch.zeros(plan.selection.trainable))
            assert len(left) == plan.selection.trainable
