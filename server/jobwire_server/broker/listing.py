"""Pages of a queue's jobs."""

from __future__ import annotations

from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import QueueNotFound
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import Job, JobState
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.reads import PageToken, ReadStore
from jobwire_server.store.tokens import Tokens

LOOK_AT = 2_000
"""The most jobs that one page of a filtered listing looks at."""
MAX_CALLS = 40
"""Calls of the store for one page, which ends early then."""
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
        at_once = (FULL_AT_ONCE if full else AT_ONCE) if wanted.narrows else page_size
        most = at_once
        while (
            index < len(order)
            and len(found) < page_size
            and looked < LOOK_AT
            and calls <= MAX_CALLS - 2
        ):
            state, room = order[index], page_size - len(found)
            if not wanted.narrows:
                most = room
            ids, following = await self._jobs.list_ids(queue, state, most, token)
            # An entry that a job left behind may stand beside its present one.
            once = [*dict.fromkeys(ids)]
            rows = await self._jobs.read(queue, once, full=full) if once else []
            calls += 2 if once else 1
            kept = [
                job
                for job in rows
                if job is not None and job.state is state and wanted.keeps(job, self._records)
            ]
            if len(kept) > room:
                # A page goes on behind the last job that was looked at, so it looks again: at those
                # alone for which there is room.
                most = ids.index(kept[room - 1].job_id[ULID]) + 1
                continue
            most = at_once
            looked += max(len(ids), 1)
            found += kept
            if following is None:
                index, token = index + 1, PageToken()
            else:
                token = following
        if index >= len(order):
            return found, ""
        seal = await self._tokens.seal(*scope)
        return found, seal.write(f"{index} {token.source} {token.last} {token.mark}")
