"""Progress of long calls, with the time that is left.

`show_progress` is the context of a call, `track` passes the steps of a loop on. Of
loops within one another the outermost is shown. Workers and other threads show nothing.
"""

import contextlib
import functools
import sys
import threading
from itertools import repeat
from time import monotonic

# Seconds after which progress is shown.
LONG_CALL = 5.0
_call = threading.local()


@contextlib.contextmanager
def show_progress(name, wanted=True, only_bars=False):
    """Show the progress of the loops of a call that takes more than some seconds.

    On a terminal this is a bar, where rich is installed, or else a line that changes;
    elsewhere a line after some seconds, and others after twice the time each. With
    ``only_bars`` it is a bar or nothing.
    """
    if not wanted or getattr(_call, "display", None) is not None:
        yield
        return
    _call.display = _Display(name, only_bars)
    try:
        yield
    finally:
        _call.display = None


def with_progress(method):
    """Show the progress of a method of an estimator, if this is `verbose`."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with show_progress(type(self).__name__, self.verbose):
            return method(self, *args, **kwargs)

    return call


def track(steps, what, costs=None):
    """Return the steps of a loop, a sequence, whose progress is shown.

    Parameters
    ----------
    steps : sequence
    what : str
        What they compute, in a word or two.
    costs : sequence of float, default=None
        Their times, relative to one another; None is equal ones.
    """
    if len(steps) < 2:  # which would hide the loop within
        return steps
    costs, total = (repeat(1), len(steps)) if costs is None else (costs, sum(costs))
    return follow(steps, what, total, costs)


def follow(steps, what, total, costs=None):
    """Return the same for any iterable, whose total cost is None if unknown."""
    display = getattr(_call, "display", None)
    if display is None or display.is_busy:
        return steps
    return display.follow(steps, what, total, repeat(1) if costs is None else costs)


class _Display:
    """Bar or lines of one call."""

    def __init__(self, name, only_bars):
        self._name, self._only_bars, self.is_busy = name, only_bars, False
        self._begun, self._next = monotonic(), LONG_CALL

    def follow(self, steps, what, total, costs):
        """Pass the steps of a loop on, and show what is done."""
        self.is_busy, begun, done = True, monotonic(), 0
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "is_busy", False)
            show = None
            for step, cost in zip(steps, costs, strict=False):
                if done and self._is_long(begun, done, total):
                    show = show or self._open(stack, what, total)
                    show(done, (monotonic() - begun) / done)
                yield step
                done += cost

    def _is_long(self, begun, done, total):
        """Return True if the call has taken some seconds, and the loop will."""
        now = monotonic()
        whole = (now - begun) * (1 if total is None else total / done)
        return min(whole, now - self._begun) >= LONG_CALL

    def _open(self, stack, what, total):
        """Return a function of how much is done, and of the seconds that one took."""
        text = f"[{self._name}] {what}"
        bar = _open_bar(stack, text, total)
        if bar is not None:
            return bar
        if self._only_bars or total is None:
            return lambda *_: None
        if sys.stderr.isatty():
            stack.callback(print, "\r\033[K", end="", file=sys.stderr, flush=True)
        return lambda done, one: self._print(
            f"{text}: {done / total:.0%}, about {in_words((total - done) * one)} left"
        )

    def _print(self, line):
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif monotonic() - self._begun >= self._next:
            self._next = 2 * (monotonic() - self._begun)
            print(line, flush=True)


def _open_bar(stack, text, total):
    """Return a function that moves a bar, or None without rich or a terminal."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    bar = stack.enter_context(Progress(console=console, transient=True))
    task = bar.add_task(text.replace("[", r"\["), total=total)
    return lambda done, _: bar.update(task, completed=done)


def in_words(seconds):
    """Return a time, rounded, with its unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
