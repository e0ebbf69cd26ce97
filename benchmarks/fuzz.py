"""``python -m benchmarks.fuzz``: random fits against invariants, and spoilt files.

Estimator, images, targets and weights of a fit are made of its seed, and so is the
choice of the invariants that are tried. A line per violation has the seed that repeats
it, ``--fits 1 --seed N``; a table tells how often each invariant was compared. The exit
code is 1 after violations. With ``--tamper N``, N spoilt files of fitted estimators are
loaded instead: see ``benchmarks/spoilt.py``.
"""

import itertools
import time
import warnings
from collections import Counter
from functools import partial

import numpy as np

from . import spoilt
from .harness import format_table, program
from .invariants import ALWAYS, DRAWN, UndecidedError, ViolationError
from .random_fits import Case

N_TRIED = 3  # invariants of a fit, beside those that need no other one
HELD, UNDECIDED, INAPPLICABLE = "held", "undecided", "inapplicable"


def check(seed, names):
    """Try invariants of one case, a list of (name, outcome); text is a violation."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case = Case.of_seed(seed)
        results = [("fit", outcome(lambda: bool(case.outputs)))]
        if results[0][1] != HELD:
            return results
        results += [(name, outcome(partial(f, case))) for name, f in ALWAYS.items()]
        names = np.random.default_rng([seed, 2]).permutation(names)
        tried = ((name, outcome(partial(hold, case, *DRAWN[name]))) for name in names)
        applying = (result for result in tried if result[1] != INAPPLICABLE)
        return results + list(itertools.islice(applying, N_TRIED))


def hold(case, function, compare):
    """Try one of `DRAWN`; False where it does not apply."""
    if compare is None:
        return function(case)
    other = function(case)
    return False if other is None else compare(case, other)


def outcome(function):
    """Return what came of an invariant; an error or a warning is a violation."""
    try:
        return INAPPLICABLE if function() is False else HELD
    except UndecidedError:
        return UNDECIDED
    except ViolationError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")


def check_all(seeds, names):
    """Check the cases of seeds, print violations; return counts and number of fits."""
    counts, n_fits = Counter(), 0
    for seed in seeds:
        n_fits += 1
        for name, found in check(seed, names):
            kind = found if found in (HELD, UNDECIDED) else "violations"
            counts[name, kind] += 1
            if kind == "violations":
                words = f"seed {seed}: {name}: {found}\n    {Case.of_seed(seed)}"
                print(words, flush=True)
    return counts, n_fits


def measure(options):
    """Run the fuzz."""
    if options.tamper:
        counts = spoilt.check(options.tamper, options.seed)
        rows = [[name, str(count)] for name, count in counts.items()]
        wrong = counts["wrong"]
        return [format_table(["spoilt files", "number"], rows)], {"wrong": wrong}
    seeds = itertools.count(options.seed)
    if options.seconds is None:
        seeds = itertools.islice(seeds, options.fits or 100)
    else:
        end = time.monotonic() + options.seconds
        seeds = itertools.islice(seeds, options.fits)
        seeds = itertools.takewhile(lambda _: time.monotonic() < end, seeds)
    counts, n_fits = check_all(seeds, options.only)
    columns = HELD, UNDECIDED, "violations"
    rows = [
        [name, *(counts[name, column] for column in columns)]
        for name in ["fit", *ALWAYS, *options.only]
    ]
    totals = {
        column: sum(row[1 + i] for row in rows) for i, column in enumerate(columns)
    }
    summary = ", ".join(f"{count} {name}" for name, count in totals.items())
    tables = [format_table(["invariant", *columns], rows), f"{n_fits} fits, {summary}"]
    return tables, {"wrong": totals["violations"]}


main = program(
    measure,
    DRAWN,
    needs_data=False,
    options={
        "--fits": {"type": int, "help": "how many, 100 without --seconds"},
        "--seed": {"type": int, "default": 0, "help": "of the first fit"},
        "--seconds": {"type": float, "help": "limit of time"},
        "--tamper": {
            "type": int,
            "metavar": "N",
            "help": "load N spoilt files instead",
        },
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
