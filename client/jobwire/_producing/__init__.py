"""The producers' stream: submissions and follows of a client share one, and it comes and goes."""

from __future__ import annotations

from jobwire._producing.async_producer import AsyncProducer
from jobwire._producing.producer import Producer

__all__ = ["AsyncProducer", "Producer"]
