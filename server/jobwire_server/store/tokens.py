"""The key of opaque tokens: one for all servers of a store, made by the first that needs it."""

from __future__ import annotations

import secrets
from time import monotonic

from redis.exceptions import ResponseError

from jobwire_server.domain.decisions.tokens import Seal, bad_token
from jobwire_server.domain.errors import StoreFull, StoreUnavailable, StoreUnfit
from jobwire_server.store import keys
from jobwire_server.store.runner import ScriptRunner

KEY_BYTES = 32
SHORTEST_KEY, LONGEST_KEY = 16, 64
"""Bytes of what an operator puts there; of a longer one the beginning counts."""
FRESH_S = 30.0
"""How long the key is taken to be the store's without a look at it."""
DOUBT_S = 1.0
"""How soon after a look a token that can't be read leads to another."""


class Tokens:
    """Seals tokens, and reads what was sealed by any server of the store.

    A key that is gone (a store that was emptied) is put back by a server that remembers it, and
    one that was replaced is followed; tokens under a former key are refused.

    Args:
        runner: Reaches the store.
    """

    def __init__(self, runner: ScriptRunner) -> None:
        self._runner = runner
        self._key = b""
        self._looked_at = 0.0

    async def seal(self, *scope: str) -> Seal:
        """Return the seal of a method and its filter. Raises StoreUnavailable."""
        if not self._key or monotonic() - self._looked_at > FRESH_S:
            await self._look()
        return Seal(self._key, scope)

    async def read(self, token: str, *scope: str, field: str = "page_token") -> str:
        """Return the text that a token seals.

        Args:
            token: As the caller sent it.
            scope: As given to `seal`.
            field: Which field of the request it is.

        Raises:
            BadPageToken: No server of the store wrote it for this scope.
            StoreUnavailable: The key is not known yet, and the store does not answer.
        """
        text = (await self.seal(*scope)).read(token)
        if text is None and monotonic() - self._looked_at > DOUBT_S:
            # Another server may have sealed it with a newer key.
            await self._look()
            text = Seal(self._key, scope).read(token)
        if text is None:
            raise bad_token(field)
        return text

    async def _look(self) -> None:
        # At once, so that of many calls one looks while the others go on with what is known.
        self._looked_at = monotonic()
        try:
            key = await self._kept()
        except StoreUnavailable:
            # What is known will do meanwhile.
            if not self._key:
                raise
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            raise _no_key() from error
        else:
            if len(key) < SHORTEST_KEY:
                raise _no_key()
            self._key = key[:LONGEST_KEY]

    async def _kept(self) -> bytes:
        """Return the key in the store, where it is put if there is none."""
        command = self._runner.command
        kept: bytes | None = await command("GET", keys.TOKEN_KEY)
        if kept is None:
            mine = self._key or secrets.token_bytes(KEY_BYTES)
            try:
                # Of servers that do so at once, one is heard.
                await command("SET", keys.TOKEN_KEY, mine, "NX", waits=True)
            except StoreFull:
                # Nobody is kept from looking at a full store: the key is put there once it has
                # room, and until then its tokens are good at this server.
                return mine
            kept = await command("GET", keys.TOKEN_KEY)
        return mine if kept is None else kept


def _no_key() -> StoreUnfit:
    return StoreUnfit(
        f"{keys.TOKEN_KEY} in the store is no key for page tokens and cursors: delete it (UNLINK"
        f" {keys.TOKEN_KEY}), and the server makes one"
    )
