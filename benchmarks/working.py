"""A worker as a user would write one.

`python -m benchmarks.working TARGET CONCURRENCY PREFETCH [KIND]`. Its handler does nothing: an
async one, or with KIND `sync` one for threads; with KIND `stamped` the result says when it started.
It works until its input ends, and says for each line what it has done.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from time import monotonic_ns

from jobwire import Context, Worker

from benchmarks import jobs
from benchmarks.parts import say


def work(target: str, concurrency: int, prefetch: int, kind: str = "async") -> None:
    """Works until its input ends."""
    worker = Worker(target, concurrency=concurrency, prefetch=prefetch)
    handled = 0

    async def nothing(context: Context) -> bytes:
        nonlocal handled
        handled += 1
        return b"done"

    def nothing_in_a_thread(context: Context) -> bytes:
        nonlocal handled
        with counting:
            handled += 1
        return b"done"

    async def stamped(context: Context) -> bytes:
        # First of all, and by the clock that all processes of a machine share.
        now = monotonic_ns()
        nonlocal handled
        handled += 1
        return now.to_bytes(8, "big")

    counting = threading.Lock()
    handlers = {"async": nothing, "sync": nothing_in_a_thread, "stamped": stamped}
    worker.operation(jobs.OPERATION)(handlers[kind])

    def answer() -> None:
        say({"ready": True})
        while sys.stdin.readline():
            say({**dataclasses.asdict(worker.stats), "handled": handled})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=answer, name="answers", daemon=True).start()
    worker.run()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
