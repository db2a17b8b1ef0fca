"""Thousands of jobs that fail together: they come back spread out, and nobody spins meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from jobwire_server.broker import queue_clock
from jobwire_server.domain.decisions.endings import backoff_ms
from jobwire_server.domain.model import Completion, Failure, JobState, RetryPolicy
from jobwire_server.domain.options import RetryDefaults

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job
from tests.support.waiting import eventually

JOBS = 3_000
BACKOFF_MS = 60_000
JITTER = 0.5
BINS = 10


def _even(share_of_bin: Counter[int], jobs: int) -> None:
    """Each tenth of the spread gets about a tenth of the jobs."""
    assert set(share_of_bin) == {*range(BINS)}
    assert min(share_of_bin.values()) > 0.8 * jobs / BINS
    assert max(share_of_bin.values()) < 1.2 * jobs / BINS


def _bin(wait_ms: float) -> int:
    low = BACKOFF_MS * (1 - JITTER)
    return min(BINS - 1, int((wait_ms - low) / (2 * JITTER * BACKOFF_MS) * BINS))


def test_jitter_spreads_backoffs_evenly_over_its_share() -> None:
    retry = RetryDefaults(initial_backoff_ms=BACKOFF_MS, jitter=JITTER)
    draw = random.Random(1).random
    waits = [backoff_ms(retry, 1, draw) for _ in range(JOBS)]
    assert min(waits) >= BACKOFF_MS * (1 - JITTER)
    assert max(waits) <= BACKOFF_MS * (1 + JITTER)
    _even(Counter(map(_bin, waits)), JOBS)


async def _fail_all(broker: Broker) -> None:
    policy = RetryPolicy(2, BACKOFF_MS, BACKOFF_MS, 1.0, JITTER)
    for _ in range(JOBS // 1_000):
        await broker.submit(*(new_job(retry=policy) for _ in range(1_000)))
    failed = 0
    while claimed := await broker.claim("w1", 1_000):
        ends = [
            Completion(
                "default", one.job_id[-26:], one.fencing_token, Failure("Down", "it is down")
            )
            for one in claimed
        ]
        outcomes = await broker.parts.attempts.complete_many("w1", ends)
        failed += sum(getattr(one, "state", None) is JobState.SCHEDULED for one in outcomes)
    assert failed == JOBS


def _count_ticks(broker: Broker) -> Callable[[], int]:
    ticks = 0
    real = broker.parts.upkeep.tick

    async def tick(*args: object, **given: object) -> object:
        nonlocal ticks
        ticks += 1
        return await real(*args, **given)  # type: ignore[arg-type]

    broker.parts.upkeep.tick = tick  # type: ignore[method-assign, assignment]
    return lambda: ticks


@pytest.mark.timeout(120)
async def test_thousands_of_failures_come_back_spread_out_and_the_clock_sleeps_meanwhile(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long it takes to count the looks, the queue is not to be quiet.
    monkeypatch.setattr(queue_clock, "MAY_BE_QUIET_S", 1e9)
    async with running_broker(
        valkey_url, QUIET, random_fraction=random.Random(2).random, tick_ms=200
    ) as broker:
        await broker.register()
        await _fail_all(broker)
        scheduled = broker.client.zrange("jw:{default}:scheduled", 0, -1, withscores=True)
        assert len(scheduled) == JOBS
        ended = {
            ulid.decode(): int(
                broker.client.lindex(f"jw:{{default}}:h:{ulid.decode()}", 0).split()[3]
            )
            for ulid, _ in scheduled
        }
        waits = [due - ended[ulid.decode()] for ulid, due in scheduled]
        _even(Counter(map(_bin, waits)), JOBS)

        # Nothing is due for half a minute: the clock looks now and then, as it does at any time,
        # and not once for each of the thousands.
        ticks = _count_ticks(broker)
        await eventually(lambda: ticks() >= 5, "the clock looks", timeout_s=10)
        broker.client.config_resetstat()
        before = ticks()
        await eventually(lambda: ticks() >= before + 5, "and looks again", timeout_s=10)
        info = broker.client.info("commandstats")
        scripts = sum(
            one["calls"] for name, one in info.items() if name.startswith("cmdstat_evalsha")
        )
        # Besides ticks: the purges, and what streams and workers need.
        assert scripts <= 5 * (ticks() - before) + 10

        # When all are due, each look takes its portion: as many looks as portions, and no more.
        before = ticks()
        broker.shift(2 * BACKOFF_MS)
        await eventually(
            lambda: int(broker.client.hget("jw:{default}:counts", "2") or 0) == JOBS,
            "all are ready again",
            timeout_s=60,
        )
        assert ticks() - before <= JOBS // 200 + 20
        broker.check()
