"""Refusals that may pass: servers mean them, and proxies that are being switched say them too."""

from __future__ import annotations

import grpc

DOUBTFUL = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
# How long a worker that no server ever took tries on after one of them. One that was taken before
# tries on for as long as it lives.
START_PATIENCE_S = 10.0
