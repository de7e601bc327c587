"""A model card: what a model is for, what it was made of, and how well its method did; as Markdown and as a page.

After Mitchell et al. 2019, "Model cards for model reporting". What only people can know stands there as a question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyclinic.data.spec import Undersampling
from polyclinic.study.final_model.description import Description, TrainingSite
from polyclinic.study.report.page import TEMPLATES
from polyclinic.tasks.metrics import METRICS, metric_text

_WORDS = {
    "labels": "the class of a case", "numbers": "a number", "masks": "where a structure is in an image",
    "times": "how early an event is to be expected", "findings": "several labels of a case",
    "images": "an MR image from part of its k-space",
}  # fmt: skip
#: What may be done with a model, as far as it is known here.
INTENDED_USE = (
    "Research. It is no medical device; nobody has approved it for the care of patients.",
    "To be filled in by who passes it on: for which patients and which question is it meant, who may use it, "
    "and what must not be done with it?",
)
_OVER = {"all": "all cases together", "sites": "mean over the sites"}
Section = tuple[str, list[str | list[list[str]]]]


def card_text(description: Description, results: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        description: of the model.
        results: rows of ``summary.csv`` of the study that chose it.
        record: its provenance.
    """
    lines = [f"# Model card: {description.study}, {description.method}", ""]
    for title, content in _sections(description, results, record):
        lines += [f"## {title}", ""]
        for one in content:
            lines += [*([one] if isinstance(one, str) else _markdown(one)), ""]
    return "\n".join(lines)


