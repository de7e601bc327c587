"""PyTorch's optimisers and learning-rate schedules by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyclinic.errors import nearest
from polyclinic.options import EntryError, Place, check_options, split_entry

#: Not usable on one flat vector: they need a closure, matrices, or sparse gradients.
_UNSUITABLE = {"LBFGS", "Muon", "SparseAdam", "Optimizer"}
#: Every coordinate is updated on its own, so the states of many sites can be stacked.
ELEMENTWISE = {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"}
_UNSUITABLE_SCHEDULES = {"LRScheduler", "ReduceLROnPlateau", "LambdaLR", "MultiplicativeLR", "ChainedScheduler",
                         "SequentialLR"}  # fmt: skip
#: Arguments that are given, that no study file can give, or that are for going on with a schedule.
_NO_OPTIONS = {"params", "optimizer", "scale_fn", "last_epoch"}
#: Options of PyTorch that no study can give -> why.
_REFUSED = {
    "maximize": "training makes the loss smaller",
    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"),
                    "it says how PyTorch computes a step, which is chosen for each engine, and not what is trained"),
}  # fmt: skip

Named = tuple[str, dict[str, Any]]


def _subclasses(module: Any, base: type, without: set[str]) -> dict[str, type]:
    found = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base) and n not in without}
    return {_plain(name): cls for name, cls in found.items() if not name.startswith("_")}


def _plain(name: str) -> str:
    name = name.lower().replace("_", "")
    return name.removesuffix("lr") or name


def _optimizers() -> dict[str, type]:
    return _subclasses(torch.optim, torch.optim.Optimizer, _UNSUITABLE)


def _schedules() -> dict[str, type]:
    base = torch.optim.lr_scheduler.LRScheduler
    return _subclasses(torch.optim.lr_scheduler, base, _UNSUITABLE_SCHEDULES)


def _resolve(entry: object, kind: str, known: dict[str, type], place: Place) -> Named:
    name, options = split_entry(entry, place, kind)
    if _plain(name) not in known:
        raise EntryError("P103", f"{name!r} is no {kind}.", nearest(_plain(name), sorted(known)), place=place)
    part = known[_plain(name)]
    for option in _REFUSED.keys() & options.keys() & inspect.signature(part).parameters.keys():
        raise EntryError(
            "P104", f"`{option}` is no choice of a study: {_REFUSED[option]}.", "Leave it out.",
            place=(*place, name, option),
        )  # fmt: skip
    given = check_options(part, options, (*place, name), name, without=_NO_OPTIONS)
    defaults = inspect.signature(part).parameters
    for option, value in given.items():
        least = 1 if isinstance(value, int) else 0  # whole numbers are steps and rounds
        below_zero = isinstance(default := defaults[option].default, (int, float)) and default < 0
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < least and not below_zero:
            raise EntryError(
                "P102", f"got {value:g}; expected a number of at least {least}.", place=(*place, name, option)
            )
    return _plain(name), given


def _unfit(named: Named, kind: type, error: Exception, place: Place) -> EntryError:
    """What only PyTorch knows: limits of values, and options that need or exclude each other."""
    options = ", ".join(f"{name}: {value!r}" for name, value in named[1].items())
    said = str(error).removesuffix(".")
    return EntryError(
        "P102", f"{named[0]} can't be used with {{{options}}}: {said}.",
        f"See torch.optim.{'lr_scheduler.' * kind.__name__.endswith('LR')}{kind.__name__} for what it takes.",
        place=(*place, named[0]),
    )  # fmt: skip


def resolve_optimizer(entry: object, place: Place) -> Named:
    """Name and options of an optimiser entry such as ``{sgd: {lr: 0.05}}``; checked by building it once.

    Raises:
        EntryError: P103 for an unknown name or option, P102 for a value that the optimiser refuses.
    """
    named = _resolve(entry, "optimizer", _optimizers(), place)
    try:
        build_optimizer(named, nn.Parameter(torch.zeros(1)))
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise _unfit(named, _optimizers()[named[0]], error, place) from None
    return named


def resolve_schedule(entry: object, optimizer: Named, place: Place, rounds: int = 1) -> Named:
    """Name and options of a schedule entry such as ``{cosine_annealing: {T_max: 50}}``; checked for so many rounds.

    Raises:
        EntryError: P103 for an unknown name or option, P102 for a value that the schedule refuses.
    """
    named = _resolve(entry, "learning-rate schedule", _schedules(), place)
    try:
        scheduled(optimizer, named, rounds)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise _unfit(named, _schedules()[named[0]], error, place) from None
    return named


def build_optimizer(named: Named, parameters: nn.Parameter | list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over the given flat parameters."""
    parameters = parameters if isinstance(parameters, list) else [parameters]
    optimizer: torch.optim.Optimizer = _optimizers()[named[0]](parameters, **named[1])
    return optimizer


