"""In which order sites are asked, and what is done until their updates are there."""

from __future__ import annotations

from polyclinic.methods import Method
from polyclinic.parts import PROCEDURES, TOPOLOGIES, Procedure, ServerEnd, SiteEnd, build_part
from polyclinic.study.compatibility.refusing import Local, Refusal, built_parts, placed


def one_by_one(method: Method, local: Local) -> Refusal | None:
    """What needs several answers at a time, where the model goes from site to site."""
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
    for key, part_name, part in placed(method):
        if key == "server" and part_name != "mean":
            return Refusal(f"{part_name} puts several answers together; in the topology {name} there is only "
                           "one at a time.", "Use `topology: star`.", "topology")  # fmt: skip
        if key in ("local", "channel") and type(part.at_server()) is not ServerEnd:
            return Refusal(f"{part_name} needs a server between the sites; in the topology {name} the model "
                           "goes from site to site.", "Use `topology: star`.", "topology")  # fmt: skip
    return None


def procedure(method: Method, local: Local) -> Refusal | None:
    """What the procedure of a method does not go with."""
    name = method.procedure[0]
    shares = PROCEDURES[name].shares
    if shares and method.share not in shares:
        return Refusal(f"The procedure {name} shares {' or '.join(shares)} of the model, and the method "
                       f"{method.share}.", f"Use `share: {shares[0]}`.", "share")  # fmt: skip
    still = build_part(*method.procedure)
    trains, rounds = (still.trains, still.still_rounds) if isinstance(still, Procedure) else (True, 0)
    if trains and not rounds:
        return None
    idle = [part for part, built in built_parts(method) if type(built.at_site()) is not SiteEnd]
    if idle or method.personal is not None:
        what = idle[0] if idle else method.personal[0] if method.personal else ""
        when = f"in the first {rounds} rounds sites do not train" if trains else "sites do not train by themselves"
        return Refusal(f"In the procedure {name} {when}, so {what} has nothing to change.",
                       "Use `procedure: local`.", "procedure")  # fmt: skip
    if local.keeps_optimizer and not trains:
        return Refusal(f"In the procedure {name} no optimiser is kept.", "Use `optimizer_state: reset`.", "procedure")
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
    if local.besides and not trains:
        return Refusal(f"In the procedure {name} sites do not train alone, so `{local.besides[0]}` means nothing.",
                       f"Leave `{local.besides[0]}` out, or use `procedure: local`.", "procedure")  # fmt: skip
    return None
