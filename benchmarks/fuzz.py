"""``python -m benchmarks.fuzz``: random fits, and invariants that hold for all of them.

Estimator, images, targets and weights of a fit are made of its seed, and so is the
choice of the invariants that are tried. Prints a line per violation with the seed that
repeats it, ``--fits 1 --seed N``, and how often each invariant was compared. The exit
code is 1 after violations. With ``--tamper N``, spoilt files of fitted estimators are
loaded instead: see ``benchmarks/tampered.py``.
"""

import argparse
import itertools
import time
import warnings
from collections import Counter
from functools import partial

import numpy as np

from . import tampered
from .harness import format_table
from .invariants import ALWAYS, DRAWN, UndecidedError, ViolationError
from .random_fits import Case

N_TRIED = 3  # invariants of a fit, beside those that need no other one
HELD, UNDECIDED, INAPPLICABLE = "held", "undecided", "inapplicable"


def check(seed):
    """Try invariants of one case, a list of (name, outcome); text is a violation."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case = Case.of_seed(seed)
        results = [("fit", outcome(lambda: bool(case.outputs)))]
        if results[0][1] != HELD:
            return results
        results += [(name, outcome(partial(f, case))) for name, f in ALWAYS.items()]
        names = np.random.default_rng([seed, 2]).permutation(list(DRAWN))
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


def run(seeds):
    """Check the cases of seeds, print the violations, and return their number."""
    counts, begun, n_fits = Counter(), time.perf_counter(), 0
    for seed in seeds:
        n_fits += 1
        for name, found in check(seed):
            kind = found if found in (HELD, UNDECIDED) else "violations"
            counts[name, kind] += 1
            if kind == "violations":
                print(
                    f"seed {seed}: {name}: {found}\n    {Case.of_seed(seed)}",
                    flush=True,
                )
    names = ["fit", *ALWAYS, *DRAWN]
    columns = HELD, UNDECIDED, "violations"
    rows = [
        [name, *(str(counts[name, column]) for column in columns)] for name in names
    ]
    print(format_table(["invariant", *columns], rows))
    totals = {column: sum(counts[name, column] for name in names) for column in columns}
    print(
        f"{n_fits} fits, {sum(totals.values())} comparisons, {totals[UNDECIDED]} "
        f"undecided, {totals['violations']} violations, "
        f"{time.perf_counter() - begun:.0f} seconds"
    )
    return totals["violations"]


def main(argv=None):
    """Run the fuzz, and return 1 after violations."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--fits", type=int, help="how many, 100 without --seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the first fit")
    parser.add_argument("--seconds", type=float, help="limit of time")
    parser.add_argument(
        "--tamper", type=int, metavar="N", help="load so many spoilt files instead"
    )
    options = parser.parse_args(argv)
    if options.tamper is not None:
        return int(tampered.run(options.tamper, options.seed) > 0)
    if options.fits is None and options.seconds is None:
        options.fits = 100
    end = np.inf if options.seconds is None else time.monotonic() + options.seconds
    seeds = itertools.count(options.seed)
    seeds = itertools.islice(seeds, options.fits)
    seeds = itertools.takewhile(lambda _: time.monotonic() < end, seeds)
    return int(run(seeds) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
