"""Jobs as they stand in the store: read.lua, attempts.lua, follow.lua, list.lua and log.lua."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from jobwire_server.domain.decisions.routing import parse_descriptor
from jobwire_server.domain.errors import CursorCompacted
from jobwire_server.domain.ids import split_ulids
from jobwire_server.domain.model import Attempt, Job, JobState, Route, Written
from jobwire_server.store import codec, keys
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts

READ_BYTES = 2 << 20
"""Of the jobs that one call of the store brings."""
AT_ONCE = 200
"""Jobs that one call of the store looks at."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A watched job as it stands, with output behind the position that was asked for."""

    job: Job
    more: bool
    """There is more output than was read."""
    output: list[Written]


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of a queue's event log."""

    last_id: str
    """Of the last entry, for the next page."""
    ulids: list[str]


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where a listing continues within a state; an empty token starts it."""

    source: str = ""
    last: str = ""
    mark: str = ""


class ReadStore(QueueScripts):
    """Reads jobs. Nothing here writes."""

    async def read(self, queue: str, ulids: Sequence[str], *, full: bool) -> list[Job | None]:
        """Return each job as it stands, None for one that is not there."""
        found = await self.read_some(queue, ulids, full=full)
        while len(found) < len(ulids):
            found += await self.read_some(queue, ulids[len(found) :], full=full)
        return found

    async def read_some(
        self, queue: str, ulids: Sequence[str], *, full: bool, most_bytes: int = READ_BYTES
    ) -> list[Job | None]:
        """Return the first of some jobs as they stand: one, and more until they have so many bytes.

        Nobody else has the store meanwhile, and whoever wants them may be slow to take them.
        """
        args: list[Argument] = [int(full), most_bytes, *ulids]
        now, *rows = await self._run("read", queue, args)
        return [
            codec.decode_job(queue, ulid, row, now) if row else None
            for ulid, row in zip(ulids, rows, strict=False)
        ]

    async def read_in_turn(
        self, queue: str, ulids: Sequence[str], *, full: bool
    ) -> AsyncGenerator[Job]:
        """Yield the jobs that are there, read as they are taken."""
        at = 0
        while at < len(ulids):
            some = await self.read_some(queue, ulids[at : at + AT_ONCE], full=full)
            at += len(some)
            for job in some:
                if job is not None:
                    yield job

    async def attempts(
        self, queue: str, ulid: str, below: int, most: int, most_bytes: int
    ) -> tuple[list[Attempt], bool] | None:
        """Return attempts of a job, newest first, and True if there are more; None: no such job.

        Args:
            queue: Its queue.
            ulid: The job.
            below: Only those with a fencing token below this; 0: all.
            most: The most attempts, 1 or more.
            most_bytes: The most bytes of them; a first one may have more.
        """
        args: list[Argument] = [ulid, below or "", most, most_bytes]
        _, flat, *rest = await self._run("attempts", queue, args)
        if not rest:
            return None
        more, *entries = rest
        fields = flat if isinstance(flat, dict) else codec.pairs(flat)
        found = [
            attempt
            for attempt in codec.decode_last_attempt(fields)
            if not below or attempt.fencing_token < below
        ]
        found += map(codec.decode_attempt, entries)
        return found[:most], bool(more) or len(found) > most

    async def read_bare(self, queue: str, ulids: Sequence[str]) -> list[Job]:
        """Return those jobs that are there, without records, results, checkpoints and attempts."""
        found = []
        for at in range(0, len(ulids), AT_ONCE):
            part = ulids[at : at + AT_ONCE]
            now, *rows = await self._run("read", queue, [2, READ_BYTES, *part])
            found += [
                codec.decode_job(queue, ulid, row, now)
                for ulid, row in zip(part, rows, strict=True)
                if row
            ]
        return found

    async def outcomes(self, queue: str, ulids: Sequence[str]) -> list[Job | None]:
        """Return each job with its state, result and failure, without record and checkpoint;
        None for one that is not there.
        """
        found: list[Job | None] = []
        while len(found) < len(ulids):
            part = ulids[len(found) : len(found) + AT_ONCE]
            now, *rows = await self._run("read", queue, [3, READ_BYTES, *part])
            found += [
                codec.decode_job(queue, ulid, row, now) if row else None
                for ulid, row in zip(part, rows, strict=False)
            ]
        return found

    async def follow(
        self, queue: str, jobs: Sequence[tuple[str, bytes, str]], most_bytes: int
    ) -> list[Followed | None]:
        """Return watched jobs as they stand, None for one that is not there.

        Args:
            queue: The queue of all of them.
            jobs: (ULID, its record if that is known already, where output is wanted from: '' for
                none, otherwise as follow.lua reads it).
            most_bytes: How much output of each job to read, give or take a piece.
        """
        followed: list[Followed | None] = []
        while len(followed) < len(jobs):
            some = jobs[len(followed) :]
            args: list[Argument] = [most_bytes, READ_BYTES]
            for ulid, record, position in some:
                args += (ulid, 1 if record else 0, position)
            now, *rows = await self._run("follow", queue, args)
            for (ulid, record, _), row in zip(some, rows, strict=False):
                if not row:
                    followed.append(None)
                    continue
                job = codec.decode_job(queue, ulid, [record or row[0], *row[1:6]], now)
                followed.append(Followed(job, bool(row[6]), codec.decode_written(row[7:])))
        return followed

    async def log_page(self, queue: str, after: str, most: int) -> LogPage | None:
        """Return what follows an entry of the event log; None if the queue keeps no log.

        Args:
            queue: Its name.
            after: Id of the last entry that was seen; '' to learn only where the log ends.
            most: The most entries.

        Raises:
            CursorCompacted: The log does not reach back so far.
        """
        code, last, *entries = await self._run("log", queue, [after, most])
        if code == Code.LOG_COMPACTED:
            raise CursorCompacted(
                f"the event log of {queue} does not reach back to the cursor; watch again"
                " without one"
            )
        if code == Code.NO_LOG:
            return None
        return LogPage(last.decode(), split_ulids(b"".join(entries).decode()))

    async def standings(self, queue: str, ulids: Sequence[str]) -> list[tuple[int, int, str]]:
        """Return the jobs that there are as (state, when an ended one may be forgotten, ULID), in
        the order in which they are listed.
        """
        args: list[Argument] = [*dict.fromkeys(ulids)]
        flat = iter(await self._run("standing", queue, args))
        return sorted(
            (state, purge_at, str(ulid))
            for ulid, state, purge_at in zip(args, flat, flat, strict=True)
            if state
        )

    async def list_ids(
        self,
        queue: str,
        state: JobState,
        most: int,
        token: PageToken,
        *,
        reverse: bool = False,
    ) -> tuple[list[str], PageToken | None]:
        """Return a page of ULIDs that may be in the state, and where to go on, None at the end.

        Args:
            queue: Their queue.
            state: Of the jobs.
            most: The most ids.
            token: Where the page before ended, with the same `reverse`.
            reverse: The other way round.
        """
        source, last, mark, *ids = await self._run(
            "list",
            queue,
            [int(state), most, token.source, token.last, token.mark, int(reverse)],
        )
        following = PageToken(source.decode(), last.decode(), mark.decode()) if source else None
        return [ulid.decode() for ulid in ids], following

    async def routes(self, queue: str) -> dict[str, Route]:
        """Return the routes that the queue has ever had, by id."""
        reply = await self._runner.command("HGETALL", keys.routes_key(queue))
        flat = reply if isinstance(reply, dict) else codec.pairs(reply)
        return {name.decode(): parse_descriptor(text) for name, text in flat.items()}

    async def now_ms(self, queue: str) -> int:
        """Return the store's time, Unix ms."""
        args: list[Argument] = [0, 0]
        (now,) = await self._run("read", queue, args)
        return int(now)
