"""One process or many, one by one or stacked: the same sites give the same numbers."""

import os
import signal
import threading
from contextlib import closing
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from helpers import SIZES, Federation, image_sites, recorded, scaling_steps, table_site, table_sites, trained_state
from polyclinic.client.work import Work
from polyclinic.communication.message import Message
from polyclinic.data.dataset import Dataset
from polyclinic.engine import LocalEngine
from polyclinic.engine.base import SitesLost
from polyclinic.engine.planner import choose_device, choose_plan, fitting
from polyclinic.engine.processes import ProcessEngine, share_out
from polyclinic.errors import SiteError, StudyError, TrainingError
from polyclinic.ignored import IGNORED
from polyclinic.models import build_model
from polyclinic.parts import FEDERATION

FEDREP = {"fedrep": {"head_epochs": 2, "local": ["proximal"]}}
ALL = ["fedavg", "fedsgd", "fedprox", "fedbn", "silobn", "fedadam", "single", "fedper", "lg_fedavg", "ditto", "apfl",
       "moon", "fedsld", FEDREP]  # fmt: skip


def run(data, method, **options):
    """Each site's answer in each round, the final state and the losses."""
    federation = Federation(data, [method], **options)
    with recorded(federation.engine) as said:
        progress, rows = federation.rounds()
    answers = [(site, trained_state(*exchange)) for function, site, *exchange in said if function == "train"]
    own = [kept.own for kept in federation.kept(progress).values()]
    return answers, own, progress.model(FEDERATION), [row["loss"] for row in rows]


def agree(data, method, tolerance=1e-5, **options):
    """Stacked training agrees with one site after another, to float tolerance."""
    one, many = (run(data, method, stacked=stacked, **options) for stacked in (False, True))
    assert [site for site, _ in one[0]] == [site for site, _ in many[0]]
    close = {"rtol": tolerance, "atol": tolerance}
    for (_, first), (_, second) in zip(one[0], many[0], strict=True):
        torch.testing.assert_close(second, first, **close)
    for first, second in zip(one[1], many[1], strict=True):
        torch.testing.assert_close(second, first, **close)
    torch.testing.assert_close(many[2], one[2], **close)
    assert many[3] == pytest.approx(one[3], rel=tolerance, abs=tolerance)


# Stacked --------------------------------------------------------------------------------------------------------------

