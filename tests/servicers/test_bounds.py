"""Whatever can be repeated has a bound, which is checked before anybody goes through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from time import thread_time
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from jobwire_server.domain.options import Limits
from jobwire_server.servicers import reading
from jobwire_server.servicers.json_text import check_json
from jobwire_server.servicers.reading import MAX_STRUCTS_BYTES, Unreadable, marking

from tests.support.contract import admin, job_pb2, jobs, schedules, workers
from tests.support.grpc_servers import Served, refused, served_broker
from tests.support.stalls import no_stall_above

STALL_S = 0.1
COUNT = 20_000
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
Path = tuple[FieldDescriptor, ...]
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@pytest.fixture
async def large(valkey_url: str) -> AsyncIterator[Served]:
    """A server that takes messages of the default size."""
    async with served_broker(valkey_url, Limits()) as running:
        yield running


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _part(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _repeated(message: Descriptor, before: Path = ()) -> Iterator[Path]:
    """Yields the way to each list and map of a message."""
    for field in message.fields:
        kind = field.message_type
        path = (*before, field)
        if field.is_repeated:
            yield path
        if kind is None or not kind.full_name.startswith("jobwire.") or kind in _kinds(before):
            continue
        if not kind.GetOptions().map_entry:
            yield from _repeated(kind, path)


def _kinds(path: Path) -> list[Descriptor | None]:
    return [field.message_type for field in path]


def _with(path: Path, count: int, *, alike: bool = False) -> bytes:
    """Returns a message in which the last field of a path is there so many times.

    Args:
        path: The way to the field.
        count: How many times.
        alike: A map has the same key every time.
    """
    *outer, last = path
    kind = last.message_type
    if kind is not None and kind.GetOptions().map_entry and not alike:
        content = b"".join(_part(last.number, _part(1, b"%d" % at)) for at in range(count))
    elif kind is None and last.type not in (
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
    ):
        content = _part(last.number, b"\1" * count)
    else:
        content = _part(last.number, b"") * count
    for field in reversed(outer):
        content = _part(field.number, content)
    return content


def _methods() -> Iterator[Any]:
    for module in (jobs, workers, admin, schedules):
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


UNARY = [
    (method, path)
    for method in _methods()
    if not method.client_streaming
    for path in _repeated(method.input_type)
    # What is wrong with an item of a batch is in the item's answer.
    if method.name != "SubmitJobs" or len(path) == 1
]


async def _answer(served: Served, method: Any, data: bytes) -> grpc.aio.AioRpcError | None:
    name = f"/{method.containing_service.full_name}/{method.name}"
    options = (("grpc.max_send_message_length", -1),)
    async with grpc.aio.insecure_channel(served.address, options) as channel:
        try:
            if method.server_streaming:
                async for _ in channel.unary_stream(name)(data):
                    pass
            else:
                await channel.unary_unary(name)(data)
        except grpc.aio.AioRpcError as error:
            return error
    return None


def _field_of(path: Path) -> str:
    return ".".join(field.name for field in path)


async def test_a_list_beyond_its_bound_is_refused_by_field(large: Served) -> None:
    assert len(UNARY) >= 20
    for method, path in UNARY:
        data, name = _with(path, COUNT), f"{method.name}: {_field_of(path)}"
        async with no_stall_above(STALL_S):
            error = await _answer(large, method, data)
        assert error is not None, name
        said = refused(error)
        assert said.code is grpc.StatusCode.INVALID_ARGUMENT, name
        named = _field_of(path) in said.fields
        assert named or said.metadata.get("more_violations"), f"{name}: {said.message}"


def test_a_large_message_with_too_many_parts_is_not_even_read() -> None:
    count = reading.LOOK_FROM_BYTES // 2
    unknown = _part(9_999, b"") * count
    torn = [b"\xff" * 600_000, b"\x0b" * 600_000]
    for message in {method.input_type for method in _methods()}:
        read = marking(GetMessageClass(message).FromString)
        for path in _repeated(message):
            found = read(_with(path, 2 * count, alike=True))
            assert type(found) is Unreadable, f"{message.name}: {_field_of(path)}"
            (violation,) = found.error.violations
            assert violation.field == _field_of(path)
        for data in (unknown, *torn):
            assert type(read(data)) is Unreadable


def test_a_large_message_within_the_bounds_is_read() -> None:
    spec = job_pb2.JobSpec(
        operation="op",
        payload=job_pb2.Payload(json='"' + "x" * 3_000 + '"'),
        labels={f"k{at}": "v" * 40 for at in range(16)},
    )
    batch = jobs.SubmitJobsRequest(requests=[jobs.SubmitJobRequest(spec=spec)] * 1_000)
    assert marking(jobs.SubmitJobsRequest.FromString)(batch.SerializeToString()) == batch
    lease = workers.LeaseRef(job_id="q" * 60 + "-" + "0" * 26, fencing_token=1 << 40)
    beat = workers.HeartbeatRequest(worker_id="w", leases=[lease] * 10_000)
    assert marking(workers.HeartbeatRequest.FromString)(beat.SerializeToString()) == beat
    big = jobs.SubmitJobRequest(spec=job_pb2.JobSpec(payload=job_pb2.Payload(data=b"\n" * 2**21)))
    assert marking(jobs.SubmitJobRequest.FromString)(big.SerializeToString()) == big


def test_the_structures_of_a_message_are_bounded_together() -> None:
    read = marking(jobs.SubmitJobsRequest.FromString)
    payload = job_pb2.Payload()
    payload.struct.update({"list": [False] * 50_000})
    one = jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op", payload=payload))
    each = payload.ByteSize()
    most = MAX_STRUCTS_BYTES // each
    fit = jobs.SubmitJobsRequest(requests=[one] * most)
    assert type(read(fit.SerializeToString())) is not Unreadable
    # Sixteen megabytes of them take half a second.
    unfit = read(jobs.SubmitJobsRequest(requests=[one] * (most + 1)).SerializeToString())
    assert isinstance(unfit, Unreadable)
    (violation,) = unfit.error.violations
    assert violation.field == "requests.spec.payload.struct"
    assert "together" in violation.description


async def test_a_batch_with_much_to_read_does_not_hold_the_loop(large: Served) -> None:
    struct = job_pb2.Payload()
    struct.struct.update({"list": [0] * 2_000})
    spec = job_pb2.JobSpec(operation="op", payload=struct)
    request = jobs.SubmitJobsRequest(requests=[jobs.SubmitJobRequest(spec=spec)] * 60)
    async with no_stall_above(STALL_S):
        answer = await large.jobs.SubmitJobs(request)
    assert all(result.HasField("accepted") for result in answer.results)


async def test_a_compressed_message_counts_as_it_is_unpacked(served: Served) -> None:
    request = jobs.SubmitJobRequest(
        spec=job_pb2.JobSpec(operation="op", payload=job_pb2.Payload(data=bytes(10 << 20)))
    )
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await served.jobs.SubmitJob(request, compression=grpc.Compression.Gzip)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _filled(item: str, size: int = 1 << 20) -> str:
    return "[" + ",".join([item] * (size // (len(item) + 1))) + "]"


@pytest.mark.parametrize(
    "text",
    [
        _filled("1e300"),
        _filled('"",1e300'),
        _filled("{}"),
        _filled("[" * 150 + "]" * 150),
        _filled('{"":' * 150 + "1" + "}" * 150),
        _filled('"[["'),
        _filled('"\\u00e9"'),
        _filled("1e300")[:-1] + ",1e400]",
        _filled("1" * 250),
        _filled("9" * 309),
        _filled("true,null,-1e300"),
    ],
    ids=[
        *("exponents", "strings between", "objects", "levels", "levels with keys", "brackets"),
        *("escapes", "beyond", "digits", "long ones", "words"),
    ],
)
def test_the_largest_json_text_is_checked_soon(text: str) -> None:
    def once() -> float:
        began = thread_time()
        with suppress(ValueError):
            check_json(text)
        return thread_time() - began

    # It is below 20 ms by itself, and three times as much beside others that fill the caches.
    assert min(once() for _ in range(5)) < 0.06


def _texts(message: Descriptor, before: Path = ()) -> Iterator[Path]:
    """Yields the way to each text of a message."""
    for field in message.fields:
        kind = field.message_type
        path = (*before, field)
        if field.type == FieldDescriptor.TYPE_STRING:
            yield path
        if (
            kind is not None
            and kind.full_name.startswith("jobwire.")
            and kind not in _kinds(before)
        ):
            yield from _texts(kind, path)


async def test_a_long_text_costs_no_time_and_comes_back_to_nobody(large: Served) -> None:
    for method in _methods():
        if method.client_streaming or method.name == "SubmitJobs":
            continue
        for path in _texts(method.input_type):
            content = _part(path[-1].number, b"x" * 400_000)
            for field in reversed(path[:-1]):
                content = _part(field.number, content)
            name = f"{method.name}: {_field_of(path)}"
            async with no_stall_above(STALL_S):
                error = await _answer(large, method, content)
            assert error is not None, f"{name}: it was taken"
            assert error.code() in REFUSALS, name
            assert len(refused(error).message) < 4_096, name
