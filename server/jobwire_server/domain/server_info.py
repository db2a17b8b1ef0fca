"""What a running server is, for those who show it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobwire_server.domain.options import Limits


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The store as it was found at the start."""

    engine: str
    """``redis`` or ``valkey``."""
    version: str
    """For example ``9.1.0``."""
    durability: str
    """What keeps accepted jobs over a crash of the store, for example ``aof everysec``."""
    embedded: bool = False
    """The server runs it itself."""
    warnings: tuple[str, ...] = field(default=())
    """What an operator should mend, or could not be checked; one sentence each."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A server process and what it is connected to."""

    server_id: str
    """Of this process; another one after each start."""
    version: str
    """The release, for example ``0.1.0``."""
    started_at_ms: int
    """When this process began to serve, Unix ms."""
    store: StoreInfo
    limits: Limits
    processes: int = 1
    """How many processes share the server's port."""
    process_index: int = 0
    """Which of them this is, from 0."""
