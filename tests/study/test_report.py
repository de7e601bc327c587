"""The report: from results folders as a run writes them, made here from random scores or by hand."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from markupsafe import Markup
from safetensors.numpy import save_file
from scipy.stats import t as student

from helpers import with_runs
from polyclinic.errors import ResultsError
from polyclinic.notes import Note
from polyclinic.study.columns import COMPARED, COMPARED_SITES
from polyclinic.study.drawing import shorten
from polyclinic.study.report.answer import answer, not_better, p_text
from polyclinic.study.report.figures import heat
from polyclinic.study.report.folder import Folder, estimate
from polyclinic.study.report.page import CONTENT, render, write_report
from polyclinic.study.report.tables import (
    bytes_text,
    confusion,
    costs,
    count_text,
    cross_matrix,
    main_table,
    nested_rows,
    plain,
    seconds_text,
    site_rows,
    unseen_tables,
)

UNSEEN = " (unseen site)"
METHODS = ["single", "cross", "ensemble", "mix", "fedsgd", "fedavg", "fedprox", "fedavg (unseen site)"]
SKILL = {"single": 0.9, "ensemble": 1.2, "mix": 1.7, "fedsgd": 1.25, "fedavg": 1.4, "fedprox": 1.55}
ABIDE = {
    "CALTECH": 38, "CMU": 27, "KKI": 55, "LEUVEN": 64, "MAX_MUN": 57, "NYU": 184, "OHSU": 28, "OLIN": 36, "PITT": 57,
    "SBL": 30, "SDSU": 36, "STANFORD": 40, "TRINITY": 49, "UCLA": 99, "UM": 145, "USM": 101, "YALE": 56,
}  # fmt: skip


CLASSES = {2: ["accept", "exclude"], 3: ["naevus", "melanoma", "keratosis"]}
#: Without the kind of run, see `with_runs`.
RESULTS = ["method", "seed", "fold", "trained_on", "tested_on", "metric", "value"]
ROUNDS = ["method", "seed", "fold", "round", "site", "seconds", "bytes_up", "bytes_down", "examples", "loss"]


class Maker:
    """Writes a results folder as a run would: scores are random, metrics follow from them.

    Args:
        folder: where to write.
        sites: name -> number of cases.
        empty: sites that have cases of the first class only.
    """

    def __init__(self, folder, sites, *, methods=METHODS, classes=2, folds=5, seeds=(0,), empty=(), rounds=30):
        self.folder, self.sites, self.methods, self.classes, self.empty = folder, sites, methods, classes, empty
        self.folds, self.seeds, self.steps = folds, seeds, rounds
        self.random = np.random.default_rng(7)
        self.names = CLASSES.get(classes) or [f"class {k}" for k in range(classes)]
        chances = [0.7, 0.3] if classes == 2 else [1 / classes] * classes
        self.labels = {
            site: np.zeros(count, int) if site in empty else self.random.choice(classes, count, p=chances)
            for site, count in sites.items()
        }
        folder.mkdir(parents=True, exist_ok=True)

    def write(self):
        """A classification study."""
        runs = [(method, seed, fold) for method in self.methods for seed in self.seeds for fold in range(self.folds)]
        predictions = [
            self.predict(method, seed, fold, site, trainer)
            for method, seed, fold in runs
            for trainer in (self.sites if method == "cross" else [None])
            for site in self.sites
            if site != trainer
        ]
        table = pd.concat(predictions)
        rows = []
        for (method, seed, fold), run in table.groupby(["method", "seed", "fold"], sort=False):
            for (trained, site), cases in run.groupby(["trained_on", "site"], sort=False):
                rows += [(method, seed, fold, trained, site, *item) for item in self.score(cases).items()]
            own = method == "single"
            for trained, cases in [("own", run)] if own else run.groupby("trained_on", sort=False):
                rows += [(method, seed, fold, trained, "all", *item) for item in self.score(cases).items()]
        self.results = pd.DataFrame(rows, columns=RESULTS)
        with_runs(self.results).to_csv(self.folder / "results.csv", index=False)
        with_runs(table).to_csv(self.folder / "predictions.csv", index=False)
        metrics = list(self.results["metric"].unique())
        self.study("classification", metrics)
        self.summary()
        self.rounds(metrics[0])
        self.site_table()
        self.rest()
        return self.folder

    def score(self, cases):
        from sklearn.metrics import brier_score_loss, roc_auc_score

        truth = cases["label"]
        if self.classes > 2:
            called = cases[[f"score_{k}" for k in range(self.classes)]].to_numpy().argmax(1)
            return {"bac": (called == truth).mean()}
        auc = roc_auc_score(truth, cases["score"]) if truth.nunique() == 2 else np.nan
        correct = ((cases["score"] > 0.5) == truth).mean()
        return {"auc": auc, "acc": correct, "brier": brier_score_loss(truth, cases["score"])}

    def predict(self, method, seed, fold, site, trainer):
        truth = self.labels[site][fold :: self.folds]
        base = method.removesuffix(UNSEEN)
        skill = SKILL.get(base, 0.6) - 0.35 * (base != method) + self.random.normal(0, 0.12)
        if self.classes == 2:
            logits = self.random.normal(0, 1, len(truth)) + skill * (2 * truth - 1) - 0.7
            columns = {"score": 1 / (1 + np.exp(-1.3 * logits))}
        else:
            logits = self.random.normal(0, 1, (len(truth), self.classes)) + skill * np.eye(self.classes)[truth]
            shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            columns = {"score": shares.max(1)} | {f"score_{k}": shares[:, k] for k in range(self.classes)}
        trained = {"single": site, "cross": trainer, "mix": "pool"}.get(method, "federation")
        subjects = [f"pseudonym{site}{fold}{k}" for k in range(len(truth))]
        run = {"method": method, "seed": seed, "fold": fold, "site": site, "subject": subjects}
        more = {"case": range(len(truth)), "label": truth, **columns, "threshold": 0.5, "trained_on": trained}
        return pd.DataFrame(run | more)

    def segment(self, *, shape=(150, 200), channels=3):
        """A segmentation study, with pictures of discs."""
        rows, tensors, scores = [], {}, {}
        for method in self.methods:
            for fold in range(self.folds):
                for site in [*self.sites, "all"]:
                    dice = 0.7 + 0.08 * SKILL.get(method, 1.0) + self.random.normal(0, 0.02)
                    own = "own" if site == "all" else site
                    trained = own if method == "single" else "federation"
                    rows.append((method, 0, fold, trained, site, "dice", dice))
                    rows.append((method, 0, fold, trained, site, "hd95", 40 * (1 - dice)))
            for site in self.sites:
                for which, slip in (("best", 2), ("median", 6), ("worst", 22)):
                    prefix = f"{method}/{site}/{which}"
                    pictures = self.picture(shape, channels, slip)
                    tensors |= {f"{prefix}/{part}": value for part, value in pictures.items()}
                    scores[prefix] = f"{0.95 - slip / 60:.4f}"
        self.results = pd.DataFrame(rows, columns=RESULTS)
        with_runs(self.results).to_csv(self.folder / "results.csv", index=False)
        save_file(tensors, self.folder / "overlays.safetensors", metadata={"scores": json.dumps(scores)})
        self.study("segmentation", ["dice", "hd95"])
        self.summary()
        self.rounds("dice")
        self.site_table(foreground=True)
        self.rest()
        return self.folder

    def picture(self, shape, channels, slip):
        down, across = np.mgrid[: shape[0], : shape[1]]
        down, across = (down - shape[0] / 2) / 0.3 / shape[0], (across - shape[1] / 2) / 0.25 / shape[1]
        mask = down**2 + across**2 < 1
        prediction = (down - slip / 0.3 / shape[0]) ** 2 + across**2 < 1
        shade = 200 - 90 * mask + self.random.normal(0, 8, shape)
        image = np.clip(np.stack([shade, shade * 0.8, shade * 0.75])[:channels], 0, 255).astype(np.uint8)
        return {"image": image, "mask": mask.astype(np.uint8), "prediction": prediction.astype(np.uint8)}

    def study(self, task, metrics):
        methods = [name for name in self.methods if not name.endswith(UNSEEN)]
        optimizer = {"sgd": {"lr": 0.05, "momentum": 0.9}}
        parts = {"share": "all", "server": {"mean": {}}, "local": []}
        study = {
            "study": "Is this scan good enough? Quality rating from image measures",
            "data": {"table": "abide.csv", "site": "site", "label": "rater_3", "scaling": "per_site"},
            "task": task,
            "model": {"mlp": {"hidden": [64, 32], "dropout": 0.0}},
            "training": {"rounds": 30, "local_epochs": 1, "batch_size": 32, "optimizer": optimizer},
            "evaluation": {"folds": self.folds, "metrics": metrics, "threshold": "validation", "best_round": "loss"},
            "methods": [{m: {"label": m, **({"mu": 0.1, **parts} if m == "fedprox" else {})}} for m in methods],
            "seeds": list(self.seeds),
            "engine": {"mode": "auto"},
        }
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True))

    def summary(self):
        rows = []
        for (method, metric), group in self.results.groupby(["method", "metric"], sort=False):
            for over in ("all", "sites"):
                part = group[(group["tested_on"] == "all") == (over == "all")]
                runs = part.groupby(["seed", "fold"])["value"].mean()
                mean, deviation = runs.mean(), runs.std()
                half = 2.1 * deviation / np.sqrt(len(runs))
                row = {"method": method, "metric": metric, "over": over, "mean": mean, "deviation": deviation}
                row |= {"low": mean - half, "high": mean + half, "interval": "bootstrap over patients within site"}
                for other in ("single", "fedavg"):
                    same = [r for r in rows if (r["method"], r["metric"], r["over"]) == (other, metric, over)]
                    difference = mean - same[0]["mean"] if same else np.nan
                    p = np.exp(-abs(difference) * 120)
                    row |= {f"vs_{other}": difference, f"p_{other}": p, f"p_{other}_adjusted": min(1, 4 * p)}
                rows.append(row | {"n": len(runs)})
        with_runs(pd.DataFrame(rows)).to_csv(self.folder / "summary.csv", index=False)

    def rounds(self, metric):
        rows = []
        trained = [method for method in self.methods if method not in ("cross", "ensemble")]
        for method, seed, fold in ((m, s, f) for m in trained for s in self.seeds for f in range(self.folds)):
            lift = self.random.normal(0, 0.01)
            for step in range(1, self.steps + 1):
                for site, count in (
                    {"pool": sum(self.sites.values())}.items() if method == "mix" else self.sites.items()
                ):
                    loss = 0.25 + 0.6 * np.exp(-step / 5) + self.random.normal(0, 0.02) + lift
                    score = 0.86 - 0.3 * np.exp(-step / 5) + self.random.normal(0, 0.01) + lift
                    size = 0 if method in ("single", "mix") else 43_210
                    row = (method, seed, fold, step, site, 0.002 * count / 50, size, size, count, loss)
                    rows.append((*row, loss + 0.06 + step / 600, score))
        table = pd.DataFrame(rows, columns=[*ROUNDS, "validation_loss", f"validation_{metric}"])
        with_runs(table).to_csv(self.folder / "rounds.csv", index=False)

    def site_table(self, *, foreground=False):
        rows = []
        for place, (site, count) in enumerate(self.sites.items()):
            rejected = place % 3
            row = {"site": site, "found": count + rejected, "used": count, "rejected": rejected}
            row |= {"reasons": f"label missing: {rejected}" if rejected else "", "patients": count - place % 2}
            if foreground:
                row["foreground"] = 0.08 + place / 100
            else:
                row |= {f"class: {name}": int((self.labels[site] == k).sum()) for k, name in enumerate(self.names)}
            few = site in self.empty
            row |= {"missing": 3 * place, "duplicates": 0, "scored": not few}
            rows.append(row | {"note": "can't be scored by itself: 0 of 'exclude'" if few else ""})
        pd.DataFrame(rows).to_csv(self.folder / "sites.csv", index=False)

    def rest(self):
        notes = [
            Note("N204", "Column size_x is constant at 4 sites."),
            Note("N202", "2 rows are duplicates of others."),
        ]
        (self.folder / "notes.json").write_text(json.dumps([note.to_json() for note in notes]))
        provenance = {
            "versions": {"polyclinic": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
            "seeds": list(self.seeds),
            "fingerprint": "9f2c" * 16,
            "machine": {"processor": "x86_64", "cores": 2},
            "engine": {"plan": "stacked: all sites at once"},
            "started": "2026-03-01T10:00:00Z",
            "finished": "2026-03-01T10:04:10Z",
            "seconds": 250.1,
            "threads": 1,
        }
        (self.folder / "provenance.json").write_text(json.dumps(provenance))
        (self.folder / "models").mkdir(exist_ok=True)
        save_file({"w": np.zeros(10_000, np.float32)}, self.folder / "models" / "fedavg-seed0-fold0.safetensors")


class Page(HTMLParser):
    """What a browser would make of the page: elements that are not closed, links, what is loaded, what has no words."""

    VOID = ("meta", "br", "wbr", "img")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.loaded, self.wordless = [], [], [], [], [], []
        self.words = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.loaded += [attributes[key] for key in ("src", "srcset", "data", "action") if key in attributes]
        self.loaded += [attributes["href"]] if tag == "link" else []
        if tag == "img" and not attributes.get("alt"):
            self.wordless.append(tag)
        if tag == "svg" and not (attributes.get("aria-label") or attributes.get("aria-hidden")):
            self.wordless.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


SITES = {"<script>alert(1)</script>": 60, "NA": 50, "$\\alpha$ \"q\" --> & 'co'": 40}
SMALL = ["single", "cross", "mix", "fedavg", "fedavg" + UNSEEN]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small study with site names that could break a page; at the site NA one class is missing."""
    folder = tmp_path_factory.mktemp("report") / "results"
    return Maker(folder, SITES, methods=SMALL, folds=2, empty=("NA",), rounds=3).write()


