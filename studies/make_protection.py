"""What protection and compression of what leaves a site cost: runs the studies of studies/protection and writes
docs/protection.md.

``python studies/make_protection.py`` runs what is missing, goes on with what was interrupted, and writes the page anew:
what results are there replaces what docs/protection.csv tells of their studies, and the page is made of that table and
of the words in studies/protection/page.md. Each study is repeated with another split of the patients and another
initial model; each repeat, and each ε, is a study of its own in ``results/protection``. A method's effect is its result
minus that of ``fedavg`` without protection in the same repeat.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import yaml
from rich.console import Console
from scipy import stats

from effects import BASELINE, effects, finished_in, last_day, measure_of, values_of, verdicts
from flamby.make_cases import cases
from polyclinic import PolyclinicError, Results, Study
from polyclinic.engine.planner import EnginePlan
from polyclinic.privacy import Event, noise_for, spent
from polyclinic.study.display import Display, RichDisplay

HERE = Path(__file__).resolve().parent
STUDIES = HERE / "protection"
PAGE = HERE.parent / "docs" / "protection.md"
#: Of the table from which the page is made. Bytes are those of a site and round, seconds those of a round.
COLUMNS = (
    "study", "epsilon", "finished", "repeats", "measure", "method", "mean", "mean_low", "effect", "low", "high",
    "verdict", "spent", "bytes", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What one study asks.

    Attributes:
        name: of the study file in ``protection``.
        over: what is compared; see `values_of`.
        about: a sentence or two for the page.
        budgets: each ε with which the study is run; none where there is no noise.
        first_seed: of the repeats.
        most: repeats that are worth their time.
    """

    name: str
    over: str
    about: str
    budgets: tuple[float, ...] = ()
    first_seed: int = 0
    most: int = 5

    def runs(self) -> list[tuple[str, float | None]]:
        """The beginning of the name of its results folders, and ε, of each of its studies."""
        return [(f"{self.name}-epsilon-{one:g}", one) for one in self.budgets] or [(self.name, None)]


#: Mean accuracy of the four hospitals and five seeds, from FLamby's flamby/dp_example/results_fed_heart_disease.csv
#: (δ = 1e-4); ``None`` is without noise. For ε = 0.5 nothing is published.
PUBLISHED: dict[float | None, float] = {None: 0.712, 0.1: 0.606, 1.0: 0.685, 5.0: 0.704, 10.0: 0.700, 50.0: 0.702}
#: The four hospitals' training patients there, and the δ, batch size, rounds and updates of a round.
FLAMBY_PATIENTS = {"cleveland": 199, "hungarian": 172, "switzerland": 30, "va": 85}
FLAMBY_DELTA, FLAMBY_BATCH, FLAMBY_ROUNDS, FLAMBY_UPDATES = 1e-4, 4, 15, 100

QUESTIONS = (
    Question("flamby-heart", "each", "", (0.1, 0.5, 1.0, 5.0, 10.0, 50.0), 42, most=10),
    Question("noise-heart", "sites",
             "Heart disease from clinical measures: four hospitals, logistic regression, 10 rounds of two passes. The "
             "mean of the AUC within the three hospitals that have enough cases of each class.", (1.0, 4.0, 16.0)),
    Question("noise-volumes", "all",
             "Sex from the volumes of 84 brain regions: 16 real sites with 26 to 175 subjects, logistic regression, 10 "
             "rounds of two passes. AUC over the cases of all sites.", (1.0, 4.0, 16.0)),
    Question("bytes-skin", "all",
             "Malignant or benign: dermatoscopic images of four real sources at 24 x 32 pixels, a small network, 8 "
             "rounds. AUC over the cases of all sources.", most=3),
    Question("bytes-volumes", "all",
             "Sex from the volumes of 84 brain regions: 16 real sites, fully connected layers of 256 and 64, 20 rounds "
             "of two passes. AUC over the cases of all sites."),
)  # fmt: skip
#: In the table, what the noise of FLamby's runs costs each hospital's patients.
ACCOUNTING = "flamby-accounting"
#: Of these, how long a round takes is measured, too.
TIMED = tuple(question.name for question in QUESTIONS if question.name.startswith("bytes"))
TIMING_ROUNDS = 5

Only = Annotated[list[str] | None, typer.Option(help="Do this part only: a study, or 'seconds'; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Folder for the results folders.")]
Repeats = Annotated[int, typer.Option(min=2, help="At most so many repeats of each study; few are worth as many.")]
Write = Annotated[bool, typer.Option(help="Write the page; --no-write only runs, for several commands side by side.")]


