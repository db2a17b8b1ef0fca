"""What a stream has to tell the registry: counters, and what its worker tells of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple


class SessionNews(NamedTuple):
    """What is new since the last sign of life."""

    stats: str
    """The counters as JSON, '' if they did not change."""
    told: str
    """What the worker tells of itself as JSON, '' if that did not change."""
    moved: bool
    """Held jobs or credits changed, or what the worker tells of itself."""


class Told:
    """What was told of one stream so far."""

    def __init__(self) -> None:
        self._stats = ""
        self._held: tuple[int, int] | None = None
        self._metadata: Mapping[str, str] = {}
        self._metadata_is_new = False

    def metadata(self, entries: Mapping[str, str]) -> None:
        """The worker tells of itself; told on with the next news, however often it changes."""
        self._metadata, self._metadata_is_new = entries, True

    def news(self, counters: Mapping[str, int]) -> SessionNews:
        """Return what is new, and count it as told."""
        held = (counters["held_jobs"], counters["credits"])
        moved = self._metadata_is_new or held != self._held
        stats = json.dumps(counters)
        news = SessionNews(
            "" if stats == self._stats else stats,
            json.dumps(dict(self._metadata)) if self._metadata_is_new else "",
            moved,
        )
        self._stats, self._held, self._metadata_is_new = stats, held, False
        return news

    def again(self) -> None:
        """The last news may not have arrived."""
        self._stats, self._held = "", None
        self._metadata_is_new = bool(self._metadata)
