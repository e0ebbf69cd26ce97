"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``."""

import os

import skconvrfm

project = "skconvrfm"
author = "the skconvrfm developers"
copyright = "2026, the skconvrfm developers"
version = release = skconvrfm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "sphinx.ext.mathjax",
    "numpydoc",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "literal"
extlinks = {"arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s")}

autodoc_preserve_defaults = True
autosummary_generate = True
# Methods are listed by the template of a class.
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"skconvrfm {release}"

# Links into the documentation of others need the network, the rest does not.
if "READTHEDOCS" in os.environ:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "joblib": ("https://joblib.readthedocs.io/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }
