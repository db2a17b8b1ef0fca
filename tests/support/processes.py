"""Looking for processes by their ids."""

from __future__ import annotations

from pathlib import Path


def lives(pid: int) -> bool:
    """Tells whether a process runs; one that has ended and was not waited for does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"
