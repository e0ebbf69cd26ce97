"""What the documentation shows is what happens."""

import doctest
import importlib
import inspect
import io
import pkgutil
import re
from contextlib import redirect_stdout
from textwrap import dedent

import pytest
from conftest import ROOT

import skconvrfm

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(skconvrfm.__path__, "skconvrfm.")
    if not name.endswith("__main__")
]
PUBLIC = [
    getattr(importlib.import_module(module), name)
    for module in ("skconvrfm", "skconvrfm.kernels", "skconvrfm.datasets")
    for name in importlib.import_module(module).__all__
    if not name.startswith("__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    if name == "skconvrfm.display":
        pytest.importorskip("matplotlib").use("agg")
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_docstring_describes_every_parameter(thing):
    assert "Examples\n" in inspect.getdoc(thing)
    parameters = inspect.getdoc(thing).partition("Parameters\n")[2]
    for name in inspect.signature(thing).parameters:
        assert re.search(rf"^(.*, )?{name}(, .*)? : ", parameters, re.MULTILINE), name


def test_example_in_the_readme():
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    example, expected = (
        dedent(re.search(rf"code-block:: {language}\n\n((?: .*|\n)+)", readme)[1])
        for language in ("python", "text")
    )
    with redirect_stdout(io.StringIO()) as printed:
        exec(example, {})
    assert printed.getvalue().split() == expected.split()
