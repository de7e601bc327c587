"""The commands ``polyclinic data list``, ``describe`` and ``prepare``."""

import subprocess
import sys

import pytest
from rich.console import Console

from polyclinic import cli, cli_data
from polyclinic.data.catalogue import ENTRIES


@pytest.fixture
def command(capsys, monkeypatch):
    """Run ``polyclinic ...`` in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["polyclinic", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as leaving:
            status = leaving.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def prostate(tree):
    tree.touch(*(f"{site}/Case0{number}.nii.gz" for site in ("HK", "UCL") for number in range(3)))
    tree.touch(*(f"{site}/Case0{number}_segmentation.nii.gz" for site in ("HK", "UCL") for number in range(2)))
    return tree


def test_list(command):
    status, out, _ = command("data", "list")
    assert status == 0
    assert all(f"\n {name} " in out for name in ENTRIES)


def test_the_list_has_licences_and_fits_a_narrow_terminal(command, monkeypatch):
    monkeypatch.setattr(cli_data, "output", Console(width=100, highlight=False))
    lines = command("data", "list")[1].splitlines()
    assert max(map(len, lines)) <= 100
    first = {line.split()[0]: line for line in lines if line.startswith(" ") and line[1:2].strip()}
    assert all(first[name].rstrip().endswith(f" {entry.licence}") for name, entry in ENTRIES.items())


@pytest.mark.parametrize("name", ENTRIES)
def test_describe(command, name):
    status, out, _ = command("data", "describe", name)
    assert status == 0
    assert ENTRIES[name].layout in out
    assert out.rstrip().endswith(f"polyclinic data prepare {name} --from FOLDER --out my-study")
    words = "".join(out.split())  # a long address is broken at the width of the terminal
    for text in (ENTRIES[name].access, ENTRIES[name].citation):
        assert text.split()[0] in words


def test_prepare(command, prostate, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = command("data", "prepare", "prostate", "--from", prostate.folder, "--out", out)
    assert status == 0
    assert [line.split() for line in printed.splitlines() if line.startswith((" HK", " UCL"))] == [
        ["HK", "3", "2", "1", "2"],
        ["UCL", "3", "2", "1", "2"],
    ]
    assert "Rejected: 2 (mask is missing)" in printed
    assert "Terms: Research use" in printed
    assert f"{out / 'manifest.csv'}: 4 cases of 2 sites." in printed
    assert printed.endswith(f"Next: polyclinic check {out / 'study.yaml'}\n")


def test_prepare_with_choices(command, prostate, tmp_path):
    call = ("data", "prepare", "prostate", "--from", prostate.folder, "--out", tmp_path / "out")
    status, _, err = command(*call, "--label", "lungs")
    assert (status, "Error P208 Prostate MRI from six sites (SAML) has no label 'lungs'" in " ".join(err.split())) == (
        2,
        True,
    )
    status, _, err = command(*call, "--positive", "a, b")
    assert (status, "has no classes" in err) == (2, True)
    status, _, err = command(*call, "--sites-by", "quantity", "--sites", "2", "--alpha", "1", "--seed", "1")
    assert (status, "4 subjects can't be spread over 2 artificial sites" in err) == (2, True)
    status, _, err = command(*call, "--sessions", "some")
    assert (status, "expected first or all" in err) == (2, True)


def test_a_wrong_name_and_a_wrong_folder(command, tree, tmp_path):
    status, _, err = command("data", "describe", "adnii")
    assert (status, "Did you mean 'adni'?" in err) == (2, True)
    tree.touch("a.txt")
    status, _, err = command("data", "prepare", "ixi", "--from", tree.folder, "--out", tmp_path / "out")
    assert status == 2
    assert "No IXI002-Guys-0828-T1.nii.gz or the like was found; it holds a.txt." in err
    assert "`polyclinic data describe ixi` shows the layout" in err
    assert not (tmp_path / "out").exists()


def test_help_needs_no_heavy_library():
    script = (
        "import sys; sys.argv = ['polyclinic', 'data', '--help']\n"
        "from polyclinic.cli import main\n"
        "try: main()\n"
        "finally: print('heavy:', *(n for n in ('torch', 'pandas', 'numpy', 'nibabel') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("heavy:")
    for name in ("list", "describe", "prepare"):
        assert f" {name} " in done.stdout