@pytest.fixture(scope="module")
def text(made):
    return write_report(made).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    """The least study that has every section."""
    maker = Maker(
        tmp_path_factory.mktemp("little"), {"A": 60, "B": 50}, methods=["single", "fedavg"], folds=2, rounds=2
    )
    return maker.write()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_whole_loads_nothing_and_has_words_for_every_figure(page):
    assert page.open == []
    assert all(one.startswith("data:") for one in page.loaded)
    assert "script" not in page.tags
    assert page.wordless == []
    assert page.tags.count("svg") > 12


def test_page_has_unique_ids_and_every_link_leads_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_page_has_every_section(page):
    for title in (
        "The answer in short", "What was asked", "Sites and cases", "Results site by site",
        "Each site's model at the other sites", "ROC and calibration", "Training over the rounds", "Time and traffic",
        "Notes", "Model card", "Provenance and study file",
    ):  # fmt: skip
        assert page.text.count(title) >= 2  # once in the contents, once as a heading
    assert "Which classes are mixed up" not in page.text
    assert "Not a medical device." in page.text
    assert "fedavg-seed0-fold0.safetensors" in page.text


def test_names_of_sites_are_text_and_never_markup(page):
    assert "<script>alert(1)</script>" in page.text
    assert "$\\alpha$ \"q\" --> & 'co'" in page.text


