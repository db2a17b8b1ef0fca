"""A router, or the scripts below it, on each of the real stores."""

from __future__ import annotations

from tests.support.fixtures import broker, scripts, valkey_broker

__all__ = ["broker", "scripts", "valkey_broker"]
