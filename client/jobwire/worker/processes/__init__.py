"""Handlers in processes of their own, for CPU work and for what starts programs.

Each process runs one handler at a time and is used again. It leads a session and with it a process
group of its own, so that what a handler starts can be ended with it. Over its pipe go the
assignment and the signal to stop one way, progress, output, checkpoints, log records and the
outcome the other.
"""

from __future__ import annotations

from jobwire.worker.processes.options import ProcessOptions
from jobwire.worker.processes.pool import ProcessPool

__all__ = ["ProcessOptions", "ProcessPool"]
