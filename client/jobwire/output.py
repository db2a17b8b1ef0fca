"""What a handler writes out, kept until the broker has it."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable

from jobwire.errors import OutputFull
from jobwire.v1.job_pb2 import OutputChunk

# The contract's.
MAX_CHUNK_BYTES = 64 << 10
MAX_CHUNKS = 256
MAX_REPORT_BYTES = 1 << 20
# This much is sent without waiting for FLUSH_S.
FLUSH_BYTES = 16 << 10
FLUSH_S = 0.05
# Above this a handler in a thread waits for the broker, and so does `drain`.
ROOM_BYTES = 1 << 20
# Above this a handler that never drains gets an error.
MOST_BYTES = 16 << 20
_LOOK_S = 0.1
_CHANNEL = re.compile(r"[A-Za-z0-9._-]{1,32}")


class _Piece:
    __slots__ = ("channel", "data", "is_text")

    def __init__(self, channel: str, is_text: bool) -> None:
        self.channel = channel
        self.is_text = is_text
        self.data = bytearray()


class OutputLog:
    """The output of one attempt that the broker does not have yet. Safe across threads.

    Only one piece is under way at a time. What was under way when a connection broke is sent again
    with the same offsets, and the broker drops what it already has.

    Args:
        on_output: Called in the writing thread when there is output to send; with True: at once.
        should_stop: Returns True once the handler should stop; writing then never blocks.
    """

    def __init__(self, on_output: Callable[[bool], None], should_stop: Callable[[], bool]) -> None:
        self._on_output = on_output
        self._should_stop = should_stop
        self._changed = threading.Condition()
        self._pieces: deque[_Piece] = deque()
        self._offset = 0
        """Bytes that the broker has."""
        self._waiting = 0
        self._under_way = 0
        self._most_pieces = MAX_CHUNKS
        self._told = self._told_urgent = self._ending = self._closed = False
        self.on_full: Callable[[], None] | None = None
        self.full = False

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the broker does not have yet."""
        return self._waiting

    @property
    def closed(self) -> bool:
        """True: the lease is lost, and nothing is sent any more."""
        return self._closed

    @property
    def has_room(self) -> bool:
        """False: the writer should wait."""
        return self._waiting < ROOM_BYTES or self.full or self._closed

    @property
    def is_due(self) -> bool:
        """True: there is enough output, or the handler has ended, so it should be sent now."""
        return self._waiting >= FLUSH_BYTES or (self._ending and self._waiting > 0)

    def write(self, data: bytes, channel: str, *, is_text: bool, wait: bool = False) -> None:
        """Append output.

        Args:
            data: Any number of bytes.
            channel: A valid name.
            is_text: True: UTF-8.
            wait: True: block while too much waits.

        Raises:
            BufferError: More than 16 MiB would wait.
        """
        with self._changed:
            while wait and not self.has_room and not self._should_stop():
                # The signal to stop does not notify this condition.
                self._changed.wait(_LOOK_S)
            if self.full or self._closed or not data:
                return
            if self._waiting + len(data) > MOST_BYTES:
                raise BufferError(
                    f"{self._waiting} bytes of output wait for the broker; await context.drain()"
                )
            self._append(data, channel, is_text)
            self._waiting += len(data)
            urgent = self._waiting >= FLUSH_BYTES
            tell = not self._told or (urgent and not self._told_urgent)
            self._told, self._told_urgent = True, self._told_urgent or urgent
        if tell:
            self._on_output(urgent)

    def _append(self, data: bytes, channel: str, is_text: bool) -> None:
        at = 0
        while at < len(data):
            last = self._pieces[-1] if len(self._pieces) > self._under_way else None
            if last is None or (last.channel, last.is_text) != (channel, is_text):
                last = _Piece(channel, is_text)
                self._pieces.append(last)
            end = min(len(data), at + MAX_CHUNK_BYTES - len(last.data))
            # Not within a character.
            while is_text and at < end < len(data) and data[end] & 0xC0 == 0x80:
                end -= 1
            last.data += data[at:end]
            if end < len(data):
                self._pieces.append(_Piece(channel, is_text))
            at = end

    def take(self) -> list[OutputChunk]:
        """Return the next piece for the wire; it is under way until it is answered."""
        with self._changed:
            self._told = self._told_urgent = False
            chunks: list[OutputChunk] = []
            offset, size = self._offset, 0
            for piece in self._pieces:
                size += len(piece.data)
                if len(chunks) == self._most_pieces or size > MAX_REPORT_BYTES:
                    break
                chunk = OutputChunk(channel=piece.channel, offset=offset)
                if piece.is_text:
                    chunk.text = piece.data.decode()
                else:
                    chunk.data = bytes(piece.data)
                offset += len(piece.data)
                chunks.append(chunk)
            self._under_way = len(chunks)
            return chunks

    def recorded(self) -> None:
        """Note that the broker has what was under way."""
        with self._changed:
            for _ in range(self._under_way):
                size = len(self._pieces.popleft().data)
                self._offset += size
                self._waiting -= size
            self._under_way = 0
            self._most_pieces = MAX_CHUNKS
            self._changed.notify_all()

    def again(self) -> None:
        """Send again what was under way: nobody knows whether the broker has it."""
        with self._changed:
            self._under_way = 0

    def refused(self) -> bool:
        """Note that what was under way is above a limit; return True if less of it may fit."""
        with self._changed:
            taken, self._under_way = self._under_way, 0
            if taken > 1:
                self._most_pieces = taken // 2
                return True
        self.fill()
        return False

    def fill(self) -> None:
        """Drop whatever comes from now on: a limit is reached."""
        self.full = True
        self._drop()
        if self.on_full is not None:
            self.on_full()

    def continue_at(self, offset: int) -> None:
        """Continue at the broker's offset: its store lost what came after."""
        with self._changed:
            self._offset = offset
            self._under_way = 0

    def finish(self) -> None:
        """Send what waits: the handler has ended."""
        self._ending = True

    def close(self) -> None:
        """Drop everything: the lease is lost."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        with self._changed:
            self._pieces.clear()
            self._waiting = self._under_way = 0
            self._changed.notify_all()


def check_channel(channel: str) -> str:
    """Return the name of a channel if it is valid.

    Raises:
        ValueError: It is not.
    """
    if not _CHANNEL.fullmatch(channel):
        raise ValueError(f"{channel!r} is not a channel: use 1 to 32 letters, digits and `. _ -`")
    return channel


def raise_full() -> None:
    """Raise OutputFull.

    Raises:
        OutputFull: Always.
    """
    raise OutputFull("the output limit is reached", reason="OUTPUT_FULL")
