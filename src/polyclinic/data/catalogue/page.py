"""The catalogue in words: a page an entry, for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from polyclinic.data.catalogue.artificial import SCHEMES
from polyclinic.data.catalogue.entry import Entry, Label

_INTRODUCTION = """\
# The data catalogue

Published data sets that Polyclinic knows: where to get them, under which terms, what the sites are, and how to turn
what you downloaded into a manifest and a first study file. Nothing is downloaded for you, and images stay where they
are unless they have to be converted.

```sh
polyclinic data list
polyclinic data describe heart-disease
polyclinic data prepare heart-disease --from heart-disease --out my-study
polyclinic check my-study/study.yaml
```

`prepare` writes into the folder `--out`:

- `manifest.csv`: a row a case, with site, subject, images, mask, label and covariates. Paths are relative to the entry
  `root` of the study file.
- `study.yaml`: a study to start from. It is never overwritten once you changed it.
- `manifest.salt`: the secret from which the names of subjects are made. It must stay at the site. Copied into another
  folder before `prepare`, it gives the same subjects the same names there.

Every case found is used or rejected with a reason, and the numbers are printed for each site. A case that stands twice
in a table counts once, and not at all if its rows contradict each other. The options are the same for all data sets:

- `--label NAME`: what to learn; the first label below is the default.
- `--positive A,B` and `--against C,D`: the classes that are the positive and the negative one. Cases of other classes
  are rejected; without `--against` all others are negative.
- `--sites-by NAME`: how sites are told; the first way below is the default. Every data set also takes
  {schemes}.
- `--sites 4`, `--alpha 0.5` and `--seed 0`: number, concentration (the smaller, the more unlike) and seed of artificial
  sites. Results on artificial sites say little about real ones: scanners, patients and labels are the same everywhere.
- `--sessions all`: all sessions of a patient instead of the first that can be used.

Patients, not images, are what a study splits: all rows of a subject stay together. Where a case has several labels the
starter study has [`findings`](study-file.md#findings), where many tiles or frames make one case
[`bag`](study-file.md#bags); a row of the manifest is then a tile or a frame, and so are the numbers that are printed.
Each entry says under *What is assumed* what could not be confirmed on the original data.

This page is made from the entries by `python -m polyclinic.data.catalogue`.

"""


def catalogue_page(entries: Iterable[Entry]) -> str:
    """The documentation page, in Markdown."""
    entries = list(entries)
    schemes = ", and\n  ".join(f"`{name}` ({text})" for name, text in SCHEMES.items())
    table = ["| name | data set | tasks | sites by |", "|---|---|---|---|"]
    for entry in entries:
        ways = ", ".join(entry.sites_by) or "artificial only"
        table.append(f"| [`{entry.name}`](#{entry.name}) | {entry.title} | {', '.join(entry.tasks)} | {ways} |")
    parts = [_INTRODUCTION.format(schemes=schemes) + "\n".join(table) + "\n"]
    parts += [f"## {entry.name}\n\n{entry_page(entry)}" for entry in entries]
    return "\n".join(parts)


def entry_page(entry: Entry) -> str:
    """One entry, in Markdown without a heading."""
    lines = [f"**{entry.title}.** {entry.about}", ""]
    facts = {
        "Modality": entry.modality,
        "Sites": entry.sites,
        "Subjects": entry.subjects,
        "Where": entry.access,
        "Terms": entry.terms,
        "Citation": entry.citation,
    }
    lines += [f"- {name}: {text}" for name, text in facts.items()]
    lines += ["", "Labels (`--label`):", ""]
    lines += [f"- `{name}` ({label.task}): {_label(label)}" for name, label in entry.labels.items()]
    lines += ["", "Sites (`--sites-by`):", ""]
    lines += [f"- `{name}`: {text}" for name, text in entry.sites_by.items()]
    lines += [f"- {' or '.join(f'`{name}`' for name in SCHEMES)}: artificial"]
    lines += ["", "Expected on disk:", "", "```text", entry.layout.rstrip("\n"), "```", ""]
    if entry.assumed:
        lines += ["What is assumed:", "", *(f"- {text}" for text in entry.assumed), ""]
    return "\n".join(lines)


def _label(label: Label) -> str:
    columns = [f"`{name}`" for name in label.columns]
    text = f"{label.meaning}. Column{'s' if len(columns) > 1 else ''} {', '.join(columns)}"
    if label.positive:
        text += f", positive {', '.join(label.positive)}"
    if label.against:
        text += f", against {', '.join(label.against)}"
    return text + "."
