"""A worker as a user would write one: `python -m benchmarks.working TARGET CONCURRENCY PREFETCH`.

Its handler does nothing. It works until its input ends, and says for each line what it has done.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading

from jobwire import Context, Worker

from benchmarks import jobs
from benchmarks.parts import say


def work(target: str, concurrency: int, prefetch: int) -> None:
    """Works until its input ends."""
    worker = Worker(target, concurrency=concurrency, prefetch=prefetch)
    handled = 0

    @worker.operation(jobs.OPERATION)
    async def nothing(context: Context) -> bytes:
        nonlocal handled
        handled += 1
        return b"done"

    def answer() -> None:
        say({"ready": True})
        while sys.stdin.readline():
            say({**dataclasses.asdict(worker.stats), "handled": handled})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=answer, name="answers", daemon=True).start()
    worker.run()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
