"""``python -m benchmarks.fuzz``: random fits against invariants, and spoilt files.

Batches of fits are drawn by Hypothesis, each from a seed, with the images, options and
weights of ``tests/strategies.py``; three invariants of each are tried. A violation is
made as small as possible and printed, with the seed of its batch, which repeats it:
``--batches 1 --seed N``. A table tells how often each invariant was compared. The exit
status is 1 after violations. With ``--tamper N``, N spoilt files of fitted estimators
are loaded instead: see ``benchmarks/spoilt.py``.
"""

import itertools
import time
from collections import Counter

import hypothesis
from hypothesis import strategies as st

from tests.strategies import only_documented_warnings

from . import spoilt
from .harness import format_table, program
from .invariants import INVARIANTS, UndecidedError, ViolationError, cases

N_TRIED = 3  # invariants of a fit
OUTCOMES = "held", "undecided", "violated"
SETTINGS = hypothesis.settings(
    deadline=None,
    database=None,
    phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def check(case, names, counts):
    """Try the first invariants that apply to a case, and count what came of them."""
    n_tried = 0
    for name in names:
        change, compare = INVARIANTS[name]
        try:
            other = change(case)
            if other is not None:
                n_tried += 1
                compare(case, other)
                counts[name, "held"] += 1
        except UndecidedError:
            counts[name, "undecided"] += 1
        except Exception as error:
            words = f"{name}: {type(error).__name__}: {error}"
            raise ViolationError(words) from error
        if n_tried == N_TRIED:
            return


def violation(seed, n_fits, names, counts):
    """Check a batch of fits; return words for a violation and its case, or None."""

    @hypothesis.seed(seed)
    @hypothesis.settings(SETTINGS, max_examples=n_fits)
    @hypothesis.given(cases(), st.sampled_from(range(len(names))))
    def holds(case, first):
        counts["fits", "held"] += 1
        with only_documented_warnings():
            check(case, names[first:] + names[:first], counts)

    try:
        holds()
    except Exception as error:
        return "\n".join([str(error), *getattr(error, "__notes__", [])])


def check_batches(options):
    """Check batches until the time is over, or the user interrupts; return counts."""
    counts, end = Counter(), time.monotonic() + (options.seconds or 0)
    seeds = range(options.seed, options.seed + options.batches)
    if options.seconds is not None:
        seeds = itertools.count(options.seed)
        seeds = itertools.takewhile(lambda _: time.monotonic() < end, seeds)
    try:
        for seed in seeds:
            words = violation(seed, options.fits, options.only, counts)
            if words is not None:
                counts["fits", "violated"] += 1
                print(f"seed {seed}: {words}", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    return counts


def measure(options):
    """Run the fuzz."""
    if options.tamper:
        counts = spoilt.check(options.tamper, options.seed)
        table = format_table(["spoilt files", "number"], [*map(list, counts.items())])
        return [table], {"wrong": counts["wrong"]}
    counts = check_batches(options)
    rows = [
        [name, *(counts[name, found] for found in OUTCOMES)]
        for name in ["fits", *options.only]
    ]
    table = format_table(["invariant", *OUTCOMES], rows)
    return [table], {"wrong": counts["fits", "violated"]}


main = program(
    measure,
    INVARIANTS,
    needs_data=False,
    options={
        "--batches": {"type": int, "default": 2, "help": "how many, each of a seed"},
        "--fits": {"type": int, "default": 50, "help": "of a batch"},
        "--seed": {"type": int, "default": 0, "help": "of the first batch or file"},
        "--seconds": {"type": float, "help": "begin batches for so long instead"},
        "--tamper": {
            "type": int,
            "metavar": "N",
            "help": "spoilt files instead",
        },
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
