"""A model's folder: written once, and read with distrust.

It has ``model.yaml`` (see `Description`), the weights and what cases are prepared with as safetensors, test vectors,
the study, its provenance and a model card. Nothing in it is code, and nothing of it is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import polyclinic.catalogues  # noqa: F401 - the parts enter their catalogues
from polyclinic.errors import ModelError, PolyclinicError, TrainingError
from polyclinic.files import write_atomic
from polyclinic.models import MODELS, build_model
from polyclinic.options import EntryError, check_options
from polyclinic.parts import part_class
from polyclinic.shapes import Misfit
from polyclinic.state import FlatModule, Layout
from polyclinic.study.final_model.description import Description

#: Number of the format.
FORMAT = 1
DESCRIPTION, WEIGHTS, PREPARATION, VECTORS = (
    "model.yaml", "weights.safetensors", "preparation.safetensors", "test-vectors.safetensors",
)  # fmt: skip
STUDY, PROVENANCE, CARD_PAGE, CARD_TEXT = "study.yaml", "provenance.json", "card.html", "card.md"
#: Files whose content the description vouches for.
VOUCHED = (WEIGHTS, PREPARATION, VECTORS)
#: What parts need that change images stands in the preparation under this and their place.
_SHOWN = "shown "
#: A description is a page of text, and not more.
_MOST_TEXT = 20 * 2**20
#: How far outputs of test vectors may be from those where the model was made: processors round differently.
_NEAR = 1e-3

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A model, ready to be used.

    Attributes:
        description: what it is.
        network: the network, without a choice of weights.
        vectors: the state of each of its models ``[P]``.
        merged: of each step of preparation that needs all sites, what these found together; else empty.
        shown: what changes images after these steps, the last before the network.
        samples: test vectors: ``inputs [N, ...]`` and ``outputs``.
    """

    description: Description
    network: FlatModule
    vectors: list[Tensor]
    merged: list[Tensors]
    samples: Tensors
    shown: list[Callable[[Tensor], Tensor]] = field(default_factory=list)


def sites_folder(out: Path) -> Path:
    """Where what stays at the sites is kept, if these are on this machine: beside the model."""
    return out.with_name(f"{out.name}-sites")


def number_of(weights: bytes, preparation: bytes) -> str:
    """The number of a model, from its files: sixteen hexadecimal digits."""
    return hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in (weights, preparation))).hexdigest()[:16]


def pack_weights(layout: Layout, vectors: Sequence[Tensor], stays: frozenset[str]) -> bytes:
    """The weights of one or several models as a file; tensors that stay at sites are left out."""
    tensors = {
        (f"{place}/{name}" if len(vectors) > 1 else name): tensor.detach().cpu().clone()
        for place, vector in enumerate(vectors)
        for name, tensor in layout.split(vector).items()
        if name not in stays
    }
    packed: bytes = save(tensors)
    return packed


def pack_merged(merged: Sequence[Mapping[str, Tensor]], needed: Sequence[Mapping[str, Tensor]] = ()) -> bytes:
    """What the steps of preparation need of all sites, and the parts that change images after them, as a file."""
    steps = [(f"{kind}{at}", own) for kind, all_ in (("", merged), (_SHOWN, needed)) for at, own in enumerate(all_)]
    packed: bytes = save({f"{place}/{name}": tensor.clone() for place, own in steps for name, tensor in own.items()})
    return packed


