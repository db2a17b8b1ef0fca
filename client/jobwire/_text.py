"""Joins pieces of output, which may be cut anywhere, into characters and lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from jobwire.models import OutputChunk


class Decoders:
    """Decodes UTF-8, separately for each channel of an attempt; invalid bytes show as U+FFFD."""

    def __init__(self) -> None:
        self._attempt = 0
        self._of: dict[str, codecs.IncrementalDecoder] = {}

    def decode(self, chunk: OutputChunk) -> str:
        """Return the characters that are complete so far."""
        if chunk.attempt != self._attempt:
            self._attempt = chunk.attempt
            self._of.clear()
        decoder = self._of.get(chunk.channel)
        if decoder is None:
            decoder = self._of[chunk.channel] = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(chunk.data)


class Lines:
    """Splits output into lines, separately for each channel of an attempt."""

    def __init__(self) -> None:
        self._decoders = Decoders()
        self._attempt = 0
        self._begun: dict[str, list[str]] = {}

    def add(self, chunk: OutputChunk) -> Iterator[str]:
        """Yield the lines that this piece completes, without their line ends."""
        if chunk.attempt != self._attempt:
            self._attempt = chunk.attempt
            yield from self.finish()
        head, *rest = self._decoders.decode(chunk).split("\n")
        begun = self._begun.setdefault(chunk.channel, [])
        begun.append(head)
        for tail in rest:
            yield "".join(begun).removesuffix("\r")
            begun[:] = [tail]

    def finish(self) -> Iterator[str]:
        """Yield the lines that were begun and never ended."""
        begun, self._begun = self._begun, {}
        for parts in begun.values():
            line = "".join(parts)
            if line:
                yield line


def cut(text: str, limit_bytes: int) -> str:
    """Shorten text to a number of UTF-8 bytes, at a character's boundary.

    Halves of characters, as in file names that are not UTF-8, become question marks: no message
    can carry them.
    """
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")
