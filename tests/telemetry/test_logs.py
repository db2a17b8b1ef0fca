"""One line for each event, in the form that its reader wants."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from grpc._cython import cygrpc

from jobwire_server.telemetry.current_call import enter_call
from jobwire_server.telemetry.log_bounds import LINES_PER_S, MAX_EVENTS, Rate
from jobwire_server.telemetry.logs import configure_logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Context:
    """The metadata of a call."""

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [("x-request-id", "r-1")]


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_away_from_a_terminal_each_line_is_json_with_a_utc_time() -> None:
    stream = io.StringIO()
    assert not configure_logs("auto", "info", stream)
    structlog.get_logger("x").info("hello", n=1)
    (line,) = _lines(stream)
    assert (line["event"], line["n"], line["level"]) == ("hello", 1, "info")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])


def test_each_line_of_one_process_of_several_names_it() -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream, process=1)
    structlog.get_logger("x").info("hello")
    structlog.get_logger("x").info("of another", process=2)
    logging.getLogger("library").warning("careful")
    assert [line["process"] for line in _lines(stream)] == [1, 2, 1]


def test_on_a_terminal_lines_are_for_people() -> None:
    stream = Terminal()
    assert configure_logs("auto", "info", stream)
    structlog.get_logger("x").info("hello", n=1)
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_the_format_can_be_forced() -> None:
    stream = Terminal()
    assert not configure_logs("json", "info", stream)
    structlog.get_logger("x").info("hello")
    assert _lines(stream)[0]["event"] == "hello"


def test_what_is_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    configure_logs("json", "warning", stream)
    structlog.get_logger("x").info("no")
    structlog.get_logger("x").warning("yes")
    logging.getLogger("grpc").info("no")
    assert [line["event"] for line in _lines(stream)] == ["yes"]


def test_lines_of_libraries_come_in_the_same_form() -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    logging.getLogger("grpc._cython").warning("trouble with %s", "a call")
    (line,) = _lines(stream)
    assert (line["event"], line["logger"]) == ("trouble with a call", "grpc._cython")


def test_lines_of_a_call_carry_its_request_id_and_others_none() -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    structlog.get_logger("x").info("before")

    async def serve() -> None:
        enter_call(Context())
        structlog.get_logger("x").info("within")

    asyncio.run(serve())
    before, within = _lines(stream)
    assert "request_id" not in before
    assert within["request_id"] == "r-1"


def test_a_traceback_is_in_the_line_of_its_event() -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    try:
        raise ValueError("a defect")
    except ValueError as error:
        structlog.get_logger("x").error("failed", exc_info=error)
    (line,) = _lines(stream)
    assert line["exception"][0]["exc_value"] == "a defect"


def _fail_with(payload: str) -> None:
    secret = {"password": "p4ssw0rd", "payload": payload}
    try:
        raise ValueError(f"can't read {secret['payload']}")
    except ValueError as error:
        error.add_note(payload)
        raise KeyError(payload) from error


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_defect_with_a_megabyte_in_hand_logs_a_short_traceback(form: Any) -> None:
    stream = io.StringIO()
    configure_logs(form, "info", stream)
    payload = "payload " * (1 << 17)
    try:
        _fail_with(payload)
    except KeyError as error:
        structlog.get_logger("x").error("failed", exc_info=error, said=payload, many=[payload] * 3)
        logging.getLogger("library").error("failed: %s", payload, exc_info=error)
    written = stream.getvalue()
    assert "_fail_with" in written, "it says where"
    assert "p4ssw0rd" not in written, "it shows no variable"
    assert len(written) < 20_000


def test_no_event_fills_the_log_whoever_writes_it() -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    log, library = structlog.get_logger("x"), logging.getLogger("library")
    for at in range(1_000):
        log.warning("trouble", at=at)
        library.warning("trouble with %s", at)
    log.warning("something else")
    lines = _lines(stream)
    # A new second may have begun meanwhile.
    assert 100 < len(lines) <= 301
    assert "something else" in [line["event"] for line in lines]


def test_lines_that_were_left_out_are_counted() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert sum(rate.admits("a") for _ in range(80)) == LINES_PER_S
    assert rate.admits("b")
    now[0] = 1.0
    assert rate.admits("a")
    assert [rate.left_out("a"), rate.left_out("a"), rate.left_out("b")] == [30, 0, 0]


def test_events_that_somebody_makes_up_take_a_bounded_memory_and_share_one_bound() -> None:
    rate = Rate(lambda: 0.0)
    admitted = sum(rate.admits(f"made up {at}") for at in range(5_000))
    assert admitted == MAX_EVENTS + LINES_PER_S


def test_an_answer_whose_caller_has_left_is_not_told() -> None:
    lines = io.StringIO()
    configure_logs("json", stream=lines)
    grpc_log = logging.getLogger("grpc._cython.cygrpc")
    for error in (cygrpc.ExecuteBatchError("send", 8, ()), ValueError("odd")):
        try:
            raise error
        except Exception:
            grpc_log.exception("raised by servicer method")
    (line,) = lines.getvalue().splitlines()
    assert "odd" in line
