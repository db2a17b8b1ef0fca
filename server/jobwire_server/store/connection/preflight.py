"""Checks that a store can be trusted with jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    RedisClusterException,
    ResponseError,
)
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.server_info import StoreInfo
from jobwire_server.store.connection.connect import (
    STORE_ERRORS,
    Connection,
    StoreRefused,
    cause_of,
    denial_of,
)
from jobwire_server.store.connection.rights import missing_rights

OLDEST = {"redis": (7, 0), "valkey": (8, 0)}
RETRY_S = 0.2
SECTIONS = ("server", "memory", "persistence", "replication", "cluster")

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")


async def check_store(
    connection: Connection,
    *,
    embedded: bool = False,
    allow_volatile: bool = False,
    always: bool = False,
    wait_s: float = 0.0,
    replicas: int = 0,
) -> StoreInfo:
    """Find out what the store is, and refuse one that would lose jobs.

    Args:
        connection: The store; every primary of a cluster is checked.
        embedded: The server runs it itself.
        allow_volatile: Accept a store that keeps nothing on disk.
        always: The operator asked for a write to disk before each answer.
        wait_s: How long to wait for a store that can't be reached or is loading. 0: not at all.
        replicas: How many replicas are to have each write before it is answered.

    Raises:
        StoreRefused: It can't be reached, is too old, evicts keys, keeps nothing on disk, takes
            no writes, lacks rights, or does not let its replicas be waited for; the message has the
            remedy.
    """
    nodes = await _reach(connection, wait_s)
    found = [
        await _check_node(node, allow_volatile=allow_volatile, always=always) for node in nodes
    ]
    if lacking := await missing_rights(connection):
        raise StoreRefused(f"redis_url: {lacking}")
    warnings = dict.fromkeys(warning for info in found for warning in info.warnings)
    if replicas:
        problems = [await _replicas(node, replicas) for node in nodes]
        warnings |= dict.fromkeys(problem for problem in problems if problem)
    # The weakest node decides what a user may rely on.
    weakest = max(found, key=lambda info: _WEAKNESS.get(info.durability, 2))
    return StoreInfo(
        engine=found[0].engine,
        version=min((info.version for info in found), key=_numbers),
        durability=weakest.durability + (f", wait for {_counted(replicas)}" if replicas else ""),
        embedded=embedded,
        warnings=tuple(warnings),
    )


class Inspection:
    """Repeats the checks of `check_store` while the store is used.

    Args:
        connection: The store.
        allow_volatile: As for `check_store`.
        always: As for `check_store`.
    """

    def __init__(self, connection: Connection, *, allow_volatile: bool, always: bool) -> None:
        self._connection = connection
        self._allow_volatile = allow_volatile
        self._always = always
        self._warned: frozenset[str] | None = None

    async def look(self, *, rights: bool) -> str:
        """Return why the store must not get new jobs, with the remedy; "" if it may.

        Args:
            rights: True to try the user's rights as well.

        Raises:
            RedisError: It can't be reached.
        """
        warnings: set[str] = set()
        for node in await self._connection.primaries():
            try:
                info = await _check_node(
                    node, allow_volatile=self._allow_volatile, always=self._always
                )
            except StoreRefused as refusal:
                return refusal.message
            warnings |= {*info.warnings}
        # The start has reported what it found.
        for warning in warnings - (self._warned if self._warned is not None else warnings):
            log.warning(warning)
        self._warned = frozenset(warnings)
        return await missing_rights(self._connection) if rights else ""


_WEAKNESS = {"aof always": 0, "aof everysec": 1, "unknown": 3, "none": 4}


async def _reach(connection: Connection, wait_s: float) -> list[Redis | ClusterNode]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    told = False
    while True:
        try:
            await connection.ping()
            return await connection.primaries()
        except STORE_ERRORS as error:
            cause = cause_of(error)
            if denial_of(cause):
                user = connection.username or "default"
                raise StoreRefused(
                    f"redis_url: {connection.url}: the store's user {user} lacks rights: {cause};"
                    f" run: ACL SETUSER {user} ~jw:* &jw:* +@all -@admin"
                ) from error
            if isinstance(cause, AuthenticationError):
                raise StoreRefused(
                    f"redis_url: {connection.url} refuses the user name or password: {cause}"
                ) from error
            if isinstance(cause, ResponseError) and not isinstance(cause, BusyLoadingError):
                raise StoreRefused(f"redis_url: {connection.url} answers: {cause}") from error
            if isinstance(cause, RedisClusterException) and "mode is not enabled" in str(cause):
                raise StoreRefused(
                    f"redis_url: {connection.url} is not a cluster; use redis:// for it"
                ) from error
            if loop.time() >= deadline:
                raise StoreRefused(
                    f"redis_url: {connection.url} can't be reached: {str(cause).rstrip('.')};"
                    " start the store, or mend the address"
                ) from error
            if not told:
                told = True
                log.warning("waiting for the store", url=connection.url, error=str(cause))
            await asyncio.sleep(RETRY_S)


async def _check_node(
    node: Redis | ClusterNode, *, allow_volatile: bool, always: bool
) -> StoreInfo:
    warnings = []
    info: dict[str, Any]
    try:
        info = await node.execute_command("INFO", *SECTIONS)
    except ResponseError as error:
        if not denial_of(error):
            raise
        info = await _greeting(node)
        warnings.append(
            "the store does not tell this user its maxmemory-policy and its persistence"
            f" ({denial_of(error)}): look that the policy is noeviction and that jobs are kept on"
            " disk, or let it tell with ACL SETUSER … +info +config|get"
        )
    engine, version = _engine(info)
    if _numbers(version) < OLDEST.get(engine, (0,)):
        needed = ".".join(map(str, OLDEST[engine]))
        raise StoreRefused(f"the store is {engine} {version}; {engine} {needed} or newer is needed")
    if info.get("redis_mode") == "sentinel" or info.get("server_mode") == "sentinel":
        raise StoreRefused(
            "the store is a sentinel; use redis+sentinel://HOST:PORT/SERVICE to find its primary"
        )
    if info.get("cluster_enabled") and isinstance(node, Redis):
        raise StoreRefused("the store is a node of a cluster; use redis+cluster:// for it")
    if info.get("role") in ("slave", "replica"):
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise StoreRefused(f"the store is a replica and takes no writes; use its primary {primary}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StoreRefused(
            f"the store's maxmemory-policy is {policy}, which deletes jobs when memory is short;"
            " run: CONFIG SET maxmemory-policy noeviction"
        )
    if "aof_enabled" in info:
        durability, more = await _durability(node, info, always=always)
        warnings += more
    else:
        durability = "unknown"
    if durability == "none" and not allow_volatile:
        raise StoreRefused(
            "the store keeps nothing on disk, so that its restart loses every job; run: CONFIG SET"
            " appendonly yes, or accept the loss with --allow-volatile-store"
        )
    return StoreInfo(engine, version, durability, warnings=tuple(warnings))


async def _greeting(node: Redis | ClusterNode) -> dict[str, Any]:
    """Return what every user may know: name, version, role and mode, as INFO names them."""
    answer = await node.execute_command("HELLO")
    flat = (
        [part for pair in answer.items() for part in pair] if isinstance(answer, dict) else answer
    )
    said = {_text(flat[at]): _text(flat[at + 1]) for at in range(0, len(flat), 2)}
    found: dict[str, Any] = {"role": said.get("role", ""), "redis_version": said["version"]}
    if said.get("server") == "valkey":
        found["valkey_version"] = said["version"]
    if said.get("mode") == "sentinel":
        found["redis_mode"] = "sentinel"
    elif said.get("mode") == "cluster":
        found["cluster_enabled"] = 1
    return found


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def _durability(
    node: Redis | ClusterNode, info: dict[str, Any], *, always: bool
) -> tuple[str, list[str]]:
    aof = bool(info.get("aof_enabled"))
    try:
        config = await node.execute_command("CONFIG GET", "appendfsync", "save")
    except ResponseError as error:
        # Managed services hide CONFIG; INFO said what it could.
        if aof:
            return "aof", [f"the store does not tell how often it writes to disk ({error})"]
        return "unknown", [
            "the store does not tell whether it keeps jobs on disk"
            f" ({error}): look at its persistence setting"
        ]
    fsync, save = config.get("appendfsync", ""), config.get("save", "")
    if aof:
        warnings = []
        if fsync == "no":
            warnings.append(
                "the store leaves writing to disk to the system, which may lose half a minute of"
                " jobs when the machine fails; run: CONFIG SET appendfsync everysec"
            )
        elif always and fsync != "always":
            warnings.append(
                f"durability is set to always, and the store's appendfsync is {fsync}; run: CONFIG"
                " SET appendfsync always"
            )
        return f"aof {fsync}", warnings
    if save:
        return f"snapshots ({save})", [
            "the store keeps snapshots only: a crash loses the jobs since the last one; run:"
            " CONFIG SET appendonly yes"
        ]
    return "none", ["the store keeps nothing on disk: its restart loses every job"]


async def _replicas(node: Redis | ClusterNode, wanted: int) -> str:
    """Return what is wrong with the replicas of a primary; "" if there are enough."""
    try:
        await node.execute_command("WAIT", 0, 1)
    except ResponseError as error:
        raise StoreRefused(
            f"wait_replicas is {wanted}, and the store does not take WAIT ({error}): allow it to"
            " this user, or set wait_replicas to 0"
        ) from error
    # WAIT's answer would leave out replicas that are a moment behind.
    info: dict[str, Any] = await node.execute_command("INFO", "replication")
    have = sum(
        isinstance(value, dict) and value.get("state") == "online" for value in info.values()
    )
    if have >= wanted:
        return ""
    return (
        f"wait_replicas is {wanted}, and the store has {_counted(have)} now: until more follow it,"
        " each write is answered UNAVAILABLE; start replicas, or lower wait_replicas"
    )


def _counted(replicas: int) -> str:
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"


def _engine(info: dict[str, Any]) -> tuple[str, str]:
    if "valkey_version" in info:
        return "valkey", str(info["valkey_version"])
    return str(info.get("server_name", "redis")), str(info.get("redis_version", "0"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
