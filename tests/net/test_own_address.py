from __future__ import annotations

import socket

import pytest

from engine.net.options import ConnectOptions
from engine.net.own_address import own_address_towards
from engine.outcome import Peer


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.77"])
def test_the_routing_table_tells(address):
    found = own_address_towards(Peer("mx", address, 25), ConnectOptions())

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 25))
        assert found == sock.getsockname()[0]


def test_an_interface_is_what_it_is():
    options = ConnectOptions(interface=("2001:db8::1", "192.0.2.9"))

    assert own_address_towards(Peer("mx", "127.0.0.1", 25), options) == "192.0.2.9"


def test_where_there_is_no_way_nobody_can_tell():
    options = ConnectOptions(interface=("2001:db8::1",), interface_strict=True)

    assert own_address_towards(Peer("mx", "127.0.0.1", 25), options) is None


def test_a_system_without_a_route_cannot_tell(monkeypatch):
    class NoWay(socket.socket):
        def connect(self, _where):
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", NoWay)

    assert own_address_towards(Peer("mx", "192.0.2.1", 25), ConnectOptions()) is None
