"""Command line, clocks, tables and the machine, for all benchmarks (Linux)."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / ".results"
MEBIBYTE = 2**20


# ----------------------------------------------------------------- command line


def program(measure, cases, *, sizes=None, draws=None, needs_data=True, options=None):
    """Return the command line of a benchmark: ``main(argv=None)``, the exit status.

    Parameters
    ----------
    measure : callable
        ``measure(options)`` returns tables, a list of str, and results, a dict for
        ``--json``. The exit status is 1 where it has something under "wrong".
    cases : iterable of str
        What ``--only`` chooses from.
    sizes : list of int, default=None
        Default of ``--sizes``, numbers of images; without it no such option.
    draws : int, default=None
        Default of ``--draws``, likewise.
    needs_data : bool, default=True
        True for a benchmark of files: the folder must be there.
    options : dict of dict, default=None
        Further options, with arguments of `argparse`.
    """
    name = _module(measure)
    first_line = sys.modules[measure.__module__].__doc__.splitlines()[0]
    parser = argparse.ArgumentParser(f"python -m {name}", description=first_line)
    add = parser.add_argument
    add("--only", "--cases", nargs="+", choices=cases, default=list(cases))
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
            parser.error(
                f"--data {options.data} is no folder; pass the one with the files"
            )
        tables, results = measure(options)
        report(tables, results, options)
        return int(bool(results.get("wrong")))

    return main


def report(tables, results, options):
    """Print tables under a line about the machine; write them and the results."""
    machine = describe_machine()
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    for table in tables:
        print(f"\n{table}")
    if options.page is not None:
        options.page.write_text("\n\n".join(tables) + "\n")
    if options.json is not None:
        record = {"machine": machine, **results}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def format_table(headers, rows):
    """Return a table as text that is also a simple table of reStructuredText.

    Parameters
    ----------
    headers : list of str
        One a column.
    rows : list of list
        Cells: text as it is, floats to three digits, None as a dash.
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


def mean_and_each(values, digits=1):
    """Return the mean of values and all of them, two cells of a table."""
    return f"{np.mean(values):.{digits}f}", " ".join(f"{v:.{digits}f}" for v in values)


def growth_exponent(sizes, values):
    """Return the power of the size that values grow with: a slope in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


class Results:
    """Measurements in a file of JSON lines that several processes may share.

    Parameters
    ----------
    path : path-like
        The file; it need not exist.
    key : sequence of str
        Entries of a record that name it.
    settings : dict, default=None
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
            print(*name, "measured", flush=True)
        return self.read()[name]


# ------------------------------------------------------------- clocks and memory


def timed(function, *args, **kwargs):
    """Call a function; return its seconds and processor seconds, and its result.

    Processor seconds are those of all threads, pools and workers. They hardly change
    when other programs share the machine.
    """
    wall, cpu = time.perf_counter(), _cpu_seconds()
    result = function(*args, **kwargs)
    seconds = time.perf_counter() - wall
    return {"seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu}, result


def best_in_turns(calls, turns):
    """Return the shortest times of calls that take turns, by their names."""
    for call in calls.values():
        call()
    runs = [
        {name: timed(call)[0] for name, call in calls.items()} for _ in range(turns)
    ]
    return {
        name: {clock: min(run[name][clock] for run in runs) for clock in runs[0][name]}
        for name in calls
    }


def _cpu_seconds():
    """Return processor seconds of this process and its children, also running ones."""
    ticks = sum(map(_running_ticks, _children()))
    ended = sum(os.times()[2:4])
    return time.process_time() + ended + ticks / os.sysconf("SC_CLK_TCK")


def _children():
    """Yield the numbers of this process's children that run now."""
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            yield from path.read_text().split()
        except OSError:  # a thread that has ended meanwhile
            continue


def _running_ticks(process):
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it has ended
        return 0
    # The name, in parentheses, may hold anything; user and system time are 14 and 15.
    return sum(map(int, stat.rpartition(")")[2].split()[11:13]))


class OwnMemory:
    """The most memory of their own that this process and its children had together.

    A thread looks every so often while the context lasts. Pages of mapped files do not
    count: the system takes them back when it needs them.

    Attributes
    ----------
    peak : float
        MiB, without those from before the context.
    """

    def __enter__(self):
        self._ended, self.peak = threading.Event(), 0.0
        self._before = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, (self._now() - self._before) / MEBIBYTE)

    @staticmethod
    def _now():
        own = Path("/proc/self/cmdline").read_bytes()
        total = 0
        for process in ("self", *_children()):
            try:
                # A new child has no memory of its own until it is another program.
                words = Path(f"/proc/{process}/cmdline").read_bytes()
                if process == "self" or words != own:
                    status = Path(f"/proc/{process}/status").read_text()
                    total += 1024 * int(status.split("RssAnon:")[1].split()[0])
            except (OSError, IndexError):  # it has ended meanwhile
                continue
        return total


def in_process(function, *arguments, env=None):
    """Call a function of a benchmark in a process of its own.

    Arguments and result are what JSON has.
    """
    code = "import sys; from benchmarks.harness import _answer; _answer(*sys.argv[1:])"
    name = _module(function), function.__name__, json.dumps(arguments, default=str)
    done = subprocess.run(
        [sys.executable, "-c", code, *name],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _answer(module, name, arguments):
    """Print what a function returns, as JSON."""
    function = getattr(importlib.import_module(module), name)
    print(json.dumps(function(*json.loads(arguments))))


def _module(function):
    """Return the name of a function's module, also of one that runs as a program."""
    module = sys.modules[function.__module__]
    return module.__spec__.name if module.__spec__ else module.__name__


# ------------------------------------------------------------------- the machine


def describe_machine():
    """Return what a measurement needs beside it to be understood later."""
    names = ("skconvrfm", "torch", "scikit-learn", "numpy", "scipy", "skorch", "joblib")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "processor": _cpuinfo("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "revision": _revision(),
        **{name: _version(name) for name in names},
    }


def processor_flags():
    """Return the names of what the processor can do, as Linux has them."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(field):
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.split(":", 1)[1].strip()
    return ""


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision():
    """Return the commit of the source, with a plus where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None