def write_model(
    folder: Path, description: Description, files: Mapping[str, bytes], beside: Mapping[str, str]
) -> Description:
    """Write a model's folder; the description comes last, so that a folder without it is not whole.

    Args:
        folder: it is made.
        description: without the hashes of files.
        files: content of the files that it vouches for.
        beside: texts of others, by name.

    Returns:
        The description with the hashes.
    """
    for name, content in files.items():
        write_atomic(folder / name, content)
    for name, text in beside.items():
        write_atomic(folder / name, text)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    whole = description.model_copy(update={"files": hashes})
    text = yaml.safe_dump(whole.content(), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(folder / DESCRIPTION, text)
    return whole


def read_description(folder: Path) -> Description:
    """What a model is, without loading it.

    Raises:
        ModelError: P701, the folder has no model, or one that can't be used.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise ModelError("P701", f"There is no model in {folder}: {DESCRIPTION} is missing.",
                         "Give a folder that `polyclinic fit` wrote.")  # fmt: skip
    if path.stat().st_size > _MOST_TEXT:
        raise _unfit(folder, f"{DESCRIPTION} has {path.stat().st_size} bytes, which is no description")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unfit(folder, f"{DESCRIPTION} can't be read ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise _unfit(folder, f"{DESCRIPTION} has no entries")
    if content.get("format") != FORMAT:
        raise ModelError(
            "P701", f"The model in {folder} has the format {content.get('format')!r}; this version reads {FORMAT}.",
            "Use the version of Polyclinic that made it, or a newer one.",
        )  # fmt: skip
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise _unfit(folder, f"{DESCRIPTION} has an entry that does not fit ({place}: {first['msg']})") from None


def read_model(folder: Path, *, device: str = "cpu", check: bool = True) -> Model:
    """Load a model, and see that it still computes what it did where it was made.

    Args:
        folder: what ``polyclinic fit`` wrote.
        device: where the network runs.
        check: whether test vectors are computed.

    Raises:
        ModelError: P701, the folder has no model, it is damaged or was changed, or test vectors differ.
    """
    folder = Path(folder)
    description = read_description(folder)
    contents = {name: vouched(folder, name, description) for name in VOUCHED}
    if number_of(contents[WEIGHTS], contents[PREPARATION]) != description.number:
        raise _unfit(folder, "its number is not that of its weights and preparation")
    weights, prepared, samples = (_tensors(folder, name, contents[name]) for name in VOUCHED)
    network = _network(folder, description, weights, device)
    shown = {name: tensor for name, tensor in prepared.items() if name.startswith(_SHOWN)}
    merged = {name: tensor for name, tensor in prepared.items() if name not in shown}
    model = Model(
        description, network, _vectors(folder, description, network.layout, weights),
        _merged(folder, description, merged), samples, _shown(folder, description, shown),
    )  # fmt: skip
    if check:
        check_samples(model, folder)
    return model


def sample_outputs(network: FlatModule, vector: Tensor, inputs: Tensor) -> Tensor:
    """Outputs of the network for test vectors, float32, some of them where there are many."""
    network.load(vector)
    network.module.eval()
    with torch.no_grad():
        found = torch.cat([network.module(one[None].to(network.vector.device)).float().cpu() for one in inputs])
    flat = found.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // 4096)].contiguous()


def sample_inputs(shape: Sequence[int], count: int) -> Tensor:
    """Synthetic inputs ``[count, *shape]``: waves of which no two are alike, and no image of anybody."""
    size = count * torch.Size(shape).numel()
    return (
        torch.sin(torch.arange(size, dtype=torch.float64).mul_(0.7853).add_(1.0).sqrt_().mul_(7.0))
        .float()
        .view(count, *shape)
    )


def check_samples(model: Model, folder: Path) -> None:
    """See that the network gives for the test vectors what it gave where it was made.

    Raises:
        ModelError: P701, it does not.
    """
    inputs, expected = model.samples.get("inputs"), model.samples.get("outputs")
    if inputs is None or expected is None or inputs.ndim < 2 or list(inputs.shape[1:]) != model.description.shape:
        raise _unfit(folder, f"{VECTORS} has no inputs of the model's shape with their outputs")
    found = torch.stack([sample_outputs(model.network, vector, inputs) for vector in model.vectors])
    far = torch.inf if found.shape != expected.shape else float((found - expected).abs().max())
    if not far <= _NEAR * max(1.0, float(expected.abs().max())):
        text = f"The model in {folder} does not compute what it did where it was made: outputs differ by {far:.3g}."
        raise ModelError("P701", text, "Use the versions of Polyclinic and PyTorch that made it (provenance.json), or "
                         "fetch the folder again.")  # fmt: skip


def vouched(folder: Path, name: str, description: Description) -> bytes:
    """The content of a file that is as it was when the model was made.

    Raises:
        ModelError: P701, it is not.
    """
    wanted = description.files.get(name)
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise _unfit(folder, f"{name} can't be read ({error.strerror or type(error).__name__})") from None
    if wanted is None or hashlib.sha256(content).hexdigest() != wanted:
        raise _unfit(folder, f"{name} is damaged or was changed: its SHA-256 is not the one in {DESCRIPTION}")
    return content


def _tensors(folder: Path, name: str, content: bytes) -> Tensors:
    try:
        tensors: Tensors = load(content)
    except (SafetensorError, ValueError, KeyError):
        raise _unfit(folder, f"{name} holds no tensors") from None
    wrong = [one for one, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise _unfit(folder, f"{name} has numbers that are not finite ({wrong[0][:80]})")
    return tensors


def _network(folder: Path, description: Description, weights: Tensors, device: str) -> FlatModule:
    """The network, built only if it is as large as its weights say."""
    name, options = description.network
    try:
        name, options = MODELS.resolve({name: options}, ("network",))
        with torch.device("meta"):  # a network has a size before it takes memory
            module, _ = MODELS[name](tuple(description.shape), description.outputs, **options)
        size = sum(one.numel() for one in (*module.parameters(), *module.buffers()) if one.is_floating_point())
        given = sum(tensor.numel() for tensor in weights.values())
        if given > size * len(description.models) or (description.whole and given != size * len(description.models)):
            raise _unfit(folder, f"its network has {size} numbers, and {WEIGHTS} has {given} for "
                         f"{len(description.models)} of them")  # fmt: skip
        if not description.whole and given * 1000 < size:
            raise _unfit(folder, f"its network has {size} numbers, and {WEIGHTS} only {given}")
        return build_model(name, options, description.shape, description.outputs, device=device)
    except EntryError as error:
        raise _unfit(folder, f"its network can't be built: {error}") from None
    except (TrainingError, ModelError):
        raise
    except (RuntimeError, ValueError, TypeError, PolyclinicError) as error:
        raise _unfit(folder, f"its network can't be built ({str(error).splitlines()[0][:200]})") from None


def _vectors(folder: Path, description: Description, layout: Layout, weights: Tensors) -> list[Tensor]:
    """The state ``[P]`` of each model. What stays at sites is 0.5, which stands for nothing."""
    count, found = len(description.models), list[Tensor]()
    known = {(f"{place}/{entry.name}" if count > 1 else entry.name): entry.shape for place in range(count)
             for entry in layout.entries}  # fmt: skip
    for name, tensor in weights.items():
        if known.get(name) != tuple(tensor.shape) or tensor.dtype != torch.float32:
            text = (
                f"{WEIGHTS} has {name[:80]!r} of shape {list(tensor.shape)}, {tensor.dtype}, which its network has not"
            )
            raise _unfit(folder, text)
    lacking = [name for name in known if name not in weights]
    if lacking and description.whole:
        raise _unfit(folder, f"{WEIGHTS} lacks {len(lacking)} tensors of its network ({lacking[0]})")
    for place in range(count):
        vector = torch.full((layout.size,), 0.5)
        for name, view in layout.split(vector).items():
            given = f"{place}/{name}" if count > 1 else name
            if given in weights:
                view.copy_(weights[given])
        found.append(vector)
    return found


def _merged(folder: Path, description: Description, tensors: Tensors) -> list[Tensors]:
    found: list[Tensors] = [{} for _ in description.steps]
    for name, tensor in tensors.items():
        place, _, own = name.partition("/")
        if not place.isdigit() or int(place) >= len(found):
            raise _unfit(folder, f"{PREPARATION} has {name[:80]!r}, which belongs to no step")
        found[int(place)][own] = tensor
    return found


def _shown(folder: Path, description: Description, tensors: Tensors) -> list[Callable[[Tensor], Tensor]]:
    """What changes images, from what it needs."""
    needed: list[Tensors] = [{} for _ in description.shown]
    for name, tensor in tensors.items():
        place, _, own = name.removeprefix(_SHOWN).partition("/")
        if not place.isdigit() or int(place) >= len(needed):
            raise _unfit(folder, f"{PREPARATION} has {name[:80]!r}, which belongs to no part")
        needed[int(place)][own] = tensor
    found = list[Callable[[Tensor], Tensor]]()
    for (name, options), given in zip(description.shown, needed, strict=True):
        try:
            part = part_class(name)(**check_options(part_class(name), options, ("shown", name), name))
            found.append(part.shown(given, description.shape))
        except (KeyError, NotImplementedError):
            raise _unfit(folder, f"there is no part {name[:80]!r} here that changes images") from None
        except EntryError as error:
            raise _unfit(folder, f"its part {name} can't be built: {error}") from None
        except Misfit as misfit:
            raise _unfit(folder, f"what {name} needs is not of its images: {misfit}") from None
    return found


def _unfit(folder: Path, reason: str) -> ModelError:
    hint = "Fetch the folder again from where it was made, or make it anew with `polyclinic fit`."
    return ModelError("P701", f"The model in {folder} can't be used: {reason}.", hint)
