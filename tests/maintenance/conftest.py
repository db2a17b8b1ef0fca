"""The scripts that the loops run."""

from __future__ import annotations

from tests.store.conftest import scripts

__all__ = ["scripts"]
