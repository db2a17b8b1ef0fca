"""Running the scripts, and repeating calls while the store is away for a moment.

A script is called by its digest; a store that does not know it (restarted, failed over, flushed)
gets the source once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import Any

import structlog
from redis import exceptions as redis_errors
from redis.crc import key_slot

from jobwire_server.domain.errors import StoreFull, StoreUnavailable, StoreUnfit
from jobwire_server.store import keys
from jobwire_server.store.activity import Activity
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.connection.connect import Connection, cause_of, denial_of
from jobwire_server.store.connection.replicas import ReplicaWait
from jobwire_server.store.scripts import Script, load

log = structlog.get_logger(__name__)

Argument = str | bytes | int | float
Words = Sequence[Argument]
"""A command with its arguments."""

RETRY_WINDOW_S = 2.0
"""How long a call is repeated against a store that does not answer.

A restart or failover of the store within it is a mere delay; after it callers should know.
"""
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25

# Errors that may pass: a lost connection, a failover, a slot of a cluster on the move,
# a store that is still loading.
PASSING = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
    redis_errors.AskError,
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.ClusterError,
    redis_errors.RedisClusterException,
    ConnectionError,
    TimeoutError,
)


# The same as replies for which the client library has no class, and a disk that is full or failing.
PASSING_REPLIES = (
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "READONLY",
    "NOREPLICAS",
    "BUSY",
    "MISCONF",
    # The answer to WAIT on a primary that became a replica meanwhile.
    "UNBLOCKED",
    "ERR WAIT cannot be used with replica",
)


def _forms(script: Script, key: str, args: Sequence[Argument]) -> tuple[Words, Words]:
    """Return the call by digest, and the one for a store that does not know the script."""
    return ("EVALSHA", script.digest, 1, key, *args), ("EVAL", script.source, 1, key, *args)


class ScriptRunner:
    """Runs scripts, and repeats them while the store is away for a moment.

    Repeating is safe because every script is idempotent: a call whose answer was lost changes
    nothing the second time.

    Args:
        connection: The store.
        wait_replicas: How many replicas must have a write before it counts; 0: none.
        wait_timeout_ms: How long they may take.
        condition: Of the store, kept by whoever watches it; None: it is taken to be well.
        activity: Notes which queues are written to. None: nobody needs to know.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        wait_replicas: int = 0,
        wait_timeout_ms: int = 1_000,
        condition: StoreCondition | None = None,
        activity: Activity | None = None,
    ) -> None:
        self._connection = connection
        client: Any = connection.client
        self._client = client
        self._activity = activity
        self._condition = condition or StoreCondition()
        self._probing: set[tuple[str, int]] = set()
        """Parts long away, for which one call is finding out whether they still are."""
        self._wait = ReplicaWait(client, wait_replicas, wait_timeout_ms) if wait_replicas else None
        self._in_slots = connection.kind == "cluster"
        self._down_since: dict[tuple[str, int], float] = {}
        """Scripts or commands, and the slot in a cluster -> since when they get no answer.

        While a slot moves, single keys may be readable where no script runs.
        """
        self.clock_shift_ms = 0
        """Moves the clock of every script; only tests set it."""

    async def run(self, name: str, key: str, args: Sequence[Argument]) -> Any:
        """Run one script on one key prefix.

        Args:
            name: The script.
            key: The prefix.
            args: Its arguments, but for the shift of the clock.

        Raises:
            StoreUnavailable: The store did not answer within the retry window, or too few replicas
                have the write, which stands on the primary.
            StoreFull: The store has no memory for the script's writes; nothing was written.
        """
        script = load(name)
        if script.timed:
            args = (self.clock_shift_ms, *args)
        # Every server finds by itself what the clock does.
        if script.waits and self._activity is not None and self._activity.write(key):
            await self._activity.announced()
        if self._wait is not None and script.waits:
            return await self._on_replicas(self._wait, "script", key, *_forms(script, key, args))
        return await self._repeat("script", key, lambda: self._once(script, key, args))

    async def command(self, name: str, key: str, *args: Argument, waits: bool = False) -> Any:
        """Run one idempotent command on one key. Raises as `run` does.

        Args:
            name: The command.
            key: Its key.
            args: What follows the key.
            waits: It writes, so replicas must have it too if they are waited for.
        """
        if self._wait is not None and waits:
            words = (name, key, *args)
            return await self._on_replicas(self._wait, "command", key, words, words)
        return await self._repeat(
            "command", key, lambda: self._client.execute_command(name, key, *args)
        )

    async def _once(self, script: Script, key: str, args: Sequence[Argument]) -> Any:
        run = self._connection.run_script
        try:
            return await run(("EVALSHA", script.digest, 1, key, *args), reads=script.reads)
        except redis_errors.NoScriptError:
            return await run(("EVAL", script.source, 1, key, *args), reads=script.reads)

    async def _on_replicas(
        self, wait: ReplicaWait, kind: str, key: str, write: Words, whole: Words
    ) -> Any:
        fence, whole_fence = _forms(load("fence"), key, ())

        async def once() -> tuple[Any, int]:
            try:
                return await wait.send(write, fence)
            except redis_errors.NoScriptError:
                # Both again, though one may have run: one primary's replicas must be counted.
                return await wait.send(whole, whole_fence)

        answer, have = await self._repeat(kind, key, once)
        wait.check(have)
        return answer

    async def _repeat(self, kind: str, key: str, call: Any) -> Any:
        began = monotonic()
        if not self._down_since:
            return await self._until_answered(kind, key, call, began)
        part = self._part(kind, key)
        since = self._down_since.get(part)
        if since is None or not self._long_away(since, began):
            return await self._until_answered(kind, key, call, began)
        # A store that hangs holds each call for as long as a read may last. One call at a time
        # finds out whether it is back; the others fail at once.
        if part in self._probing:
            raise self._unavailable(since, "it is being tried")
        self._probing.add(part)
        try:
            return await self._until_answered(kind, key, call, began)
        finally:
            self._probing.discard(part)

    async def _until_answered(self, kind: str, key: str, call: Any, began: float) -> Any:
        pause = FIRST_PAUSE_S
        while True:
            try:
                answer = await call()
            except redis_errors.OutOfMemoryError as error:
                raise StoreFull from error
            except (*PASSING, redis_errors.ResponseError) as error:
                if not isinstance(error, PASSING) and not str(error).startswith(PASSING_REPLIES):
                    if denied := denial_of(error):
                        raise StoreUnfit(
                            f"{self._condition.address} refuses a right to this server's user:"
                            f" {denied}; mend it with ACL SETUSER, as the server's log says"
                        ) from error
                    raise
                part = self._part(kind, key)
                if part not in self._down_since:
                    self._down_since[part] = began
                    log.warning("store unreachable", key=key, error=str(error))
                # Once the store has been away for longer than the window, callers fail at once.
                now = monotonic()
                if now + pause > began + RETRY_WINDOW_S or self._long_away(
                    self._down_since[part], now
                ):
                    cause = str(cause_of(error)).rstrip(".") or type(error).__name__
                    raise self._unavailable(self._down_since[part], cause) from error
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if self._down_since:
                    self._note_back(kind, key)
                return answer

    def _long_away(self, since: float, now: float) -> bool:
        # A store that was found back is tried by every call: the one that is finding out may still
        # wait for what it asked while the store hung.
        return now - max(since, self._condition.back_at) > RETRY_WINDOW_S

    def _unavailable(self, since: float, cause: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._condition.address} has not answered for {monotonic() - since:.0f} s ({cause});"
            " what was asked of it may have been done: repeat it with the same ids"
        )

    def _note_back(self, kind: str, key: str) -> None:
        since = self._down_since.pop(self._part(kind, key), None)
        if since is not None:
            log.info("store back", key=key, after_s=round(monotonic() - since, 2))

    def _part(self, kind: str, key: str) -> tuple[str, int]:
        # That one node of a cluster is away says nothing about queues on the others.
        return (kind, key_slot(key.encode())) if self._in_slots else ("", 0)


class QueueScripts:
    """Base of stores whose scripts act on one queue."""

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner

    def _run(self, name: str, queue: str, args: Sequence[Argument]) -> Awaitable[Any]:
        return self._runner.run(name, keys.queue_prefix(queue), args)
