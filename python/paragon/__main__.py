"""The command `paragon`, also as `python -m paragon`."""

import signal
import sys

from . import _paragon


def main() -> None:
    # Ctrl-C must act as in the program; Python's handler would only take a note of it, because no
    # Python code runs before the command ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_paragon.command(["paragon", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
