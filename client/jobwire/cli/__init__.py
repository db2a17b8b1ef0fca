"""The command `jobwire`."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The entry point."""
    try:
        # Before anything opens a file: it would get the number of a standard stream that is closed.
        from jobwire.cli.terminal import prepare

        prepare()
        from jobwire.cli.app import run

        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
