"""Group commit: who is gathered with whom, and what each is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobwire_server.domain.errors import ServerBusy, StoreUnavailable
from jobwire_server.store import group_commit
from jobwire_server.store.group_commit import (
    BUSY_REQUESTS,
    DRY_PASSES,
    LONE_CALLS,
    Backlog,
    GroupCommit,
)

from tests.support.waiting import eventually


class Writer:
    """Takes calls and answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    def answer(self) -> None:
        """Answers the call under way, and none that comes."""
        gate, self.gate = self.gate, asyncio.Event()
        gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append([*items])
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [10 * item for item in items]


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(100, 1000)


@pytest.fixture
def group(writer: Writer, backlog: Backlog) -> GroupCommit[int, int]:
    return GroupCommit(writer, backlog, max_items=5)


async def test_what_arrives_during_a_call_goes_together_in_the_next(
    group: GroupCommit[int, int], writer: Writer
) -> None:
    first = asyncio.create_task(group.one(1))
    await eventually(lambda: writer.calls == [[1]], "the first call")
    others = [asyncio.create_task(group.submit([item, item + 1])) for item in (2, 4)]
    await asyncio.sleep(0)
    assert writer.calls == [[1]]
    writer.gate.set()
    assert await first == 10
    assert [await other for other in others] == [[20, 30], [40, 50]]
    assert writer.calls == [[1], [2, 3, 4, 5]]


async def test_a_call_holds_no_more_than_its_limit_but_a_request_is_not_torn(
    group: GroupCommit[int, int], writer: Writer
) -> None:
    writer.gate.set()
    requests = [[1, 2], [3, 4], [5, 6], [*range(10, 18)], [7]]
    answers = await asyncio.gather(*(group.submit(items) for items in requests))
    assert answers == [[10 * item for item in items] for items in requests]
    assert writer.calls == [[1, 2, 3, 4], [5, 6], [*range(10, 18)], [7]]


async def test_a_call_brings_about_so_many_bytes_and_a_larger_request_goes_alone(
    writer: Writer, backlog: Backlog
) -> None:
    mib = 1 << 20
    backlog.limit_bytes = 100 * mib
    group: GroupCommit[int, int] = GroupCommit(writer, backlog, weigh=lambda item: item * mib)
    writer.gate.set()
    requests = [[1, 1], [2], [1], [9], [1]]
    answers = await asyncio.gather(*(group.submit(items) for items in requests))
    assert answers == [[10 * item for item in items] for items in requests]
    assert writer.calls == [[1, 1, 2], [1], [9], [1]]
    assert (backlog.waiting, backlog.waiting_bytes) == (0, 0)


async def test_more_bytes_than_may_wait_are_refused_and_counted_out_again(
    writer: Writer, backlog: Backlog
) -> None:
    group: GroupCommit[int, int] = GroupCommit(writer, backlog, weigh=lambda item: item)
    waiting = asyncio.create_task(group.submit([400, 500]))
    await eventually(lambda: writer.calls == [[400, 500]], "the first call")
    with pytest.raises(ServerBusy, match="900 bytes"):
        await group.one(101)
    last = asyncio.create_task(group.one(100))
    writer.gate.set()
    await asyncio.gather(waiting, last)
    assert (backlog.waiting, backlog.waiting_bytes) == (0, 0)


async def test_one_caller_that_goes_away_does_not_touch_the_others(
    group: GroupCommit[int, int], writer: Writer, backlog: Backlog
) -> None:
    first = asyncio.create_task(group.one(1))
    await eventually(lambda: writer.calls == [[1]], "the first call")
    leaving, staying = (asyncio.create_task(group.one(item)) for item in (2, 3))
    await asyncio.sleep(0)
    first.cancel()
    leaving.cancel()
    await asyncio.gather(first, leaving, return_exceptions=True)
    writer.gate.set()
    assert await staying == 30
    # What had not been sent is not sent; what had been is not called back.
    assert writer.calls == [[1], [3]]
    assert backlog.waiting == 0


