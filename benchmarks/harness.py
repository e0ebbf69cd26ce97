"""Data, clocks, memory, tables and the machine, for all benchmarks (Linux)."""

import gc
import json
import os
import platform
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# The folder of the files of images.
DATA = ROOT.parent / "shared" / "data"
MEBIBYTE = 2**20
# Whose versions a measurement tells; None for what is not installed.
VERSIONS = ("skconvrfm", "torch", "scikit-learn", "numpy", "scipy", "skorch")


# ------------------------------------------------------------------------- data


def smooth_images(n_images, image_shape=(32, 32, 3), seed=0):
    """Random images whose spectrum falls with frequency as that of photographs does.

    Parameters
    ----------
    n_images : int
        Number of images.
    image_shape : (int, int, int), default=(32, 32, 3)
        Rows, columns and channels.
    seed : int, default=0
        Seed of the noise that is smoothed.

    Returns
    -------
    images : ndarray of shape (n_images, h, w, c), float32
        Values in [0, 1].
    """
    h, w, _ = image_shape
    noise = np.random.default_rng(seed).standard_normal((n_images, *image_shape))
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
    falloff = 1 / np.maximum(frequency, 1 / max(h, w))
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * falloff[..., None]
    images = np.fft.irfft2(spectrum, s=(h, w), axes=(1, 2))
    low = images.min(axis=(1, 2, 3), keepdims=True)
    high = images.max(axis=(1, 2, 3), keepdims=True)
    return ((images - low) / (high - low)).astype(np.float32)


def load_images(path, n_images):
    """The first images of an .npz file as float32 in [0, 1].

    Parameters
    ----------
    path : path-like
        An archive with ``X_train`` of shape (n, h, w) or (n, h, w, c).
    n_images : int
        How many of them.

    Returns
    -------
    images : ndarray of shape (n_images, h, w, c)
    """
    with np.load(path, allow_pickle=False) as archive:
        images = archive["X_train"][:n_images]
    if len(images) < n_images:
        raise ValueError(f"{path} has {len(images)} images in X_train, not {n_images}.")
    scale = 255 if images.dtype == np.uint8 else 1
    images = images.astype(np.float32) / scale
    return images[..., None] if images.ndim == 3 else images


# ----------------------------------------------------------------------- clocks


def timed(function, *args, **kwargs):
    """Call a function and measure it.

    Returns
    -------
    measured : dict
        ``seconds`` on the wall and ``cpu_seconds`` of all threads of this process.
        The second hardly changes when other programs share the machine.
    result : object
        What the function returned.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args, **kwargs)
    measured = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
    return measured, result


def children_cpu_seconds():
    """CPU seconds of this process's children so far, also of those that still run.

    A clock for differences, for what `timed` does not see: pools of processes and
    workers.
    """
    ended = os.times()
    running = sum(map(_cpu_ticks, _children()))
    tick = os.sysconf("SC_CLK_TCK")
    return ended.children_user + ended.children_system + running / tick


def timed_with_children(function, *args, **kwargs):
    """Measure a call as `timed` does, with the CPU seconds of pools and workers."""
    before = children_cpu_seconds()
    measured, result = timed(function, *args, **kwargs)
    measured["cpu_seconds"] += children_cpu_seconds() - before
    return measured, result


def _children():
    """The numbers of this process's children that run now."""
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            yield from path.read_text().split()
        except OSError:  # a thread that has ended meanwhile
            continue


def _cpu_ticks(process):
    """Ticks of the clock that a process has used; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    # The name, in parentheses, may hold anything; user and system time are 14 and 15.
    return sum(map(int, stat.rpartition(")")[2].split()[11:13]))


def median(values):
    """The median as a float."""
    return float(np.median(values))


def growth_exponent(sizes, seconds):
    """The power of the size that time grows with: slope of a fit in logarithms.

    Parameters
    ----------
    sizes, seconds : sequence of float, all positive
        Time by size.

    Returns
    -------
    float
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


# ----------------------------------------------------------------------- memory


def peak_memory(function, *args, **kwargs):
    """Call a function and measure how far it raises the resident memory.

    Returns
    -------
    rise : int
        Bytes: the peak during the call over what was resident before it.
    result : object
        What the function returned; its bytes are part of the rise.
    """
    gc.collect()
    # Writing 5 resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    result = function(*args, **kwargs)
    return peak_resident() - before, result


def peak_resident():
    """Bytes that were resident at the worst moment of this process."""
    return _status_bytes("VmHWM")


