"""Which port a connection goes to."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.net.options import ConnectOptions
from engine.net.port import port_for, refuse_unknown_services, resolve_port
from engine.route import Candidate


@given(st.integers(1, 65535))
def test_every_port_is_itself_as_number_and_as_text(port):
    assert resolve_port(port) == port
    assert resolve_port(str(port)) == port


def test_a_service_name_is_looked_up():
    assert resolve_port("smtp") == 25


@pytest.mark.parametrize(
    "port",
    [
        0,
        -1,
        65536,
        "0",
        "65536",
        "99999",
        "-1",
        "+25",
        " 25",
        "25 ",
        "25\n",
        "2_5",
        "0x19",
        "031",
        "٢٥",
        "9" * 5000,
        "",
        "no-such-service",
        "smtp\0",
        "\udc80",
    ],
)
def test_a_bad_port_is_refused_with_what_is_allowed(port):
    with pytest.raises(ValueError, match="from 1 to 65535 nor the name of a TCP service") as info:
        resolve_port(port)
    assert repr(port) in str(info.value)


@given(st.integers() | st.text(max_size=12))
def test_whatever_comes_in_a_port_or_value_error_comes_out(port):
    with contextlib.suppress(ValueError):
        assert 1 <= resolve_port(port) <= 65535


def test_the_candidates_own_port_wins():
    options = ConnectOptions(port=26)
    assert port_for(Candidate("mx.test", "192.0.2.1", port=2525), options) == 2525
    assert port_for(Candidate("mx.test", "192.0.2.1"), options) == 26


def test_a_candidates_port_out_of_range_is_refused():
    with pytest.raises(ValueError, match="port 0"):
        port_for(Candidate("mx.test", "192.0.2.1", port=0), ConnectOptions())


def test_a_unix_socket_has_no_port():
    assert port_for(Candidate("unix:/run/lmtp", None), ConnectOptions(port=24)) is None


def test_services_that_are_not_known_are_refused_with_their_places():
    refuse_unknown_services(
        {"port": "smtp", "paths[0] x.test: port": 2525, "paths[1] *: port": None}
    )

    with pytest.raises(ConfigError) as caught:
        refuse_unknown_services({"port": "nope", "paths[1] x.test: port": "no service"})
    allowed = "allowed a number from 1 to 65535 or a TCP service that this host knows"
    assert caught.value.problems == (
        f'port: found "nope"; {allowed}',
        f'paths[1] x.test: port: found "no service"; {allowed}',
    )
