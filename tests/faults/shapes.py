"""What runs in each configuration."""

from __future__ import annotations

from dataclasses import dataclass

CONFIGS = ("one", "three", "processes", "sentinel", "always")
SHORT = (
    *("--lease", "6s", "--heartbeat-interval", "500ms", "--worker-timeout", "4s"),
    *("--reconnect-window", "2s", "--claim-timeout", "3s", "--cancel-grace", "5s"),
)
"""So that what a fault leaves behind comes back within a short run."""
NO_STORE = 3
"""The exit code of a server that waited in vain for its store, to be started again."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What runs in a configuration."""

    servers: int = 1
    flags: tuple[str, ...] = ()
    clocks_s: tuple[int, ...] = ()
    """How far the clock of each server is off."""


SHAPES = {
    "one": Shape(),
    "three": Shape(servers=3, clocks_s=(0, 600, -600)),
    "processes": Shape(flags=("--processes", "2")),
    "sentinel": Shape(servers=2, flags=("--wait-replicas", "1")),
    "always": Shape(),
}
WORKERS = {
    # name: transport, keeps its id over restarts, behind links that fail
    "stream-a": ("stream", True, False),
    "stream-b": ("stream", False, True),
    "unary-a": ("unary", True, False),
    "unary-b": ("unary", False, True),
}
CALM = "client-calm"
"""Nothing is done to it, so that there is always something to do for the others."""
CLIENTS = {
    # name: kind, behind links that fail
    "client-async": ("async", True),
    "client-sync": ("sync", False),
    CALM: ("async", False),
}
