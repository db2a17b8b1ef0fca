"""Request ids and unique keys: who is answered with which job, and that no key stays locked."""

from __future__ import annotations

import pytest

from jobwire_server.domain.decisions.endings import Budget
from jobwire_server.domain.errors import AlreadyExists, UniqueKeyTaken
from jobwire_server.domain.model import (
    Accepted,
    JobState,
    NewJob,
    Outcome,
    RequestId,
    UniqueConflict,
    UniqueKey,
    UniqueScope,
)

from tests.support.jobs import DAY_MS, new_job, next_ulid, ulid_of
from tests.support.scripts import RETAIN_MS, Scripts

S = JobState
PENDING, UNFINISHED, PERIOD = UniqueScope
RETURN, REJECT, REPLACE = UniqueConflict


def asked(request_id: str = "r-1", content: str = "a", *, ulid: str = "") -> NewJob:
    """A job with a request id; each call proposes another ULID."""
    request = RequestId(request_id, content * 32, chosen=bool(ulid))
    return new_job(ulid=ulid, request=request, payload=content)


def keyed(
    key: str = "k",
    scope: UniqueScope = UNFINISHED,
    conflict: UniqueConflict = RETURN,
    *,
    delay_ms: int = 0,
    priority: int = 0,
) -> NewJob:
    """A job with a unique key."""
    period = 60_000 if scope is PERIOD else 0
    unique = UniqueKey(key, scope, period, conflict)
    return new_job(unique=unique, delay_ms=delay_ms, priority=priority)


async def submit_one(scripts: Scripts, job: NewJob) -> Accepted:
    (answer,) = await scripts.jobs.submit("default", [job], RETAIN_MS)
    assert isinstance(answer, Accepted), answer
    return answer


async def refused(scripts: Scripts, job: NewJob) -> Exception:
    (answer,) = await scripts.jobs.submit("default", [job], RETAIN_MS)
    assert isinstance(answer, Exception), answer
    return answer


# Request ids ----------------------------------------------------------------


async def test_a_repeated_request_is_answered_with_its_job_as_it_stands(scripts: Scripts) -> None:
    first = asked()
    assert await submit_one(scripts, first) == (first.job_id, S.PENDING, None)
    await scripts.claim()
    before = scripts.dump()
    assert await submit_one(scripts, asked()) == (first.job_id, S.RUNNING, b"")
    assert scripts.changed(before) == {}
    scripts.check()


async def test_other_content_under_a_request_id_is_refused(scripts: Scripts) -> None:
    await scripts.submit(asked())
    before = scripts.dump()
    error = await refused(scripts, asked(content="b"))
    assert isinstance(error, AlreadyExists)
    assert error.metadata == {"job_request_id": "r-1"}
    assert scripts.changed(before) == {}


async def test_a_request_id_is_free_again_after_24_hours(scripts: Scripts) -> None:
    first = await submit_one(scripts, asked())
    scripts.shift(DAY_MS - 5_000)
    assert (await submit_one(scripts, asked())).job_id == first.job_id
    scripts.shift(10_000)
    again = await submit_one(scripts, asked(content="b"))
    assert not again.existed
    assert again.job_id != first.job_id
    assert 0 < scripts.client.pttl("jw:{default}:q:r-1") <= DAY_MS
    scripts.check()


