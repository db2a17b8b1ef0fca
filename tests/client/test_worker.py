"""The worker against a real gRPC server that a test commands."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from datetime import timedelta
from typing import Any

import grpc
import pytest

from jobwire import Context, Fatal, InvalidRequest, Retry, Worker, to_payload
from jobwire.v1 import job_pb2, worker_service_pb2

from tests.client import handlers
from tests.client.broker import Broker, reason, rich_status
from tests.client.support import cancel, completion, started, waiting_for, worker_of
from tests.support.waiting import eventually

UNAVAILABLE = rich_status(grpc.StatusCode.UNAVAILABLE, "away", reason("STORE_UNAVAILABLE"))


async def test_an_async_handler_runs_and_its_value_is_the_result(broker: Broker) -> None:
    async def add(context: Context) -> int:
        await asyncio.sleep(0)
        return sum(context.payload)

    async with worker_of(broker, add=add):
        job = await broker.add("add", to_payload([1, 2, 3]))
        await completion(broker, job)
    assert (job.state, job.result.json) == (job_pb2.JOB_STATE_SUCCEEDED, "6")


async def test_a_sync_handler_runs_in_a_thread_of_its_own(broker: Broker) -> None:
    async with worker_of(broker, where=lambda context: threading.current_thread().name):
        job = await broker.add("where")
        await completion(broker, job)
    assert job.result.json == f'"jobwire-{job.job_id}"'


async def test_a_registration_says_what_the_worker_serves(broker: Broker) -> None:
    worker = Worker(
        broker.target, queues=["a", "b"], labels={"gpu": "a100"}, concurrency=3, lease_s=7
    )
    worker.operation("x")(handlers.double)
    async with worker:
        pass
    spec = broker.calls["RegisterWorker"][0].worker
    assert (spec.queues, spec.operations, spec.concurrency) == (["a", "b"], ["x"], 3)
    assert (spec.labels, spec.lease_duration.seconds) == ({"gpu": "a100"}, 7)
    assert spec.client.startswith("jobwire-python/")


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    assert Worker().operation("x")(handlers.double) is handlers.double


async def test_a_raised_error_is_a_retryable_failure_with_its_stack(broker: Broker) -> None:
    def divide(context: Context) -> Any:
        return 1 / context.payload

    async with worker_of(broker, divide=divide):
        said = await completion(broker, await broker.add("divide", to_payload(0)))
    failure = said.failure
    assert (failure.type, failure.message) == ("ZeroDivisionError", "division by zero")
    assert "return 1 / context.payload" in failure.stack
    assert not failure.non_retryable


async def test_retry_and_fatal_say_when_and_whether_to_try_again(broker: Broker) -> None:
    def later(context: Context) -> None:
        raise Retry("rate limited", after=2.5, details={"limit": 10})

    def never(context: Context) -> None:
        raise Fatal("no such customer", type="UnknownCustomer")

    async with worker_of(broker, later=later, never=never):
        retried = (await completion(broker, await broker.add("later"))).failure
        ended = (await completion(broker, await broker.add("never"))).failure
    assert (retried.type, retried.message, retried.details.json) == (
        "Retry",
        "rate limited",
        '{"limit":10}',
    )
    assert retried.retry_after.ToTimedelta().total_seconds() == 2.5
    assert (ended.type, ended.message, ended.non_retryable) == (
        "UnknownCustomer",
        "no such customer",
        True,
    )


class Speechless(Exception):
    """An error that can't be put into words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_without_words_is_a_failure_all_the_same(broker: Broker) -> None:
    async def fail(context: Context) -> None:
        raise Speechless

    async with worker_of(broker, fail=fail):
        said = await completion(broker, await broker.add("fail"))
    assert said.failure.type == "Speechless"
    assert "__str__" in said.failure.message