def test_pseudonyms_are_not_in_the_page(made, text):
    assert "pseudonym" in (made / "predictions.csv").read_text()
    assert "pseudonym" not in text


def test_same_folder_gives_same_bytes(little, tmp_path):
    first = write_report(little)
    assert first == little / "report.html"
    shutil.copytree(little, tmp_path / "elsewhere")
    second = write_report(tmp_path / "elsewhere", tmp_path / "new" / "page.html")
    assert second == tmp_path / "new" / "page.html"
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    "gone",
    [
        {
            "study.yaml": "study.yaml with every default",
            "notes.json": "Column size_x",
            "provenance.json": "versions › torch",
        },
        {"summary.csv": "Underlined bold", "rounds.csv": "Training over the rounds"},
        {"predictions.csv": "ROC and calibration", "sites.csv": "Sites and cases"},
    ],
)
def test_without_a_file_its_section_is_left_out(little, tmp_path, page, gone):
    shutil.copytree(little, tmp_path / "part", ignore=shutil.ignore_patterns(*gone))
    rest = Page(write_report(tmp_path / "part").read_text(encoding="utf-8"))
    assert rest.open == []
    for words in gone.values():
        assert words in page.text
        assert words not in rest.text


def test_without_summary_the_answer_says_so(tmp_path):
    folder = by_hand(tmp_path, [("single", "A", "A", 0.5)], None)
    assert [str(one) for one in answer(Folder(folder))] == [
        "No method can be called best: summary.csv is missing or has no number for Area under the ROC curve."
    ]


def test_numbers_that_are_all_missing_still_make_a_page(made, tmp_path):
    for name in ("results", "summary", "rounds", "predictions", "sites"):
        table = pd.read_csv(made / f"{name}.csv", keep_default_na=False, na_values={"value": [""]})
        numbers = [c for c in table.select_dtypes("number") if c not in ("seed", "fold", "round", "label")]
        table.assign(**dict.fromkeys(numbers, np.nan)).to_csv(tmp_path / f"{name}.csv", index=False)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No method can be called best" in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


# --- folders that can't be used ---------------------------------------------------------------------------------------


def test_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(ResultsError, match=r"P501 There is no results.csv in .* Give the folder that `polyclinic run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("results.csv", "method,run,seed,fold,trained_on,tested_on,metric,value\n", "P501 results.csv has no rows"),
        ("results.csv", "", "P501 results.csv in the results folder can't be read: No columns to parse"),
        (
            "results.csv",
            "method,run,seed\nfedavg,plain,0\n",
            "P501 results.csv .* can't be read: column 'fold' is missing",
        ),
        ("results.csv", "method,seed,fold\nfedavg,0,0\n", "P501 .*results.csv has no column `run`: an older version"),
        ("summary.csv", "method,run,metric\n", "P501 summary.csv .* can't be read: column 'over' is missing"),
        ("provenance.json", "{", "P501 provenance.json .* can't be read: Expecting property name"),
        ("study.yaml", "a: [", "P501 study.yaml .* can't be read: while parsing"),
        ("overlays.safetensors", "no tensors", "P501 overlays.safetensors .* can't be read: "),
    ],
)
def test_unreadable_file_is_named(tmp_path, name, content, sentence):
    by_hand(tmp_path, [("fedavg", "federation", "A", 0.5)], None)
    (tmp_path / name).write_text(content)
    with pytest.raises(ResultsError, match=sentence):
        write_report(tmp_path)


# --- the answer -------------------------------------------------------------------------------------------------------


def by_hand(folder, results, summary, metric="auc"):
    """A folder with (method, trained_on, tested_on, value) as results and dictionaries as rows of the summary."""
    rows = [(method, 0, 0, trained, tested, metric, value) for method, trained, tested, value in results]
    with_runs(pd.DataFrame(rows, columns=RESULTS)).to_csv(folder / "results.csv", index=False)
    if summary is not None:
        plain_row = {"metric": metric, "over": "all", "deviation": 0.01, "low": np.nan, "high": np.nan}
        with_runs(pd.DataFrame([plain_row | row for row in summary])).to_csv(folder / "summary.csv", index=False)
    return folder


