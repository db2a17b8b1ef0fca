"""A port that several processes of one server share, and nobody else."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack, closing

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.units import parse_address

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
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
        bound = False
        try:
            found = _resolve(host, port)
            for at, (family, address) in enumerate(found, 1):
                try:
                    port = self._hold(family, address, port)
                    bound = True
                except OSError as error:
                    # A name may have an address of a family that this machine does not speak.
                    if error.errno not in _ABSENT or (at == len(found) and not bound):
                        raise
        except OSError as error:
            self._kept.close()
            raise refused(listen) from error
        self.address = f"{host}:{port}"
        """HOST:PORT, with the real port."""

    def close(self) -> None:
        """Let the port go. Idempotent."""
        self._kept.close()

    def _hold(self, family: socket.AddressFamily, address: str, port: int) -> int:
        if port:
            # Two that start at the same moment both find the port free: the name is only one's.
            claim = self._kept.enter_context(closing(socket.socket(socket.AF_UNIX)))
            claim.bind(f"\0jobwire {address}:{port}")
            with closing(_socket(family, shared=False)) as asked:
                asked.bind((address, port))
                asked.listen(1)
        held = self._kept.enter_context(closing(_socket(family, shared=True)))
        held.bind((address, port))
        return int(held.getsockname()[1])


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if host in _WILDCARDS:  # gRPC takes either to mean every address of both families
        if socket.has_dualstack_ipv6():
            return [(socket.AF_INET6, "::")]
        return [(socket.AF_INET, "0.0.0.0")]
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _socket(family: socket.AddressFamily, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    # Connections of the server before, which linger in the system, must not keep the port.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made
