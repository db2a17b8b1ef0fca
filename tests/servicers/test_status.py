"""The table from errors to statuses, and what travels with them."""

from __future__ import annotations

import inspect

import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import StatusCode
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError

from jobwire.v1 import errors_pb2
from jobwire_server.domain import errors
from jobwire_server.domain.errors import JobwireError, Violation
from jobwire_server.servicers.status import (
    DEFECT,
    TABLE,
    as_domain_error,
    code_of,
    details_of,
    refusal_of,
)

from tests.support.stores import StoreProcess

SAMPLES: list[tuple[JobwireError, StatusCode]] = [
    (errors.InvalidRequest([Violation("a", "b")]), StatusCode.INVALID_ARGUMENT),
    (errors.TooLarge([Violation("a", "b")]), StatusCode.INVALID_ARGUMENT),
    (errors.BadPageToken([Violation("a", "b")]), StatusCode.INVALID_ARGUMENT),
    (errors.JobNotFound("q-1"), StatusCode.NOT_FOUND),
    (errors.QueueNotFound("q"), StatusCode.NOT_FOUND),
    (errors.WorkerNotFound("w"), StatusCode.NOT_FOUND),
    (errors.LeaseLost("q-1", 3), StatusCode.FAILED_PRECONDITION),
    (errors.WrongState("no"), StatusCode.FAILED_PRECONDITION),
    (errors.Superseded("another stream"), StatusCode.ABORTED),
    (errors.CursorCompacted("gone"), StatusCode.OUT_OF_RANGE),
    (errors.WatchLagged("slow"), StatusCode.OUT_OF_RANGE),
    (errors.OutputFull("full"), StatusCode.RESOURCE_EXHAUSTED),
    (errors.OutputGap("q-1", 3), StatusCode.FAILED_PRECONDITION),
    (errors.AlreadyExists("no"), StatusCode.ALREADY_EXISTS),
    (errors.UniqueKeyTaken("k", "default-1", "RUNNING"), StatusCode.ALREADY_EXISTS),
    (errors.ScheduleNotFound("default", "nightly"), StatusCode.NOT_FOUND),
    (errors.ChangedMeanwhile("no"), StatusCode.ABORTED),
    (errors.StoreUnavailable("down"), StatusCode.UNAVAILABLE),
    (errors.StoreUnfit("evicts"), StatusCode.UNAVAILABLE),
    (errors.StoreFull(), StatusCode.RESOURCE_EXHAUSTED),
    (errors.QueueFull("full"), StatusCode.RESOURCE_EXHAUSTED),
    (errors.TooManyQueues("too many"), StatusCode.RESOURCE_EXHAUSTED),
    (errors.TooManyFollows("many"), StatusCode.RESOURCE_EXHAUSTED),
    (errors.QueueInUse("in use"), StatusCode.FAILED_PRECONDITION),
    (
        errors.Unsupported([errors.Violation("spec.group_key", "unset")], "groups"),
        StatusCode.FAILED_PRECONDITION,
    ),
    (errors.ServerBusy("busy"), StatusCode.RESOURCE_EXHAUSTED),
    (errors.ServerDraining(), StatusCode.UNAVAILABLE),
]


@pytest.mark.parametrize(("error", "code"), SAMPLES, ids=lambda value: type(value).__name__)
def test_each_error_has_its_code(error: JobwireError, code: StatusCode) -> None:
    assert code_of(error) is code
    assert refusal_of(error).number == code.value[0]


def test_every_error_of_the_domain_is_covered_and_every_reason_is_in_the_contract() -> None:
    classes = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, JobwireError)
    }
    apart = {errors.JobwireError, errors.NotFound, errors.ConfigurationError}
    assert {type(error) for error, _ in SAMPLES} == classes - apart
    assert set(TABLE) <= classes
    names = {name.removeprefix("ERROR_REASON_") for name, _ in errors_pb2.ErrorReason.items()}
    assert {cls.reason for cls in classes} == names - {"UNSPECIFIED"}


def _details(error: BaseException) -> tuple[status_pb2.Status, dict[str, object]]:
    _, raw = details_of(error, "req-1")
    status = status_pb2.Status.FromString(raw)
    found: dict[str, object] = {}
    for packed in status.details:
        name = packed.TypeName().removeprefix("google.rpc.")
        message = getattr(error_details_pb2, name)()
        assert packed.Unpack(message)
        found[name] = message
    return status, found


def test_an_error_info_names_reason_domain_facts_and_request() -> None:
    status, found = _details(errors.LeaseLost("q-1", 7))
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("LEASE_LOST", "jobwire")
    assert dict(info.metadata) == {
        "job_id": "q-1",
        "fencing_token": "7",
        "request_id": "req-1",
    }
    assert status.code == StatusCode.FAILED_PRECONDITION.value[0]
    assert set(found) == {"ErrorInfo"}


def test_violations_come_field_by_field() -> None:
    _, found = _details(errors.InvalidRequest([Violation("spec.a", "one"), Violation("b", "two")]))
    bad = found["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("spec.a", "one"),
        ("b", "two"),
    ]


def test_what_was_not_found_is_named_as_a_resource() -> None:
    _, found = _details(errors.JobNotFound("q-1"))
    resource = found["ResourceInfo"]
    assert isinstance(resource, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("jobwire.v1.Job", "q-1")


@pytest.mark.parametrize("error", [error for error, _ in SAMPLES], ids=lambda e: type(e).__name__)
def test_a_retry_delay_goes_with_what_passes_and_with_nothing_else(error: JobwireError) -> None:
    _, found = _details(error)
    retry = found.get("RetryInfo")
    assert (retry is not None) == (error.retry_after_ms is not None)
    if isinstance(retry, error_details_pb2.RetryInfo):
        assert retry.retry_delay.ToMilliseconds() == error.retry_after_ms


@pytest.mark.parametrize(
    "error", [ValueError("secret"), ResponseError("ERR secret"), JobwireError("secret")]
)
def test_a_defect_is_internal_and_shows_nothing_of_the_inside(error: Exception) -> None:
    refusal = refusal_of(error)
    assert (refusal.code, refusal.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert refusal.message == DEFECT
    assert b"secret" not in details_of(error, "req-1")[1]


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("Connection refused"),
        RedisClusterException("no slot"),
        ResponseError("LOADING reading the dataset"),
        ResponseError("MISCONF disk is full"),
    ],
)
def test_a_store_that_is_away_is_unavailable_with_a_delay(error: Exception) -> None:
    known = as_domain_error(error)
    assert isinstance(known, errors.StoreUnavailable)
    assert known.retry_after_ms


@pytest.mark.both_engines
async def test_what_a_full_store_says_becomes_store_full(own_store: StoreProcess) -> None:
    async with Redis.from_url(own_store.url) as client:
        await client.config_set("maxmemory", 1)
        with pytest.raises(ResponseError) as plain:
            await client.set("k", "v")
        with pytest.raises(ResponseError) as scripted:
            await client.eval("return redis.call('SET', KEYS[1], 'v')", 1, "k")
    assert isinstance(as_domain_error(plain.value), errors.StoreFull)
    assert isinstance(as_domain_error(scripted.value), errors.StoreFull)