def nested(depth: int) -> list[Any]:
    """A list that is too deep for whatever goes through it by recursion."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("no file \udcff.txt"), "ValueError", "no file ?.txt"),
        (Fatal("gone", type=404), "404", "gone"),  # type: ignore[arg-type]
        (Retry("busy", after=float("nan")), "Retry", "busy"),
        (Retry("busy", after=float("inf")), "Retry", "busy"),
        (Retry("busy", details=nested(100_000)), "Retry", "busy"),
    ],
    ids=["half-a-character", "type", "nan", "infinity", "details"],
)
@pytest.mark.parametrize("mode", ["async", "thread"])
async def test_a_failure_that_can_t_be_carried_as_it_is_is_one_all_the_same(
    broker: Broker, mode: str, error: Exception, kind: str, words: str
) -> None:
    def fail(context: Context) -> None:
        raise error

    async def fail_on_the_loop(context: Context) -> None:
        raise error

    async with worker_of(broker, fail=fail if mode == "thread" else fail_on_the_loop):
        said = await completion(broker, await broker.add("fail"))
    assert (said.failure.type, said.failure.message) == (kind, words)


@pytest.mark.parametrize(
    ("after", "seconds"), [(-1, 0), (timedelta(days=60), 30 * 86_400)], ids=["below", "above"]
)
async def test_a_wait_beyond_the_contract_s_is_the_nearest_within(
    broker: Broker, after: Any, seconds: int
) -> None:
    async def later(context: Context) -> None:
        raise Retry("busy", after=after)

    async with worker_of(broker, later=later):
        said = await completion(broker, await broker.add("later"))
    assert said.failure.retry_after.ToTimedelta().total_seconds() == seconds


async def test_details_that_the_broker_would_refuse_are_told_of_and_left_out(
    broker: Broker,
) -> None:
    async def fail(context: Context) -> None:
        raise Fatal("too much", details="x" * 20_000)

    async with worker_of(broker, fail=fail):
        said = await completion(broker, await broker.add("fail"))
    assert (said.failure.message, said.failure.non_retryable) == ("too much", True)
    assert said.failure.details.json == '"the details are 20006 bytes; at most 16384"'


async def test_what_a_job_needed_goes_without_the_garbage_collector(broker: Broker) -> None:
    contexts: list[weakref.ref[Context]] = []

    async def note(context: Context) -> None:
        contexts.append(weakref.ref(context))

    gc.disable()
    try:
        async with worker_of(broker, note=note):
            for _ in range(3):
                await completion(broker, await broker.add("note"))
        assert [context() for context in contexts] == [None] * 3
    finally:
        gc.enable()


async def test_a_result_without_a_json_form_fails_for_good(broker: Broker) -> None:
    async with worker_of(broker, bad=lambda context: {1, 2}):
        failure = (await completion(broker, await broker.add("bad"))).failure
    assert (failure.type, failure.non_retryable) == ("UnsupportedResult", True)


@pytest.mark.parametrize("mode", ["async", "thread"])
async def test_a_result_that_is_too_deep_for_json_fails_for_good(broker: Broker, mode: str) -> None:
    async def deep(context: Context) -> Any:
        return nested(100_000)

    def in_thread(context: Context) -> Any:
        return nested(100_000)

    async with worker_of(broker, deep=in_thread if mode == "thread" else deep):
        failure = (await completion(broker, await broker.add("deep"))).failure
    assert (failure.type, failure.non_retryable) == ("UnsupportedResult", True)


async def test_a_result_that_the_broker_refuses_fails_for_good(broker: Broker) -> None:
    broker.fail(
        "CompleteJob",
        rich_status(grpc.StatusCode.INVALID_ARGUMENT, "2 MiB, at most 1", reason("TOO_LARGE")),
    )
    async with worker_of(broker, big=lambda context: "x"):
        job = await broker.add("big")
        await broker.until(lambda: job.state == job_pb2.JOB_STATE_FAILED)
    assert (job.failure.type, job.failure.non_retryable) == ("InvalidResult", True)
    assert "2 MiB, at most 1" in job.failure.message


async def test_a_handler_that_exits_fails_its_job_and_not_the_worker(broker: Broker) -> None:
    def leave(context: Context) -> None:
        raise SystemExit(3)

    async def leave_too(context: Context) -> None:
        raise SystemExit(3)

    async with worker_of(broker, leave=leave, leave_too=leave_too, ok=lambda context: 1):
        for name in ("leave", "leave_too"):
            failure = (await completion(broker, await broker.add(name))).failure
            assert failure.type == "HandlerExited"
        assert (await completion(broker, await broker.add("ok"))).HasField("success")


async def test_no_more_jobs_run_at_once_than_there_are_slots(broker: Broker) -> None:
    running, most = 0, 0
    gate = asyncio.Event()

    async def hold(context: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await broker.touch()
        await gate.wait()
        running -= 1

    jobs = [await broker.add("hold") for _ in range(25)]
    async with worker_of(broker, hold=hold):
        await broker.until(lambda: running == 4)
        gate.set()
        for job in jobs:
            await completion(broker, job)
    assert most == 4
    # All but the first came with the answer to a completion.
    assert len(broker.calls["ClaimJob"]) < 10


async def test_progress_goes_out_without_waiting_and_the_last_word_is_kept(
    broker: Broker,
) -> None:
    def busy(context: Context) -> None:
        for n in range(1000):
            context.progress(n / 1000, f"step {n}")
        context.progress(7.0, "done")

    async with worker_of(broker, busy=busy):
        job = await broker.add("busy")
        await completion(broker, job)
    assert (job.progress.fraction, job.progress.message) == (1.0, "done")
    assert len(broker.calls["UpdateProgress"]) < 20


async def test_progress_may_be_told_from_async_code_without_await(broker: Broker) -> None:
    async def busy(context: Context) -> None:
        context.progress(0.5, details={"rows": 10})

    async with worker_of(broker, busy=busy):
        job = await broker.add("busy")
        await completion(broker, job)
    assert (job.progress.fraction, job.progress.details.json) == (0.5, '{"rows":10}')


async def test_details_that_cannot_be_sent_fail_at_the_call(broker: Broker) -> None:
    async with worker_of(broker, bad=lambda context: context.progress(0.5, details={1})):
        failure = (await completion(broker, await broker.add("bad"))).failure
    assert failure.type == "TypeError"


async def test_a_cancelled_async_handler_is_cancelled_at_its_await(broker: Broker) -> None:
    async def sleep(context: Context) -> None:
        await asyncio.Event().wait()

    async with worker_of(broker, sleep=sleep):
        job = await broker.add("sleep")
        await broker.until(lambda: job.state == job_pb2.JOB_STATE_RUNNING)
        await cancel(broker, job)
        assert (await completion(broker, job)).HasField("cancelled")


async def test_a_cancelled_sync_handler_sees_the_signal_and_the_reason(broker: Broker) -> None:
    begun = threading.Event()
    seen: list[tuple[bool, str, str]] = []

    def wait(context: Context) -> None:
        begun.set()
        stopped = context.wait_cancelled(60)
        seen.append((stopped, context.stop_reason, context.stop_message))
        context.raise_if_cancelled()

    async with worker_of(broker, wait=wait):
        job = await broker.add("wait")
        await eventually(begun.is_set, "the handler runs")
        await cancel(broker, job)
        assert (await completion(broker, job)).HasField("cancelled")
    assert seen == [(True, "cancelled", "changed my mind")]


async def test_a_handler_may_still_finish_after_a_cancellation(broker: Broker) -> None:
    begun = threading.Event()

    def finish(context: Context) -> str:
        begun.set()
        context.wait_cancelled(60)
        return "done all the same"

    async with worker_of(broker, finish=finish):
        job = await broker.add("finish")
        await eventually(begun.is_set, "the handler runs")
        await cancel(broker, job)
        assert (await completion(broker, job)).success.result.json == '"done all the same"'


async def test_a_lost_lease_stops_the_handler_and_nothing_is_said(broker: Broker) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def sleep(context: Context) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with worker_of(broker, sleep=sleep):
        job = await broker.add("sleep")
        await begun.wait()
        broker.lost.add(job.job_id)
        async with asyncio.timeout(10):
            await stopped.wait()
    assert broker.calls["CompleteJob"] == []


async def test_running_jobs_are_named_in_heartbeats(broker: Broker) -> None:
    gate = asyncio.Event()
    async with worker_of(broker, hold=lambda context: None, wait=waiting_for(gate)):
        job = await broker.add("wait")
        await broker.until(
            lambda: any(
                lease.job_id == job.job_id and lease.fencing_token == 1
                for call in broker.calls["Heartbeat"]
                for lease in call.leases
            )
        )
        gate.set()


async def test_a_completion_is_repeated_until_the_store_is_back(broker: Broker) -> None:
    broker.fail("CompleteJob", UNAVAILABLE, UNAVAILABLE, UNAVAILABLE)
    async with worker_of(broker, ok=lambda context: 1):
        job = await broker.add("ok")
        await broker.until(lambda: job.state == job_pb2.JOB_STATE_SUCCEEDED)
    assert len(broker.calls["CompleteJob"]) == 4


async def test_a_restart_of_the_broker_is_survived_with_the_job_in_hand(broker: Broker) -> None:
    gate = asyncio.Event()
    async with worker_of(broker, wait=waiting_for(gate)):
        job = await broker.add("wait")
        # In a heartbeat it is in the worker's hand: the broker hands it out earlier.
        await broker.until(
            lambda: any(
                lease.job_id == job.job_id for c in broker.calls["Heartbeat"] for lease in c.leases
            )
        )
        await broker.stop()
        gate.set()
        await broker.start()
        await broker.until(lambda: job.state == job_pb2.JOB_STATE_SUCCEEDED)
        after = await broker.add("wait")
        await broker.until(lambda: after.state == job_pb2.JOB_STATE_SUCCEEDED)
    assert job.attempt == 1


async def test_a_forgotten_worker_registers_again_and_drops_what_it_held(broker: Broker) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def sleep(context: Context) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with worker_of(broker, sleep=sleep, ok=lambda context: 1):
        job = await broker.add("sleep")
        # The broker has handed it out before the worker has it.
        await begun.wait()
        broker.workers.clear()
        await broker.touch()
        await broker.until(lambda: len(broker.calls["RegisterWorker"]) == 2)
        async with asyncio.timeout(10):
            await stopped.wait()
        after = await broker.add("ok")
        await broker.until(lambda: after.state == job_pb2.JOB_STATE_SUCCEEDED)
    assert not any(call.completion.job_id == job.job_id for call in broker.calls["CompleteJob"])


async def test_a_worker_starts_before_its_broker(broker: Broker) -> None:
    await broker.stop()
    worker = worker_of(broker, ok=lambda context: 1)
    starting = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    await broker.start()
    await starting
    job = await broker.add("ok")
    await broker.until(lambda: job.state == job_pb2.JOB_STATE_SUCCEEDED)
    await worker.stop()


async def test_a_refused_registration_is_raised(broker: Broker) -> None:
    broker.fail(
        "RegisterWorker", rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no", reason("INVALID"))
    )
    with pytest.raises(InvalidRequest):
        await worker_of(broker, ok=lambda context: 1).start()


async def test_a_worker_without_handlers_does_not_start(broker: Broker) -> None:
    with pytest.raises(RuntimeError, match="no handlers"):
        await Worker(broker.target).start()


async def test_start_and_stop_may_be_repeated(broker: Broker) -> None:
    worker = worker_of(broker, ok=lambda context: 1)
    await worker.stop()
    for _ in range(2):
        await worker.start()
        await worker.start()
        await worker.stop()
        await worker.stop()
    assert len(broker.calls["RegisterWorker"]) == len(broker.calls["DeregisterWorker"]) == 2


@pytest.mark.parametrize(("run", "handler"), [("async", handlers.double), ("process", lambda c: 1)])
def test_a_function_that_cannot_be_run_that_way_is_refused(run: Any, handler: Any) -> None:
    with pytest.raises(TypeError):
        Worker().operation("x", run=run)(handler)


def test_a_second_handler_for_an_operation_is_refused() -> None:
    worker = Worker()
    worker.operation("x")(handlers.double)
    with pytest.raises(ValueError, match="already"):
        worker.operation("x")(handlers.double)


async def test_a_claim_brings_cancellations(broker: Broker) -> None:
    broker.heartbeat_s = 3600
    gate = asyncio.Event()
    worker = Worker(broker.target, transport="unary", concurrency=4, shutdown_grace_s=10)
    worker.operation("wait")(waiting_for(gate))
    async with worker:
        job = await broker.add("wait")
        await started(broker, job)
        broker.claim_notices.append(
            worker_service_pb2.CancelNotice(job_id=job.job_id, fencing_token=job.fencing_token)
        )
        await broker.touch()
        assert (await completion(broker, job)).HasField("cancelled")


async def test_the_answer_to_a_completion_brings_cancellations(broker: Broker) -> None:
    broker.heartbeat_s = 3600
    gate = asyncio.Event()
    worker = Worker(broker.target, transport="unary", concurrency=2, shutdown_grace_s=10)
    worker.operation("wait")(waiting_for(gate))
    worker.operation("end")(waiting_for(asyncio.Event()))
    async with worker:
        # With both slots taken there is no claim under way, and a completion asks for more.
        cancelled, ended = await broker.add("end"), await broker.add("wait")
        await started(broker, cancelled)
        await started(broker, ended)
        broker.complete_notices.append(
            worker_service_pb2.CancelNotice(
                job_id=cancelled.job_id, fencing_token=cancelled.fencing_token
            )
        )
        gate.set()
        assert (await completion(broker, cancelled)).HasField("cancelled")