class OwnMemory:
    """The most memory of their own that this process and its children had together.

    A thread looks every so often while the context lasts. Pages of mapped files are
    resident too, but the system takes them back when it needs them: they do not count.

    Parameters
    ----------
    interval : float, default=0.02
        Seconds between two looks.

    Attributes
    ----------
    peak : int
        Bytes, without those from before the context.
    """

    def __init__(self, interval=0.02):
        self._interval, self._ended = interval, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._before, self.peak = self._now(), 0
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(self._interval):
            self.peak = max(self.peak, self._now() - self._before)

    @staticmethod
    def _now():
        total = _status_bytes("RssAnon")
        for process in _children():
            try:
                # Until it has become another program, a new child shows the memory of
                # the process that it comes from, and has none of its own.
                if _command_line(process) != _command_line():
                    total += _status_bytes("RssAnon", process)
            except (OSError, RuntimeError):  # it has ended meanwhile
                continue
        return total


def _command_line(process="self"):
    """The words that a process was started with, as bytes."""
    return Path(f"/proc/{process}/cmdline").read_bytes()


def _status_bytes(field, process="self"):
    """A memory field of a process's /proc/.../status in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{process}/status has no {field}")


def in_subprocess(module, *arguments, env=None):
    """Run ``python -m module arguments`` and parse the JSON that it prints last.

    Parameters
    ----------
    module : str
        Module to run.
    *arguments : object
        Its arguments.
    env : dict, default=None
        Variables to add to the environment.

    Returns
    -------
    object
        The parsed last line of the standard output.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


class Results:
    """Measurements in a file of JSON lines that several processes may share.

    Parameters
    ----------
    path : path-like
        The file; it need not exist.
    key : sequence of str
        Entries of a record that name it.
    settings : dict, default={}
        Other entries that a record must have; those with others are left alone.
    """

    def __init__(self, path, key, settings=None):
        self.path, self.key, self.settings = Path(path), key, settings or {}

    def read(self):
        """Return the records by their names, tuples."""
        if not self.path.exists():
            return {}
        records = map(json.loads, self.path.read_text().splitlines())
        return {
            tuple(record[entry] for entry in self.key): record
            for record in records
            if all(record[key] == value for key, value in self.settings.items())
        }

    def once(self, name, measure):
        """Return the record of this name, measured and written unless it is there."""
        if name not in self.read():
            record = dict(zip(self.key, name, strict=True)) | self.settings | measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(*name, record, flush=True)
        return self.read()[name]


# ---------------------------------------------------------------------- reports


def format_table(headers, rows):
    """A table as text that is also a simple table of reStructuredText.

    Parameters
    ----------
    headers : list of str
        One a column.
    rows : list of list
        Cells: text as it is, floats to three digits, None as a dash.

    Returns
    -------
    str
    """
    cells = [headers, *([_format_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _format_cell(cell):
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def add_data_option(parser):
    """Add ``--data``, the folder of the files of images, to a command line."""
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the files")


def check_data_option(parser, options):
    """End the command with a message where ``--data`` is no folder."""
    if not options.data.is_dir():
        parser.error(f"--data {options.data} is no folder; pass the one with the files")


def tell_differences(differences, tolerance):
    """Print the names of results that differ too much; return the exit status.

    Parameters
    ----------
    differences : dict of str to (float or None)
        How far two results differ, by name; None where they were not compared.
    tolerance : float
        The largest difference that is none.

    Returns
    -------
    int
    """
    wrong = [
        name
        for name, value in differences.items()
        if value is not None and not value <= tolerance
    ]
    if wrong:
        print(f"\nresults differ by more than {tolerance:g}: {', '.join(wrong)}")
    return 1 if wrong else 0


def describe_machine():
    """Return what a measurement needs beside it to be understood later.

    Returns
    -------
    dict
        Date, command, processor, cores, memory, versions, source revision, and how
        busy the machine was.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
        "revision": _revision(),
    }


def _processor():
    """Model name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor())


def processor_flags():
    """The names of what the processor can do, as Linux has them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    flags = (line.split(":", 1)[1] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision():
    """The commit of the source, with a plus where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def report(tables, results, json_path=None):
    """Print tables under a line about the machine; write the results as JSON.

    Parameters
    ----------
    tables : list of str
        What to print.
    results : dict
        What was measured.
    json_path : path-like, default=None
        Where to write the results with the machine beside them; nowhere if None.
    """
    machine = describe_machine()
    print(
        f"{machine['date']}  {machine['processor']}, cores: {machine['cores']}, "
        f"load {machine['load_average']:.1f}; torch {machine['versions']['torch']}; "
        f"revision {machine['revision']}"
    )
    for table in tables:
        print(f"\n{table}")
    if json_path is not None:
        record = {"machine": machine, **results}
        Path(json_path).write_text(json.dumps(record, indent=2) + "\n")
