"""Dramatiq: `dramatiq_peer.py produce|work SOCKET`.

The default worker of its command line: one process with eight threads, which prefetches messages
and acknowledges each when it is done. Results are stored. It has no bulk submission.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from lines import PAYLOAD, produce, say, stop_with_input

role, path = sys.argv[1:]
logging.basicConfig(level=logging.WARNING)
broker = RedisBroker(url=f"unix://{path}")
broker.add_middleware(Results(backend=RedisBackend(url=f"unix://{path}"), result_ttl=86_400_000))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench", store_results=True)
def noop(payload: str) -> str:
    return "done"


def submit(count: int) -> None:
    for _ in range(count):
        noop.send(PAYLOAD)


if role == "produce":
    produce(submit)
else:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    worker = dramatiq.Worker(broker, worker_threads=8)
    worker.start()
    say(ready=True)
    stop_with_input()
    stopping.wait()
    worker.stop()
