"""How the package is built: no circles of imports, and what is loaded for what."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

import polyclinic

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
