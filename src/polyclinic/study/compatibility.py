"""Which parts of a method make no sense together; said when the study file is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise, zip_longest
from typing import Any

from polyclinic.channel.distributed_noise import DistributedNoise
from polyclinic.channel.secure_sum import SecureSum
from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.methods import PUBLISHED, Method
from polyclinic.models import POOLING
from polyclinic.parts import (
    PROCEDURES,
    TOPOLOGIES,
    Aggregation,
    Hiding,
    Part,
    Procedure,
    ServerEnd,
    SiteEnd,
    build_chain,
    build_part,
    part_class,
    pretraining_of,
)
from polyclinic.parts.site_end import looks_at_labels, overrides
from polyclinic.tasks import TASKS


@dataclass(frozen=True)
class Refusal:
    """Why a method can't be run as composed.

    Attributes:
        message: what does not go together.
        hint: what to do instead.
        key: the entry of the method that it is about.
    """

    message: str
    hint: str
    key: str

    def place(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Where in the method's entry: nowhere if the method brought the part itself."""
        return (self.key,) if self.key in given else ()


@dataclass(frozen=True)
class Local:
    """What matters of the local training.

    Attributes:
        task: the study's.
        optimizer: name of the local optimiser.
        keeps_optimizer: whether its state stays between rounds.
        mixed_precision: whether the study asks for it.
        chosen: whether sites are chosen anew each round.
        stops_early: whether training ends once validation gets no better.
        besides: entries of the training that change how a site trains by itself, besides its optimiser and batches.
        by_loss: whether sites are chosen by their training loss.
        balanced: whether classes are weighted by their numbers.
        images: whether cases are images.
        subgroups: columns by whose groups results are given.
        model: name of the network.
        public: whether there is a public set.
        rounds: of the training.
        networks: whether sites have networks of their own.
    """

    task: str
    optimizer: str
    keeps_optimizer: bool
    mixed_precision: bool
    chosen: bool
    stops_early: bool
    besides: Sequence[str] = ()
    by_loss: bool = False
    balanced: bool = False
    images: bool = True
    subgroups: Sequence[str] = ()
    model: str = ""
    public: bool = False
    rounds: int = 0
    networks: bool = False


def protecting(method: Method) -> list[str]:
    """The parts of a method whose noise protects patients or sites."""
    return [name for name, part in _built(method) if part.private]


def around_changes(method: Method) -> list[str]:
    """Those of them whose noise is on the change of the weights, and on nothing else that training gives."""
    return [name for name, part in _built(method) if part.private and not part.in_steps]


def refusal(method: Method, local: Local) -> Refusal | None:
    """Why the parts of ``method`` make no sense together; None if they do."""
    return next(filter(None, (check(method, local) for check in _CHECKS)), None)


def _twice(method: Method, local: Local) -> Refusal | None:
    names = [name for name, _ in method.parts]
    for key, entries in (("local", method.local), ("server", method.server), ("channel", method.channel)):
        twice = [name for name, _ in entries if names.count(name) > 1]
        if twice:
            return Refusal(f"The part {twice[0]} is there twice.", "Name it once.", key)
    return None


def _one_aggregation(method: Method, local: Local) -> Refusal | None:
    found = [name for name, part in _built(method) if isinstance(part.at_server(), Aggregation)]
    if len(found) < 2:
        return None
    return Refusal(f"{found[0]} and {found[1]} both put the updates together.",
                   "A server rule has one aggregation; the others of its parts change what goes in or comes out.",
                   "server")  # fmt: skip


