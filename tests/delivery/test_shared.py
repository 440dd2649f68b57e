import pytest

from engine.delivery.shared import Path
from engine.settings import Settings
from engine.smtp.command import Kind


def test_a_path_takes_what_connecting_needs_from_the_settings():
    settings = Settings(
        interface=["127.0.0.2"],
        interface_strict=True,
        connect_timeout=7,
        keepalive=False,
        port=2525,
    )

    options = Path.of(settings).options

    assert (options.interface, options.interface_strict) == (("127.0.0.2",), True)
    assert (options.connect_timeout, options.keepalive, options.port) == (7.0, False, 2525)


@pytest.mark.parametrize(("protocol", "port"), [("smtp", 25), ("lmtp", 24), ("smtps", 465)])
def test_without_a_port_the_protocol_decides(protocol, port):
    assert Path.of(Settings(protocol=protocol)).options.port == port


def test_each_kind_of_reply_has_its_own_timeout():
    settings = Settings(
        greeting_timeout=1, command_timeout=2, data_timeout=3, final_timeout=4, quit_timeout=5
    )

    timeouts = Path.of(settings).timeouts

    table = timeouts.of_kinds()
    assert (table[Kind.CONNECT], table[Kind.QUIT]) == (1, 5)
    assert {table[Kind.CONTENT], table[Kind.BDAT_LAST]} == {4}
    assert {table[kind] for kind in (Kind.EHLO, Kind.MAIL, Kind.RCPT, Kind.DATA, Kind.RSET)} == {2}
    assert timeouts.data == 3
