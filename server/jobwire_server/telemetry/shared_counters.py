"""Shared counters: numbers of one server process that its supervisor reads, and that outlive it.

They are memory that a parent and one child share. The child counts straight into it, so what it
counted stands even after kill -9, and the process that takes its place goes on from there:
counters never go back, and there are as many of them as processes, however often they die.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from enum import IntEnum

NAME_BYTES = 128
ROW_CELLS = 36
"""Numbers in a row. The first is a level, which ends with its process; all others only grow."""
MAX_ROWS = 150

_CELL = 8
_HEADER_CELLS = 8
_NAME_CELLS = NAME_BYTES // _CELL
_STRIDE = _NAME_CELLS + ROW_CELLS
_SIZE = (_HEADER_CELLS + MAX_ROWS * _STRIDE) * _CELL
_STATE, _BEAT, _STORE_UP, _ROWS, _STUCK, _STORE_FIT = range(6)


class State(IntEnum):
    """How far a process is."""

    DOWN = 0
    """It starts, or there is none."""
    SERVING = 1
    DRAINING = 2


class SharedCounters:
    """The numbers of one process; one process writes, any may read.

    Args:
        fd: The shared memory; see `create`. Stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._cells = memoryview(self._memory).cast("d")

    @classmethod
    def create(cls) -> SharedCounters:
        """New counters, which are gone with the last process that has them."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("jobwire-counters")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    @property
    def state(self) -> State:
        """How far the process is."""
        return State(int(self._cells[_STATE]))

    @state.setter
    def state(self, value: State) -> None:
        self._cells[_STATE] = value

    @property
    def beat(self) -> float:
        """When its event loop last came round, in seconds of the machine's monotonic clock."""
        return self._cells[_BEAT]

    @beat.setter
    def beat(self, value: float) -> None:
        self._cells[_BEAT] = value

    @property
    def store_up(self) -> bool:
        """It reaches the store."""
        return bool(self._cells[_STORE_UP])

    @store_up.setter
    def store_up(self, value: bool) -> None:
        self._cells[_STORE_UP] = value

    @property
    def stuck_handlers(self) -> int:
        """Handlers of its workers that do not stop."""
        return int(self._cells[_STUCK])

    @stuck_handlers.setter
    def stuck_handlers(self, value: int) -> None:
        self._cells[_STUCK] = value

    @property
    def store_fit(self) -> bool:
        """The store is trusted with new jobs."""
        return bool(self._cells[_STORE_FIT])

    @store_fit.setter
    def store_fit(self, value: bool) -> None:
        self._cells[_STORE_FIT] = value

    def clear_levels(self) -> None:
        """Forget what ended with the process; what it counted stays."""
        for level in (_STATE, _STORE_UP, _STORE_FIT, _STUCK):
            self._cells[level] = 0.0
        for _, cells in self.rows():
            cells[0] = 0.0

    def row(self, name: str) -> memoryview[float] | None:
        """The numbers under a name, zeroes at first; None: no room, or the name is too long."""
        for known, cells in self.rows():
            if known == name:
                return cells
        at, encoded = int(self._cells[_ROWS]), name.encode()
        if at == MAX_ROWS or len(encoded) > NAME_BYTES:
            return None
        start = self._start(at) * _CELL
        self._memory[start : start + len(encoded)] = encoded
        # Last, so that nobody reads half a name.
        self._cells[_ROWS] = at + 1
        return self._row_cells(at)

    def rows(self) -> Iterator[tuple[str, memoryview[float]]]:
        """All names with their numbers."""
        for at in range(int(self._cells[_ROWS])):
            start = self._start(at) * _CELL
            name = self._memory[start : start + NAME_BYTES].rstrip(b"\0").decode()
            yield name, self._row_cells(at)

    def _start(self, at: int) -> int:
        return _HEADER_CELLS + at * _STRIDE

    def _row_cells(self, at: int) -> memoryview[float]:
        start = self._start(at) + _NAME_CELLS
        return self._cells[start : start + ROW_CELLS]
