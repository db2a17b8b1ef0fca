"""What happens around every call, on a real server with a tiny service."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from structlog.testing import capture_logs

from jobwire_server.servicers import interceptor as module

from tests.support.echo import SERVICE, serving
from tests.support.waiting import eventually


def _info(error: grpc.aio.AioRpcError) -> Any:
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


async def _drain(call: Any) -> list[str]:
    return [message.value async for message in call]


async def test_answers_pass_through_and_are_counted() -> None:
    async with serving() as server:
        assert (await server.unary("a")).value == "a"
        assert await _drain(server.stream("b")) == ["first", "b"]
        assert await _drain(server.both(["c", "d"])) == ["c", "d"]
        methods = [server.method(name) for name in ("Unary", "Stream", "Both")]
        await eventually(lambda: not any(m.in_flight for m in methods), "the calls have ended")
        assert [method.codes for method in methods] == [{"OK": 1}] * 3
        assert sum(server.method("Unary").buckets) == 1


@pytest.mark.parametrize("kind", ["unary", "stream", "both"])
async def test_a_domain_error_becomes_its_status_with_details_in_every_kind(kind: str) -> None:
    async with serving() as server:
        call = server.both(["missing"]) if kind == "both" else getattr(server, kind)("missing")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await (call if kind == "unary" else _drain(call))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert _info(failed.value).reason == "JOB_NOT_FOUND"
        name = kind.title()
        await eventually(lambda: server.method(name).in_flight == 0, "the call has ended")
        assert server.method(name).codes == {"NOT_FOUND": 1}


async def test_a_defect_is_internal_and_its_traceback_is_logged_under_the_request_id() -> None:
    async with serving() as server:
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.unary("defect", metadata=(("x-request-id", "abc-1"),))
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(failed.value.details())
        assert _info(failed.value).metadata["request_id"] == "abc-1"
        (line,) = logs
        assert isinstance(line["exc_info"], ZeroDivisionError)
        assert line["method"] == f"/{SERVICE}/Unary"


async def test_a_sane_request_id_is_taken_over_and_any_other_replaced() -> None:
    async with serving() as server:
        assert (await server.unary("id", metadata=(("x-request-id", "a.b-1"),))).value == "a.b-1"
        for bad in ("has blank", "x" * 200, 'quote"'):
            got = (await server.unary("id", metadata=(("x-request-id", bad),))).value
            assert got
            assert got != bad
        one, two = (await server.unary("id")).value, (await server.unary("id")).value
        assert one != two


async def test_an_abort_by_hand_keeps_its_status() -> None:
    async with serving() as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.unary("abort")
        assert (failed.value.code(), failed.value.details()) == (
            grpc.StatusCode.DATA_LOSS,
            "by hand",
        )
        await eventually(lambda: server.method("Unary").in_flight == 0, "the call has ended")
        assert server.method("Unary").codes == {"DATA_LOSS": 1}


async def test_a_method_that_nobody_has_written_is_unimplemented() -> None:
    async with serving() as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.unary("unwritten")
        assert (failed.value.code(), failed.value.details()) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "not yet",
        )


async def test_an_unknown_method_is_unimplemented_and_not_remembered() -> None:
    async with serving() as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.channel.unary_unary("/no.Such/Method", bytes, bytes)(b"")
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        # What is remembered shows nowhere else, and a stranger could make it grow without end.
        assert server.interceptor._wrapped == {}


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_cancelled_call_ends_in_the_server_too(kind: str) -> None:
    async with serving() as server:
        call = getattr(server, kind)("forever")
        name = kind.title()
        await eventually(lambda: server.method(name).in_flight == 1, "the call is in hand")
        call.cancel()
        await eventually(lambda: server.method(name).in_flight == 0, "the call has ended")
        assert server.method(name).codes == {"CANCELLED": 1}
        if kind == "stream":
            assert server.ended == ["forever"]


async def test_a_passed_deadline_is_counted_as_such() -> None:
    async with serving() as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.unary("forever", timeout=0.05)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: server.method("Unary").in_flight == 0, "the call has ended")
        assert set(server.method("Unary").codes) <= {"DEADLINE_EXCEEDED", "CANCELLED"}


async def test_new_calls_are_refused_while_draining_and_those_in_hand_go_on() -> None:
    async with serving() as server:
        stream = server.both(["a"])
        assert await _drain(stream) == ["a"]
        server.interceptor.drain()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.unary("a")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert _info(failed.value).reason == "SERVER_DRAINING"


async def test_only_failures_are_logged_unless_all_are_asked_for() -> None:
    async with serving() as server:
        with capture_logs() as logs:
            await server.unary("a")
            with pytest.raises(grpc.aio.AioRpcError):
                await server.unary("missing")
        assert [(line["code"], line["reason"]) for line in logs] == [("NOT_FOUND", "JOB_NOT_FOUND")]
    async with serving(log_all=True) as server:
        with capture_logs() as logs:
            await server.unary("a")
            await _drain(server.stream("b"))
            await eventually(lambda: len(logs) == 2, "both lines are written")
        assert [line["code"] for line in logs] == ["OK", "OK"]
        assert all(line["duration_ms"] >= 0 for line in logs)


async def test_a_slow_call_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_S", 0.0)
    async with serving() as server:
        with capture_logs() as logs:
            await server.unary("a")
        assert [line["event"] for line in logs] == ["slow call"]


async def test_a_flood_of_failures_does_not_flood_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINES_PER_S", 3)
    async with serving() as server:
        began = monotonic()
        with capture_logs() as logs:
            failed = await asyncio.gather(
                *(server.unary("down") for _ in range(100)), return_exceptions=True
            )

            def told() -> int:
                return len(logs) + sum(line.get("lines_left_out", 0) for line in logs)

            # What was left out is told by the first line of a later second.
            async with asyncio.timeout(30):
                while told() < len(failed):
                    await asyncio.sleep(0.1)
                    failed += await asyncio.gather(server.unary("down"), return_exceptions=True)
            assert told() == len(failed)
        assert all(isinstance(error, grpc.aio.AioRpcError) for error in failed)
        await eventually(lambda: server.method("Unary").in_flight == 0, "the call has ended")
        assert server.method("Unary").codes == {"UNAVAILABLE": len(failed)}
        # Of each second that it took, also of the two that it began and ended in.
        assert len(logs) <= 3 * (int(monotonic() - began) + 2)
