"""Text from other people, without anything that controls a terminal.

Operators look at what others wrote: payloads, failures, labels, output, logs. Whoever can submit a
job must not be able to control an operator's terminal, so every text that the command prints and
every line that a worker logs for people goes through one of these.
"""

from __future__ import annotations

import re

# C0 but for tab and newline, DEL, C1; marks and overrides of direction, which show a text in
# another order than it has; line separators, tags and other invisible signs; lone surrogates.
_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_UNSAFE = re.compile(f"[{_CONTROLS}]")
_UNSAFE_IN_LINE = re.compile(f"[\t\n{_CONTROLS}]")


def shown(text: str) -> str:
    """Return a text with its control characters spelt, such as `\\x1b`; newlines and tabs stay."""
    return _UNSAFE.sub(_spelt, text.replace("\r\n", "\n"))


def in_line(text: str) -> str:
    """Return a text for one cell of a table: newlines and tabs are spelt as well."""
    return _UNSAFE_IN_LINE.sub(_spelt, text)


def in_json(text: str) -> str:
    """Return JSON text of the same meaning without control characters."""
    # Inside of a string the spelling is JSON's own, and outside of one there are none.
    return _UNSAFE.sub(lambda found: _json_spelt(found[0]), text)


def _spelt(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _json_spelt(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
