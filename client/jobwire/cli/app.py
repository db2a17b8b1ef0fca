"""Runs a command line and returns its exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from jobwire.cli.failures import (
    Exit,
    exit_code_of,
    say,
    show_call_error,
    show_defect,
    show_usage_error,
)
from jobwire.cli.group import Settings, cli, is_text
from jobwire.cli.terminal import silence_broken
from jobwire.errors import CallError

_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    settings = Settings()
    try:
        code = cli.main(
            [_decoded(one) for one in (sys.argv[1:] if arguments is None else arguments)],
            prog_name="jobwire",
            standalone_mode=False,
            obj=settings,
        )
        return code if isinstance(code, int) else Exit.OK
    except click.exceptions.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        show_usage_error(error)
        return error.exit_code if error.exit_code != 1 else Exit.USAGE
    except CallError as error:
        show_call_error(error, settings.address, settings.health)
        return exit_code_of(error)
    except BrokenPipeError:
        silence_broken()
        return Exit.OK
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            show_defect(error)
            return Exit.INTERNAL
        silence_broken()
        say(f"error: the output can't be written: {error.strerror}")
        return Exit.OUTPUT
    except Exception as error:
        show_defect(error)
        return Exit.INTERNAL


def _decoded(argument: str) -> str:
    """Read UTF-8 in an argument where the locale has no such characters."""
    try:
        return os.fsencode(argument).decode() if not is_text(argument) else argument
    except UnicodeError:
        return argument
