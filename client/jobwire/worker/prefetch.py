"""How many jobs a worker keeps ready besides those that it runs.

With none, each handler idles for a round trip between two jobs; with many, jobs wait in one worker
while others are free. So the number follows the speed: as many as the worker ran in the last
twentieth of a second. Workers whose jobs take seconds keep none.
"""

from __future__ import annotations

TICK_S = 0.1
HORIZON_S = 0.05
# A job that waits longer than this goes back to its queue: the worker is no longer quick.
LONGEST_WAIT_S = 1.0
# After that it keeps none for this many ticks, so that a mix of quick and slow jobs does not send
# the same ones back and forth.
REST_TICKS = 20


class Prefetch:
    """The number, as time goes by.

    Args:
        fixed: The number itself; None: follow the speed.
        most: What the contract leaves room for.
    """

    def __init__(self, fixed: int | None, most: int) -> None:
        self.follows_speed = fixed is None
        self._most = most
        self._rest = 0
        self.jobs = min(fixed or 0, most)

    def follow(self, ended: int) -> bool:
        """Adjust to how many jobs ended in the last `TICK_S`; return True if it changed."""
        if self._rest:
            self._rest -= 1
            return False
        wanted = min(self._most, int(ended * HORIZON_S / TICK_S))
        # Small changes are not worth a word to the broker.
        if wanted and 0.8 * self.jobs <= wanted <= 1.25 * self.jobs:
            return False
        changed = wanted != self.jobs
        self.jobs = wanted
        return changed

    def stop(self) -> None:
        """Keep none for a while: the last ones had to wait."""
        self.jobs = 0
        self._rest = REST_TICKS
