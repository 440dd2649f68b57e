from __future__ import annotations

from collections import deque

import pytest

from engine.testing import sink_house
from engine.testing.sink_house import MAX_CONTENT_OCTETS, House


def make_house(*extensions, has_tls=False):
    return House(
        greeting=b"220 sink.test\r\n",
        extensions=extensions,
        lmtp=False,
        has_tls=has_tls,
        is_curious=True,
        hands_over=False,
        kept=deque(),
    )


@pytest.mark.parametrize(
    ("house", "is_secure", "reply"),
    [
        (make_house(), False, b"250 sink.test\r\n"),
        (make_house(b"DSN"), False, b"250-sink.test\r\n250 DSN\r\n"),
        (make_house(b"DSN", b"SIZE 9"), True, b"250-sink.test\r\n250-DSN\r\n250 SIZE 9\r\n"),
        (make_house(has_tls=True), False, b"250-sink.test\r\n250 STARTTLS\r\n"),
        (make_house(has_tls=True), True, b"250 sink.test\r\n"),
    ],
)
def test_hello_announces_what_is_offered_and_tls_only_in_clear(house, is_secure, reply):
    assert house.hello(is_secure=is_secure) == reply


@pytest.mark.parametrize(
    ("extensions", "octets"),
    [
        ((b"DSN", b"SIZE 10"), 10),
        # RFC 1870 §3: 0 says that there is no fixed limit, as does no number at all.
        ((b"SIZE 0",), MAX_CONTENT_OCTETS),
        ((b"SIZE",), MAX_CONTENT_OCTETS),
        ((b"SIZE many",), MAX_CONTENT_OCTETS),
        ((b"XSIZE 10",), MAX_CONTENT_OCTETS),
        ((), MAX_CONTENT_OCTETS),
    ],
)
def test_the_number_behind_size_is_the_limit(extensions, octets):
    assert make_house(*extensions).max_octets == octets


def test_an_address_is_new_once():
    house = make_house()
    assert [house.is_new(name) for name in (b"a@d", b"b@d", b"a@d", b"b@d")] == [
        *(True, True, False, False)
    ]


def test_the_memory_for_addresses_is_bounded(monkeypatch):
    monkeypatch.setattr(sink_house, "_GREYLIST_ENTRIES", 2)
    house = make_house()
    assert [house.is_new(name) for name in (b"a@d", b"b@d", b"c@d", b"c@d", b"a@d")] == [
        *(True, True, True, False, True)
    ]
    assert house.greylisted == {b"a@d", b"c@d"}
