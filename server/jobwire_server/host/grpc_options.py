"""What gRPC's library is told of how to serve."""

from __future__ import annotations

from jobwire_server.domain.options import Limits

MAX_PENDING = 5_000
MAX_PENDING_S = 2
"""How many calls that have come in wait until the event loop takes them up, and for how long.

gRPC itself ends those beyond as CANCELLED, at a fraction of what a refusal costs that is made in
Python. See docs/adr/0012-grpc-turns-away-what-nobody-has-looked-at.md.
"""
HANDSHAKE_MS = 10_000
"""How long a connection may take until it speaks HTTP/2, or TLS before that."""


def server_options(limits: Limits, *, shared_port: bool) -> tuple[tuple[str, int], ...]:
    """Return the options of a server.

    Args:
        limits: What messages may have.
        shared_port: True: other processes serve the same port.
    """
    return (
        # Another server on this port is a mistake to be told, not to be shared with. A
        # supervisor has made sure of that for all of its processes.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 100_000),
        # A burst waits at the door, and is answered or refused with a word when to retry.
        # Left to itself the library begins to cut calls off at a thousand.
        ("grpc.server.max_pending_requests", MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
        ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_S),
        # Clients may ask every 10 s whether the server is there, with or without calls.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A peer that vanished without a word is given up after 40 s.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # One that says nothing, or half of it, would stay for two minutes.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    )
