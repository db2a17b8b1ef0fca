"""Page tokens: where a listing goes on, opaque to callers and bound to their filter (AIP-158)."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b

from jobwire_server.domain.errors import BadPageToken, Violation


def _fingerprint(scope: str) -> str:
    return blake2b(scope.encode(), digest_size=6).hexdigest()


def encode_token(scope: str, *after: str | int) -> str:
    """Return a token for what a page ends with.

    Args:
        scope: The method and its filter, as text; a token is good for the same scope only.
        after: What the page ends with.
    """
    text = json.dumps([_fingerprint(scope), *after], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(scope: str, token: str, length: int) -> list[str | int]:
    """Return what `encode_token` was given.

    Args:
        scope: As given to `encode_token`.
        token: As the caller sent it.
        length: How many values that were.

    Raises:
        BadPageToken: It is not a token of this scope.
    """
    try:
        mark, *after = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError, Base64Error):
        mark, after = None, []
    if (
        mark != _fingerprint(scope)
        or len(after) != length
        or not all(isinstance(part, str | int) for part in after)
    ):
        raise bad_token()
    return list(after)


def bad_token() -> BadPageToken:
    """Return the refusal of a token that was not given out for the listing."""
    text = "is not a token that this method gave out for the same filter; start again without one"
    return BadPageToken([Violation("page_token", text)])
