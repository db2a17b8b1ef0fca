"""The event loop of a server process, and the garbage collector under it."""

from __future__ import annotations

import gc

from jobwire_server.host.event_loop import GC_THRESHOLDS, calm_the_collector


def test_the_collector_is_calmed_once_everything_is_there() -> None:
    thresholds = gc.get_threshold()
    startup = [[one] for one in range(1_000)]
    gc.unfreeze()
    try:
        calm_the_collector()
        assert gc.get_threshold() == GC_THRESHOLDS
        assert gc.get_freeze_count() >= len(startup)
    finally:
        gc.set_threshold(*thresholds)
