"""submit_claim.lua does what submit.lua and claim.lua do one behind the other, whatever happens."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobwire_server.domain.decisions.endings import Budget, Ending
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import UlidFactory
from jobwire_server.domain.model import (
    Accepted,
    Assignment,
    JobState,
    NewJob,
    Outcome,
    RequestId,
    UniqueConflict,
    UniqueKey,
    UniqueScope,
)
from jobwire_server.store import keys
from jobwire_server.store.attempts import EndToWrite
from jobwire_server.store.claims import Claimed, ClaimRequest

from tests.support.dump import check_invariants, dump_queue
from tests.support.jobs import new_job, ulid_of
from tests.support.scripts import GRACE_MS, RETAIN_MS, AnswerLost, Scripts

UNIT_MS = 100_000
"""All moments of a schedule are multiples of it, and a schedule takes much less."""
MOMENT = re.compile(r"(?<!\d)1[789]\d{11}(?!\d)|1[789]\d{11}$")
"""Also behind a ULID, which ends in any digits."""
STEPS = 20
OPERATIONS = ("work", "other", "third")
WORKERS = ("w1", "w2", "w3")
S = JobState

Answers = list[Accepted | JobwireError]


class Channel:
    """What scripts publish on one channel of a queue."""

    def __init__(self, scripts: Scripts, name: str) -> None:
        self._client = scripts.client
        self._name = name
        self._pubsub = scripts.client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.ssubscribe(name)

    def heard(self) -> list[bytes]:
        """Everything since the last time."""
        self._client.execute_command("SPUBLISH", self._name, b"!")
        found: list[bytes] = []
        while found[-1:] != [b"!"]:
            message = self._pubsub.get_message(timeout=5.0)
            if message is not None:
                found.append(message["data"])
        return found[:-1]

    def close(self) -> None:
        """Listen no more."""
        self._pubsub.close()


class Way:
    """One way to hand jobs over, on a queue of its own."""

    def __init__(self, scripts: Scripts, queue: str) -> None:
        self.scripts = scripts
        self.queue = queue
        self.unheard: list[tuple[str, str, int]] = []
        self.known: set[str] = set()
        """The records that were there before the latest step."""
        self.ready = Channel(scripts, keys.ready_channel(queue))
        self.events = Channel(scripts, keys.events_channel(queue))

    def own(self, jobs: Sequence[NewJob]) -> list[NewJob]:
        """The jobs, as they are in this queue."""
        return [
            job._replace(queue=self.queue, job_id=f"{self.queue}-{ulid_of(job)}") for job in jobs
        ]

    def on_unheard(self, worker_id: str, assignments: Sequence[Assignment]) -> None:
        """Take note of leases that nobody heard of."""
        self.unheard += [(worker_id, ulid_of(a.job_id), a.fencing_token) for a in assignments]

    async def hand_over(
        self, jobs: Sequence[NewJob], requests: Sequence[ClaimRequest], limits: tuple[int, int]
    ) -> tuple[Answers, list[Claimed]]:
        """In two steps; where both answers are lost, one behind the other again."""
        runner, store = self.scripts.runner, self.scripts.jobs
        again, lost = runner.asks_twice_next, runner.loses_next
        runner.asks_twice_next = runner.loses_next = False
        if again:
            await store.submit(self.queue, self.own(jobs), RETAIN_MS, *limits)
            runner.loses_next = True
            with pytest.raises(AnswerLost):
                await self.claim(requests)
            # Private: a repeat of the same call, by its number, which the store makes for each.
            store._claim_calls -= 1
        accepted = await store.submit(self.queue, self.own(jobs), RETAIN_MS, *limits)
        runner.loses_next = lost
        return accepted, await self.claim(requests)

    async def claim(self, requests: Sequence[ClaimRequest]) -> list[Claimed]:
        """Claim by itself."""
        return await self.scripts.jobs.claim(self.queue, requests, RETAIN_MS, self.on_unheard)

    def state(self) -> dict[str, Any]:
        """All that the queue holds, with moments in units; not how its last claim is remembered."""
        dump = check_invariants(self.scripts.client, self.queue).keys
        # Two steps may leave a 0 behind where one leaves nothing.
        counts = dump.get("counts", {})
        dump["counts"] = {state: count for state, count in counts.items() if count != "0"}
        return {
            key: _in_units(value, f"{self.queue}-")
            for key, value in dump.items()
            if not key.startswith("claimed:") and key != "log"
        }

    def close(self) -> None:
        """Listen no more."""
        self.ready.close()
        self.events.close()


class OneStep(Way):
    """The way of submit_claim.lua."""

    async def hand_over(
        self, jobs: Sequence[NewJob], requests: Sequence[ClaimRequest], limits: tuple[int, int]
    ) -> tuple[Answers, list[Claimed]]:
        store = self.scripts.jobs
        number = store.next_claim()
        return await store.submit_claim(
            self.queue, self.own(jobs), RETAIN_MS, limits, requests, number, self.on_unheard
        )


def _in_units(value: Any, of_queue: str) -> Any:
    """Moments in units, and ids of jobs without the queue."""
    match value:
        case bytes():
            return _in_units(value.decode(errors="surrogateescape"), of_queue)
        case str():
            value = value.replace(of_queue, "")
            return MOMENT.sub(lambda found: str(int(found[0]) // UNIT_MS), value)
        case float():
            return value // UNIT_MS if value > 1e12 else value
        case list():
            return [_in_units(one, of_queue) for one in value]
        case dict():
            return {key: _in_units(one, of_queue) for key, one in value.items()}
    return value


def _told(answers: Answers) -> list[Any]:
    return [
        (ulid_of(answer.job_id), *answer[1:]) if isinstance(answer, Accepted) else type(answer)
        for answer in answers
    ]


def _brought(claimed: Sequence[Claimed]) -> list[Any]:
    return [([(ulid_of(a.job_id), *a[1:]) for a in one.assignments], one.more) for one in claimed]


def _counts(notices: Sequence[bytes]) -> Counter[str]:
    found: Counter[str] = Counter()
    for notice in notices:
        for part in notice.decode().split(","):
            route, count = part.split(":")
            found[route] += int(count)
    return found


def _ulids(events: Sequence[bytes]) -> set[str]:
    text = b"".join(event.split(b"#")[-1].rstrip(b"+") for event in events).decode()
    return {text[at : at + 26] for at in range(0, len(text), 26)}


@dataclass
class Drawer:
    """Draws what happens."""

    rng: random.Random
    scripts: Scripts
    jobs: list[NewJob] = field(default_factory=list)
    """Those that were submitted."""

    def __post_init__(self) -> None:
        rng, scripts = self.rng, self.scripts
        # In the middle of a unit, so that no priority counts as another one meanwhile.
        self._ulid = UlidFactory(
            lambda: scripts.now_ms // UNIT_MS * UNIT_MS - UNIT_MS // 2, rng.randbytes
        )

    def job(self) -> NewJob:
        """A job, perhaps one that was submitted before."""
        rng = self.rng
        if self.jobs and rng.random() < 0.15:
            return rng.choice(self.jobs)
        now = self.scripts.now_ms // UNIT_MS * UNIT_MS
        chance = rng.random()
        job = new_job(
            ulid=self._ulid(),
            operation=rng.choice(OPERATIONS),
            requirements={"gpu": "a100"} if rng.random() < 0.2 else None,
            priority=rng.choice((0, 0, 0, 1, 7)),
            payload="x" * rng.choice((1, 1, 300)),
            run_at_ms=now + rng.choice((-1, 1)) * UNIT_MS if chance < 0.1 else 0,
            delay_ms=UNIT_MS if 0.1 <= chance < 0.2 else 0,
            expires_at_ms=now + rng.choice((-1, 2)) * UNIT_MS if 0.2 <= chance < 0.3 else 0,
            deadline_ms=now + rng.choice((-1, 3)) * UNIT_MS if 0.3 <= chance < 0.4 else 0,
            execution_timeout_ms=2 * UNIT_MS if 0.4 <= chance < 0.5 else 0,
            request=RequestId(f"r{rng.randrange(6)}", "d" * 32) if rng.random() < 0.15 else None,
            unique=self._unique() if rng.random() < 0.15 else None,
        )
        self.jobs.append(job)
        return job

    def _unique(self) -> UniqueKey:
        rng = self.rng
        return UniqueKey(
            rng.choice("ab"),
            rng.choice([*UniqueScope]),
            4 * UNIT_MS,
            rng.choice([*UniqueConflict]),
        )

    def requests(self) -> list[ClaimRequest]:
        """What workers want that wait."""
        rng = self.rng
        plain = [new_job(operation=operation).route.id for operation in OPERATIONS]
        able = [new_job(operation=o, requirements={"gpu": "a100"}).route.id for o in OPERATIONS]
        return [
            ClaimRequest(
                worker,
                rng.randint(1, 3),
                rng.choice((1, 5)) * UNIT_MS,
                tuple(sorted(rng.sample(plain + able, rng.randint(1, 4)))),
                rng.choice((0, 0, 200)),
            )
            for worker in rng.sample(WORKERS, rng.randint(1, 3))
        ]

    def limits(self) -> tuple[int, int]:
        """Of the queue, most often none."""
        return self.rng.choice(((0, 0), (0, 0), (6, 0), (0, 2_000)))


async def _between(kind: int, rng: random.Random, way: Way) -> None:
    """What others do meanwhile, drawn alike for both ways."""
    scripts, queue = way.scripts, way.queue
    leases = sorted(dump_queue(scripts.client, queue).get("leases", {}))
    if kind == 0:
        await scripts.queues.set_paused(queue, rng.random() < 0.5)
    elif kind == 1:
        await scripts.queues.configure(queue, {"priority_ageing_ms": rng.choice((0, UNIT_MS))})
    elif kind == 2:
        await scripts.upkeep.tick(queue, 200, RETAIN_MS, 5_000, 13)
    elif kind == 3:
        plain = [new_job(operation=operation).route.id for operation in OPERATIONS]
        await way.claim([ClaimRequest("w4", 2, 3 * UNIT_MS, tuple(sorted(plain)))])
    elif kind in (4, 5) and leases:
        (job,) = await scripts.jobs.read(queue, [rng.choice(leases)], full=True)
        assert job is not None
        if kind == 4:
            await scripts.jobs.cancel(queue, [(ulid_of(job.job_id), "why")], GRACE_MS, RETAIN_MS)
        elif job.state is S.RUNNING:
            await _give_back(scripts, queue, ulid_of(job.job_id))


async def _give_back(scripts: Scripts, queue: str, ulid: str) -> None:
    (job,) = await scripts.jobs.read(queue, [ulid], full=True)
    assert job is not None
    ending = Ending(Outcome.RELEASED, S.PENDING, Budget.INTERRUPTIONS, 0)
    await scripts.jobs.end_attempts(queue, [EndToWrite(job, "worker", ending)], RETAIN_MS)


@pytest.mark.parametrize("seed", range(5))
async def test_it_is_the_same_as_a_submission_and_a_claim_right_behind_it(
    scripts: Scripts, seed: int
) -> None:
    rng = random.Random(seed)
    # Every schedule begins at the begin of a unit.
    scripts.shift(-scripts.now_ms % UNIT_MS)
    drawer = Drawer(rng, scripts)
    one, two = OneStep(scripts, "one"), Way(scripts, "two")
    try:
        for _ in range(STEPS):
            kind, chance = rng.randrange(8), rng.random()
            for way in (one, two):
                await _between(kind, random.Random(chance), way)
            if rng.random() < 0.4:
                scripts.shift(UNIT_MS)
            for way in (one, two):
                way.ready.heard()
                way.events.heard()
            jobs = [drawer.job() for _ in range(rng.randint(1, 4))]
            await _compare(one, two, jobs, drawer.requests(), drawer.limits(), rng.random())
    finally:
        one.close()
        two.close()


async def _compare(
    one: Way,
    two: Way,
    jobs: Sequence[NewJob],
    requests: Sequence[ClaimRequest],
    limits: tuple[int, int],
    chance: float,
) -> None:
    runner = one.scripts.runner
    before = one.known
    found: list[tuple[Answers, list[Claimed]]] = []
    for way in (one, two):
        runner.asks_twice_next, runner.loses_next = chance < 0.2, chance > 0.85
        try:
            found.append(await way.hand_over(jobs, requests, limits))
        except AnswerLost:
            found.append(([], []))
    (accepted, claimed), (accepted_then, claimed_then) = found
    if chance <= 0.85:
        assert _told(accepted) == _told(accepted_then)
        assert _brought(claimed) == _brought(claimed_then)
    now = one.state()
    assert now == two.state()
    one.known = {name for name in now if name.startswith("r:")}
    assert one.unheard == two.unheard
    events, events_then = one.events.heard(), two.events.heard()
    assert _ulids(events) == _ulids(events_then)
    assert all(e.endswith(b"+") for e in events) == all(e.endswith(b"+") for e in events_then)
    # What was handed over at once is not announced, everything else is.
    handed_over = Counter(
        job.route.id
        for ulid, job in {ulid_of(job): job for job in jobs}.items()
        if f"r:{ulid}" not in before and "t" in now.get(f"j:{ulid}", {})
    )
    assert _counts(one.ready.heard()) == _counts(two.ready.heard()) - handed_over