def main(
    only: Only = None, out: Out = HERE.parent / "results" / "protection", repeats: Repeats = 10, write: Write = True
) -> None:
    """Run the studies and write docs/protection.md with all that are finished."""
    console = Console(stderr=True, highlight=False)
    names = ["seconds", *(question.name for question in QUESTIONS)]
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise typer.BadParameter(f"there is no part {unknown[0]!r}; choose from {', '.join(names)}")
    asked = only or names
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in TIMED if "seconds" in asked else ():
        if not (out / f"{name}-seconds.csv").is_file():
            console.print(f"[bold]{name}[/bold], seconds of a round")
            seconds(name).to_csv(out / f"{name}-seconds.csv", lineterminator="\n")
    for question in [one for one in QUESTIONS if one.name in asked]:
        for run, epsilon in question.runs():
            for repeat in range(min(repeats, question.most)):
                console.print(f"[bold]{run}[/bold], repeat {repeat + 1}")
                try:
                    with RichDisplay(console) as display:
                        folder = out / f"{run}-{repeat}"
                        study = repeated(question, epsilon, repeat, out)
                        study.run(folder, resume=folder.is_dir(), display=display)
                except PolyclinicError as error:
                    failed = True
                    console.print(f"{run}: {error}", markup=False)
    if write:
        told(out).to_csv(PAGE.with_suffix(".csv"), index=False, lineterminator="\n")
        PAGE.write_text(page(written()), encoding="utf-8")
        console.print(f"Wrote {PAGE}")
    if failed:
        raise typer.Exit(1)


def repeated(question: Question, epsilon: float | None, repeat: int, out: Path) -> Study:
    """A study with the budget, split and initial model of one repeat."""
    content = content_of(question.name)
    content["seeds"] = [question.first_seed + repeat]
    if "split" not in content["evaluation"]:
        content["evaluation"]["split_seed"] = repeat
    if epsilon is not None:
        content["privacy"]["epsilon"] = epsilon
    if "${POLYCLINIC_FLAMBY}" in str(content["data"]):
        made = out / "flamby-cases"
        if not (made / "cases.csv").is_file():
            made.mkdir(exist_ok=True)
            source = Path(os.environ["POLYCLINIC_DATA"]) / "heart-disease"
            cases(source).to_csv(made / "cases.csv", index=False)
        os.environ["POLYCLINIC_FLAMBY"] = str(made)
    return Study.of(content, STUDIES)


def content_of(name: str) -> dict[str, Any]:
    """A study file."""
    content: dict[str, Any] = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


