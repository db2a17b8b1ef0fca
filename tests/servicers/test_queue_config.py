"""What ConfigureQueue stores, shows and refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import Refused, Served, refusal

DEFAULTS = {
    "event_log_entries": 0,
    "max_output_bytes": "0",
    "max_pending_jobs": "0",
    "max_live_bytes": "0",
    "max_ended_jobs": "0",
    "max_ended_bytes": "0",
    "default_priority": 0,
}
EVERYTHING: dict[str, Any] = {
    "event_log_entries": 100,
    "max_output_bytes": 1 << 30,
    "retry": job_pb2.RetryPolicy(
        max_attempts=7,
        initial_backoff=Duration(),
        max_backoff=Duration(seconds=90),
        multiplier=1.5,
        jitter=0,
    ),
    "max_pending_jobs": 1_000,
    "max_live_bytes": 1 << 40,
    "retain_succeeded": Duration(),
    "retain_ended": Duration(seconds=3_600),
    "max_ended_jobs": 5,
    "max_ended_bytes": 6,
    "retain_output": Duration(seconds=60),
    "retain_event_log": Duration(seconds=1, nanos=500_000_000),
    "priority_ageing": Duration(nanos=100_000_000),
    "default_priority": 255,
}
SPANS = ("retain_succeeded", "retain_ended", "retain_output", "retain_event_log")
RETRY = {field.name for field in job_pb2.RetryPolicy.DESCRIPTOR.fields}


def _request(mask: Sequence[str] = (), **config: Any) -> Any:
    return admin.ConfigureQueueRequest(
        queue="default",
        config=admin.QueueConfig(**config),
        update_mask=FieldMask(paths=mask) if mask else None,
    )


async def _configure(served: Served, *mask: str, **config: Any) -> Any:
    answer = await served.admin.ConfigureQueue(_request(mask, **config))
    shown = (await served.admin.GetQueue(admin.GetQueueRequest(queue="default"))).queue
    assert answer.queue.config == shown.config
    return shown.config


def _text(config: Any) -> dict[str, Any]:
    return dict(MessageToDict(config, preserving_proto_field_name=True))


@pytest.fixture(autouse=True)
async def queue(served: Served) -> None:
    """The queue is there."""
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op")))


async def test_a_queue_that_nobody_configured_shows_defaults(served: Served) -> None:
    assert _text(await _configure(served)) == DEFAULTS


async def test_each_setting_is_stored_and_shown_as_it_was_given(served: Served) -> None:
    config = await _configure(served, **EVERYTHING)
    assert config == admin.QueueConfig(**EVERYTHING)


@pytest.mark.parametrize("name", EVERYTHING)
async def test_a_setting_changes_alone(served: Served, name: str) -> None:
    config = await _configure(served, **{name: EVERYTHING[name]})
    expected = admin.QueueConfig(
        **{field: 0 for field in DEFAULTS if field != name}, **{name: EVERYTHING[name]}
    )
    assert config == expected


async def _reset_with(served: Served, *mask: str) -> None:
    await _configure(served, **EVERYTHING)
    assert _text(await _configure(served, *mask)) == DEFAULTS
    assert (served.broker.dump()["config"] or {}).keys() == {"rev"}


async def test_settings_that_the_mask_names_and_the_request_leaves_unset_go_away(
    served: Served,
) -> None:
    await _reset_with(served, *EVERYTHING)
    await _reset_with(served, "*")


@pytest.mark.parametrize("name", EVERYTHING)
async def test_the_mask_alone_says_which_settings_change(served: Served, name: str) -> None:
    everything = admin.QueueConfig(**EVERYTHING)
    await _configure(served, "*", **EVERYTHING)
    config = await _configure(served, name)
    everything.ClearField(name)  # type: ignore[arg-type]
    if name in DEFAULTS:
        setattr(everything, name, 0)
    assert config == everything
    others = dict.fromkeys(EVERYTHING.keys() & DEFAULTS.keys(), 1)
    config = await _configure(served, name, **{**others, name: EVERYTHING[name]})
    assert config == admin.QueueConfig(**EVERYTHING)


@pytest.mark.parametrize("part", sorted(RETRY))
async def test_parts_of_the_retry_settings_change_alone(served: Served, part: str) -> None:
    expected = job_pb2.RetryPolicy()
    expected.CopyFrom(EVERYTHING["retry"])
    await _configure(served, **EVERYTHING)
    config = await _configure(served, f"retry.{part}")
    expected.ClearField(part)  # type: ignore[arg-type]
    assert config.retry == expected
    only = job_pb2.RetryPolicy()
    FieldMask(paths=[part]).MergeMessage(EVERYTHING["retry"], only)
    # Without a mask, what is set changes, and nothing else of it.
    assert (await _configure(served, retry=only)).retry == EVERYTHING["retry"]
    assert await _configure(served) == admin.QueueConfig(**EVERYTHING)


async def test_retry_settings_are_replaced_as_a_whole_under_their_own_name(served: Served) -> None:
    await _configure(served, retry=job_pb2.RetryPolicy(max_attempts=9, multiplier=3))
    config = await _configure(served, "retry", retry=job_pb2.RetryPolicy(jitter=0.5))
    assert config.retry == job_pb2.RetryPolicy(jitter=0.5)


async def test_parts_that_would_contradict_what_stands_are_refused(served: Served) -> None:
    await _configure(served, retry=job_pb2.RetryPolicy(max_backoff=Duration(seconds=5)))
    said = await _refused(served, retry=job_pb2.RetryPolicy(initial_backoff=Duration(seconds=6)))
    assert said.fields == {"config.retry.max_backoff"}


@pytest.mark.parametrize(
    "path",
    [
        "depth",
        "config.retry",
        "retry.",
        "retry.attempts",
        "retain_ended.seconds",
        "Retry",
        "",
        "**",
    ],
)
async def test_a_mask_that_names_no_setting_is_refused_with_those_that_there_are(
    served: Served, path: str
) -> None:
    said = await _refused(served, ["max_ended_jobs", path], max_ended_jobs=5)
    assert said.fields == {"update_mask.paths[1]"}
    assert repr(path) in said.message
    assert all(name in said.message for name in (*EVERYTHING, "retry.max_attempts", "*"))


async def test_a_mask_is_bounded(served: Served) -> None:
    await _configure(served, *["max_ended_jobs"] * 32, max_ended_jobs=5)
    said = await _refused(served, ["max_ended_jobs"] * 33, max_ended_jobs=6)
    assert said.fields == {"update_mask"}


async def test_the_revision_grows_with_each_change_and_guards_it(served: Served) -> None:
    async def change(revision: int, most: int) -> int:
        request = _request(max_ended_jobs=most)
        request.revision = revision
        return int((await served.admin.ConfigureQueue(request)).queue.revision)

    assert await change(0, 0) == 1
    assert await change(1, 5) == 2
    assert await change(1, 5) == 2, "a repeated call is answered as the first time"
    assert await change(0, 5) == 2, "nothing changed"
    assert await change(2, 6) == 3
    for stale in (1, 2, 4):
        request = _request(max_ended_jobs=9)
        request.revision = stale
        said = await refusal(served.admin.ConfigureQueue(request))
        assert (said.code, said.reason) == (StatusCode.ABORTED, "CHANGED_MEANWHILE")
    paused = await served.admin.PauseQueue(admin.PauseQueueRequest(queue="default"))
    assert (paused.queue.revision, paused.queue.config.max_ended_jobs) == (3, 6)


async def test_of_changes_from_one_revision_one_is_made(served: Served) -> None:
    requests = [_request(max_ended_jobs=most) for most in range(1, 9)]
    for request in requests:
        request.revision = 1
    answers = await asyncio.gather(
        *(served.admin.ConfigureQueue(request) for request in requests), return_exceptions=True
    )
    (made,) = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert made.queue.revision == 2


async def test_parts_of_the_retry_settings_may_be_changed_at_once(served: Served) -> None:
    await asyncio.gather(
        *(
            served.admin.ConfigureQueue(_request([f"retry.{part}"], retry=EVERYTHING["retry"]))
            for part in RETRY
        )
    )
    assert (await _configure(served)).retry == EVERYTHING["retry"]


async def test_a_queue_can_be_configured_before_its_first_job(served: Served) -> None:
    request = _request(max_pending_jobs=1)
    request.queue, submit = "new", jobs.SubmitJobRequest(queue="new", spec={"operation": "op"})
    said = await refusal(served.admin.ConfigureQueue(request))
    assert (said.code, said.reason) == (StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")
    request.allow_missing, request.revision = True, 4
    said = await refusal(served.admin.ConfigureQueue(request))
    assert said.reason == "CHANGED_MEANWHILE"
    assert not served.broker.dump("new")
    request.revision = 1
    assert (await served.admin.ConfigureQueue(request)).queue.revision == 2
    listed = (await served.admin.ListQueues(admin.ListQueuesRequest())).queues
    assert [queue.queue for queue in listed] == ["default", "new"]
    await served.jobs.SubmitJob(submit)
    said = await refusal(served.jobs.SubmitJob(submit))
    assert said.reason == "QUEUE_FULL"


async def test_a_queue_is_deleted_unless_it_is_in_use(served: Served) -> None:
    request = admin.DeleteQueueRequest()
    assert (await refusal(served.admin.DeleteQueue(request))).fields == {"queue"}
    request.queue = "default"
    said = await refusal(served.admin.DeleteQueue(request))
    assert (said.code, said.reason) == (StatusCode.FAILED_PRECONDITION, "QUEUE_IN_USE")
    assert (said.metadata["live_jobs"], said.metadata["schedules"]) == ("1", "0")
    (listed,) = (await served.jobs.ListJobs(jobs.ListJobsRequest())).jobs
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=listed.job_id))
    for _ in range(2):
        await served.admin.DeleteQueue(request)
        assert not (await served.admin.ListQueues(admin.ListQueuesRequest())).queues


async def test_a_queue_can_be_paused_before_its_first_job(served: Served) -> None:
    said = await refusal(served.admin.PauseQueue(admin.PauseQueueRequest(queue="new")))
    assert said.reason == "QUEUE_NOT_FOUND"
    request = admin.PauseQueueRequest(queue="new", allow_missing=True)
    assert (await served.admin.PauseQueue(request)).queue.paused
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(queue="new", spec={"operation": "op"}))
    await served.workers.RegisterWorker(
        workers.RegisterWorkerRequest(
            worker=workers.WorkerSpec(worker_id="w1", queues=["new"], operations=["op"])
        )
    )
    claim = workers.ClaimJobRequest(worker_id="w1")
    assert not (await served.workers.ClaimJob(claim)).assignments
    await served.admin.ResumeQueue(admin.ResumeQueueRequest(queue="new"))
    assert len((await served.workers.ClaimJob(claim)).assignments) == 1


async def _refused(served: Served, mask: Sequence[str] = (), **config: Any) -> Refused:
    before = served.broker.dump()
    said = await refusal(served.admin.ConfigureQueue(_request(mask, **config)))
    assert served.broker.dump() == before
    return said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_log_entries", 1_000_001),
        ("default_priority", 256),
        *((name, (1 << 50) + 1) for name in DEFAULTS if "max" in name),
        *((name, -1) for name in DEFAULTS),
        *((name, Duration(seconds=3_654 * 86_400)) for name in SPANS),
        *((name, Duration(seconds=-1)) for name in SPANS),
        *((name, Duration(nanos=-1)) for name in SPANS),
        ("priority_ageing", Duration(seconds=-1)),
        ("priority_ageing", Duration()),
        ("priority_ageing", Duration(nanos=99_000_000)),
        ("priority_ageing", Duration(seconds=31 * 86_400)),
    ],
)
async def test_what_is_out_of_range_is_named(served: Served, name: str, value: Any) -> None:
    said = await _refused(served, **{name: value})
    assert said.fields == {f"config.{name}"}


async def test_all_that_is_wrong_is_named_at_once(served: Served) -> None:
    retry = job_pb2.RetryPolicy(
        max_attempts=1_001,
        initial_backoff=Duration(seconds=10),
        max_backoff=Duration(seconds=1),
        multiplier=0.5,
        jitter=2,
    )
    said = await _refused(served, retry=retry, event_log_entries=1 << 30, max_ended_jobs=5)
    fields = {f"config.retry.{name}" for name in ("max_attempts", "max_backoff", "multiplier")}
    assert said.fields == fields | {"config.retry.jitter", "config.event_log_entries"}
