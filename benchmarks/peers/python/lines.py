"""The talk with the benchmark, for the peers in Python; they don't see Jobwire's packages."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PAYLOAD = "x" * 256


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


def stop_with_input() -> None:
    """Ends this process, as an operator would, once its input ends."""

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
