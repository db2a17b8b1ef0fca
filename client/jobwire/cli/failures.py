"""Exit codes, and errors as lines for people."""

from __future__ import annotations

import io
import os
import traceback
from collections.abc import Callable
from enum import IntEnum

import click
import grpc

from jobwire.cli.health import Health
from jobwire.cli.terminal import put
from jobwire.errors import CallError


class Exit(IntEnum):
    """What a command's exit code means."""

    OK = 0
    UNSUCCESSFUL = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    PRECONDITION = 5
    INTERNAL = 70
    OUTPUT = 74
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_CODES_HELP = """\b
Exit codes:
  0    done
  1    the job ended unsuccessfully: failed, cancelled or expired
  2    the command line or the request is wrong
  3    no such job, queue, worker or schedule
  4    no server answered in time, or it is full
  5    it is not allowed, or not in this state
  70   a bug in Jobwire; JOBWIRE_DEBUG=1 shows the traceback
  74   the output can't be written: the disk is full, the terminal gone
  130  interrupted by Ctrl-C, or answered with no
  143  ended by SIGTERM"""

_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.USAGE,
    grpc.StatusCode.OUT_OF_RANGE: Exit.USAGE,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: Exit.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exit.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS: Exit.PRECONDITION,
    grpc.StatusCode.ABORTED: Exit.PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED: Exit.PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED: Exit.PRECONDITION,
}


_SUSPECTS = {
    Health.READY: "the server is ready but slow, or overloaded; --timeout gives it longer",
    Health.NOT_READY: "the server runs, but its store does not answer (or it is about to end);"
    " check the store and the server's log",
    Health.SILENT: "the server hangs, or something between here and there does",
}

_NEVER_SPOKE = "before receiving SETTINGS"
"""What gRPC says of a connection whose other end never began to speak."""


def exit_code_of(error: CallError) -> Exit:
    """Return the exit code for a failed call."""
    return _BY_CODE.get(error.code, Exit.INTERNAL)


def show_call_error(error: CallError, address: str, ask: Callable[[], Health]) -> None:
    """Print what failed, with a line for each violation.

    Args:
        error: What was raised.
        address: Where the servers are.
        ask: Asks the server how it is, to tell why it gave no answer in time.
    """
    if error.violations:
        say(f"error: the request was refused ({error.reason or error.code.name})")
        for violation in error.violations:
            put(f"  {violation.field}: {violation.description}", err=True)
        return
    if error.code is grpc.StatusCode.UNAVAILABLE and _NEVER_SPOKE in error.message:
        # The kernel takes connections for a process that stands still.
        say(f"error: {address} takes connections and says nothing: {_SUSPECTS[Health.SILENT]}")
        return
    if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
        # gRPC's own message is about sockets; the remedy is always the same.
        say(
            f"error: no server answers at {address}: start one with `jobwire serve`, or name"
            " another with --target or JOBWIRE_TARGET"
        )
        return
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not error.reason:
        say(f"error: {address} gave no answer in time: {_SUSPECTS[ask()]}")
        return
    message = error.message
    if error.reason == "WORKER_NOT_FOUND":
        # The rest of the message is for the worker itself.
        message = f"{message.partition(';')[0]}; `jobwire workers` lists those there are"
    say(f"error: {message} ({error.reason or error.code.name})")


def show_defect(error: BaseException) -> None:
    """Print an error that nobody expected."""
    if os.environ.get("JOBWIRE_DEBUG"):
        put("".join(traceback.format_exception(error)), err=True, nl=False)
        say(f"internal error: {type(error).__name__}: {error}")
        return
    say(
        f"internal error: {type(error).__name__}: {error}"
        " (a bug in Jobwire: set JOBWIRE_DEBUG=1 to see where)"
    )


def show_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with the command line, as click would."""
    text = io.StringIO()
    error.show(text)
    put(text.getvalue(), err=True, nl=False)


def say(text: str) -> None:
    """Print a line to standard error under the program's name."""
    put(f"jobwire: {text}", err=True)
