"""Commands for those who write plug-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

plugin_app = typer.Typer(help="Packages with parts of your own.", no_args_is_help=True)


@plugin_app.callback()
def _plugins() -> None:
    """Packages with parts of your own."""


@plugin_app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the package, such as polyclinic-more.")],
    out: Annotated[Path, typer.Option(help="Folder in which its folder is made.")] = Path(),
) -> None:
    """Write a small package with a rule, a network, a loss and a metric, and their tests."""
    from polyclinic.new_plugin import name_problem, write_plugin

    problem = name_problem(name)
    if problem:
        raise typer.BadParameter(problem, param_hint="NAME")
    folder = write_plugin(name, out)
    print(f"{folder}: install it with `pip install -e {folder}`; its README says more.")
