"""The settings of handlers' processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """How handlers that are registered with `run="process"` are kept.

    Raises:
        ValueError: A number is out of its range.
    """

    max_jobs: int | None = None
    """Replace a process after this many jobs, 1 or more; the next one is started while the last job
    runs. None: no limit."""
    max_memory_bytes: int | None = None
    """Replace a process that holds more than this after a job, 1 or more; running jobs are left
    alone. It is the resident memory of the process without its children; on macOS, its peak. None:
    no limit."""
    end_children: bool = True
    """True: what a job leaves running in its process group is ended with the job, and its process
    is replaced. False: it may run until its process ends, as does a pool that the handlers of a
    module share."""
    start_timeout_s: float = 60.0
    """How long a process may take to start and to import the handlers, in seconds. Above 0."""

    def __post_init__(self) -> None:
        for name in ("max_jobs", "max_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more, or None for no limit")
        if not self.start_timeout_s > 0:
            raise ValueError(f"start_timeout_s is {self.start_timeout_s}; it must be above 0")
