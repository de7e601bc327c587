"""From a job of a study to what the loop of rounds is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyclinic.audit.poisoning import Attack
from polyclinic.client.optimizers import scheduled
from polyclinic.client.work import OwnWork, Work
from polyclinic.data.scaling import Scaler, merge
from polyclinic.methods import SHARES, Method
from polyclinic.models import build_model
from polyclinic.models.variant import Apart, Variant
from polyclinic.parts import PROCEDURES, TOPOLOGIES, Part, build_chain, build_part, variant_of
from polyclinic.running.plan import OwnNetwork, Plan
from polyclinic.site.evaluation import task_of
from polyclinic.site.messages import Allowance, LabelHead, MetricNames, Start
from polyclinic.state import FlatModule, Layout, Selection
from polyclinic.study.compatibility import trains_apart
from polyclinic.study.declaration import Declaration
from polyclinic.study.entries import Training
from polyclinic.study.job import Fold, Job, slug
from polyclinic.study.method_entries import build_participation, optimizer_of, schedule_of
from polyclinic.study.public import Public, works_on_public
from polyclinic.study.without_labels import pretrains_only
from polyclinic.tasks.metrics import METRICS


class Planner:
    """Plans the trainings of a study.

    Args:
        declaration: the study.
        template: a network of the study's kind.
        classes: names of the classes.
        attack: what is done in jobs that are attacked, see `Attack.on`.
        public: the public set, if there is one.
        folder: paths of options are relative to it.
    """

    def __init__(
        self, declaration: Declaration, template: FlatModule, classes: Sequence[str], attack: Attack | None = None,
        public: Public | None = None, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.public, self.folder = public, folder
        self.declaration, self.template, self.classes, self.attack = declaration, template, classes, attack

    def plan(
        self, job: Job, fold: Fold, sites: list[str], initial: Tensor, networks: Mapping[str, OwnNetwork] | None = None
    ) -> Plan:  # fmt: skip
        """What the loop is given for a job that is trained at ``sites`` from ``initial [P]``, or from those of networks
        that some sites have of their own."""
        study, attack = job.methods[0], self.attack if job.attacked else None
        method, training, evaluation = study.method, study.training, self.declaration.evaluation
        if attack is not None and not attack.changes_updates:
            fold = fold.corrupted(attack)
        selection = method.selection(self.template.layout)
        keeps = not selection.everything or method.personal is not None
        cases = {site: float(fold.trained_on(site)) if site in fold.train else 1.0 for site in sites}
        metric = self.declaration.validation_metric
        schedule = scheduled(optimizer_of(training), schedule_of(training), training.rounds)
        voters = [] if cannot_vote(method, selection, networks=bool(networks)) else self.declaration.evaluation.voters
        voters = [site for site in voters if site not in (*sites, job.without) and fold.validation.get(site, 0)]
        asked = fold.training_sites if method.scope == "pool" else [*sites, *voters]
        validation = sum(fold.validation.get(site, 0) for site in asked)
        start, own = self.start(job, fold, training), networks or {}
        apart = own if trains_apart(method) else {}
        return Plan(
            start=start,
            initial=initial,
            selection=selection,
            parts=lambda: built(method),
            sites=sites,
            weights=cases if training.weights == "cases" else dict.fromkeys(sites, 1.0),
            learning_rates=[options["lr"] for options in schedule],
            cycled=[{name: value for name, value in options.items() if name != "lr"} for options in schedule],
            network=self.template,
            task=task_of(start),
            together=method.scope != "sites",
            metric=metric,
            choose_by=evaluation.best_round if evaluation.best_round != "last" else "loss",
            higher_is_better=METRICS[metric].higher_is_better,
            validate=evaluation.best_round != "last" and validation > 0,
            patience=training.early_stopping,
            quorum=None if training.quorum is None else min(training.quorum, len(sites)),
            save=bool(keeps or method.local or method.channel or start.work.keep_optimizer or _has_site_ends(method)),
            keeps=keeps,
            participation=build_participation(training) if method.scope == "federation" else [],
            grouping=(method.topology[0], TOPOLOGIES[method.topology[0]](**method.topology[1])),
            procedure=(method.procedure[0], PROCEDURES[method.procedure[0]](**method.procedure[1])),
            voters=voters,
            variants={
                **variants_at(method, sites, self.template, job.seed, job.fold),
                **{site: Apart(one.model, one.initial, self.template) for site, one in apart.items()},
            },
            networks={} if apart or method.scope == "pool" else own,
            apart=apart,
            pretrain_only=[s for s in fold.sites_without_labels if s in sites] if pretrains_only(method) else [],
            endures=attack is not None,
            public=self.public.prepared() if self.public is not None and start.public is not None else None,
            folder=self.folder,
        )

    def start(self, job: Job, fold: Fold, training: Training) -> Start:
        """What every site is told when the training starts."""
        method, attack = job.methods[0].method, self.attack if job.attacked else None
        loss, loss_options = self.declaration.loss_of(training)
        mixed = self.declaration.engine.mixed_on(str(self.template.vector.device))
        corrupt = attack.names if attack is not None and not attack.changes_updates else ()
        return Start(
            run=f"{slug(job.methods[0].label)}-seed{job.seed}-fold{job.fold}{job.suffix}",
            task=self.declaration.task,
            classes=len(self.classes),
            loss=loss,
            loss_options=loss_options,
            target_scale=_target_scale(fold, job.without),
            times=list(self.declaration.grid.times),
            edges=list(self.declaration.grid.edges),
            labels=[LabelHead(**head._asdict()) for head in self.declaration.heads],
            metrics=MetricNames(
                names=self.declaration.metrics,
                classes=list(self.classes),
                tolerance=self.declaration.evaluation.surface_tolerance,
                space=self.declaration.evaluation.space,
            ),
            model=self.declaration.model_part,
            share=sorted(SHARES[method.shared.roles]),
            modules=list(method.shared.modules),
            without=list(method.shared.without),
            parts=method.parts,
            personal=method.personal,
            seed=job.seed,
            fold=job.fold,
            work=work_of(
                method, training, list(fold.train), mixed=mixed, class_weights=_class_weights(training, fold, job)
            ),
            corrupt=dict.fromkeys(corrupt, (attack.name, attack.options)) if attack else {},
            rounds=training.rounds,
            privacy=_allowance(self.declaration, job),
            hides=self.declaration.hides_of(method),
            public=self.public.size if self.public is not None and works_on_public(method) else None,
        )


def shared_words(method: Method, layout: Layout) -> str:
    """What of the model a method shares that names modules, in words."""
    selection = method.selection(layout)
    tensors, every = len(layout.inside(selection)), sum(entry.size > 0 for entry in layout.entries)
    return (
        f"{method.shared}: {tensors:,} of {every:,} tensors with {selection.size:,} of {layout.size:,} numbers; "
        "the others stay at the site while it trains"
    )


def cannot_vote(method: Method, selection: Selection, *, networks: bool = False) -> str:
    """Why sites that don't train can't say how good the model of a method is; empty if they can.

    Args:
        method: of the study.
        selection: what of the model it shares.
        networks: whether sites have different networks.
    """
    if method.scope == "pool":
        return "it is validated on the pool"
    if method.scope == "sites":
        return "each site has a model of its own"
    if not selection.everything or (method.personal is not None and method.personal[0] != "shared_model"):
        return "parts of the model stay at the sites that train"
    several = TOPOLOGIES[method.topology[0]].several or (networks and not trains_apart(method))
    return "there are several models" if several else ""


def variants_at(
    method: Method, sites: Sequence[str], network: FlatModule, seed: int, fold: int
) -> dict[str, Variant]:  # fmt: skip
    """What sites train in place of the study's network; those that train that one are not among them."""
    parts = list(built(method).values())
    found = {site: variant_of(parts, site, network, (seed, fold)) for site in sites}
    return {site: variant for site, variant in found.items() if variant is not None}


