"""Standard output: with rich if it is installed, else plain text."""

import contextlib
import functools
import importlib.util


class Screen:
    """Standard output."""

    def __init__(self):
        self.console, self.line = None, functools.partial(print, flush=True)
        if installed("rich"):
            from rich.console import Console

            self.console = Console(highlight=False, markup=False, soft_wrap=True)
            self.line = self.console.print

    def busy(self, text):
        """Return a context in which a terminal shows that work is under way."""
        if self.console is None or not self.console.is_terminal:
            self.line(text)
            return contextlib.nullcontext()
        return self.console.status(text)

    def table(self, header, rows, best):
        """Print a table: the first column is text, the others numbers."""
        if self.console is None:
            _print_table(header, rows)
            return
        from rich.table import Table

        table = Table()
        for column, name in enumerate(header):
            table.add_column(name, justify="right" if column else "left")
        for number, row in enumerate(rows):
            table.add_row(*row, style="bold" if number == best else None)
        self.console.print(table)


def _print_table(header, rows):
    """Print a table in plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for first, *rest in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def installed(module):
    """Return True if an optional dependency is there."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that was replaced by None
        return False
