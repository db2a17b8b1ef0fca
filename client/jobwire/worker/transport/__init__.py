"""How a worker talks to the broker, apart from what it does with its jobs."""

from __future__ import annotations

from jobwire.worker.transport.base import START_PATIENCE_S, Host, Terms, Transport
from jobwire.worker.transport.stream import StreamTransport
from jobwire.worker.transport.unary import UnaryTransport

__all__ = ["START_PATIENCE_S", "Host", "StreamTransport", "Terms", "Transport", "UnaryTransport"]
