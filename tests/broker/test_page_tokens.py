"""Page tokens that nobody gave out."""

from __future__ import annotations

import pytest

from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.decisions.paging import encode_token
from jobwire_server.domain.errors import BadPageToken
from jobwire_server.domain.model import JobState

from tests.support.brokers import Broker


@pytest.mark.parametrize(
    "after",
    [
        ("x", "", "", ""),
        (-1, "", "", ""),
        (8, "", "", ""),
        (0, "l:../x", "", ""),
        (0, "z", "short", "1"),
        (0, "z", "", "inf"),
    ],
    ids=str,
)
async def test_a_token_that_was_made_up_is_refused_as_one(
    valkey_broker: Broker, after: tuple[str | int, ...]
) -> None:
    await valkey_broker.submit()
    scope = f"jobs:default:{[int(state) for state in JobState]}:False:"
    made_up = encode_token(scope, *after)
    with pytest.raises(BadPageToken):
        await valkey_broker.router.listing.page(JobFilter("default"), 10, made_up, full=False)
