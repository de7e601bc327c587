"""Plug-ins that are bad: none is left out in silence, and none is there by half."""

from types import SimpleNamespace

import pytest

from polyclinic import catalogues, options
from polyclinic.methods import PUBLISHED, publish
from polyclinic.options import Catalogue, EntryError
from polyclinic.parts import LOCAL_PARTS, SERVER_PARTS, ServerPart, SitePart
from polyclinic.study.notes import left_out
from polyclinic.study.provenance import plugins
from test_plugin_runs import command, table_study


def part(base=SitePart):
    return type("Found", (base,), {"__doc__": "A part."})


@pytest.fixture
def load(monkeypatch):
    """Load plug-ins, given as name -> what their import does."""
    before = catalogues._entered()

    def found(**imports):
        points = [
            SimpleNamespace(
                name=name, load=load, module=name, dist=SimpleNamespace(name=f"package-{name}", version="1.0")
            )
            for name, load in imports.items()
        ]
        monkeypatch.setattr(catalogues, "entry_points", lambda group: points if group == "polyclinic.parts" else [])
        return catalogues.load()

    yield found
    catalogues._take_back(before)


def test_plugins_are_loaded_by_name(load):
    found = load(b=lambda: LOCAL_PARTS.add("second")(part()), a=lambda: LOCAL_PARTS.add("first")(part()))
    assert [(one.name, one.package, one.problem) for one in found] == [
        ("a", "package-a 1.0", ""), ("b", "package-b 1.0", ""),
    ]  # fmt: skip
    assert list(LOCAL_PARTS)[-2:] == ["first", "second"]


def test_a_plugin_that_fails_brings_nothing(load):
    def bad():
        LOCAL_PARTS.add("half")(part())
        publish("half_method", "", "", "", local=["half"])
        raise ImportError("no module named 'x'")

    failed, other = load(bad=bad, good=lambda: LOCAL_PARTS.add("whole")(part()))
    assert failed.problem == "ImportError: no module named 'x'"
    assert str(failed) == "The plug-in bad (package-bad 1.0) could not be loaded: ImportError: no module named 'x'."
    assert not other.problem
    assert "half" not in LOCAL_PARTS
    assert "half_method" not in PUBLISHED
    assert "whole" in LOCAL_PARTS


@pytest.mark.parametrize(("bring", "why"), [
    (lambda: LOCAL_PARTS.add("proximal")(part()), "there is a local rule 'proximal' already"),
    (lambda: SERVER_PARTS.add("proximal")(part(ServerPart)), "there is a local rule 'proximal' already, and names"),
    (lambda: LOCAL_PARTS.add("a/b")(part()), "'a/b' is no name for a part"),
    (lambda: publish("fedavg", "", "", ""), "there is a method 'fedavg' already"),
    (lambda: publish("other", "", "", "", local=["absent"]), "the method other has a part 'absent'"),
])  # fmt: skip
def test_names_that_are_taken_or_wrong_are_refused(load, bring, why):
    own = LOCAL_PARTS["proximal"]
    (found,) = load(one=bring)
    assert found.problem.startswith(f"ValueError: {why}")
    assert LOCAL_PARTS["proximal"] is own
    assert "proximal" not in SERVER_PARTS
    assert "other" not in PUBLISHED


def test_of_two_plugins_with_one_name_the_second_is_left_out(load):
    first, second = load(
        a=lambda: LOCAL_PARTS.add("same")(part()),
        b=lambda: (LOCAL_PARTS.add("further")(part()), SERVER_PARTS.add("same")(part(ServerPart))),
    )
    assert not first.problem
    assert "there is a local rule 'same' already" in second.problem
    assert "same" not in SERVER_PARTS
    assert "further" not in LOCAL_PARTS


def test_a_catalogue_refuses_a_name_that_is_taken():
    catalogue = Catalogue("thing")
    catalogue.add("a")(dict)
    with pytest.raises(ValueError, match="there is a thing 'a' already"):
        catalogue.add("a")(list)
    assert catalogue["a"] is dict


def test_what_is_unknown_may_be_of_a_plugin_that_could_not_be_loaded(monkeypatch):
    monkeypatch.setattr(options, "ABSENT", ["The plug-in x (p 1.0) could not be loaded: it is bad."])
    with pytest.raises(EntryError, match=r"no local rule.* The plug-in x \(p 1.0\) could not be loaded: it is bad\."):
        LOCAL_PARTS.name("proximat", ())


def test_runs_note_what_could_not_be_loaded(monkeypatch):
    found = [catalogues.Plugin("a", "p 1.0"), catalogues.Plugin("b", "q 2.0", "ImportError: no")]
    monkeypatch.setattr("polyclinic.study.notes.PLUGINS", found)
    monkeypatch.setattr(catalogues, "PLUGINS", found)
    assert [(note.number, str(note)) for note in left_out()] == [
        ("N107", "The plug-in b (q 2.0) could not be loaded: ImportError: no.")
    ]
    assert plugins() == {"a": "p 1.0"}


def package(folder, version, content):
    """An installed package, as pip leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "own_parts.py").write_text(content)
    about = folder / "own_parts.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: own-parts\nVersion: {version}\n")
    (about / "entry_points.txt").write_text("[polyclinic.parts]\nown = own_parts\n")
    return folder


OWN = """
from polyclinic.parts import LOCAL_PARTS, SitePart

@LOCAL_PARTS.add("own")
class Own(SitePart):
    '''Does nothing.'''
"""


def test_a_study_that_names_a_part_of_a_bad_plugin_is_told_why(tmp_path):
    bad = package(tmp_path / "bad", "1.0", "import absent_package")
    study = table_study(tmp_path, {"own": {"local": ["own"]}})
    unknown = command("run", study, "--out", tmp_path / "out", lib=bad)
    assert unknown.returncode == 2
    said = " ".join(unknown.stderr.split())
    assert "P103" in said
    assert "The plug-in own (own-parts 1.0) could not be loaded: ModuleNotFoundError: No module named" in said


def test_a_study_goes_on_with_the_same_plugins_only(tmp_path):
    good, study = package(tmp_path / "good", "1.0", OWN), table_study(tmp_path, {"own": {"local": ["own"]}})
    command("run", study, "--out", tmp_path / "out", lib=good, dying=[1])
    package(good, "1.1", OWN)
    other = command("run", study, "--out", tmp_path / "out", "--resume", lib=good)
    assert other.returncode == 1
    said = " ".join(other.stderr.split())
    assert "P501" in said
    assert "was started with other plug-ins: own-parts 1.0. Now there are: own-parts 1.1." in said


@pytest.mark.long
def test_a_study_that_needs_no_plugin_is_run_with_a_note(tmp_path):
    bad = package(tmp_path / "bad", "1.0", "import absent_package")
    found = command("run", table_study(tmp_path, {}), "--out", tmp_path / "out", lib=bad)
    assert found.returncode == 0
    assert "N107" in (tmp_path / "out" / "notes.json").read_text()
    assert "could not be loaded" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
