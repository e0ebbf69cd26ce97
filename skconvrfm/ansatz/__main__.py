"""The command line of the ansatz: ``python -m skconvrfm.ansatz``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
