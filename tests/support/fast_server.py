"""`jobwire serve` with a fast clock: `python -m tests.support.fast_server EPOCH BASE SPEED FLAGS…`.

The server's own code is what it always is. Only the shift of the store's clock that it hands to
scripts, 0 in production, is computed: BASE milliseconds at EPOCH (Unix seconds of this machine),
and from then on the clock runs SPEED times as fast. All processes that are given the same numbers
agree.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from jobwire_server.domain.options import BrokerOptions
from jobwire_server.host.command import serve
from jobwire_server.host.settings import Settings
from jobwire_server.store.runner import ScriptRunner

TICK_MS = 20
"""So that clocks look as often as they would, more or less."""


def shift_ms(epoch_s: float, base_ms: float, speed: float) -> int:
    """Returns how far the fast clock is ahead now."""
    return int(base_ms + (time.time() - epoch_s) * 1000 * (speed - 1))


class FastRunner(ScriptRunner):
    """Runs scripts with the fast clock."""

    clock: tuple[float, float, float]

    @property
    def clock_shift_ms(self) -> int:  # type: ignore[override]
        """How far ahead it is."""
        return shift_ms(*self.clock)

    @clock_shift_ms.setter
    def clock_shift_ms(self, value: int) -> None:
        """The usual runner begins with none."""


def _often(settings: Settings) -> BrokerOptions:
    return replace(_usual(settings), tick_ms=TICK_MS)


_usual = Settings.broker_options

if __name__ == "__main__":
    from jobwire_server.broker import wiring

    epoch, base, factor = map(float, sys.argv[1:4])
    FastRunner.clock = (epoch, base, factor)
    assert wiring.ScriptRunner is ScriptRunner, "servers are wired elsewhere now"
    wiring.ScriptRunner = FastRunner  # type: ignore[attr-defined, misc]
    Settings.broker_options = _often  # type: ignore[method-assign]
    del sys.argv[1:4]
    serve()
