"""The attachment of a worker's stream as one call of the store."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import Superseded
from jobwire_server.domain.model import Former, WorkerStatus
from jobwire_server.store.upkeep import WHENEVER_MS
from jobwire_server.store.workers import SERVER_SILENT_MS, AnotherLives, SignOfLife, WorkerStore

from tests.support.jobs import worker_spec
from tests.support.scripts import Scripts


@pytest.mark.parametrize(
    ("before", "former"),
    [((), Former.NOBODY), (("old",), Former.HELD), (("new",), Former.SAME)],
)
async def test_a_repeated_attachment_is_told_the_same_about_the_former_process(
    scripts: Scripts, before: tuple[str, ...], former: Former
) -> None:
    for number, instance in enumerate(before):
        await scripts.workers.attach(worker_spec(), f"s1/{number}", instance)
    first = await scripts.workers.attach(worker_spec(), "s1/9", "new")
    assert first.former is former
    # The answer was lost, and the call is made again as it was.
    again = await scripts.workers.attach(worker_spec(), "s1/9", "new")
    assert again == first


async def test_a_repeated_attachment_keeps_what_an_operator_asked_for_meanwhile(
    scripts: Scripts,
) -> None:
    await scripts.workers.attach(worker_spec(), "s1/1", "new")
    await scripts.workers.set_status("w1", WorkerStatus.DRAINING)
    again = await scripts.workers.attach(worker_spec(), "s1/1", "new")
    assert again.status is WorkerStatus.DRAINING


async def test_a_later_attachment_is_not_taken_for_a_repeated_one(scripts: Scripts) -> None:
    await scripts.workers.attach(worker_spec(), "s1/1", "a")
    assert (await scripts.workers.attach(worker_spec(), "s1/2", "b")).former is Former.HELD
    assert (await scripts.workers.attach(worker_spec(), "s1/3", "b")).former is Former.SAME
    assert (await scripts.workers.attach(worker_spec(), "s1/4", "c")).former is Former.HELD


async def test_another_process_is_told_whether_the_former_one_is_dead_held_or_unheard_of(
    scripts: Scripts,
) -> None:
    async def look() -> None:
        await scripts.workers.sweep(10_000, 10_000, 1, WHENEVER_MS)

    first = await scripts.workers.attach(worker_spec(), "s1/1", "a")
    await scripts.workers.broken("w1", "s1/1", first.since_ms)
    other = WorkerStore(scripts.runner, "s2")
    assert (await other.attach(worker_spec(), "s2/1", "b")).former is Former.ENDED
    # The server of that one has never said a word.
    assert (await scripts.workers.attach(worker_spec(), "s1/2", "c")).former is Former.UNHEARD
    await look()
    assert (await other.attach(worker_spec(), "s2/2", "d")).former is Former.HELD
    await scripts.workers.attach(worker_spec(), "s1/3", "e")
    scripts.shift(SERVER_SILENT_MS)
    assert (await other.attach(worker_spec(), "s2/3", "f")).former is Former.UNHEARD


async def test_an_attempt_that_was_given_up_and_comes_late_disturbs_no_later_one(
    scripts: Scripts,
) -> None:
    """As when a server that was stopped goes on, and finds it in its queue."""
    first = await scripts.workers.attach(worker_spec(), "s1/1", "a", 1)
    newest = await scripts.workers.attach(worker_spec(), "s2/1", "a", 3)
    assert newest.since_ms > first.since_ms
    before = scripts.workers_dump()
    for attempt in (2, 3):
        with pytest.raises(Superseded) as late:
            await scripts.workers.attach(worker_spec(), "s1/2", "a", attempt)
        assert late.value.metadata["same_process"] == "true"
    assert scripts.workers_dump() == before
    # Another process begins to count anew.
    assert (await scripts.workers.attach(worker_spec(), "s1/3", "b", 1)).former is Former.HELD


@pytest.mark.parametrize("step", ["attach", "register"])
@pytest.mark.parametrize("known_by", ["a stream", "a stream that broke", "calls"])
async def test_an_id_is_not_taken_late_from_another_process_that_may_live(
    scripts: Scripts, known_by: str, step: str
) -> None:
    if known_by == "calls":
        await scripts.workers.register(worker_spec(), "a")
    else:
        first = await scripts.workers.attach(worker_spec(), "s1/1", "a")
        if known_by == "a stream that broke":
            await scripts.workers.broken("w1", "s1/1", first.since_ms)

    async def take(instance: str, not_after_ms: int) -> None:
        if step == "attach":
            await scripts.workers.attach(worker_spec(), "s2/1", instance, 1, not_after_ms)
        else:
            await scripts.workers.register(worker_spec(), instance, not_after_ms)

    before = scripts.workers_dump()
    for not_after_ms in (0, scripts.now_ms - 1_000):
        with pytest.raises(AnotherLives) as late:
            await take("b", not_after_ms)
        assert abs(late.value.now_ms - scripts.now_ms) < 5_000
    assert scripts.workers_dump() == before
    # The process itself is not another one; one in time takes the id, as does one of the lost.
    await take("a", 0)
    await take("b", scripts.now_ms + 60_000)
    scripts.shift(60_000)
    await scripts.workers.sweep(1_000, 60_000, 1, WHENEVER_MS)
    await take("c", 0)
    assert scripts.workers_dump()["w:w1"]["instance"] == "c"


async def test_a_newer_stream_supersedes_an_older_one_whatever_the_clock_does(
    scripts: Scripts,
) -> None:
    first = await scripts.workers.attach(worker_spec(), "s1/1", "a")
    scripts.shift(-40_000)
    second = await scripts.workers.attach(worker_spec(), "s2/1", "b")
    assert second.since_ms == first.since_ms + 1
    older, newer = await scripts.workers.touch(
        [
            SignOfLife("w1", "s1/1", first.since_ms, "a"),
            SignOfLife("w1", "s2/1", second.since_ms, "b"),
        ]
    )
    assert isinstance(older, Superseded)
    assert older.metadata["same_process"] == "false"
    assert newer is WorkerStatus.READY


async def test_a_store_that_lost_an_attachment_learns_it_from_the_stream_that_holds(
    scripts: Scripts,
) -> None:
    """As after a failover: the new primary knows the stream before, and no later one."""
    await scripts.workers.attach(worker_spec(), "s1/1", "a", 1)
    lost_ms = (await scripts.workers.read("w1")).registered_at_ms + 5_000  # type: ignore[union-attr]
    sign = SignOfLife("w1", "s2/1", lost_ms, "a")
    assert await scripts.workers.touch([sign]) == [WorkerStatus.READY]
    fields = scripts.workers_dump()["w:w1"]
    assert (fields["session"], fields["since"], fields["up"]) == ("s2/1", str(lost_ms), "1")
    # The stream that the store knew of is the older one from now on.
    (older,) = await scripts.workers.touch([SignOfLife("w1", "s1/1", lost_ms - 5_000, "a")])
    assert isinstance(older, Superseded)
    assert older.metadata["same_process"] == "true"


@pytest.mark.parametrize("step", ["broken", "gone", "remove"])
async def test_a_store_that_lost_an_attachment_believes_its_end_as_well(
    scripts: Scripts, step: str
) -> None:
    first = await scripts.workers.attach(worker_spec(), "s1/1", "a", 1)
    stream = ("w1", "s2/1", first.since_ms + 5_000)
    if step == "broken":
        assert await scripts.workers.broken(*stream)
        assert scripts.workers_dump()["w:w1"]["up"] == "0"
    elif step == "gone":
        gone = scripts.workers.gone(*stream, retain_ms=1, not_after_ms=WHENEVER_MS, lives=False)
        assert await gone is True
    else:
        assert await scripts.workers.remove(*stream)
        assert "w:w1" not in scripts.workers_dump()


async def test_the_end_of_a_window_that_the_store_slept_through_loses_nobody(
    scripts: Scripts,
) -> None:
    first = await scripts.workers.attach(worker_spec(), "s1/1", "a", 1)
    stream = ("w1", "s1/1", first.since_ms)
    now_ms = await scripts.workers.broken(*stream)
    scripts.shift(60_000)
    late = scripts.workers.gone(*stream, retain_ms=1, not_after_ms=now_ms + 5_000, lives=False)
    assert await late is None
    worker = await scripts.workers.read("w1")
    assert worker is not None
    assert worker.status is WorkerStatus.READY
