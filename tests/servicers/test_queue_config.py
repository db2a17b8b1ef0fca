"""What ConfigureQueue stores, shows and refuses."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

from tests.support.contract import admin, job_pb2, jobs
from tests.support.grpc_servers import Refused, Served, refusal

DEFAULTS = {
    "event_log_entries": 0,
    "max_output_bytes": "0",
    "max_pending_jobs": "0",
    "max_live_bytes": "0",
    "max_ended_jobs": "0",
    "max_ended_bytes": "0",
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
}
NEGATIVE = Duration(seconds=-1)


def _request(**config: Any) -> Any:
    return admin.ConfigureQueueRequest(queue="default", config=admin.QueueConfig(**config))


async def _configure(served: Served, **config: Any) -> Any:
    answer = await served.admin.ConfigureQueue(_request(**config))
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


async def test_each_setting_can_be_taken_away(served: Served) -> None:
    await _configure(served, **EVERYTHING)
    away: dict[str, Any] = dict.fromkeys(DEFAULTS, 0)
    away |= dict.fromkeys(EVERYTHING.keys() - DEFAULTS.keys(), NEGATIVE)
    away["retry"] = job_pb2.RetryPolicy()
    assert _text(await _configure(served, **away)) == DEFAULTS
    assert "config" not in served.broker.dump()


async def test_retry_defaults_are_replaced_as_a_whole(served: Served) -> None:
    await _configure(served, retry=job_pb2.RetryPolicy(max_attempts=9, multiplier=3))
    config = await _configure(served, retry=job_pb2.RetryPolicy(jitter=0.5))
    assert config.retry == job_pb2.RetryPolicy(jitter=0.5)


async def _refused(served: Served, **config: Any) -> Refused:
    before = served.broker.dump()
    said = await refusal(served.admin.ConfigureQueue(_request(**config)))
    assert served.broker.dump() == before
    return said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_log_entries", 1_000_001),
        *((name, (1 << 50) + 1) for name in DEFAULTS if name != "event_log_entries"),
        *(
            (name, Duration(seconds=3_654 * 86_400))
            for name in (
                "retain_succeeded",
                "retain_ended",
                "retain_output",
                "retain_event_log",
            )
        ),
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
