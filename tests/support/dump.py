"""What a queue really holds in the store, as plain Python, and what must always be true of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import redis

from jobwire_server.domain.model import JobState
from jobwire_server.store import keys

LEASED = (JobState.RUNNING, JobState.CANCELLING)

BYTES = "surrogateescape"
"""How bytes that are no text are kept in one, and counted."""

Value = bytes | dict[str, str] | dict[str, float] | list[str] | set[str]


DUMP = """
local found, cursor = {}, '0'
local read = {
  string = function(key) return redis.call('GET', key) end,
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = function(key)
    local entries = redis.call('XRANGE', key, '-', '+')
    for i, entry in ipairs(entries) do entries[i] = entry[1] end
    return entries
  end,
}
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local kind = redis.call('TYPE', key)['ok']
    found[#found + 1] = { key, kind, read[kind](key) }
  end
until cursor == '0'
return found
"""
"""Reads all keys that fit a pattern at one moment: servers that run change them meanwhile."""


def dump_keys(client: redis.Redis, prefix: str) -> dict[str, Value]:
    """Return every key under the prefix, the prefix cut off, with its whole value.

    A HASH becomes a dict of texts, a ZSET one of scores, a LIST a list, a SET a set, and a STRING
    bytes.
    """
    escaped = prefix.replace("[", "\\[").replace("?", "\\?").replace("*", "\\*")
    rows: Any = client.eval(DUMP, 1, prefix, escaped + "*")
    return {
        raw.decode().removeprefix(prefix): _value(kind.decode(), value)
        for raw, kind, value in sorted(rows)
    }


def dump_queue(client: redis.Redis, queue: str = "default") -> dict[str, Value]:
    """Return every key of a queue but the samples, which any look of the clock may add to."""
    found = dump_keys(client, keys.queue_prefix(queue))
    found.pop("samples", None)
    return found


def dump_workers(client: redis.Redis) -> dict[str, Value]:
    """Return every key of the worker registry."""
    return dump_keys(client, keys.WORKERS)


def changes(before: dict[str, Value], after: dict[str, Value]) -> dict[str, Value | None]:
    """Return the keys that differ with their new values, None for those that are gone."""
    return {
        key: after.get(key)
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _value(kind: str, value: Any) -> Value:
    if kind == "string":
        text: bytes = value
        return text
    texts = [part.decode(errors=BYTES) for part in value]
    if kind in ("list", "stream"):
        return texts
    if kind == "set":
        return set(texts)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    if kind == "hash":
        return dict(pairs)
    assert kind == "zset", kind
    return {member: float(score) for member, score in pairs}


@dataclass
class QueueDump:
    """A dump with its parts by kind."""

    keys: dict[str, Any]
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    """ULID -> the HASH, empty where there is none."""

    def __post_init__(self) -> None:
        self.jobs = {
            name[2:]: self.keys.get(f"j:{name[2:]}", {})
            for name in self.keys
            if name.startswith("r:")
        }

    def state(self, ulid: str) -> JobState:
        return JobState(int(self.jobs[ulid].get("s", JobState.PENDING)))

    def in_state(self, *states: JobState) -> set[str]:
        return {ulid for ulid in self.jobs if self.state(ulid) in states}

    def suffixes(self, prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.keys.items()
            if name.startswith(prefix)
        }


def check_invariants(client: redis.Redis, queue: str = "default") -> QueueDump:
    """Check that all structures of a queue tell the same story; return them."""
    dump = QueueDump(dump_queue(client, queue))
    _check_counts(dump)
    _check_leases(dump)
    _check_ready(dump)
    _check_timers(dump)
    _check_bytes(dump)
    _check_unique(dump)
    assert set(dump.keys.get("scheduled", {})) == dump.in_state(JobState.SCHEDULED)
    for state in JobState:
        if state.terminal:
            done = dump.keys.get(f"done:{state.value}", {})
            assert set(done) == dump.in_state(state), f"done:{state.value}"
            for ulid, purge_at in done.items():
                assert dump.jobs[ulid]["pg"] == f"{purge_at:.0f}"
    with_checkpoint = {ulid for ulid, job in dump.jobs.items() if "ck" in job}
    assert set(dump.suffixes("c:")) == with_checkpoint
    assert not with_checkpoint & dump.in_state(JobState.SUCCEEDED)
    _check_schedules(dump)
    for kind in ("j:", "h:", "x:"):
        assert set(dump.suffixes(kind)) <= set(dump.jobs), f"{kind} keys of jobs that are gone"
    return dump


def _check_counts(dump: QueueDump) -> None:
    real = Counter(dump.state(ulid).value for ulid in dump.jobs)
    kept = {int(state): int(count) for state, count in dump.keys.get("counts", {}).items()}
    assert {state: count for state, count in kept.items() if count} == real


def _check_leases(dump: QueueDump) -> None:
    leased = dump.in_state(*LEASED)
    assert set(dump.keys.get("leases", {})) == leased
    held = dump.suffixes("held:")
    holders: dict[str, list[str]] = {}
    for worker, ulids in held.items():
        for ulid in ulids:
            holders.setdefault(ulid, []).append(worker)
    assert holders == {ulid: [dump.jobs[ulid]["w"]] for ulid in leased}
    cancelling = dump.in_state(JobState.CANCELLING)
    for worker, ulids in dump.suffixes("cancels:").items():
        assert ulids <= cancelling, "a cancellation to tell of a job that is not being cancelled"
        assert {dump.jobs[ulid]["w"] for ulid in ulids} == {worker}


def _check_ready(dump: QueueDump) -> None:
    lists, sets = dump.suffixes("l:"), dump.suffixes("z:")
    real = {route: len(lists.get(route, ())) + len(sets.get(route, ())) for route in lists | sets}
    kept = {route: int(count) for route, count in dump.keys.get("ready", {}).items()}
    assert kept == real, "the counts of ready entries"
    assert set(real) <= set(dump.keys.get("routes", {})), "routes without a descriptor"
    for ulid in dump.in_state(JobState.PENDING):
        job = dump.jobs[ulid]
        routes = [job["rt"]] if "rt" in job else list(real)
        places = [
            route for route in routes if ulid in lists.get(route, ()) or ulid in sets.get(route, ())
        ]
        assert places, f"{ulid} is PENDING and on no route: no claim will ever find it"


def _check_bytes(dump: QueueDump) -> None:
    sizes = {ulid: len(dump.keys[f"r:{ulid}"]) for ulid in dump.jobs}
    for ulid, size in sizes.items():
        assert dump.jobs[ulid].get("b", str(size)) == str(size)
    ended = dump.in_state(*(state for state in JobState if state.terminal))
    results = sum(
        len(dump.keys.get(f"x:{ulid}") or dump.jobs[ulid].get("r", "").encode(errors=BYTES))
        for ulid in ended
    )
    usage = dump.keys.get("usage", {})
    assert int(usage.get("live", 0)) == sum(sizes[ulid] for ulid in dump.jobs.keys() - ended)
    assert int(usage.get("ended", 0)) == sum(sizes[ulid] for ulid in ended) + results
    kept = sum(int(job.get("ob", 0)) for job in dump.jobs.values())
    assert int(usage.get("output", 0)) == kept
    writers = {ulid for ulid, job in dump.jobs.items() if int(job.get("ob", 0))}
    assert set(dump.keys.get("written", {})) == writers
    assert set(dump.suffixes("o:")) == writers


def _check_unique(dump: QueueDump) -> None:
    for name, entry in dump.suffixes("u:").items():
        scope, ulid = entry[:1].decode(), entry[1:27].decode()
        if scope != "t":
            assert not dump.state(ulid).terminal, f"{name} outlived its job"
            assert dump.jobs[ulid]["uk"] == scope + name
    for ulid, job in dump.jobs.items():
        if "uk" in job and job["uk"][0] == "u" and not dump.state(ulid).terminal:
            assert dump.keys["u:" + job["uk"][1:]] == b"u" + ulid.encode()


def _check_schedules(dump: QueueDump) -> None:
    found = dump.suffixes("schedule:")
    assert set(dump.keys.get("schedules", {})) == set(found)
    due = {name: float(fields["due"]) for name, fields in found.items() if "due" in fields}
    assert dump.keys.get("due", {}) == due
    runs = dump.suffixes("runs:")
    assert set(runs) == {name for name, fields in found.items() if int(fields.get("n", 0))}
    for name, lines in runs.items():
        assert len(lines) == min(10, int(found[name]["n"]))
    assert all("due" not in fields for fields in found.values() if fields["paused"] == "1")


def _check_timers(dump: QueueDump) -> None:
    timers = dump.keys.get("timers", {})
    by_kind: dict[str, set[str]] = {"e": set(), "d": set(), "t": set(), "c": set()}
    for member in timers:
        by_kind[member[0]].add(member[1:])
    guarded = {
        ulid
        for ulid in dump.in_state(JobState.SCHEDULED, JobState.PENDING)
        if "ex" in dump.jobs[ulid] and dump.jobs[ulid].get("n", "0") == "0"
    }
    assert by_kind["e"] == guarded
    live = {ulid for ulid in dump.jobs if not dump.state(ulid).terminal}
    assert by_kind["d"] == {ulid for ulid in live if "dl" in dump.jobs[ulid]}
    assert by_kind["t"] == {ulid for ulid in dump.in_state(*LEASED) if "xt" in dump.jobs[ulid]}
    assert by_kind["c"] == dump.in_state(JobState.CANCELLING)
