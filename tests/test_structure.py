"""How the package is built: no circles of imports, and what is loaded for what."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

import polyclinic
from helpers import write_image_study, write_table_study
from polyclinic.study.study import Study

SOURCE = Path(polyclinic.__file__).parent


def imports(source):
    """Module -> the modules of the package ``source`` that it names in an import.

    Imports inside functions and those for type checkers count, too. A package's own ``__init__`` is counted where it is
    named only: that it is run whenever one of its modules is imported makes no circle.
    """
    files = {}
    for path in source.rglob("*.py"):
        parts = [source.name, *path.relative_to(source).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} has a relative import"
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                named |= {name if name in files else str(node.module) for name in inner}
        graph[module] = named & files.keys() - {module}
    return graph


def circles(graph):
    """Groups of modules each of which leads to all others of its group."""
    names = sorted(graph)
    links = np.array([[name in graph[module] for name in names] for module in names])
    count, group = connected_components(links, directed=True, connection="strong")
    found = [[name for name, own in zip(names, group, strict=True) if own == number] for number in range(count)]
    return sorted(members for members in found if len(members) > 1)


def test_no_modules_import_each_other_in_a_circle():
    graph = imports(SOURCE)
    assert "polyclinic.study.runner" in graph["polyclinic.study.study"]  # inside a function
    assert "polyclinic.study.results" in graph["polyclinic"]  # for type checkers
    assert circles(graph) == []


@pytest.mark.parametrize(
    "line",
    ["import made.a", "from made import a", "from made.a import x", "def f():\n    from made.a import x",
     "if TYPE_CHECKING:\n    from made.a import x"],
)  # fmt: skip
def test_a_circle_is_found_wherever_its_imports_stand(tmp_path, line):
    source = tmp_path / "made"
    source.mkdir()
    for name, text in {
        "__init__": "",
        "a": "import made.b",
        "b": "import made.c",
        "c": line,
        "d": "import made.a",
    }.items():
        (source / f"{name}.py").write_text(text)
    assert circles(imports(source)) == [["made.a", "made.b", "made.c"]]
    (source / "c.py").write_text("import os")
    assert circles(imports(source)) == []


#: Runs what stands after it, and tells on the error stream which of these packages are loaded at the end.
TELL = """
import sys
try:
    exec(sys.argv.pop(1))
finally:
    heavy = ["matplotlib", "monai", "pandas", "polyclinic.engine", "scipy", "sklearn", "torch"]
    print("loaded:", *[name for name in heavy if name in sys.modules], file=sys.stderr)
"""
COMMAND = "from polyclinic.cli import main; main()"


def loaded(code, *arguments):
    """Which heavy packages a new process has loaded when it has run ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", TELL, code, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()[1:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Results folders with everything that a report can show."""
    table, images = tmp_path_factory.mktemp("table"), tmp_path_factory.mktemp("images")
    entries = write_table_study(table, {"Aachen": 24, "Bonn": 20, "Celle": 22})
    entries["data"] |= {"harmonisation": {"combat": {}}}
    entries["training"] |= {"rounds": 1}
    entries["evaluation"] |= {"unseen_sites": True, "bootstrap": 10}
    entries |= {
        "model": "logistic",
        "methods": ["single", "cross", "mix", {"scaffold": {}}],
        "search": {"trials": 2, "parameters": {"training.batch_size": [8, 4]}},
        "attack": {"backdoor": {"target": "kind 1", "features": {"x0": 9.0}}, "sites": ["Bonn"]},
    }
    segmented = write_image_study(images, {"Aachen": 6, "Bonn": 6}) | {"methods": ["single", "fedavg"]}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder)
        found = [Study.of(one, folder).run(folder / "out").folder for one, folder in
                 ((entries, table), (segmented, images))]  # fmt: skip
    shown = {path.name for folder in found for path in folder.iterdir()}
    assert {"harmonisation.csv", "backdoor.csv", "search.csv", "overlays.safetensors"} <= shown
    return found


def test_the_report_needs_no_torch(folders):
    for folder in folders:
        assert {"matplotlib", "pandas"} <= set(found := loaded(COMMAND, "report", folder))
        assert not {"torch", "monai", "polyclinic.engine"} & set(found)
        assert (folder / "report.html").stat().st_size > 10_000


def test_tables_of_results_need_pandas_alone(folders):
    code = "import polyclinic, sys; found = polyclinic.Results(sys.argv[1]); found.table(); found.search; found.notes"
    assert loaded(code, folders[0]) == ["pandas"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_what_says_something_of_the_program_needs_nothing_heavy(arguments):
    assert loaded(COMMAND, *arguments) == []


def test_the_package_itself_loads_nothing():
    assert loaded("import polyclinic; polyclinic.PolyclinicError") == []


def test_a_study_loads_torch():
    """So that the tests above can fail."""
    assert "torch" in loaded("import polyclinic; polyclinic.Study")