def said(folder):
    return Markup(" ").join(answer(Folder(folder))).striptags()


METHOD_ROWS = [(method, "federation", "A", 0.8) for method in ("single", "mix", "fedavg", "fedprox")]


def test_answer_with_a_difference_beyond_chance_and_one_that_is_not(tmp_path):
    summary = [
        {"method": "single", "mean": 0.70},
        {"method": "mix", "mean": 0.84},
        {"method": "fedavg", "mean": 0.80},
        {"method": "fedprox", "mean": 0.82, "low": 0.78, "high": 0.86, "vs_single": 0.12, "p_single_adjusted": 0.0004,
         "vs_fedavg": 0.02, "p_fedavg_adjusted": 0.31},
    ]  # fmt: skip
    assert said(by_hand(tmp_path, METHOD_ROWS, summary)) == (
        "Of the 4 methods compared, fedprox did best among those that leave the data at the sites. Area under the ROC "
        "curve: 0.820 (95 % interval 0.780 to 0.860), measured on the test predictions of all sites together. "
        "Each site training alone (single) reached 0.700: the difference of +0.120 is beyond chance (p < 0.001 after "
        "correction for the number of comparisons). Plain federated averaging (fedavg) reached 0.800: the difference "
        "of +0.020 is not beyond chance (p = 0.310 after correction), so this study does not show that fedprox is "
        "better. All this is about the models as they were trained here, with one seed, and not about the methods: "
        "whether another training would come out the same is not known. With several seeds chance in training counts. "
        "Training on all data in one place (mix), which federated learning avoids, reached 0.840."
    )


def test_the_answer_rests_on_what_is_found_within_sites(tmp_path):
    """By the sum of all sites fedavg is best; within sites fedprox is."""
    summary = [
        {"method": "fedavg", "mean": 0.95},
        {"method": "fedprox", "mean": 0.90},
        {"method": "single", "over": "sites", "mean": 0.70},
        {"method": "fedavg", "over": "sites", "mean": 0.80},
        {"method": "fedprox", "over": "sites", "mean": 0.82, "low": 0.78, "high": 0.86, "vs_single": 0.11,
         "p_single_adjusted": 0.0004, "vs_fedavg": 0.03, "p_fedavg_adjusted": 0.31},
    ]  # fmt: skip
    folder = by_hand(tmp_path, [row for row in METHOD_ROWS if row[0] != "mix"], summary)
    rows = [
        ("fedprox", "plain", "auc", "single", 3, 0.11, 0.05, 0.17, 0.0002, 0.0004, 0.0, 0.0, 0.02, 0.2),
        ("fedprox", "plain", "auc", "fedavg", 3, 0.03, -0.04, 0.1, 0.3, 0.31, 0.0025, 0.4, -0.1, 0.16),
        ("fedavg", "plain", "auc", "fedprox", 3, -0.03, -0.1, 0.04, 0.3, np.nan, 0.0025, 0.4, -0.16, 0.1),
    ]
    pd.DataFrame(rows, columns=COMPARED).to_csv(folder / "comparisons.csv", index=False)
    sites = [("fedprox", "plain", "auc", "fedavg", site, 0.03, 0.02, 1 / 3) for site in "ABC"]
    pd.DataFrame(sites, columns=COMPARED_SITES).to_csv(folder / "site_comparisons.csv", index=False)
    assert said(folder) == (
        "Of the 3 methods compared, fedprox did best. Area under the ROC curve: 0.820 (95 % interval 0.780 to 0.860), "
        "measured as the mean over the sites. Each site training alone (single) reached 0.700: the difference of "
        "+0.110 within sites (95 % interval +0.050 to +0.170) is beyond chance (p < 0.001 after correction for the "
        "number of comparisons). A hospital that is not among these may expect a difference from +0.020 to +0.200. "
        "Plain federated averaging (fedavg) reached 0.800: the difference of +0.030 within sites (95 % interval −0.040 "
        "to +0.100) is not beyond chance (p = 0.310 after correction), so this study does not show that fedprox is "
        "better. A hospital that is not among these may expect a difference from −0.100 to +0.160. The second is "
        "fedavg with 0.800; that fedprox is not better than it has the probability 0.15. All this is about the "
        "models as they were trained here, with one seed, and not about the methods: whether another training "
        "would come out the same is not known. With several seeds chance in training counts. On the predictions of "
        "all sites put together the order is another: fedavg did best with 0.950. (That also rewards knowing how "
        "frequent the finding is at each site.)"
    )
    page = render(Folder(folder))
    assert "Differences within sites" in page
    assert '<span class="mark up">▲</span> +0.110' in page
    assert "0.050 (40\u00a0%)" in page
    assert "a new hospital" in page


@pytest.mark.parametrize(
    ("difference", "lower", "expected"), [(0.1, False, 0.1), (-0.1, False, 0.9), (-0.1, True, 0.1)]
)
def test_how_probable_it_is_that_the_best_is_not_better(difference, lower, expected):
    assert not_better({"difference": difference, "p": 0.2}, higher_is_better=not lower) == pytest.approx(expected)


def test_answer_says_nothing_of_one_seed_where_there_are_two(tmp_path):
    summary = [
        {"method": "single", "mean": 0.7},
        {"method": "fedavg", "mean": 0.8, "vs_single": 0.1, "p_single_adjusted": 0.01},
    ]
    folder = by_hand(tmp_path, [row for row in METHOD_ROWS if row[0] in ("single", "fedavg")], summary)
    assert "with one seed" in said(folder)
    table = pd.read_csv(folder / "results.csv")
    pd.concat([table, table.assign(seed=1)]).to_csv(folder / "results.csv", index=False)
    assert "with one seed" not in said(folder)


