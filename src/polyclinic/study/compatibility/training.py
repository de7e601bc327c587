"""Local training: what its parts need of the task, the optimiser, and each other."""

from __future__ import annotations

from polyclinic.methods import Method
from polyclinic.models import POOLING
from polyclinic.parts import Part, Procedure, ServerEnd, build_part, pretraining_of
from polyclinic.parts.site_end import looks_at_labels, overrides
from polyclinic.study.compatibility.refusing import Local, Refusal, all_parts, built_parts
from polyclinic.tasks import TASKS


def gradient_at_start(method: Method, local: Local) -> Refusal | None:
    """Parts that do nothing at the state that all sites receive, where training is one gradient there."""
    idle = [name for name, part in built_parts(method) if part.at_site().zero_at_start]
    if method.work == "gradient" and idle:
        what = "the proximal term" if idle[0] == "proximal" else f"what {idle[0]} adds"
        return Refusal(f"fedsgd takes its one gradient at the global state, where {what} is zero.",
                       "Use a method that trains locally, such as fedavg.", "local")  # fmt: skip
    if method.work == "gradient" and method.personal is not None:
        return Refusal(f"fedsgd does not train locally, so {method.personal[0]} has nothing to train.",
                       "Use fedavg.", "personal")  # fmt: skip
    return None


def gradient_step(method: Method, local: Local) -> Refusal | None:
    """Optimisers whose step does not grow with the gradient, where training is one step."""
    if method.work != "gradient" or local.optimizer == "sgd":
        return None
    return Refusal(f"fedsgd takes one full-batch gradient step, for which a learning rate of {local.optimizer} is none "
                   "(a step of it does not grow with the gradient).",
                   "Give the method `training: {optimizer: {sgd: {lr: ...}}}`.", "training")  # fmt: skip


def linear_steps(method: Method, local: Local) -> Refusal | None:
    """Parts that read the gradient off the way a site went, with other optimisers than SGD."""
    wanting = [(name, key) for key, name, part in all_parts(method) if part.needs_sgd]
    if not wanting or method.work == "gradient":
        return None
    name, key = wanting[0]
    if local.optimizer != "sgd":
        return Refusal(
            f"{name} reads the mean gradient off the way a site went, which works for sgd (also with momentum), "
            f"not for {local.optimizer}.", "Use `optimizer: {sgd: {lr: ...}}`.", key,
        )  # fmt: skip
    if local.keeps_optimizer:
        return Refusal(f"{name} supposes that local momentum starts anew each round.",
                       "Use `optimizer_state: reset`.", key)  # fmt: skip
    return None


def task(method: Method, local: Local) -> Refusal | None:
    """Parts that are for other tasks, inputs or data than the study has."""
    for key, name, part in all_parts(method):
        if part.tasks and local.task not in part.tasks:
            return Refusal(f"{name} is for {' and '.join(part.tasks)}, and the task is {local.task}.",
                           "Leave it out.", key)  # fmt: skip
        if part.subgroup and part.subgroup not in local.subgroups:
            return Refusal(f"{name} looks at the groups of {part.subgroup!r}, which is no subgroup of the study.",
                           f"Add `evaluation: {{subgroups: [{part.subgroup}]}}`.", key)  # fmt: skip
        if part.images_only and not local.images:
            return Refusal(f"{name} is for images, and the cases are rows of a table.", "Leave it out.", key)
        if part.images_only and not part.tasks and TASKS[local.task].target == "images":
            return Refusal(f"{name} changes images before the network, and those of a {local.task} are what was "
                           "measured.", "Leave it out.", key)  # fmt: skip
        if part.no_bags and local.model in POOLING:
            return Refusal(f"{name} is for single inputs, and the cases are bags of them.", "Leave it out.", key)
        if part.needs_public and not local.public:
            return Refusal(f"{name} works on a public set without labels, and the study has none.",
                           "Name one (`data: {public: ...}`), or leave it out.", key)  # fmt: skip
        if part.needs_accuracy and not TASKS[local.task].has_accuracy:
            return Refusal(f"{name} asks for the accuracy of each site's model, and {local.task} has none.",
                           "Choose another variant of it.", key)  # fmt: skip
    return None


