"""Whether the store's user may do what the server does, found out by doing it.

Which rights a user has cannot be asked by that user, and a right that is missing would show in the
middle of a script, when half of it is written. So each command that a script runs is tried once in
a script of its own, on keys that are gone when it ends, and so is each way to publish and to
subscribe.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import NoPermissionError, ResponseError

from jobwire_server.store import keys
from jobwire_server.store.connection.cluster import ClusterClient
from jobwire_server.store.connection.connect import Connection, denial_of

SUBSCRIBE_WAIT_S = 2.0
MAX_TAGS = 10_000

COMMANDS: tuple[tuple[str, ...], ...] = (
    # First what takes the others' traces away again.
    *(("UNLINK", "s"), ("DEL", "s")),
    *(("TIME",), ("SET", "s", "1"), ("GET", "s"), ("MGET", "s"), ("STRLEN", "s"), ("EXISTS", "s")),
    ("GETRANGE", "s", "0", "1"),
    *(("MSETNX", "m", "1"), ("HSET", "h", "a", "1"), ("HSETNX", "h", "b", "1"), ("HGET", "h", "a")),
    *(("HMGET", "h", "a"), ("HGETALL", "h"), ("HKEYS", "h"), ("HINCRBY", "h", "a", "1")),
    *(("HSTRLEN", "h", "a"), ("HRANDFIELD", "h"), ("HDEL", "h", "a")),
    *(("LPUSH", "l", "a"), ("RPUSH", "l", "b"), ("LINDEX", "l", "0"), ("LRANGE", "l", "0", "-1")),
    *(("LPOS", "l", "a"), ("LINSERT", "l", "BEFORE", "a", "c"), ("LREM", "l", "1", "c")),
    *(("LLEN", "l"), ("LTRIM", "l", "0", "5"), ("LPOP", "l")),
    *(("SADD", "t", "a"), ("SMEMBERS", "t"), ("SREM", "t", "a")),
    *(("ZADD", "z", "1", "a"), ("ZSCORE", "z", "a"), ("ZCARD", "z"), ("ZRANGE", "z", "0", "-1")),
    *(("ZREM", "z", "b"), ("ZREMRANGEBYSCORE", "z", "0", "0"), ("ZPOPMIN", "z")),
    ("ZCOUNT", "z", "0", "1"),
    *(("XADD", "x", "*", "a", "1"), ("XRANGE", "x", "-", "+"), ("XREVRANGE", "x", "+", "-")),
    *(
        ("SCAN", "0", "COUNT", "1"),
        ("XTRIM", "x", "MAXLEN", "1"),
        ("XINFO", "STREAM", "x"),
        ("SPUBLISH", "c", "1"),
    ),
)
"""Every command that a script runs, and how it is tried: names of keys have one letter."""

_TRY = """
local failures = {}
local at = 2
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local words = {}
  for i = 1, count do
    local word = ARGV[at + i]
    words[i] = string.sub(word, 1, 1) == '~' and KEYS[1] .. string.sub(word, 2) or word
  end
  local answer = redis.pcall(unpack(words))
  if type(answer) == 'table' and answer.err then
    failures[#failures + 1] = words[1]
    failures[#failures + 1] = answer.err
    -- What could not be cleared away is not made.
    if words[1] == 'UNLINK' then return failures end
  end
  at = at + count + 1
end
for letter in string.gmatch(ARGV[1], '.') do redis.pcall('UNLINK', KEYS[1] .. letter) end
return failures
"""
_LETTERS = "smhltzx"


async def missing_rights(connection: Connection) -> str:
    """Return what the store's user lacks and the rule that grants it; "" if nothing.

    Raises:
        RedisError: The store can't be reached.
    """
    lacks: dict[str, str] = {}
    for node, tag in await _nodes(connection):
        await _try_scripts(node, tag, lacks)
        await _try_directly(connection, node, lacks)
        await _try_to_subscribe(connection, tag, lacks)
    if not lacks:
        return ""
    user = await _user(connection)
    named = ", ".join(lacks.values())
    return (
        f"the store's user {user} lacks rights: {named}; run: ACL SETUSER {user} {' '.join(lacks)}"
    )


async def _nodes(connection: Connection) -> list[tuple[Redis | ClusterNode, str]]:
    """Return each primary with a hash tag that it serves."""
    nodes = await connection.primaries()
    client = connection.client
    if not isinstance(client, ClusterClient):
        return [(node, "rights") for node in nodes]
    wanted = {node.name: node for node in nodes if isinstance(node, ClusterNode)}
    found: list[tuple[Redis | ClusterNode, str]] = []
    for number in range(MAX_TAGS):
        if not wanted:
            break
        tag = f"rights-{number}"
        name = await connection.node_of(keys.ready_channel(tag).encode())
        if name in wanted:
            found.append((wanted.pop(name), tag))
    return found


async def _try_scripts(node: Any, tag: str, lacks: dict[str, str]) -> None:
    prefix = f"{keys.queue_prefix(tag)}rights:{secrets.token_hex(4)}:"
    args: list[str] = [_LETTERS]
    for name, *rest in COMMANDS:
        words = [f"~{word}" if len(word) == 1 and word in _LETTERS else word for word in rest]
        if name in ("HSET", "HSETNX", "HGET", "HMGET", "HINCRBY", "HSTRLEN", "HDEL"):
            words = ["~h", *rest[1:]]
        elif rest and name not in ("XINFO", "SCAN"):
            words = [f"~{rest[0]}", *rest[1:]]
        args += [str(1 + len(words)), name, *words]
    digest = sha1(_TRY.encode(), usedforsecurity=False).hexdigest()
    try:
        failures = await node.execute_command("EVAL", _TRY, 1, prefix, *args)
        await node.execute_command("EVALSHA", digest, 1, prefix, "")
    except ResponseError as error:
        _note(lacks, "EVAL +evalsha", error)
        return
    for name, text in zip(failures[::2], failures[1::2], strict=True):
        _note(lacks, name.decode(), ResponseError(text.decode()))


async def _try_directly(connection: Connection, node: Any, lacks: dict[str, str]) -> None:
    commands: list[Sequence[str | int]] = [("PING",)]
    if not isinstance(connection.client, ClusterClient):
        # In a cluster these keys are at one node, which the start asks for them anyway.
        commands += [
            ("ZSCORE", keys.QUEUES, "rights"),
            ("ZRANGEBYLEX", keys.QUEUES, "[rights", "+", "LIMIT", 0, 1),
            ("ZADD", keys.LOST_WORKERS, "XX", 0, "rights"),
            ("ZREM", keys.LOST_WORKERS, "rights"),
            ("SMEMBERS", keys.held_key("rights", "rights")),
            ("HGETALL", keys.config_key("rights")),
        ]
    for command in commands:
        try:
            await node.execute_command(*command)
        except ResponseError as error:
            _note(lacks, str(command[0]), error)


async def _try_to_subscribe(connection: Connection, tag: str, lacks: dict[str, str]) -> None:
    channel = keys.ready_channel(tag).encode()
    wire = connection.dedicated(await connection.node_of(channel))
    try:
        await wire.connect()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(SUBSCRIBE_WAIT_S):
            await wire.send_command("SSUBSCRIBE", channel, check_health=False)
            await wire.read_response(disable_decoding=True)
    except ResponseError as error:
        _note(lacks, "SSUBSCRIBE", error)
    finally:
        await wire.disconnect(nowait=True)


def _note(lacks: dict[str, str], command: str, error: ResponseError) -> None:
    """Note the rule that is missing, if one is: only that is asked for here."""
    text = denial_of(error)
    if not text:
        if isinstance(error, NoPermissionError):
            text = str(error)
        else:
            return
    if re.search(r"\brun\b", text):
        name = command.partition(" ")[0]
        lacks.setdefault(f"+{command.lower()}", f"the command {name}")
    elif "channel" in text:
        lacks.setdefault(f"&{keys.EVERY}", f"channels that begin with {keys.EVERY[:-1]}")
    else:
        lacks.setdefault(f"~{keys.EVERY}", f"keys that begin with {keys.EVERY[:-1]}")


async def _user(connection: Connection) -> str:
    try:
        name = await (await connection.primaries())[0].execute_command("ACL WHOAMI")
    except ResponseError:
        return connection.username or "default"
    return name.decode() if isinstance(name, bytes) else str(name)
