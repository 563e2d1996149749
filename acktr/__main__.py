"""`python -m acktr`: the same as the console script `acktr`."""

import sys

from acktr.cli import main

if __name__ == "__main__":
    sys.exit(main())