def distilled(method: Method, local: Local) -> Refusal | None:
    """What does not go with models that are run elsewhere than in training."""
    built = built_parts(method)
    whole = [name for name, part in built if part.at_server().needs_whole]
    if whole and method.share != "all":
        return Refusal(f"{whole[0]} needs whole models at the server, and the method shares {method.share}.",
                       "Use `share: all`.", "share")  # fmt: skip
    on_public = [name for name, part in built if part.needs_public]
    changing = [name for name, part in built if overrides(part.at_site(), "images")]
    if on_public and changing:
        return Refusal(f"{changing[0]} changes the images of each site in its own way, and {on_public[0]} looks at the "
                       "same ones everywhere.", "Leave one of them out.", "local")  # fmt: skip
    first = [name for name, part in built if part.sees_unchanged and name in changing]
    if first and len(changing) > 1:
        other = next(name for name in changing if name != first[0])
        return Refusal(f"{first[0]} learns from images as they are, and {other} changes them, too.",
                       "Leave one of them out.", "local")  # fmt: skip
    moving = [name for name, part in built if overrides(part.at_site(), "starts_at")]
    reading = [name for name, part in built if part.needs_sgd]
    if moving and (method.work == "gradient" or reading):
        other = reading[0] if reading else "fedsgd"
        return Refusal(f"{other} reads gradients off the way from the received model, and {moving[0]} lets sites start "
                       "elsewhere.", "Leave one of them out.", "local")  # fmt: skip
    return _replaced(method, built)


def _replaced(method: Method, built: list[tuple[str, Part]]) -> Refusal | None:
    """What would change an update that never leaves the site, or protect what leaves it instead of that."""
    names = [name for name, part in built if part.replaces]
    if not names:
        return None
    others = {name: part for name, part in built if name not in (names[0], "mean")}
    channel = [name for name, _ in method.channel if name in others and not others[name].packs]
    at_server = [name for name, part in others.items() if type(part.at_server()) is not ServerEnd]
    idle = [*channel, *at_server]
    if idle:
        return Refusal(f"With {names[0]} no weights leave a site, so {idle[0]} has nothing to change or protect.",
                       f"Leave {idle[0]} out, or {names[0]}.", "channel")  # fmt: skip
    return None


def pretraining(method: Method, local: Local) -> Refusal | None:
    """What does not go with first rounds without labels."""
    owning = [(key, name, part) for key, name, part in all_parts(method) if part.pretraining_rounds]
    if not owning:
        return None
    key, name, own = owning[0]
    if len(owning) > 1:
        return Refusal(f"{name} and {owning[1][1]} both pretrain in the first rounds.", "Use one of them.", key)
    why = too_few_rounds(method, local.rounds)
    if why:
        return Refusal(why, "Give more `training: {rounds: ...}`, or fewer `pretraining_rounds`.", key)
    if method.work == "gradient":
        return Refusal(f"{name} needs steps of local training, and fedsgd takes none.", "Use fedavg.", key)
    if method.personal is not None and method.personal[0] != "shared_model":
        return Refusal(f"{method.personal[0]} trains a model of the site's own from its labels, which the pretraining "
                       f"of {name} does not look at.", "Leave one of them out.", "personal")  # fmt: skip
    if method.topology[0] == "incremental":
        return Refusal(f"In the topology incremental each site has one turn, and the first rounds, which {name} takes, "
                       "would be those of the first sites.", "Use another topology.", "topology")  # fmt: skip
    for other_key, other, part in all_parts(method):
        if other_key != "local" and looks_at_labels(part.at_site()):
            return Refusal(f"{other} goes by labels in each round, and the first {own.pretraining_rounds}, which "
                           f"{name} takes, learn nothing of them.", "Leave one of them out.", other_key)  # fmt: skip
        if part.needs_public:
            return Refusal(f"{other} works with what models predict, and in the pretraining of {name} they predict "
                           "nothing yet.", "Leave one of them out.", other_key)  # fmt: skip
    return None


def too_few_rounds(method: Method, rounds: int) -> str:
    """Why a training of so many rounds ends in its pretraining, or before any of the model; empty if it does not."""
    still = build_part(*method.procedure)
    if isinstance(still, Procedure) and rounds <= still.still_rounds:
        first = f"In the procedure {still.name} the model is trained after {still.still_rounds} rounds"
        return f"{first}, and of {rounds} in all none is left."
    part = pretraining_of(part for _, part in built_parts(method))
    if part is None or part.pretraining_rounds < rounds:
        return ""
    first = f"the first {part.pretraining_rounds} rounds" if part.pretraining_rounds > 1 else "the first round"
    return f"{part.name} takes {first} for a pretraining, and of {rounds} in all none is left to learn from labels."
