"""What it costs to send a model to sites in worker processes and to get their answers, and what trainings side by side
save.

Four sites in two processes get a model of 200 MB and answer with one; they do nothing else. It is compared with one
plain copy of the same bytes, taking turns in the same process. Seconds are the best of several turns.

The demo is run with one training at a time and with two side by side, from reading the study to the report, in turns;
results are the same bytes. Two can't take half the time: opening, tables and the report are done once, and the workers
have to start.

Run it on a machine that does nothing else:

    python benchmarks/engines.py [transport] [jobs]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rounds import show, study, synthetic

import polyclinic
from polyclinic.communication.message import Message
from polyclinic.engine.processes import ProcessEngine
from polyclinic.models import build_model
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.study import Study

SITES, TURNS = 4, 7
#: Weights of the network: 200 MB.
HIDDEN = [7000, 7000]
#: What a round may take on two cores, in seconds.
LIMIT = 1.0


def transport() -> bool:
    """Send to all sites and add up what they answer; whether that is within the limit."""
    data = synthetic(SITES, 16, (90,))
    declaration = study({"mlp": {"hidden": HIDDEN}}, "classification", 16, 1)
    template = build_model("mlp", {"hidden": HIDDEN}, (90,), 2)
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    prepare = Message({
        "fold": 0, "folds": None, "validation": 0.0, "split_seed": 0, "small_sites": "train", "classes": 2,
        "steps": [["own_scaling", {"standardise": False, "imputation": "mean"}]], "augmentation": [],
    })  # fmt: skip
    engine.ask("prepare", dict.fromkeys(data, prepare))
    runner = JobRunner(declaration, engine, None, template, lambda seed: template.vector, ["no", "yes"])  # type: ignore[arg-type]
    nothing, cases = dict.fromkeys(data, 0), {site: len(found) for site, found in data.items()}
    method = declaration.study_methods[0]
    plan = runner.plan(Job((method,), 0, 0), Fold(0, cases, nothing, nothing, {site: [] for site in data}), list(data))
    engine.ask("start", dict.fromkeys(data, Message(plan.start.fields(), {"initial": template.vector})))
    state, copy = torch.rand(template.vector.shape), torch.empty_like(template.vector)
    rounds, copies = [], []
    for _ in range(TURNS):
        started = time.perf_counter()
        for _, reply in engine.call("model", dict.fromkeys(data, Message({}, {"state": state}))):
            if not isinstance(reply, Message):
                raise reply
            reply.tensors["model"].sum()  # what is mapped into memory comes when it is read
            last = reply.tensors["model"]
        rounds.append(time.perf_counter() - started)
        if not torch.equal(last, state):
            sys.exit("The answer is not what was sent.")
        del last, reply
        started = time.perf_counter()
        for _ in range(2 * SITES):  # there and back
            copy.copy_(state)
        copies.append(time.perf_counter() - started)
    engine.close()
    size = state.numel() * state.element_size() / 1e6
    show(f"{SITES} sites x {size:.0f} MB, there and back", min(rounds) / min(copies), 4.0,
         f"{min(rounds):.2f} s a round, a copy {min(copies):.2f} s")  # fmt: skip
    print(f"a round: {min(rounds):.2f} s (to reach: {LIMIT} s, {'reached' if min(rounds) <= LIMIT else 'NOT reached'})")
    return min(rounds) <= LIMIT


def side_by_side() -> bool:
    """Run the demo in both ways; whether two trainings at a time take less time than one."""
    demo, seconds, results = Path(polyclinic.__file__).parent / "study" / "demo.yaml", {1: [], 2: []}, set()
    for _ in range(2):
        for jobs, taken in seconds.items():
            with TemporaryDirectory() as folder:
                started = time.perf_counter()
                Study.read(demo).run(Path(folder) / "out", jobs=jobs)
                taken.append(time.perf_counter() - started)
                results.add((Path(folder) / "out" / "results.csv").read_bytes())
    if len(results) > 1:
        sys.exit("Two at a time give other results than one.")
    one, two = min(seconds[1]), min(seconds[2])
    show("demo, two trainings at a time", two / one, 1.0, f"{two:.1f} s, one at a time {one:.1f} s")
    return two < one


if __name__ == "__main__":
    parts = {"transport": transport, "jobs": side_by_side}
    done = [parts[name]() for name in sys.argv[1:] or parts]
    sys.exit(0 if all(done) else 1)
