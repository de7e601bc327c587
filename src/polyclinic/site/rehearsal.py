"""One batch, before the first round: what can't work at a site is known before others wait for it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from polyclinic.client.train import train
from polyclinic.client.work import LocalJob
from polyclinic.site import evaluation
from polyclinic.site.run import Run


def try_out(run: Run, state: Tensor) -> None:
    """Train one step on a batch of the training cases, and measure as many validation cases; nothing is kept. Where
    masks are measured as the images are, which takes more memory than the grid, one is.

    Args:
        run: the method at the site.
        state: the shared state ``[Q]``.

    Raises:
        TrainingError: P301, the loss is not a finite number; P303, there is not enough memory.
    """
    vector, phase = run.vector(state), run.phases[0]
    start = vector if run.variant is None else run.received(run.variant.sent(state))
    work = replace(phase.work, kind="train", epochs=None, steps=1, keep_optimizer=False)
    index, labelled = run.parts.trained_on, bool(len(run.parts.train))
    if len(index):
        seed = (run.declared.seed, "try", run.site, run.declared.fold)
        job = LocalJob(
            run.site, run.dataset, index, start, seed, 1e-6, labelled=labelled, steps=1, trained=phase.trained
        )  # fmt: skip
        train(run.network, run.task, work, job)
    if len(run.parts.validation):
        evaluation.measure(run, vector, run.parts.validation[: work.batch_size])
        if run.declared.metrics.space == "original":
            evaluation.predict(run, [vector], run.parts.validation[:1], 0.5)
