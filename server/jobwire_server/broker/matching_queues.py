"""The queues that a filter means, one or those of a pattern."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.decisions.queue_patterns import fits, prefix_of
from jobwire_server.domain.model import JobState
from jobwire_server.store.queues import QueueStore

NAMES_AT_ONCE = 1_000
QUEUES_AT_ONCE = 25
"""Whose counts are read together."""

Counted = tuple[str, Mapping[JobState, int] | None]
"""A queue, and how many jobs stand in each state; None: that was not asked for."""


async def matching_queues(
    queues: QueueStore, wanted: JobFilter, first: str = ""
) -> AsyncGenerator[Sequence[Counted]]:
    """Yield the queues of a filter in the order of their names, some at a time.

    Those of a pattern come with their counts, since most of many queues have no job in the states
    that are asked for.

    Args:
        queues: The registry, and counts.
        wanted: The filter.
        first: Leaves out those before it; '': none.
    """
    if not wanted.is_pattern:
        yield [(wanted.queue, None)]
        return
    if wanted.named:
        yield [(queue, None) for queue in sorted(wanted.named) if queue >= first]
        return
    prefix, after = prefix_of(wanted.queue), ""
    while True:
        names = await queues.names(after, NAMES_AT_ONCE, prefix=prefix, first=first)
        meant = [name for name in names if fits(wanted.queue, name)]
        for at in range(0, len(meant), QUEUES_AT_ONCE):
            some = meant[at : at + QUEUES_AT_ONCE]
            counts = await asyncio.gather(*map(queues.counts, some))
            yield list(zip(some, counts, strict=True))
        if len(names) < NAMES_AT_ONCE:
            return
        after = names[-1]
