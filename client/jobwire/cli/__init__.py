"""The command `jobwire`."""

from __future__ import annotations

from jobwire.cli.app import main

__all__ = ["main"]
