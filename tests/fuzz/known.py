"""Entries of the corpus that are known to fail until their causes are mended. To be kept empty."""

from __future__ import annotations

ENTRIES: dict[str, str] = {}
"""The reason by the entry's name."""
