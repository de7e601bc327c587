"""The command line: what it prints, what it imports, and how it says what went wrong."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from helpers import write_table_study
from polyclinic import __version__, cli
from polyclinic.engine import LocalEngine
from polyclinic.errors import SiteError

SIZES = {"Aachen": 16, "Bonn": 12}


@pytest.fixture
def command(capsys, monkeypatch):
    """Run ``polyclinic ...`` in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "console", cli.Console(stderr=True, highlight=False, width=200))
    monkeypatch.setattr(cli, "output", cli.Console(highlight=False, width=200))

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
def study_file(tmp_path):
    entries = write_table_study(tmp_path, SIZES)
    entries |= {"methods": ["single", "fedavg"]}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


HEAVY = ("torch", "pandas", "numpy", "monai", "matplotlib", "sklearn", "scipy", "pydantic", "jinja2", "PIL")


@pytest.mark.parametrize("code", ["import polyclinic", "import polyclinic.cli", "import polyclinic.errors"])
def test_importing_needs_no_heavy_library(code):
    script = f"{code}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_needs_no_heavy_library():
    script = (
        "import sys; sys.argv = ['polyclinic', '--help']\n"
        "from polyclinic.cli import main\n"
        "try: main()\n"
        f"finally: print('heavy:', *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("heavy:")
    for name in ("run", "check", "methods", "report", "demo"):
        assert f" {name} " in done.stdout


def test_the_public_names_are_there():
    import polyclinic

    assert polyclinic.Study.__name__ == "Study"
    assert polyclinic.Results.__name__ == "Results"
    assert polyclinic.PolyclinicError.exit_status == 1
    with pytest.raises(AttributeError, match="no attribute 'Studdy'"):
        _ = polyclinic.Studdy


def test_the_version(command):
    assert command("--version") == (0, f"polyclinic {__version__}\n", "")


def test_methods_lists_every_part_with_its_options(command, monkeypatch):
    from polyclinic.client.personal.models import PERSONAL
    from polyclinic.parts import PLACES
    from polyclinic.server.selection import PARTICIPATION

    monkeypatch.setattr("polyclinic.cli.output.width", 200)
    status, out, _ = command("methods", "--parts")
    assert status == 0
    for catalogue in (*PLACES.values(), PERSONAL, PARTICIPATION):
        assert all(re.search(rf"^{name} ", out, re.MULTILINE) for name in catalogue), catalogue.kind
    assert all(f"({place})" in out for place in PLACES)
    assert "seconds = (required)" in out
    assert "SCAFFOLD: each step goes along g − c_k + c" in out


def test_methods_lists_every_method_with_its_source(command):
    from polyclinic.methods import PUBLISHED

    status, out, _ = command("methods")
    assert status == 0
    for name in PUBLISHED:
        assert re.search(rf"^{name} ", out, re.MULTILINE)
    text = " ".join(out.split())
    assert "mu = 0.01" in text
    assert all(one.citation in text for one in PUBLISHED.values())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("options", [[], ["--parts"]], ids=["methods", "parts"])
def test_lists_fit_the_terminal_and_lose_nothing(command, monkeypatch, width, options):
    from polyclinic.methods import PUBLISHED

    wide = " ".join(command("methods", *options)[1].split())
    monkeypatch.setattr(cli, "output", cli.Console(highlight=False, width=width))
    _, out, _ = command("methods", *options)
    assert max(map(cell_len, out.splitlines())) <= width
    assert " ".join(out.split()) == wide
    assert not set("`…│┃") & set(out)
    if not options:
        published = PUBLISHED.values()
        assert all(text in wide for one in published for text in (one.place, one.summary, one.citation))


def test_check_counts_and_trains_nothing(command, study_file, monkeypatch):
    monkeypatch.setattr("polyclinic.study.jobs.run_rounds", lambda *_, **__: pytest.fail("trained"))
    status, out, _ = command("check", study_file)
    assert status == 0
    assert out.splitlines()[-1] == "2 sites; 28 cases found, 28 used, 0 rejected."
    assert "Aachen" in out
    assert sorted(path.name for path in study_file.parent.iterdir()) == ["cases.csv", "study.yaml"]


def test_run_and_report(command, study_file, tmp_path):
    status, out, err = command("run", study_file, "--out", tmp_path / "out")
    assert status == 0, err
    assert (tmp_path / "out" / "results.csv").is_file()
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in out
    assert "fedavg" in out
    assert "sequential on cpu, 1 thread" in " ".join(err.split())
    assert "Traceback" not in err
    first = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    assert command("report", tmp_path / "out") == (0, f"{tmp_path / 'out' / 'report.html'}\n", "")
    assert (tmp_path / "out" / "report.html").read_text() == first
    status, _, _ = command("report", tmp_path / "out", "--out", tmp_path / "elsewhere.html")
    assert status == 0
    assert (tmp_path / "elsewhere.html").is_file()


def test_run_of_some_methods_only(command, study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")
    status, _, err = command("run", study_file, "--out", tmp_path / "out", "--method", "fedprox", "--method", "fedavg")
    assert status == 0, err
    methods = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())["methods"]
    assert [next(iter(entry)) for entry in methods] == ["fedprox", "fedavg"]


def plain(err):
    """Messages are sentences: no traceback, no internal names."""
    for word in ("Traceback", 'File "', "polyclinic.", "pydantic", "None"):
        assert word not in err
    return " ".join(err.split())


def test_a_mistake_in_the_study_file(command, study_file, tmp_path):
    study_file.write_text(study_file.read_text().replace("rounds:", "round:"))
    status, out, err = command("run", study_file, "--out", tmp_path / "out")
    line = 1 + [text.strip().split(":")[0] for text in study_file.read_text().splitlines()].index("round")
    assert (status, out) == (2, "")
    assert plain(err) == (
        f"Error P103 study.yaml, line {line}, training.round: `training` has no entry 'round'. Did you mean 'rounds'?"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["run", "check"])
def test_a_mistake_in_the_data(command, study_file, tmp_path, what):
    table = tmp_path / "cases.csv"
    table.write_text(table.read_text().replace("diagnosis", "diagnose", 1))
    arguments = ["--out", tmp_path / "out"] if what == "run" else []
    status, out, err = command(what, study_file, *arguments)
    assert (status, out) == (2, "")
    assert plain(err).startswith("Error P202 ")
    assert "Did you mean 'diagnose'?" in plain(err)
    assert not (tmp_path / "out").exists()


def test_too_few_patients(command, study_file, tmp_path):
    study_file.write_text(study_file.read_text().replace("folds: 2", "folds: 50"))
    status, _, err = command("run", study_file, "--out", tmp_path / "out")
    assert status == 2
    assert "Error P206 No site has enough patients to be both trained on and tested." in plain(err)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(command, tmp_path):
    status, _, err = command("check", tmp_path / "nowhere.yaml")
    assert status == 2
    assert plain(err) == f"Error P101 There is no file {tmp_path}/nowhere.yaml. Give the path of a study file (YAML)."


def test_a_folder_that_holds_something_else(command, study_file, tmp_path):
    status, _, err = command("run", study_file, "--out", tmp_path)
    assert status == 1
    assert plain(err).startswith(f"Error P501 The folder {tmp_path} is not empty and holds no study.")
    status, _, err = command("report", tmp_path)
    assert status == 1
    assert plain(err).startswith("Error P501 ")


def test_a_message_with_square_brackets_is_printed_as_it_is(command, study_file, tmp_path):
    study_file.write_text(study_file.read_text().replace("- single", "- '[bold]single'"))
    _, _, err = command("run", study_file, "--out", tmp_path / "out")
    assert "'[bold]single' is no method." in err


def test_an_interruption_says_how_to_go_on(command, study_file, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("polyclinic.study.jobs.run_rounds", interrupt)
    status, _, err = command("run", study_file, "--out", tmp_path / "out")
    assert status == 130
    assert plain(err).endswith("Stopped. Finished rounds are saved: run the same command with --resume to go on.")


def test_a_cluster_that_ends_a_job_gets_the_same_words(study_file, tmp_path):
    """SIGTERM in the midst of training; afterwards the study goes on."""
    study_file.write_text(re.sub(r"rounds: \d+", "rounds: 3000", study_file.read_text()))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "polyclinic", "run", str(study_file), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("jobs/*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert plain(err).endswith("Stopped. Finished rounds are saved: run the same command with --resume to go on.")
    assert json.loads((out / "provenance.json").read_text())["status"] == "failed"
    assert not (out / ".lock").exists()


@pytest.mark.parametrize("width", [40, 80, 300])
def test_no_number_of_the_results_is_cut_off(width, monkeypatch, capsys):
    """Eleven metrics and a long label at any width of the terminal."""
    metrics = [f"metric{number:02}" for number in range(11)]
    rows = [
        {"method": method, "run": "plain", "over": over, "metric": name, "mean": 0.123 + number / 1000}
        for method in ("fedavg", "a label of many words and more, which is very long")
        for over in ("sites", "all")
        for number, name in enumerate(metrics)
    ]
    summary = pd.DataFrame(rows).assign(deviation=0.045)
    sites = pd.DataFrame({"site": ["A", "B"], "scored": ["True", "True"]})
    results = SimpleNamespace(summary=summary, sites=sites, notes=[], folder=Path("out"))
    monkeypatch.setattr("polyclinic.cli.output", Console(width=width, highlight=False))
    cli._print_results(results, metrics)
    shown = capsys.readouterr().out
    assert "…" not in shown
    for number, name in enumerate(metrics):
        assert shown.count(name.upper()) >= 2
        assert shown.count(f"{0.123 + number / 1000:.3f}") == 4


def test_training_that_fails_has_status_1(command, study_file, tmp_path):
    study_file.write_text(study_file.read_text().replace("lr: 0.1", "lr: 1.0e+30"))
    status, _, err = command("run", study_file, "--out", tmp_path / "out")
    assert status == 1
    expected = (
        r"Error P402 In round \d, 0 of 2 sites answered \(2 needed\)\. Aachen: P301 Training at site Aachen gave a loss"
    )
    assert re.search(expected, plain(err))


@pytest.mark.parametrize("predictions", ["coordinator", "sites"])
def test_a_study_that_ends_without_all_its_results_is_no_success(
    command, study_file, tmp_path, monkeypatch, predictions
):
    """Bonn trains, and does not answer when it is tested; the quorum lets the study go on."""
    entries = yaml.safe_load(study_file.read_text())
    entries["training"]["quorum"] = 1
    entries["evaluation"]["predictions"] = predictions
    study_file.write_text(yaml.safe_dump(entries))
    call = LocalEngine.call

    def silent(self, function, requests):
        for site, reply in call(self, function, requests):
            away = function in ("predict", "test") and site == "Bonn"
            yield site, SiteError("P402", f"Site {site} is away.", site=site) if away else reply

    monkeypatch.setattr(LocalEngine, "call", silent)
    status, out, err = command("run", study_file, "--out", tmp_path / "out")
    assert status == 3
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in out
    assert "Incomplete: sites that did not answer were not tested; the notes N810" in plain(err)
    assert "results are without Bonn, not tested for want of an answer." in plain(err)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["status"] == "incomplete"
    numbers = [note["number"] for note in json.loads((tmp_path / "out" / "notes.json").read_text())]
    assert "N810" in numbers
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert "Bonn" not in set(results["tested_on"])
    assert "N810" in (tmp_path / "out" / "report.html").read_text()


def test_as_a_process_of_its_own(study_file):
    """The installed command and its exit status."""
    study_file.write_text(study_file.read_text().replace("fedavg", "fedavgg"))
    done = subprocess.run(
        [sys.executable, "-m", "polyclinic", "check", str(study_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "'fedavgg' is no method. Did you mean 'fedavg'?" in " ".join(done.stderr.replace("\n", " ").split())


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"), (0.0005, "0.05 %"), (0.00001234, "0.0012 %"), (0.0249, "2.5 %"), (0.11, "11 %"),
        (0.994, "99 %"), (0.997, "99.7 %"), (0.99996, "100 %"), (1.0, "100 %"),
    ],
)  # fmt: skip
def test_shares_are_told_with_digits_that_count(share, text):
    assert cli._cell_text("foreground", share) == text
