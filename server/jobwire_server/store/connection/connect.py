"""From a URL to a client of the store: standalone, behind Sentinel, or a cluster.

No client here repeats a command by itself: a repeat that nobody sees would hide that an
answer was lost. Whoever sends a command knows whether it may be sent again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, unquote, urlencode

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import (
    BusyLoadingError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.store.connection.cluster import ClusterClient
from jobwire_server.store.connection.pipe import Pipes
from jobwire_server.store.connection.sending import (
    CANCELLABLE,
    SentinelConnection,
    SentinelTlsConnection,
    TcpConnection,
    TlsConnection,
)
from jobwire_server.store.connection.sentinels import SentinelPool, Sentinels
from jobwire_server.store.connection.urls import redacted, tells_nothing_hidden, tidy

MAX_CONNECTIONS = 64
"""Group commit keeps few calls under way; more connections would only queue inside the store."""
POOL_WAIT_S = 5.0
CONNECT_TIMEOUT_S = 3.0
SENTINEL_TIMEOUT_S = 1.5
"""For a sentinel, to connect and to answer. Shorter than the monitor waits for the store: that most
of the sentinels are away is no reason to say that the store is."""
READ_TIMEOUT_S = 3.0
"""Also bounds a write. Longer than any script runs, and so much shorter than what callers wait (5 s
in the command line) that they hear what is wrong."""
IDLE_CHECK_S = 15
"""A connection that was idle for so long is tried with a PING before it is used."""

_DRIVER = DriverInfo()
"""What a connection says of its program. Left to itself, each looks its version up on disk, which
takes longer than all else that it does."""

FORMS = (
    "redis://HOST:PORT/DB, rediss://… with TLS, unix:///PATH,"
    " redis+sentinel://HOST:PORT,HOST:PORT/SERVICE, redis+cluster://HOST:PORT,HOST:PORT"
)


STORE_ERRORS = (RedisError, RedisClusterException, OSError, TimeoutError)
"""Whatever redis-py raises when the store can't be used; its cluster errors stand apart."""


class StoreRefused(ConfigurationError):
    """The store can't be used as it is; the message has the remedy."""


@dataclass(slots=True)
class Connection:
    """A client of the store and what it was made from. Making one does no I/O."""

    client: Redis | ClusterClient
    kind: Literal["standalone", "sentinel", "cluster"]
    url: str
    """Without the password, for logs."""
    sentinel: Sentinel | None = None
    username: str = ""
    _pipes: Pipes = field(init=False)
    _cluster: ClusterClient | None = field(init=False)
    """The client, if it is a cluster's: to ask for its class takes 4 us."""

    def __post_init__(self) -> None:
        self._pipes = Pipes(self.dedicated)
        self._cluster = self.client if isinstance(self.client, ClusterClient) else None

    @property
    def address(self) -> str:
        """Where the store is, for people."""
        return f"the store at {self.url.partition('://')[2].rpartition('@')[2]}"

    async def close(self) -> None:
        """Close every connection; harmless if none was opened."""
        await self._pipes.close()
        await self.client.aclose()
        if self.sentinel is not None:
            await self.sentinel.aclose()

    def run_script(self, words: tuple[Any, ...], *, reads: bool) -> Awaitable[Any]:
        """Send EVAL or EVALSHA once, to the node of its key, on a connection that calls share.

        Args:
            words: The command.
            reads: The script writes nothing, and its answer may have megabytes.

        Raises:
            RedisError: As the client's commands. Cancelled, it leaves the calls of others alone.
        """
        if self._cluster is not None:
            return self._cluster.routed(
                words, lambda node: self._send(node, node.name, words, reads)
            )
        return self._send(self.client, "", words, reads)

    def _send(self, client: Any, node: str, words: tuple[Any, ...], reads: bool) -> Awaitable[Any]:
        pipe = self._pipes.of(node, reads=reads)
        if reads and pipe.busy:
            # Behind a page of large jobs a small answer would wait for long.
            answer: Awaitable[Any] = client.execute_command(*words)
            return answer
        return pipe.send(words)

    async def ping(self) -> None:
        """Ask the store, or every primary of a cluster, for a sign of life.

        Raises:
            RedisError: It can't be reached, or does not serve.
        """
        if self.sentinel is not None and isinstance(self.client, Redis):
            with suppress(*STORE_ERRORS):  # a store that answers is there, whoever knows of it
                await cast(SentinelPool, self.client.connection_pool).get_master_address()
        for node in await self.primaries():
            await node.execute_command("PING")

    async def look(self) -> str:
        """Ask whether the store serves, or at least a part of a cluster.

        Returns:
            What is wrong with the other part; "" if nothing is.

        Raises:
            RedisError: It can't be reached, or does not serve at all.
        """
        if isinstance(self.client, ClusterClient):
            return await self.client.look()
        await self.ping()
        return ""

    async def primaries(self) -> list[Redis | ClusterNode]:
        """Return what takes writes: the store itself, or each primary of the cluster."""
        if not isinstance(self.client, ClusterClient):
            return [self.client]
        await self.client.initialize()
        return list(self.client.get_primaries())

    async def node_of(self, channel: bytes) -> str:
        """Return the node that serves a shard channel; "" on a store that is not a cluster."""
        if not isinstance(self.client, ClusterClient):
            return ""
        await self.client.initialize()
        # A keyslot is computed from bytes; the annotation in redis-py says str only.
        node = self.client.get_node_from_key(cast(str, channel))
        return node.name if node is not None else ""

    async def refresh_topology(self) -> None:
        """Learn again which node serves what; nothing to do on a store that is not a cluster."""
        if isinstance(self.client, ClusterClient):
            await self.client.initialize()
            await self.client.nodes_manager.initialize()

    def dedicated(self, node: str) -> AbstractConnection:
        """Return a connection outside the pool to a node named by `node_of`; not opened yet.

        Raises:
            RedisError: The cluster no longer has this node.
        """
        if not isinstance(self.client, ClusterClient):
            pool = self.client.connection_pool
            return pool.unpooled() if isinstance(pool, SentinelPool) else _unpooled(pool)
        found = self.client.get_node(node_name=node)
        if found is None:
            raise RedisConnectionError(f"the cluster has no node {node} any more")
        return found.connection_class(**{**found.connection_kwargs, "retry": no_retry()})


