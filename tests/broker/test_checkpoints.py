"""What an attempt saves for the next one: kept over everything but a success."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import LeaseLost, OutputGap
from jobwire_server.domain.model import Failure, JobState, Piece, RetryPolicy, Written

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import DAY_MS, new_job

S = JobState
LEASE_MS = 30_000
SAVED = b"\x0a\x02\x00\xff" + b"x" * 1_000


async def _saved(broker: Broker, checkpoint: bytes = SAVED, **fields: object) -> tuple[str, int]:
    """Returns a running job that has saved something, and its token."""
    (ulid,) = await broker.submit(new_job(**fields))  # type: ignore[arg-type]
    token = (await broker.claim_one()).fencing_token
    await _save(broker, ulid, token, checkpoint)
    return ulid, token


async def _save(broker: Broker, ulid: str, token: int, checkpoint: bytes) -> None:
    await broker.report("default", ulid, "w1", token, b"", None, checkpoint)


async def test_the_first_attempt_gets_no_checkpoint_and_the_next_what_was_saved_last(
    broker: Broker,
) -> None:
    await broker.register()
    await broker.submit()
    first = await broker.claim_one()
    assert first.checkpoint == b""
    ulid = first.job_id[-26:]
    await _save(broker, ulid, first.fencing_token, b"old")
    await _save(broker, ulid, first.fencing_token, SAVED)
    # A report without one leaves it.
    await broker.report("default", ulid, "w1", first.fencing_token, b"half")
    assert (await broker.job(ulid)).checkpoint == SAVED
    await broker.release("default", ulid, "w1", first.fencing_token, True, "")
    again = await broker.claim_one()
    assert (again.attempt, again.checkpoint, again.record) == (2, SAVED, first.record)
    broker.check()


@pytest.mark.parametrize("end", ["crash", "release", "failure", "timeout"])
async def test_a_checkpoint_outlives_the_attempt(broker: Broker, end: str) -> None:
    await broker.register()
    policy = RetryPolicy(initial_backoff_ms=0)
    timeout = 5_000 if end == "timeout" else 0
    ulid, token = await _saved(broker, retry=policy, execution_timeout_ms=timeout)
    match end:
        case "crash":
            await broker.after(LEASE_MS + 1)
        case "release":
            await broker.release("default", ulid, "w1", token, True, "")
        case "failure":
            await broker.fail("default", ulid, "w1", token, Failure("Broken", ""))
        case "timeout":
            await broker.after(5_001)
    await broker.after(1)
    again = await broker.claim_one()
    assert again.job_id.endswith(ulid)
    assert again.checkpoint == SAVED
    broker.check()


async def test_a_claim_by_id_brings_the_checkpoint_also_when_it_is_repeated(
    broker: Broker,
) -> None:
    await broker.register()
    ulid, token = await _saved(broker)
    await broker.release("default", ulid, "w1", token, True, "")
    for _ in range(2):
        again = await broker.claim_job("w1", "default", ulid)
        assert (again.attempt, again.checkpoint) == (2, SAVED)


async def test_a_redrive_begins_with_the_checkpoint(broker: Broker) -> None:
    await broker.register()
    ulid, token = await _saved(broker)
    final = Failure("Broken", "", non_retryable=True)
    await broker.fail("default", ulid, "w1", token, final)
    assert (await broker.job(ulid)).checkpoint == SAVED
    broker.check()
    await broker.router.retry_job("default", ulid, "", 0)
    assert (await broker.claim_one()).checkpoint == SAVED


async def test_success_takes_the_checkpoint_away(broker: Broker) -> None:
    await broker.register()
    ulid, token = await _saved(broker)
    await broker.succeed("default", ulid, "w1", token, b"r")
    assert (await broker.job(ulid)).checkpoint == b""
    assert f"c:{ulid}" not in broker.dump()
    broker.check()


async def test_a_forgotten_job_leaves_no_checkpoint(broker: Broker) -> None:
    await broker.register()
    ulid, token = await _saved(broker)
    final = Failure("Broken", "", non_retryable=True)
    await broker.fail("default", ulid, "w1", token, final)
    broker.shift(400 * DAY_MS)
    assert (await broker.parts.upkeep.purge("default", 10))[0] == 1
    assert not [key for key in broker.dump() if ulid in key]
    broker.check()


async def test_an_empty_checkpoint_takes_the_old_one_away(broker: Broker) -> None:
    await broker.register()
    ulid, token = await _saved(broker)
    await _save(broker, ulid, token, b"")
    assert (await broker.job(ulid)).checkpoint == b""
    broker.check()
    await broker.release("default", ulid, "w1", token, True, "")
    assert (await broker.claim_one()).checkpoint == b""


async def test_whoever_lost_the_lease_saves_nothing(broker: Broker) -> None:
    await broker.register("w1")
    await broker.register("w2")
    ulid, token = await _saved(broker)
    await broker.after(LEASE_MS + 1)
    second = await broker.claim_one("w2")
    before = broker.dump()
    with pytest.raises(LeaseLost):
        await _save(broker, ulid, token, b"from the dead")
    assert broker.dump() == before
    assert second.checkpoint == SAVED


async def test_a_report_whose_output_is_refused_saves_nothing(broker: Broker) -> None:
    await broker.register()
    ulid, token = await _saved(broker)
    gap = Written(0, 100, (Piece("stdout", True, b"late"),))
    with pytest.raises(OutputGap):
        await broker.report("default", ulid, "w1", token, b"", gap, b"new")
    assert (await broker.job(ulid)).checkpoint == SAVED


async def test_a_claim_whose_answer_was_lost_brings_the_checkpoint_again(valkey_url: str) -> None:
    async with running_broker(valkey_url, QUIET) as broker:
        await broker.register()
        ulid, token = await _saved(broker)
        await broker.release("default", ulid, "w1", token, True, "")
        runner = broker.parts.runner
        script = runner.run

        async def twice(name: str, key: str, args: list[object]) -> object:
            answer = await script(name, key, args)  # type: ignore[arg-type]
            return await script(name, key, args) if name == "claim" else answer  # type: ignore[arg-type]

        runner.run = twice  # type: ignore[method-assign, assignment]
        again = await broker.claim_one()
        assert (again.attempt, again.checkpoint) == (2, SAVED)


async def test_jobs_without_a_checkpoint_cost_no_command_more(valkey_url: str) -> None:
    async with running_broker(valkey_url) as broker:
        await broker.register()
        await broker.submit(*(new_job() for _ in range(20)))
        broker.client.config_resetstat()
        claimed = await broker.claim("w1", 20)
        for one in claimed:
            await broker.succeed("default", one.job_id[-26:], "w1", one.fencing_token, b"r")
        calls = {name: one["calls"] for name, one in broker.client.info("commandstats").items()}
        assert calls.get("cmdstat_unlink", 0) == 0
        # The memory of the claim before, and nothing for the jobs.
        assert calls["cmdstat_get"] == 1


async def test_checkpoints_do_not_count_as_output(broker: Broker) -> None:
    await broker.register()
    ulid, _ = await _saved(broker)
    assert (await broker.job(ulid)).output_bytes == 0
    assert (await broker.router.operators.get_queue("default")).output_bytes == 0
