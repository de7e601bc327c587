"""The documentation says what the program does: names, defaults, commands and messages are checked against it."""

from __future__ import annotations

import errno
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from helpers import (
    Federation,
    table_site,
    table_sites,
    write_image_study,
    write_survival_study,
    write_table_study,
)
from polyclinic import Study, cli
from polyclinic.client.optimizers import resolve_optimizer, resolve_schedule
from polyclinic.client.personal.models import PERSONAL
from polyclinic.communication.message import Message
from polyclinic.composition import METHODS
from polyclinic.data.augmentation import INTENSITY, SPATIAL
from polyclinic.data.catalogue import ENTRIES, find_entry
from polyclinic.data.catalogue.page import catalogue_page
from polyclinic.data.spec import (
    DataSpec,
    Finding,
    Labels,
    Mask,
    Partition,
    Patch,
    Preprocessing,
    PublicSet,
    Undersampling,
)
from polyclinic.data.tables.labels import MOST_CLASSES
from polyclinic.deployment.export.folder import whole_folder
from polyclinic.deployment.inputs import open_table
from polyclinic.engine.base import SitesLost
from polyclinic.engine.planner import PROCESSES_ABOVE, STACK_BELOW
from polyclinic.engine.reloading import given_up
from polyclinic.errors import TITLES, PolyclinicError
from polyclinic.files import write_error
from polyclinic.methods import PUBLISHED, SHARES
from polyclinic.models.catalogue import MODELS
from polyclinic.notes import TITLES as NOTES
from polyclinic.options import Catalogue, describe_options
from polyclinic.parts import PLACES, SERVER_PARTS, ServerPart, Step
from polyclinic.server.selection import PARTICIPATION
from polyclinic.site import Site, Workspace
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.cluster.access import open_to_others
from polyclinic.study.declaration import Declaration
from polyclinic.study.entries import EngineOptions, Evaluation, FinalModel, ReportOptions, Search, Training
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import read_model
from polyclinic.tasks import TASKS
from polyclinic.tasks.metrics import METRICS, threshold_grid
from polyclinic.tasks.segmentation import MASK_THRESHOLDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: Heading in the study file's page -> the part of a study file that it describes.
PARTS: dict[str, type[BaseModel]] = {
    "The file as a whole": Declaration,
    "`data`": DataSpec,
    "`mask`": Mask,
    "`partition`": Partition,
    "`labels`": Labels,
    "`public`": PublicSet,
    "`undersampling`": Undersampling,
    "`preprocessing`": Preprocessing,
    "`patch`": Patch,
    "`findings`": Finding,
    "`training`": Training,
    "`evaluation`": Evaluation,
    "`search`": Search,
    "`final_model`": FinalModel,
    "`engine`": EngineOptions,
    "`report`": ReportOptions,
}
#: Defaults that are told in words.
IN_WORDS = ("required", "see below")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def sections(text: str, level: int = 2) -> dict[str, str]:
    """Heading of the level -> what stands below it."""
    parts = re.split(rf"^{'#' * level} (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Cells of all rows of the Markdown tables in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    """The texts between backticks, without examples."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", cell, flags=re.MULTILINE | re.DOTALL))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


# The study file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", PARTS)
def test_every_entry_of_the_study_file_stands_in_its_page_with_its_default(heading: str) -> None:
    model = PARTS[heading]
    found = {cells[0].strip("`"): cells[1] for cells in rows(sections(text_of("study-file.md"))[heading])}
    found.pop("entry")
    assert set(found) == set(model.model_fields)
    for name, told in found.items():
        field = model.model_fields[name]
        if told in IN_WORDS:
            assert field.is_required() == (told == "required"), name
        elif told == "none" or field.default is None:
            assert (told, field.default) == ("none", None), name
        else:
            default = yaml.safe_load(told.strip("`"))
            filled = field.default.model_dump() if isinstance(field.default, BaseModel) else field.default
            assert default == filled, name


def test_every_name_that_a_study_file_may_use_stands_in_its_page() -> None:
    page = set(names(text_of("study-file.md")))
    for catalogue in (METHODS, MODELS, PERSONAL, PARTICIPATION, *PLACES.values()):
        assert not [name for name in catalogue if name not in page], catalogue.kind
    assert page >= {*SPATIAL, *INTENSITY, *METRICS, *(share for share in SHARES if share != "none")}
    for task in TASKS.values():
        assert page >= {task.name, *task.losses, *task.metrics}


def test_models_stand_in_the_page_with_their_options() -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows(sections(text_of("study-file.md"))["Models"])}
    table.pop("name")
    assert {name: names(cell) for name, cell in table.items()} == {n: list(describe_options(MODELS[n])) for n in MODELS}


