from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.engine import Engine
from engine.routing.own import parse_fib_trie, parse_if_inet6, read_own_addresses

if TYPE_CHECKING:
    from pathlib import Path

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     +-- 192.0.2.0/24 2 0 2
        +-- 192.0.2.0/30 2 0 2
           |-- 192.0.2.0
              /24 link UNICAST
           |-- 192.0.2.2
              /30 link UNICAST
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
     |-- 198.51.100.7
        /32 host LOCAL
"""
IF_INET6 = """\
20010db8000000000000000000000002 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
"""


def test_local_leaves_of_the_trie_are_ours():
    assert parse_fib_trie(FIB_TRIE) == {"127.0.0.1", "192.0.2.2", "198.51.100.7"}


def test_networks_and_broadcasts_are_not_ours():
    assert parse_fib_trie(FIB_TRIE.replace("host LOCAL", "link UNICAST")) == frozenset()


def test_addresses_of_ipv6_get_their_usual_form():
    assert parse_if_inet6(IF_INET6) == {"2001:db8::2", "::1", "fe80::fc:ff:fe00:1"}


@pytest.mark.parametrize("text", ["", "nonsense\n", "|-- 1.2.3.4"])
def test_what_is_not_understood_has_no_addresses(text: str):
    assert parse_fib_trie(text) | parse_if_inet6(text) == frozenset()


def test_files_are_read_where_they_exist(tmp_path: Path):
    ipv4, ipv6 = tmp_path / "fib_trie", tmp_path / "if_inet6"
    assert read_own_addresses(ipv4, ipv6) == frozenset()
    ipv4.write_text(FIB_TRIE)
    assert read_own_addresses(ipv4, ipv6) == parse_fib_trie(FIB_TRIE)
    ipv6.write_text(IF_INET6)
    assert read_own_addresses(ipv4, ipv6) == parse_fib_trie(FIB_TRIE) | parse_if_inet6(IF_INET6)


def test_an_engine_takes_the_addresses_of_this_machine_unless_told(monkeypatch):
    monkeypatch.setattr("engine.engine.read_own_addresses", lambda: frozenset({"192.0.2.2"}))

    def own(**arguments: object) -> frozenset[str]:
        return Engine(**arguments)._dispatcher._router._local_addresses

    assert own() == {"192.0.2.2", "127.0.0.1", "::1"}
    assert own(own_addresses=["198.51.100.7"]) == {"198.51.100.7"}
    assert own(own_addresses=[]) == frozenset()


def test_an_engine_knows_its_own_names():
    assert Engine(own_names=["MX.example.net."])._dispatcher._router._own_names == {
        "mx.example.net"
    }
