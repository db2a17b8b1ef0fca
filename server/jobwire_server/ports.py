"""A port that several processes of one server share, and nobody else."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, closing

from jobwire_server.errors import ConfigurationError
from jobwire_server.units import parse_address

_WILDCARDS = ("", "0.0.0.0", "[::]")


class AddressInUse(ConfigurationError):
    """An address that the server was told to listen on can't be bound."""


def refused(listen: str) -> AddressInUse:
    """The error of a gRPC address that can't be bound."""
    return AddressInUse(
        f"listen: {listen} can't be bound; stop whoever uses it, or choose another address"
        " with --listen"
    )


class HeldPort:
    """Holds a port for processes that bind it with SO_REUSEPORT, without listening on it.

    The system hands each new connection to one of the listeners, and would let any server of this
    user listen beside them. So it is asked first, as a server that shares with nobody would ask.

    Args:
        listen: HOST:PORT. Port 0: a free one.

    Raises:
        AddressInUse: It can't be bound, or somebody uses it.
        ConfigurationError: This system does not spread connections over processes.
    """

    def __init__(self, listen: str) -> None:
        if sys.platform != "linux":
            raise ConfigurationError(
                "processes: only Linux spreads connections over the processes of one port; set it"
                " to 1, and start several servers on one store"
            )
        host, port = parse_address(listen)
        self._kept = ExitStack()
        try:
            family, address = _resolve(host, port)
            if port:
                self._claim(address)
                with closing(_socket(family, shared=False)) as asked:
                    asked.bind(address)
                    asked.listen(1)
            held = self._kept.enter_context(closing(_socket(family, shared=True)))
            held.bind(address)
        except OSError as error:
            self._kept.close()
            raise refused(listen) from error
        self.address = f"{host}:{held.getsockname()[1]}"
        """HOST:PORT, with the real port."""

    def close(self) -> None:
        """Let the port go. Idempotent."""
        self._kept.close()

    def _claim(self, address: tuple[str, int]) -> None:
        # Two that start at the same moment both find the port free: the name is only one's.
        claim = self._kept.enter_context(closing(socket.socket(socket.AF_UNIX)))
        claim.bind(f"\0jobwire {address[0]}:{address[1]}")


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    if host in _WILDCARDS:  # gRPC takes either to mean every address of both families
        if socket.has_dualstack_ipv6():
            return socket.AF_INET6, ("::", port)
        return socket.AF_INET, ("0.0.0.0", port)
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _socket(family: socket.AddressFamily, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    # Connections of the server before, which linger in the system, must not keep the port.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made