def with_learning_rate(named: Named, rate: float, cycled: Mapping[str, Any] | None = None) -> Named:
    """The optimiser with this round's learning rate and whatever else its schedule ``cycled``."""
    options = {**named[1], **(cycled or {}), "lr": rate}
    if cycled and options.get("nesterov") and not options.get("momentum"):
        options["nesterov"] = False  # there is nothing to look ahead along, and PyTorch refuses to build it so
    return named[0], options


def is_elementwise(named: Named) -> bool:
    """Whether the optimiser treats every coordinate on its own, so that sites can be trained stacked."""
    return _optimizers()[named[0]].__name__ in ELEMENTWISE


def scheduled(optimizer: Named, schedule: Named | None, rounds: int) -> list[dict[str, Any]]:
    """The options of the optimiser that the schedule sets, in each round; it is stepped once a round.

    These are ``lr``, and of a schedule that cycles momentum, as `CyclicLR` and `OneCycleLR` do unless told otherwise,
    ``momentum`` or ``betas``. All are JSON values.

    Raises:
        ValueError, TypeError, RuntimeError, ArithmeticError, LookupError: the schedule can't be used so, or it gives
            values in some round that the optimiser refuses.
    """
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    built = build_optimizer(optimizer, parameter)
    group, own = built.param_groups[0], {name: built.param_groups[0][name] for name in _MOVED & built.defaults.keys()}
    stepper = None if schedule is None else _schedules()[schedule[0]](built, **schedule[1])
    found = []
    for _ in range(rounds):
        options = {name: group[name] for name in own}
        if -1e-9 * own["lr"] < options["lr"] < 0:  # on its way down to 0 a schedule may end below it by rounding
            options["lr"] = 0.0
        build_optimizer(with_learning_rate(optimizer, options["lr"], options), parameter)
        found.append(options)
        built.step()
        if stepper is not None:
            stepper.step()
    cycled = {name for name in own if name == "lr" or any(options[name] != own[name] for options in found)}
    return [{name: _json(value) for name, value in options.items() if name in cycled} for options in found]


#: What PyTorch's schedules set.
_MOVED = {"lr", "momentum", "betas"}


def _json(value: Any) -> float | list[float]:
    return [float(one) for one in value] if isinstance(value, (tuple, list)) else float(value)


def learning_rates(optimizer: Named, schedule: Named | None, rounds: int) -> list[float]:
    """Learning rate of each round; see `scheduled`."""
    return [options["lr"] for options in scheduled(optimizer, schedule, rounds)]


def state_of(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's tensors by name, after the first parameter ``number/name``."""
    return {
        f"{number}/{name}" if number else name: value
        for number, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def restore_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Give an optimiser copies of the tensors that ``state_of`` returned; step counters stay on the processor."""
    for key, value in state.items():
        number, _, name = key.rpartition("/")
        parameter = parameters[int(number or 0)]
        optimizer.state[parameter][name] = value.to(parameter.device, copy=True) if value.dim() else value.clone()
