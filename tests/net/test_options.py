"""Options of a connection and the plan of socket options."""

from __future__ import annotations

import dataclasses
import math
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.net.options import (
    BIND_OPTIONS,
    ConnectOptions,
    options_after_connect,
    socket_options,
)
from engine.settings import Settings

KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def test_defaults_are_those_of_the_settings():
    options = ConnectOptions()
    assert options.port == 25
    assert options.interface == ()
    assert options.interface_strict is False
    assert options.connect_timeout == 300.0
    assert options.dscp is None
    assert options.keepalive is True
    assert options.keepalive_idle is None
    assert options.keepalive_interval is None
    assert options.keepalive_count is None
    assert options.user_timeout is None
    assert options.fast_open == Settings().fast_open == "connect"
    assert options.proxies == ()


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


@pytest.mark.parametrize("name", ["keepalive_idle", "keepalive_interval", "user_timeout"])
@pytest.mark.parametrize("seconds", [0, -1.5, math.nan, math.inf])
def test_a_knob_that_is_no_finite_time_is_refused(name, seconds):
    with pytest.raises(ValueError, match=rf"^{name} {seconds}: allowed are finite seconds above 0"):
        ConnectOptions(**{name: seconds})


@pytest.mark.parametrize("count", [0, -1])
def test_a_keepalive_count_below_1_is_refused(count):
    with pytest.raises(ValueError, match=rf"^keepalive_count {count}: allowed are 1 and more"):
        ConnectOptions(keepalive_count=count)


@pytest.mark.parametrize("dscp", [-1, 256])
def test_a_dscp_that_is_no_octet_is_refused(dscp):
    with pytest.raises(ValueError, match=rf"^dscp {dscp}: allowed is an octet, from 0 to 255"):
        ConnectOptions(dscp=dscp)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_nodelay_is_set_before_connect(family):
    plan = socket_options(ConnectOptions(), family)
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in plan
    assert KEEPALIVE not in plan


def test_keepalive_is_set_after_connect_unless_switched_off():
    assert options_after_connect(ConnectOptions()) == (KEEPALIVE,)
    assert options_after_connect(ConnectOptions(keepalive=False)) == ()


def test_dscp_is_one_option_over_ipv4_and_two_over_ipv6():
    nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tos = (socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
    tclass = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xB8)
    options = ConnectOptions(dscp=0xB8)
    assert socket_options(options, socket.AF_INET) == (nodelay, tos)
    assert socket_options(options, socket.AF_INET6) == (nodelay, tclass, tos)
    assert options_after_connect(options) == (KEEPALIVE,)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_dscp_0_is_asked_for_and_none_is_not(family):
    assert len(socket_options(ConnectOptions(dscp=None), family)) == 1
    assert (socket.IPPROTO_IP, socket.IP_TOS, 0) in socket_options(ConnectOptions(dscp=0), family)


def test_knobs_follow_the_keepalive_they_are_for():
    options = ConnectOptions(keepalive_idle=60, keepalive_interval=10.0, keepalive_count=4)
    assert options_after_connect(options) == (
        KEEPALIVE,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    )
    assert options_after_connect(dataclasses.replace(options, keepalive=False)) == ()


@pytest.mark.parametrize(
    ("seconds", "whole"), [(0.001, 1), (1.0, 1), (1.01, 2), (1e300, 2**31 - 1)]
)
def test_keepalive_times_are_rounded_up_to_whole_seconds(seconds, whole):
    options = ConnectOptions(keepalive_idle=seconds, keepalive_interval=seconds)
    assert [value for _, _, value in options_after_connect(options)] == [1, whole, whole]


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(90, 90_000), (0.5, 500), (16.1, 16_100), (1e-9, 1), (1e300, 2**31 - 1)],
)
def test_user_timeout_is_in_milliseconds_with_or_without_keepalive(seconds, milliseconds):
    expected = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    options = ConnectOptions(user_timeout=seconds)
    assert options_after_connect(options) == (KEEPALIVE, expected)
    assert options_after_connect(dataclasses.replace(options, keepalive=False)) == (expected,)


TIMES = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@given(idle=TIMES, interval=TIMES, count=st.integers(min_value=1), user_timeout=TIMES)
def test_every_value_fits_a_socket_option(idle, interval, count, user_timeout):
    options = ConnectOptions(
        keepalive_idle=idle,
        keepalive_interval=interval,
        keepalive_count=count,
        user_timeout=user_timeout,
    )
    values = [value for _, _, value in options_after_connect(options)]
    assert len(values) == 5
    assert all(1 <= value < 2**31 for value in values)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_knows_every_option_of_the_plans(family):
    options = ConnectOptions(
        dscp=0xB8, keepalive_idle=60, keepalive_interval=10, keepalive_count=4, user_timeout=90
    )
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
