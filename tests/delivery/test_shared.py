from __future__ import annotations

import pytest

from engine.delivery.session_terms import Timeouts
from engine.delivery.shared import Path
from engine.engine import Engine
from engine.net.options import ConnectOptions
from engine.routing.router import Router
from engine.setting_types import DSCP_NAMES
from engine.settings import Settings
from engine.testing.dns import FakeDns
from tests.delivery.helpers import message, serving, settings


def test_a_path_has_what_the_connector_and_the_session_need():
    found = Settings(
        interface=["192.0.2.9"],
        interface_strict=True,
        port=2525,
        dscp="ef",
        keepalive=False,
        keepalive_idle="1m",
        keepalive_interval=7,
        keepalive_count=8,
        user_timeout="90s",
        connect_timeout=1,
        greeting_timeout=2,
        command_timeout=3,
        data_timeout=4,
        final_timeout=5,
        quit_timeout=6,
    )

    path = Path.of(found)

    assert path.settings is found
    assert path.options == ConnectOptions(
        port=2525,
        interface=("192.0.2.9",),
        interface_strict=True,
        connect_timeout=1,
        dscp=0xB8,
        keepalive=False,
        keepalive_idle=60,
        keepalive_interval=7,
        keepalive_count=8,
        user_timeout=90,
    )
    assert path.timeouts == Timeouts(greeting=2, command=3, data=4, final=5, quit=6)


@pytest.mark.parametrize(
    ("dscp", "octet"),
    [(None, None), ("off", None), (0, 0), (46, 0xB8), (0x3F, 0xFC), ("af11", 0x28), ("0x2e", 0xB8)],
)
def test_a_code_point_stands_in_the_six_high_bits_of_the_octet(dscp, octet):
    assert Path.of(Settings(dscp=dscp)).options.dscp == octet


@pytest.mark.parametrize("name", DSCP_NAMES)
def test_a_name_is_the_octet_itself(name):
    assert Path.of(Settings(dscp=name)).options.dscp == DSCP_NAMES[name]


def test_without_settings_the_connection_is_the_systems():
    assert Path.of(Settings()).options == ConnectOptions()


@pytest.mark.parametrize(("protocol", "port"), [("smtp", 25), ("lmtp", 24), ("smtps", 465)])
def test_without_a_port_it_is_the_protocols_own(protocol, port):
    assert Path.of(Settings(protocol=protocol)).options.port == port


def test_the_port_may_be_a_service_and_wins_over_the_protocols():
    assert Path.of(Settings(protocol="lmtp", port="submission")).options.port == 587


async def test_connections_are_numbered_over_all_sites(autojump_clock):
    async with serving() as service:
        router = Router(FakeDns({"x.test": {"A": ["192.0.2.1"]}}))
        outcomes = []
        async with Engine(settings(), router=router, connector=service) as engine:
            for to in ("a@x.test", "b@[192.0.2.2]", "c@x.test", "d@[192.0.2.3]"):
                await engine.submit(message(to))
                outcomes.append(await engine.outcomes.receive())

    assert [outcome.peer.connection for outcome in outcomes] == [1, 2, 1, 3]