def _variants(method: Method, local: Local) -> Refusal | None:
    """Parts that suppose that all sites train the study's network, where some train another one."""
    found = [(key, name) for key, name, part in _all(method) if type(part).variant is not Part.variant]
    if not found:
        return None
    (key, name), others = found[0], found[1:]
    if others:
        return Refusal(f"{name} and {others[0][1]} both have sites train another network than the study's.",
                       "Use one of them.", others[0][0])  # fmt: skip
    for other_key, other, part in _all(method):
        hiding = isinstance(part.at_server(), Hiding)
        if hiding:
            return Refusal(f"{other} shows the server sums of updates alone, and what sites send with {name} is put in "
                           "place site by site.", "Leave out one of the two.", other_key)  # fmt: skip
        if part.same_network or overrides(part.at_site(), "adapted"):
            return Refusal(f"{other} needs all sites to train the study's network, and with {name} they train another.",
                           "Leave out one of the two.", other_key)  # fmt: skip
        if part.needs_mean:
            return Refusal(f"{other} knows how far one site can move a mean of all, and with {name} what a site sends "
                           "is not what moves it.", "Use noise at the sites (`gaussian_noise`).",
                           other_key)  # fmt: skip
    if method.share != "all":
        return Refusal(f"With {name} a site trains another network than the study's, of which no part can stay there.",
                       "Use `share: all`.", "share")  # fmt: skip
    if method.personal is not None and method.personal[0] != "shared_model":
        return Refusal(f"{method.personal[0]} gives each site a model of the study's network, and with {name} sites "
                       "train another.", "Leave out one of the two.", "personal")  # fmt: skip
    if local.keeps_optimizer:
        return Refusal(f"With {name} the local optimiser starts anew each round.", "Use `optimizer_state: reset`.", key)
    return None


def _own_networks(method: Method, local: Local) -> Refusal | None:
    """Parts that suppose that all sites have the study's network, where some have another."""
    if not local.networks or method.scope == "pool":
        return None
    replacing = any(part.replaces and part.own_networks for _, _, part in _all(method))
    if method.share != "none" and not replacing:
        able = [name for name, one in PUBLISHED.items() if _is_for_own_networks(one.method)]
        return Refusal("The sites of this study have different networks (`networks: ...`), of which no weights can be "
                       "put together.", f"Methods for this are {', '.join(able)}; `mix` trains the study's `model`. Or "
                       "leave `networks` out.", "share")  # fmt: skip
    for key, name, part in _all(method):
        if (part.same_network and not part.own_networks) or overrides(part.at_site(), "adapted"):
            return Refusal(f"{name} needs all sites to have the study's network, and those of this study have "
                           "different ones (`networks: ...`).", "Leave out one of the two.", key)  # fmt: skip
    if replacing and method.personal is not None and method.personal[0] != "shared_model":
        return Refusal(f"{method.personal[0]} gives each site a model of the study's network, and those of this study "
                       "have different ones (`networks: ...`).", "Leave out one of the two.", "personal")  # fmt: skip
    return None


def _is_for_own_networks(method: Method) -> bool:
    parts = [part_class(name) for name, _ in method.parts]
    able = all(part.own_networks or not part.same_network for part in parts)
    return able and (method.share == "none" or any(part.replaces and part.own_networks for part in parts))


def _order(method: Method, local: Local) -> Refusal | None:
    ends = [(name, part, part.at_server()) for key, name, part in _placed(method) if key == "server"]
    changing = [(name, part) for name, part, end in ends if type(end).finish is not ServerEnd.finish]
    for (before, first), (name, part) in pairwise(changing):
        if part.undoes and not first.undoes:
            return Refusal(f"{before} comes before {name}, so it would be given updates that {name} has changed and "
                           "not yet changed back.", f"Name {name} before {before}.", "server")  # fmt: skip
    return None


def _returned(method: Method, local: Local) -> Refusal | None:
    returning = [name for name, part in _built(method) if part.returns]
    undoing = [name for name, part in _built(method) if part.undoes]
    if returning and undoing:
        return Refusal(f"{returning[0]} sends sites what others sent, and with {undoing[0]} that is no model.",
                       f"Leave {undoing[0]} out, or choose another aggregation.", "server")  # fmt: skip
    return None


