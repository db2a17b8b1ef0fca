"""Random courses of jobs, and what their followers hear of them."""

from __future__ import annotations

import asyncio
import random

import pytest

from jobwire_server.broker.cancellations import Cancellations
from jobwire_server.broker.producer_frames import (
    Ended,
    FollowWish,
    ProducerFrame,
    ProducerNews,
    ToCancel,
    ToFollow,
)
from jobwire_server.broker.producer_session import MAX_UNANSWERED, ProducerSession
from jobwire_server.broker.producers import Producers
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model import Failure, JobState
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.watch import follows

from tests.support.brokers import Broker, running_broker
from tests.support.jobs import new_job, ulid_of
from tests.support.waiting import eventually

END, CHANGES = FollowWish(False, False), FollowWish(True, False)
FAILURE = Failure("Bad", "no", non_retryable=True)


class Listener:
    """A producer that hears everything, and checks that it hears each end once."""

    def __init__(self, broker: Broker) -> None:
        self.ends: dict[str, tuple[JobState, bytes]] = {}
        self.states: dict[str, list[JobState]] = {}
        self.lost: set[str] = set()
        self.answered: set[str] = set()
        self.early: set[str] = set()
        self.frames = 0
        self.session: ProducerSession = broker.router.producers.open(self._hear)

    async def _hear(self, news: ProducerNews) -> None:
        self.frames += 1
        for answer in news.answers:
            self.answered |= {one.job_id for one in answer.results if isinstance(one, tuple)}
        for end in news.ends:
            assert end.job_id not in self.ends
            if isinstance(end, Ended):
                self.ends[end.job_id] = JobState.SUCCEEDED, end.result
            else:
                self.ends[end.job_id] = end.state, end.result
        for change in news.changes.values():
            states = self.states.setdefault(change.job.job_id, [])
            assert not states or not states[-1].terminal
            states.append(change.job.state)
        self.lost |= {lost.job_id for lost in news.lost}
        # Nothing is told of a job before its submission is answered.
        self.early |= (self.ends.keys() | self.states.keys() | self.lost) - self.answered
        assert not self.early

    async def answer_to(self, job_id: JobId) -> None:
        await eventually(lambda: job_id in self.answered, "the answer")

    async def submit(self, job_ids: list[JobId], wish: FollowWish | None) -> None:
        jobs = [new_job(ulid=ulid_of(job_id)) for job_id in job_ids]
        wishes = [wish] * len(jobs) if wish else []
        await self.session.receive(ProducerFrame(1, jobs, wishes))


async def _end(broker: Broker, how: str, ulid: str, token: int) -> None:
    if how == "succeed":
        await broker.succeed("default", ulid, "w1", token, ulid.encode() * 4)
    elif how == "fail":
        await broker.fail("default", ulid, "w1", token, FAILURE)
    else:
        await broker.router.cancel_job("default", ulid, "")
        await broker.confirm_cancel("default", ulid, "w1", token)


@pytest.mark.parametrize("seed", range(6))
async def test_each_end_is_heard_once_whatever_comes_first(valkey_url: str, seed: int) -> None:
    dice = random.Random(seed)
    async with (
        running_broker(valkey_url) as here,
        running_broker(valkey_url, server_id="s2") as other,
    ):
        await here.register(lease_ms=3_600_000)
        listener = Listener(here)
        told = here.router.producers
        assert told.count == 1
        writer = here.parts.tasks.begin(listener.session.tell_what_comes())
        wanted: dict[str, FollowWish] = {}
        ended: dict[str, JobState] = {}
        late: list[JobId] = []
        for _ in range(60):
            what = dice.random()
            if what < 0.4:
                job_ids = [
                    job.job_id for job in (new_job() for _ in range(dice.choice([1, 1, 1, 5])))
                ]
                wish = dice.choice([None, END, END, CHANGES])
                await listener.submit(job_ids, wish)
                if wish:
                    wanted |= dict.fromkeys(job_ids, wish)
                else:
                    late += job_ids
            elif what < 0.6 and late:
                wish = dice.choice([END, CHANGES])
                picked = late.pop(dice.randrange(len(late)))
                await listener.answer_to(picked)
                await listener.session.receive(ProducerFrame(follows=[ToFollow(picked, wish)]))
                wanted[picked] = wish
            else:
                where = dice.choice([here, other])
                for assignment in await where.claim(most=dice.choice([1, 4])):
                    how = dice.choice(["succeed", "succeed", "fail", "cancel"])
                    await _end(where, how, ulid_of(assignment.job_id), assignment.fencing_token)
                    ended[assignment.job_id] = await where.state(ulid_of(assignment.job_id))

        def all_heard() -> bool:
            due = [job_id for job_id in wanted if job_id in ended]
            return all(
                listener.ends.get(job_id, ("",))[0] is ended[job_id]
                if wanted[job_id] is END
                else listener.states.get(job_id, [None])[-1] is ended[job_id]
                for job_id in due
            )

        await eventually(all_heard, "every end")
        assert not listener.lost
        for job_id, (state, result) in listener.ends.items():
            assert wanted[job_id] is END
            if state is JobState.SUCCEEDED:
                assert result == ulid_of(job_id).encode() * 4
        told.release(listener.session)
        await writer
        assert told.count == 0
        assert here.parts.follows.of("default") is None
        here.check()


