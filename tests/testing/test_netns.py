"""Network namespaces: what is needed for them, and that they come and go."""

from __future__ import annotations

import os
import re
import secrets
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.testing import netns

FAST_OPEN = "net.ipv4.tcp_fastopen"
needs_link = pytest.mark.usefixtures("open_link")


@contextmanager
def namespace():
    name = f"engine-test-{os.getpid()}-{secrets.token_hex(4)}"
    netns.add(name)
    try:
        yield name
    finally:
        netns.delete(name)


def names():
    folder = Path("/run/netns")
    return {each.name for each in folder.iterdir()} if folder.exists() else set()


def devices():
    return {name for _, name in socket.if_nameindex()}


@pytest.mark.servers
@needs_link
def test_a_namespace_has_a_name_until_it_is_deleted():
    with namespace() as name:
        assert name in names()
    assert name not in names()
    netns.delete(name)  # nothing to do


@pytest.mark.servers
@needs_link
def test_inside_there_are_other_devices_and_outside_the_same_as_before():
    before = devices()
    with namespace() as name:
        with netns.inside(name):
            assert devices() == {"lo"}
            with netns.inside(name):
                pass
            assert devices() == {"lo"}
        assert devices() == before
        with pytest.raises(ZeroDivisionError), netns.inside(name):
            raise ZeroDivisionError
        assert devices() == before


@pytest.mark.servers
@needs_link
def test_a_device_has_addresses_once_it_is_up_and_goes_with_its_descriptor():
    with namespace() as name, netns.inside(name):
        descriptor = netns.open_tun("link")
        netns.bring_up(name, "link", ["198.18.0.1/24"])
        with socket.socket() as sock:
            sock.bind(("198.18.0.1", 0))
        with pytest.raises(OSError, match="busy"):
            netns.open_tun("link")
        os.close(descriptor)
        assert devices() == {"lo"}


@pytest.mark.servers
@needs_link
def test_kernel_parameters_are_those_of_the_namespace():
    outside = Path("/proc/sys/net/ipv4/tcp_fastopen").read_text()
    with namespace() as name:
        with netns.inside(name):
            netns.set_sysctl(FAST_OPEN, "3")
            assert Path("/proc/sys/net/ipv4/tcp_fastopen").read_text() == "3\n"
            with pytest.raises(OSError, match=r"sysctl net.ipv4.no_such = 1: No such file"):
                netns.set_sysctl("net.ipv4.no_such", "1")
            with pytest.raises(OSError, match=r"sysctl net.ipv4.tcp_fastopen = often: Invalid"):
                netns.set_sysctl(FAST_OPEN, "often")
        assert Path("/proc/sys/net/ipv4/tcp_fastopen").read_text() == outside


@pytest.mark.servers
@needs_link
def test_what_fails_says_what_was_tried():
    with pytest.raises(FileNotFoundError):
        with netns.inside("engine-test-nowhere"):
            pass
    with namespace() as name:
        with pytest.raises(OSError, match=f"ip netns add {name}: .*File exists"):
            netns.add(name)
        with pytest.raises(OSError, match="Cannot find device"):
            netns.bring_up(name, "link", [])


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ("0000000000000000", "root is needed .*CAP_NET_ADMIN, CAP_SYS_ADMIN"),
        ("0000000000001000", "root is needed .*lacks CAP_SYS_ADMIN"),
        ("0000000000201000", "/no/such/tun is needed"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, tmp_path, capabilities, expected):
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\nCapBnd:\t0\n")
    monkeypatch.setattr(netns, "_STATUS", status)
    monkeypatch.setattr(netns, "TUN", Path("/no/such/tun"))
    assert re.search(expected, str(netns.what_is_missing()))


def test_the_command_ip_is_missed(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("CapEff:\t000001ffffffffff\n")
    monkeypatch.setattr(netns, "_STATUS", status)
    monkeypatch.setattr(netns, "TUN", tmp_path)
    monkeypatch.setattr(netns, "find_ip", lambda: None)
    assert "iproute2" in str(netns.what_is_missing())


def test_a_machine_without_capabilities_cannot_have_them(monkeypatch):
    monkeypatch.setattr(netns, "_STATUS", Path("/no/such/status"))
    assert "root is needed" in str(netns.what_is_missing())