def test_the_report_knows_methods_by_the_study_file_and_not_by_their_labels(tmp_path):
    """mix is called single, single is called "a (unseen site)", fedavg is called cross, and cross is called mix."""
    called = {"mix": "single", "single": "a (unseen site)", "fedavg": "cross", "cross": "mix"}
    results = [("single", "pool", "A", 0.9), ("a (unseen site)", "A", "A", 0.7), ("cross", "federation", "A", 0.8)]
    results += [("a (unseen site)", "B", "B", 0.6), ("mix", "A", "B", 0.5), ("mix", "B", "A", 0.4)]
    rows = [(method, "plain", 0, 0, trained, tested, "auc", value) for method, trained, tested, value in results]
    rows.append(("a", "unseen", 0, 0, "federation", "A", "auc", 0.55))
    pd.DataFrame(rows, columns=["method", "run", *RESULTS[1:]]).to_csv(tmp_path / "results.csv", index=False)
    means = {"single": 0.9, "a (unseen site)": 0.65, "cross": 0.8, "mix": 0.45}
    lines = [(method, "plain", "auc", "all", mean, 0.1, np.nan, np.nan) for method, mean in means.items()]
    lines.append(("a", "unseen", "auc", "all", 0.55, 0.1, np.nan, np.nan))
    columns = ["method", "run", "metric", "over", "mean", "deviation", "low", "high"]
    pd.DataFrame(lines, columns=columns).to_csv(tmp_path / "summary.csv", index=False)
    entries = [{name: {"label": label}} for name, label in called.items()] + [{"fedprox": {"label": "a"}}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"methods": entries}))
    folder = Folder(tmp_path)
    assert (folder.methods, folder.unseen) == (list(means), ["a"])
    assert folder.baselines == {"single": "a (unseen site)", "fedavg": "cross"}
    # Two titles that would be the same are told apart.
    assert folder.titles["a (unseen site)", "plain"] == "a (unseen site)"
    assert folder.titles["a", "unseen"] == "a (unseen site) (unseen site)"
    text = said(tmp_path)
    assert "cross did best among those that leave the data at the sites." in text
    assert "Each site training alone (a (unseen site)) reached 0.650" in text
    assert "Training on all data in one place (single), which federated learning avoids, reached 0.900." in text
    assert "At sites that took no part in training, the best was a with 0.550." in text
    cross = cross_matrix(folder)
    assert [[cell.text for cell in row] for row in cross.cells] == [["0.70", "0.50"], ["0.40", "0.60"]]
    ((_, plain_rows), (_, unseen_rows)) = main_table(folder, "all")
    assert [method for method, _ in plain_rows] == list(means)
    assert [method for method, _ in unseen_rows] == ["a"]
    assert Page(write_report(tmp_path).read_text(encoding="utf-8")).open == []


def test_what_it_costs_to_be_unseen_is_told_and_shown(tmp_path):
    results = [("fedavg", "federation", "A", 0.9), ("fedavg" + UNSEEN, "federation", "A", 0.8)]
    summary = [{"method": "fedavg", "mean": 0.9}, {"method": "fedavg" + UNSEEN, "mean": 0.8}]
    folder = by_hand(tmp_path, results, summary)
    cost = {"method": "fedavg", "metric": "auc", "over": "all", "seen": 0.9, "unseen": 0.8, "difference": 0.101,
            "low": 0.04, "high": 0.162, "p": 0.002, "p_adjusted": 0.004}  # fmt: skip
    other = cost | {"over": "sites", "difference": -0.02, "low": -0.05, "high": 0.01, "p_adjusted": np.nan}
    pd.DataFrame([cost, other]).to_csv(folder / "unseen.csv", index=False)
    assert (
        "the best was fedavg with 0.800. On the same cases it lost 0.101 by not having the site in training, beyond "
        "chance (p = 0.004 after correction)." in said(folder)
    )
    together, over_sites = unseen_tables(Folder(folder))
    assert together.rows == [("fedavg", "0.900", "0.800", "0.101", "0.040 to 0.162", "0.004")]
    assert over_sites.rows == [("fedavg", "0.900", "0.800", "−0.020", "−0.050 to 0.010", "–")]
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "What it costs to be unseen" in page.text
    pd.DataFrame([cost | {"difference": -3.0, "low": -4.0, "high": -2.0, "metric": "hd95"}]).to_csv(
        folder / "unseen.csv", index=False
    )
    distances = pd.read_csv(folder / "results.csv").assign(metric="hd95")
    distances.to_csv(folder / "results.csv", index=False)
    (table,) = unseen_tables(Folder(folder))  # a longer distance is worse
    assert table.rows[0][3:5] == ("3.000", "2.000 to 4.000")


def test_answer_where_training_alone_is_best_and_no_test_was_possible(tmp_path):
    summary = [{"method": "single", "mean": 0.9}, {"method": "fedavg", "mean": 0.8, "vs_single": -0.1}]
    results = [row for row in METHOD_ROWS if row[0] in ("single", "fedavg")]
    assert said(by_hand(tmp_path, results, summary)) == (
        "Of the 2 methods compared, single did best. Area under the ROC curve: 0.900, measured on the test predictions "
        "of all sites together. So, by this measure, no way of learning together was better than each site training "
        "alone. Plain federated averaging (fedavg) reached 0.800; no paired test of the difference was possible."
    )


def test_answer_warns_where_guessing_would_do_as_well(tmp_path):
    summary = [{"method": "fedavg", "mean": 0.55, "low": 0.49, "high": 0.61}]
    text = said(by_hand(tmp_path, METHOD_ROWS[2:3], summary))
    assert "fedavg was the only method run. Area under" in text
    assert (
        "The interval of fedavg includes 0.50, the value of guessing: this study does not show that the model tells"
        in text
    )


def test_answer_takes_the_lowest_where_lower_is_better(tmp_path):
    summary = [
        {"method": "single", "mean": 12.0},
        {"method": "fedavg", "mean": 9.0, "vs_single": -3.0, "p_single_adjusted": 0.012},
    ]
    text = said(by_hand(tmp_path, [row for row in METHOD_ROWS if row[0] in ("single", "fedavg")], summary, "hd95"))
    assert "fedavg did best. Hausdorff distance, 95th percentile: 9.000 pixels, measured" in text
    assert "reached 12.0: the difference of −3.000 is beyond chance (p = 0.012 after correction" in text


def test_answer_names_the_extreme_sites_and_the_best_at_unseen_sites(tmp_path):
    results = [("fedavg", "federation", "A", 0.6), ("fedavg", "federation", "B", 0.9)]
    results.append(("fedavg" + UNSEEN, "federation", "A", 0.5))
    summary = [{"method": "fedavg", "mean": 0.8}, {"method": "fedavg" + UNSEEN, "mean": 0.7, "low": 0.6, "high": 0.8}]
    text = said(by_hand(tmp_path, results, summary))
    assert "Site by site it ranged from 0.600 (A) to 0.900 (B)." in text
    assert "At sites that took no part in training, the best was fedavg with 0.700 (95 % interval 0.600" in text


