"""Hand-overs in the store: submit_claim.lua."""

from __future__ import annotations

from collections.abc import Sequence

from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Accepted, NewJob
from jobwire_server.store.claims import (
    Claimed,
    ClaimRequest,
    ClaimStore,
    OnUnheard,
    encode_requests,
)
from jobwire_server.store.runner import Argument
from jobwire_server.store.submissions import SubmissionStore, accepted, add_jobs

FIXED = 8
"""Arguments of submit_claim.lua between the shift of the clock and the requests."""


class HandoverStore(SubmissionStore, ClaimStore):
    """Brings jobs into queues and leases them to workers that wait for them, in one step."""

    async def submit_claim(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        retention_ms: int,
        limits: tuple[int, int],
        requests: Sequence[ClaimRequest],
        number: int,
        on_unheard: OnUnheard | None = None,
    ) -> tuple[list[Accepted | JobwireError], list[Claimed]]:
        """Write the jobs that are new, then lease jobs to each request, these or older ones.

        As `submit` and right behind it `claim`, with nothing in between. It is a claim like any
        other: at most one for a queue may be under way.

        Args:
            queue: The queue of all of them.
            jobs: In the order of delivery.
            retention_ms: How long jobs are kept that are replaced, or turn out to be expired.
            limits: The most jobs that may wait, and bytes of records of live jobs; 0 for no limit.
            requests: Who wants how much.
            number: What `next_claim` says; a call that is made again because its answer was lost
                has that of the first.
            on_unheard: As for `claim`.
        """
        set_count, asked = encode_requests(requests)
        args: list[Argument] = [
            retention_ms,
            *limits,
            self._server_id,
            number,
            self._heard.get(queue, 0),
            set_count,
            # From 1, as the store counts, with the shift of the clock.
            FIXED + len(asked) + 2,
            *asked,
        ]
        add_jobs(args, jobs)
        (_, *answers), leased = await self._run("submit_claim", queue, args)
        return accepted(jobs, answers, limits), self._claimed(queue, number, leased, on_unheard)
