"""Builds the environment of a peer and talks to the worker that runs in it."""

import fcntl
import json
import os
import subprocess
import tempfile
import venv
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".environments"


def requirements(peer):
    """Return the file that pins a peer and what it needs; the peer comes first."""
    return HERE / f"{peer}_requirements.txt"


def python_of(peer):
    """Return the Python of a peer's environment, None unless built and current."""
    installed = ENVIRONMENTS / peer / "installed.txt"
    if installed.exists() and installed.read_text() == requirements(peer).read_text():
        return ENVIRONMENTS / peer / "bin" / "python"
    return None


def build_environment(peer):
    """Build the virtual environment of a peer unless it is there.

    Of several processes one builds, and the others wait for it.
    """
    folder = ENVIRONMENTS / peer
    ENVIRONMENTS.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if python_of(peer) is None:
            print(f"building {folder} (once, some minutes)", flush=True)
            venv.create(folder, clear=True, with_pip=True)
            install = (folder / "bin" / "python", "-m", "pip", "install", "--quiet")
            subprocess.run([*install, "-r", requirements(peer)], check=True)
            # Written last: an interrupted build is built again.
            (folder / "installed.txt").write_text(requirements(peer).read_text())


class PeerWorker:
    """A peer that stays alive between requests; a context manager.

    Its environment is built if it is not there.

    Parameters
    ----------
    peer : {"neural_tangents", "kymatio", "xrfm"}
    """

    def __init__(self, peer):
        self.peer = peer

    def __enter__(self):
        build_environment(self.peer)
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [python_of(self.peer), HERE / f"{self.peer}_peer.py"],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def compute(self, arrays, **request):
        """Return the answer of the peer to arrays and a request, and its array."""
        folder = Path(self._folder.name)
        paths = {"input": str(folder / "in.npz"), "output": str(folder / "out.npz")}
        np.savez(paths["input"], **arrays)
        try:
            self._process.stdin.write(json.dumps({**paths, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.peer} failed:\n{self._errors.read_text()}")
        with np.load(paths["output"]) as archive:
            return json.loads(line), archive["result"]
