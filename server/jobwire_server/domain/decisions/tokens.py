"""Opaque tokens (AIP-158): where a listing or a watch goes on, sealed against being made up.

A token is a seal and what it seals, in the alphabet of URLs. The seal holds for one method and its
filter only, and what stands behind it is read by nobody before the seal was found to be true.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest

from jobwire_server.domain.errors import BadPageToken, Violation

MAX_TOKEN_CHARS = 1_024
"""No token is longer; what is longer is refused unread."""
_SEAL_BYTES = 9
# Counted in what is sealed: a token of an older form than this is no token.
_FORM = b"1"
# The alphabet of URLs for that of base64.
_URL = bytes.maketrans(b"+/", b"-_")


class Seal:
    """Writes and reads the tokens of one method with one filter.

    Args:
        key: Up to 64 bytes that only the servers of a store know.
        scope: The method, and all that its filter consists of.
    """

    __slots__ = ("_begun",)

    def __init__(self, key: bytes, scope: Sequence[str]) -> None:
        begun = blake2b(_FORM, key=key, digest_size=_SEAL_BYTES)
        begun.update(len(scope).to_bytes(4, "big"))
        for part in scope:
            text = part.encode("utf-8", "surrogatepass")
            begun.update(len(text).to_bytes(4, "big") + text)
        self._begun = begun

    def write(self, text: str) -> str:
        """Return a token for a text."""
        content = text.encode()
        seal = self._begun.copy()
        seal.update(content)
        whole = b2a_base64(seal.digest() + content, newline=False)
        # With every event of a watch comes a token, so this is done in one step.
        return whole.translate(_URL, b"=").decode("ascii")

    def read(self, token: str) -> str | None:
        """Return the text of a token; None for what this seal did not write."""
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            return None
        try:
            whole = b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except ValueError:
            return None
        seal = self._begun.copy()
        seal.update(whole[_SEAL_BYTES:])
        if not compare_digest(seal.digest(), whole[:_SEAL_BYTES]):
            return None
        return whole[_SEAL_BYTES:].decode()


def bad_token(field: str = "page_token") -> BadPageToken:
    """Return the refusal of a token that was not given out for the call."""
    text = "is not one that this method gave out for the same filter; begin again without it"
    return BadPageToken([Violation(field, text)])
