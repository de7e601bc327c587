"""Studies of every kind between real processes: the same bytes as on one machine, also where two run at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers import write_image_study, write_number_study, write_survival_study, write_table_study
from polyclinic import Study
from polyclinic.data.phantom import Phantom
from polyclinic.data.phantom.write import Wanted, write_phantom
from polyclinic.federation.audit_log import AUDIT_LOG
from polyclinic.federation.job import COPIES, study_hash
from polyclinic.federation.kit import Kit
from polyclinic.federation.rehearse import RESEARCHER, all_parties
from polyclinic.federation.session import Researcher

pytest.importorskip("nvflare")
pytest.importorskip("nilearn")
pytestmark = pytest.mark.long

SITES = ("Aachen", "Bonn", "Celle")
SIZES = dict(zip(SITES, (30, 36, 26), strict=True))
ALLOWED = {"patients": 1, "floor": 1, "predictions": True, "overlays": True, "personal_models": True,
           "masks": True}  # fmt: skip
#: One split, so that each training is done once.
ONCE = {"holdout": 0.4, "bootstrap": 20}


def volumes(folder: Path) -> dict[str, Any]:
    """Tissues of phantom brains from three scanners; landmarks of the histogram come from all sites."""
    entries = planned(folder)
    entries["data"] |= {"preprocessing": {"spacing": 6, "size": [32, 40, 32], "intensity": "nyul"}, "patch": [16] * 3}
    entries |= {"model": {"unet": {"channels": [4, 8], "residual_units": 0}}, "methods": ["single", "fedavg", "fedbn"]}
    entries["final_model"] = "fedbn"
    entries["data"]["augmentation"] = [{"RandFlip": {"prob": 0.5, "spatial_axis": 0}}]
    return entries


def planned(folder: Path) -> dict[str, Any]:
    """Grid, boxes and network are chosen from what the sites say of their images."""
    write_phantom(Phantom(0, sites=len(SITES), spacing=6.0), 4, folder / "made", Wanted("nifti"))
    for kind in ("images", "masks"):
        (folder / "made" / kind).rename(folder / kind)
    table = pd.read_csv(folder / "made" / "manifest.csv", dtype=str)
    table["site"] = table["site"].map(dict(zip(sorted(table["site"].unique()), SITES, strict=True)))
    table[["site", "subject", "image", "mask"]].to_csv(folder / "cases.csv", index=False)
    automatic = {"spacing": "auto", "size": "auto", "intensity": "auto"}
    return {
        "data": {"table": "cases.csv", "site": "site", "subject": "subject", "image": "image", "mask": "mask",
                 "mask_classes": ["fluid", "grey", "white"], "preprocessing": automatic, "patch": "auto"},
        "task": "segmentation", "model": "auto", "methods": ["fedavg"],
        "training": {"rounds": 1, "batch_size": 2, "optimizer": {"adamw": {"lr": 0.01}}},
        "evaluation": {"folds": 2, "bootstrap": 20}, "engine": {"threads": 1, "mode": "sequential"},
    }  # fmt: skip


def pictures(folder: Path) -> dict[str, Any]:
    """Structures in grey images, with pictures of cases in the report, and images made from masks."""
    entries = write_image_study(folder, dict.fromkeys(SITES, 8))
    made = {
        "asyndgan": {"masks": 4, "generator_rounds": 1, "steps": 2, "network_steps": 2, "batch_size": 4, "width": 4}
    }
    methods = ["fedavg", {"fedprox": {"share": "no_norm"}}, made]
    return entries | {"report": {"overlays": True}, "methods": methods}


def harmonised(folder: Path) -> dict[str, Any]:
    """ComBat with covariates; some values are missing."""
    entries = write_table_study(folder, SIZES, features=4)
    table, source = pd.read_csv(folder / "cases.csv"), np.random.default_rng(3)
    table["age"] = source.integers(20, 80, len(table))
    table["x0"] = 2 * table["x0"] + 0.1 * table["age"] + table["site"].map(dict(zip(SITES, (0, 5, -3), strict=True)))
    table.loc[::9, "x1"] = np.nan
    table.to_csv(folder / "cases.csv", index=False)
    entries["data"] |= {"harmonisation": {"combat": {"covariates": ["age"]}}}
    return entries | {"model": "logistic", "methods": ["single", "fedavg"]}


def scaled(folder: Path) -> dict[str, Any]:
    """One scale for all sites, adaptive steps at the server, made cases, rules against corrupt sites, and models of all
    sites where one did not train."""
    entries = write_table_study(folder, SIZES)
    entries["data"] |= {"scaling": "federated"}
    rules = [["norm_bound", "geometric_median"], [{"krum": {"corrupt": 0}}, "fedyogi"]]
    robust = [{"fedavg": {"label": f"rule {number}", "server": rule}} for number, rule in enumerate(rules)]
    unseen = ["fedadam", "fedsm", "iop_fl"]
    entries["evaluation"] = {"holdout": 0.4, "unseen_sites": unseen, "predictions": "sites", "bootstrap": 100}
    made = {"asyndgan": {"generator_rounds": 2, "steps": 2, "network_steps": 3, "batch_size": 8, "checked": 20}}
    return entries | {"methods": [*unseen, "cyclic", {"ditto": {"weight": 0.5}}, made, *robust]}


def findings(folder: Path) -> dict[str, Any]:
    """Several labels, of which one site lacks a column."""
    entries = write_table_study(folder, SIZES, classes=3)
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    table["first"] = (table["diagnosis"] == "kind 1").astype(int).astype(str).where(table["site"] != "Bonn")
    table.rename(columns={"diagnosis": "kind"}).to_csv(folder / "cases.csv", index=False)
    rename(folder, "findings")
    del entries["data"]["label"]
    entries["data"]["findings"] = {"first": {}, "kind": {"classes": ["kind 0", "kind 1", "kind 2"]}}
    methods = ["single", "fedavg", "multi_task", {"graph_layer": {"depth": 1}}]
    return entries | {"task": "multi_label", "methods": methods, "final_model": "multi_task"}


def survival(folder: Path) -> dict[str, Any]:
    """Cox's model."""
    entries = write_survival_study(folder, SIZES)
    rename(folder, "survival")
    return entries | {"methods": ["single", "cross", "ensemble", "fedavg", "fedsgd"]}


