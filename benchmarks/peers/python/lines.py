"""The talk with the benchmark, for the peers in Python; they don't see Jobwire's packages."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

PAYLOAD = "x" * 256
RESULT_DEADLINE_S = 60


def say(**line: Any) -> None:
    """Says one line."""
    os.write(1, (json.dumps(line) + "\n").encode())


def produce(submit: Callable[[int], None]) -> None:
    """Submits as many jobs as each line asks for, and says how long that took."""
    say(ready=True)
    for line in sys.stdin:
        began = time.perf_counter()
        submit(int(line))
        say(took_s=time.perf_counter() - began)


def produce_one(
    submit: Callable[[], Any], stamp: Callable[[], Any], result: Callable[[Any], str]
) -> None:
    """Does one thing at a time, as `benchmarks.singly` does, and says how long each took.

    Args:
        submit: Submits a job and returns what `result` takes.
        stamp: The same of one that answers when it started, on this machine's monotonic clock.
        result: Waits for a result and returns it.
    """
    say(ready=True)
    for line in sys.stdin:
        verb, count, *more = line.split()
        if verb == "submit":
            say(**_timed(int(count), 1, submit, lambda handle: "done"))
        elif verb == "call":
            say(**_timed(int(count), int(more[0]), submit, result))
        else:
            say(took_s=_paced(int(count), float(more[0]), stamp, result))


def _timed(
    count: int, width: int, submit: Callable[[], Any], result: Callable[[Any], str]
) -> dict[str, float]:
    took: list[float] = []
    waiting: deque[tuple[float, Any]] = deque()
    began = time.perf_counter()

    def await_oldest() -> None:
        since, handle = waiting.popleft()
        said = result(handle)
        if said != "done":
            raise RuntimeError(f"a job's result is {said!r}")
        took.append(time.perf_counter() - since)

    for _ in range(count):
        since = time.perf_counter()
        waiting.append((since, submit()))
        if len(waiting) == width:
            await_oldest()
    while waiting:
        await_oldest()
    all_s = time.perf_counter() - began
    took.sort()
    p50, p99 = (took[min(int(count * fraction), count - 1)] * 1e6 for fraction in (0.5, 0.99))
    return {"rate": count / all_s, "p50_us": p50, "p99_us": p99}


def _paced(
    count: int, rate: float, stamp: Callable[[], Any], result: Callable[[Any], str]
) -> list[float]:
    submitted: list[tuple[int, Any]] = []
    start = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, start + number / rate - time.monotonic()))
        began = time.monotonic_ns()
        submitted.append((began, stamp()))
    # Results are read once all are submitted: to read them is not what is measured.
    return [(int(result(handle).split()[1]) - began) / 1e9 for began, handle in submitted]


def started() -> str:
    """Returns the result of a job that answers when it started."""
    return f"done {time.monotonic_ns()}"


def stop_with_input() -> None:
    """Ends this process, as an operator would, once its input ends."""

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
