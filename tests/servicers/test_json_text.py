"""JSON text is taken or refused as by a reader of it, without being read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from jobwire_server.servicers.json_text import MAX_DIGITS, MAX_LEVELS, check_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def _is_taken(text: str) -> bool:
    try:
        check_json(text)
    except ValueError:
        return False
    return True


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _would_be_taken(text: str) -> bool:
    try:
        return _is_finite(from_json(text, allow_inf_nan=False))
    except ValueError:
        return False


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_what_a_writer_of_json_writes_is_taken(
    value: Any, indent: int | None, ensure_ascii: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
    assert _is_taken(text) == _is_finite(value)


@settings(max_examples=150, deadline=None)
@given(st.text('[]{}",:0123eE+-.tfn \\u"', max_size=12) | st.text(max_size=6))
@example('"\\ud800"')
@example('"\\ud83d\\ude00"')
@example('{"a":1,"a":2}')
@example("1e400")
@example("[1e308, -1E+0309]")
@example("\x7f")
@example('"\t"')
@example(" 1 ")
@example("01")
def test_any_text_is_taken_where_a_reader_takes_it(text: str) -> None:
    assert _is_taken(text) == _would_be_taken(text)


@pytest.mark.parametrize("pair", ["[]", "{}"])
@pytest.mark.parametrize("inner", ["", '"]]]]"', "1"])
def test_levels_are_counted(pair: str, inner: str) -> None:
    first, last = (pair[0], pair[1]) if pair == "[]" else ('{"[[":', "}")
    inner = inner or ("[]" if pair == "[]" else "{}")
    levels = MAX_LEVELS - (inner in ("[]", "{}"))
    assert _is_taken(first * levels + inner + last * levels)
    assert not _is_taken(first * (levels + 1) + inner + last * (levels + 1))
    assert not _is_taken("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": [1,\n  2 3]}', "line 2 column 5"),
        ('["é", x]', "line 1 column 7"),
        ("[1, 2", "at its end, line 1 column 6"),
        ('["é",\n 1e400]', "1e400 at line 2 column 2"),
        ("9" * (MAX_DIGITS + 1), "more than 4000 digits"),
        ("[" * 201 + "]" * 201, "more than 200 levels"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as wrong:
        check_json(text)
    assert words in str(wrong.value)