def regression(folder: Path) -> dict[str, Any]:
    """The age of patients, two seeds."""
    entries = write_number_study(folder, SIZES)
    rename(folder, "regression")
    entries["training"] |= {"rounds": 4}
    return entries | {"methods": ["single", "fedavg", "fedavgm"], "seeds": [0, 1]}


def outlines(folder: Path) -> dict[str, Any]:
    """Masks at one site, boxes and names of structures at others, and rounds that need none of them."""
    entries = write_image_study(folder, dict.fromkeys(SITES, 10))
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    weak, number = table["site"] != SITES[0], table.index % 10
    table["box"] = np.where(weak & (number < 4), "1 1 6 6", "")
    table["seen"] = np.where(weak & (number >= 4) & (number < 6), "foreground", "")
    table.loc[weak & (number < 6), "mask"] = ""
    table.to_csv(folder / "cases.csv", index=False)
    entries["data"] |= {"box": "box", "label": "seen"}
    methods = [{"fedmix": {"agreement": 0.0, "filled": 0.0}}, {"fedmoco": {"pretraining_rounds": 1}}]
    return entries | {"methods": methods, "evaluation": ONCE}


def reconstructed(folder: Path) -> dict[str, Any]:
    """Images from part of their k-space; one site shares latent codes."""
    entries = write_image_study(folder, dict.fromkeys(SITES, 8))
    del entries["data"]["mask"]
    entries["data"] |= {"undersampling": {"acceleration": 2}}
    entries |= {"task": "reconstruction", "model": {"unrolled": {"network": entries["model"]}}, "evaluation": ONCE}
    return entries | {"methods": ["fedmri", {"fl_mrcm": {"target": SITES[0]}}]}


