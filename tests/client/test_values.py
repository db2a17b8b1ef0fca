"""Payloads, ids, errors of conversion, backoff: what needs no server."""

from __future__ import annotations

import json
import math
import pickle
from datetime import datetime
from typing import Any, get_type_hints

import pytest
from google.protobuf import struct_pb2, timestamp_pb2

from jobwire import (
    Context,
    Fatal,
    Json,
    NewJob,
    Report,
    UnknownPayload,
    from_payload,
    to_payload,
)
from jobwire._repeat import Backoff
from jobwire._requests import (
    MAX_CHUNK_BYTES,
    MAX_CHUNK_JOBS,
    SubmitOptions,
    submit_batches,
    submit_request,
)
from jobwire.ids import UlidFactory, new_job_id
from jobwire.schedules import new_spec
from jobwire.v1.job_pb2 import Payload
from jobwire.v1.worker_service_pb2 import Completion
from jobwire.worker.outcomes import failure, success


def test_a_submission_takes_the_fields_of_a_new_job() -> None:
    fields = get_type_hints(NewJob)
    del fields["operation"], fields["payload"]
    assert get_type_hints(SubmitOptions) == fields


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, None, True]}, [], "text ä", 7, 2.5, False, b"\x00\xff", None],
)
def test_values_survive_the_way_there_and_back(value: Any) -> None:
    assert from_payload(to_payload(value)) == value


def test_json_is_compact_and_keeps_letters_as_they_are() -> None:
    assert to_payload({"ä": [1, 2]}).json == '{"ä":[1,2]}'


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "nan is no JSON number"),
        ({"a": [1, math.inf]}, r"inf is no JSON number at \['a'\]\[1\]"),
        ({"b": 2**1024}, r"an integer at \['b'\] is too large"),
        ([10**5000], r"an integer at \[0\] is too large"),
        ({"x": "a\ud800"}, r"a text at \['x'\] holds half of a surrogate pair"),
        ({"\udc00": 1}, "the key .* holds half of a surrogate pair"),
    ],
)
def test_what_json_can_not_carry_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_payload(value)


def test_an_integer_that_a_double_can_hold_is_kept_to_the_digit() -> None:
    most = 2**1024 - 2**970 - 1
    assert to_payload([most, -most]).json == f"[{most},{-most}]"


def test_objects_without_a_json_form_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="a set can't be a payload"):
        to_payload({1, 2})


def test_messages_are_packed_and_unpacked() -> None:
    payload = to_payload(timestamp_pb2.Timestamp(seconds=5))
    assert from_payload(payload).TypeName() == "google.protobuf.Timestamp"
    assert from_payload(payload, timestamp_pb2.Timestamp).seconds == 5
    with pytest.raises(TypeError, match=r"holds google\.protobuf\.Timestamp"):
        from_payload(payload, struct_pb2.Value)


def test_structs_travel_as_structs_and_arrive_as_dicts() -> None:
    struct = struct_pb2.Struct()
    struct.update({"a": 1})
    payload = to_payload(struct)
    assert payload.WhichOneof("kind") == "struct"
    assert from_payload(payload) == {"a": 1.0}


def test_a_payload_is_used_as_it_is() -> None:
    payload = Payload(json="{not json")
    assert to_payload(payload) is payload


def test_ids_sort_as_they_were_made_even_when_the_clock_is_set_back() -> None:
    times = iter([1000, 1000, 400, 1001])
    factory = UlidFactory(clock_ms=lambda: next(times), random_bits=lambda bits: 2**bits - 2)
    made = [factory.make() for _ in range(3)]
    assert made == sorted(made)
    assert len(set(made)) == 3


def test_ids_have_the_form_of_the_contract() -> None:
    assert (
        UlidFactory(lambda: 0x0189_ABCD_EF01, lambda bits: 0).make() == "01h6nwvvr10000000000000000"
    )
    queue, _, ulid = new_job_id("a-b").rpartition("-")
    assert queue == "a-b"
    assert len(ulid) == 26
    assert set(ulid) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        submit_request(NewJob(operation="a", run_at=datetime(2030, 1, 1)))


def test_a_run_at_and_a_delay_together_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        submit_request(
            NewJob(operation="a", run_at=datetime.fromisoformat("2030-01-01T00:00:00Z"), delay=1)
        )