class Clock(Display):
    """Notes when each round of each training ends.

    Attributes:
        ends: for each training, times in seconds.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self.ends: list[list[float]] = []

    def planned(self, plan: EnginePlan, jobs: int) -> None:
        """How many trainings there are."""
        self.jobs = jobs

    def job(self, number: int, title: str, skipped: bool) -> None:
        """A training starts."""
        self.ends.append([])

    def round(self, done: int, total: int) -> None:
        """A round is done."""
        self.ends[-1].append(time.perf_counter())


def seconds(name: str) -> pd.Series:
    """How long a round of all sites and the server takes on one computer, by method: the least of a few rounds, which
    other work on the computer disturbs least.

    The first round is left out. A training is one thread's.
    """
    content = content_of(name)
    content["training"]["rounds"] = TIMING_ROUNDS + 1
    content["engine"] = {**content.get("engine", {}), "jobs": 1}  # one after another, which the clock sees
    study, clock = Study.of(content, STUDIES), Clock()
    with TemporaryDirectory() as folder:
        study.run(Path(folder) / "results", display=clock)
    labels = [method.label for method in study.declaration.study_methods]
    if not clock.jobs == len(clock.ends) == len(labels):
        raise ValueError(f"{name}: {len(clock.ends)} trainings were timed, and there are {len(labels)} methods")
    found = [float(np.diff(ends).min()) for ends in clock.ends]
    return pd.Series(found, pd.Index(labels, name="method"), name="seconds")


def told(out: Path) -> pd.DataFrame:
    """A row for each study, ε and method: of the results in ``out`` where there are at least two finished repeats, else
    as the table on disk tells."""
    before = written() if PAGE.with_suffix(".csv").is_file() else None
    tables = []
    for question in QUESTIONS:
        for run, epsilon in question.runs():
            finished = finished_in(out, run)
            if len(finished) >= 2:
                tables.append(answer(question, epsilon, finished, out))
                if question.name == "flamby-heart" and epsilon in PUBLISHED:
                    tables.append(accounting(epsilon, out))
            elif before is not None:
                same = before["epsilon"].isna() if epsilon is None else before["epsilon"] == epsilon
                names = [question.name, ACCOUNTING] if question.name == "flamby-heart" else [question.name]
                tables.append(before[before["study"].isin(names) & same])
    return pd.concat([one for one in tables if len(one)], ignore_index=True).astype({"repeats": "Int64"})


def written() -> pd.DataFrame:
    """The table on disk, of which the page is made."""
    texts = pd.read_csv(PAGE.with_suffix(".csv"), dtype={"repeats": "Int64", "verdict": str, "finished": str})
    return texts.fillna({"verdict": "", "finished": ""})


def answer(question: Question, epsilon: float | None, finished: Sequence[Results], out: Path) -> pd.DataFrame:
    """A row for each method of one study."""
    values = pd.DataFrame([values_of(question.over, results) for results in finished])
    found, costs, sent = effects(values), spent_by(finished), bytes_by(finished)
    timed = out / f"{question.name}-seconds.csv"
    clock = pd.read_csv(timed, index_col="method")["seconds"] if timed.is_file() else pd.Series(dtype=float)
    shared = (question.name, epsilon, last_day(finished), len(finished), measure_of(finished[0]))
    nan = float("nan")
    rows = [
        (
            *shared, e.method, round(e.mean, 4), round(lower_end(values[e.method]), 4), round(e.effect, 4),
            round(e.low, 4), round(e.high, 4), word, costs.get(e.method, nan), round(sent[e.method], 1),
            round(clock.get(e.method, nan), 6),
        )
        for e, word in zip(found, verdicts(found), strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def accounting(said: float, out: Path) -> pd.DataFrame:
    """What FLamby's runs of an ε cost the patients of each hospital: they take the noise that is enough for as many
    passes over the patients as there are rounds, and a round has 100 updates."""
    kept = out / f"{ACCOUNTING}-epsilon-{said:g}.csv"
    if not kept.is_file():
        rows = []
        for site, patients in FLAMBY_PATIENTS.items():
            batches = -(-patients // FLAMBY_BATCH)
            passes, steps = FLAMBY_ROUNDS * batches, FLAMBY_ROUNDS * FLAMBY_UPDATES
            noise = noise_for(said, FLAMBY_DELTA, lambda one, b=batches, p=passes: [Event.gaussian(one, 1 / b, p)])
            cost = spent([Event.gaussian(noise, 1 / batches, steps)], FLAMBY_DELTA).epsilon
            rows.append({"study": ACCOUNTING, "epsilon": said, "measure": "epsilon", "method": site, "mean": cost})
        pd.DataFrame(rows).to_csv(kept, index=False, lineterminator="\n")
    return pd.read_csv(kept).reindex(columns=list(COLUMNS))


def lower_end(values: pd.Series) -> float:
    """Of the 95 % interval of a mean over the repeats (Student's t)."""
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean()) - reach


def spent_by(finished: Sequence[Results]) -> dict[str, float]:
    """The largest ε that a training cost at any site, by method, as privacy.csv tells it."""
    tables = [one.folder / "privacy.csv" for one in finished]
    rows = pd.concat([pd.read_csv(path) for path in tables if path.is_file()] or [pd.DataFrame()])
    return {} if rows.empty else rows.groupby("method")["epsilon"].max().to_dict()


def bytes_by(finished: Sequence[Results]) -> dict[str, float]:
    """Mean bytes that a site sends in a round, by method."""
    return pd.concat([one.rounds for one in finished]).groupby("method")["bytes_up"].mean().to_dict()


# The page -------------------------------------------------------------------------------------------------------------


def page(table: pd.DataFrame) -> str:
    """The page from the table of all studies and methods, and the words."""
    text = (STUDIES / "page.md").read_text(encoding="utf-8")
    asked = {question.name: table[table["study"] == question.name] for question in QUESTIONS}
    missing = [name for name, rows in asked.items() if rows.empty]
    parts = {
        "timed": str(TIMING_ROUNDS),
        "flamby": flamby(asked["flamby-heart"], table[table["study"] == ACCOUNTING]),
        "noise": "\n".join(noise(q, asked[q.name]) for q in QUESTIONS if q.name.startswith("noise")),
        "bytes": "\n".join(traffic(q, asked[q.name]) for q in QUESTIONS if q.name.startswith("bytes")),
        "missing": f"Not run yet: {', '.join(missing)}.\n" if missing else "",
    }
    for name, part in parts.items():
        text = text.replace(f"<<{name}>>", part.strip("\n"))
    return text.rstrip("\n") + "\n"


