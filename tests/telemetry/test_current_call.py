"""The note of the call that a task serves."""

from __future__ import annotations

import asyncio

from jobwire_server.telemetry.current_call import Call, current_call, enter_call


class _Rpc:
    """An RPC whose metadata must not be read after its end."""

    def __init__(self) -> None:
        self.over = False

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """Returns what the caller sent."""
        assert not self.over
        return [("x-request-id", "r1")]


async def test_a_task_that_outlives_its_call_does_not_ask_it_any_more() -> None:
    go_on = asyncio.Event()

    async def outlive() -> str:
        await go_on.wait()
        call = current_call()
        assert isinstance(call, Call)
        return call.request_id

    rpc = _Rpc()
    call = enter_call(rpc)
    task = asyncio.create_task(outlive())
    call.end()
    rpc.over = True
    go_on.set()
    assert await task == call.request_id != "r1"


async def test_a_request_id_that_was_worked_out_stays() -> None:
    call = enter_call(_Rpc())
    assert call.request_id == "r1"
    call.end()
    assert call.request_id == "r1"
