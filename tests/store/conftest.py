"""The scripts on each of the real stores."""

from __future__ import annotations

from tests.support.fixtures import scripts

__all__ = ["scripts"]
