# ruff: noqa: N802 - methods have the names of the contract
"""Schedules as their makers say them, over a broker that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest

from jobwire import AsyncClient, ChangedMeanwhile, RetryPolicy, Schedule, ScheduleNotFound
from jobwire.schedules import change_spec, new_spec
from jobwire.v1 import schedule_service_pb2 as pb
from jobwire.v1 import schedule_service_pb2_grpc

from tests.client.broker import Broker, reason, rich_status

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class ScheduleBroker(Broker, schedule_service_pb2_grpc.ScheduleServiceServicer):
    """Keeps schedules and knows no time."""

    def __init__(self) -> None:
        super().__init__()
        self.schedules: dict[str, pb.Schedule] = {}

    def add_services(self, server: grpc.aio.Server) -> None:
        schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(self, server)

    async def _found(self, request: Any, context: Any) -> pb.Schedule:
        if request.schedule_id not in self.schedules:
            await context.abort(
                *rich_status(grpc.StatusCode.NOT_FOUND, "none", reason("SCHEDULE_NOT_FOUND"))
            )
        return self.schedules[request.schedule_id]

    async def CreateSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("CreateSchedule", request, context)
        made = pb.Schedule(
            queue=request.queue,
            schedule_id=request.schedule_id,
            spec=request.spec,
            paused=request.paused,
            revision=1,
        )
        self.schedules[request.schedule_id] = made
        return pb.CreateScheduleResponse(schedule=made)

    async def GetSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("GetSchedule", request, context)
        return pb.GetScheduleResponse(schedule=await self._found(request, context))

    async def ListSchedules(self, request: Any, context: Any) -> Any:
        await self.enter("ListSchedules", request, context)
        names = sorted(self.schedules)
        at = int(request.page_token or 0)
        more = str(at + 1) if at + 1 < len(names) else ""
        page = [self.schedules[name] for name in names[at : at + 1]]
        return pb.ListSchedulesResponse(schedules=page, next_page_token=more)

    async def UpdateSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("UpdateSchedule", request, context)
        found = await self._found(request, context)
        found.spec.CopyFrom(request.spec)
        found.revision += 1
        return pb.UpdateScheduleResponse(schedule=found)

    async def PauseSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("PauseSchedule", request, context)
        found = await self._found(request, context)
        found.paused, found.pause_reason = True, request.reason
        return pb.PauseScheduleResponse(schedule=found)

    async def ResumeSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("ResumeSchedule", request, context)
        found = await self._found(request, context)
        found.paused = False
        return pb.ResumeScheduleResponse(schedule=found)

    async def TriggerSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("TriggerSchedule", request, context)
        await self._found(request, context)
        return pb.TriggerScheduleResponse(job_id="default-1")

    async def DeleteSchedule(self, request: Any, context: Any) -> Any:
        await self.enter("DeleteSchedule", request, context)
        self.schedules.pop(request.schedule_id, None)
        return pb.DeleteScheduleResponse()


@pytest.fixture
async def broker() -> AsyncIterator[ScheduleBroker]:
    made = ScheduleBroker()  # type: ignore[abstract]
    await made.start()
    yield made
    await made.stop()


def seen(spec: pb.ScheduleSpec) -> Schedule:
    return Schedule.from_proto(pb.Schedule(schedule_id="s", queue="default", spec=spec))


def test_all_that_a_schedule_may_say_comes_back() -> None:
    spec = new_spec(
        "report.build",
        {"kind": "daily"},
        {
            "cron": "30 6 * * MON-FRI",
            "time_zone": ZoneInfo("Europe/Berlin"),
            "start_at": NOON,
            "end_at": NOON + timedelta(days=1),
            "missed": "run_all",
            "catch_up_window": timedelta(hours=2),
            "overlap": "cancel_previous",
            "jitter": 30,
            "description": "for the board",
            "priority": 7,
            "labels": {"a": "b"},
            "retry": RetryPolicy(max_attempts=2),
            "execution_timeout": 60,
            "unique_key": "report",
        },
    )
    found = seen(spec)
    assert (found.cron, found.time_zone, found.every) == ("30 6 * * MON-FRI", "Europe/Berlin", None)
    assert found.cadence == "30 6 * * MON-FRI Europe/Berlin"
    assert (found.start_at, found.end_at) == (NOON, NOON + timedelta(days=1))
    assert (found.missed, found.overlap) == ("run_all", "cancel_previous")
    assert found.catch_up_window == timedelta(hours=2)
    assert found.jitter == timedelta(seconds=30)
    assert (found.description, found.priority, found.labels) == ("for the board", 7, {"a": "b"})
    assert found.payload == {"kind": "daily"}
    assert found.retry.max_attempts == 2
    assert found.execution_timeout == timedelta(minutes=1)
    assert found.unique_key is not None
    assert found.unique_key.key == "report"


def test_a_schedule_may_be_due_at_fixed_distances() -> None:
    found = seen(new_spec("check", None, {"every": timedelta(minutes=5), "anchor": NOON}))
    assert (found.every, found.anchor, found.cron) == (timedelta(minutes=5), NOON, None)
    assert found.cadence == "every 0:05:00"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give cron="),
        ({"time_zone": "UTC"}, "give cron="),
        ({"cron": "@daily", "every": 5}, "cron or every, not both"),
        ({"every": 5, "time_zone": "Europe/Berlin"}, "time_zone goes with cron"),
        ({"cron": "@daily", "anchor": NOON}, "anchor goes with every"),
        ({"cron": "@daily", "overlap": "queue"}, "is not a value of overlap"),
        ({"cron": "@daily", "missed": "all"}, "is not a value of missed"),
        ({"cron": "@daily", "start_at": datetime(2030, 1, 1)}, "no time zone"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        new_spec("work", None, options)


def test_a_change_leaves_alone_what_it_does_not_name() -> None:
    spec = new_spec(
        "work", {"a": 1}, {"cron": "@daily", "time_zone": "Europe/Berlin", "priority": 3}
    )
    before = seen(spec)
    change_spec(spec, {"cron": "@hourly", "labels": {"x": "y"}})
    after = seen(spec)
    assert (after.cron, after.time_zone) == ("@hourly", "Europe/Berlin")
    assert (after.payload, after.priority) == (before.payload, 3)
    assert after.labels == {"x": "y"}


def test_a_change_to_none_takes_away() -> None:
    spec = new_spec(
        "work",
        {"a": 1},
        {"every": 60, "end_at": NOON, "jitter": 5, "overlap": "allow", "execution_timeout": 9},
    )
    change_spec(
        spec,
        {
            "end_at": None,
            "jitter": None,
            "overlap": None,
            "payload": None,
            "execution_timeout": None,
        },
    )
    found = seen(spec)
    assert (found.end_at, found.jitter, found.overlap) == (None, None, "skip")
    assert (found.payload, found.execution_timeout) == (None, None)
    assert found.every == timedelta(minutes=1)


def test_a_change_may_go_from_one_cadence_to_the_other() -> None:
    spec = new_spec("work", None, {"cron": "@daily", "time_zone": "Europe/Berlin"})
    change_spec(spec, {"every": 60})
    assert seen(spec).every == timedelta(minutes=1)
    change_spec(spec, {"cron": "@weekly"})
    assert (seen(spec).cron, seen(spec).every) == ("@weekly", None)


async def test_a_schedule_is_made_read_listed_stopped_and_removed(
    broker: ScheduleBroker, client: AsyncClient
) -> None:
    made = await client.create_schedule("b", "work", [1], every=60, queue="q", paused=True)
    assert (made.id, made.queue, made.operation, made.paused) == ("b", "q", "work", True)
    await client.create_schedule("a", "work", cron="@daily")
    assert [found.id async for found in client.list_schedules()] == ["a", "b"]
    assert (await client.pause_schedule("a", "holidays")).pause_reason == "holidays"
    assert not (await client.resume_schedule("a")).paused
    assert (await client.get_schedule("a")).cron == "@daily"
    await client.delete_schedule("a")
    with pytest.raises(ScheduleNotFound):
        await client.get_schedule("a")


async def test_a_trigger_is_repeated_with_the_same_request_id(
    broker: ScheduleBroker, client: AsyncClient
) -> None:
    await client.create_schedule("a", "work", every=60)
    broker.fail("TriggerSchedule", rich_status(grpc.StatusCode.UNAVAILABLE, "away"))
    assert await client.trigger_schedule("a") == "default-1"
    first, second = broker.calls["TriggerSchedule"]
    assert first.request_id == second.request_id != ""


async def test_a_change_is_made_to_what_is_there_by_then(
    broker: ScheduleBroker, client: AsyncClient
) -> None:
    await client.create_schedule("a", "work", every=60)
    changed = rich_status(grpc.StatusCode.ABORTED, "changed", reason("CHANGED_MEANWHILE"))
    broker.fail("UpdateSchedule", changed)
    found = await client.update_schedule("a", description="new")
    assert (found.description, found.revision) == ("new", 2)
    assert len(broker.calls["GetSchedule"]) == 2
    assert [call.revision for call in broker.calls["UpdateSchedule"]] == [1, 1]
    broker.fail("UpdateSchedule", *[changed] * 20)
    with pytest.raises(ChangedMeanwhile):
        await client.update_schedule("a", description="newer")
