"""How to reach the servers: addresses, TLS, channel options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import grpc

from jobwire._route import Route

DEFAULT_TARGET = "127.0.0.1:50051"
TARGET_VARIABLE = "JOBWIRE_TARGET"

try:
    __version__ = version("jobwire")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Which certificates to trust and to show. Each field is a path to a PEM file."""

    ca_file: str | Path | None = None
    """None: the authorities that gRPC trusts by default."""
    certificate_file: str | Path | None = None
    """With `key_file`: the client's own certificate, for servers that ask for one."""
    key_file: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files."""

        def read(path: str | Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(
            read(self.ca_file), read(self.key_file), read(self.certificate_file)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Where the servers are and how to talk to them.

    Args:
        target: `HOST:PORT`, several of them separated by commas, or any gRPC target such as
            `dns:///jobwire.internal:50051`. None: `JOBWIRE_TARGET`, else 127.0.0.1:50051.
        tls: True for TLS with the default authorities, a `Tls` for others, False for none.
        credentials: gRPC channel credentials, in place of `tls`.
        metadata: Sent with every call, such as an `authorization` header.
    """

    target: str | None = None
    tls: bool | Tls = False
    credentials: grpc.ChannelCredentials | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The target as given, or the default one."""
        return self.target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """The credentials to open a channel with; None for plain text."""
        if self.credentials is not None:
            return self.credentials
        if isinstance(self.tls, Tls):
            return self.tls.credentials()
        return grpc.ssl_channel_credentials() if self.tls else None

    def route(self) -> Route:
        """Return the way to the servers.

        Raises:
            ValueError: An address is malformed.
        """
        return Route(self.address)


CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.primary_user_agent", f"jobwire-python/{__version__}"),
    # Finds a connection that died silently within 20 s; servers welcome a ping every 5 s.
    # Without calls under way none is sent.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Two clients of one process must not share one connection's fate and flow control.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # The SDK repeats calls itself: it knows RetryInfo and the overall deadline.
    ("grpc.enable_retries", 0),
    # A restarted server is found again soon; the default cap is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # A name that has moved to another address is noticed soon; the default is 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
)
"""What every channel of this package is opened with."""