async def test_an_error_goes_to_every_caller_of_the_call_and_the_next_call_is_made(
    group: GroupCommit[int, int], writer: Writer, backlog: Backlog
) -> None:
    writer.error = StoreUnavailable("away")
    first = asyncio.create_task(group.one(1))
    await eventually(lambda: bool(writer.calls), "the first call")
    second = [asyncio.create_task(group.one(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    writer.gate.set()
    results = await asyncio.gather(first, *second, return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    writer.error = None
    assert await group.one(4) == 40
    assert writer.calls == [[1], [2, 3], [4]]
    assert backlog.waiting == 0


async def test_beyond_the_limit_a_request_is_refused_whole_and_nothing_of_it_waits(
    group: GroupCommit[int, int], writer: Writer, backlog: Backlog
) -> None:
    backlog.limit = 3
    held = asyncio.create_task(group.submit([1, 2]))
    await eventually(lambda: writer.calls == [[1, 2]], "the first call")
    with pytest.raises(ServerBusy) as refused:
        await group.submit([3, 4])
    assert refused.value.retry_after_ms
    assert backlog.waiting == 2
    third = asyncio.create_task(group.one(5))
    await asyncio.sleep(0)
    writer.gate.set()
    await asyncio.gather(held, third)
    assert writer.calls == [[1, 2], [5]]
    assert backlog.waiting == 0


async def test_a_lone_caller_is_never_held_up(writer: Writer, backlog: Backlog) -> None:
    group = GroupCommit(writer, backlog, linger_s=60.0)
    writer.gate.set()
    async with asyncio.timeout(5):
        for item in range(20):
            assert await group.one(item) == 10 * item


async def test_requests_that_come_turn_by_turn_share_a_call(
    writer: Writer, backlog: Backlog
) -> None:
    group = GroupCommit(writer, backlog, linger_s=60.0)
    writer.gate.set()
    await group.one(-1)
    callers = []
    for item in range(20):
        callers.append(asyncio.create_task(group.one(item)))
        await asyncio.sleep(0)
    await asyncio.gather(*callers)
    assert writer.calls == [[-1], list(range(20))]


async def test_under_load_requests_are_gathered_by_the_clock(
    writer: Writer, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long beside the turns of the loop below, however busy the machine is.
    monkeypatch.setattr(group_commit, "TICK_S", 2.0)
    group = GroupCommit(writer, backlog, linger_s=60.0)
    writer.gate.set()
    await group.one(-1)
    await asyncio.gather(*(group.one(item) for item in range(BUSY_REQUESTS)))
    writer.calls.clear()
    first = [asyncio.create_task(group.one(item)) for item in range(3)]
    # Many turns of the loop without a request, and hardly any time.
    for _ in range(3 * DRY_PASSES):
        await asyncio.sleep(0)
    second = [asyncio.create_task(group.one(item)) for item in range(3, 6)]
    await asyncio.gather(*first, *second)
    assert writer.calls == [list(range(6))]


async def test_a_full_call_goes_without_waiting_for_more(writer: Writer, backlog: Backlog) -> None:
    group = GroupCommit(writer, backlog, max_items=4, linger_s=60.0)
    writer.gate.set()
    await group.one(-1)
    await group.submit([1, 2, 3, 4])
    assert writer.calls == [[-1], [1, 2, 3, 4]]


async def test_after_a_pause_a_request_waits_for_nobody(writer: Writer, backlog: Backlog) -> None:
    group = GroupCommit(writer, backlog, linger_s=60.0)
    first = asyncio.create_task(group.one(1))
    await eventually(lambda: writer.calls == [[1]], "the first call")
    second = asyncio.create_task(group.one(2))
    writer.gate.set()
    await asyncio.gather(first, second)
    assert writer.calls == [[1], [2]]


async def test_without_a_linger_a_call_goes_at_once(writer: Writer, backlog: Backlog) -> None:
    group = GroupCommit(writer, backlog)
    first = asyncio.create_task(group.one(1))
    await eventually(lambda: writer.calls == [[1]], "the first call")
    second = asyncio.create_task(group.one(2))
    writer.gate.set()
    await asyncio.gather(first, second)
    assert writer.calls == [[1], [2]]


async def test_when_the_work_is_cancelled_nobody_who_waits_behind_it_hangs(
    group: GroupCommit[int, int], writer: Writer, backlog: Backlog
) -> None:
    first = asyncio.create_task(group.one(1))
    await eventually(lambda: writer.calls == [[1]], "the first call")
    second = asyncio.create_task(group.one(2))
    await eventually(lambda: backlog.waiting == 2, "another waits")
    writer.answer()
    assert await first == 10
    await eventually(lambda: writer.calls == [[1], [2]], "the second call")
    behind = asyncio.create_task(group.one(3))
    await eventually(lambda: backlog.waiting == 2, "another waits")
    (work,) = (task for task in asyncio.all_tasks() if task.get_name() == "group-commit")
    work.cancel()
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(second, behind, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    assert backlog.waiting == 0


async def test_a_lone_caller_that_goes_away_leaves_nobody_waiting(
    writer: Writer, backlog: Backlog
) -> None:
    group = GroupCommit(writer, backlog, linger_s=60.0, with_caller=True)
    for _ in range(3):
        writer.gate = asyncio.Event()
        leaving = asyncio.create_task(group.one(1))
        await eventually(lambda: bool(writer.calls), "the first call")
        others = [asyncio.create_task(group.one(item)) for item in (2, 3)]
        await eventually(lambda: backlog.waiting == 3, "the others wait")
        leaving.cancel()
        writer.gate.set()
        async with asyncio.timeout(5):
            assert await asyncio.gather(*others) == [20, 30]
        assert leaving.cancelled()
        assert writer.calls == [[1], [2, 3]]
        assert backlog.waiting == 0
        writer.calls.clear()
        await become_lone(group)
        writer.calls.clear()


async def become_lone(group: GroupCommit[int, int]) -> None:
    """Brings so many lone calls that the next one goes at once."""
    # The first of them may share its call's past with others.
    for _ in range(LONE_CALLS + 1):
        await group.one(0)


@pytest.mark.parametrize(("with_caller", "turns"), [(True, 1), (False, 2)])
async def test_after_some_lone_calls_the_next_goes_at_once(
    writer: Writer,
    backlog: Backlog,
    monkeypatch: pytest.MonkeyPatch,
    with_caller: bool,
    turns: int,
) -> None:
    monkeypatch.setattr(group_commit, "IDLE_S", 60.0)
    group = GroupCommit(writer, backlog, linger_s=60.0, with_caller=with_caller)
    writer.gate.set()
    await become_lone(group)
    writer.calls.clear()
    lone = asyncio.create_task(group.one(1))
    for _ in range(turns):
        assert writer.calls == []
        await asyncio.sleep(0)
    assert writer.calls == [[1]]
    assert await lone == 10


async def test_what_is_written_without_its_caller_is_written_when_that_goes_away(
    backlog: Backlog,
) -> None:
    written = []
    gate = asyncio.Event()

    async def write(items: Sequence[int]) -> Sequence[int]:
        await gate.wait()  # for a store that is away
        written.extend(items)
        return items

    group: GroupCommit[int, int] = GroupCommit(write, backlog, linger_s=60.0)
    gate.set()
    await become_lone(group)
    written.clear()
    gate.clear()
    leaving = asyncio.create_task(group.one(1))
    await eventually(lambda: backlog.waiting == 1, "the call is made")
    for _ in range(3):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    gate.set()
    await eventually(lambda: written == [1], "it is written")


async def test_a_request_that_comes_during_a_lone_call_has_the_next_ones_gathered(
    writer: Writer, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "IDLE_S", 60.0)
    group = GroupCommit(writer, backlog, linger_s=60.0, with_caller=True)
    writer.gate.set()
    await become_lone(group)
    writer.calls.clear()
    writer.gate.clear()
    callers = [asyncio.create_task(group.one(1))]
    await eventually(lambda: writer.calls == [[1]], "the lone call")
    callers.append(asyncio.create_task(group.one(2)))
    await asyncio.sleep(0)
    writer.gate.set()
    for item in range(3, 10):
        await asyncio.sleep(0)
        callers.append(asyncio.create_task(group.one(item)))
    await asyncio.gather(*callers)
    assert writer.calls == [[1], [*range(2, 10)]]


@given(
    with_caller=st.booleans(),
    steps=st.lists(
        st.sampled_from(["come", "come", "turn", "turns", "answer", "leave"]), max_size=60
    ),
)
async def test_whoever_comes_and_goes_each_who_stays_is_answered(
    with_caller: bool, steps: list[str]
) -> None:
    writer, backlog = Writer(), Backlog(1_000, 1_000)
    group = GroupCommit(writer, backlog, max_items=5, linger_s=60.0, with_caller=with_caller)
    callers: list[asyncio.Task[int]] = []
    for step in steps:
        match step:
            case "come":
                callers.append(asyncio.create_task(group.one(len(callers))))
            case "turn":
                await asyncio.sleep(0)
            case "turns":
                for _ in range(2 * DRY_PASSES):
                    await asyncio.sleep(0)
            case "answer":
                writer.answer()
            case "leave" if callers:
                callers[len(steps) % len(callers)].cancel()
    writer.gate.set()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*callers, return_exceptions=True)
    for item, answer in enumerate(answers):
        assert isinstance(answer, asyncio.CancelledError) or answer == 10 * item
    sent = [item for call in writer.calls for item in call]
    assert len({*sent}) == len(sent)
    assert backlog.waiting == 0
    assert await asyncio.wait_for(group.one(7), 5) == 70
