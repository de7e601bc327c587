"""Why the gradient of a patient can't be told apart from those of others: then training can't be private."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from polyclinic.client.stacked.stackable import precise_copy
from polyclinic.errors import StudyError
from polyclinic.parts.site_end import SiteEnd, overrides
from polyclinic.randomness import own_randomness
from polyclinic.seeds import generator
from polyclinic.state import FlatModule
from polyclinic.tasks import Task

#: Largest difference that is rounding, as a share of the largest number compared.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
_INSTEAD = (
    "Use normalisation within a case: `norm: group` (cnn), `norm: instance` (unet, dynunet), `norm: layer` (mlp), "
    "or a network that has it: segresnet, swinunetr."
)


def check_private(model: FlatModule, task: Task, shape: tuple[int, ...], ends: Iterable[SiteEnd] = ()) -> None:
    """Stop unless a patient's gradient depends on nothing but the model and the patient's own cases.

    Layers that are known to mix cases are named. Others are found by a trial on made-up cases: changing one case must
    not change what comes out for another, nor may the number of cases or any buffer of the network.

    Args:
        model: the network; neither its state nor any random generator is changed.
        task: whose loss is used.
        shape: of one input.
        ends: the parts at the site.

    Raises:
        StudyError: P104, with what to use instead.
    """
    if task.compares_cases:
        raise _refusal(
            f"the loss {task.loss_name} compares each case with others, so no patient has a gradient of their own",
            "Use a loss of single cases; for survival, a discrete one.",
        )
    for end in ends:
        for hook, what in (("batch", "batch"), ("loss", "loss"), ("perturbation", "point of the gradient")):
            if overrides(end, hook):
                raise _refusal(
                    f"the part {end.name} changes the {what} of training, which it could do from several patients' "
                    "cases at once",
                    f"Leave {end.name} out, or use a part that only changes gradients.",
                )
    for name, layer in model.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise _refusal(f"the layer {name} ({type(layer).__name__}) mixes the cases of a batch", _INSTEAD)
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            message = f"the layer {name} ({type(layer).__name__}) keeps running statistics of patients without noise"
            raise _refusal(message, "Build it with `track_running_stats: false`.")
    found = _mixing(model, shape)
    if found:
        raise _refusal(found, _INSTEAD)


def _refusal(reason: str, hint: str) -> StudyError:
    return StudyError("P104", f"dp_sgd can't be used here: {reason}.", hint)


def _mixing(model: FlatModule, shape: tuple[int, ...]) -> str:
    """In which way the network mixes cases, for people; empty if it does not."""
    with warnings.catch_warnings(), own_randomness("trial of private training"), torch.no_grad():
        warnings.simplefilter("ignore")
        source = generator("trial of private training")
        inputs = torch.randn(2, *shape, generator=source)
        module, kind = precise_copy(copy.deepcopy(model.module).cpu().train(), inputs[:1])
        for parameter in module.parameters():  # a network that starts at zero mixes nothing yet
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source).to(kind))
        inputs = inputs.to(kind)
        before = [buffer.clone() for buffer in module.buffers()]
        pair = _outputs(module, inputs)
        if any(not torch.equal(old, new) for old, new in zip(before, module.buffers(), strict=True)):
            return "the network changes a statistic of its own while it is trained, without noise"
        other = inputs.clone()
        other[1] = 10 * inputs[1].flip(-1) + 1
        if _differs(pair[0], _outputs(module, other)[0]):
            return "what the network gives for one case depends on another case of the batch"
        again = _outputs(module, inputs, seed=2)
        if not _differs(pair, again) and _differs(pair[0], _outputs(module, inputs[:1])[0]):
            return "what the network gives for a case depends on how many there are in the batch"
    return ""


def _outputs(module: nn.Module, inputs: Tensor, seed: int = 1) -> Tensor:
    with own_randomness("trial of private training", seed):
        outputs: Tensor = module(inputs)
    return outputs


def _differs(first: Tensor, second: Tensor) -> bool:
    largest = max(float(first.abs().max()), float(second.abs().max()), 1e-12)
    return not bool(((first - second).abs() <= _ROUNDING[first.dtype] * largest).all())
