"""Command line, clocks, tables and the machine, for all benchmarks (Linux)."""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / ".results"
PACKAGES = "skconvrfm", "torch", "scikit-learn", "numpy", "scipy", "skorch", "joblib"


def program(measure, cases, *, sizes=None, draws=None, needs_data=True, options=None):
    """Return the command line of a benchmark: ``main(argv=None)``, the exit status.

    Parameters
    ----------
    measure : callable
        ``measure(options)`` returns tables, a list of str, and results, a dict for
        ``--json``. The exit status is 1 where it has something under "wrong".
    cases : iterable of str
        What ``--only`` chooses from.
    sizes, draws : default=None
        Defaults of ``--sizes``, numbers of images, and of ``--draws``; None for a
        program without the option.
    needs_data : bool, default=True
        True for a benchmark of files: the folder must be there.
    options : dict of dict, default=None
        Further options, with arguments of `argparse`.
    """
    first_line = sys.modules[measure.__module__].__doc__.splitlines()[0]
    name = first_line.split("``")[1]
    parser = argparse.ArgumentParser(name, description=first_line)
    add = parser.add_argument
    add("--only", nargs="+", choices=cases, default=list(cases))
    add("--data", type=Path, default=DATA, help="folder of the files of images")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    add("--page", type=Path, metavar="FILE", help="write the tables there")
    if sizes is not None:
        add("--sizes", nargs="+", type=int, default=sizes, help="numbers of images")
    if draws is not None:
        add("--draws", type=int, default=draws, help="repetitions, each with a seed")
    for option, arguments in (options or {}).items():
        add(option, **arguments)

    def main(argv=None):
        options = parser.parse_args(argv)
        if needs_data and not options.data.is_dir():
            parser.error(f"--data {options.data} is no folder; pass the one with files")
        tables, results = measure(options)
        machine = describe_machine()
        print("; ".join(f"{key} {value}" for key, value in machine.items()))
        print("", *tables, sep="\n\n")
        if options.page is not None:
            options.page.write_text("\n\n".join(tables) + "\n")
        if options.json is not None:
            record = {"machine": machine, **results}
            options.json.write_text(json.dumps(record, indent=2) + "\n")
        return int(bool(results.get("wrong")))

    return main


def format_table(headers, rows):
    """Return a table as text that is also a simple table of reStructuredText.

    Parameters
    ----------
    headers : list of str
        One a column.
    rows : list of list
        Cells: floats have three digits, None is a dash.
    """
    cells = [headers, *([_format_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = []
    for first, *others in cells:
        padded = map(str.rjust, others, widths[1:])
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _format_cell(cell):
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def mean_and_each(values, digits=1):
    """Return the mean of values and all of them, two cells of a table."""
    return f"{np.mean(values):.{digits}f}", " ".join(f"{v:.{digits}f}" for v in values)


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
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {
            tuple(record[entry] for entry in self.key): record
            for record in map(json.loads, lines)
            if self.settings.items() <= record.items()
        }

    def once(self, name, measure):
        """Return the record of this name, measured and written unless it is there."""
        if name not in self.read():
            record = dict(zip(self.key, name, strict=True)) | self.settings | measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(*name, "measured", flush=True)
        return self.read()[name]


def timed(function, *args, **kwargs):
    """Call a function; return its seconds and processor seconds, and its result.

    Processor seconds are those of all threads. They hardly change when other programs
    share the machine.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args, **kwargs)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}, result


class OwnMemory:
    """The most memory of its own that this process has during the context.

    A thread looks every so often. Pages of mapped files do not count: the system takes
    them back when it needs them.

    Attributes
    ----------
    peak : float
        MiB, without those from before the context.
    """

    def __enter__(self):
        self._ended, self.peak, self._before = threading.Event(), 0.0, self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._now() - self._before)

    @staticmethod
    def _now():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024


def in_process(function, *arguments):
    """Call a function of a benchmark in a process of its own, and return its result."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as executor:
        return executor.submit(function, *arguments).result()


def describe_machine():
    """Return what a measurement needs beside it to be understood later."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ")[1] for line in cpuinfo if line.startswith("model name")]
    # The commit of the source, with a plus where files differ from it.
    command = ["git", "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "processor": names[0] if names else None,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "revision": done.stdout.strip() or None,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None