# --- tables and figures -----------------------------------------------------------------------------------------------


def test_main_table_marks_the_best_and_differences_in_the_right_direction(tmp_path):
    results = [("single", "A", "A", 9.0), ("fedavg", "federation", "A", 8.0), ("fedbn", "federation", "A", 7.0)]
    summary = [
        {"method": "single", "mean": 9.0, "low": 8.5, "high": 9.5},
        {"method": "fedavg", "mean": 8.0, "vs_single": -1.0, "p_single_adjusted": 0.2},
        {"method": "fedbn", "mean": 7.0, "vs_single": -2.0, "p_single_adjusted": 0.01, "vs_fedavg": -1.0,
         "p_fedavg_adjusted": 0.049},
    ]  # fmt: skip
    ((title, rows),) = main_table(Folder(by_hand(tmp_path, results, summary, "hd95")), "all")
    cells = {method: scores[0] for method, scores in rows}
    assert title == ""
    assert cells["single"].interval == "8.500 to 9.500"
    assert (cells["fedavg"].best, cells["fedavg"].marks) == (False, [])
    assert (cells["fedbn"].best, cells["fedbn"].mean, cells["fedbn"].deviation) == (True, "7.000", "± 0.010")
    assert cells["fedavg"].differences == ["S −1.000 (p = 0.200)"]
    assert cells["fedbn"].differences == ["S −2.000 (p = 0.010)", "F −1.000 (p = 0.049)"]
    assert cells["fedbn"].marks == [("▲S", "better than single, p = 0.010"), ("▲F", "better than fedavg, p = 0.049")]


def test_cross_matrix_has_single_on_its_diagonal(tmp_path):
    results = [("single", "A", "A", 0.9), ("single", "B", "B", 0.8), ("single", "own", "all", 0.1)]
    results += [("cross", "A", "B", 0.7), ("cross", "B", "A", 0.5), ("cross", "A", "all", 0.1)]
    cross = cross_matrix(Folder(by_hand(tmp_path, results, None)))
    assert (cross.trained, cross.tested) == (["A", "B"], ["A", "B"])
    assert [[cell.text for cell in row] for row in cross.cells] == [["0.90", "0.70"], ["0.50", "0.80"]]
    assert cross.elsewhere == ["0.70", "0.50"]
    assert [end.text for end in cross.ends] == ["0.50", "0.90"]
    assert cross.words == "On average a site's own model reaches 0.85 at home and 0.60 at the other sites."


def test_a_site_that_is_not_scored_is_left_out_of_site_results(tmp_path):
    results = [("single", "A", "A", 0.9), ("single", "B", "B", 0.8), ("cross", "A", "B", 0.7), ("cross", "B", "A", 0.5)]
    folder = by_hand(tmp_path, results, None)
    sites = [("A", 9, 9, 0, "", "True", ""), ("B", 5, 4, 1, "unreadable: 1", "False", "")]
    columns = ["site", "found", "used", "rejected", "reasons", "scored", "note"]
    pd.DataFrame(sites, columns=columns).to_csv(folder / "sites.csv", index=False)
    read = Folder(folder)
    assert read.scored == ["A"]
    assert [[cell.text for cell in row] for row in cross_matrix(read).cells] == [["0.90", "–"], ["0.50", "–"]]
    a, b, both = site_rows(read)
    assert (a.note, b.note, both.note) == ("", "can't be scored by itself", "")
    assert (both.site, both.found, both.used, both.rejected) == ("All sites", "14", "13", "1")


@pytest.mark.parametrize(
    ("metric", "worst", "best"), [("auc", "0.500 (B)", "0.900 (A)"), ("brier", "0.900 (A)", "0.500 (B)")]
)
def test_how_even_methods_are_over_the_sites(tmp_path, metric, worst, best):
    """fedavg: 0.9, 0.5 and 0.7, with deviation 0.2; fedprox has a value at two sites only."""
    results = [("fedavg", "federation", site, value) for site, value in zip("ABC", (0.9, 0.5, 0.7), strict=True)]
    results += [("fedprox", "federation", site, 0.6) for site in "AB"] + [("fedprox", "federation", "C", np.nan)]
    folder = by_hand(tmp_path, results, None, metric=metric)
    found = CONTENT["site_results"](Folder(folder))
    assert found.even == [("fedavg", worst, best, "0.200", "3")]
    text = render(Folder(folder))
    assert text.count("How even results are over the hospitals</h3>") == 1


@pytest.mark.parametrize(
    ("hard", "worst", "best", "by"),
    [
        ((0.5, 0.5, 0.5), "0.700 (A)", "0.720 (C)", ""),
        ((0.5, np.nan, 0.5), "0.900 (A)", "0.940 (C)", "easy"),
        ((0.5, np.nan, np.nan), "0.900 (A)", "0.940 (C)", "easy"),
    ],
)
def test_hospitals_with_other_findings_are_compared_by_those_of_all(tmp_path, hard, worst, best, by):
    """B has the easy finding alone, in which it is no better than A and C: its mean over findings is."""
    easy = (0.9, 0.92, 0.94)
    by_hand(tmp_path, [("fedavg", "federation", site, np.nanmean(two))
                       for site, two in zip("ABC", zip(easy, hard, strict=True), strict=True)], None)  # fmt: skip
    results = pd.read_csv(tmp_path / "results.csv")
    parts = [results.assign(metric=f"auc[{name}]", value=own) for name, own in (("easy", easy), ("hard", hard))]
    pd.concat([results, *parts]).to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "provenance.json").write_text(json.dumps({"target": "findings"}), encoding="utf-8")
    found = CONTENT["site_results"](Folder(tmp_path))
    assert [row[1:3] for row in found.even] == [(worst, best)]
    assert found.even_by == by
    assert ("those that all have, easy." in render(Folder(tmp_path))) == bool(by)


def test_hospitals_without_a_common_finding_are_not_compared(tmp_path):
    by_hand(tmp_path, [("fedavg", "federation", site, 0.9) for site in "ABC"], None)
    results = pd.read_csv(tmp_path / "results.csv")
    own = results.assign(metric=["auc[one]", "auc[two]", "auc[one]"])
    pd.concat([results, own]).to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "provenance.json").write_text(json.dumps({"target": "findings"}), encoding="utf-8")
    assert CONTENT["site_results"](Folder(tmp_path)).even == []


