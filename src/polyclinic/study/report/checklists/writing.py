"""A filled checklist as a file: Markdown, or HTML that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic
from polyclinic.study.report.checklists.items import Answer, Checklist, Status, answered, counted
from polyclinic.study.report.folder import Folder

TEMPLATES = Path(__file__).parent.parent / "templates"
#: What stands before what the authors are to write.
AUTHORS = "For the authors:"


def write_checklist(folder: Path, checklist: Checklist, out: Path) -> None:
    """Fill a checklist from a results folder and write it.

    Args:
        folder: what ``polyclinic run`` wrote.
        checklist: one of `polyclinic.study.report.checklists.CHECKLISTS`.
        out: the file; its ending says how: ``.md`` or ``.html``.

    Raises:
        ResultsError: P501, the folder can't be read, or the file has another ending; P502, the disk is full.
    """
    makers = {".md": markdown, ".html": html, ".htm": html}
    if out.suffix.lower() not in makers:
        raise ResultsError("P501", f"A checklist can't be written as {out.name!r}: its name must end in .md or .html.",
                           "Give --out another name, such as checklist.md.")  # fmt: skip
    found = Folder(folder)
    write_atomic(out, makers[out.suffix.lower()](checklist, found), durable=False)


def summary(answers: list[Answer]) -> str:
    """How many items are answered by whom."""
    counts = counted(answers)
    parts = {
        f"{counts[Status.RUN]} answered from the run": counts[Status.RUN],
        f"{counts[Status.BOTH]} from the run and to be completed by the authors": counts[Status.BOTH],
        f"{counts[Status.NOT_DONE]} not done": counts[Status.NOT_DONE],
        f"{counts[Status.AUTHORS]} for the authors": counts[Status.AUTHORS],
    }
    return f"{len(answers)} items: {', '.join(words for words, count in parts.items() if count)}."


def markdown(checklist: Checklist, folder: Folder) -> str:
    """The checklist as Markdown."""
    answers = answered(checklist, folder)
    title = _cell(str(folder.study.get("study") or "Study"))
    lines = [f"# {checklist.title}: {title}", "", checklist.about, ""]
    if checklist.source:
        lines += [f"{checklist.source}.", ""]
    lines += [summary(answers), ""]
    section = ""
    for one in answers:
        if one.item.section != section:
            section = one.item.section
            lines += ["", f"## {section}", "", "| no. | item | answered by | answer |", "|---|---|---|---|"]
        said = [_cell(one.found)] if one.found else []
        said += [f"*{AUTHORS}* {_cell(one.authors)}"] if one.authors else []
        cells = [one.item.number, _cell(one.item.asks), str(one.status), "<br>".join(said)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text in a Markdown table: nothing in it that Markdown or HTML would take for its own."""
    text = " ".join(text.split())
    for sign in ("\\", "|", "*", "_", "`", "[", "]", "#"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html(checklist: Checklist, folder: Folder) -> str:
    """The checklist as a page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("checklist.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
        study=str(folder.study.get("study") or "Study"),
        list=filled(checklist, folder),
    )


def filled(checklist: Checklist, folder: Folder) -> dict[str, object]:
    """What the templates show of a checklist."""
    answers = answered(checklist, folder)
    sections: dict[str, list[Answer]] = {}
    for one in answers:
        sections.setdefault(one.item.section, []).append(one)
    return {"about": checklist, "summary": summary(answers), "sections": sections}