@pytest.mark.parametrize("kind", [PERSONAL, PARTICIPATION, *PLACES.values()], ids=lambda kind: kind.kind)
def test_parts_stand_in_the_page_with_their_options(kind: Catalogue[Any]) -> None:
    told: dict[str, set[str]] = {}
    for cells in rows(text_of("study-file.md")):
        for name in names(cells[0]):
            told.setdefault(name, set()).update(names(cells[1]) if len(cells) == 3 else [])
    for name in kind:
        assert set(describe_options(kind[name])) <= told[name], name


def test_losses_and_metrics_stand_in_the_page_in_their_order() -> None:
    table = {cells[0].strip("`"): cells[1:] for cells in rows(sections(text_of("study-file.md"))["Losses and metrics"])}
    for task in TASKS.values():
        losses, metrics = table[task.name]
        assert (names(losses), names(metrics)) == (list(task.losses), list(task.metrics))
    assert set(METRICS) <= set(table)


def test_optimisers_and_schedules_of_the_page_exist() -> None:
    table = {cells[0].strip("`"): cells[2] for cells in rows(sections(text_of("study-file.md"))["`training`"])}
    optimizers = names(table["optimizer"].partition(", with")[0])[1:]  # the first is `torch.optim`
    assert len(optimizers) == 12
    for name in optimizers:
        resolve_optimizer(name, ())
    needed = {"step": {"step_size": 2}, "multistep": {"milestones": [2]}, "exponential": {"gamma": 0.9},
              "cosine_annealing": {"T_max": 5}, "cosine_annealing_warm_restarts": {"T_0": 5},
              "cyclic": {"base_lr": 0.01, "max_lr": 0.1}, "one_cycle": {"max_lr": 0.1, "total_steps": 5}}  # fmt: skip
    schedules = [name for name in names(table["schedule"].partition(", with")[0]) if re.fullmatch(r"[a-z_]+", name)]
    assert set(needed) < set(schedules)
    for name in schedules:
        resolve_schedule({name: needed.get(name, {})}, ("sgd", {"lr": 0.1, "momentum": 0.9}), ())


def test_examples_of_the_study_file_page_are_valid() -> None:
    base: dict[str, Any] = {"data": {"table": "t.csv", "site": "s", "label": "l", "features": "*"}, "model": "logistic"}
    images = {"table": "t.csv", "site": "s", "label": "l", "image": "i", "size": [32, 32]}
    for block in blocks(text_of("study-file.md"), "yaml"):
        content = yaml.safe_load(block)
        if "augmentation" in content:
            content = {"data": images | content, "model": "cnn"}
        Study.of(base | content)


# Methods, errors, files -----------------------------------------------------------------------------------------------


def test_the_table_of_methods_is_the_catalogue() -> None:
    found = {cells[0].strip("`"): cells[1:] for cells in rows(text_of("methods.md")) if len(cells) == 5}
    found.pop("name")
    told = {name: (place, says, names(options), source) for name, (place, says, options, source) in found.items()}
    assert told == {
        name: (about.place, about.summary, list(describe_options(METHODS[name])), about.citation)
        for name, about in PUBLISHED.items()
    }


def test_every_method_has_a_section_with_rule_use_and_source() -> None:
    found = sections(text_of("methods.md"))
    assert list(found) == list(METHODS)
    for name, text in found.items():
        assert all(word in text for word in ("**Rule.**", "**When.**", "**Source.**")), name
        assert ("**Options.**" in text) == bool(describe_options(METHODS[name])), name


def test_every_error_has_a_section() -> None:
    found = sections(text_of("errors.md"))
    assert list(found) == [f"{code}: {title}" for code, title in TITLES.items()]
    for heading, text in found.items():
        assert "*What it means.*" in text, heading
        assert "*How to resolve it.*" in text, heading


def test_every_note_has_a_section() -> None:
    found = sections(text_of("notes.md"))
    assert list(found) == [f"{number}: {title}" for number, title in NOTES.items()]
    for heading, text in found.items():
        paragraphs = text.strip().split("\n\n")
        assert [part.split("*")[1] for part in paragraphs] == ["What it means.", "What to do."], heading


def test_every_note_arises_somewhere() -> None:
    titles = ROOT / "src" / "polyclinic" / "notes.py"
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py") if path != titles)
    assert not [number for number in NOTES if f'"{number}"' not in source]


