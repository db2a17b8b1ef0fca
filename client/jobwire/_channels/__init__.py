"""Channels to the servers, for event loops and for threads."""

from __future__ import annotations

from jobwire._channels.loops import AsyncChannels, open_async_channel
from jobwire._channels.threads import Channels, open_sync_channel

__all__ = ["AsyncChannels", "Channels", "open_async_channel", "open_sync_channel"]