def cause_of(error: BaseException) -> BaseException:
    """Return what the store really said: redis-py wraps handshake errors in a ConnectionError."""
    while isinstance(error.__cause__, RedisError | RedisClusterException):
        error = error.__cause__
    return error


_DENIALS = ("NOPERM", "ACL failure", "no permissions", "user executing the script can't")


def denial_of(error: BaseException) -> str:
    """Return what the store's user may not do, in the store's words; "" for another error."""
    cause = cause_of(error)
    text = str(cause)
    denied = isinstance(cause, NoPermissionError) or any(words in text for words in _DENIALS)
    if not denied or not isinstance(cause, ResponseError):
        return ""
    # Where in which script it happened does not help whoever has to mend it.
    return re.sub(r"\.? script: [0-9a-f]{40}.*", "", text)


def is_loading(error: BaseException) -> bool:
    """The store answers, and that it is reading its data."""
    return isinstance(cause_of(error), BusyLoadingError)


def no_retry() -> Retry:
    """The policy that never sends a command twice."""
    return Retry(NoBackoff(), 0)


def connect(url: str, *, max_connections: int = MAX_CONNECTIONS) -> Connection:
    """Make a client from a store's URL, without I/O.

    Args:
        url: One of FORMS. Options of redis-py go into the query, for example
            ``?ssl_ca_certs=/etc/ca.pem``; ``sentinel_username`` and ``sentinel_password``
            are for the sentinels. ``rediss+sentinel`` and ``rediss+cluster`` use TLS.
        max_connections: The most that are open at once, for each node. 1 or more.

    Raises:
        ConfigurationError: The URL has another form, or an option that does not exist.
    """
    scheme = url.partition("://")[0]
    make = _MAKERS.get(scheme)
    if make is None:
        raise ConfigurationError(f"redis_url: {redacted(url)} is none of {FORMS}")
    try:
        connection = make(tidy(url), max_connections)
    except (ValueError, TypeError, RedisError) as error:
        # What the parser complains of may be the second half of a password.
        why = str(error) if tells_nothing_hidden(str(error), url) else "a part of it is wrong"
        raise ConfigurationError(
            f"redis_url: {redacted(url)} can't be used: {why}; the forms are {FORMS}"
        ) from None
    connection.url = redacted(url)
    connection.username = _username(tidy(url))
    return connection


def _username(url: str) -> str:
    userinfo, at, _ = url.partition("://")[2].partition("@")
    return unquote(userinfo.partition(":")[0]) if at else ""


def _unpooled(pool: ConnectionPool) -> AbstractConnection:
    return cast(AbstractConnection, pool.make_connection())  # type: ignore[no-untyped-call]


