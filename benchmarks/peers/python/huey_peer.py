"""Huey: `huey_peer.py produce|work SOCKET`.

One consumer with threads, the kind of worker that its guide names as the default; blocking reads.
It has neither bulk submission nor acknowledgement.
"""

from __future__ import annotations

import logging
import sys

from huey import RedisHuey
from lines import PAYLOAD, produce, say, stop_with_input

role, path = sys.argv[1:]
huey = RedisHuey("bench", url=f"unix://{path}", blocking=True, results=True)
logging.basicConfig(level=logging.WARNING)


@huey.task()
def noop(payload: str) -> str:
    return "done"


def submit(count: int) -> None:
    for _ in range(count):
        noop(PAYLOAD)


if role == "produce":
    produce(submit)
else:
    consumer = huey.create_consumer(workers=4, worker_type="thread", periodic=False)
    say(ready=True)
    stop_with_input()
    consumer.run()