def _hidden(method: Method, local: Local) -> Refusal | None:
    by_name = dict(_built(method))
    ends = [(name, part.at_server()) for name, part in by_name.items()]
    hiding = [name for name, end in ends if isinstance(end, Hiding)]
    needing = [name for name, end in ends if end.needs_each]
    if len(hiding) > 1:
        return Refusal(f"{hiding[0]} and {hiding[1]} both show the server a sum alone.", "Use one of them.", "channel")
    grouped = [name for name, end in ends if isinstance(end, Hiding) and end.groups]
    named = [name for name, end in ends if end.named]
    if grouped and named:
        return Refusal(f"{named[0]} is about a single site, and {grouped[0]} shows the server sums of groups alone.",
                       "Leave out one of the two.", "server")  # fmt: skip
    if hiding and needing and not grouped:
        return Refusal(f"{needing[0]} needs each site's update, and {hiding[0]} shows the server their sum alone.",
                       f"Leave out {hiding[0]}, use the mean, shorten changes at the sites (`clip`), or let the rule "
                       f"work on sums of groups (`{hiding[0]}: {{group_size: ...}}`).", "server")  # fmt: skip
    adding = all(end.adds_all for _, end in ends if isinstance(end, Hiding))
    telling = [
        name
        for name, part in by_name.items()
        if part.reveals and not (adding and part.means) and (part.beside or overrides(part.at_site(), "end"))
    ] + [name for name, end in ends if end.needs_each and overrides(by_name[name].at_site(), "answer")]
    if hiding and telling:
        return Refusal(f"{telling[0]} sends something of each site, which {hiding[0]} does not hide.",
                       "Leave out one of the two.", "channel")  # fmt: skip
    returning = [name for name, part in by_name.items() if part.returns]
    if grouped and returning:
        return Refusal(f"{returning[0]} sends models of single sites on, and {grouped[0]} shows the server sums of "
                       "groups alone.", "Leave out one of the two.", "channel")  # fmt: skip
    return None


def _quiet(method: Method, local: Local) -> Refusal | None:
    """Parts that may keep an update back where every site has to send one."""
    quiet = [(key, name) for key, name, part in _all(method) if overrides(part.at_site(), "sends")]
    if not quiet:
        return None
    (key, name), topology = quiet[0], method.topology[0]
    hiding = [part for part, built in _built(method) if isinstance(built.at_server(), Hiding)]
    if hiding:
        return Refusal(f"{name} lets single sites send nothing, which {hiding[0]} can't hide and takes for sites that "
                       "dropped out.", "Leave out one of the two.", key)  # fmt: skip
    if TOPOLOGIES[topology].one_by_one:
        return Refusal(f"{name} lets single sites send nothing; in the topology {topology} each hands the model on to "
                       "the next.", "Use `topology: star`.", key)  # fmt: skip
    return None


def _encoded(method: Method, local: Local) -> Refusal | None:
    """Steps of the channel behind one whose output is no change of the weights any more."""
    before, packed = "", False
    for name, options in method.channel:
        part = build_part(name, options)
        summing = isinstance(part.at_server(), Hiding) and not packed  # of what the codes stand for
        if before and not (part.packs or summing):
            return Refusal(f"{name} works on the change of the weights, and comes after {before}, which gives codes.",
                           f"Name {name} before {before}, or leave one of them out. (The values of `top_k`, `random_k` "
                           "and `power_sgd` can have fewer bits: `values: int8`.)", "channel")  # fmt: skip
        before, packed = (name, part.packs) if part.encodes else (before, packed)
    return None


def _shared_noise(method: Method, local: Local) -> Refusal | None:
    """Shares of noise that no sum puts together."""
    built = [build_part(name, options) for name, options in method.channel]
    for part, following in zip_longest(built, built[1:]):
        if not isinstance(part, DistributedNoise):
            continue
        if not isinstance(following, SecureSum):
            return Refusal(f"{part.name} gives each site a share of the noise of a secure sum, and none comes next.",
                           "Name `secure_sum` directly after it, or use `gaussian_noise`.", "channel")  # fmt: skip
        if part.colluding >= following.least:
            return Refusal(f"A sum may be one of {following.least} sites, and with {part.colluding} of them colluding "
                           f"no noise of {part.name} is left that counts.", "Give a smaller `colluding`, or "
                           "`secure_sum` a greater `least`.", "channel")  # fmt: skip
    return None


