"""Huey: `huey_peer.py produce|produce-one|work|work-one SOCKET`.

One consumer with threads, the kind of worker that its guide names as the default; blocking reads.
It has neither bulk submission nor acknowledgement. One at a time, with `notify_result`, so that a
result that is waited for is told and not polled for; results that are read are kept.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from huey import RedisHuey
from lines import PAYLOAD, RESULT_DEADLINE_S, produce, produce_one, say, started, stop_with_input

role, path = sys.argv[1:]
huey = RedisHuey(
    "bench",
    url=f"unix://{path}",
    blocking=True,
    results=True,
    notify_result=role.endswith("-one"),
)
logging.basicConfig(level=logging.WARNING)


@huey.task()
def noop(payload: str) -> str:
    return "done"


@huey.task()
def stamp(payload: str) -> str:
    return started()


def result(handle: Any) -> str:
    return str(handle.get(blocking=True, timeout=RESULT_DEADLINE_S, preserve=True))


def submit(count: int) -> None:
    for _ in range(count):
        noop(PAYLOAD)


if role == "produce":
    produce(submit)
elif role == "produce-one":
    produce_one(lambda: noop(PAYLOAD), lambda: stamp(PAYLOAD), result)
else:
    consumer = huey.create_consumer(workers=4, worker_type="thread", periodic=False)
    say(ready=True)
    stop_with_input()
    consumer.run()
