"""Handlers as plain functions, called without a server."""

from __future__ import annotations

import threading

import pytest

from jobwire import Context, Report, Stopped

from tests.client import handlers


def test_a_handler_is_called_with_a_context_of_the_tests_own() -> None:
    context = Context.for_test(21, labels={"a": "b"}, fencing_token=9)
    assert handlers.double(context)["twice"] == 42
    assert context.reports == [Report(0.25, "early"), Report(0.75, "late")]
    assert (context.labels, context.fencing_token, context.attempt) == ({"a": "b"}, 9, 1)


def test_a_test_gives_the_signal_to_stop() -> None:
    context = Context.for_test()
    threading.Timer(0.01, context.cancel, ["enough"]).start()
    with pytest.raises(Stopped, match="enough"):
        handlers.wait_for_the_signal(context)
    assert context.stop_reason == "cancelled"


def test_fractions_are_moved_into_their_range() -> None:
    context = Context.for_test()
    for fraction in (-1, 1.0000001, float("nan"), None):
        context.progress(fraction)
    assert [report.fraction for report in context.reports] == [0.0, 1.0, None, None]


def test_a_long_message_is_cut_at_a_character() -> None:
    sent = Report(None, "ä" * 1000).to_proto().message
    assert sent == "ä" * 512


async def test_the_blocking_wait_is_refused_on_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="blocks"):
        Context.for_test().wait_cancelled(1)
