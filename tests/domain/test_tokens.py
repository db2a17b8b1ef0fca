"""Opaque tokens: what was sealed comes back, and nothing else is read."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobwire_server.domain.decisions.tokens import MAX_TOKEN_CHARS, Seal, bad_token

KEY = b"k" * 32
SCOPE = ("jobs", "default", "")


def _encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).decode().rstrip("=")


@settings(max_examples=30)
@given(st.text(max_size=100).filter(lambda text: text.isprintable()))
def test_a_token_brings_back_its_text(text: str) -> None:
    token = Seal(KEY, SCOPE).write(text)
    assert token.isascii()
    assert "=" not in token
    assert Seal(KEY, SCOPE).read(token) == text


@settings(max_examples=40)
@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
@example(["a", "b"], ["ab"])
@example(["a", ""], ["a"])
@example(["", "a"], ["a", ""])
def test_a_token_holds_for_its_scope_only(one: list[str], other: list[str]) -> None:
    read = Seal(KEY, other).read(Seal(KEY, one).write("x"))
    assert read == ("x" if one == other else None)


def test_a_token_holds_for_its_key_only() -> None:
    assert Seal(b"other", SCOPE).read(Seal(KEY, SCOPE).write("x")) is None


@settings(max_examples=60)
@given(
    st.text(max_size=700)
    | st.text("[{", min_size=1, max_size=700)
    | st.from_regex(r"[0-9]{1,5000}(\.[0-9])?(-[0-9]{1,300}){0,2}", fullmatch=True)
    | st.binary(max_size=500).map(_encoded)
)
@example("[" * 100_000)
@example("\ud800")
@example("9" * 5_000)
@example("99999999999999999999.9")
@example("====")
@example("bnVsbA")
@example("A")
def test_what_was_not_sealed_is_not_read(token: str) -> None:
    assert Seal(KEY, SCOPE).read(token) is None


def test_a_token_that_was_changed_anywhere_is_not_read() -> None:
    token = Seal(KEY, SCOPE).write("12 3 4567890")
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert Seal(KEY, SCOPE).read(changed) is None
    for changed in (f"{token}A", token[:-1], f" {token}", f"{token}\n", f"{token[:5]}.{token[5:]}"):
        assert Seal(KEY, SCOPE).read(changed) is None


def test_a_long_token_is_not_decoded() -> None:
    assert Seal(KEY, SCOPE).read(Seal(KEY, SCOPE).write("x" * MAX_TOKEN_CHARS)) is None


@pytest.mark.parametrize("field", ["page_token", "cursor"])
def test_a_refusal_names_the_field_and_the_remedy(field: str) -> None:
    (violation,) = bad_token(field).violations
    assert violation.field == field
    assert "begin again without it" in violation.description