async def test_a_request_whose_job_is_forgotten_is_answered_with_its_id(scripts: Scripts) -> None:
    first = await submit_one(scripts, asked())
    await scripts.claim()
    item_ulid = ulid_of(first.job_id)
    await scripts.jobs.cancel("default", [(item_ulid, "")], 0, 0)
    await scripts.end(await scripts.read(item_ulid), S.CANCELLED, outcome=Outcome.CANCELLED)
    scripts.shift(RETAIN_MS // 2)
    scripts.client.zadd("jw:{default}:done:7", {item_ulid: 0})
    assert await scripts.upkeep.purge("default", 10) == (1, 0)
    assert await submit_one(scripts, asked()) == (first.job_id, None, b"")
    scripts.check()


async def test_a_repeated_batch_is_answered_with_the_same_ids_item_by_item(
    scripts: Scripts,
) -> None:
    def batch() -> list[NewJob]:
        plain_between = new_job(ulid=chosen)
        return [asked("b:0"), plain_between, asked("b:2"), asked("b:3", content="c")]

    chosen = next_ulid()
    first = await scripts.jobs.submit("default", batch())
    again = await scripts.jobs.submit("default", batch())
    assert all(isinstance(answer, Accepted) for answer in [*first, *again])
    assert [a.job_id for a in first] == [a.job_id for a in again]  # type: ignore[union-attr]
    assert [a.existed for a in first] == [False] * 4  # type: ignore[union-attr]
    assert [a.existed for a in again] == [True] * 4  # type: ignore[union-attr]
    assert len(scripts.check().jobs) == 4


async def test_a_request_id_twice_in_a_batch_is_one_job(scripts: Scripts) -> None:
    one, two, other = asked(), asked(), asked(content="b")
    answers = await scripts.jobs.submit("default", [one, two, other])
    assert answers[:2] == [(one.job_id, S.PENDING, None), (one.job_id, S.PENDING, b"")]
    assert isinstance(answers[2], AlreadyExists)
    scripts.check()


async def test_a_request_id_and_a_job_id_must_agree(scripts: Scripts) -> None:
    chosen = next_ulid()
    first = await submit_one(scripts, asked(ulid=chosen))
    assert (await submit_one(scripts, asked(ulid=chosen))).job_id == first.job_id
    assert (await submit_one(scripts, asked())).job_id == first.job_id
    assert isinstance(await refused(scripts, asked(ulid=next_ulid())), AlreadyExists)
    scripts.check()


async def test_a_call_that_the_store_gets_twice_writes_once(scripts: Scripts) -> None:
    batch = [asked(), keyed(), new_job(), keyed("k2", conflict=REPLACE)]
    await scripts.jobs.submit("default", batch)
    before = scripts.dump()
    again = await scripts.jobs.submit("default", batch)
    assert [a.job_id for a in again] == [job.job_id for job in batch]  # type: ignore[union-attr]
    assert scripts.changed(before) == {}


# Unique keys ----------------------------------------------------------------


async def test_the_holder_of_a_key_is_answered_in_place_of_a_new_job(scripts: Scripts) -> None:
    first = await submit_one(scripts, keyed())
    before = scripts.dump()
    assert await submit_one(scripts, keyed()) == (first.job_id, S.PENDING, b"")
    assert scripts.changed(before) == {}
    assert not (await submit_one(scripts, keyed("another"))).existed
    scripts.check()


async def test_rejected_where_the_key_is_held(scripts: Scripts) -> None:
    first = await submit_one(scripts, keyed())
    error = await refused(scripts, keyed(conflict=REJECT))
    assert isinstance(error, UniqueKeyTaken)
    assert error.metadata == {"job_id": first.job_id, "state": "PENDING"}


@pytest.mark.parametrize("delay_ms", [0, 60_000])
@pytest.mark.parametrize("priority", [0, 3])
async def test_a_job_that_never_started_is_replaced(
    scripts: Scripts, delay_ms: int, priority: int
) -> None:
    first = await submit_one(scripts, keyed(delay_ms=delay_ms, priority=priority))
    second = await submit_one(scripts, keyed(conflict=REPLACE))
    replaced = await scripts.read(ulid_of(first.job_id))
    assert replaced.state is S.CANCELLED
    assert replaced.cancel_reason == f"replaced by {second.job_id}"
    assert not second.existed
    dump = scripts.check()
    assert dump.keys["totals"] == {"submitted": "2", "cancelled": "1"}
    assert (await scripts.claim())[0].job_id == second.job_id
    scripts.check()


async def test_a_job_that_has_started_is_not_replaced(scripts: Scripts) -> None:
    ulid = await scripts.running(keyed())
    error = await refused(scripts, keyed(conflict=REPLACE))
    assert isinstance(error, UniqueKeyTaken)
    assert error.metadata["state"] == "RUNNING"
    await scripts.end(await scripts.read(ulid), S.SCHEDULED, backoff_ms=1_000)
    # Waiting for its second attempt it is no longer new.
    assert isinstance(await refused(scripts, keyed(conflict=REPLACE)), UniqueKeyTaken)
    scripts.check()


async def test_an_unfinished_key_is_held_through_retries_and_freed_at_the_end(
    scripts: Scripts,
) -> None:
    ulid = await scripts.running(keyed())
    assert (await submit_one(scripts, keyed())).existed
    await scripts.end(await scripts.read(ulid), S.SCHEDULED, backoff_ms=1_000)
    assert (await submit_one(scripts, keyed())).existed
    scripts.shift(2_000)
    await scripts.tick()
    await scripts.claim()
    await scripts.succeed(ulid, token=2)
    assert "u:k" not in scripts.check().keys
    assert not (await submit_one(scripts, keyed())).existed


ENDS = ["succeed", "fail", "cancel", "confirm", "expire"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scope", [PENDING, UNFINISHED])
async def test_every_end_frees_the_key(scripts: Scripts, end: str, scope: UniqueScope) -> None:
    job = keyed(scope=scope)._replace(expires_at_ms=scripts.now_ms + 60_000)
    ulid = ulid_of(await _submitted(scripts, job))
    if end in ("succeed", "fail", "confirm"):
        await scripts.claim()
    if end == "succeed":
        await scripts.succeed(ulid)
    elif end == "fail":
        await scripts.end(await scripts.read(ulid), S.FAILED)
    elif end == "expire":
        scripts.shift(60_001)
        await scripts.tick()
    else:
        await scripts.cancel(ulid)
    if end == "confirm":
        ended = await scripts.end(
            await scripts.read(ulid), S.CANCELLED, outcome=Outcome.CANCELLED, budget=Budget.NONE
        )
        assert ended.state is S.CANCELLED
    assert (await scripts.read(ulid)).state.terminal
    assert "u:k" not in scripts.check().keys
    assert not (await submit_one(scripts, keyed())).existed


async def _submitted(scripts: Scripts, job: NewJob) -> str:
    return (await submit_one(scripts, job)).job_id


async def test_a_claim_that_finds_a_job_expired_frees_its_key(scripts: Scripts) -> None:
    await scripts.submit(keyed()._replace(expires_at_ms=scripts.now_ms + 60_000))
    scripts.shift(60_001)
    assert await scripts.claim() == []
    assert "u:k" not in scripts.check().keys


async def test_a_pending_key_is_free_from_the_first_delivery_on(scripts: Scripts) -> None:
    first = keyed(scope=PENDING)
    await scripts.running(first)
    second = await submit_one(scripts, keyed(scope=PENDING))
    assert not second.existed
    third = await submit_one(scripts, keyed(scope=PENDING))
    assert third.job_id == second.job_id
    # The end of the first leaves the key with the second.
    await scripts.succeed(ulid_of(first))
    assert (await submit_one(scripts, keyed(scope=PENDING))).job_id == second.job_id
    scripts.check()


async def test_a_key_for_a_period_is_held_whatever_becomes_of_the_job(scripts: Scripts) -> None:
    job = keyed(scope=PERIOD)
    ulid = await scripts.running(job)
    await scripts.succeed(ulid)
    assert await submit_one(scripts, keyed(scope=PERIOD)) == (job.job_id, S.SUCCEEDED, b"")
    scripts.client.zadd("jw:{default}:done:5", {ulid: 0})
    assert (await scripts.upkeep.purge("default", 10))[0] == 1
    assert await submit_one(scripts, keyed(scope=PERIOD)) == (job.job_id, None, b"")
    error = await refused(scripts, keyed(scope=PERIOD, conflict=REPLACE))
    assert isinstance(error, UniqueKeyTaken)
    assert error.metadata["state"] == "forgotten"
    scripts.shift(60_001)
    assert not (await submit_one(scripts, keyed(scope=PERIOD))).existed
    scripts.check()


async def test_a_cancelled_holder_of_a_period_is_replaced_as_it_never_started(
    scripts: Scripts,
) -> None:
    first = await submit_one(scripts, keyed(scope=PERIOD))
    await scripts.cancel(ulid_of(first.job_id))
    second = await submit_one(scripts, keyed(scope=PERIOD, conflict=REPLACE))
    assert not second.existed
    assert (await submit_one(scripts, keyed(scope=PERIOD))).job_id == second.job_id
    scripts.check()


async def test_jobs_of_one_batch_with_one_key_go_one_after_the_other(scripts: Scripts) -> None:
    batch = [keyed(), keyed(), keyed(conflict=REJECT), new_job(), keyed(conflict=REPLACE)]
    one, two, three, plain, five = await scripts.jobs.submit("default", batch)
    assert one == (batch[0].job_id, S.PENDING, None)
    assert two == (batch[0].job_id, S.PENDING, b"")
    assert isinstance(three, UniqueKeyTaken)
    assert plain == (batch[3].job_id, S.PENDING, None)
    assert five == (batch[4].job_id, S.PENDING, None)
    dump = scripts.check()
    assert dump.state(ulid_of(batch[0])) is S.CANCELLED
    taken = await scripts.claim(most=9)
    assert [a.job_id for a in taken] == [batch[3].job_id, batch[4].job_id]
    scripts.check()


async def test_the_answer_by_a_key_is_the_answer_to_the_repeated_request(
    scripts: Scripts,
) -> None:
    holder = await submit_one(scripts, keyed())
    request = RequestId("r-9", "d" * 32)
    assert (await submit_one(scripts, keyed()._replace(request=request))).job_id == holder.job_id
    await scripts.cancel(ulid_of(holder.job_id))
    again = await submit_one(scripts, keyed()._replace(request=request))
    assert again == (holder.job_id, S.CANCELLED, b"")
    assert len(scripts.check().jobs) == 1


@pytest.mark.parametrize("key", ["ü" * 64, "x" * 128, "a b\n{}", "\U0001f600"])
async def test_a_key_may_be_any_text(scripts: Scripts, key: str) -> None:
    first = await submit_one(scripts, keyed(key))
    assert (await submit_one(scripts, keyed(key))).job_id == first.job_id
    assert not (await submit_one(scripts, keyed(key[:-1] + "-"))).existed
    assert scripts.client.object("encoding", f"jw:{{default}}:j:{ulid_of(first.job_id)}") in (
        b"listpack",
    )
    await scripts.cancel(ulid_of(first.job_id))
    assert not (await submit_one(scripts, keyed(key))).existed
    scripts.check()


async def test_a_key_whose_job_was_lost_with_the_store_is_free(scripts: Scripts) -> None:
    first = await submit_one(scripts, keyed())
    for kind in ("r", "j"):
        scripts.client.delete(f"jw:{{default}}:{kind}:{ulid_of(first.job_id)}")
    assert not (await submit_one(scripts, keyed())).existed


async def test_plain_jobs_cost_no_command_of_their_own(scripts: Scripts) -> None:
    async def commands(count: int) -> int:
        def made() -> int:
            calls = scripts.client.info("commandstats")
            return sum(row["calls"] for row in calls.values())

        batch = [new_job() for _ in range(count)]
        await scripts.jobs.submit("default", batch)
        before = made()
        await scripts.jobs.submit("default", [new_job() for _ in range(count)])
        return made() - before

    assert await commands(1) == await commands(200)