def effect_words(row: Any) -> str:
    """An effect with its interval."""
    return "" if row.method == BASELINE else f"{row.effect:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


def flamby(rows: pd.DataFrame, costs: pd.DataFrame) -> str:
    """FLamby's numbers beside ours."""
    if rows.empty:
        return ""
    plain = rows[rows["method"] == BASELINE].iloc[0]
    lines = ["| ε | FLamby's accuracy | ours | ours, against no noise (95 % interval) | what FLamby's noise costs |",
             "|---|---|---|---|---|",
             f"| no noise | {PUBLISHED[None]:.3f} | {plain['mean']:.3f} | | |"]  # fmt: skip
    for row in rows[rows["method"] == "dp_sgd"].sort_values("epsilon", ascending=False).itertuples():
        theirs = f"{PUBLISHED[row.epsilon]:.3f}" if row.epsilon in PUBLISHED else ""
        paid = costs.loc[costs["epsilon"] == row.epsilon, "mean"]
        real = f"ε = {_short(paid.min())} to {_short(paid.max())}" if len(paid) else ""
        word = f", {row.verdict}" if row.verdict in ("helps", "hurts") else ""
        lines.append(f"| {row.epsilon:g} | {theirs} | {row.mean:.3f} | {effect_words(row)}{word} | {real} |")
    return "\n".join([*lines, "", f"{plain['repeats']} repeats, finished {rows['finished'].max()}. Study: "
                      "`studies/protection/flamby-heart.yaml`."])  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def noise(question: Question, rows: pd.DataFrame) -> str:
    """One table of accuracy against ε."""
    if rows.empty:
        return ""
    first = rows.iloc[0]
    done = f"{first['repeats']} repeats, finished {rows['finished'].max()}."
    lines = [f"### {question.name}", "", f"{question.about} {done}", "",
             f"| Protection | ε | {first['measure']} | Effect (95 % interval) | |",
             "|---|---|---|---|---|"]  # fmt: skip
    for method, own in rows.groupby("method", sort=False):
        without = own["spent"].isna().all()  # no noise: the same for each ε
        for row in own.sort_values("epsilon", ascending=False).head(1 if without else None).itertuples():
            told = "none" if without else f"{row.epsilon:g}"
            lines.append(f"| {method} | {told} | {row.mean:.3f} | {effect_words(row)} | {noise_words(row)} |")
    return "\n".join([*lines, "", f"Study: `studies/protection/{question.name}.yaml`.", ""])


def noise_words(row: Any) -> str:
    """The verdict, and whether anything is left."""
    nothing = row.mean_low <= 0.5 and row.method != BASELINE
    return ", ".join(word for word in (row.verdict, "**not clearly above chance**" if nothing else "") if word)


def traffic(question: Question, rows: pd.DataFrame) -> str:
    """One table of bytes, accuracy and time."""
    if rows.empty:
        return ""
    first = rows[rows["method"] == BASELINE].iloc[0]
    lines = [f"### {question.name}", "", f"{question.about} {first['repeats']} repeats, finished {first['finished']}. "
             f"Without compression a site sends {first['bytes']:,.0f} bytes a round, and a round takes "
             f"{first['seconds'] * 1000:.0f} ms for all sites and the server on one core.", "",
             f"| Step | Bytes up | {first['measure']} | Effect (95 % interval) | | Time of a round |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows.itertuples():
        share, longer = row.bytes / first["bytes"], row.seconds / first["seconds"]
        told = "1" if row.method == BASELINE else f"{share:.3f}" if share < 0.1 else f"{share:.2f}"
        lines.append(f"| {row.method} | {told} | {row.mean:.3f} | {effect_words(row)} | {row.verdict} | "
                     f"{'1' if row.method == BASELINE else f'{longer:.2f}'} |")  # fmt: skip
    return "\n".join([*lines, "", f"Study: `studies/protection/{question.name}.yaml`.", ""])


if __name__ == "__main__":
    typer.run(main)
