"""What a supervisor and its processes say to each other.

The parent sends `Orders`, then words; the child answers the orders with how its start went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.server_info import StoreInfo
from jobwire_server.telemetry.logs import LogFormat

DRAIN: Literal["drain"] = "drain"
NOW: Literal["now"] = "now"
"""The words of the parent: end as a server does on its first and on its second signal."""


@dataclass(frozen=True)
class Orders:
    """What a process is to be."""

    settings: dict[str, Any]
    """All of them, as the parent found them, with the real port."""
    index: int
    store_url: str
    embedded: bool
    log_format: LogFormat


@dataclass(frozen=True)
class Served:
    """The start went well."""

    server_id: str
    version: str
    store: StoreInfo


@dataclass(frozen=True)
class Failed:
    """The start was refused."""

    error: ConfigurationError


@dataclass(frozen=True)
class LookAgain:
    """Certificates may have changed, and the level of the logs."""

    log_level: str


Word: TypeAlias = Literal["drain", "now"] | LookAgain
"""What the parent says after the orders."""
