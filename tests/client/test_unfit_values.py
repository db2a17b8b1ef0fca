"""Values that no message or JSON text can carry never end a stream: they are refused by name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
from google.protobuf.struct_pb2 import Struct

from jobwire import AsyncClient, Context, Fatal, JobFailed, Retry, Worker
from jobwire.v1.job_pb2 import Payload as RawPayload

from tests.support.streams import QUICK, stream_server

Transport = Literal["stream", "unary"]
SURROGATE = "half \ud800 of one"


def _struct(number: float) -> Struct:
    struct = Struct()
    struct.fields["x"].number_value = number
    return struct


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


UNFIT: dict[str, Any] = {
    "nan": math.nan,
    "inf": [1, {"a": -math.inf}],
    "huge": 10**400,
    "surrogate": SURROGATE,
    "key": {SURROGATE: 1},
    "deep": _deep(5_000),
    "struct-nan": _struct(math.nan),
    "struct-inf": _struct(math.inf),
    "payload-struct": RawPayload(struct=_struct(math.nan)),
    "payload-text": RawPayload(json="{not json"),
    "payload-nan": RawPayload(json="NaN"),
    "payload-surrogate": RawPayload(json='"\\ud800"'),
    "type": object(),
}


def _returns(context: Context) -> Any:
    return UNFIT[context.payload]


async def _refused(does: Callable[[], Any]) -> Any:
    """What a value is refused with at the place where it is given, or None."""
    try:
        found = does()
        if (
            asyncio.iscoroutine(found)
            or isinstance(found, asyncio.Future)
            or hasattr(found, "__await__")
        ):
            await found
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _numbers(context: Context) -> list[Callable[[], Any]]:
    return [
        lambda: context.progress(math.nan),
        lambda: context.progress(math.inf),
        lambda: context.progress(-0.5),
        lambda: context.progress(1.5),
        lambda: context.progress(0.5, SURROGATE),
        lambda: context.progress(0.5, details={"x": math.nan}),
        lambda: context.progress(0.5, details=_struct(math.nan)),
        lambda: context.progress(0.5, details=RawPayload(json="{no")),
    ]


async def _says(context: Context) -> Any:
    said = [await _refused(does) for does in _numbers(context)]
    await asyncio.sleep(0.3)  # reports go out now and then
    return [text if text is None else text[:300] for text in said]


async def _saves(context: Context) -> Any:
    return await _refused(lambda: context.save_checkpoint(UNFIT[context.payload]))


async def _raises(context: Context) -> Any:
    details = UNFIT[context.payload]
    raise Fatal(SURROGATE, details=details, type=SURROGATE)


async def _waits(context: Context) -> Any:
    if context.attempt == 1:
        raise Retry(SURROGATE, after=math.nan)
    return "again"


def _worker(target: str, transport: Transport) -> Worker:
    worker = Worker(target, transport=transport, concurrency=20)
    for name, handler in (
        *(("returns", _returns), ("says", _says), ("saves", _saves)),
        *(("raises", _raises), ("waits", _waits)),
    ):
        worker.operation(name)(handler)
    return worker


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_no_value_ends_a_stream_or_leaves_a_job_running(
    valkey_url: str, transport: Transport
) -> None:
    async with stream_server(valkey_url, QUICK) as server, AsyncClient(server.address) as client:
        begun = 0
        attach = server.router.attach_worker

        async def counted(first: Any) -> Any:
            nonlocal begun
            begun += 1
            return await attach(first)

        server.router.attach_worker = counted  # type: ignore[method-assign]
        async with _worker(server.address, transport), asyncio.timeout(60):
            submitted = {
                (operation, name): await client.submit(operation, name)
                for operation in ("returns", "raises", "saves")
                for name in UNFIT
            }
            for (operation, name), job in submitted.items():
                if operation == "saves":
                    assert await job.result(), f"the checkpoint {name} is not refused"
                    continue
                with pytest.raises(JobFailed) as failed:
                    await job.result()
                assert failed.value.failure is not None, (operation, name)
            said = await (await client.submit("says")).result()
            # NaN and what is out of range say nothing wrong; halves of characters are shown as `?`.
            assert said[:5] == [None] * 5
            assert said[5].startswith("ValueError: nan is no JSON number at ['x']")
            assert await (await client.submit("waits")).result() == "again"
        assert begun == (1 if transport == "stream" else 0)
