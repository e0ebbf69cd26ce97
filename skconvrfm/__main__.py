"""The command line: ``skconvrfm``, which is also ``python -m skconvrfm``."""

import sys

from . import __version__
from . import _command_line as cli
from .ansatz import command as ansatz
from .commands import demo, explain, predict, train

PROGRAM = "skconvrfm"
# Each has a DESCRIPTION, whose first sentence is its help, add_options and run.
COMMANDS = {
    "demo": demo,
    "train": train,
    "predict": predict,
    "explain": explain,
    "ansatz": ansatz,
}


def main(argv=None):
    """Run the command line on a list of arguments, and return its exit code."""
    return cli.run_command(PROGRAM, lambda: run(parse_options(argv)))


def run(options):
    """Run the command that the options name."""
    COMMANDS[options.command].run(options)


def parse_options(argv=None):
    """Parse the command line; raise UsageError if it is wrong."""
    parser = cli.Parser(
        prog=PROGRAM,
        description="Image classifiers that learn their features, from the shell.",
        epilog=f"{PROGRAM} COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        text = module.DESCRIPTION
        short = text.partition(".")[0]
        module.add_options(commands.add_parser(name, help=short, description=text))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
