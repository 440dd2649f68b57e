"""Options of a connection and the plan of socket options."""

from __future__ import annotations

import dataclasses
import math
import socket

import pytest

from engine.net.options import (
    BIND_OPTIONS,
    ConnectOptions,
    options_after_connect,
    socket_options,
)

KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def test_defaults_are_those_of_the_settings():
    options = ConnectOptions()
    assert options.port == 25
    assert options.interface == ()
    assert options.interface_strict is False
    assert options.connect_timeout == 300.0
    assert options.keepalive is True


def test_options_are_a_value():
    assert ConnectOptions(port="smtp") == ConnectOptions(port=25)
    assert hash(ConnectOptions()) == hash(ConnectOptions())
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConnectOptions().port = 26


def test_a_service_name_is_a_number_once_the_options_exist():
    assert ConnectOptions(port="smtp").port == 25
    assert dataclasses.replace(ConnectOptions(), port="2525").port == 2525


def test_a_bad_port_is_refused_when_the_options_are_made():
    with pytest.raises(ValueError, match="port 'no-such-service'"):
        ConnectOptions(port="no-such-service")


def test_a_bad_interface_is_refused_when_the_options_are_made():
    with pytest.raises(ValueError, match="interface: 'eth0'"):
        ConnectOptions(interface=("192.0.2.1", "eth0"))


@pytest.mark.parametrize("seconds", [0, 0.0, -1, math.nan])
def test_a_connect_timeout_that_is_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match=r"connect_timeout .* above 0"):
        ConnectOptions(connect_timeout=seconds)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_nodelay_is_set_before_connect(family):
    plan = socket_options(ConnectOptions(), family)
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in plan
    assert KEEPALIVE not in plan


def test_keepalive_is_set_after_connect_unless_switched_off():
    assert options_after_connect(ConnectOptions()) == (KEEPALIVE,)
    assert options_after_connect(ConnectOptions(keepalive=False)) == ()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_knows_every_option_of_the_plans(family):
    options = ConnectOptions()
    with socket.socket(family) as sock:
        for level, name, value in (
            *socket_options(options, family),
            *BIND_OPTIONS,
            *options_after_connect(options),
        ):
            sock.setsockopt(level, name, value)
            assert sock.getsockopt(level, name) == value


def test_the_bind_option_is_bind_address_no_port():
    assert BIND_OPTIONS == ((socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1),)