def _unbounded(method: Method, local: Local) -> Refusal | None:
    """Noise without a bound of what it is to hide, or around what it does not reach."""
    built = _built(method)
    for name, part in built:
        if part.needs_norm and part.norm is None:
            return Refusal(f"{name} adds noise, and no step before it bounds the change: no noise is enough.",
                           "Name `clip` directly before it.", "channel")  # fmt: skip
        others = [one for one, other in built if isinstance(other.at_server(), Aggregation) and one != "mean"]
        if part.needs_mean and others:
            return Refusal(f"{name} knows how far one site can move a mean of all, and {others[0]} is none.",
                           "Use the mean, or noise at the sites (`gaussian_noise`).", "server")  # fmt: skip
        coding = _coding_after(name, method) if part.needs_mean else ""
        if coding:
            return Refusal(f"{name} knows how long a site's change can be, and {coding} after it sends others, which "
                           "can be longer.", f"Leave {coding} out (`zstd` changes nothing), or use noise at the sites "
                           "(`gaussian_noise`).", "channel")  # fmt: skip
        swayed = [one for one, other in built if _sways(other.at_server())]
        if part.needs_mean and swayed:
            return Refusal(f"{name} knows how far one site can move a mean, and {swayed[0]} lets it move what others "
                           "count for, too.", f"Leave out {swayed[0]}: `clip` bounds each change.",
                           "server")  # fmt: skip
    private = [name for name, part in built if part.private]
    if not private:
        return None
    for name, part in built:
        bare = [one for one, other in built if part.beside and not _covers(other, part)]
        if bare:
            return Refusal(f"{name} also tells how long a site's change is, and {bare[0]} does not add noise to that.",
                           f"Use `clip` instead, or `central_noise` directly after {name}, or noise in training "
                           "(`dp_sgd`).", "channel")  # fmt: skip
    if local.balanced:
        return Refusal(f"`class_weights: balanced` follows exact counts of patients, which {private[0]} hides nothing "
                       "of.", "List the weights: `training: {class_weights: [1, 4]}`.", "training")  # fmt: skip
    for name, part in built:
        both = [one for one, other in built if part.private and other.private == part.private and one != name]
        if both and part.noise is None:
            return Refusal(f"{name} is to find its noise from the budget, which {both[0]} spends, too.",
                           "Give both how much noise, or leave out one of them.", "channel")  # fmt: skip
    if method.topology[0] != "star" and any(part.needs_mean for _, part in built):
        return Refusal(f"{private[0]} needs a mean of all sites.", "Use `topology: star`.", "topology")
    in_steps = all(part.in_steps for _, part in built if part.private)
    telling = [
        name
        for name, part in built
        if (part.reveals and not part.encodes and not (in_steps and part.retells) and _tells(part.at_site()))
        or overrides(part.at_site(), "sends")
    ]
    if telling:
        return Refusal(f"{telling[0]} tells more of a site's patients than the change of the weights, and {private[0]} "
                       "adds noise to that alone.", f"Leave {telling[0]} out, or {private[0]}.", "channel")  # fmt: skip
    stepping = [name for name, part in built if part.in_steps]
    if stepping and method.work == "gradient":
        return Refusal(f"{stepping[0]} adds noise to the steps of local training, and fedsgd takes none.",
                       "Use fedavg.", "local")  # fmt: skip
    if stepping and method.personal is not None and _trains_two(method.personal[0]):
        return Refusal(f"{method.personal[0]} trains two models on the same batches, and {stepping[0]} protects one.",
                       "Use another way to a personal model.", "personal")  # fmt: skip
    if local.by_loss:
        return Refusal(f"Sites are chosen by their training loss, which they don't tell with {private[0]}.",
                       "Choose them in another way (`participation`).", "channel")  # fmt: skip
    return None


