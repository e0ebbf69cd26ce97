"""Examples in docstrings, and the one in the README, print what they say."""

import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest
from printed import assert_same_output

import skconvrfm

MODULES = [
    "skconvrfm",
    *(
        module.name
        for module in pkgutil.walk_packages(skconvrfm.__path__, "skconvrfm.")
    ),
]
PUBLIC = [
    "skconvrfm",
    "skconvrfm.ansatz",
    "skconvrfm.datasets",
    "skconvrfm.display",
    "skconvrfm.explain",
    "skconvrfm.features",
    "skconvrfm.kernels",
]
README = Path(__file__).parents[1] / "README.rst"

pytestmark = pytest.mark.usefixtures("matplotlib_without_a_screen")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module_print_their_output(name):
    if name == "skconvrfm.display":
        pytest.importorskip("matplotlib")
    if name.startswith("skconvrfm.compute.fused.") and not name.endswith("check"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def public_objects():
    """Yield the names and values of all public classes and functions."""
    for name in PUBLIC:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", dir(module)):
            value = getattr(module, public)
            if callable(value) and not public.startswith("_"):
                if inspect.getmodule(value).__name__.startswith("skconvrfm"):
                    yield f"{name}.{public}", value


def test_public_objects_have_examples():
    without = [n for n, v in public_objects() if ">>> " not in inspect.getdoc(v)]
    assert without == []


@pytest.mark.slow
@pytest.mark.skipif(not README.exists(), reason="tests run without the repository")
def test_readme_example_prints_its_output(capsys):
    blocks = re.findall(
        r"^\.\. code-block:: (python|text)\n\n((?:    .*\n|\n)+)",
        README.read_text(),
        re.M,
    )
    (_, program), (_, expected) = blocks[:2]
    assert [kind for kind, _ in blocks[:2]] == ["python", "text"]
    exec(compile(textwrap.dedent(program), "README.rst", "exec"), {})
    printed = capsys.readouterr().out
    assert_same_output(printed, expected)
