"""Programs of the guide run and print the output that is shown below them.

The Python blocks of a page run one after another in one namespace and folder. A
comment `.. setup:` has code that runs before the next block and is not shown; the block
after a comment `.. not run: REASON` is left out. A text block directly after a Python
block is its output.
"""

import re
import textwrap
from pathlib import Path

import pytest
from printed import assert_same_output

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "start.rst",
    "method.rst",
    *sorted(f"guide/{path.name}" for path in DOCS.glob("guide/*.rst")),
]
PYTHON = ".. code-block:: python"
BLOCK = re.compile(
    rf"^({re.escape(PYTHON)}|\.\. code-block:: text|\.\. setup:|\.\. not run:).*\n"
    r"((?: +.*\n|\n)*)",
    re.M,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DOCS.exists(), reason="tests run without the repository"),
    pytest.mark.usefixtures("matplotlib_without_a_screen"),
]


def programs(text):
    """Return line, code and output (or None) of the programs of a page that run."""
    found, end, run = [], None, True
    for match in BLOCK.finditer(text):
        kind, body = match.groups()
        body = textwrap.dedent(body).strip("\n") + "\n"
        if kind == ".. not run:":
            run = False
        elif kind == ".. code-block:: text":
            if match.start() == end:
                found[-1][2] = body
        elif run or kind == ".. setup:":
            found.append([text.count("\n", 0, match.start()) + 2, body, None])
            end = match.end()
        else:
            run = True
    return found


@pytest.mark.parametrize("page", PAGES)
def test_programs_of_page_run(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code, expected in programs((DOCS / page).read_text()):
        # Errors name the line of the page.
        exec(compile("\n" * line + code, page, "exec"), namespace)
        printed = capsys.readouterr().out
        if expected is not None:
            assert_same_output(printed, expected)


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_of_page_is_found(page):
    text = (DOCS / page).read_text()
    assert len(re.findall(r"code-block:: python", text)) == sum(
        kind == PYTHON for kind, _ in BLOCK.findall(text)
    )


def test_page_is_split_into_programs():
    page = """
.. setup:
   x = 1

.. code-block:: python

   print(x)

.. code-block:: text

   1

.. not run: needs a cluster

.. code-block:: python

   print(y)

Words.

.. code-block:: text

   2
"""
    assert programs(page) == [[3, "x = 1\n", None], [6, "print(x)\n", "1\n"]]
