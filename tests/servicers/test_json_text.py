"""JSON text is taken or refused as by a reader of it, without being read."""

from __future__ import annotations

import json
import math
import re
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
@example('"' + "[" * 500 + '"')
@example('"' + "1e400," * 100 + '"')
@example('{"' + "[" * 500 + '": "' + "]" * 500 + '"}')
def test_any_text_is_taken_where_a_reader_takes_it(text: str) -> None:
    assert _is_taken(text) == _would_be_taken(text)


NUMBERS = [
    *("0", "-0", "-1.5", "12e3", "1e-400", "-1E-999", "1e99"),
    *("1e308", "-1.7e+308", "1.8e308", "-1.8E+308", "1e0000308", "1e0000309", "11e307", "0.1e309"),
    *("1.7976931348623158e308", "1.797693134862315808e308", "1.797693134862315807e308"),
    *("9" * 250, "9" * 250 + "e58", "9" * 250 + "e59", "9" * 308, "9" * 309, "-1" + "0" * 308),
    *("0." + "0" * 300 + "1e400", "0." + "0" * 90 + "1e400", "1." + "0" * 4000, "9" * 4000),
]
STRINGS = [
    *('""', '"a"', '"[[["', '"}]"', '"\\""', '"\\\\"', '"\\\\\\""', '"\\\\[\\","', '"é"'),
    *('"1e400"', '"😀,1e400,"', '"true"', '"\\ud83d\\ude00"', '"' + "0" * 250 + '"', '":"'),
    '"' + "[" * 500 + '"',
]
BLANKS = st.sampled_from(["", "", " ", "\n ", "\t"])


@st.composite
def _texts(draw: st.DrawFn) -> str:
    """Texts of JSON as a caller with an intention writes them."""
    scalars = st.sampled_from([*NUMBERS[:7], "true", "false", "null", "[]", "{ }"])
    strings = st.sampled_from(STRINGS)
    text: str = draw(st.sampled_from(NUMBERS) | strings | scalars)
    for _ in range(draw(st.integers(0, 6))):
        others = draw(st.lists(st.one_of(strings, scalars, st.sampled_from(NUMBERS)), max_size=3))
        items = [*others, text, *draw(st.lists(scalars, max_size=2))]
        blank = draw(BLANKS)
        if draw(st.booleans()):
            text = f"[{blank}" + f"{blank},".join(items) + "]"
        else:
            text = "{" + ",".join(f"{draw(strings)}:{blank}{item}" for item in items) + blank + "}"
    levels = draw(st.sampled_from([0, 0, 0, 190, 195, 199, 201]))
    opens = [draw(st.sampled_from(["[", '{"":', '["[",'])) for _ in range(min(levels, 3))] * levels
    closes = ["}" if each[0] == "{" else "]" for each in reversed(opens[:levels])]
    return draw(BLANKS) + "".join(opens[:levels]) + text + "".join(closes)


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|[-+.eE0-9]{2,}|[0-9]')


def _fault(text: str) -> str:
    """What is wrong with good JSON, token by token."""
    level, deepest, beyond, long = 0, 0, "", ""
    for found in _TOKENS.finditer(text):
        token, digits = found[0], found[0].lstrip("-")
        if token in "[{":
            level += 1
            deepest = max(deepest, level)
        elif token in "]}":
            level -= 1
        elif token[0] == '"':
            continue
        elif len(token) > MAX_DIGITS:
            long = f"more than {MAX_DIGITS} digits"
        elif not beyond and math.isinf(float(token)):
            before = text[: found.start() + len(token) - len(digits)]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            beyond = f"{digits[:20]}{'…' * (len(digits) > 20)} at line {line} column {column}"
    return "more than 200 levels" if deepest > MAX_LEVELS else long or beyond


@settings(max_examples=120, deadline=None)
@given(_texts())
def test_numbers_and_levels_are_found_wherever_they_stand(text: str) -> None:
    json.JSONDecoder(parse_int=str, parse_float=str).decode(text)
    fault = _fault(text)
    if not fault:
        check_json(text)
        return
    with pytest.raises(ValueError, match=r".") as wrong:
        check_json(text)
    assert fault in str(wrong.value)


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
