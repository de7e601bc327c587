"""The commands of ``polyclinic data``."""

from __future__ import annotations

import typer

data_app = typer.Typer(help="Find out what a folder of images is, and prepare known data sets.", no_args_is_help=True)
