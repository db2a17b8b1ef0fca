"""Turns the target that a user names into the one that gRPC gets, looking up several names."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
import time

from jobwire.errors import Unavailable

log = logging.getLogger("jobwire.client")

PROXY_VARIABLE = "JOBWIRE_HTTP_PROXY"
GRPC_PROXY_VARIABLE = "grpc_proxy"
# How often names are looked up again: at most, after failures; at least, while in use.
LOOK_AGAIN_S = 1.0
LOOK_ANYWAY_S = 30.0

Options = list[tuple[str, str | int]]


class Route:
    """The way to one or several addresses.

    gRPC looks up a single name itself, again whenever the connection is lost. It takes several
    addresses as numbers only, so those are looked up here: again after failures and from time to
    time, in a separate thread so that no call waits.

    Args:
        address: One or several addresses, separated by commas.

    Attributes:
        target: What gRPC gets; None until `look` has found it.

    Raises:
        ValueError: An address is malformed, or there is none.
    """

    def __init__(self, address: str) -> None:
        addresses = [part.strip() for part in address.split(",") if part.strip()]
        if not addresses:
            raise ValueError("the target is empty: give HOST:PORT")
        self.target: str | None = None
        self.options = _proxy_options(addresses)
        self._pairs: list[tuple[str, int]] = []
        self._numbers: dict[str, list[str]] = {}
        self._missing: set[str] = set()
        self._looked_at = -LOOK_ANYWAY_S
        self._looking = threading.Lock()
        if len(addresses) == 1:
            self.target = addresses[0]
            if "://" in addresses[0]:
                self.options.append(("grpc.lb_policy_name", "round_robin"))
            return
        self._pairs = [_split(each) for each in addresses]
        self.options += [
            ("grpc.lb_policy_name", "round_robin"),
            # The target is a list of numbers, so the name to check certificates against and to
            # send as the authority must be said.
            ("grpc.default_authority", addresses[0]),
            ("grpc.ssl_target_name_override", self._pairs[0][0]),
        ]
        self._moves = any(_number(host) is None for host, _ in self._pairs)
        if not self._moves:
            self.look()

    def look(self) -> None:
        """Look the names up; may block for as long as the resolver does.

        A name that can't be resolved is left out, or keeps the numbers that it had.

        Raises:
            Unavailable: None of them is known.
        """
        with self._looking:
            self._look()

    def _look(self) -> None:
        problems: dict[str, str] = {}
        for host, _ in self._pairs:
            number = _number(host)
            if number is not None:
                self._numbers[host] = [number]
                continue
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                problems[host] = getattr(error, "strerror", None) or str(error)
                continue
            numbers = (str(entry[4][0]).split("%")[0] for entry in found)
            self._numbers[host] = sorted(set(numbers))
        self._looked_at = time.monotonic()
        for host in problems.keys() - self._missing:
            log.warning(
                "the name %r can't be resolved; continuing without it: %s", host, problems[host]
            )
        for host in self._missing - problems.keys():
            log.info("the name %r can be resolved again", host)
        self._missing = set(problems)
        target = _literal_target(self._pairs, self._numbers)
        if target is None:
            said = "; ".join(f"{host}: {problem}" for host, problem in problems.items())
            raise Unavailable(f"none of the names can be resolved: {said}")
        self.target = target

    def suspect(self) -> None:
        """Look the names up again soon, because a call found no server."""
        self._look_in_passing(LOOK_AGAIN_S)

    def refresh(self) -> None:
        """Look the names up again if that was long ago."""
        self._look_in_passing(LOOK_ANYWAY_S)

    def _look_in_passing(self, at_most_every_s: float) -> None:
        if not self._pairs or not self._moves or self.target is None:
            return
        if time.monotonic() - self._looked_at < at_most_every_s:
            return
        if self._looking.acquire(blocking=False):
            self._looked_at = time.monotonic()
            threading.Thread(
                target=self._look_and_let_go, name="jobwire-names", daemon=True
            ).start()

    def _look_and_let_go(self) -> None:
        try:
            self._look()
        except Unavailable as error:
            log.debug("%s", error)
        finally:
            self._looking.release()


def _proxy_options(addresses: list[str]) -> Options:
    """Say whether an HTTP proxy of the environment is used.

    Brokers are usually internal, and a proxy for the web does not reach them. So `http_proxy` and
    `https_proxy` are ignored; gRPC's own `grpc_proxy` is used, except for loopback.
    """
    asked = os.environ.get(PROXY_VARIABLE)
    if asked:
        if len(addresses) > 1:
            raise ValueError(f"with {PROXY_VARIABLE} the target must be one address, not several")
        return [("grpc.http_proxy", asked if "://" in asked else f"http://{asked}")]
    if (
        os.environ.get(GRPC_PROXY_VARIABLE)
        and len(addresses) == 1
        and not _is_loopback(addresses[0])
    ):
        return []
    return [("grpc.enable_http_proxy", 0)]


def _is_loopback(address: str) -> bool:
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    number = _number(host)
    return host == "localhost" or (number is not None and ipaddress.ip_address(number).is_loopback)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"the address {address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _number(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host.split("%")[0]))
    except ValueError:
        return None


def _literal_target(pairs: list[tuple[str, int]], numbers: dict[str, list[str]]) -> str | None:
    """Spell several addresses as one target; gRPC takes lists of numbers of one family only."""
    families: dict[int, list[str]] = {4: [], 6: []}
    for host, port in pairs:
        for number in numbers.get(host, ()):
            version = ipaddress.ip_address(number).version
            shown = f"[{number}]" if version == 6 else number
            families[version].append(f"{shown}:{port}")
    for scheme, version in (("ipv4", 4), ("ipv6", 6)):
        if families[version]:
            return f"{scheme}:" + ",".join(dict.fromkeys(families[version]))
    return None