def card_page(description: Description, results: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    """The card as one HTML file that needs nothing else; see ``card_text``."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("model_card.html.j2").render(
        study=description.study,
        method=description.method,
        sections=list(_sections(description, results, record)),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
    )


def _sections(
    description: Description, results: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> Iterable[Section]:  # fmt: skip
    yield "What it is", [_what(description), f"Number of the model: {description.number}."]
    yield "Intended use", list(INTENDED_USE)
    yield "Inputs", list(_inputs(description))
    yield "Outputs", list(_outputs(description))
    yield "Training", list(_training(description, record))
    yield "How good it is", list(_results(description, results))
    yield "At a site that took no part", list(_elsewhere(description))
    yield "What it may reveal", list(_privacy(description, record))
    yield "Provenance", list(_provenance(record))


def _what(description: Description) -> str:
    name, options = description.network
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    return (
        f"A network ({name}{f': {given}' if given else ''}) that predicts {_WORDS[description.target]} "
        f"({description.task}), trained by {description.method} at {len(description.sites)} sites."
    )


def _inputs(description: Description) -> Iterable[str | list[list[str]]]:
    bags = description.data.bags
    if bags is not None:
        named = f"column {bags.column}" if bags.column else "patient"
        yield f"A case is a bag: all rows of the table with the same {named}, any number of them."
    if description.is_table:
        yield f"{len(description.agreement.features)} columns of a table, by their names, in the units of the study:"
        rows = [["Column", "Values"]]
        for name in description.agreement.features:
            values = description.agreement.values.get(name)
            rows.append([name, "one of " + ", ".join(values) if values else _usual(description, name)])
        yield rows
        return
    sides = " x ".join(map(str, description.shape[1:]))
    yield f"Images with the channels {', '.join(description.inputs)}; the network sees {sides} pixels or voxels."
    if description.data.undersampling is not None:
        yield from _acquisition(description.data.undersampling)
    preparation = description.data.preprocessing
    if preparation is not None:
        spacing = "their own voxels" if preparation.steps is None else f"voxels of {preparation.steps} mm"
        normalised = "left" if preparation.intensity == "none" else f"normalised by {preparation.intensity}"
        yield (
            f"Volumes are turned to {preparation.orientation}, brought to {spacing} and {preparation.sides} of them, "
            f"and their intensities are {normalised}."
        )
    for name, _ in description.shown:
        yield f"The network is shown images that the part {name} of its method has changed, as in training."
    if description.seen.spacing:
        ends = ((f"{low:.3g}", f"{high:.3g}") for low, high in description.seen.spacing)
        sides = " x ".join(low if low == high else f"{low} to {high}" for low, high in ends)
        yield f"Voxels of the images that it was trained on, from the shortest side to the longest: {sides} mm."


def _acquisition(lines: Undersampling) -> Iterable[str]:
    yield (
        f"k-space is made of each image, slice by slice, and one of {lines.acceleration:g} of its lines is measured: "
        f"the share {lines.center:g} in the middle, and others that are "
        f"{'drawn at random' if lines.lines == 'random' else 'equally far apart'}."
    )
    yield (
        "So the model was trained on magnitude images, without phase, coils and the noise of a scanner. It has never "
        "seen measured k-space, can't be given any, and its errors on that of a scanner are not known."
    )


def _usual(description: Description, name: str) -> str:
    usual = description.seen.features.get(name)
    return "a number" if usual is None else f"a number; usually about {usual.median:.4g}"


def _outputs(description: Description) -> Iterable[str]:
    if description.target == "labels":
        yield f"A probability of each of the classes {', '.join(description.classes)}."
        if len(description.classes) == 2:
            yield f"The class {description.classes[1]} is called from a probability of {description.threshold:.3g} on."
    elif description.target == "findings":
        yield f"A probability of each of the classes {', '.join(description.classes)}; those of a finding add up to 1."
        limits = description.completion or [description.threshold] * len(description.labels)
        both = zip(description.labels, limits, strict=True)
        called = ", ".join(f"{one.name} {limit:.3g}" for one, limit in both if one.classes == 2)
        if called:
            yield f"Of two classes the second is called from a probability on: {called}."
    elif description.target == "masks":
        yield f"A mask with the classes {', '.join(description.classes)}, in the space of the image."
    elif description.target == "images":
        yield "The magnitude of the image, in the space and the units of the image that it is of."
    elif description.target == "numbers":
        yield "A number, in the unit of the study's column " + repr(description.data.label) + "."
    else:
        yield "A risk: the higher, the earlier the event is expected."
        if description.times:
            yield f"And the chance to be without it at {', '.join(f'{time:g}' for time in description.times)}."
    if description.calibration is not None:
        fitted = description.calibration
        yield (
            f"Probabilities are recalibrated: intercept {fitted.intercept:.3g}, slope {fitted.slope:.3g}, from "
            f"{fitted.cases} predictions ({fitted.source})."
        )


def _training(description: Description, record: Mapping[str, Any]) -> Iterable[str | list[list[str]]]:
    yield f"Method: {description.method}. {record.get('method', '')} The file study.yaml has all of its parts."
    yield f"Rounds: {description.rounds} ({description.chosen}). Seed: {description.seed}."
    if description.public is not None:
        yield (
            f"It also learned from a public set of {description.public.cases} cases, of which no label was used "
            f"(fingerprint {description.public.fingerprint})."
        )
    yield [["Site", "Training cases", "Patients", "What stays there"],
           *([site, str(one.cases), str(one.patients), _stays(one)]
             for site, one in description.sites.items())]  # fmt: skip


def _stays(site: TrainingSite) -> str:
    parts = [f"{len(site.weights)} tensors of the network"] * bool(site.weights)
    parts += ["how its cases are scaled"] * site.prepares + ["what is white in its pictures of 16 bits"] * site.white
    return " and ".join(parts) or "nothing"


def _results(description: Description, results: Sequence[Mapping[str, Any]]) -> Iterable[str | list[list[str]]]:
    if not results:
        yield "Not known: no results of a study were given when the model was made. Evaluate it before it is used."
        return
    yield (
        "These are the results of the study's own folds, of models that were trained on fewer cases than this one. "
        "This model itself was not tested: it has seen all cases."
    )
    rows = [["Metric", "Over", "Mean", "95 % interval"]]
    for one in results:
        name, over = str(one["metric"]), _OVER.get(str(one["over"]), str(one["over"]))
        low, mean, high = (_number(one.get(key)) for key in ("low", "mean", "high"))
        interval = "" if low is None or high is None else f"{metric_text(name, low)} to {metric_text(name, high)}"
        rows.append([_title(name), over, "" if mean is None else metric_text(name, mean), interval])
    yield rows


def _title(name: str) -> str:
    """A metric in words, of a structure or class where it is of one."""
    base, bracket, of = name.partition("[")
    title = METRICS[base].title if base in METRICS else base
    return f"{title}: {of.removesuffix(']')}" if bracket else title


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _elsewhere(description: Description) -> Iterable[str]:
    yield from unseen_rule(description)
    yield "Evaluate it there first, with cases of whom the truth is known: `polyclinic evaluate`."


def unseen_rule(description: Description) -> Iterable[str]:
    """What becomes of cases of a site that took no part, in sentences."""
    if not description.whole:
        yield (
            "It can't be used there: part of the network stays at each site. Make a model with the whole networks of "
            "the sites (--site-models) if they agree."
        )
    elif len(description.models) > 1:
        yield f"The mean of the predictions of {len(description.models)} models is taken."
    else:
        yield "The same network is used as everywhere."
    if any(one.prepares for one in description.sites.values()):
        yield (
            "Its cases are scaled by themselves, without their labels: a number of them together, or by reference "
            "cases of the same site. A single case can't be predicted without these."
        )
    if any(one.white for one in description.sites.values()):
        yield (
            "Its pictures of 16 bits can't be predicted, since nothing tells what is white in them: the study has no "
            "`bits`. Those of 8 bits can."
        )


def _privacy(description: Description, record: Mapping[str, Any]) -> Iterable[str | list[list[str]]]:
    rows = record.get("privacy") or []
    if rows:
        yield "Noise in training bounds what the model tells of a patient or a site:"
        numbers = ("epsilon", "delta", "lifetime_epsilon")
        yield [["Site", "Unit", "ε", "δ", "ε of all trainings with noise"],
               *([str(one.get("site", "")), str(one.get("unit", "")), *(_text(one.get(name)) for name in numbers)]
                 for one in rows)]  # fmt: skip
        if record.get("study_results"):
            yield (
                "What the trainings of the study cost by which this one was chosen adds to that, also where its budget "
                "was for the whole study: privacy.csv of its results tells it. Only a hospital's own ledger has all in "
                "the last column."
            )
    else:
        yield (
            "No noise was added in training. Who has the model may be able to tell whether a patient's case was "
            "trained on, or reconstruct features of it. Ask the sites before it is passed on."
        )
    usual = (
        "over all sites, usual values of features and how far they scatter, and " if description.seen.features else ""
    )
    yield f"model.yaml has {usual}the sites' names and numbers of patients. Nothing in it is of a single patient."


def _text(value: Any) -> str:
    number = _number(value)
    return "" if number is None else f"{number:.3g}"


def _provenance(record: Mapping[str, Any]) -> Iterable[str]:
    versions = record.get("versions") or {}
    yield (
        f"Made {record.get('made', '')} with "
        + ", ".join(f"{name} {versions[name]}" for name in ("polyclinic", "torch", "monai") if versions.get(name))
        + "."
    )
    yield f"Fingerprint of the training data (SHA-256): {record.get('data_sha256')}."


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(rows[0]), "|" + "---|" * len(rows[0]), *map(line, rows[1:])]