def test_every_message_stands_in_the_architecture_with_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, tuple[set[str], set[str]]] = {}
    handle = Site.handle

    def noted(self: Site, function: str, request: Message) -> Message:
        reply = handle(self, function, request)
        asked, answered = said.setdefault(function, (set(), set()))
        asked |= {re.sub(r"^(model|totals)\d+$", r"\1", name) for name in request.tensors}
        answered |= {name.split("/")[-1] for name in reply.tensors}
        return reply

    monkeypatch.setattr(Site, "handle", noted)
    folders = tmp_path / "table", tmp_path / "image", tmp_path / "times"
    writers: tuple[Callable[..., dict[str, Any]], ...] = write_table_study, write_image_study, write_survival_study
    for folder, write in zip(folders, writers, strict=True):
        folder.mkdir()
        content = write(folder, {"Aachen": 12, "Bonn": 12})
        content["data"]["scaling"] = "federated"
        content["data"]["harmonisation"] = "none" if "image" in content["data"] else "combat"
        content["training"]["rounds"] = 1
        content["methods"] += (
            []
            if write is write_survival_study
            else [
                {
                    "fedavg": {
                        "channel": ["clip", {"gaussian_noise": {"noise": 1.0}}],
                        "label": "noise",
                        "share": "no_norm_statistics",
                    }
                }
            ]
        )
        Study.of(content, folder).run(folder / "results")
    for write in (write_table_study, partial(write_table_study, classes=3), write_survival_study):
        folders += (tmp_path / f"at sites {len(folders)}",)
        folders[-1].mkdir()
        content = write(folders[-1], {"Aachen": 12, "Bonn": 12})
        content["evaluation"] |= {
            "predictions": "sites",
            "subgroups": [{"x0": [-9, 0, 9]}],
            "disclosure_floor": 1,
            "bootstrap": 0,
        }
        Study.of(content | {"methods": ["fedavg"]}, folders[-1]).run(folders[-1] / "results")
    folders += (tmp_path / "in sums",)
    folders[-1].mkdir()
    content = write_table_study(folders[-1], {"Aachen": 12, "Bonn": 12, "Celle": 12})
    content["data"] |= {"scaling": "federated", "harmonisation": "combat"}
    content |= {"methods": ["fedavg"], "privacy": {"summaries": "secure_sum"}}
    Study.of(content, folders[-1]).run(folders[-1] / "results")
    table = rows(sections(text_of("architecture.md"))["Messages between coordinator and site"])
    told = {cells[0].strip("`"): (set(names(cells[1])), set(names(cells[2]))) for cells in table}
    told["save"] = told["restore"] = told.pop("save`, `restore")
    for other in ("function", "part/verb"):
        told.pop(other)
    assert set(told) == set(Site(next(iter(table_sites().values())), Workspace())._functions)
    assert said.keys() >= set(told) - {"restore", "try", "retain"}
    for function, (asked, answered) in said.items():
        assert asked <= told[function][0], function
        assert answered <= told[function][1], function
    for folder in folders:
        check_results_folder(folder / "results")


def check_results_folder(folder: Path) -> None:
    """Every file of a results folder, and every column of its tables, stands in the page about them."""
    page = sections(text_of("results-files.md"))
    for path in folder.iterdir():
        assert path.name in text_of("results-files.md")
    for table in sorted(folder.glob("*.csv")):
        told = {name for cells in rows(page[table.name]) for name in names(cells[0])}
        for column in pd.read_csv(table, nrows=1).columns:
            general = re.sub(r"^class: .*", "class: NAME", column)
            general = re.sub(r"^survival\[.*", "survival[365]", general)
            general = "validation_auc" if column in ("validation_dice", "validation_concordance") else general
            assert general in told, f"{table.name}: {column}"
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert set(record) <= {name for cells in rows(page["provenance.json"]) for name in names(cells[0])}
    kept = {path.name if path.suffix != ".safetensors" else "*.safetensors" for path in folder.glob("sites/*/*")}
    assert kept <= {name for cells in rows(page["sites/"]) for name in names(cells[0])}


def test_the_page_of_the_data_catalogue_is_made_from_its_entries() -> None:
    made = catalogue_page(ENTRIES.values())
    assert text_of("data-catalogue.md") == made, "python -m polyclinic.data.catalogue > docs/data-catalogue.md"


# Links and the tutorial -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        assert (DOCS / (name or page)).is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(name or page), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", text_of("index.md")))
    assert linked == {path.name for path in DOCS.glob("*.md")} - {"index.md"} | {"results.md"}


