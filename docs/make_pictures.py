"""Write the picture of the README: ``python docs/make_pictures.py``.

It is the one that the first example of the gallery draws.
"""

import runpy
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent

if __name__ == "__main__":
    matplotlib.use("agg")
    example = runpy.run_path(str(HERE / "examples" / "plot_star.py"))
    example["figure"].savefig(HERE / "images" / "star.png", dpi=110)
