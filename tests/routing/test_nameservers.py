from __future__ import annotations

import pytest

from engine.routing.nameservers import (
    NameServer,
    is_any_trusted,
    parse_server,
    read_resolv_conf,
    system_servers,
    trust_in,
)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.53", NameServer("192.0.2.53", 53)),
        ("127.0.0.1:5353", NameServer("127.0.0.1", 5353)),
        ("2001:db8::53", NameServer("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", NameServer("2001:db8::53", 5353)),
    ],
)
def test_a_server_is_read(text, server):
    assert parse_server(text) == server
    assert parse_server(str(server)) == server


@pytest.mark.parametrize("text", ["ns.example.test", "192.0.2.53:0", "", "192.0.2.53:domain"])
def test_what_is_no_server_is_refused(text):
    with pytest.raises(ValueError, match=r"name server .*allowed: .*192\.0\.2\.\d+:\d+"):
        parse_server(text)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        pytest.param("nameserver 192.0.2.53\n", ["192.0.2.53"], id="one"),
        pytest.param(
            "search test\noptions ndots:2\n nameserver 192.0.2.9\nnameserver\t192.0.2.1  # ours\n"
            "#nameserver 192.0.2.2\nnameserver 2001:db8::53\n",
            ["192.0.2.1", "2001:db8::53"],
            id="among other lines",
        ),
        pytest.param(
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
            "nameserver 192.0.2.4\n",
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
            id="three at most",
        ),
        pytest.param("nameserver fe80::1%eth0\n", ["fe80::1%eth0"], id="with a zone id"),
        pytest.param("nameserver ns.test\nnameserver\n", ["127.0.0.1"], id="none that is usable"),
        pytest.param("", ["127.0.0.1"], id="none"),
    ],
)
def test_resolv_conf_names_servers(text, addresses):
    assert read_resolv_conf(text) == tuple(NameServer(address, 53) for address in addresses)


def test_the_system_servers_are_those_of_the_file(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"# caf\xe9\nnameserver 192.0.2.53\n")

    assert system_servers(path) == (NameServer("192.0.2.53"),)


def test_without_the_file_the_server_is_on_this_host(tmp_path):
    assert system_servers(tmp_path / "resolv.conf") == (NameServer("127.0.0.1"),)


@pytest.mark.parametrize(
    ("trusted", "yes", "no"),
    [
        (None, ["127.0.0.1", "127.0.0.53", "::1"], ["192.0.2.53", "2001:db8::53"]),
        (["192.0.2.53", "2001:DB8:0::53"], ["192.0.2.53", "2001:db8::53"], ["127.0.0.1"]),
        ([], [], ["127.0.0.1", "::1"]),
    ],
)
def test_loopback_servers_are_trusted_unless_others_are_named(trusted, yes, no):
    is_trusted = trust_in(trusted)

    assert all(map(is_trusted, yes))
    assert not any(map(is_trusted, no))


@pytest.mark.parametrize(
    ("servers", "trusted", "expected"),
    [
        (["127.0.0.1:5353"], None, True),
        (["192.0.2.53"], None, False),
        (["192.0.2.53", "192.0.2.54"], ["192.0.2.54"], True),
        (["127.0.0.1"], [], False),
        ([], None, False),
        ([], ["192.0.2.1"], True),
    ],
)
def test_whether_anybody_is_trusted_depends_on_who_is_asked(servers, trusted, expected, tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    assert is_any_trusted(servers, trusted, path) is expected
