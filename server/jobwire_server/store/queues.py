"""Queues in the store."""

from __future__ import annotations

from collections.abc import Collection

from jobwire_server.domain.errors import QueueInUse, TooManyQueues
from jobwire_server.domain.model import JobState, Queue, QueueChanges, QueueSettings
from jobwire_server.store import codec, keys
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, ScriptRunner

KEPT_MS = 60_000
"""How long an announcement is passed on; a server that missed more than that polls every queue."""
DELETED_KEPT_MS = 3_600_000
"""How long a deletion is known; a server that hung for longer brings the queue back, empty."""
ERASED_JOBS, LOOKED_AT_KEYS = 200, 1_000
"""Of one step of a deletion, which takes the store a millisecond or two."""
_SAMPLED = ("submitted", "started", "succeeded", "failed")


class QueueStore:
    """The registry of queues, and each queue's own facts. Methods raise StoreUnavailable."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    async def register(self, queue: str, most: int = 0) -> None:
        """Register the queue. Done before its first job, so that no server overlooks it.

        Args:
            queue: Its name.
            most: The most queues that there may be; 0: any number.

        Raises:
            TooManyQueues: There are so many already, and this is none of them.
        """
        code = await self._runner.run("register", keys.REGISTRY, [queue, most])
        if code == Code.TOO_MANY_QUEUES:
            raise TooManyQueues(
                f"there are {most} queues, as many as this server allows (max_queues): delete some"
                " that nobody uses (DeleteQueue), or raise the limit",
                metadata={"queue": queue, "maximum": str(most)},
            )

    async def note_deletion(self, queue: str, *, done: bool) -> None:
        """Note for all servers that the queue is deleted, before that begins and when it is done;
        then it is taken off the registry, too.
        """
        args: list[Argument] = [queue, int(done), DELETED_KEPT_MS]
        await self._runner.run("unregister", keys.REGISTRY, args)

    async def deleted(self) -> dict[str, int]:
        """Return the queues that were deleted in the last hour, and perhaps made anew since, with
        the moment of it, in the store's time.
        """
        command, key = self._runner.command, keys.REGISTRY + "deleted"
        reply = await command("ZRANGE", key, 0, -1, "WITHSCORES")
        # Pairs or a flat list, as the protocol has it.
        rows = reply if reply and isinstance(reply[0], list | tuple) else codec.pairs(reply).items()
        return {name.decode(): int(float(at)) for name, at in rows}

    async def erase(self, queue: str, cursor: str) -> str:
        """Take one step in removing everything of the queue from the store.

        Args:
            queue: Its name.
            cursor: '0' at first, and then what the step before returned.

        Returns:
            The next cursor; '' once nothing is left.

        Raises:
            QueueInUse: It has live jobs or schedules.
        """
        args: list[Argument] = [cursor, ERASED_JOBS, LOOKED_AT_KEYS]
        code, *rest = await self._runner.run("erase", keys.queue_prefix(queue), args)
        if code == Code.QUEUE_IN_USE:
            live, schedules = rest
            raise QueueInUse(
                f"the queue {queue} has {live} live jobs and {schedules} schedules: cancel these"
                " jobs (CancelJobs), wait for those that run, and delete the schedules first",
                metadata={"queue": queue, "live_jobs": str(live), "schedules": str(schedules)},
            )
        return str(rest[0].decode())

    async def is_kept(self, queue: str) -> bool:
        """True if anything of the queue is in the store besides its name."""
        prefix = keys.queue_prefix(queue)
        names = [prefix + name for name in ("totals", "config", "schedules")]
        return int(await self._runner.command("EXISTS", *names)) > 0

    async def stir(
        self, queues: Collection[str], since_ms: int, *, tidy: bool = False
    ) -> tuple[int, int, list[str]]:
        """Announce queues that this server writes to.

        Args:
            queues: Their names.
            since_ms: The moment since which announcements are wanted, in the store's time; 0: all.
            tidy: Drop announcements that have expired.

        Returns:
            The store's time, when a queue was deleted last, and the queues that any server has
            announced since.
        """
        kept_ms = KEPT_MS if tidy else 0
        args: list[Argument] = [since_ms, kept_ms, *queues]
        now, deleted, *names = await self._runner.run("stir", keys.REGISTRY, args)
        return now, deleted, [name.decode() for name in names]

    async def exists(self, queue: str) -> bool:
        """True once the queue was registered."""
        return await self._runner.command("ZSCORE", keys.QUEUES, queue) is not None

    async def names(
        self, after: str = "", most: int = -1, *, prefix: str = "", first: str = ""
    ) -> list[str]:
        """Return names of queues, in their order.

        Args:
            after: Only those that sort behind it; '': all.
            most: At most so many of them; -1: all.
            prefix: Only those that begin so.
            first: Only this one and those that sort behind it; where there is no `after`.
        """
        least = max(first, prefix)
        start = f"({after}" if after else f"[{least}" if least else "-"
        # No character of a name sorts behind this one.
        end = f"({prefix}~" if prefix else "+"
        reply = await self._runner.command("ZRANGEBYLEX", keys.QUEUES, start, end, "LIMIT", 0, most)
        return [name.decode() for name in reply]

    async def counts(self, queue: str) -> dict[JobState, int]:
        """Return how many jobs of the queue stand in each state that has any."""
        reply = await self._runner.command("HGETALL", keys.counts_key(queue))
        fields = reply if isinstance(reply, dict) else codec.pairs(reply)
        return {JobState(int(state)): int(count) for state, count in fields.items() if int(count)}

    async def read(self, queue: str, *, detail: bool) -> Queue:
        """Return a queue as it stands, with `detail` including its oldest ready job and samples."""
        now, paused, counts, totals, since, record, samples, config, usage = await self._runner.run(
            "queue", keys.queue_prefix(queue), [int(detail)]
        )
        used = codec.pairs(usage)
        return Queue(
            name=queue,
            paused=bool(paused),
            counts={
                JobState(int(state)): int(count)
                for state, count in sorted(codec.pairs(counts).items())
                if int(count) > 0
            },
            totals={name.decode(): int(count) for name, count in codec.pairs(totals).items()},
            oldest_pending_ms=since,
            oldest_pending_record=record,
            now_ms=now,
            settings=codec.decode_settings(config),
            revision=codec.settings_revision(config),
            output_bytes=int(used.get(b"output", 0)),
            live_bytes=int(used.get(b"live", 0)),
            ended_bytes=int(used.get(b"ended", 0)),
            samples=tuple(_sample(raw) for raw in samples),
        )

    async def settings(self, queue: str) -> QueueSettings:
        """Return the settings of the queue, whether or not it exists."""
        reply = await self._runner.command("HGETALL", keys.config_key(queue))
        return codec.decode_settings(reply)

    async def revised_settings(self, queue: str) -> tuple[QueueSettings, int]:
        """Return the settings of the queue with their revision, whether or not it exists."""
        reply = await self._runner.command("HGETALL", keys.config_key(queue))
        return codec.decode_settings(reply), codec.settings_revision(reply)

    async def configure(self, queue: str, changes: QueueChanges, revision: int = 0) -> bool:
        """Change settings of the queue.

        Args:
            queue: Its name.
            changes: The settings.
            revision: Only if they still are at this one; 0: whatever it is.

        Returns:
            False if they are at another revision; nothing was changed then.
        """
        args: list[Argument] = [revision, *codec.encode_settings(changes)]
        code = await self._runner.run("configure", keys.queue_prefix(queue), args)
        return bool(code == Code.DONE)

    async def set_paused(self, queue: str, paused: bool) -> None:
        """Stop or restart deliveries from the queue."""
        await self._runner.run("pause", keys.queue_prefix(queue), [int(paused)])


def _sample(raw: bytes) -> tuple[int, dict[str, int]]:
    at, *totals = (int(part) for part in raw.split())
    return at, dict(zip(_SAMPLED, totals, strict=True))
