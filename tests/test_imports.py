"""Imports point down the order of the rooms, and no module is too long.

A room is a folder of the package, or a module that lies in none.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skconvrfm
from skconvrfm.compute.native import build

PACKAGE = Path(skconvrfm.__file__).parent
# From the top down: a module imports from its own room and from those below it.
ROOMS = [
    "__main__",
    "commands",
    "__init__",
    "transformer",
    "estimators",
    "_regressor",
    "_base",
    "_fitting",
    "ansatz",
    "display",
    "explain",
    "learning",
    "kernels",
    "features",
    "datasets",
    "_image_folder",
    "_scale",
    "_input",
    "_sequences",
    "_command_line",
    "_docs",
    "compute",
    "_sklearn_compat",
    "_typing",
]
# Names that may be imported from above.
FROM_ABOVE = {
    # A plain string, and the package is imported before any estimator is fitted.
    ("skconvrfm._fitting", "skconvrfm.__version__"),
}
LONGEST = 520


def module_name(path):
    parts = ("skconvrfm", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}


def room_of(name):
    """The room of a module, such as "kernels" of "skconvrfm.kernels.base"."""
    return name.split(".")[1] if "." in name else "__init__"


def imports_of(name, source=None):
    """Full names of all that a module imports, wherever in it."""
    tree = ast.parse(SOURCES[name] if source is None else source)
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base]) if base else ".".join(parts)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_modules(name):
    """Modules of the package that a module imports, or imports names from."""
    for target in imports_of(name):
        if target.partition(".")[0] != "skconvrfm" or (name, target) in FROM_ABOVE:
            continue
        module = target
        while module not in FILES:
            module = module.rpartition(".")[0]
        if module != name:
            yield module


def test_every_module_has_a_room():
    assert {room_of(name) for name in FILES} == set(ROOMS)


def test_imports_point_down_the_order_of_rooms():
    def level(name):
        return ROOMS.index(room_of(name))

    upward = {
        (name, module)
        for name in FILES
        for module in imported_modules(name)
        if level(module) < level(name)
    }
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: sorted(set(imported_modules(name))) for name in FILES}
    assert find_circle(graph) is None


def find_circle(graph):
    """Return modules of which each imports the next and the last the first, or None."""
    finished, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in finished:
            return None
        path.append(name)
        found = next(filter(None, map(visit, graph[name])), None)
        path.pop()
        finished.add(name)
        return found

    return next(filter(None, map(visit, graph)), None)


def test_private_names_of_sklearn_are_imported_in_one_module():
    importers = {
        name
        for name in FILES
        for target in imports_of(name)
        if target.startswith("sklearn.") and "._" in target
    }
    assert importers == {"skconvrfm._sklearn_compat"}


def test_no_module_is_too_long():
    assert [n for n, text in SOURCES.items() if text.count("\n") > LONGEST] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import skconvrfm.compute.images", "skconvrfm.compute.images"),
        ("from ..compute import tiles", "skconvrfm.compute.tiles"),
        ("from . import base", "skconvrfm.kernels.base"),
        ("from .base import ImageBlock", "skconvrfm.kernels.base.ImageBlock"),
        ("def f():\n    from .. import datasets", "skconvrfm.datasets"),
        ("from skconvrfm import estimators", "skconvrfm.estimators"),
    ],
)
def test_imports_of_every_form_are_found(source, expected):
    assert list(imports_of("skconvrfm.kernels.agop", source)) == [expected]


def test_circles_are_found():
    assert find_circle({"a": ["b"], "b": ["c"], "c": []}) is None
    assert find_circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]


@pytest.mark.slow
def test_import_builds_nothing_and_leaves_the_gpu_alone(environment, tmp_path):
    code = (
        "import skconvrfm, skconvrfm.kernels, skconvrfm.features, torch;"
        "assert not torch.cuda.is_initialized()"
    )
    environment |= {build.CACHE: str(tmp_path / "cache"), build.SWITCH: "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "cache").exists()


def test_test_files_have_names_of_their_own():
    """They are imported by their base name, whatever their folder."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py")]
    assert sorted(names) == sorted(set(names))
    assert not {Path(name).stem for name in names} & sys.stdlib_module_names
