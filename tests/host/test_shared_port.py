"""Ports that the processes of one server share."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from jobwire_server.host.shared_port import AddressInUse, HeldPort


def _shared(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::]"])
def test_a_held_port_is_a_real_one_that_several_can_listen_on(host: str) -> None:
    with closing(HeldPort(f"{host}:0")) as held:
        name, _, port = held.address.rpartition(":")
        assert name == host
        assert int(port) > 0
        with closing(_shared(int(port))), closing(_shared(int(port))):
            pass


def test_two_parents_that_start_together_do_not_hold_one_port() -> None:
    with closing(HeldPort("127.0.0.1:0")) as first:
        address = first.address
    with closing(HeldPort(address)), pytest.raises(AddressInUse, match="can't be bound"):
        # Nobody listens yet.
        HeldPort(address)
    HeldPort(address).close()


def test_a_port_on_which_somebody_listens_is_refused_even_if_he_would_share() -> None:
    with closing(HeldPort("127.0.0.1:0")) as held:
        address = held.address
        port = int(address.rpartition(":")[2])
        with closing(_shared(port)), pytest.raises(AddressInUse):
            HeldPort(address)


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(AddressInUse, match="can't be bound"):
        HeldPort("no.such.host.invalid:1")


def test_an_address_that_is_not_of_this_machine_is_refused() -> None:
    with pytest.raises(AddressInUse):
        HeldPort("192.0.2.1:0")
