"""What differs between the two clients and has no common spelling."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc import aio

from jobwire._children import refuse_second_call
from jobwire._connection import ConnectionOptions


async def async_sleep(seconds: float) -> None:
    """Waits without blocking the loop."""
    await asyncio.sleep(seconds)


def sync_sleep(seconds: float) -> None:
    """Waits, blocking the thread."""
    time.sleep(seconds)


def open_async_channel(options: ConnectionOptions) -> aio.Channel:
    """Opens an asyncio channel; call it where the loop runs."""
    refuse_second_call()
    target, arguments = options.resolve()
    credentials = options.channel_credentials()
    if credentials is None:
        return aio.insecure_channel(target, options=arguments)
    return aio.secure_channel(target, credentials, options=arguments)


def open_sync_channel(options: ConnectionOptions) -> grpc.Channel:
    """Opens a channel for threads."""
    refuse_second_call()
    target, arguments = options.resolve()
    credentials = options.channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(target, options=arguments)
    return grpc.secure_channel(target, credentials, options=arguments)
