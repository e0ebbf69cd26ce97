"""Builds the environment of neural-tangents and talks to the worker that runs in it."""

import functools
import json
import os
import subprocess
import tempfile
import venv
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".environments"
# By the platform of JAX.
NAMES = {"cpu": "neural_tangents", "cuda": "neural_tangents_cuda"}


def python(name):
    """Return the Python of a virtual environment, which is built if it is new."""
    requirements, folder = HERE / f"{name}_requirements.txt", ENVIRONMENTS / name
    installed, path = folder / "installed.txt", folder / "bin" / "python"
    wanted = requirements.read_text()
    if not installed.exists() or installed.read_text() != wanted:
        print(f"building {folder} (once, some minutes)", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        install = (path, "-m", "pip", "install", "--quiet", "-r", requirements)
        subprocess.run(install, check=True)
        installed.write_text(wanted)  # last: an interrupted build is built again
    return path


class Worker:
    """The peer, which stays alive between requests, and ends with this process."""

    def __init__(self, platform="cpu"):
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [python(NAMES[platform]), HERE / "neural_tangents_peer.py"],
                env={**os.environ, "JAX_PLATFORMS": platform},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def compute(self, arrays, **request):
        """Return times of the peer for arrays and a request, and its array."""
        paths = (str(Path(self._folder.name) / name) for name in ("in.npz", "out.npz"))
        request["input"], request["output"] = paths
        np.savez(request["input"], **arrays)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer failed:\n{self._errors.read_text()}")
        with np.load(request["output"]) as archive:
            return json.loads(line), archive["result"]


worker = functools.cache(Worker)  # started once, when it is first asked