def _trains_two(personal: str) -> bool:
    """Whether a second model is trained on the batches of the first."""
    return PERSONAL[personal].companion is not Personal.companion


def _covers(noisy: Part, part: Part) -> bool:
    """Whether noise, if a part is any, covers what another sends beside the change."""
    return not noisy.private or noisy.in_steps or (noisy.hides_beside and noisy.bounded_by is part)


def _coding_after(name: str, method: Method) -> str:
    """The first step of the channel after a part that gives codes: what the server reads in them has no bound."""
    names = [one for one, _ in method.channel]
    later = method.channel[names.index(name) + 1 :] if name in names else []
    for one, options in later:
        part = build_part(one, options)
        if part.encodes and not part.packs and not isinstance(part.at_server(), Hiding):
            return one
    return ""


def _sways(end: ServerEnd) -> bool:
    """Whether it changes an update by what it knows of others."""
    return end.needs_each and not isinstance(end, Aggregation) and type(end).take is not ServerEnd.take


def _tells(end: SiteEnd) -> bool:
    return any(overrides(end, hook) for hook in ("meet", "end", "answer"))


def _absent(method: Method, local: Local) -> Refusal | None:
    for key, name, part in _all(method):
        if part.requires is not None and find_spec(part.requires[0]) is None:
            package, extra = part.requires
            return Refusal(f"{name} needs the package {package}, which is not installed.",
                           f"pip install 'polyclinic[{extra}]'", key)  # fmt: skip
    return None


def _gradient_at_start(method: Method, local: Local) -> Refusal | None:
    idle = [name for name, part in _built(method) if part.at_site().zero_at_start]
    if method.work == "gradient" and idle:
        what = "the proximal term" if idle[0] == "proximal" else f"what {idle[0]} adds"
        return Refusal(f"fedsgd takes its one gradient at the global state, where {what} is zero.",
                       "Use a method that trains locally, such as fedavg.", "local")  # fmt: skip
    if method.work == "gradient" and method.personal is not None:
        return Refusal(f"fedsgd does not train locally, so {method.personal[0]} has nothing to train.",
                       "Use fedavg.", "personal")  # fmt: skip
    return None


def _gradient_step(method: Method, local: Local) -> Refusal | None:
    if method.work != "gradient" or local.optimizer == "sgd":
        return None
    return Refusal(f"fedsgd takes one full-batch gradient step, for which a learning rate of {local.optimizer} is none "
                   "(a step of it does not grow with the gradient).",
                   "Give the method `training: {optimizer: {sgd: {lr: ...}}}`.", "training")  # fmt: skip


def _linear_steps(method: Method, local: Local) -> Refusal | None:
    wanting = [(name, key) for key, name, part in _all(method) if part.needs_sgd]
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


def _task(method: Method, local: Local) -> Refusal | None:
    for key, name, part in _all(method):
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


def _distilled(method: Method, local: Local) -> Refusal | None:
    """What does not go with models that are run elsewhere than in training."""
    built = _built(method)
    whole = [name for name, part in built if part.at_server().needs_whole]
    if whole and method.share != "all":
        return Refusal(f"{whole[0]} needs whole models at the server, and the method shares {method.share}.",
                       "Use `share: all`.", "share")  # fmt: skip
    on_public = [name for name, part in built if part.needs_public]
    changing = [name for name, part in built if overrides(part.at_site(), "images")]
    if on_public and changing:
        return Refusal(f"{changing[0]} changes the images of each site in its own way, and {on_public[0]} looks at the "
                       "same ones everywhere.", "Leave one of them out.", "local")  # fmt: skip
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


