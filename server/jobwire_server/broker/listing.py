"""Pages of jobs, of one queue or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from jobwire_server.broker.matching_queues import matching_queues
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
MAX_QUEUES = 500
"""Whose counts one page looks at."""
AT_ONCE = 200
"""Jobs that are read at once where a filter picks from them."""


class JobListing:
    """Finds the jobs of queues state by state. Raises StoreUnavailable."""

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
        reverse: bool = False,
    ) -> tuple[list[Job], str]:
        """Return a page of jobs and the token of the next, '' at the end.

        Args:
            wanted: The jobs; its states in the order in which they are listed, empty: all of them.
                Over several queues that of the queues comes first.
            page_size: The most jobs, 1 or more.
            page_token: '' for the first page.
            full: With payloads, results and attempts.
            reverse: The other way round within each state.

        Raises:
            QueueNotFound: There is no such queue.
            BadPageToken: The token is of another listing.
        """
        scope = ("jobs", *wanted.scope(), str(full), str(reverse))
        at = _Position()
        if page_token:
            at = _Position.of(await self._tokens.read(page_token, *scope))
        elif not wanted.is_pattern and not await self._queues.exists(wanted.queue):
            raise QueueNotFound(wanted.queue)
        page = _Page(page_size, full, reverse)
        async with aclosing(matching_queues(self._queues, wanted, at.queue)) as chunks:
            async for chunk in chunks:
                for queue, counts in chunk:
                    start = at if at.queue == queue else _Position(queue)
                    stopped = await self._fill(page, wanted.in_queue(queue), start, counts)
                    if stopped is not None:
                        seal = await self._tokens.seal(*scope)
                        return page.jobs, seal.write(stopped.text())
                page.queues += len(chunk)
                if page.queues >= MAX_QUEUES and chunk:
                    behind = _Position(chunk[-1][0], len(JobState))
                    seal = await self._tokens.seal(*scope)
                    return page.jobs, seal.write(behind.text())
        return page.jobs, ""

    async def _fill(
        self,
        page: _Page,
        wanted: JobFilter,
        at: _Position,
        counts: Mapping[JobState, int] | None,
    ) -> _Position | None:
        """Add jobs of one queue to a page; return where it is full, None at the queue's end.

        Args:
            page: Takes the jobs.
            wanted: The jobs.
            at: Where to begin.
            counts: How many jobs stand in each state, where that is known.
        """
        queue, index, token = at.queue or wanted.queue, at.state, at.token
        order = list(dict.fromkeys(wanted.states)) or list(JobState)
        at_once = AT_ONCE if wanted.narrows else page.size
        most = at_once
        while index < len(order):
            state, room = order[index], page.size - len(page.jobs)
            if counts is not None and not counts.get(state):
                index, token = index + 1, PageToken()
                continue
            if not page.open:
                return _Position(queue, index, token)
            if not wanted.narrows:
                most = min(most, room)
            ids, following = await self._ids(wanted, state, most, token, reverse=page.reverse)
            # An entry that a job left behind may stand beside its present one.
            once = [*dict.fromkeys(ids)]
            one_state = replace(wanted, states=(state,))
            look = await self._look(
                one_state, once, room, page.left_bytes, bool(page.jobs), full=page.full
            )
            page.calls += 1 + look.calls
            if look.seen < len(once):
                # The page goes on behind the last job that there was room for.
                if not look.seen:
                    return _Position(queue, index, token)
                most = ids.index(once[look.seen])
                again, following = await self._ids(wanted, state, most, token, reverse=page.reverse)
                page.calls += 1
                if again != ids[:most]:
                    continue
            most = at_once
            page.add(look)
            if following is None:
                index, token = index + 1, PageToken()
            else:
                token = following
        return None

    async def _ids(
        self, wanted: JobFilter, state: JobState, most: int, token: PageToken, *, reverse: bool
    ) -> tuple[list[str], PageToken | None]:
        """Return a page of ULIDs that may be in a state, as `ReadStore.list_ids`."""
        if not wanted.ulids:
            return await self._jobs.list_ids(wanted.queue, state, most, token, reverse=reverse)
        places = [
            place
            for place in await self._jobs.standings(wanted.queue, wanted.ulids)
            if place[0] == state
        ]
        if reverse:
            places.reverse()
        if token.last:
            last = (int(state), int(token.mark), token.last)
            places = [place for place in places if (place < last if reverse else place > last)]
        ids = [ulid for _, _, ulid in places[:most]]
        if len(places) <= most:
            return ids, None
        _, mark, ulid = places[most - 1]
        return ids, PageToken("i", ulid, str(mark))

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


class _Position(NamedTuple):
    """Where a listing stands."""

    queue: str = ""
    state: int = 0
    """How many states are done."""
    token: PageToken = PageToken()
    """Within it."""

    def text(self) -> str:
        """Return what a token seals."""
        token = self.token
        return f"{self.queue} {self.state} {token.source} {token.last} {token.mark}"

    @classmethod
    def of(cls, text: str) -> _Position:
        """Read back what a token sealed."""
        queue, state, *token = text.split(" ")
        return cls(queue, int(state), PageToken(*token))


class _Page:
    """A page that is being filled, and what it may cost.

    Args:
        size: The most jobs.
        full: With all that belongs to them.
        reverse: From the end of each state.
    """

    def __init__(self, size: int, full: bool, reverse: bool) -> None:
        self.size = size
        self.full = full
        self.reverse = reverse
        self.jobs: list[Job] = []
        self.left_bytes = PAGE_BYTES
        self.calls = 0
        self.queues = 0
        self._look_bytes = LOOK_BYTES
        self._looked = 0

    @property
    def open(self) -> bool:
        """True while there is room, and more may be looked at."""
        return (
            len(self.jobs) < self.size
            and self._look_bytes > 0
            and self._looked < LOOK_AT
            and self.calls <= MAX_CALLS - 6
        )

    def add(self, look: _Look) -> None:
        """Take in what a look brought."""
        self._looked += max(look.seen, 1)
        self._look_bytes -= look.bytes
        self.left_bytes -= sum(job.size for job in look.kept)
        self.jobs += look.kept


class _Look(NamedTuple):
    """What a look at some jobs brought."""

    kept: list[Job]
    seen: int
    """How many of them were looked at, and are in the page or not wanted."""
    calls: int
    bytes: int