def networks_at(
    declaration: Declaration, shape: Sequence[int], outputs: int, seed: int, device: str = "cpu"
) -> dict[str, OwnNetwork]:  # fmt: skip
    """Site -> its network with the initial state of a seed, of the sites that have another than the study's.

    Sites whose networks are the same have one together.

    Args:
        declaration: the study.
        shape: of one input.
        outputs: of the networks.
        seed: of the initial states.
        device: of the networks; initial states are on the processor.
    """
    made = list[OwnNetwork]()
    for name, options in declaration.all_networks[1:]:
        model = build_model(name, options, shape, outputs, seed=seed, device=device)
        made.append(OwnNetwork((name, options), model, model.vector.to("cpu", copy=True)))
    own = declaration.own_networks.items()
    return {site: next(one for one in made if one.named == named) for site, named in own}


def _allowance(declaration: Declaration, job: Job) -> Allowance | None:
    """What noise is to guarantee, with the trainings that share the study's budget."""
    found = declaration.allowance(job.methods[0].method)
    return None if found is None else found.model_copy(update={"trainings": job.trainings})


def built(method: Method) -> dict[str, Part]:
    """The parts whose ends at the server make a step, by name."""
    return build_chain(method.channel, method.local, method.server)


def _has_site_ends(method: Method) -> bool:
    """Whether a part that stands with the server, or a topology or procedure, does something at the sites."""
    others = [*method.server, method.topology, method.procedure]
    return any(type(build_part(name, options)).at_site is not Part.at_site for name, options in others)


