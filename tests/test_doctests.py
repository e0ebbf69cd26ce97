"""The examples in the docstrings give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import skconvrfm

MODULES = ["skconvrfm"] + [
    module.name
    for module in pkgutil.walk_packages(skconvrfm.__path__, "skconvrfm.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name, tmp_path, monkeypatch):
    if name == "skconvrfm.display":
        pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "name", ["ConvRFMClassifier", "ConvRFMRegressor", "kernels.convolutional_kernel"]
)
def test_what_users_call_has_an_example(name):
    module, _, attribute = f"skconvrfm.{name}".rpartition(".")
    documented = getattr(importlib.import_module(module), attribute)
    assert doctest.DocTestFinder(recurse=False).find(documented)[0].examples