# Adam divides by the size of the gradient. Where that is rounding noise (a bias before batch normalisation has a
# gradient of 0, computed as some 1e-7), n steps go up to n · lr · 1e-7 / eps, and where to depends on the processor:
# with eps 0.1 and 18 steps 2e-7.
OPTIMIZERS = {
    "slow": {"sgd": {"lr": 0.01}},
    "momentum": {"sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}},
    "adam": {"adam": {"lr": 0.01, "eps": 0.1, "weight_decay": 0.01}},
    "adamw": {"adamw": {"lr": 0.01, "eps": 0.1, "weight_decay": 0.1}},
    "rmsprop": {"rmsprop": {"lr": 0.005, "eps": 0.1, "momentum": 0.5}},
    "adagrad": {"adagrad": {"lr": 0.02, "eps": 0.1}},
}
MODELS = {
    "logistic": "logistic",
    "mlp": {"mlp": {"hidden": [6, 5]}},
    "batch": {"mlp": {"hidden": [6], "norm": "batch"}},
    "layer": {"mlp": {"hidden": [6], "norm": "layer"}},
}


@pytest.mark.parametrize(
    ("optimizer", "state"), [*((name, "keep") for name in OPTIMIZERS), ("momentum", "reset"), ("adam", "reset")]
)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_stacked_agrees_for_every_model_and_optimiser(model, optimizer, state):
    training = {"rounds": 3, "local_epochs": 2, "optimizer": OPTIMIZERS[optimizer], "optimizer_state": state}
    agree(table_sites(), "fedavg", model=MODELS[model], training=training)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("model", ["mlp", "batch"])
def test_stacked_agrees_for_every_method(method, model):
    training = {"rounds": 3, "optimizer": OPTIMIZERS["momentum"]}
    agree(table_sites(), method, model=MODELS[model], training=training)


@pytest.mark.parametrize(
    "training",
    [
        {"local_steps": 7},
        {"local_steps": 1},
        {"clip": 0.05},
        {"class_weights": "balanced"},
        {"class_weights": [0.3, 2.0], "clip": 0.1, "local_steps": 5},
        {"weights": "uniform", "schedule": {"exponential": {"gamma": 0.5}}},
        {"loss": "focal"},
        {"batch_size": 1},
        {"batch_size": 2, "optimizer": OPTIMIZERS["slow"]},  # normalised over two cases, large steps are chaotic
        {"batch_size": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fedavg", "fedsgd", "fedbn"])
def test_stacked_agrees_for_every_kind_of_training(training, method):
    model = MODELS["mlp" if training.get("batch_size") == 1 else "batch"]
    training = {"rounds": 2, "optimizer": OPTIMIZERS["momentum"]} | training
    agree(table_sites(), method, model=model, training=training)


@pytest.mark.parametrize("method", ["fedavg", "fedsgd", "fedbn"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_stacked_agrees_for_images(method, norm):
    model = {"cnn": {"channels": [3, 4], "norm": norm}}
    agree(image_sites(), method, model=model, training={"rounds": 2, "optimizer": OPTIMIZERS["momentum"]})


@pytest.mark.parametrize("method", ["fedavg", "fedsgd"])
def test_stacked_agrees_with_augmentation(method):
    preparation = {
        "augmentation": [{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}, {"RandGaussianNoise": {"prob": 0.5}}]
    }
    sizes = {"Aachen": 17, "Bonn": 10, "Celle": 5}
    model, training = {"cnn": {"channels": [3]}}, {"rounds": 2}
    agree(image_sites(sizes), method, model=model, training=training, preparation=preparation)
    plain = run(image_sites(sizes), method, model=model, training=training)
    changed = run(image_sites(sizes), method, model=model, training=training, preparation=preparation)
    assert not torch.equal(plain[2], changed[2]), "or nothing was augmented"


def test_stacked_agrees_for_segmentation():
    agree(
        image_sites({"Aachen": 9, "Bonn": 4}, masks=True), "fedavg", task="segmentation",
        model={"unet": {"channels": [2, 4], "residual_units": 1}}, training={"rounds": 2, "batch_size": 4},
    )  # fmt: skip


def test_stacked_agrees_where_pixels_are_ignored():
    sites = image_sites({"Aachen": 9, "Bonn": 4}, masks=True)
    for site in sites.values():
        site.targets[::2, :, :3] = IGNORED
    options = {"task": "segmentation", "model": {"unet": {"channels": [2, 4], "residual_units": 1}}}
    agree(sites, "fedavg", **options, training={"rounds": 2, "batch_size": 4})


def test_stacked_agrees_for_three_classes():
    agree(table_sites(classes=3), "fedavg", classes=3, model=MODELS["batch"], training={"rounds": 2})


@given(
    st.lists(st.integers(2, 23), min_size=1, max_size=6),
    st.integers(1, 9),
    st.one_of(
        st.tuples(st.just("local_epochs"), st.integers(1, 3)), st.tuples(st.just("local_steps"), st.integers(1, 6))
    ),
    st.sampled_from(["fedavg", "fedsgd", "fedbn"]),
    st.sampled_from(
        [("batch", "slow"), ("mlp", "momentum"), ("mlp", "adam"), ("mlp", "rmsprop"), ("layer", "adagrad")]
    ),
)
@settings(max_examples=25)
def test_stacked_agrees_whatever_the_sizes(sizes, batch_size, length, method, parts):
    model, optimizer = parts
    if method == "fedsgd" and "sgd" not in OPTIMIZERS[optimizer]:
        optimizer = "momentum"
    data = {f"site {i}": table_site(f"site {i}", cases) for i, cases in enumerate(sizes)}
    training = {"rounds": 2, "batch_size": max(batch_size, 4) if model == "batch" else batch_size, length[0]: length[1],
                "optimizer": OPTIMIZERS[optimizer], "optimizer_state": "keep"}  # fmt: skip
    agree(data, method, model=MODELS[model], training=training, tolerance=1e-4)


def test_a_site_that_leaves_for_early_stopping_does_not_disturb_the_stack():
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    agree(
        data, "single", model=MODELS["mlp"],
        training={"rounds": 12, "early_stopping": 2, "optimizer": {"sgd": {"lr": 1.0}}},
        evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"}, tolerance=1e-4,
    )  # fmt: skip


# Messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*ALL, "mix"])
@pytest.mark.parametrize("stacked", [False, True])
def test_turning_every_message_into_bytes_changes_nothing(method, stacked):
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    found = []
    for serialise in (False, True):
        federation = Federation(
            data, [method], model=MODELS["batch"], training={"rounds": 3, "optimizer": OPTIMIZERS["momentum"]},
            evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
            preparation={"steps": scaling_steps("federated")},
            serialise=serialise, stacked=stacked,
        )  # fmt: skip
        outcome = federation.outcome()
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in outcome.rounds]
        found.append((rows, outcome.predictions, next(iter(outcome.models.values()))))
    (rows, frames, models), (rows_too, frames_too, models_too) = found
    assert rows == rows_too
    assert all(a.equals(b) for a, b in zip(frames, frames_too, strict=True))
    assert all(torch.equal(models[name], models_too[name]) for name in models | models_too)


@pytest.mark.parametrize("stacked", [False, True])
def test_answers_come_in_site_order(stacked):
    federation = Federation(table_sites(), stacked=stacked)
    federation.rounds()
    state = federation.initial(0)
    request = Message({"round": 0, "learning_rate": 0.1}, {"state": state})
    answers = federation.engine.call("train", dict.fromkeys(["Dresden", "Bonn", "Aachen"], request))
    assert [site for site, _ in answers] == ["Aachen", "Bonn", "Dresden"]


def test_a_message_is_its_bytes():
    message = Message({"a": [1, None, "é"], "b": {"c": 0.1}}, {"x": torch.randn(3, 2).T, "n": torch.arange(3)})
    again = Message.from_bytes(message.to_bytes())
    assert again.fields == message.fields
    assert all(torch.equal(again.tensors[name], message.tensors[name]) for name in ("x", "n"))
    assert message.size == again.size == len(message.to_bytes())
    assert again.to_bytes() == message.to_bytes()


@given(
    numbers=st.lists(st.floats(), min_size=1, max_size=4), other=st.floats(), count=st.integers(0, 3),
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3, unique=True),
)  # fmt: skip
def test_the_size_of_a_message_is_that_of_its_bytes_and_tells_no_number(numbers, other, count, names):
    """Seconds differ from run to run, and a site's size on the wire must not."""
    tensors = {name: torch.zeros(count, 2, dtype=dtype) for name, dtype in zip(names, _KINDS, strict=False)}
    fields = {"loss": numbers[0], "seconds": numbers, "deep": {"é": [numbers[-1], 3, None, True, "0.5"]}}
    message = Message(fields, tensors)
    assert message.size == len(message.to_bytes())
    assert Message.from_bytes(message.to_bytes()).size == message.size
    changed = {"loss": other, "seconds": [other] * len(numbers), "deep": {"é": [other, 3, None, True, "0.5"]}}
    assert Message(changed, tensors).size == message.size


_KINDS = (torch.float32, torch.int64, torch.bool)


@pytest.mark.parametrize("method", ["fedavg", "scaffold", {"fedavg": {"channel": ["top_k"]}}, "single"])
def test_rows_count_the_bytes_of_messages_the_same_in_every_engine(method, tmp_path):
    """What went through the wire, counted by hand; of sites that train alone, nothing."""

    def made(**how):
        model, training = {"mlp": {"hidden": [4], "norm": "batch"}}, {"rounds": 2}
        return Federation(table_sites(), [method], model=model, training=training, **how)

    one, data = made(serialise=True), table_sites()
    with recorded(one.engine) as said:
        _, rows = one.rounds()
    trained = [(asked, reply) for function, _, asked, reply in said if function == "train"]
    bytes_of = [(len(reply.to_bytes()), len(asked.to_bytes())) for asked, reply in trained]
    found = [(row["bytes_up"], row["bytes_down"]) for row in rows]
    assert sorted(found) == (sorted(bytes_of) if method != "single" else [(0, 0)] * len(rows))
    others = [made(), made(stacked=True)]
    engine = ProcessEngine(data, workers=2, threads=1, folders={site: tmp_path / site for site in data})
    with closing(engine):
        for other in (*others, made(engine=engine)):
            assert [(row["bytes_up"], row["bytes_down"]) for row in other.rounds()[1]] == found


# Sites that fail ------------------------------------------------------------------------------------------------------


def broken(federation, site, error):
    """Make a site's data raise when it is used."""

    def fail(*_, **__):
        raise error

    federation.engine.members[site].dataset.batch = fail


@pytest.mark.parametrize("stacked", [False, True])
def test_a_site_that_fails_is_named_and_nothing_of_its_data_is_told(stacked, tmp_path):
    federation = Federation(table_sites(), stacked=stacked, folder=tmp_path / "sites")
    broken(federation, "Bonn", RuntimeError("patient Smith in /home/scans, value 3.25"))
    with pytest.raises(SiteError) as caught:
        federation.rounds()
    error = caught.value
    assert error.code == "P401"
    assert error.site == "Bonn"
    assert error.message.startswith("Site Bonn failed during 'train': RuntimeError in test_engines.py line ")
    for secret in ("Smith", "/home", "3.25", str(tmp_path)):
        assert secret not in str(error)
    assert "patient Smith in /home/scans" in (tmp_path / "sites" / "Bonn" / "site.log").read_text()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_site_out_of_memory_says_so(error, stacked):
    federation = Federation(table_sites(), stacked=stacked)
    broken(federation, "Celle", error)
    with pytest.raises(TrainingError, match=r"P303 Site Celle ran out of memory during 'train'.*batch_size"):
        federation.rounds()


@pytest.mark.parametrize("stacked", [False, True])
def test_above_the_quorum_the_study_goes_on_without_a_failing_site(stacked):
    training = {"rounds": 2, "quorum": 3}
    federation = Federation(table_sites(), training=training, stacked=stacked)
    broken(federation, "Bonn", RuntimeError("no"))
    progress, rows = federation.rounds()
    assert [row["site"] for row in rows] == ["Aachen", "Celle", "Dresden"] * 2
    assert [text.split(". Bonn: P401")[0] for text in progress.failures] == [
        "Round 1 went on without Bonn", "Round 2 went on without Bonn",
    ]  # fmt: skip
    others = {name: site for name, site in table_sites().items() if name != "Bonn"}
    expected = Federation(others, training={"rounds": 2}).state()
    torch.testing.assert_close(progress.model(FEDERATION), expected)


@pytest.mark.parametrize("stacked", [False, True])
def test_below_the_quorum_the_study_stops_and_names_every_cause(stacked):
    federation = Federation(table_sites(), training={"quorum": 3}, stacked=stacked)
    broken(federation, "Bonn", RuntimeError("no"))
    broken(federation, "Celle", ZeroDivisionError())
    with pytest.raises(SiteError) as caught:
        federation.rounds()
    assert caught.value.code == "P402"
    assert caught.value.message.startswith("In round 1, 2 of 4 sites answered (3 needed). Bonn: P401 Site Bonn ")
    assert "Celle: P401 Site Celle failed during 'train': ZeroDivisionError" in caught.value.message


@pytest.mark.parametrize("stacked", [False, True])
def test_a_loss_that_is_not_a_number_names_the_site(stacked):
    data = table_sites()
    data["Celle"].inputs[0, 0] = float("inf")
    with pytest.raises(
        TrainingError, match=r"P301 Training at site Celle gave .* not finite .*Lower the learning rate"
    ):
        Federation(data, stacked=stacked).rounds()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_value_that_is_not_a_number_harms_its_own_site_alone(stacked):
    """Aachen has the most steps and the widest ones, so that all others are padded."""
    data = table_sites({"Aachen": 32, "Bonn": 10, "Celle": 5})
    data["Aachen"].inputs[0, 0] = float("inf")
    engine = Federation(data, stacked=stacked).engine
    federation = Federation(data, training={"quorum": 2}, engine=engine)
    progress, rows = federation.rounds()
    assert [row["site"] for row in rows] == ["Bonn", "Celle"]
    assert progress.model(FEDERATION).isfinite().all()


@pytest.mark.parametrize("method", ["fedavg", "fedrep"])
def test_sets_of_sites_that_change_are_trained_stacked_as_anew(method, monkeypatch):
    """Cases are read once a site, also where there is room for three trainers only."""
    training = {"rounds": 12, "participation": {"uniform": {"sites": 2}}}
    model = {"mlp": {"hidden": [4], "norm": "batch"}}

    class Anew(LocalEngine):
        def call(self, function, requests):
            self._forget()
            return super().call(function, requests)

    read = []
    batch = Dataset.batch

    def noted(self, index, **options):
        read.append(len(index))
        return batch(self, index, **options)

    expected = Federation(table_sites(), [method], model=model, training=training,
                          engine=Anew(table_sites(), stacked=True)).state(method)  # fmt: skip
    for most in (16, 3):
        monkeypatch.setattr("polyclinic.engine.local.MOST_TRAINERS", most)
        federation = Federation(table_sites(), [method], model=model, training=training, stacked=True)
        with monkeypatch.context() as patch:
            patch.setattr(Dataset, "batch", noted)
            read.clear()
            progress, rows = federation.rounds(method)
        assert torch.equal(progress.model(FEDERATION), expected)
        assert len({tuple(r["site"] for r in rows if r["round"] == number) for number in range(12)}) > 3
        assert sorted(read) == sorted(SIZES.values()), "each site's cases once"
        assert len(federation.engine._trainers) <= most


@pytest.mark.parametrize("stacked", [False, True])
def test_a_learning_rate_far_too_high_is_told(stacked):
    training = {"rounds": 20, "optimizer": {"sgd": {"lr": 1e6}}}
    with pytest.raises(TrainingError, match=r"P301 Training at site \w+ gave a loss or weights that are not"):
        Federation(table_sites(), model=MODELS["mlp"], training=training, stacked=stacked).rounds()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_failed_round_leaves_no_trace_in_the_optimiser_that_a_site_keeps(stacked):
    training = {"rounds": 1, "optimizer": OPTIMIZERS["momentum"], "optimizer_state": "keep", "quorum": 1}
    data = table_sites()
    federation = Federation(data, training=training, stacked=stacked)
    progress, _ = federation.rounds()
    member = federation.engine.members["Celle"]
    kept = {name: value.clone() for name, value in federation.kept(progress)["Celle"].optimizers[0].items()}
    member.dataset._inputs[0, 0] = float("inf")
    federation.engine._forget()  # copies of the cases
    exchange = progress.exchanges + 1
    request = Message({"round": 1, "exchange": exchange, "learning_rate": 0.1}, {"state": federation.initial(0)})
    replies = dict(federation.engine.call("train", dict.fromkeys(data, request)))
    assert isinstance(replies["Celle"], TrainingError)
    assert kept
    member.run.settle(exchange)
    for name, value in kept.items():
        assert torch.equal(member.run.kept.optimizers[0][name], value)


@pytest.mark.parametrize("stacked", [False, True])
def test_one_case_is_too_few_for_batch_normalisation_and_the_site_is_named(stacked):
    federation = Federation(table_sites({"Aachen": 9, "Bonn": 1}), model=MODELS["batch"], stacked=stacked)
    with pytest.raises(TrainingError, match="P302 At site Bonn a training batch has a single case"):
        federation.rounds()


# Worker processes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers():
    """Three sites in two processes, and the same sites to compare with."""
    data = table_sites({"Aachen": 33, "Bonn": 14, "Celle": 17}, part=None)
    folders = dict.fromkeys(data)
    engine = ProcessEngine(data, workers=2, threads=1, folders=folders)
    yield data, engine
    engine.close()


@pytest.mark.parametrize(
    "method", ["fedbn", "single", "mix", "ensemble", "ditto", "apfl", "fed_moe", "moon", "fedsld", FEDREP]
)
def test_processes_give_the_same_bytes(workers, method):
    compare_processes(*workers, method, [6])


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "ditto", "moon", "fedbn"])
def test_processes_give_the_same_bytes_with_models_in_shared_memory(workers, method):
    compare_processes(*workers, method, [260, 260])
    assert workers[1]._lender._count > 0
    assert workers[1].notes == []


def compare_processes(data, engine, method, hidden):
    torch.set_num_threads(1)  # as many as the workers have
    found = []
    for chosen in (engine, LocalEngine(data)):
        federation = Federation(
            data, [method], engine=chosen, model={"mlp": {"hidden": hidden, "norm": "batch", "dropout": 0.2}},
            training={"rounds": 3, "optimizer": OPTIMIZERS["momentum"]},
            evaluation={"folds": 2, "validation": 0.3, "best_round": "loss"},
            preparation={"steps": scaling_steps("federated")},
        )  # fmt: skip
        outcome = federation.outcome()
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in outcome.rounds]
        found.append((rows, outcome.predictions, next(iter(outcome.models.values()))))
    (rows, frames, models), (rows_too, frames_too, models_too) = found
    assert rows == rows_too
    assert all(a.equals(b) for a, b in zip(frames, frames_too, strict=True))
    assert all(torch.equal(models[name], models_too[name]) for name in models | models_too)


def test_processes_answer_in_site_order(workers):
    data, engine = workers
    federation = Federation(data, engine=engine, evaluation={"folds": 2})
    request = Message(federation.plan().start.fields(), {"initial": federation.initial(0)})
    answers = [site for site, _ in engine.call("start", dict.fromkeys(["Celle", "Bonn", "Aachen"], request))]
    assert answers == ["Aachen", "Bonn", "Celle"]


def posted(engine, data, plan):
    """What comes when each site is asked for its loss, a site once more in between, and one for what there is not."""
    engine.ask("start", dict.fromkeys(data, Message(plan.start.fields(), {"initial": plan.initial})))
    found = []
    for site in ("Celle", "Aachen", "Bonn"):
        engine.post(site, "evaluate", Message({"metric": "auc"}, {"state": plan.initial}))
    for site, reply in engine.replies():
        found.append((site, reply.code if isinstance(reply, SiteError) else round(reply.fields["loss"], 6)))
        if site == "Celle" and len([one for one, _ in found if one == "Celle"]) == 1:
            engine.post(
                "Celle", "evaluate", Message({"metric": "auc"}, {"state": torch.arange(float(len(plan.initial)))})
            )
            engine.post("Celle", "nothing", Message())
    return found


def test_sites_that_are_asked_one_by_one_answer_as_they_are_ready(workers):
    """Simulated ones as they were asked; those in workers in any order, but each site's answers as it was asked."""
    data, engine = workers
    local = LocalEngine(data)
    plans = [
        Federation(data, engine=chosen, evaluation={"folds": 2, "validation": 0.3}).plan() for chosen in (engine, local)
    ]
    here, there = (posted(chosen, data, plan) for chosen, plan in zip((local, engine), plans, strict=True))
    assert [site for site, _ in here] == ["Celle", "Aachen", "Bonn", "Celle", "Celle"]
    assert here[0][1] != here[3][1]
    assert here[4][1] == "P401"
    assert sorted(there, key=lambda one: one[0]) == sorted(here, key=lambda one: one[0])  # keeps each site's own order
    assert list(engine.replies()) == list(local.replies()) == []


def test_an_error_in_a_worker_arrives_as_what_it_was(workers):
    data, engine = workers
    training = {"optimizer": {"sgd": {"lr": 1e30}}, "rounds": 3}
    federation = Federation(data, engine=engine, model=MODELS["mlp"], training=training, evaluation={"folds": 2})
    with pytest.raises(TrainingError, match="P301 Training at site Aachen gave a loss or weights") as caught:
        federation.rounds()
    assert "Lower the learning rate" in caught.value.hint


def test_a_worker_that_is_killed_names_its_site_and_nobody_waits(workers):
    """Aachen is alone in the first worker, Bonn and Celle share the second, which is killed while at work."""
    data, engine = workers
    assert share_out(data, 2) == {"Aachen": 0, "Celle": 1, "Bonn": 1}
    training = {"rounds": 1, "local_steps": 1_000_000, "quorum": 3}
    federation = Federation(data, engine=engine, training=training, evaluation={"folds": 2})
    plan = federation.plan()
    engine.ask("start", dict.fromkeys(data, Message(plan.start.fields(), {"initial": plan.initial})))
    request = Message({"round": 0, "exchange": 1, "learning_rate": 0.1}, {"state": plan.initial})
    victim = engine._workers[1].child.number
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    said: list[str] = []

    def call_twice():
        for _ in range(2):
            try:
                list(engine.call("train", dict.fromkeys(["Bonn", "Celle"], request)))
            except SitesLost as lost:
                said.append(str(lost))

    caller = threading.Thread(target=call_twice, daemon=True)
    caller.start()
    caller.join(timeout=300)
    assert not caller.is_alive(), "it waits for a dead process"
    assert len(said) == 2, "it is no answer of a site, which a quorum could do without"
    assert said[0] == "The worker process of sites Bonn, Celle ended unexpectedly (killed by signal 9)."
    assert said[1].startswith("The worker process of sites Bonn, Celle ended unexpectedly")
    assert engine.ask("start", {"Aachen": Message(plan.start.fields(), {"initial": plan.initial})}), (
        "the other lives on"
    )


def test_the_largest_sites_are_shared_out_first():
    data = table_sites({"a": 10, "b": 50, "c": 30, "d": 25, "e": 5})
    assert share_out(data, 2) == {"b": 0, "c": 1, "d": 1, "a": 0, "e": 1}


# The planner ----------------------------------------------------------------------------------------------------------

SGD = Work("train", 1, None, 32, ("sgd", {"lr": 0.1}))


def planned(model="mlp", options=None, *, mode="auto", works=(SGD,), shape=(90,), cases=(100, 200), passes=10, **given):
    network = build_model(model, options or {}, shape, 2)
    arguments = {"device": "cpu", "threads": None, "workers": None} | given
    return choose_plan(
        mode=mode, model=network, works=list(works), shape=shape, cases=list(cases), passes=passes, **arguments
    )


def test_small_networks_are_stacked_with_one_thread():
    plan = planned()
    assert (plan.mode, plan.threads) == ("stacked", 1)
    assert plan.reason.startswith("small network (")


def test_dropout_is_not_stacked_and_the_reason_is_told():
    plan = planned(options={"dropout": 0.5})
    assert plan.mode == "sequential"
    assert plan.reason == "one site after another (the network has dropout, whose random numbers would differ)"


def test_one_site_is_not_stacked():
    assert planned(cases=[100]).mode == "sequential"


def test_methods_that_can_not_be_stacked_do_not_keep_the_others_from_it():
    adafactor = replace(SGD, optimizer=("adafactor", {}))
    why = "the optimiser adafactor does not treat every coordinate on its own"
    plan = planned(works=[SGD, adafactor])
    assert plan.mode == "stacked"
    assert plan.reason.endswith(f"sites trained together, but one after another where {why}")
    alone = planned(works=[adafactor])
    assert (alone.mode, alone.reason) == ("sequential", f"one site after another ({why})")
    assert planned(works=[SGD, SGD], obstacles=["", "of the clock"]).mode == "stacked"
    assert planned(works=[SGD], obstacles=["of the clock"]).mode == "sequential"


@pytest.mark.parametrize("method", ["fedavg", "moon", "apfl", "fed_align"])
def test_a_method_that_can_not_be_stacked_gives_the_same_in_a_stacking_engine(method):
    """To the bit where sites are trained one after another anyway."""
    training = {"rounds": 2, "optimizer": {"sgd": {"lr": 0.1}}}
    states = [
        Federation(table_sites(), [method], model={"mlp": {"hidden": [5]}}, training=training, stacked=stacked).state()
        for stacked in (False, True)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=1e-5 if method in ("fedavg", "moon") else 0)


def test_mixed_precision_is_not_stacked():
    assert "mixed precision is on" in planned(works=[replace(SGD, mixed_precision=True)]).reason


def test_much_training_of_a_larger_network_goes_to_processes(monkeypatch):
    monkeypatch.setattr("polyclinic.engine.planner.cores", lambda: 4)
    plan = planned("cnn", shape=(1, 64, 64), cases=[1000] * 3, passes=500)
    assert (plan.mode, plan.workers, plan.worker_threads) == ("processes", 3, 1)
    assert planned("cnn", shape=(1, 64, 64), cases=[1000] * 3, passes=1).mode == "sequential"


LARGE = {"model": "cnn", "shape": (1, 64, 64), "cases": [1000] * 3}


@pytest.mark.parametrize(
    ("trainings", "passes", "given", "expected"),
    [
        (1, 500, {}, ("processes", 4, 1)),
        (2, 500, {}, ("processes", 4, 1)),  # three sites fill more cores than two trainings
        (3, 500, {}, ("sequential", 1, 3)),
        (90, 500, {}, ("sequential", 1, 4)),
        (90, 500, {"threads": 2}, ("sequential", 2, 4)),
        (2, 500, {"mode": "sequential"}, ("sequential", 2, 2)),
        (90, 1, {}, ("sequential", 1, 1)),  # not worth the start of processes
        (90, 500, {"mode": "processes"}, ("processes", 4, 1)),
        (90, 500, {"device": "cuda"}, ("sequential", 4, 1)),
        (90, 20, {"model": "mlp", "shape": (90,)}, ("stacked", 1, 1)),
        (90, 5000, {"model": "mlp", "shape": (90,)}, ("stacked", 1, 4)),
        (0, 500, {"mode": "sequential"}, ("sequential", 4, 1)),
    ],
)
def test_trainings_go_side_by_side_where_that_pays(monkeypatch, trainings, passes, given, expected):
    """Mode, threads and how many at a time: cores are shared out among as many as go at a time."""
    monkeypatch.setattr("polyclinic.engine.planner.cores", lambda: 4)
    monkeypatch.setattr("polyclinic.engine.planner.memory", lambda: 2**40)
    plan = planned(**{**LARGE, **given}, passes=passes, trainings=trainings)
    assert (plan.mode, plan.threads, plan.jobs) == expected


def test_no_more_trainings_go_side_by_side_than_fit_into_memory(monkeypatch):
    network = build_model("mlp", {"hidden": [1000, 1000]}, (90,), 2)
    size = 4 * (91 * 1000 + 1001 * 1000 + 2 * 1001)
    each = 6e8 + (2 * 3 + 10) * size
    monkeypatch.setattr("polyclinic.engine.planner.cores", lambda: 4)
    for room, fit in ((each, 1), (3 * each / 0.7 * 1.001, 3), (1e3, 1), (1e13, int(0.7 * 1e13 / each))):
        monkeypatch.setattr("polyclinic.engine.planner.memory", lambda room=room: int(room))
        assert fitting(network, 3) == fit
        plan = planned(**LARGE, mode="sequential", passes=500, trainings=90)
        assert plan.threads == 4 // plan.jobs
    assert plan.jobs == 4


@pytest.mark.parametrize("mode", ["sequential", "stacked", "processes"])
def test_a_mode_asked_for_is_taken(mode):
    plan = planned(mode=mode, threads=3, workers=2)
    assert (plan.mode, plan.threads, plan.workers, plan.worker_threads) == (mode, 3, 2, 1)
    assert plan.reason == "as the study file says"


def test_a_mode_that_is_impossible_is_refused():
    with pytest.raises(StudyError) as caught:
        planned(mode="stacked", options={"dropout": 0.5})
    assert caught.value.code == "P104"
    assert caught.value.message == (
        "`engine: {mode: stacked}` is impossible: the network has dropout, whose random numbers would differ."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has such a device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(StudyError, match=r"P102 `engine: \{device: cuda\}`: this machine has no such device"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == "cpu"


def test_a_network_in_evaluation_is_not_changed_by_planning():
    network = build_model("mlp", {"norm": "batch"}, (3,), 2)
    before = network.vector.clone()
    choose_plan(
        mode="auto", device="cpu", threads=None, workers=None, model=network, works=[SGD], shape=(3,), cases=[5, 6],
        passes=1,
    )  # fmt: skip
    assert torch.equal(network.vector, before)
    assert isinstance(network.module, nn.Module)