def _one_by_one(method: Method, local: Local) -> Refusal | None:
    name = method.topology[0]
    if not TOPOLOGIES[name].one_by_one:
        return None
    if name == "incremental" and local.chosen:
        return Refusal("In the topology incremental each site has one turn, and `participation` chooses sites anew "
                       "each round.", "Leave out `participation`, or use `topology: cyclic`.", "topology")  # fmt: skip
    if name == "incremental" and local.stops_early:
        return Refusal("In the topology incremental each site has one turn, and `early_stopping` would end training "
                       "before the last sites have theirs.", "Leave out `early_stopping` (for this method alone: "
                       "`training: {early_stopping: null}`), or use `topology: cyclic`.", "topology")  # fmt: skip
    for key, part_name, part in _placed(method):
        if key == "server" and part_name != "mean":
            return Refusal(f"{part_name} puts several answers together; in the topology {name} there is only "
                           "one at a time.", "Use `topology: star`.", "topology")  # fmt: skip
        if key in ("local", "channel") and type(part.at_server()) is not ServerEnd:
            return Refusal(f"{part_name} needs a server between the sites; in the topology {name} the model "
                           "goes from site to site.", "Use `topology: star`.", "topology")  # fmt: skip
    return None


def _procedure(method: Method, local: Local) -> Refusal | None:
    name = method.procedure[0]
    shares = PROCEDURES[name].shares
    if shares and method.share not in shares:
        return Refusal(f"The procedure {name} shares {' or '.join(shares)} of the model, and the method "
                       f"{method.share}.", f"Use `share: {shares[0]}`.", "share")  # fmt: skip
    if PROCEDURES[name].trains:
        return None
    idle = [part for part, built in _built(method) if type(built.at_site()) is not SiteEnd]
    if idle or method.personal is not None:
        what = idle[0] if idle else method.personal[0] if method.personal else ""
        return Refusal(f"In the procedure {name} sites do not train by themselves, so {what} has nothing to change.",
                       "Use `procedure: local`.", "procedure")  # fmt: skip
    if local.keeps_optimizer:
        return Refusal(f"In the procedure {name} no optimiser is kept.", "Use `optimizer_state: reset`.", "procedure")
    still = build_part(*method.procedure)
    if isinstance(still, Procedure) and still.still_rounds:
        if local.stops_early:
            return Refusal(f"In the procedure {name} the model stays as it is for {still.still_rounds} rounds, and "
                           "`early_stopping` would take that for the end.", "Leave `early_stopping` out (for this "
                           "method alone: `training: {early_stopping: null}`).", "procedure")  # fmt: skip
        if local.rounds <= still.still_rounds:
            return Refusal(f"In the procedure {name} the model is trained after {still.still_rounds} rounds, and the "
                           f"training has {local.rounds}.", "Give it more rounds, or the procedure fewer.",
                           "procedure")  # fmt: skip
    if method.work == "gradient":
        return Refusal(f"In the procedure {name} sites don't send a gradient.", "Use fedavg.", "procedure")
    if local.besides:
        return Refusal(f"In the procedure {name} sites do not train alone, so `{local.besides[0]}` means nothing.",
                       f"Leave `{local.besides[0]}` out, or use `procedure: local`.", "procedure")  # fmt: skip
    return None


def _personal(method: Method, local: Local) -> Refusal | None:
    if method.personal is None:
        return None
    name, part = method.personal[0], PERSONAL[method.personal[0]]
    if part.tasks and local.task not in part.tasks:
        return Refusal(f"{name} is for {' and '.join(part.tasks)}, and the task is {local.task}.",
                       "Leave it out.", "personal")  # fmt: skip
    if part.shares and method.share not in part.shares:
        return Refusal(f"{name} works with a private part, and the method shares {method.share}.",
                       f"Use `share: {part.shares[0]}`.", "share")  # fmt: skip
    if local.keeps_optimizer and not part.keeps_optimizer:
        return Refusal(f"The optimisers of {name} start anew each round.", "Use `optimizer_state: reset`.", "personal")
    if local.mixed_precision and not part.mixed_precision:
        return Refusal(f"{name} has no mixed precision.", "Use `engine: {precision: float32}`.", "personal")
    return None


