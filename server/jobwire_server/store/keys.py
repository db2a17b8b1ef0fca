"""Every key and channel name in the store.

All keys of one queue share the hash tag `{<queue>}`, so that each script touches one
slot of a cluster. Scripts get the prefix and append the rest, which
their headers and docs/schema.md describe.
"""

from __future__ import annotations

EVERY = "jw:*"
"""The pattern of every key and every channel, for the rights of the store's user."""
WORKERS = "jw:{workers}:"
"""Prefix of the worker registry."""
WORKER_EVENTS = WORKERS + "changes"
WORKER_MOVES = WORKERS + "moved"
"""Channel: the id of each worker that registered, changed, was lost or left.

For a stream, a space and its session follow. A queue may be called `workers`, so no name here may
be one that a queue's keys or channels have.
"""
LOST_WORKERS = WORKERS + "lost"
LEFT_WORKERS = WORKERS + "left"
"""ZSET: workers that were lost and whose jobs are not back yet."""
REGISTRY = "jw:{queues}:"
"""Prefix of the registry of queues. A queue may be called `queues`, so the same rule holds."""
QUEUES = REGISTRY + "all"
"""ZSET: the name of every queue, scored 0."""
TOKEN_KEY = REGISTRY + "token-key"
"""STRING: the secret with which page tokens and cursors are sealed."""


def queue_prefix(queue: str) -> str:
    """Return what every key of the queue begins with."""
    return f"jw:{{{queue}}}:"


def queue_of(prefix: str) -> str:
    """Return the queue whose prefix that is."""
    return prefix[len("jw:{") : -len("}:")]


def events_channel(queue: str) -> str:
    """Return the channel of changed jobs: their ULIDs, 26 characters each, end to end.

    Where the queue keeps an event log, the id of the entry stands before them between two `#`.
    """
    return f"jw:{{{queue}}}:events"


def outputs_channel(queue: str) -> str:
    """Return the channel of jobs that wrote output: their ULIDs, end to end."""
    return f"jw:{{{queue}}}:outputs"


def signals_channel(queue: str) -> str:
    """Return the channel of jobs that were cancelled or taken back while a worker held them.

    Their ULIDs, 26 characters each, end to end.
    """
    return f"jw:{{{queue}}}:signals"


def cancels_channel(queue: str) -> str:
    """Return the channel of workers whose jobs were cancelled: their ids, separated by spaces."""
    return f"jw:{{{queue}}}:cancels"


def ready_channel(queue: str) -> str:
    """Return the channel of jobs that became ready: `<route>:<count>`, by commas; `*` for any."""
    return f"jw:{{{queue}}}:ready"


def config_key(queue: str) -> str:
    """HASH: the settings of the queue, and whether it is paused."""
    return f"jw:{{{queue}}}:config"


def counts_key(queue: str) -> str:
    """HASH: state -> jobs."""
    return f"jw:{{{queue}}}:counts"


def routes_key(queue: str) -> str:
    """HASH: route id -> descriptor."""
    return f"jw:{{{queue}}}:routes"


def held_key(queue: str, worker_id: str) -> str:
    """SET: the ULIDs of the queue's jobs that the worker holds."""
    return f"jw:{{{queue}}}:held:{worker_id}"