async def test_ends_that_were_missed_are_found_when_the_events_come_again(
    valkey_broker: Broker,
) -> None:
    listener = Listener(valkey_broker)
    writer = valkey_broker.parts.tasks.begin(listener.session.tell_what_comes())
    job_id = new_job().job_id
    await listener.submit([job_id], END)
    await eventually(lambda: job_id in listener.answered, "the answer")
    # Nobody tells of this end.
    valkey_broker.client.hset(
        "jw:{default}:j:" + ulid_of(job_id), mapping={"s": int(JobState.CANCELLED), "pg": 1}
    )
    valkey_broker.client.client_kill_filter(_type="pubsub")
    await eventually(lambda: job_id in listener.ends, "the end")
    assert listener.ends[job_id][0] is JobState.CANCELLED
    valkey_broker.router.producers.release(listener.session)
    await writer


async def test_a_silent_producer_and_a_deaf_one_are_let_go(valkey_broker: Broker) -> None:
    producers = valkey_broker.router.producers
    silent, deaf = Listener(valkey_broker).session, Listener(valkey_broker).session
    silent.heard_at -= 60
    deaf.writing_since = deaf.heard_at - 60
    for session in silent, deaf:
        await eventually(session.ended.done, "the end of the stream")
        assert session.ended.exception() is not None
        producers.release(session)


async def test_a_quiet_stream_carries_signs_of_life(valkey_broker: Broker) -> None:
    listener = Listener(valkey_broker)
    writer = valkey_broker.parts.tasks.begin(listener.session.tell_what_comes())
    listener.session.told_at -= 60
    await eventually(lambda: listener.frames > 0, "a frame")
    valkey_broker.router.producers.release(listener.session)
    await writer


class Slow(Cancellations):
    """Cancels nothing before it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def cancel(self, queue: str, ulid: str, reason: str) -> JobState:
        await self.go_on.wait()
        return JobState.CANCELLED


async def test_a_producer_that_is_held_up_is_not_read_and_hears_that_the_server_lives(
    valkey_broker: Broker,
) -> None:
    parts, slow, heard = valkey_broker.parts, Slow(), list[ProducerNews]()

    async def hear(news: ProducerNews) -> None:
        heard.append(news)

    producers = Producers(
        parts.submissions, slow, parts.follows, parts.clock, BrokerOptions(), parts.tasks
    )
    producers.start()
    session = producers.open(hear)
    writer = parts.tasks.begin(session.tell_what_comes())
    items = [ToCancel("default", ulid_of(new_job().job_id), "")] * 1000
    for sequence in range(1, MAX_UNANSWERED // 1000):
        await session.receive(ProducerFrame(sequence, cancels=items))
    last = parts.tasks.begin(session.receive(ProducerFrame(9, cancels=items)))
    # Its question would not be read, and after some 1.5 s it takes silence for an answer.
    await eventually(lambda: len(heard) > 1, "signs of life", timeout_s=2.9)
    assert not any(heard)
    assert not last.done()
    slow.go_on.set()
    await last
    producers.release(session)
    await writer
    await producers.stop()


async def test_a_server_follows_as_many_jobs_as_it_may_and_then_those_of_others(
    valkey_broker: Broker,
) -> None:
    first, second = Listener(valkey_broker), Listener(valkey_broker)
    writers = [
        valkey_broker.parts.tasks.begin(each.session.tell_what_comes()) for each in (first, second)
    ]
    valkey_broker.parts.follows.room.left = 2
    kept = [new_job().job_id for _ in range(2)]
    await first.submit(kept, END)
    await first.answer_to(kept[1])
    refused = new_job().job_id
    await second.submit([refused], END)
    await eventually(lambda: refused in second.lost, "the refusal")
    await valkey_broker.router.cancel_job("default", ulid_of(kept[0]), "")
    await eventually(lambda: kept[0] in first.ends, "the end")
    await second.session.receive(ProducerFrame(follows=[ToFollow(refused, END)]))
    await valkey_broker.router.cancel_job("default", ulid_of(refused), "")
    await eventually(lambda: refused in second.ends, "the end")
    for each in first, second:
        valkey_broker.router.producers.release(each.session)
    assert valkey_broker.parts.follows.room.left == 2
    assert not first.early | second.early
    for writer in writers:
        await writer


async def test_a_job_that_changed_first_is_told_first_however_many_change_later(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follows, "READ_AT_ONCE", 2)
    listener = Listener(valkey_broker)
    writer = valkey_broker.parts.tasks.begin(listener.session.tell_what_comes())
    job_ids = [new_job().job_id for _ in range(6)]
    await listener.submit(job_ids, None)
    await listener.answer_to(job_ids[-1])
    for job_id in job_ids:
        await valkey_broker.router.cancel_job("default", ulid_of(job_id), "")
    wanted = [ToFollow(job_id, END) for job_id in job_ids]
    await listener.session.receive(ProducerFrame(follows=wanted))
    await eventually(lambda: len(listener.ends) == 6, "every end")
    assert [*listener.ends] == job_ids
    valkey_broker.router.producers.release(listener.session)
    await writer