def _adapted(method: Method, local: Local) -> Refusal | None:
    """Parts that adapt the network to test cases where there is more than one network, or one of them."""
    adapting = [name for name, part in _built(method) if overrides(part.at_site(), "adapted")]
    if len(adapting) > 1:
        return Refusal(f"{adapting[0]} and {adapting[1]} both adapt the network to the cases that are predicted.",
                       "Use one of them.", "local")  # fmt: skip
    if adapting and method.personal is not None and predicts_together(method.personal[0]):
        return Refusal(f"{adapting[0]} adapts one network to the cases that are predicted, and {method.personal[0]} "
                       "predicts by two.", "Leave one of them out.", "local")  # fmt: skip
    return None


def sends_site_models(part: Part) -> bool:
    """Whether its end at the server sends sites more than the shared model when cases are predicted."""
    return type(part.at_server()).predicting is not ServerEnd.predicting


def _beside(method: Method, local: Local) -> Refusal | None:
    """Parts that send sites more than the shared model for predictions, where there is no such model, or several."""
    for key, name, part in _all(method):
        if not sends_site_models(part):
            continue
        if method.scope != "federation" or method.tests != "own":
            return Refusal(f"{name} sends sites the models of all besides a shared one, which the method has not.",
                           "Use it with fedavg, or another method that shares a model.", key)  # fmt: skip
        if TOPOLOGIES[method.topology[0]].several:
            return Refusal(f"{name} sends sites the models of all besides the shared one, and in the topology "
                           f"{method.topology[0]} there are several.", "Use `topology: star`.", "topology")  # fmt: skip
    return None


def _pretraining(method: Method, local: Local) -> Refusal | None:
    """What does not go with first rounds without labels."""
    owning = [(key, name, part) for key, name, part in _all(method) if part.pretraining_rounds]
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
    for other_key, other, part in _all(method):
        if other_key != "local" and looks_at_labels(part.at_site()):
            return Refusal(f"{other} goes by labels in each round, and the first {own.pretraining_rounds}, which "
                           f"{name} takes, learn nothing of them.", "Leave one of them out.", other_key)  # fmt: skip
        if part.needs_public:
            return Refusal(f"{other} works with what models predict, and in the pretraining of {name} they predict "
                           "nothing yet.", "Leave one of them out.", other_key)  # fmt: skip
    return None


def too_few_rounds(method: Method, rounds: int) -> str:
    """Why a training of so many rounds ends in its pretraining; empty if it does not."""
    part = pretraining_of(part for _, part in _built(method))
    if part is None or part.pretraining_rounds < rounds:
        return ""
    first = f"the first {part.pretraining_rounds} rounds" if part.pretraining_rounds > 1 else "the first round"
    return f"{part.name} takes {first} for a pretraining, and of {rounds} in all none is left to learn from labels."


def predicts_together(personal: str) -> bool:
    """Whether a site's own cases are predicted by more than one network."""
    return PERSONAL[personal].predictor is not Personal.predictor


def _placed(method: Method) -> list[tuple[str, str, Part]]:
    """Entry of the method, name, and part, of all parts that change what is trained."""
    places = (("channel", reversed(method.channel)), ("local", method.local), ("server", method.server))
    return [(key, name, build_part(name, options)) for key, entries in places for name, options in entries]


def _all(method: Method) -> list[tuple[str, str, Part]]:
    """The same, with the topology and the procedure."""
    others = (("topology", method.topology), ("procedure", method.procedure))
    return [*_placed(method), *((key, name, build_part(name, options)) for key, (name, options) in others)]


def _built(method: Method) -> list[tuple[str, Part]]:
    """Name and part, in the order in which steps pass them at the server."""
    return list(build_chain(method.channel, method.local, method.server).items())


_CHECKS: tuple[Callable[[Method, Local], Refusal | None], ...] = (
    _absent, _twice, _variants, _own_networks, _encoded, _shared_noise, _unbounded, _one_aggregation, _order, _returned,
    _hidden, _quiet, _gradient_at_start, _gradient_step, _linear_steps, _task, _distilled, _one_by_one, _procedure,
    _personal, _adapted, _beside, _pretraining,
)  # fmt: skip
