"""Handlers in processes of their own, for CPU work and for handlers that start programs.

Each process runs one handler at a time and is used again. It leads a session, and so a process
group, of its own, so that what a handler starts can be ended with it. Its pipe carries the
assignment and the signal to stop to it, and progress, output, checkpoints, log records and the
outcome from it.
"""

from __future__ import annotations

from jobwire.worker.processes.options import ProcessOptions
from jobwire.worker.processes.pool import ProcessPool

__all__ = ["ProcessOptions", "ProcessPool"]
