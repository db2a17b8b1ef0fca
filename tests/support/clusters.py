"""A real cluster: three primaries with a replica each, to kill nodes of and to move slots in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from redis.crc import key_slot

from tests.support.stores import Engine, StoreProcess, free_port, wait_until

SLOTS = 16384
FORM_DEADLINE_S = 40.0
NODE_TIMEOUT_MS = 1500


def slot_of(queue: str) -> int:
    """The slot of every key of a queue."""
    return key_slot(b"{" + queue.encode() + b"}")


def queue_in(low: int, high: int, besides: tuple[str, ...] = ()) -> str:
    """The first of q0, q1, … whose slot is low or above and below high."""
    names = (f"q{number}" for number in range(10_000))
    return next(name for name in names if low <= slot_of(name) < high and name not in besides)


class Node(StoreProcess):
    """One node; its data and its id outlive a kill."""

    def __init__(self, engine: Engine, config: tuple[str, ...] = ()) -> None:
        bus = free_port()
        super().__init__(
            engine,
            tcp=True,
            config=(
                *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
                # A replica that was out of touch for long still takes over.
                *("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"),
                *config,
            ),
        )
        self.bus = bus
        self.id = ""

    @property
    def address(self) -> str:
        """As clients and servers name it."""
        return f"127.0.0.1:{self.port}"

    def run(self, *command: str | int) -> Any:
        """Runs a command on this node, whatever slot it is about; answers in bytes, unparsed."""
        with self.client() as client:
            connection = client.connection_pool.get_connection()
            try:
                connection.send_command(*command)
                return connection.read_response()
            finally:
                client.connection_pool.release(connection)

    def facts(self, *command: str) -> dict[str, str]:
        """The lines `name:value` of an answer."""
        lines = self.run(*command).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


class Cluster:
    """Three primaries that share the slots evenly, each with `replicas` replicas.

    Args:
        engine: Which server to run.
        replicas: Of each primary: 0 or 1.
        config: Further directives for each node.
    """

    def __init__(self, engine: Engine, *, replicas: int = 1, config: tuple[str, ...] = ()) -> None:
        self.engine = engine
        self.config = config
        self.primaries = [Node(engine, config) for _ in range(3)]
        self.replicas = [Node(engine, config) for _ in range(3 * replicas)]
        self.extra: list[Node] = []

    @property
    def nodes(self) -> list[Node]:
        return [*self.primaries, *self.replicas, *self.extra]

    @property
    def url(self) -> str:
        """Names two nodes, so that the others must be found."""
        return f"redis+cluster://{self.primaries[0].address},{self.primaries[1].address}"

    def start(self) -> None:
        """Starts the nodes and forms the cluster."""
        for node in self.nodes:
            node.start()
            node.id = node.run("CLUSTER", "MYID").decode()
        for index, node in enumerate(self.primaries):
            node.run("CLUSTER", "ADDSLOTSRANGE", *self.range(index))
            # Else their first votes collide.
            # One that has an epoch already keeps it.
            with suppress(redis.ResponseError):
                node.run("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            node.run("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus)
        everybody = {node.id for node in self.nodes}
        self._wait(lambda: all(self.known(n) >= everybody for n in self.nodes), "all have met")
        for index, node in enumerate(self.replicas):
            node.run("CLUSTER", "REPLICATE", self.primaries[index].id)
        self._wait(self._complete, "the cluster is complete")

    def range(self, index: int) -> tuple[int, int]:
        """The first and the last slot that a primary has in the beginning."""
        return SLOTS * index // 3, SLOTS * (index + 1) // 3 - 1

    def queue_on(self, index: int, besides: tuple[str, ...] = ()) -> str:
        """The name of a queue that a primary has in the beginning."""
        low, high = self.range(index)
        return queue_in(low, high + 1, besides)

    def add(self) -> Node:
        """Starts one more primary, without any slot."""
        node = Node(self.engine, self.config)
        self.extra.append(node)
        node.start()
        node.id = node.run("CLUSTER", "MYID").decode()
        node.run("CLUSTER", "MEET", "127.0.0.1", self.primaries[0].port, self.primaries[0].bus)
        everybody = {each.id for each in self.nodes}
        self._wait(lambda: all(self.known(n) >= everybody for n in self.nodes), "it was met")
        self._wait(lambda: node.facts("CLUSTER", "INFO")["cluster_state"] == "ok", "it serves")
        return node

    def known(self, node: Node) -> set[str]:
        """The ids of the nodes that one knows and has shaken hands with."""
        lines = node.run("CLUSTER", "NODES").decode().splitlines()
        return {line.split()[0] for line in lines if "handshake" not in line.split()[2]}

    def replicated(self, index: int) -> bool:
        """True if the replica has all that its primary had written when it was asked."""
        offset = int(self.primaries[index].facts("INFO", "replication")["master_repl_offset"])
        replica = self.replicas[index].facts("INFO", "replication")
        return (
            replica.get("master_link_status") == "up"
            and int(replica["slave_repl_offset"]) >= offset
        )

    def wait_replicated(self, index: int) -> None:
        """Waits until the replica has all that its primary has."""
        offset = int(self.primaries[index].facts("INFO", "replication")["master_repl_offset"])
        replica = self.replicas[index]
        wait_until(
            lambda: int(replica.facts("INFO", "replication")["slave_repl_offset"]) >= offset,
            "the replica has the writes",
        )

    def took_over(self, index: int) -> bool:
        """True once the replica of a primary has become one, and the others say so too."""
        replica = self.replicas[index]
        return replica.facts("INFO", "replication")["role"] == "master" and all(
            node.facts("CLUSTER", "INFO")["cluster_state"] == "ok"
            for node in (replica, *(n for at, n in enumerate(self.primaries) if at != index))
        )

    def open_slot(self, slot: int, source: Node, target: Node) -> None:
        """Begins to move a slot: from now on its keys may go."""
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: Node, target: Node, most: int = 10**9) -> int:
        """Moves up to `most` keys of an open slot, one at a time; returns how many.

        Raises:
            ResponseError: The target has a key of this name already.
        """
        moved = 0
        while moved < most:
            keys = source.run("CLUSTER", "GETKEYSINSLOT", slot, 1)
            if not keys:
                break
            source.run("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
            moved += 1
        return moved

    def close_slot(self, slot: int, target: Node) -> None:
        """Gives an open slot to its new node, and tells all primaries."""
        target.run("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        for node in (*self.primaries, *self.extra):
            if node is not target:
                node.run("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def remove(self) -> None:
        """Ends every node and deletes its data."""
        for node in self.nodes:
            with suppress(AssertionError, ProcessLookupError):
                node.resume()
            node.kill()
            node.remove()

    def _complete(self) -> bool:
        for index, node in enumerate(self.primaries):
            info = node.facts("CLUSTER", "INFO")
            if info["cluster_state"] != "ok" or info["cluster_slots_ok"] != str(SLOTS):
                return False
            if self.replicas and not self.replicated(index):
                return False
        # A replica may be elected only by those who know that it is one.
        return all(
            sum("slave" in line for line in node.run("CLUSTER", "NODES").decode().splitlines())
            == len(self.replicas)
            for node in self.nodes
        )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            with suppress(redis.ConnectionError, redis.ResponseError, KeyError):
                return condition()
            return False

        wait_until(holds, what, timeout_s=FORM_DEADLINE_S)
