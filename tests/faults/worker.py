"""A worker of a run: `python -m tests.faults.worker --target … --id … --transport stream`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from jobwire import Worker

from tests.faults import handlers
from tests.faults.wishes import QUEUES


def main() -> None:
    """Works until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--id")
    parser.add_argument("--transport", choices=["stream", "unary"], default="stream")
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--grace", type=float, default=2.0)
    given = parser.parse_args()
    # Until the worker takes signals itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ[handlers.HISTORY] = str(given.history)
    os.environ[handlers.NAME] = given.name
    os.environ[handlers.PID] = str(os.getpid())
    logging.basicConfig(
        level="INFO", stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    worker = Worker(
        given.target,
        queues=QUEUES,
        concurrency=given.concurrency,
        worker_id=given.id,
        shutdown_grace_s=given.grace,
        transport=given.transport,
    )
    worker.operation("faults.thread", run="thread")(handlers.in_line)
    worker.operation("faults.process", run="process")(handlers.in_line)
    worker.operation("faults.async")(handlers.on_loop)
    handlers.journal().write("up", id=worker.id)
    worker.run()
    handlers.journal().write("down")


if __name__ == "__main__":
    main()
