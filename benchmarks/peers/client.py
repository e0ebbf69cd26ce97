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


def python_of(peer):
    """The Python of a peer's environment, or None unless it is built and current.

    Parameters
    ----------
    peer : str
        Name of the peer: of its ``<peer>_peer.py`` and ``<peer>_requirements.txt``.

    Returns
    -------
    Path or None
    """
    installed = ENVIRONMENTS / peer / "installed.txt"
    if installed.exists() and installed.read_text() == requirements(peer).read_text():
        return ENVIRONMENTS / peer / "bin" / "python"
    return None


def build_environment(peer):
    """Build the virtual environment of a peer unless it is there; return its Python.

    Of several processes one builds, and the others wait for it.
    """
    folder = ENVIRONMENTS / peer
    ENVIRONMENTS.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if python_of(peer) is None:
            print(f"building {folder} (once, some minutes)", flush=True)
            venv.create(folder, clear=True, with_pip=True)
            subprocess.run(
                [
                    *(folder / "bin" / "python", "-m", "pip", "install", "--quiet"),
                    *("--requirement", requirements(peer)),
                ],
                check=True,
            )
            # Written last: an interrupted build is built again.
            (folder / "installed.txt").write_text(requirements(peer).read_text())
    return python_of(peer)


def requirements(peer):
    """The file that pins a peer and what it needs; the peer comes first."""
    return HERE / f"{peer}_requirements.txt"


class PeerWorker:
    """A peer that stays alive between requests; a context manager.

    Parameters
    ----------
    peer : str
        Name of the peer, whose environment has been built.
    """

    def __init__(self, peer):
        self.peer = peer

    def __enter__(self):
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

    def ask(self, **request):
        """Send a request and wait for its answer.

        Parameters
        ----------
        **request : object
            Fields of the request, JSON values.

        Returns
        -------
        dict
            The answer.
        """
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.peer} failed:\n{self._errors.read_text()}")
        return json.loads(line)

    def compute(self, arrays, **request):
        """Send arrays with a request.

        Parameters
        ----------
        arrays : dict of ndarray
            The input of the request.
        **request : object
            Its other fields.

        Returns
        -------
        answer : dict
            The answer.
        result : ndarray
            The array that the peer computed.
        """
        folder = Path(self._folder.name)
        paths = {"input": str(folder / "in.npz"), "output": str(folder / "out.npz")}
        np.savez(paths["input"], **arrays)
        answer = self.ask(**paths, **request)
        with np.load(paths["output"]) as archive:
            return answer, archive["result"]
