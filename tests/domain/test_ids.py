"""Job ids: sortable, unique, and read back."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobwire_server.domain import ids
from jobwire_server.domain.ids import (
    ALPHABET,
    QUEUE,
    ULID,
    UlidFactory,
    is_job_id_of,
    job_id_of,
    job_ids_in,
    job_ids_of,
    split_job_id,
    split_ulids,
)


def ulid_time_ms(ulid: str) -> int:
    """Return the Unix time in milliseconds that a ULID begins with."""
    value = 0
    for character in ulid[:10]:
        value = value * 32 + ALPHABET.index(character)
    return value


def test_ids_of_one_millisecond_and_of_a_clock_that_steps_back_still_grow() -> None:
    moments = iter([5_000, 5_000, 5_001, 4_000, 5_001, 6_000])
    make = UlidFactory(lambda: next(moments))
    ulids = [make() for _ in range(6)]
    assert ulids == sorted(set(ulids))
    assert [ulid_time_ms(ulid) for ulid in ulids] == [5_000, 5_000, 5_001, 5_001, 5_001, 6_000]


def test_an_id_has_26_characters_of_the_alphabet_and_its_time() -> None:
    ulid = UlidFactory(lambda: 1_700_000_000_123)()
    assert len(ulid) == 26
    assert set(ulid) <= set(ALPHABET)
    assert ulid_time_ms(ulid) == 1_700_000_000_123


def test_a_millisecond_that_runs_out_of_numbers_borrows_the_next() -> None:
    # More than it asks for, so that it begins with the last number there is.
    make = UlidFactory(lambda: 7_000, lambda count: ((2 << 8 * count) - 1).to_bytes(count + 1))
    first = make()
    second = make()
    assert second > first
    assert ulid_time_ms(second) == 7_001


def test_a_factory_makes_the_ids_of_a_queue_s_jobs() -> None:
    job_id = UlidFactory(lambda: 1_700_000_000_123).job_id("a-b")
    assert split_job_id(job_id) == ("a-b", job_id[ULID])
    assert ulid_time_ms(job_id[ULID]) == 1_700_000_000_123


def test_two_factories_do_not_make_the_same_ids() -> None:
    factories = [UlidFactory(lambda: 1) for _ in range(20)]
    assert len({make() for make in factories for _ in range(50)}) == 1_000


@pytest.mark.parametrize(
    "queue", ["a", "default", "a.b_c-d", "x" * 63, "a-01m838ds15aqv2h8gfh66rc0h7"]
)
def test_a_job_id_tells_its_queue(queue: str) -> None:
    ulid = UlidFactory(lambda: 1_700_000_000_000)()
    job_id = job_id_of(queue, ulid)
    assert job_id == f"{queue}-{ulid}"
    assert (job_id[QUEUE], job_id[ULID]) == split_job_id(job_id) == (queue, ulid)
    assert is_job_id_of(queue, job_id)
    assert not is_job_id_of("other", job_id)


def test_ids_come_in_batches_as_the_store_returns_them() -> None:
    make = UlidFactory(lambda: 1_700_000_000_000)
    ulids = [make() for _ in range(3)]
    assert job_ids_of("a", [ulid.encode() for ulid in ulids]) == [f"a-{ulid}" for ulid in ulids]
    named = [SimpleNamespace(queue=queue, ulid=ulids[0]) for queue in ("a", "b")]
    assert job_ids_in(named) == [f"a-{ulids[0]}", f"b-{ulids[0]}"]
    assert split_ulids("".join(ulids)) == ulids
    assert split_ulids("") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "default",
        "01m838ds15aqv2h8gfh66rc0h7",
        "-01m838ds15aqv2h8gfh66rc0h7",
        "Default-01m838ds15aqv2h8gfh66rc0h7",
        "default-01M838DS15AQV2H8GFH66RC0H7",
        "default-81m838ds15aqv2h8gfh66rc0h7",
        "default-01m838ds15aqv2h8gfh66rc0hu",
        "default-01m838ds15aqv2h8gfh66rc0h",
        "default-01m838ds15aqv2h8gfh66rc0h7\n",
        "x" * 64 + "-01m838ds15aqv2h8gfh66rc0h7",
        "de}fault-01m838ds15aqv2h8gfh66rc0h7",
    ],
)
def test_what_is_no_job_id_is_refused(text: str) -> None:
    assert split_job_id(text) is None
    assert not is_job_id_of("default", text)


def test_nobody_else_makes_an_id_or_takes_one_apart_by_hand() -> None:
    by_hand = re.compile(r"\[-2[67]:|\[:-2[67]\]|-\{[a-z_.]*ulid")
    server = Path(ids.__file__).parent.parent
    found = [
        (str(path.relative_to(server)), line.strip())
        for path in server.rglob("*.py")
        if path != Path(ids.__file__)
        for line in path.read_text("utf-8").splitlines()
        if by_hand.search(line)
    ]
    assert found == []
