"""Pages of a queue's jobs."""

from __future__ import annotations

from collections.abc import Sequence

from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import QueueNotFound
from jobwire_server.domain.model import Job, JobState
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.reads import READ_BYTES, PageToken, ReadStore
from jobwire_server.store.tokens import Tokens

LOOK_AT = 2_000
"""The most jobs that one page of a filtered listing looks at."""
MAX_CALLS = 40
"""Calls of the store for one page, which ends early then."""
FULL_PAGE_BYTES = 2 << 20
"""Of the jobs of a page with all that belongs to them, which ends behind the job that fills it."""
PAGE_BYTES = 16 << 20
"""Of the records that are read for a page without."""
AT_ONCE, FULL_AT_ONCE = 200, 50
"""Jobs that are read at once where a filter picks from them."""


class JobListing:
    """Finds the jobs of a queue state by state. Raises StoreUnavailable."""

    def __init__(
        self, jobs: ReadStore, queues: QueueStore, records: RecordCodec, tokens: Tokens
    ) -> None:
        self._jobs = jobs
        self._queues = queues
        self._records = records
        self._tokens = tokens

    async def page(
        self,
        wanted: JobFilter,
        page_size: int,
        page_token: str,
        *,
        full: bool,
    ) -> tuple[list[Job], str]:
        """Return a page of a queue's jobs and the token of the next, '' at the end.

        Args:
            wanted: The jobs; its states in the order in which they are listed, empty: all of them.
            page_size: The most jobs, 1 or more.
            page_token: '' for the first page.
            full: With payloads, results and attempts.

        Raises:
            QueueNotFound: No job was ever submitted to it.
            BadPageToken: The token is of another listing.
        """
        queue = wanted.queue
        order = list(dict.fromkeys(wanted.states)) or list(JobState)
        scope = ("jobs", *wanted.scope(), str(full))
        index, token = 0, PageToken()
        if page_token:
            at, *after = (await self._tokens.read(page_token, *scope)).split(" ")
            index, token = int(at), PageToken(*after)
        elif not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        found: list[Job] = []
        looked = calls = 0
        left_bytes = FULL_PAGE_BYTES if full else PAGE_BYTES
        at_once = (FULL_AT_ONCE if full else AT_ONCE) if wanted.narrows else page_size
        most = at_once
        while (
            index < len(order)
            and len(found) < page_size
            and left_bytes > 0
            and looked < LOOK_AT
            and calls <= MAX_CALLS - 3
        ):
            state, room = order[index], page_size - len(found)
            if not wanted.narrows:
                most = min(most, room)
            ids, following = await self._jobs.list_ids(queue, state, most, token)
            # An entry that a job left behind may stand beside its present one.
            once = [*dict.fromkeys(ids)]
            rows, calls = await self._some(queue, once, full, left_bytes, calls + 1)
            kept = [
                (at, job)
                for at, job in enumerate(rows)
                if job is not None and job.state is state and wanted.keeps(job, self._records)
            ][:room]
            seen = kept[-1][0] + 1 if len(kept) == room else len(rows)
            if seen < len(once):
                # The page goes on behind the last job that there was room for.
                most = ids.index(once[seen - 1]) + 1
                again, following = await self._jobs.list_ids(queue, state, most, token)
                calls += 1
                if again != ids[:most]:
                    continue
            most = at_once
            looked += max(seen, 1)
            left_bytes -= sum(_size(job) for job in rows[:seen] if job is not None)
            found += [job for _, job in kept]
            if following is None:
                index, token = index + 1, PageToken()
            else:
                token = following
        if index >= len(order):
            return found, ""
        seal = await self._tokens.seal(*scope)
        return found, seal.write(f"{index} {token.source} {token.last} {token.mark}")

    async def _some(
        self, queue: str, ulids: Sequence[str], full: bool, most_bytes: int, calls: int
    ) -> tuple[list[Job | None], int]:
        """Read the first of some jobs, up to a number of bytes; count the calls in."""
        rows: list[Job | None] = []
        while len(rows) < len(ulids) and most_bytes > 0 and calls < MAX_CALLS:
            some = await self._jobs.read_some(
                queue, ulids[len(rows) :], full=full, most_bytes=min(most_bytes, READ_BYTES)
            )
            rows += some
            calls += 1
            most_bytes -= sum(_size(job) for job in some if job is not None)
        return rows, calls


def _size(job: Job) -> int:
    failures = [attempt.failure for attempt in job.attempts if attempt.failure is not None]
    told = sum(len(one.message) + len(one.stack) + len(one.details) for one in failures)
    return len(job.record) + len(job.result) + len(job.checkpoint) + told
