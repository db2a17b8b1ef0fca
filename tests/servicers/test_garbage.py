"""Bytes that are no message."""

from __future__ import annotations

import grpc
import pytest

from tests.support.grpc_servers import refusal, served_broker


@pytest.mark.parametrize("method", ["JobService/SubmitJob", "AdminService/ListQueues"])
async def test_garbage_is_the_callers_mistake(valkey_url: str, method: str) -> None:
    async with (
        served_broker(valkey_url) as served,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        call = channel.unary_unary(f"/jobwire.v1.{method}")
        refused = await refusal(call(b"\xff\xff\xff"))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"request"})


async def test_garbage_for_a_watch_is_the_callers_mistake(valkey_url: str) -> None:
    async with (
        served_broker(valkey_url) as served,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        call = channel.unary_stream("/jobwire.v1.JobService/WatchJob")(b"\xff\xff\xff")
        refused = await refusal(call.read())
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
