"""Trainings under faults: the same numbers as without them, or a refusal in words; never anything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from faults import PATIENCE, Faults, FaultyParty, Killed, SiteProcess, drawing, failing_writes
from helpers import Federation, table_sites
from polyclinic.communication.message import Message
from polyclinic.engine import LocalEngine
from polyclinic.errors import PolyclinicError, ResultsError, SiteError
from polyclinic.federation.remote.calls import Pieces
from polyclinic.federation.remote.engine import RemoteEngine
from polyclinic.federation.remote.wire import failure_to_pieces
from polyclinic.running.progress import Checkpoint

SITES = {"Aachen": 21, "Bonn": 14, "Celle": 17}
KINDS = [
    "lose the call", "lose the answer", "duplicate", "replay a call", "replay an answer", "corrupt the call",
    "corrupt the answer", "corrupt the envelope", "delay", "jump", "kill before", "kill after", "fill the disk",
    "tear a write", "kill at a write", "kill a site at a write",
]  # fmt: skip
METHODS: list[Any] = ["scaffold", "fedbn", {"fedavg": {"training": {"optimizer_state": "keep",
                                                                    "optimizer": {"adam": {"lr": 0.01}}}}}]  # fmt: skip
TRAINING = {"rounds": 4, "weights": "uniform"}
SEEDS = int(os.environ.get("POLYCLINIC_FAULT_SEEDS", "200"))


def training(folder: Path, method: Any, engine: Any = None, **more: Any) -> Federation:
    model = {"mlp": {"hidden": [4], "norm": "batch"}}
    return Federation(table_sites(SITES), [method], model=model, engine=engine, folder=folder / "sites",
                      training=TRAINING | more, evaluation={"validation": 0.2, "best_round": "loss"})  # fmt: skip


def found(made: Federation, folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The models at the end, and the rows without their times."""
    progress, rows = made.rounds(checkpoint=Checkpoint(folder / "job"), **options)
    models = {f"now {name}": model for name, model in progress.models.items()}
    models |= {f"best {name}": model for name, model in progress.best_models.items()}
    return models, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def start_site(name: str, folder: Path) -> Any:
    engine = LocalEngine({name: table_sites(SITES)[name]}, folder=folder / "sites")

    def answer(function: str, message: Pieces) -> Pieces:
        ((_, reply),) = engine.call(function, {name: Message.from_pieces(message)})
        return failure_to_pieces(reply) if isinstance(reply, PolyclinicError) else reply.to_pieces()

    return answer


class World:
    """One training under faults: runs, each with processes of its own, until it is over."""

    def __init__(self, folder: Path, method: Any, seed: int, kinds: list[str], **more: Any) -> None:
        self.folder, self.method, self.more = folder, method, more
        draw = drawing(seed)
        self.faults = Faults(draw, kinds, draw.randint(1, 6))
        self.old: list[tuple[Any, Any]] = []
        self.refusals: list[PolyclinicError] = []
        self.acknowledged = 0

    def run(self) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        for number in range(12):
            parties = {}
            for name in SITES:
                process = SiteProcess(name, f"run {number}", lambda name=name: start_site(name, self.folder))
                parties[name] = FaultyParty(process, self.faults, self.old)
            engine = RemoteEngine(parties, f"run {number}", PATIENCE)
            try:
                with failing_writes(self.faults, self.folder):
                    return found(training(self.folder, self.method, engine, **self.more), self.folder, report=self.told)
            except Killed:
                continue
            except PolyclinicError as error:
                self.refusals.append(error)
            finally:
                engine.close()
        raise AssertionError("it does not end")

    def told(self, done: int, _: int) -> None:
        assert done > self.acknowledged or self.faults.happened, "a round that was done is done again without a reason"
        checkpoint = Checkpoint(self.folder / "job").read(torch.zeros(0))
        assert checkpoint is not None
        assert checkpoint[0].done == done, "what is acknowledged is on disk"
        assert done >= self.acknowledged, "a round that was acknowledged was lost"
        self.acknowledged = done


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Any] = {}

    def of(method: Any) -> Any:
        if str(method) not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            known[str(method)] = found(training(folder, method), folder)
        return known[str(method)]

    return of


def check(folder: Path, seed: int, unbroken: Any) -> None:
    method = METHODS[seed % len(METHODS)]
    world = World(folder, method, seed, KINDS)
    models, rows = world.run()
    why = f"seed {seed}: {world.faults.happened}"
    assert rows == unbroken(method)[1], why
    for name, model in unbroken(method)[0].items():
        assert torch.equal(model, models[name]), f"{why}, {name}"
    for error in world.refusals:
        wanted = {SiteError: {"P401", "P402"}, ResultsError: {"P502"}}
        assert error.code in wanted.get(type(error), ()), f"{why}: {error}"


@pytest.mark.parametrize("seed", range(12))
def test_a_training_under_faults_gives_the_same_numbers(seed: int, tmp_path: Path, unbroken: Any) -> None:
    check(tmp_path, seed, unbroken)


@pytest.mark.long
def test_so_do_many(tmp_path: Path, unbroken: Any) -> None:
    for seed in range(100, 100 + SEEDS):
        check(tmp_path / str(seed), seed, unbroken)


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_each_fault_alone(kind: str, tmp_path: Path, unbroken: Any) -> None:
    happened = 0
    for seed in range(4):
        method = METHODS[seed % len(METHODS)]
        world = World(tmp_path / str(seed), method, seed, [kind])
        models, rows = world.run()
        assert rows == unbroken(method)[1]
        assert all(torch.equal(model, models[name]) for name, model in unbroken(method)[0].items())
        happened += len(world.faults.happened)
    assert happened, "the fault was tried"


LOSING = ["kill before", "kill after", "lose the call", "lose the answer", "corrupt the answer", "duplicate"]


@pytest.mark.parametrize("seed", range(6))
def test_with_a_quorum_the_model_is_that_of_those_who_took_part(seed: int, tmp_path: Path) -> None:
    """Which rows there are says who took part in each round; a training in which the others were never there gives the
    same model."""
    more = {"quorum": 1, "rounds": 6}
    world = World(tmp_path / "there", "fedavg", seed, LOSING, **more)
    world.faults.left = 8
    models, rows = world.run()
    absent = {
        site: [n + 1 for n in range(6) if (n, site) not in {(row["round"], row["site"]) for row in rows}]
        for site in SITES
    }
    away = {"availability": {"absent": {site: rounds for site, rounds in absent.items() if rounds}}}
    still = {"participation": away} if any(absent.values()) else {}
    made = Federation(
        table_sites(SITES), ["fedavg"], model={"mlp": {"hidden": [4], "norm": "batch"}},
        training=TRAINING | more | still, evaluation={"validation": 0.2, "best_round": "last"},
    )  # fmt: skip
    progress, _ = made.rounds()
    # A total that is known beforehand is divided by in another order; an update too many would be a hundredth.
    why = f"seed {seed}: {world.faults.happened}"
    torch.testing.assert_close(
        models["now federation"], progress.model("federation"), rtol=1e-5, atol=1e-6, msg=lambda text: f"{why}: {text}"
    )