def test_hospitals_that_are_equally_good_are_all_named(tmp_path):
    """Nobody is the worst alone because of its name; of four or more there is only how many they are."""
    results = [("fedavg", "federation", site, value) for site, value in zip("ABCD", (0.9, 0.5, 0.5, 0.9), strict=True)]
    results += [("fedprox", "federation", site, 0.5 + 1e-9 * n) for n, site in enumerate("ABCD")]
    found = CONTENT["site_results"](Folder(by_hand(tmp_path, results, None)))
    everyone = "0.500 (4 hospitals)"
    assert [row[1:3] for row in found.even] == [("0.500 (B, C)", "0.900 (A, D)"), (everyone, everyone)]


def test_best_is_the_darkest_also_where_lower_is_better():
    values = np.array([[1.0, 2.0, np.nan]])
    low, high, missing = heat(values, higher_is_better=True, text=str)[0]
    assert [one.text for one in (low, high, missing)] == ["1.0", "2.0", "–"]
    swapped = heat(values, higher_is_better=False, text=str)[0]
    assert (low.background, high.background) == (swapped[1].background, swapped[0].background)
    assert (low.ink, high.ink, missing.background) == ("#16202a", "#ffffff", "#ffffff")


def test_estimate_is_students_interval_kept_within_the_range_of_a_share():
    one = estimate(pd.Series([0.7, 0.8, 0.9, np.nan]))
    half = student.ppf(0.975, 2) * 0.1 / np.sqrt(3)  # 4.3027 * 0.0577 = 0.2484
    assert (one.mean, one.high) == (0.8, 1.0)
    assert one.low == pytest.approx(0.8 - half)
    assert estimate(pd.Series([12.0, 13.0, 14.0])).high > 14
    two = estimate(pd.Series([12.0, 14.0]))
    assert two.mean == 13
    assert np.isnan([two.low, two.high]).all()
    alone = estimate(pd.Series([0.7]))
    assert alone.mean == 0.7
    assert np.isnan([alone.low, alone.high, estimate(pd.Series([np.nan])).mean]).all()


def test_costs_are_those_of_one_fold_and_seed(tmp_path):
    folder = by_hand(tmp_path, [("fedavg", "federation", "A", 0.8)], None)
    rows = [
        ("fedavg", 0, fold, step, site, seconds, 1_000_000, 500_000, 10, 0.5)
        for fold in (0, 1)
        for step in (1, 2)
        for site, seconds in (("A", 1.0), ("B", 3.0))
    ]
    rows.append(("mix", 0, 0, 1, "pool", 5.0, 800, 800, 20, 0.5))
    with_runs(pd.DataFrame(rows, columns=ROUNDS)).to_csv(folder / "rounds.csv", index=False)
    cost, pooled = costs(Folder(folder))
    assert (pooled.seconds, pooled.up, pooled.down) == ("5 s", "–", "–")  # nothing is sent to anybody
    assert (cost.rounds, cost.seconds, cost.seconds_per_round, cost.slowest) == ("2", "8 s", "4 s", "3 s")
    assert (cost.up, cost.down) == ("2 MB", "1 MB")


def test_confusion_counts_each_class_by_itself(tmp_path):
    folder = by_hand(tmp_path, [("fedavg", "federation", "A", 0.8)], None, "bac")
    pd.DataFrame(
        [("A", 4, 4, 0, 2, 1, 1)],
        columns=["site", "found", "used", "rejected", "class: x", "class: y", "class: z"],
    ).to_csv(folder / "sites.csv", index=False)
    scores = [(0, 0.9, 0.1, 0.0), (0, 0.2, 0.5, 0.3), (1, 0.1, 0.8, 0.1)]
    rows = [("fedavg", 0, 0, "A", "p", k, *score) for k, score in enumerate(scores)]
    columns = ["method", "seed", "fold", "site", "subject", "case", "label", "score_0", "score_1", "score_2"]
    with_runs(pd.DataFrame(rows, columns=columns)).to_csv(folder / "predictions.csv", index=False)
    cells = confusion(Folder(folder), "fedavg")
    assert [[cell.text for cell in row] for row in cells] == [
        ["50\u00a0%", "50\u00a0%", "0\u00a0%"],
        ["0\u00a0%", "100\u00a0%", "0\u00a0%"],
        ["–", "–", "–"],
    ]


def test_more_than_two_classes_have_a_confusion_table_and_no_roc(tmp_path):
    maker = Maker(tmp_path, {"A": 60, "B": 60}, methods=["single", "fedavg"], classes=3, folds=2, rounds=1)
    page = Page(write_report(maker.write()).read_text(encoding="utf-8"))
    assert "Best method, fedavg: of the cases that are of one class" in page.text
    assert "ROC and calibration" not in page.text
    assert "Training over the rounds" not in page.text  # one round is no curve


@pytest.mark.parametrize("channels", [1, 3])
def test_segmentations_are_shown_with_their_dice(tmp_path, channels):
    sites = {"site/one": 10, "two": 10}
    maker = Maker(tmp_path, sites, methods=["single", "fedavg/deep"], folds=2, rounds=2)
    page = Page(write_report(maker.segment(shape=(30, 40), channels=channels)).read_text(encoding="utf-8"))
    assert page.tags.count("img") == 12
    assert all(one.startswith("data:image/jpeg;base64,/9j/") for one in page.loaded)
    assert page.wordless == []
    assert page.text.count("Worst, Dice 0.58") == 4  # 0.95 - 22 / 60
    found = Folder(tmp_path).overlays()
    assert [(one.method, one.site, one.which) for one in found[:2]] == [
        ("single", "site/one", "best"),
        ("single", "site/one", "median"),
    ]
    assert {one.method for one in found} == {"single", "fedavg/deep"}
    assert "hd95" in page.text
    assert "Mean share of foreground" in page.text.replace("shareof", "share of")


def test_empty_masks_and_predictions_are_drawn(tmp_path):
    folder = by_hand(tmp_path, [("fedavg", "federation", "A", 0.8)], None, "dice")
    blank = np.zeros((20, 20), np.uint8)
    tensors = {"image": np.zeros((1, 20, 20), np.uint8), "mask": blank, "prediction": np.ones((20, 20), np.uint8)}
    save_file({f"fedavg/A/best/{name}": value for name, value in tensors.items()}, folder / "overlays.safetensors")
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.tags.count("img") == 1
    assert "Marked by the reference: 0.0 % of the image, by the model: 100.0 %." in page.text.replace("\u00a0", " ")


# --- words ------------------------------------------------------------------------------------------------------------


