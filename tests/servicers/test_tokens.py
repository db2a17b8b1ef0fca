"""Page tokens and cursors over a real channel: bound to their call, and good on every server."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from tests.support.contract import admin, job_pb2, jobs, schedules, workers
from tests.support.grpc_servers import Served, refusal, served_broker

HOSTILE = [
    "[" * 50_000,
    "99999999999999999999.9",
    "9" * 260,
    "9" * 5_000,
    "1-" + "9" * 200 + "-0",
    "0-0-0",
    "W10",
    "\0",
    "ä" * 300,
]


def _calls(served: Served, token: str, job_id: str) -> dict[str, Any]:
    watched = jobs.WatchJobsRequest(filter=jobs.JobFilter(queue="default"), cursor=token)
    watch = jobs.WatchJobRequest(job_id=job_id, cursor=token)
    return {
        "jobs": served.jobs.ListJobs(jobs.ListJobsRequest(page_size=1, page_token=token)),
        "queues": served.admin.ListQueues(admin.ListQueuesRequest(page_size=1, page_token=token)),
        "workers": served.admin.ListWorkers(
            admin.ListWorkersRequest(page_size=1, page_token=token)
        ),
        "schedules": served.schedules.ListSchedules(
            schedules.ListSchedulesRequest(page_size=1, page_token=token)
        ),
        "watch": served.jobs.WatchJob(watch),
        "watch of a queue": served.jobs.WatchJobs(watched),
    }


async def _filled(served: Served) -> list[str]:
    ids = []
    for queue in ("default", "default", "other", "third"):
        request = jobs.SubmitJobRequest(queue=queue, spec=job_pb2.JobSpec(operation="op"))
        ids.append((await served.jobs.SubmitJob(request)).job_id)
    for name in ("w1", "w2", "w3"):
        spec = workers.WorkerSpec(worker_id=name, operations=["op"])
        await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    for name in ("a", "b", "c"):
        spec = schedules.ScheduleSpec(
            cron=schedules.CronCadence(expression="@daily"), job=job_pb2.JobSpec(operation="op")
        )
        request = schedules.CreateScheduleRequest(schedule_id=name, spec=spec)
        await served.schedules.CreateSchedule(request)
    config = admin.QueueConfig(event_log_entries=1000)
    await served.admin.ConfigureQueue(admin.ConfigureQueueRequest(queue="default", config=config))
    return ids


async def _tokens(served: Served, job_id: str) -> dict[str, str]:
    """Returns a token of each method."""
    found = {}
    for name, call in _calls(served, "", job_id).items():
        if "watch" not in name:
            found[name] = (await call).next_page_token
    async for answer in served.jobs.WatchJob(jobs.WatchJobRequest(job_id=job_id)):
        found["watch"] = answer.cursor
        break
    async for answer in served.jobs.WatchJobs(
        jobs.WatchJobsRequest(filter=jobs.JobFilter(queue="default"))
    ):
        if answer.cursor:
            found["watch of a queue"] = answer.cursor
            break
    return found


async def test_a_token_is_good_for_its_method_alone_on_every_server(
    served: Served, valkey_url: str
) -> None:
    job_id = (await _filled(served))[0]
    tokens = await _tokens(served, job_id)
    assert all(tokens.values())
    assert len(tokens) == 6
    async with served_broker(valkey_url) as other:
        for owner, token in tokens.items():
            for name, call in _calls(other, token, job_id).items():
                if name != owner:
                    said = await refusal(call)
                    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
                    assert said.reason == "BAD_PAGE_TOKEN", (owner, name)
                elif "watch" not in name:
                    await call
                else:
                    call.cancel()
        again = other.jobs.WatchJob(jobs.WatchJobRequest(job_id=job_id, cursor=tokens["watch"]))
        await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=job_id))
        states = [answer.job.state async for answer in again]
        assert states == [job_pb2.JOB_STATE_CANCELLED], "what was told is not told again"


@pytest.mark.parametrize("token", HOSTILE, ids=range(len(HOSTILE)))
async def test_what_is_no_token_is_refused_by_field(served: Served, token: str) -> None:
    job_id = (await _filled(served))[0]
    for name, call in _calls(served, token, job_id).items():
        said = await refusal(call)
        assert said.reason == "BAD_PAGE_TOKEN", name
        assert said.fields == {"cursor" if "watch" in name else "page_token"}


async def test_a_cursor_holds_for_its_job_or_its_filter(served: Served) -> None:
    ids = await _filled(served)
    tokens = await _tokens(served, ids[0])
    other = jobs.WatchJobRequest(job_id=ids[1], cursor=tokens["watch"])
    assert (await refusal(served.jobs.WatchJob(other))).reason == "BAD_PAGE_TOKEN"
    filters: list[dict[str, Any]] = [
        {"queue": "other"},
        {"operation": "op"},
        {"labels": {"a": "b"}},
        {"states": [job_pb2.JOB_STATE_PENDING]},
        {"job_ids": [ids[0]]},
    ]
    for fields in filters:
        request = jobs.WatchJobsRequest(
            filter=jobs.JobFilter(**{"queue": "default", **fields}),
            cursor=tokens["watch of a queue"],
        )
        assert (await refusal(served.jobs.WatchJobs(request))).reason == "BAD_PAGE_TOKEN"