def write_hospitals(folder: Path) -> None:
    """The data of the tutorial: three hospitals with 40 patients each, and two small images of six of them."""
    rng, pixels = np.random.default_rng(0), np.random.default_rng(1)
    patients, images = [], []
    for hospital in ("north", "south", "west"):
        for number in range(40):
            name, disease = f"{hospital[0].upper()}{number:03}", number % 2
            left, right = rng.normal(3400 - 300 * disease, 250, size=2).round().tolist()
            patients.append([hospital, name, int(rng.integers(40, 80)), "FM"[number // 2 % 2],
                             None if number == 7 else left, right, disease])  # fmt: skip
            if number < 6:
                images += [write_eye(folder, pixels, hospital, name, eye, disease) for eye in ("left", "right")]
    columns = ["hospital", "patient", "age", "sex", "left_volume", "right_volume", "disease"]
    pd.DataFrame(patients, columns=columns).to_csv(folder / "patients.csv", index=False)
    columns = ["hospital", "patient", "image", "mask", "disease"]
    pd.DataFrame(images, columns=columns).to_csv(folder / "images.csv", index=False)


def write_eye(
    folder: Path, rng: np.random.Generator, hospital: str, name: str, eye: str, disease: int
) -> list[str | int]:
    """An image with a bright square, brighter with the disease, and its mask; returns the table's row."""
    pixels, mask = rng.integers(20, 90, size=(48, 40, 3)), np.zeros((48, 40), dtype=np.uint8)
    row, column = rng.integers(5, 20, size=2)
    mask[row : row + 16, column : column + 16] = 255
    pixels[mask > 0] += 60 + 80 * disease
    paths = [f"{kind}/{name.lower()}_{eye}.png" for kind in ("images", "masks")]
    for path, array in zip(paths, (pixels.astype(np.uint8), mask), strict=True):
        (folder / path).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / path)
    return [hospital, name, *paths, disease]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Run a line such as ``polyclinic check study.yaml``; exit status, and all that it prints in one line."""

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        status: Any = 0
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        printed = capfd.readouterr()
        return status, " ".join((printed.out + printed.err).split())

    return run


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tutorial's data and its study files, with fewer rounds on images; it is the working folder."""
    write_hospitals(tmp_path)
    for block in blocks(text_of("your-own-data.md"), "yaml"):
        name = re.match(r"# file: (\S+)\n", block)
        assert name is not None
        quick = block.replace("rounds: 3", "rounds: 1") + "engine: {threads: 1}\n"
        (tmp_path / name[1]).write_text(quick, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tutorial_commands() -> list[str]:
    return [line for block in blocks(text_of("your-own-data.md"), "sh") for line in block.splitlines()]


def run_all(lines: Iterable[str], command: Callable[[str], tuple[int, str]]) -> None:
    for line in lines:
        status, printed = command(line)
        assert status == 0, f"{line}: {printed}"


def test_the_tutorial_with_a_table(hospitals: Path, command: Callable[[str], tuple[int, str]]) -> None:
    run_all([line for line in tutorial_commands() if "study.yaml" in line], command)
    assert (hospitals / "results" / "report.html").is_file()
    means = pd.read_csv(hospitals / "results" / "summary.csv").query("metric == 'auc' and over == 'all'")
    assert means["mean"].min() > 0.7  # the disease makes volumes smaller
    methods = pd.read_csv(hospitals / "results-fedprox" / "results.csv")["method"].unique()
    assert list(methods) == ["fedavg", "fedprox"]
    (python,) = blocks(text_of("your-own-data.md"), "python")
    exec(python, {})  # noqa: S102 - the page's own example
    assert (hospitals / "results-python" / "results.csv").is_file()


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_the_tutorial_with_images(kind: str, hospitals: Path, command: Callable[[str], tuple[int, str]]) -> None:
    run_all([line for line in tutorial_commands() if f"{kind}.yaml" in line], command)
    sites = pd.read_csv(hospitals / f"results-{kind}" / "sites.csv")
    assert sites["used"].tolist() == [12, 12, 12]
    assert sites["patients"].tolist() == [6, 6, 6]


def test_the_tutorial_with_bags(hospitals: Path, command: Callable[[str], tuple[int, str]]) -> None:
    run_all([line for line in tutorial_commands() if "bags.yaml" in line], command)
    sites = pd.read_csv(hospitals / "results-bags" / "sites.csv")
    assert sites["used"].tolist() == sites["patients"].tolist() == [6, 6, 6]
    assert sites["instances"].tolist() == [12, 12, 12]
    attention = pd.read_csv(hospitals / "results-bags" / "attention.csv")
    assert attention.groupby(["method", "fold", "case"])["instance"].max().unique().tolist() == [2]


def test_the_tutorial_with_simulated_sites(hospitals: Path, command: Callable[[str], tuple[int, str]]) -> None:
    run_all([line for line in tutorial_commands() if "simulated.yaml" in line], command)
    sites = pd.read_csv(hospitals / "results-simulated" / "sites.csv")
    assert sites["site"].tolist() == ["Site 1", "Site 2", "Site 3", "Site 4"]
    assert sites["found"].sum() == len(pd.read_csv(hospitals / "patients.csv"))
    assert "Sites are simulated" in (hospitals / "results-simulated" / "report.html").read_text(encoding="utf-8")


def test_the_tutorial_has_no_other_commands(hospitals: Path) -> None:
    known = r"^polyclinic .*\b(study|images|masks|bags|simulated)\.yaml"
    assert all(re.search(known, line) for line in tutorial_commands())


def test_the_mistakes_of_the_tutorial_give_its_messages(
    hospitals: Path, command: Callable[[str], tuple[int, str]]
) -> None:
    page = text_of("your-own-data.md")
    found = re.findall(r"```yaml\n# file: (\S+)\n[^`]*```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(found) == 3
    for name, message in found:
        status, printed = command(f"polyclinic check {name}")
        assert status == 2, name
        assert " ".join(message.split()) in printed


# What the program really prints ---------------------------------------------------------------------------------------

STUDY = """\
data:
  table: patients.csv
  site: hospital
  subject: patient
  label: disease
  positive: 1
  features: [age, "*_volume"]
model: mlp
training: {rounds: 2}
evaluation: {folds: 2, bootstrap: 0}
methods: [single, mix, fedavg]
engine: {threads: 1, mode: sequential}
"""


def changed(old: str, new: str) -> Study:
    """A study of the tutorial's table, read from a file, with one entry written in another way."""
    if old not in STUDY:
        raise ValueError(old)
    Path("study.yaml").write_text(STUDY.replace(old, new), encoding="utf-8")
    return Study.read("study.yaml")


def missing_images() -> None:
    lines = ["hospital,patient,disease,image", "north,N001,1,images/a.png", "north,N002,0,images/b.png"]
    Path("patients.csv").write_text("\n".join(lines), encoding="utf-8")
    changed('features: [age, "*_volume"]', "image: image\n  size: [32, 32]").open()


def torn_patient() -> None:
    lines = [f"north,N{i // 2},{i},{i % 2},{'test' if i % 5 == 4 else 'train'}" for i in range(10)]
    Path("patients.csv").write_text("\n".join(["hospital,patient,age,disease,part", *lines]), encoding="utf-8")
    text = STUDY.replace(', "*_volume"', "").replace("folds: 2", "split: part")
    Path("study.yaml").write_text(text, encoding="utf-8")
    Study.read("study.yaml").run("results")


def not_finite(sites: list[str], **training: int) -> None:
    data = table_sites({"north": 10, "south": 10, "west": 10})
    for site in sites:
        data[site].inputs[0, 0] = float("inf")
    Federation(data, training=training).rounds()


class Forgetful(ServerPart):
    """Gives no step."""

    def finish(self, step: Step) -> None:  # type: ignore[override]
        """Nothing."""


def forgetful_part() -> None:
    SERVER_PARTS.add("forgetful")(Forgetful)
    try:
        Federation(table_sites(), [{"fedavg": {"server": ["forgetful"]}}]).rounds()
    finally:
        SERVER_PARTS.remove("forgetful")


def out_of_memory() -> None:
    raise Site(table_site("north", 8), Workspace()).failure("train", MemoryError())


def unforeseen() -> None:
    site = Site(table_site("north", 8), Workspace())
    site.data.inputs = None  # type: ignore[assignment]
    fields = {
        "fold": 0,
        "folds": 2,
        "validation": 0.0,
        "split_seed": 0,
        "small_sites": "train",
        "steps": [],
        "classes": 2,
    }
    site.handle("prepare", Message(fields))


def killed_worker() -> None:
    raise given_up(SitesLost(["north", "south"], "killed by signal 9"), 3)


def open_cluster() -> None:
    raise open_to_others("10.0.0.1:6379")


def used_folder() -> None:
    Path("results").mkdir()
    Path("results/study.yaml").write_text("study: Another\n", encoding="utf-8")
    Path("results/provenance.json").write_text('{"status": "finished"}', encoding="utf-8")
    changed("mlp", "logistic").run("results")


def used_export() -> None:
    Path("model").mkdir()
    Path("model/mine.txt").touch()
    with whole_folder(Path("model")):
        pass


def full_disk() -> None:
    raise write_error(Path("results/models/fedavg-seed0-fold1.safetensors"), OSError(errno.ENOSPC, ""))


def consortium_file(**changes: Any) -> Path:
    entries = {"consortium": "lungs", "coordinator": {"host": "localhost"}, "sites": ["aachen", "bonn"],
               "researchers": ["maria@hospital.org"]}  # fmt: skip
    Path("consortium.yaml").write_text(yaml.safe_dump(entries | changes), encoding="utf-8")
    return Path("consortium.yaml")


def kit_of_a_site() -> Path:
    from polyclinic.federation.consortium import Consortium
    from polyclinic.federation.kits import make_kits

    return make_kits(Consortium.read(consortium_file()), Path("kits"))["aachen"]


def wrong_consortium() -> None:
    from polyclinic.federation.consortium import Consortium

    Consortium.read(consortium_file(sites=["aachen", "St. Mary"]))


def wrong_kit() -> None:
    from polyclinic.federation.kit import Kit

    Kit.read(kit_of_a_site(), "researcher")


def researcher(clients: list[Any]) -> Any:
    from polyclinic.federation.kit import Kit
    from polyclinic.federation.session import Researcher

    info = SimpleNamespace(client_info=clients)
    return Researcher(
        SimpleNamespace(get_system_info=lambda: info), Kit(Path("kit"), "researcher", "maria@hospital.org")
    )


def other_public_sets() -> None:
    from polyclinic.data.opening.public import PublicFacts, check_alike

    north, south = (PublicFacts(found=n, used=n, fingerprint=str(n)) for n in (15, 14))
    check_alike({"north": north, "south": south})


def other_teacher() -> None:
    Path("study.yaml").write_text(STUDY, encoding="utf-8")
    fit_model(CheckedStudy.read("study.yaml"), Path("teacher"), Wanted("fedavg", rounds=1))
    text = STUDY.replace("fedavg", "{public_teacher: {weights: teacher, label: taught}}")
    Path("study.yaml").write_text(text.replace('[age, "*_volume"]', '["*_volume", age]'), encoding="utf-8")
    Study.read("study.yaml").run("results")


def refused_study() -> None:
    from polyclinic.federation.ends.policy import check_policy
    from polyclinic.federation.site_file import Policy

    declared = changed("rounds: 2", "rounds: 300").declaration
    allowed = [method.name for method in declared.study_methods if method.name != "fedavg"]
    check_policy("Aachen", Policy(methods=allowed, rounds=200, predictions=True), declared, "maria@hospital.org")


def wrong_site_file() -> None:
    from polyclinic.federation.site_file import SiteFile

    Path("site.yaml").write_text("data: {cases.csv: /srv/export/2026.csv}", encoding="utf-8")
    SiteFile.read(Path("site.yaml"))


def changed_log() -> None:
    from polyclinic.federation.audit_log import AUDIT_LOG, AuditLog, verify

    kit = kit_of_a_site()
    for _ in range(3):
        AuditLog(kit).add("answered")
    lines = (kit / AUDIT_LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    (kit / AUDIT_LOG).write_text("".join([lines[0], *lines[2:]]), encoding="utf-8")
    verify(kit)


def request_of_nobody() -> None:
    from polyclinic.federation.trust.answers import sign_request
    from polyclinic.federation.trust.requests import make_request

    request, _ = make_request("celle", "site", Path("celle"))
    sign_request(request, kit_of_a_site().parent)


def unreachable_budget() -> None:
    from polyclinic.privacy import Event, noise_for

    noise_for(0.5, 1e-5, lambda noise: [Event.gaussian(noise, 0.01, 2000), Event.pure(1.0)])


def spent_budget() -> None:
    from polyclinic.privacy import Budget
    from polyclinic.site.spending import budget_spent

    raise budget_spent("Aachen", Budget(7.0, 1e-5), 4)


def changed_ledger() -> None:
    from polyclinic.privacy import Event, Ledger

    ledger = Ledger(Path("privacy.jsonl"))
    for number in range(12):
        ledger.record("Aachen", [Event.gaussian(1.1)], run="fedavg", round=number)
    lines = ledger.path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[8] = lines[8].replace("1.1", "9.9")
    ledger.path.write_text("".join(lines), encoding="utf-8")
    Ledger(ledger.path)


def unsaid_end() -> None:
    from polyclinic.federation.remote.wire import Failure
    from polyclinic.federation.session import _taken

    raise Failure.model_validate(_taken(Path("nothing"), Path("results"), "3f1c09a2b7de")[0].failure).error("")


def list_of_one() -> None:
    import torch

    from polyclinic.secure import ServerRound, SiteRound, Terms, fit_shape

    names = ("Aachen", "Bonn", "Celle")
    terms = Terms(bytes(32), 3, 0, names, fit_shape(3), 32, 1)
    sites, server = {name: SiteRound(terms, name) for name in names}, ServerRound(terms)
    keys = server.keys({name: site.advertise() for name, site in sites.items()})
    boxes = server.boxes({name: site.share(keys) for name, site in sites.items()})
    sites["Aachen"].mask(torch.zeros(1, dtype=torch.int32), boxes["Aachen"])
    sites["Aachen"].agree(["Aachen"])


def empty_table() -> None:
    fit_model(CheckedStudy.read("study.yaml"), Path("model"), Wanted("fedavg", rounds=1))
    Path("empty.csv").write_text(Path("patients.csv").read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    open_table(read_model(Path("model")).description, Path("empty.csv"), None)


MISTAKES: dict[str, Callable[[], object]] = {
    "P101": lambda: Study.read("studdy.yaml"),
    "P102": lambda: changed("rounds: 2", "rounds: 0"),
    "P103": lambda: changed("fedavg", "fedprx"),
    "P104": lambda: changed("single", "{single: {server: fedadam}}"),
    "P105": lambda: changed("patients.csv", "${MY_TABLES}/patients.csv"),
    "P201": lambda: changed("patients.csv", "patient.csv").open(),
    "P202": lambda: changed("site: hospital", "site: Hospital").open(),
    "P203": lambda: changed("[age, ", "[age, sex, ").open(),
    "P204": missing_images,
    "P205": lambda: changed("  site:", '  where: {age: "> 100"}\n  site:').open(),
    "P206": torn_patient,
    "P207": lambda: changed("  site:", "  harmonisation: {combat: {reference_site: nort}}\n  site:").open(),
    "P208": lambda: find_entry("adnii"),
    "P211": other_public_sets,
    "P212": other_teacher,
    "P301": lambda: not_finite(["south"]),
    "P302": lambda: changed("model: mlp", "model: cnn").run("results"),
    "P303": out_of_memory,
    "P304": forgetful_part,
    "P305": unreachable_budget,
    "P306": spent_budget,
    "P401": unforeseen,
    "P402": lambda: not_finite(["south", "west"], quorum=2),
    "P403": killed_worker,
    "P404": list_of_one,
    "P405": open_cluster,
    "P501": used_folder,
    "P502": full_disk,
    "P503": lambda: changed("patients.csv", "package:mriqc-table/abide.tsv").open(),
    "P504": changed_ledger,
    "P601": wrong_consortium,
    "P602": wrong_kit,
    "P603": lambda: researcher([]).wait_for(["celle"], 0.0),
    "P604": refused_study,
    "P605": wrong_site_file,
    "P606": unsaid_end,
    "P607": changed_log,
    "P608": request_of_nobody,
    "P701": lambda: read_model(Path("nowhere")),
    "P702": empty_table,
    "P703": lambda: fit_model(CheckedStudy.read("study.yaml"), Path("model"), Wanted()),
    "P704": used_export,
}


def printed_for(mistake: Callable[[], object]) -> str:
    """What the command line prints for a mistake; lines of the program are N, since they move when it is edited."""
    with pytest.raises(PolyclinicError) as caught:
        mistake()
    error = caught.value
    return re.sub(r"(\.py line) \d+", r"\1 N", f"Error {error.code} {error.message}\n{error.hint}".rstrip() + "\n")


@pytest.mark.parametrize("code", TITLES)
def test_the_message_shown_for_an_error_is_the_one_printed(code: str, hospitals: Path) -> None:
    (shown,) = blocks(sections(text_of("errors.md"))[f"{code}: {TITLES[code]}"], "text")
    assert re.sub(r"(\.py line) \d+", r"\1 N", shown) == printed_for(MISTAKES[code])


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("P104", {"methods": [{"mix": {"server": "fedadam"}}]}),
    ("P103", {"methods": [{"fedavg": {"share": "none"}}]}),
    ("P104", {"methods": [{"fedprox": {"local": ["proximal"]}}]}),
    ("P104", {"methods": [{"fedsgd": {"local": ["proximal"]}}]}),
    ("P104", {"methods": ["fedsgd"], "training": {"optimizer": "adam"}}),
    ("P104", {"methods": ["scaffold"], "training": {"optimizer": "adam"}}),
    ("P104", {"methods": [{"fedavg": {"server": ["fedadam", "normalised"]}}]}),
    ("P104", {"methods": [{"fedce": {"server": ["fedce", "normalised"]}}]}),
    ("P104", {"methods": [{"heterofl": {"channel": ["secure_sum"]}}]}),
    ("P104", {"methods": [{"cyclic": {"server": "median"}}]}),
    ("P104", {"methods": ["incremental"], "training": {"early_stopping": 5}}),
    ("P104", {"methods": [{"dynamic_fusion": {"channel": ["secure_sum"]}}]}),
    ("P104", {"methods": ["fedsld"], "task": "regression"}),
    ("P104", {"methods": ["harmofl"]}),
    ("P104", {"methods": [{"fed_moe": {"local": ["tent"]}}]}),
    ("P104", {"methods": [{"fedsm": {"local": ["tent"]}}]}),
    ("P104", {"methods": ["tent"], "final_model": "tent"}),
    ("P104", {"methods": [{"fedsm": {"channel": ["secure_sum"]}}]}),
    (
        "P104",
        {
            "data": {"table": "t.csv", "site": "s", "label": "l", "features": "*", "bag": "b"},
            "model": "mean_pooling",
            "methods": ["fixmatch"],
        },
    ),
    (
        "P104",
        {
            "data": {"table": "t.csv", "site": "s", "label": "l", "image": "i", "size": [8, 8]},
            "model": "cnn",
            "methods": [{"harmofl": {"local": ["style_curves"]}}],
        },
    ),
    ("P104", {"methods": ["attention_mil"]}),
    ("P104", {"methods": ["fedmri"]}),
    ("P102", {"methods": ["fedavg", "fedavg"]}),
    ("P104", {"methods": ["single"], "evaluation": {"unseen_sites": ["single"]}}),
    ("P104", {"engine": {"precision": "mixed", "mode": "stacked"}}),
]


def test_what_the_page_of_methods_says_is_refused_is_refused() -> None:
    text = sections(text_of("methods.md"), 3)["What is refused"]
    assert re.findall(r"\((P\d+)\)", text) == [code for code, _ in REFUSED]
    base = {"data": {"table": "t.csv", "site": "s", "label": "l", "features": "*"}, "model": "logistic"}
    for code, entries in REFUSED:
        with pytest.raises(PolyclinicError, match=code):
            Study.of(base | entries)


def test_the_examples_of_composition_are_valid() -> None:
    base = {"data": {"table": "t.csv", "site": "s", "label": "l", "features": "*"}, "model": "logistic"}
    (block,) = blocks(sections(text_of("methods.md"), 3)["Composing methods"], "yaml")
    labels = [method.label for method in Study.of(base | yaml.safe_load(block)).declaration.study_methods]
    assert labels == [
        "fedavg", "fedavg(share=body)", "near", "no head", "fedprox(mu=0.1, share=no_norm, server=fedadam(lr=0.01))",
        "steps", "all three ends", "ditto over fedbn", "fedce(local=proximal)",
    ]  # fmt: skip


def test_folders_stand_in_the_order_that_is_enforced() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [part.strip().removeprefix("polyclinic.") for layer in layers for part in layer.split("|")]
    (line,) = re.findall(r"^cli -> .*$", text_of("architecture.md"), flags=re.MULTILINE)
    assert re.findall(r"\w+", line) == order


def test_numbers_are_those_of_the_program() -> None:
    text = " ".join(text_of("architecture.md").split())
    assert f"less than {STACK_BELOW / 1e6:g} million operations" in text
    assert f"more than {PROCESSES_ABOVE / 1e12:g} trillion operations" in text
    assert f"{len(threshold_grid())} thresholds, by class `[2, {len(threshold_grid()) + 1}]`" in text
    assert f"Dice at {len(MASK_THRESHOLDS)} thresholds" in text
    assert MOST_CLASSES == 100
    assert "more than a hundred" in text_of("errors.md")


# The first page and the studies of the project ------------------------------------------------------------------------


def test_links_of_the_first_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_the_first_study_of_the_first_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[str], tuple[int, str]]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = blocks(text, "yaml")
    quick = {"training": {"rounds": 1}, "evaluation": {"folds": 2, "bootstrap": 10}, "engine": {"threads": 1}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(yaml.safe_load(block) | quick), encoding="utf-8")
    lines = [f"{site},{site}{i},{('control', 'disease')[i % 2]},{i},{i * i % 7}" for site in "abc" for i in range(12)]
    table = "\n".join(["hospital,patient,diagnosis,vol_left,vol_right", *lines])
    (tmp_path / "patients.csv").write_text(table, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    commands = [line.partition("#")[0] for shell in blocks(text, "sh") for line in shell.splitlines()]
    run_all([line.removeprefix(".venv/bin/") for line in commands if "polyclinic" in line], command)
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_studies_of_the_project_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCLINIC_DATA", "/data")
    monkeypatch.setenv("POLYCLINIC_SURVEY", "/survey")
    monkeypatch.setenv("POLYCLINIC_PHANTOMS", "/phantoms")
    files = [*sorted((ROOT / "studies").glob("*.yaml")), ROOT / "src" / "polyclinic" / "study" / "demo.yaml"]
    assert len(files) > 1
    for path in files:
        assert Study.read(path).declaration.study_methods, path.name


@pytest.mark.parametrize("heading", PARTS)
def test_every_choice_of_an_entry_is_named(heading: str) -> None:
    told = {cells[0].strip("`"): " ".join(cells[1:]) for cells in rows(sections(text_of("study-file.md"))[heading])}
    for name, field in PARTS[heading].model_fields.items():
        for choices in re.findall(r"Literal\[(.*?)\]", str(field.annotation)):
            for choice in re.findall(r"'(\w+)'", choices):
                assert choice in names(told[name]), f"{name}: {choice}"
