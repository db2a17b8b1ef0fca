"""Pages of a queue's jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import JobNotFound, QueueNotFound
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import Attempt, Job, JobState
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.reads import READ_BYTES, PageToken, ReadStore
from jobwire_server.store.tokens import Tokens

LOOK_AT = 2_000
"""The most jobs that one page of a filtered listing looks at."""
MAX_CALLS = 40
"""Calls of the store for one page, which ends early then."""
PAGE_BYTES = 3 << 20
"""Of the jobs of a page, which ends before the job for which there is no room; a first job may be
larger."""
LOOK_BYTES = 16 << 20
"""Of the jobs that a filter looks at for one page."""
AT_ONCE = 200
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
        left_bytes, look_bytes = PAGE_BYTES, LOOK_BYTES
        at_once = AT_ONCE if wanted.narrows else page_size
        most = at_once
        while (
            index < len(order)
            and len(found) < page_size
            and look_bytes > 0
            and looked < LOOK_AT
            and calls <= MAX_CALLS - 6
        ):
            state, room = order[index], page_size - len(found)
            if not wanted.narrows:
                most = min(most, room)
            ids, following = await self._jobs.list_ids(queue, state, most, token)
            # An entry that a job left behind may stand beside its present one.
            once = [*dict.fromkeys(ids)]
            one_state = replace(wanted, states=(state,))
            look = await self._look(one_state, once, room, left_bytes, bool(found), full=full)
            calls += 1 + look.calls
            if look.seen < len(once):
                # The page goes on behind the last job that there was room for.
                if not look.seen:
                    break
                most = ids.index(once[look.seen])
                again, following = await self._jobs.list_ids(queue, state, most, token)
                calls += 1
                if again != ids[:most]:
                    continue
            most = at_once
            looked += max(look.seen, 1)
            left_bytes -= sum(job.size for job in look.kept)
            look_bytes -= look.bytes
            found += look.kept
            if following is None:
                index, token = index + 1, PageToken()
            else:
                token = following
        if index >= len(order):
            return found, ""
        seal = await self._tokens.seal(*scope)
        return found, seal.write(f"{index} {token.source} {token.last} {token.mark}")

    async def attempts(
        self, queue: str, ulid: str, page_size: int, page_token: str
    ) -> tuple[list[Attempt], str]:
        """Return a page of a job's attempts, newest first, and the token of the next, '' at the
        end.

        Raises:
            JobNotFound: There is no such job.
            BadPageToken: The token is of another listing.
        """
        job_id = job_id_of(queue, ulid)
        scope = "attempts", job_id
        below = int(await self._tokens.read(page_token, *scope)) if page_token else 0
        found = await self._jobs.attempts(queue, ulid, below, page_size, PAGE_BYTES)
        if found is None:
            raise JobNotFound(job_id)
        attempts, more = found
        if not more:
            return attempts, ""
        return attempts, (await self._tokens.seal(*scope)).write(str(attempts[-1].fencing_token))

    async def _look(
        self,
        wanted: JobFilter,
        ulids: Sequence[str],
        room: int,
        left_bytes: int,
        begun: bool,
        *,
        full: bool,
    ) -> _Look:
        """Look at the first of some jobs, as far as there is room for what fits.

        Args:
            wanted: Which jobs fit.
            ulids: Those to look at, in their order.
            room: The most jobs to keep.
            left_bytes: The most bytes to keep.
            begun: False if the page is empty so far, so that a first job may be larger.
            full: With all that belongs to them.
        """
        picks = wanted.narrows
        rows, calls = await self._some(
            wanted.queue, ulids, full and not picks, LOOK_BYTES if picks else left_bytes
        )
        seen, fits = len(rows), self._fitting(wanted, rows)
        if full and picks and fits:
            # All of a job is read only where it fits.
            places = [at for at, _ in fits]
            whole, more = await self._some(
                wanted.queue, [ulids[at] for at in places[:room]], True, left_bytes
            )
            calls += more
            if len(whole) < len(places):
                seen = places[len(whole)]
            fits = [(places[at], job) for at, job in self._fitting(wanted, whole)]
        kept: list[Job] = []
        for at, job in fits:
            left_bytes -= job.size
            if len(kept) == room or (left_bytes < 0 and (begun or kept)):
                seen = at
                break
            kept.append(job)
        looked_bytes = sum(job.size for job in rows if job is not None)
        return _Look(kept, seen, calls, looked_bytes)

    def _fitting(self, wanted: JobFilter, rows: Sequence[Job | None]) -> list[tuple[int, Job]]:
        return [
            (at, job)
            for at, job in enumerate(rows)
            if job is not None and wanted.keeps(job, self._records)
        ]

    async def _some(
        self, queue: str, ulids: Sequence[str], full: bool, most_bytes: int
    ) -> tuple[list[Job | None], int]:
        """Read the first of some jobs, up to a number of bytes and in one or two calls."""
        rows: list[Job | None] = []
        calls = 0
        while len(rows) < len(ulids) and most_bytes > 0 and calls < 2:
            some = await self._jobs.read_some(
                queue, ulids[len(rows) :], full=full, most_bytes=min(most_bytes, READ_BYTES)
            )
            rows += some
            calls += 1
            most_bytes -= sum(job.size for job in some if job is not None)
        return rows, calls


class _Look(NamedTuple):
    """What a look at some jobs brought."""

    kept: list[Job]
    seen: int
    """How many of them were looked at, and are in the page or not wanted."""
    calls: int
    bytes: int
