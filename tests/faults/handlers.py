"""What workers of a run do with its jobs, each way of running handlers; every step is written down.

Importable as it is, because handlers in processes import it anew.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jobwire import Context, Fatal, Stopped

from tests.faults.history import Journal
from tests.faults.wishes import row

HISTORY = "FAULTS_HISTORY"
NAME = "FAULTS_NAME"
PID = "FAULTS_PID"
SAVE_EVERY = 3


@cache
def journal() -> Journal:
    """The history of this worker, or of the process of a handler of it."""
    return Journal(Path(os.environ[HISTORY]), os.environ[NAME], int(os.environ[PID]))


class Steps:
    """What one attempt is to do, and its lines in the history.

    Args:
        context: The attempt.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        wish: dict[str, Any] = context.payload
        self.kind: str = wish["kind"]
        self.rows: int = wish["rows"]
        self.row_s: float = wish["row_ms"] / 1000
        self.fails: int = wish["fails"]
        found = context.checkpoint
        self.first: int = found["row"] if found else 0
        self._note(
            "begin",
            attempt=context.attempt,
            kind=self.kind,
            checkpoint=self.first,
            rows=self.rows,
        )

    def _note(self, what: str, **facts: Any) -> None:
        context = self.context
        journal().write(what, job=context.job_id, token=context.fencing_token, **facts)

    def numbers(self) -> Iterator[int]:
        """The rows to write; each is written out when it is taken."""
        for number in range(self.first, self.rows):
            self.context.output(row(self.context.job_id, self.context.attempt, number))
            yield number

    def saved(self, number: int) -> None:
        """A checkpoint is in the store."""
        self._note("saved", row=number)

    def finish(self) -> dict[str, int]:
        """The end: the result, or what it is to raise.

        Raises:
            RuntimeError: Some attempts are to fail.
            Fatal: The job is to fail for good.
        """
        if self.kind == "fail" and self.context.attempt <= self.fails:
            self._note("end", how="failed", reason="")
            raise RuntimeError(f"attempt {self.context.attempt} is to fail")
        if self.kind == "fatal":
            self._note("end", how="fatal", reason="")
            raise Fatal("it is to fail for good")
        self._note("end", how="ok", reason="")
        return {"token": self.context.fencing_token}

    def stopped(self, error: BaseException) -> None:
        """It was told to stop, and does; or what it asked of its context raised."""
        how = "stopped" if isinstance(error, Stopped | asyncio.CancelledError) else "raised"
        self._note("end", how=how, reason=self.context.stop_reason or type(error).__name__)

    def overrun_s(self) -> float:
        """How long `over` goes on beyond its time; once."""
        return 3.0 if self.kind == "over" and self.context.attempt == 1 else 0.0


def in_line(context: Context) -> dict[str, int]:
    """A handler in a thread or a process."""
    steps = Steps(context)
    try:
        for number in steps.numbers():
            context.wait_cancelled(steps.row_s)
            context.raise_if_cancelled()
            if number % SAVE_EVERY == 0:
                context.save_checkpoint({"row": number + 1})
                steps.saved(number + 1)
        context.wait_cancelled(steps.overrun_s())
        context.raise_if_cancelled()
    except BaseException as error:
        steps.stopped(error)
        raise
    return steps.finish()


async def on_loop(context: Context) -> dict[str, int]:
    """An async handler."""
    steps = Steps(context)
    try:
        if steps.kind == "block":
            time.sleep(steps.row_s)
        for number in steps.numbers():
            await asyncio.sleep(steps.row_s)
            if number % SAVE_EVERY == 0:
                await context.save_checkpoint({"row": number + 1})
                steps.saved(number + 1)
        await asyncio.sleep(steps.overrun_s())
    except BaseException as error:
        steps.stopped(error)
        raise
    return steps.finish()
