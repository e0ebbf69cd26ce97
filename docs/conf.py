"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``."""

import os

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx_gallery.sorting import ExplicitOrder

import skconvrfm

project = "skconvrfm"
author = "the skconvrfm developers"
copyright = "2026, the skconvrfm developers"
version = release = skconvrfm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
# The sources of the gallery are not pages; sphinx-gallery makes docs/gallery of them.
# Its tables of times load scripts from the network.
exclude_patterns = ["_build", "changes", "examples", "**sg_execution_times.rst"]
default_role = "literal"
extlinks = {"arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s")}

autodoc_preserve_defaults = True
# Types are in the docstrings, in the format of numpydoc.
autodoc_typehints = "none"
autosummary_generate = True
toc_object_entries_show_parents = "hide"
# Methods are listed by the template of classes.
numpydoc_show_class_members = False

# The order of the gallery: simple examples first.
examples = (
    "star",
    "framed_digits",
    "grid_search",
    "method",
    "saliency",
    "explanation",
    "natural_images",
    "solar_cells",
    "deep",
    "second_layer",
    "ansatz",
    "precomputed_kernel",
    "cost",
    "cluster",
)
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": ExplicitOrder(
        [f"plot_{example}.py" for example in examples]
    ),
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("skconvrfm",),
    "reference_url": {"skconvrfm": None},
    # Examples that have changed are run by every build, and a failure ends it.
    "run_stale_examples": False,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "image_scrapers": ("matplotlib",),
    "capture_repr": (),
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = f"skconvrfm {release}"
html_static_path = ["_static"]
html_css_files = ["skconvrfm.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = dict.fromkeys(
    [
        *("changelog", "comparison", "contributing", "glossary", "install"),
        *("method", "reproduction", "start"),
    ],
    [],
)

# Links into other documentation need the network.
if "READTHEDOCS" in os.environ:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "joblib": ("https://joblib.readthedocs.io/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

# Formulas are MathML, which browsers draw without a script or the network. docutils,
# on which Sphinx is built, converts them.


def visit_math(translator, node):
    """Write a formula within a line."""
    translator.body.append(as_mathml(node, block=False))
    raise SkipNode


def visit_displaymath(translator, node):
    """Write a formula of its own, which scrolls where it is too wide."""
    translator.body.append(f'<div class="math">{as_mathml(node, block=True)}</div>')
    raise SkipNode


def as_mathml(node, block):
    """Return the formula of a node in MathML; a warning if it cannot be converted."""
    try:
        return tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        return node.astext()


def setup(app):
    """Draw formulas with MathML."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_math, None),
        block_renderers=(visit_displaymath, None),
    )
