"""Celery: `celery_peer.py produce|produce-one|work SOCKET`.

As its guides advise: late acknowledgement for at-least-once, a large prefetch for many short tasks
(Optimizing), one producer for many messages (Calling Tasks), no gossip and no events. As many
pool processes as there are cores, which is its default. One at a time: `delay` and `get`, which
waits on the channel of the result.
"""

from __future__ import annotations

import sys

from celery import Celery
from celery.signals import worker_ready
from lines import PAYLOAD, RESULT_DEADLINE_S, produce, produce_one, say, started, stop_with_input

role, path = sys.argv[1:]
app = Celery(
    "celery_peer", broker=f"redis+socket://{path}", backend=f"redis+socket://{path}?virtual_host=0"
)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_default_queue="bench",
    worker_prefetch_multiplier=128,
    worker_hijack_root_logger=False,
    broker_transport_options={"visibility_timeout": 3600},
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(payload: str) -> str:
    return "done"


@app.task(name="stamp")
def stamp(payload: str) -> str:
    return started()


def submit(count: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            noop.apply_async((PAYLOAD,), producer=producer)


@worker_ready.connect
def ready(**_: object) -> None:
    say(ready=True)
    stop_with_input()


if role == "produce":
    produce(submit)
elif role == "produce-one":
    produce_one(
        lambda: noop.delay(PAYLOAD),
        lambda: stamp.delay(PAYLOAD),
        lambda handle: str(handle.get(timeout=RESULT_DEADLINE_S)),
    )
else:
    app.worker_main(
        ["worker", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
    )
