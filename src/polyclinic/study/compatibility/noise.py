"""Noise that protects patients or sites: whether it covers all that is told."""

from __future__ import annotations

from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.methods import Method
from polyclinic.parts import Aggregation, Hiding, Part, ServerEnd, SiteEnd, build_part
from polyclinic.parts.site_end import overrides
from polyclinic.study.compatibility.refusing import Local, Refusal, built_parts


def protecting(method: Method) -> list[str]:
    """The parts of a method whose noise protects patients or sites."""
    return [name for name, part in built_parts(method) if part.private]


def around_changes(method: Method) -> list[str]:
    """Those of them whose noise is on the change of the weights, and on nothing else that training gives."""
    return [name for name, part in built_parts(method) if part.private and not part.in_steps]


def unbounded(method: Method, local: Local) -> Refusal | None:
    """Noise without a bound of what it is to hide, or around what it does not reach."""
    built = built_parts(method)
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
