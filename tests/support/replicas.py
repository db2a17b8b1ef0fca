"""A store and its replica as real processes, without anybody to fail them over."""

from __future__ import annotations

from tests.support.stores import Engine, StoreProcess, wait_until

QUICK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


class Replicated:
    """A primary and a replica that can be stopped for a while.

    Args:
        engine: Which server to run.
    """

    def __init__(self, engine: Engine) -> None:
        self.primary = StoreProcess(engine, tcp=True, config=QUICK)
        self.replica = StoreProcess(engine, tcp=True, config=QUICK)

    def start(self) -> None:
        """Start both and wait until the replica follows."""
        self.primary.start()
        self.replica.start()
        with self.replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)
        self.settle()

    def settle(self) -> None:
        """Wait until the replica has all that the primary has."""
        with self.primary.client() as client:

            def settled() -> bool:
                client.set("settle", "")
                client.delete("settle")
                return bool(client.wait(1, 1_000) == 1)

            wait_until(settled, "the replica has everything")

    def waits(self) -> int:
        """How many times the primary was asked to wait for replicas."""
        with self.primary.client() as client:
            return int(client.info("commandstats").get("cmdstat_wait", {"calls": 0})["calls"])

    def waiting(self) -> set[int]:
        """The ids of the primary's clients that wait for a replica now."""
        with self.primary.client() as client:
            clients = client.client_list()
        return {int(one["id"]) for one in clients if "b" in one["flags"] and one["cmd"] == "wait"}

    def remove(self) -> None:
        """End both and delete their files."""
        for store in (self.replica, self.primary):
            store.kill()  # asked to end, a primary waits for its replica
            store.remove()
