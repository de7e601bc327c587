"""The page on adding a part shows files that are tested, and hooks that are there."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from helpers import declare
from plugin_helpers import plugged_in
from polyclinic import catalogues
from polyclinic.composition import METHODS
from polyclinic.parts import ServerEnd, SiteEnd

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding-a-part.md").read_text(encoding="utf-8")
QUOTES = re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)\n```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "quote"), QUOTES, ids=[name for name, _ in QUOTES])
def test_quotes_are_the_files(name, quote):
    assert quote == (ROOT / name).read_text(encoding="utf-8").strip()


def test_a_rule_a_channel_and_a_grouping_are_quoted():
    names = {Path(name).name for name, _ in QUOTES}
    assert names == {"pyproject.toml", "__init__.py", "common_direction.py", "largest.py", "clusters.py"}


def test_what_study_files_say_of_the_parts_can_be_read():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    with plugged_in():
        for block in blocks:
            labels = [method.label for method in declare(**yaml.safe_load(block)).study_methods]
            assert len(labels) == len(set(labels)) > 0


def test_a_method_can_be_given_a_name():
    (block,) = re.findall(r"```python\n(from polyclinic.methods.*?)```", PAGE, re.DOTALL)
    with plugged_in():
        before = catalogues._entered()
        try:
            exec(block, {})  # noqa: S102 - our own page
            catalogues._check(before)
            assert METHODS["ifca"](number=3).topology == ("clusters", {"number": 3})
        finally:
            catalogues._take_back(before)


def hooks(end):
    """What a part may override."""
    given = ("__init__", "kept", "sent")
    return {name for name, found in vars(end).items() if inspect.isfunction(found) and name not in given}


def test_the_page_has_all_hooks():
    tables = PAGE.partition("## What each hook gives\n")[2].partition("\n## ")[0].split("Those of an end at the server")
    for table, end in zip(tables, (SiteEnd, ServerEnd), strict=True):
        assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == hooks(end)