def test_numbers_as_words():
    assert [seconds_text(x) for x in (0.0123, 5.25, 42.4, 300, 9000, np.nan)] == [
        "12 ms", "5.2 s", "42 s", "5 min", "2.5 h", "–",
    ]  # fmt: skip
    assert [bytes_text(x) for x in (0, 999, 1500, 123_456, 5e6, 2e9, np.nan)] == [
        "0 bytes", "999 bytes", "1.5 kB", "123 kB", "5 MB", "2 GB", "–",
    ]  # fmt: skip
    assert [count_text(x) for x in (3.0, 12345, 0.1234, np.nan)] == ["3", "12\u202f345", "0.123", ""]
    assert [p_text(p) for p in (0.0004, 0.0312, 1.0)] == ["< 0.001", "= 0.031", "= 1.000"]


def test_study_entries_as_words():
    assert plain({"mlp": {"hidden": [64, 32], "norm": None}}) == "mlp (hidden: 64, 32)"
    assert plain({"sgd": {}, "server": "mean"}) == "sgd, server: mean"
    assert plain(True) == "yes"
    assert nested_rows({"a": {"b": [1, 2]}, "c": "d"}) == [("a › b", "1, 2"), ("c", "d")]


def test_long_labels_keep_their_ends():
    assert shorten("fedavg") == "fedavg"
    assert shorten("fedprox(mu=0.1, share=no_norm, server=median)") == "fedprox(mu=0…rver=median)"


@pytest.mark.long
def test_a_large_study_makes_a_report_that_can_be_mailed(tmp_path):
    methods = [*METHODS[:-1], "scaffold", METHODS[-1]]
    folder = Maker(tmp_path, ABIDE, methods=methods).write()
    page = write_report(folder)
    assert page.stat().st_size < 5_000_000
    text = page.read_text(encoding="utf-8")
    assert all(site in text for site in ABIDE)


def repeated(folder, values, summary=None, metric="auc"):
    """A folder with (method, seed, fold) -> value at site A."""
    rows = [(method, seed, fold, "federation", "A", metric, value) for (method, seed, fold), value in values.items()]
    by_hand(folder, [], summary, metric)
    with_runs(pd.DataFrame(rows, columns=RESULTS)).to_csv(folder / "results.csv", index=False)
    return Folder(folder)


def test_seeds_do_not_make_patients_of_their_own(tmp_path):
    """Three folds with seeds that hardly differ: the interval is that of three values, however many seeds there are."""
    folds = {0: 0.6, 1: 0.7, 2: 0.8}
    shift = {0: -0.01, 1: 0.0, 2: 0.01}
    folder = repeated(tmp_path, {("fedavg", s, f): folds[f] + shift[s] for s in shift for f in folds})
    found, wanted = folder.estimate("fedavg", "A"), estimate(pd.Series(list(folds.values())))
    assert [found.mean, found.low, found.high] == pytest.approx([wanted.mean, wanted.low, wanted.high])
    assert found.high - found.low == pytest.approx(2 * student.ppf(0.975, 2) * 0.1 / np.sqrt(3))
    assert "over the folds, each the mean over the seeds (Student" in write_report(tmp_path).read_text()


def test_seeds_of_one_split_tell_of_training_alone(tmp_path):
    folder = repeated(tmp_path, {("fedavg", seed, 0): 0.6 + 0.1 * seed for seed in range(3)})
    found = folder.estimate("fedavg", "A")
    assert found.high - found.low == pytest.approx(2 * student.ppf(0.975, 2) * 0.1 / np.sqrt(3))
    page = write_report(tmp_path).read_text()
    assert "over the seeds (Student’s t), which tells chance in training and nothing of other patients" in page
    assert "folds" not in page[page.index("<main>") :]


def test_two_folds_are_too_few_for_an_interval_with_any_number_of_seeds(tmp_path):
    folder = repeated(tmp_path, {("fedavg", seed, fold): 0.6 + 0.1 * fold for seed in range(5) for fold in range(2)})
    assert np.isnan(folder.estimate("fedavg", "A").low)
    assert "A mark is the mean over folds and seeds; two folds are too few" in write_report(tmp_path).read_text()


def test_a_difference_that_is_not_that_of_the_means_says_over_what_it_is(tmp_path):
    """The baseline has no model at one site: 0.80 - 0.70 = 0.10, but on the cases that both scored it is 0.12."""
    summary = [
        {"method": "single", "mean": 0.70},
        {"method": "fedavg", "mean": 0.80, "vs_single": 0.12, "p_single_adjusted": 0.2},
    ]
    rows = [row for row in METHOD_ROWS if row[0] in ("single", "fedavg")]
    assert "reached 0.700: the difference of +0.120 on the cases that both scored is not beyond chance" in said(
        by_hand(tmp_path, rows, summary)
    )


def test_a_value_that_some_runs_lack_says_so(tmp_path):
    """Of three folds one has a single class, say, so that the mean is over two."""
    values = {("fedavg", 0, 0): 0.8, ("fedavg", 0, 1): 0.7, ("fedavg", 0, 2): np.nan}
    repeated(tmp_path, values, [{"method": "fedavg", "mean": 0.75, "n": 2}])
    ((_, ((_, (score,)),)),) = main_table(Folder(tmp_path), "all")
    assert score.runs == "in 2 of 3 runs"
    assert "in 2 of 3 runs" in write_report(tmp_path).read_text()


def test_an_error_in_a_small_unit_is_not_nought(tmp_path):
    summary = [{"method": "fedavg", "mean": 5.8343e-05, "low": 5.04e-05, "high": 6.7e-05, "deviation": 4.1e-06}]
    text = said(by_hand(tmp_path, [("fedavg", "federation", "A", 5.8e-05)], summary, "mae"))
    assert "Mean absolute error: 5.83e-05 (95 % interval 5.04e-05 to 6.7e-05)" in text


def test_with_several_classes_nobody_is_diseased(tmp_path):
    by_hand(tmp_path, [("fedavg", "federation", "A", 0.5)], [{"method": "fedavg", "mean": 0.5}])
    sites = {"site": ["A"], "found": 9, "used": 9, "rejected": 0, "class: a": 3, "class: b": 3, "class: c": 3}
    pd.DataFrame(sites).to_csv(tmp_path / "sites.csv", index=False)
    assert "averaged over the classes" in Folder(tmp_path).primary.meaning
    pd.DataFrame(sites).drop(columns="class: c").to_csv(tmp_path / "sites.csv", index=False)
    assert "diseased" in Folder(tmp_path).primary.meaning
