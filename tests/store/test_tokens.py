"""The key of tokens: one for all servers of a store, whatever happens to it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from jobwire_server.domain.errors import BadPageToken, StoreFull, StoreUnfit
from jobwire_server.store import keys, tokens
from jobwire_server.store.tokens import Tokens

from tests.support.scripts import Scripts

SCOPE = ("jobs", "default")


def _server(scripts: Scripts) -> Tokens:
    return Tokens(scripts.runner)


async def test_servers_that_start_at_once_share_one_key(scripts: Scripts) -> None:
    servers = [_server(scripts) for _ in range(8)]
    seals = await asyncio.gather(*(server.seal(*SCOPE) for server in servers))
    assert len({seal.write("x") for seal in seals}) == 1
    assert await _server(scripts).read(seals[0].write("x"), *SCOPE) == "x"


async def test_a_lost_key_is_put_back_by_a_server_that_knows_it(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _server(scripts)
    token = (await server.seal(*SCOPE)).write("x")
    scripts.client.delete(keys.TOKEN_KEY)
    monkeypatch.setattr(tokens, "FRESH_S", 0.0)
    await server.seal(*SCOPE)
    assert await _server(scripts).read(token, *SCOPE) == "x"


async def test_a_key_that_was_replaced_is_followed_and_its_old_tokens_are_refused(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "DOUBT_S", 0.0)
    server = _server(scripts)
    old = (await server.seal(*SCOPE)).write("x")
    scripts.client.set(keys.TOKEN_KEY, b"n" * 100)
    new = (await _server(scripts).seal(*SCOPE)).write("x")
    assert await server.read(new, *SCOPE) == "x", "it looks at the key before it refuses"
    with pytest.raises(BadPageToken) as refused:
        await server.read(old, *SCOPE, field="cursor")
    assert [violation.field for violation in refused.value.violations] == ["cursor"]


async def test_made_up_tokens_do_not_cost_a_look_each(scripts: Scripts) -> None:
    server = _server(scripts)
    await server.seal(*SCOPE)
    # While it looks nowhere, it can't see that the key is gone.
    scripts.client.delete(keys.TOKEN_KEY)
    for _ in range(20):
        with pytest.raises(BadPageToken):
            await server.read("AAAA", *SCOPE)
    assert not scripts.client.exists(keys.TOKEN_KEY)


@pytest.mark.parametrize("spoilt", ["a list", "empty", "short"])
async def test_a_key_that_is_none_is_told_with_the_remedy(scripts: Scripts, spoilt: str) -> None:
    if spoilt == "a list":
        scripts.client.rpush(keys.TOKEN_KEY, "x")
    else:
        scripts.client.set(keys.TOKEN_KEY, b"" if spoilt == "empty" else b"short")
    with pytest.raises(StoreUnfit, match=f"UNLINK {re.escape(keys.TOKEN_KEY)}"):
        await _server(scripts).seal(*SCOPE)


async def test_a_full_store_keeps_nobody_from_a_token(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, command = _server(scripts), scripts.runner.command

    async def full(name: str, *args: Any, **options: Any) -> Any:
        if name == "SET":
            raise StoreFull
        return await command(name, *args, **options)

    monkeypatch.setattr(scripts.runner, "command", full)
    token = (await server.seal(*SCOPE)).write("x")
    assert await server.read(token, *SCOPE) == "x"
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "FRESH_S", 0.0)
    await server.seal(*SCOPE)
    assert await _server(scripts).read(token, *SCOPE) == "x", "it is put there when there is room"
