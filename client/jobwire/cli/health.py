"""Whether a server that answers can do its work."""

from __future__ import annotations

from enum import Enum

import grpc

from jobwire._channels import open_sync_channel
from jobwire._connection import ConnectionOptions, Tls
from jobwire.errors import CallError

_METHOD = "/grpc.health.v1.Health/Check"
# A HealthCheckResponse, whose one field is the status; the stubs would be a package of their own.
_SERVING = b"\x08\x01"
_PATIENCE_S = 2.0


class Health(Enum):
    """How a server is."""

    READY = "ready"
    NOT_READY = "not ready"
    """It answers, but its store does not, or it is about to end."""
    SILENT = "silent"


def health_of(target: str | None, tls: bool | Tls) -> Health:
    """Ask a server how it is; wait two seconds for its answer."""
    try:
        with open_sync_channel(ConnectionOptions(target=target, tls=tls)) as channel:
            check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
            answer = check(b"", timeout=_PATIENCE_S, wait_for_ready=True)
    except (grpc.RpcError, CallError):
        return Health.SILENT
    return Health.READY if answer == _SERVING else Health.NOT_READY
