"""Patterns of queues fit what the same pattern of a shell fits."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from jobwire_server.domain.decisions.queue_patterns import fits, prefix_of

NAMES = st.text("ab.-", max_size=8)


@given(st.text("ab.-*", max_size=8), NAMES)
def test_a_pattern_fits_as_in_a_shell(pattern: str, name: str) -> None:
    assert fits(pattern, name) == fnmatchcase(name, pattern)
    assert not fits(pattern, name) or name.startswith(prefix_of(pattern))