def _class_weights(training: Training, fold: Fold, job: Job) -> list[float] | None:
    if training.class_weights == "none":
        return None
    if training.class_weights != "balanced":
        return list(training.class_weights)
    return balanced_weights([fold.classes[site] for site in fold.training_sites if site != job.without])


def _target_scale(fold: Fold, without: str | None) -> tuple[float, float] | None:
    """Mean and deviation of the numbers to be predicted, over the training cases of all training sites."""
    summaries = [fold.targets[site] for site in fold.training_sites if site != without and site in fold.targets]
    if not summaries:
        return None
    scaler = Scaler.from_summary(merge(summaries))
    return scaler.mean.item(), scaler.deviation.item()


def balanced_weights(counts: Sequence[Sequence[int]]) -> list[float]:
    """Weights of classes by the inverse of their number over some sites, each with its ``counts`` of cases."""
    totals = np.asarray(counts).sum(axis=0)
    return [float(totals.sum() / (len(totals) * max(count, 1))) for count in totals]


def work_of(
    method: Method, training: Training, sites: Sequence[str], *, mixed: bool, class_weights: list[float] | None = None
) -> Work:
    """The local work of a training; ``own`` is what holds for single ``sites`` only."""
    epochs, steps = training.local_epochs, training.local_steps
    common_steps = steps if isinstance(steps, int) else None
    common_epochs = epochs if isinstance(epochs, int) else 1
    found = {site: _own_work(training, site) for site in sites}
    return Work(
        kind=method.work,
        epochs=None if common_steps else common_epochs,
        steps=common_steps,
        batch_size=training.batch_size,
        optimizer=optimizer_of(training),
        keep_optimizer=method.keep_optimizer or training.optimizer_state == "keep",
        clip=training.clip,
        class_weights=None if class_weights is None else tuple(class_weights),
        mixed_precision=mixed,
        own={site: own for site, own in found.items() if own != OwnWork()},
    )


def _own_work(training: Training, site: str) -> OwnWork:
    """What holds for one site only."""
    given = {
        "epochs": training.local_epochs, "steps": training.local_steps, "seconds": training.time_budget,
        "step_seconds": training.step_seconds,
    }  # fmt: skip
    own: dict[str, Any] = {key: value for key, value in given.items() if isinstance(value, float)}
    for key, value in given.items():
        if isinstance(value, dict) and site in value:
            own[key] = value[site]
    return OwnWork(**own)
