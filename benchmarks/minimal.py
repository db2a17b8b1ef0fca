"""The least that three scripts can do for a job, as a yardstick for the store's time.

A job is stored and its id pushed; popped, leased and returned; its lease dropped and its result
stored with the mark of its end. No fencing, no priorities, no counters, no events, no retention,
and a batch whose answer was lost can't be repeated. `PLAIN` goes job by job; `GATHERED` makes one
command of a batch wherever there is a command that takes many keys or members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.stores import Store

# KEYS[1] prefix; ARGV of submit: pairs of id and record; of claim: how many, lease end; of
# finish: pairs of id and result.


@dataclass(frozen=True, slots=True)
class Sources:
    """Three scripts."""

    submit: str
    claim: str
    finish: str


PLAIN = Sources(
    submit="""
local P = KEYS[1]
for at = 1, #ARGV, 2 do
  redis.call('SET', P .. 'r:' .. ARGV[at], ARGV[at + 1])
  redis.call('RPUSH', P .. 'ready', ARGV[at])
end
return #ARGV / 2
""",
    claim="""
local P = KEYS[1]
local answer = {}
for _ = 1, tonumber(ARGV[1]) do
  local id = redis.call('LPOP', P .. 'ready')
  if not id then break end
  redis.call('ZADD', P .. 'leases', ARGV[2], id)
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('GET', P .. 'r:' .. id)
end
return answer
""",
    finish="""
local P = KEYS[1]
local done = 0
for at = 1, #ARGV, 2 do
  if redis.call('ZREM', P .. 'leases', ARGV[at]) == 1 then
    redis.call('HSET', P .. 'j:' .. ARGV[at], 's', 'done', 'r', ARGV[at + 1])
    done = done + 1
  end
end
return done
""",
)

GATHERED = Sources(
    submit="""
local P = KEYS[1]
local ids, records = {}, {}
for at = 1, #ARGV, 2 do
  ids[#ids + 1] = ARGV[at]
  records[#records + 1] = P .. 'r:' .. ARGV[at]
  records[#records + 1] = ARGV[at + 1]
end
redis.call('MSET', unpack(records))
redis.call('RPUSH', P .. 'ready', unpack(ids))
return #ids
""",
    claim="""
local P = KEYS[1]
local ids = redis.call('LPOP', P .. 'ready', ARGV[1])
if not ids then return {} end
local leases, records = {}, {}
for i, id in ipairs(ids) do
  leases[#leases + 1] = ARGV[2]
  leases[#leases + 1] = id
  records[i] = P .. 'r:' .. id
end
redis.call('ZADD', P .. 'leases', unpack(leases))
records = redis.call('MGET', unpack(records))
local answer = {}
for i, id in ipairs(ids) do
  answer[2 * i - 1] = id
  answer[2 * i] = records[i]
end
return answer
""",
    finish="""
local P = KEYS[1]
local ids = {}
for at = 1, #ARGV, 2 do
  ids[#ids + 1] = ARGV[at]
  redis.call('HSET', P .. 'j:' .. ARGV[at], 's', 'done', 'r', ARGV[at + 1])
end
return redis.call('ZREM', P .. 'leases', unpack(ids))
""",
)


class MinimalQueue:
    """A queue of these scripts.

    Args:
        store: Where it lives.
        prefix: Of its keys.
        sources: Which scripts.
    """

    def __init__(self, store: Store, prefix: str, sources: Sources) -> None:
        self._store = store
        self._prefix = prefix
        self._sources = sources
        self._digests: dict[str, bytes] = {}

    async def load(self) -> None:
        """Makes the scripts known to the store; call it first."""
        for source in (self._sources.submit, self._sources.claim, self._sources.finish):
            self._digests[source] = await self._store.command("SCRIPT", "LOAD", source)

    async def submit(self, jobs: Sequence[tuple[str, bytes]]) -> int:
        """Stores jobs given as (id, record); returns how many."""
        count: int = await self._run(self._sources.submit, *(part for job in jobs for part in job))
        return count

    async def claim(self, most: int, lease_end_ms: int) -> list[str]:
        """Leases jobs, whose records come along; returns their ids."""
        flat = await self._run(self._sources.claim, most, lease_end_ms)
        return [name.decode() for name in flat[::2]]

    async def finish(self, ids: Sequence[str], result: bytes) -> int:
        """Ends jobs; returns how many."""
        parts = (part for name in ids for part in (name, result))
        count: int = await self._run(self._sources.finish, *parts)
        return count

    async def _run(self, source: str, *args: str | bytes | int) -> Any:
        return await self._store.command("EVALSHA", self._digests[source], 1, self._prefix, *args)
