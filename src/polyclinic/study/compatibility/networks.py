"""Which network sites train, and by which their cases are predicted."""

from __future__ import annotations

from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.methods import PUBLISHED, Method
from polyclinic.parts import TOPOLOGIES, Hiding, Part, ServerEnd, part_class
from polyclinic.parts.site_end import overrides
from polyclinic.study.compatibility.refusing import Local, Refusal, all_parts, built_parts


def variants(method: Method, local: Local) -> Refusal | None:
    """Parts that suppose that all sites train the study's network, where some train another one."""
    found = [(key, name) for key, name, part in all_parts(method) if type(part).variant is not Part.variant]
    if not found:
        return None
    (key, name), others = found[0], found[1:]
    if others:
        return Refusal(f"{name} and {others[0][1]} both have sites train another network than the study's.",
                       "Use one of them.", others[0][0])  # fmt: skip
    for other_key, other, part in all_parts(method):
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


def own_networks(method: Method, local: Local) -> Refusal | None:
    """Parts that suppose that all sites have the study's network, where some have another."""
    if not local.networks or method.scope == "pool":
        return None
    replacing, grouping = trains_apart(method), models_per_network(method)
    if method.share != "none" and not (replacing or grouping):
        able = [name for name, one in PUBLISHED.items() if _is_for_own_networks(one.method)]
        return Refusal("The sites of this study have different networks (`networks: ...`), of which no weights can be "
                       "put together.", f"Methods for this are {', '.join(able)}; `mix` trains the study's `model`. Or "
                       "leave `networks` out.", "share")  # fmt: skip
    for key, name, part in all_parts(method):
        if not _takes_own_networks(part) or overrides(part.at_site(), "adapted"):
            return Refusal(f"{name} needs all sites to have the study's network, and those of this study have "
                           "different ones (`networks: ...`).", "Leave out one of the two.", key)  # fmt: skip
        if grouping and part.at_server().named:
            return Refusal(f"{name} goes by what single sites send, and with different networks (`networks: ...`) "
                           "those with the same one share a model, which these may not have.",
                           "Leave out one of the two.", key)  # fmt: skip
    if replacing and method.personal is not None and method.personal[0] != "shared_model":
        return Refusal(f"{method.personal[0]} gives each site a model of the study's network, and those of this study "
                       "have different ones (`networks: ...`).", "Leave out one of the two.", "personal")  # fmt: skip
    for key, (name, _), usual in (("topology", method.topology, "star"), ("procedure", method.procedure, "local")):
        if grouping and name != usual:
            return Refusal(f"The sites of this study have different networks (`networks: ...`), with a model for each "
                           f"of these, and the {key} {name} is for one model.", f"Use `{key}: {usual}`.",
                           key)  # fmt: skip
    return None


def trains_apart(method: Method) -> bool:
    """Whether a site with a network of its own trains that, and the study's is what is sent, validated and tested."""
    return any(part.replaces and part.own_networks for part in _classes(method).values())


def models_per_network(method: Method) -> str:
    """The part for which sites with the same network share a model, where sites have different ones; empty if none
    does."""
    return next((name for name, part in _classes(method).items() if part.model_per_network), "")


def _classes(method: Method) -> dict[str, type[Part]]:
    return {name: part_class(name) for name, _ in method.parts}


def _takes_own_networks(part: Part | type[Part]) -> bool:
    return part.own_networks or part.model_per_network or not part.same_network


def _is_for_own_networks(method: Method) -> bool:
    able = all(_takes_own_networks(part) for part in _classes(method).values())
    return able and (method.share == "none" or trains_apart(method) or bool(models_per_network(method)))


def personal(method: Method, local: Local) -> Refusal | None:
    """What a personal model does not go with."""
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


def adapted(method: Method, local: Local) -> Refusal | None:
    """Parts that adapt the network to test cases where there is more than one network, or one of them."""
    adapting = [name for name, part in built_parts(method) if overrides(part.at_site(), "adapted")]
    if len(adapting) > 1:
        return Refusal(f"{adapting[0]} and {adapting[1]} both adapt the network to the cases that are predicted.",
                       "Use one of them.", "local")  # fmt: skip
    if adapting and method.personal is not None and predicts_together(method.personal[0]):
        return Refusal(f"{adapting[0]} adapts one network to the cases that are predicted, and {method.personal[0]} "
                       "predicts by two.", "Leave one of them out.", "local")  # fmt: skip
    return None


def beside(method: Method, local: Local) -> Refusal | None:
    """Parts that send sites more than the shared model for predictions, where there is no such model, or several."""
    for key, name, part in all_parts(method):
        if not sends_site_models(part):
            continue
        if method.scope != "federation" or method.tests != "own":
            return Refusal(f"{name} sends sites the models of all besides a shared one, which the method has not.",
                           "Use it with fedavg, or another method that shares a model.", key)  # fmt: skip
        if TOPOLOGIES[method.topology[0]].several:
            return Refusal(f"{name} sends sites the models of all besides the shared one, and in the topology "
                           f"{method.topology[0]} there are several.", "Use `topology: star`.", "topology")  # fmt: skip
    return None


def sends_site_models(part: Part) -> bool:
    """Whether its end at the server sends sites more than the shared model when cases are predicted."""
    return type(part.at_server()).predicting is not ServerEnd.predicting


def predicts_together(personal: str) -> bool:
    """Whether a site's own cases are predicted by more than one network."""
    return PERSONAL[personal].predictor is not Personal.predictor
