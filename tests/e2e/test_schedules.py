"""A month of schedules, with servers that are killed all the while: each moment is one job."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
import redis
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import schedule_service_pb2_grpc
from jobwire_server.servicers.records import content_of

from tests.support.contract import job_pb2, schedules
from tests.support.dump import check_invariants
from tests.support.fast_server import shift_ms
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until

MONTH = timedelta(days=30)
SPEED = MONTH.total_seconds() / 12
"""The month takes 12 seconds."""
BEGIN = datetime(2027, 3, 14, 12, tzinfo=UTC)
"""In the month that follows clocks are changed in Berlin and on Lord Howe Island."""


@pytest.fixture
def store() -> Iterator[StoreProcess]:
    """A store of this test alone."""
    process = StoreProcess("valkey")
    try:
        process.start()
        yield process
    finally:
        process.remove()


class FastTime:
    """A clock that begins at BEGIN, for servers and for the test."""

    def __init__(self) -> None:
        self.epoch_s = time.time()
        self.base_ms = (BEGIN.timestamp() - self.epoch_s) * 1000

    @property
    def arguments(self) -> tuple[str, ...]:
        return repr(self.epoch_s), repr(self.base_ms), repr(SPEED)

    def now(self) -> datetime:
        ms = time.time() * 1000 + shift_ms(self.epoch_s, self.base_ms, SPEED)
        return datetime.fromtimestamp(ms / 1000, UTC)


def _spec(begin: datetime, end: datetime, **cadence: Any) -> Any:
    return schedules.ScheduleSpec(
        job=job_pb2.JobSpec(operation="op"),
        start_at=_moment(begin),
        end_at=_moment(end),
        missed_run_policy=schedules.MISSED_RUN_POLICY_RUN_ALL,
        catch_up_window=Duration(seconds=int(MONTH.total_seconds())),
        overlap_policy=schedules.OVERLAP_POLICY_ALLOW,
        **cadence,
    )


def _moment(at: datetime) -> Timestamp:
    return Timestamp(seconds=int(at.timestamp()))


def _cron(expression: str, zone: str) -> Any:
    return {"cron": schedules.CronCadence(expression=expression, time_zone=zone)}


def _every(anchor: datetime, minutes: int) -> Any:
    every = Duration(seconds=60 * minutes)
    return {"interval": schedules.IntervalCadence(every=every, anchor=_moment(anchor))}


def _walls(begin: datetime, end: datetime, zone: str) -> Iterator[datetime]:
    """Every minute of the month as a clock on the wall shows it."""
    at = begin
    while at <= end:
        yield at.astimezone(ZoneInfo(zone))
        at += timedelta(minutes=1)


def _expected(begin: datetime, end: datetime) -> dict[str, set[datetime]]:
    """The moments of each schedule, found by looking at every minute."""
    berlin = list(_walls(begin, end, "Europe/Berlin"))
    lord_howe = list(_walls(begin, end, "Australia/Lord_Howe"))
    found = {
        "twenty": [at for at in berlin if at.minute % 20 == 0],
        "hourly": [at for at in berlin if at.minute == 30],
        # 02:30 is skipped on the last Sunday of March, and made up for at 03:00.
        "nightly": [
            at
            for at in berlin
            if (at.hour, at.minute) == ((3, 0) if (at.month, at.day) == (3, 28) else (2, 30))
        ],
        "island": [at for at in lord_howe if at.minute in (0, 30)],
    }
    # Walls that show the same time twice are two moments.
    return {name: {at.astimezone(UTC) for at in moments} for name, moments in found.items()}


def test_a_month_with_servers_killed_all_the_while_is_one_job_for_each_moment(
    store: StoreProcess,
) -> None:
    clock = FastTime()
    servers = [
        ServerProcess(
            *("--redis-url", store.url),
            module=("tests.support.fast_server", *clock.arguments),
        )
        for _ in range(2)
    ]
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_until_serving()
        begin = clock.now().replace(minute=10, second=0, microsecond=0) + timedelta(days=2)
        end = begin + MONTH
        cadences = {
            "twenty": _every(begin.replace(minute=0), 20),
            "hourly": _cron("30 * * * *", "Europe/Berlin"),
            "nightly": _cron("30 2 * * *", "Europe/Berlin"),
            "island": _cron("*/30 * * * *", "Australia/Lord_Howe"),
        }
        with grpc.insecure_channel(servers[0].address) as channel:
            stub: Any = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
            for name, cadence in cadences.items():
                spec = _spec(begin, end, **cadence)
                request = schedules.CreateScheduleRequest(schedule_id=name, spec=spec)
                stub.CreateSchedule(request, timeout=20)
        chance = random.Random(7)
        kills = 0
        while clock.now() < end:
            victim = servers[kills % 2]
            time.sleep(chance.uniform(0.05, 0.6))
            victim.kill()
            kills += 1
            if chance.random() < 0.3:
                # Nobody is there for some days.
                servers[kills % 2].kill()
                servers[kills % 2].start()
            victim.start()
        assert kills >= 2
        with store.client() as client:
            wait_until(lambda: not client.zcard("jw:{default}:due"), "the month is over")
            _check(client, _expected(begin, end))
    finally:
        for server in servers:
            server.stop()


def _check(client: redis.Redis, expected: dict[str, set[datetime]]) -> None:
    fired: Counter[tuple[str, datetime]] = Counter()
    for key in client.scan_iter(match="jw:{default}:r:*", count=1000):
        labels = job_pb2.JobSpec.FromString(content_of(client.get(key))).labels
        due = datetime.fromisoformat(labels["jobwire.due"])
        fired[labels["jobwire.schedule"], due] += 1
    assert {key for key, count in fired.items() if count > 1} == set()
    for name, moments in expected.items():
        assert len(moments) > 25
        assert {due for schedule, due in fired if schedule == name} == moments
        kept = client.hgetall(f"jw:{{default}}:schedule:{name}")
        assert int(kept[b"n"]) == len(moments)
        assert b"m" not in kept
        assert b"k" not in kept
    check_invariants(client)