def bags(folder: Path) -> dict[str, Any]:
    """One label for several rows, in an order by chance."""
    entries = write_table_study(folder, dict.fromkeys(SITES, 64), features=4)
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    first = table.groupby(["site", table.index % 64 // 4])[["patient"]].transform("first")
    table["patient"], table["diagnosis"] = first["patient"], "kind " + (table.index // 4 % 2).astype(str)
    table.drop(table.index[1::7]).sample(frac=1, random_state=1).to_csv(folder / "cases.csv", index=False)
    entries["data"] |= {"bag": {"most": 3}}
    model = {"gated_attention": {"encoder": {"mlp": {"hidden": [6]}}, "hidden": 4}}
    return entries | {"model": model, "methods": ["attention_mil"], "evaluation": ONCE}


def networks(folder: Path) -> dict[str, Any]:
    """Sites with networks of their own, which learn from each other on public cases."""
    entries = write_table_study(folder, SIZES)
    rename(folder, "networks")
    public = np.random.default_rng(4).normal(size=(20, 3))
    pd.DataFrame(np.round(public, 4), columns=["x0", "x1", "x2"]).to_csv(folder / "public.csv", index=False)
    entries["data"]["public"] = "networks/public.csv"
    methods = ["single", "cross", "fedmd", {"feddf": {"steps": 4}}]
    return entries | {"networks": {"Bonn": "logistic"}, "methods": methods, "evaluation": ONCE}


def rename(folder: Path, kind: str) -> None:
    """Patients are called as those of no other study."""
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.replace("MRN-", f"{kind}-"))


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    kind.__name__: kind
    for kind in (volumes, planned, pictures, harmonised, scaled, findings, outlines, reconstructed, bags, networks,
                 survival, regression)
}  # fmt: skip


class Hospitals:
    """All parties; each site has its own rows and files of every kind of data."""

    def __init__(self, folder: Path, researcher: Researcher, parties: list[str]) -> None:
        self.folder, self.researcher, self.parties = folder, researcher, parties

    def run(self, kind: str, out: Path, researcher: Researcher | None = None) -> None:
        """Run a study there."""
        (researcher or self.researcher).run(self.folder / f"{kind}.yaml", out / "there", self.parties, lambda now: None)

    def compare(self, kind: str, out: Path) -> None:
        """Run a study here, and compare all tables of the results with those from there."""
        Study.read(self.folder / f"{kind}.yaml").run(out / "here")
        assert tables(out / "here") == tables(out / "there")
        for name in tables(out / "here"):
            here, there = (out / place / name for place in ("here", "there"))
            if name == "rounds.csv":  # has times
                rounds = [pd.read_csv(path).drop(columns="seconds") for path in (here, there)]
                pd.testing.assert_frame_equal(*rounds, check_exact=True)
            else:
                assert here.read_bytes() == there.read_bytes(), name
        assert not (out / "there" / "sites").exists()
        models = [{path.name: path.read_bytes() for path in (out / place).glob("model/[mptw]*.[sy]*")}
                  for place in ("here", "there")]  # fmt: skip
        assert models[0] == models[1]


def tables(results: Path) -> list[str]:
    """All tables of results but what is the sites' own."""
    found = [str(path.relative_to(results)) for path in results.rglob("*.csv")]
    return sorted(name for name in found if not name.startswith("sites/"))


def give(source: Path, to: Path, own: pd.DataFrame) -> None:
    """Put a site's rows into its own folder, and the files that they name."""
    to.mkdir()
    own.to_csv(to / "cases.csv", index=False)
    if (source / "public.csv").exists():
        copyfile(source / "public.csv", to / "public.csv")
    for column in {"image", "mask"} & set(own.columns):
        for name in filter(None, own[column]):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            copyfile(source / name, to / name)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("kinds")
    files: dict[str, dict[str, Any]] = {}
    for number, site in enumerate(SITES, start=1):
        (folder / f"at {site}").mkdir()
        data = {kind: str(folder / f"at {site}" / kind) for kind in KINDS}
        files[f"site-{number}"] = {"name": site, "device": "cpu", "policy": ALLOWED, "data": data}
    for kind, make in KINDS.items():
        (folder / kind).mkdir()
        entries = make(folder / kind)
        entries["data"]["table"] = f"{kind}/cases.csv"
        entries["evaluation"] = {"predictions": "coordinator"} | entries["evaluation"]
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries | {"study": kind}))
        table = pd.read_csv(folder / kind / "cases.csv", dtype=str, keep_default_na=False)
        for site in SITES:
            give(folder / kind, folder / f"at {site}" / kind, table[table["site"] == site])
    with all_parties(folder / "kits", files) as researcher:
        copies = folder / "kits" / "coordinator" / COPIES / "networks"  # on which the server distils
        copies.mkdir(parents=True)
        copyfile(folder / "networks" / "public.csv", copies / "public.csv")
        yield Hospitals(folder, researcher, list(files))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("survival", "regression")])
def test_a_study_of_this_kind_has_the_same_tables(hospitals: Hospitals, tmp_path: Path, kind: str) -> None:
    hospitals.run(kind, tmp_path)
    hospitals.compare(kind, tmp_path)
    assert {"results.csv", "summary.csv", "rounds.csv"} <= set(tables(tmp_path / "there"))


def test_two_studies_at_once_have_nothing_of_each_other(
    hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What goes to the standard output of each connection is put aside, which is one for all threads.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    kinds, kit = ("survival", "regression"), Kit.read(hospitals.folder / "kits" / RESEARCHER, "researcher")

    def run(kind: str) -> None:
        with Researcher.connect(kit) as researcher:
            hospitals.run(kind, tmp_path / kind, researcher)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, kinds))
    for kind in kinds:
        hospitals.compare(kind, tmp_path / kind)
    lines = (hospitals.folder / "kits" / "coordinator" / AUDIT_LOG).read_text().splitlines()
    events = [event for line in lines if (event := json.loads(line)["event"]).startswith("study")]
    assert events[-4:] == ["study begun"] * 2 + ["study ended"] * 2  # they did run at once
    marks = {kind: study_hash((hospitals.folder / f"{kind}.yaml").read_text())[:16] for kind in kinds}
    for party, site in zip(hospitals.parties, SITES, strict=True):
        for kind, other in (kinds, kinds[::-1]):
            folder = hospitals.folder / "kits" / party / "studies" / marks[kind]
            content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
            assert f"{kind}-{site[0]}0000".encode() in content
            assert other.encode() not in content