def _common(*, tcp: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "decode_responses": False,
        "driver_info": _DRIVER,
        "health_check_interval": IDLE_CHECK_S,
        # RESP2: subscriptions need a connection of their own anyway, and every managed
        # service and proxy speaks it.
        "protocol": 2,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": READ_TIMEOUT_S,
    }
    if tcp:
        options["socket_keepalive"] = True
    return options


def _standalone(url: str, max_connections: int) -> Connection:
    # The URL is parsed last, so that what it says wins.
    options: dict[str, Any] = {**_common(tcp=not url.startswith("unix:")), "retry": no_retry()}
    options |= parse_url(url)
    options["connection_class"] = CANCELLABLE[options.get("connection_class", TcpConnection)]
    pool = BlockingConnectionPool(max_connections=max_connections, timeout=POOL_WAIT_S, **options)
    _unpooled(pool)  # a wrong option is found now, not by the first job
    return Connection(Redis.from_pool(pool), "standalone", redacted(url))


@dataclass(slots=True)
class _Parts:
    hosts: list[tuple[str, int]]
    path: str
    options: dict[str, Any]


_URL = re.compile(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL)
"""Addresses, path, query and fragment; it fits any text."""


def _split(url: str, default_port: int) -> _Parts:
    # By hand: newer Pythons take a list of addresses with an IPv6 one in it for a wrong host.
    match = _URL.fullmatch(url.partition("://")[2])
    assert match is not None
    netloc, path, query_text, _ = match.groups()
    userinfo, _, addresses = netloc.rpartition("@")
    hosts = []
    for address in addresses.split(","):
        found = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d{1,5}))?", address)
        if found is None:
            raise ValueError(f"{address!r} is not HOST:PORT")
        hosts.append((found[1].strip("[]"), int(found[2] or default_port)))
    # redis-py's own parser gives the options their types.
    query = urlencode(parse_qsl(query_text or "", keep_blank_values=True))
    options: dict[str, Any] = dict(parse_url(f"redis://h?{query}"))
    options.pop("host", None)
    username, _, password = userinfo.partition(":")
    if username:
        options["username"] = unquote(username)
    if password:
        options["password"] = unquote(password)
    return _Parts(hosts, unquote(path.strip("/")), options)


def _sentinel(url: str, max_connections: int) -> Connection:
    parts = _split(url, 26379)
    if not parts.path:
        raise ValueError("the service's name is missing after the addresses")
    options = {**_common(tcp=True), "retry": no_retry(), **parts.options}
    for_sentinels = {
        "driver_info": _DRIVER,
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "socket_timeout": SENTINEL_TIMEOUT_S,
        "retry": no_retry(),
        "protocol": 2,
        "username": options.pop("sentinel_username", None),
        "password": options.pop("sentinel_password", None),
    }
    tls = url.startswith("rediss")
    if tls:
        named = {name: value for name, value in options.items() if name.startswith("ssl_")}
        for_sentinels |= {"ssl": True, **named}
    sentinel = Sentinels(parts.hosts, sentinel_kwargs=for_sentinels)
    connection_class = SentinelTlsConnection if tls else SentinelConnection
    client = sentinel.master_for(
        parts.path,
        connection_pool_class=SentinelPool,
        max_connections=max_connections,
        timeout=POOL_WAIT_S,
        connection_class=connection_class,
        **options,
    )
    _unpooled(client.connection_pool)
    return Connection(client, "sentinel", redacted(url), sentinel)


def _cluster(url: str, max_connections: int) -> Connection:
    parts = _split(url, 6379)
    options = {**_common(tcp=True), **parts.options}
    if url.startswith("rediss"):
        options["ssl"] = True
    nodes = [ClusterNode(host, port) for host, port in parts.hosts]
    client = ClusterClient(
        startup_nodes=nodes, max_connections=max_connections, retry=no_retry(), **options
    )
    # The class can't be passed; nodes found later are made from the same arguments.
    connection_class = TlsConnection if url.startswith("rediss") else TcpConnection
    client.connection_kwargs["connection_class"] = connection_class
    for node in client.startup_nodes:
        node.connection_class = connection_class
    return Connection(client, "cluster", redacted(url))


_MAKERS: dict[str, Callable[[str, int], Connection]] = {
    **dict.fromkeys(("redis", "rediss", "unix"), _standalone),
    **dict.fromkeys(("redis+sentinel", "rediss+sentinel"), _sentinel),
    **dict.fromkeys(("redis+cluster", "rediss+cluster"), _cluster),
}