def test_chunks_are_cut_by_bytes_too() -> None:
    big = NewJob(operation="a", payload=bytes(MAX_CHUNK_BYTES // 2 - 1000))
    batches = submit_batches([big] * 5, None)
    assert [len(batch.requests) for batch in batches] == [2, 2, 1]


def test_chunks_are_cut_by_number_and_keep_the_order() -> None:
    jobs = [NewJob(operation="a", payload=at) for at in range(2 * MAX_CHUNK_JOBS + 1)]
    batches = submit_batches(jobs, None)
    assert [len(batch.requests) for batch in batches] == [MAX_CHUNK_JOBS, MAX_CHUNK_JOBS, 1]
    told = [request.spec.payload.json for batch in batches for request in batch.requests]
    assert told == [str(at) for at in range(len(jobs))]


def test_backoff_grows_to_its_cap_and_starts_anew() -> None:
    backoff = Backoff(initial_s=0.1, max_s=1.0, draw=lambda: 1.0)
    assert [round(backoff.next_s(), 3) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next_s() == pytest.approx(0.1)


def test_backoff_waits_at_least_as_long_as_the_server_asks() -> None:
    assert Backoff(draw=lambda: 0.0).next_s(retry_after_s=3) == pytest.approx(3)
    assert Backoff(draw=lambda: 1.0).next_s(retry_after_s=3) == pytest.approx(3.6)


def test_backoff_of_ten_thousand_failures_does_not_overflow() -> None:
    backoff = Backoff(max_s=5.0, draw=lambda: 1.0)
    assert max(backoff.next_s() for _ in range(10_000)) == pytest.approx(5.0)


TEXTS = ['{"a": 1}', '  [1, 2.50, "ü\\u00fc"]\n', '"text"', "7", "null"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("raw", [str, str.encode, lambda text: bytearray(text.encode())])
def test_json_text_goes_as_it_is(text: str, raw: Any) -> None:
    assert to_payload(Json(raw(text))) == Payload(json=text)
    request = submit_request(NewJob(operation="a", payload=Json(raw(text))))
    assert request.spec.payload.json == text
    assert new_spec("a", Json(raw(text)), {"every": 60}).job.payload.json == text
    completion = success(Json(raw(text)))
    assert isinstance(completion, Completion)
    assert completion.success.result.json == text
    report = Report(None, "", Json(raw(text)))
    assert report.to_proto().details.json == text
    failed = failure(Fatal("no", details=Json(raw(text))))
    assert failed.details.json == text
    context = Context.for_test(Json(raw(text)))
    context.save_checkpoint(Json(raw(text)))
    assert context.raw_payload.json == text


def test_a_text_by_itself_is_a_json_string() -> None:
    assert to_payload('{"a": 1}').json == json.dumps('{"a": 1}')
    assert from_payload(to_payload('{"a": 1}')) == '{"a": 1}'


@pytest.mark.parametrize("value", [{"a": Json("1")}, [Json("1")], {"a": [{"b": Json("1")}]}])
def test_json_text_inside_another_value_is_refused_with_the_remedy(value: Any) -> None:
    with pytest.raises(TypeError, match=r"json\.loads"):
        to_payload(value)


def test_what_is_no_json_text_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="not a dict: give that itself"):
        Json({"a": 1})  # type: ignore[arg-type]
    for text in (b"\xff", "\ud800"):
        with pytest.raises(ValueError, match="not UTF-8"):
            Json(text)
    assert Json("1") == Json(b"1") != Json("2")
    assert len(repr(Json("x" * 1_000))) < 100
    assert pickle.loads(pickle.dumps(Json("1"))) == Json("1")
    assert str(pickle.loads(pickle.dumps(UnknownPayload()))) == str(UnknownPayload())


@pytest.mark.parametrize("value", [{"a": 1}, Json("1"), b"x", None, Payload(data=b"x")])
def test_metadata_goes_with_any_value_and_changes_none(value: Any) -> None:
    payload = to_payload(value, metadata={"codec": b"zstd"})
    assert dict(payload.metadata) == {"codec": b"zstd"}
    assert from_payload(payload) == from_payload(to_payload(value))
    assert not to_payload(value).metadata
    assert submit_request(NewJob(operation="a", payload=payload)).spec.payload == payload
    assert Context.for_test(payload).payload_metadata == {"codec": b"zstd"}
