"""The SOCKS5 handshake, octet for octet (RFC 1928 §3 to §6): whole, in pieces, and with nonsense."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.net.socks5 import ProxyRefused, Socks5
from engine.outcome import Cause

GREETING = b"220 mx.test ESMTP\r\n"
LOGIN = {"username": "anna", "password": "s3cretW0rd-wörd"}
REQUEST = bytes.fromhex("05 01 00 01 c0000201 0019")
REPLY_V4 = bytes.fromhex("05 00 00 01 c6336407 9c40")
REPLY_V6 = bytes.fromhex("05 00 00 04 20010db8000000000000000000000007 9c40")
REPLY_NAME = bytes.fromhex("05 00 00 03 0a") + b"egress.net" + bytes.fromhex("9c40")


def make(address="192.0.2.1", port=25, **login):
    return Socks5(address, port, **login)


def asked(**login):
    """A dialogue that has sent its request and waits for the reply."""
    dialogue = make(**login)
    assert dialogue.receive(b"\5\2\1\0" if login else b"\5\0").endswith(REQUEST)
    return dialogue


def refusal_of(dialogue, octets):
    with pytest.raises(ProxyRefused) as caught:
        dialogue.receive(octets)
    assert not dialogue.is_done
    assert dialogue.bound is None
    return caught.value


# -- what we say --------------------------------------------------------------------------------


def test_without_a_login_the_method_offered_is_none():
    assert make().begin() == b"\5\1\0"


def test_with_a_login_it_is_the_only_method_offered():
    assert make(**LOGIN).begin() == b"\5\1\2"


def test_the_request_follows_the_method_at_once():
    assert make().receive(b"\5\0") == REQUEST


def test_an_ipv6_target_is_asked_for_by_its_sixteen_octets():
    request = make("2001:db8::1", 2525).receive(b"\5\0")
    assert request == bytes.fromhex("05 01 00 04 20010db8000000000000000000000001 09dd")


def test_the_login_goes_out_in_octets_of_utf8_and_then_the_request():
    dialogue = make(**LOGIN)
    secret = "s3cretW0rd-wörd".encode()
    assert dialogue.receive(b"\5\2") == b"\1\4anna\x10" + secret
    assert dialogue.receive(b"\1\0") == REQUEST


def test_user_and_password_may_have_255_octets():
    login = make(username="u" * 255, password="p" * 255).receive(b"\5\2")
    assert login == b"\1\xff" + b"u" * 255 + b"\xff" + b"p" * 255


# -- what we are told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "bound"),
    [
        (REPLY_V4, ("198.51.100.7", 40000)),
        (REPLY_V6, ("2001:db8::7", 40000)),
        (REPLY_NAME, ("egress.net", 40000)),
        (b"\5\0\0\1" + bytes(6), ("0.0.0.0", 0)),
        (b"\5\0\0\3\xff" + b"n" * 255 + b"\xff\xff", ("n" * 255, 65535)),
    ],
)
@pytest.mark.parametrize("login", [{}, LOGIN])
def test_a_reply_of_each_type_is_read_in_full_and_tells_the_bound_address(reply, bound, login):
    dialogue = asked(**login)
    assert dialogue.receive(reply[:-1]) == b""
    assert not dialogue.is_done
    assert dialogue.bound is None
    assert dialogue.receive(reply[-1:]) == b""
    assert dialogue.is_done
    assert dialogue.bound == bound
    assert dialogue.leftover == b""


@pytest.mark.parametrize("reply", [REPLY_V4, REPLY_V6, REPLY_NAME])
def test_octets_behind_the_reply_are_left_for_the_target(reply):
    dialogue = asked()
    assert dialogue.receive(reply + GREETING[:4]) == b""
    assert dialogue.leftover == GREETING[:4]
    assert dialogue.receive(GREETING[4:]) == b""
    assert dialogue.leftover == GREETING


def test_before_the_end_nothing_is_left_over():
    dialogue = asked()
    dialogue.receive(REPLY_V4[:7])
    assert dialogue.leftover == b""


@pytest.mark.parametrize("login", [{}, LOGIN])
def test_octet_by_octet_is_the_same_as_whole(login):
    answers = (b"\5\2\1\0" if login else b"\5\0") + REPLY_NAME + GREETING
    whole, dripped = make(**login), make(**login)
    sent = whole.receive(answers)
    assert b"".join(dripped.receive(bytes([octet])) for octet in answers) == sent
    assert dripped.is_done
    assert (dripped.bound, dripped.leftover) == (whole.bound, whole.leftover)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words", "cause"),
    [
        (1, "general failure", Cause.REFUSED),
        (2, "not allowed by the rules", Cause.REFUSED),
        (3, "network unreachable", Cause.UNREACHABLE),
        (4, "host unreachable", Cause.UNREACHABLE),
        (5, "connection refused", Cause.REFUSED),
        (6, "TTL expired", Cause.UNREACHABLE),
        (7, "command not supported", Cause.UNSUPPORTED),
        (8, "address type not supported", Cause.UNSUPPORTED),
        (9, "without a known reason", Cause.REFUSED),
        (255, "without a known reason", Cause.REFUSED),
    ],
)
def test_each_reply_code_has_its_words_and_cause(code, words, cause):
    refusal = refusal_of(asked(), bytes([5, code, 0, 1]) + bytes(6))
    assert (refusal.code, refusal.cause) == (code, cause)
    assert words in refusal.text
    assert f"reply {code}" in refusal.text
    assert str(refusal) == refusal.text


def test_a_refusal_needs_no_address_behind_it():
    assert refusal_of(asked(), b"\5\5").code == 5


@pytest.mark.parametrize(
    ("login", "words"), [({}, "does not take us without a login"), (LOGIN, "take our login")]
)
def test_no_acceptable_method_is_a_matter_of_our_configuration(login, words):
    refusal = refusal_of(make(**login), b"\5\xff")
    assert (refusal.code, refusal.cause) == (255, Cause.CONFIG)
    assert words in refusal.text


@pytest.mark.parametrize("status", [1, 3, 255])
def test_a_refused_login_is_told_by_its_status_not_by_the_words_of_replies(status):
    dialogue = make(**LOGIN)
    dialogue.receive(b"\5\2")
    refusal = refusal_of(dialogue, bytes([1, status]))
    assert (refusal.code, refusal.cause) == (status, Cause.CONFIG)
    assert refusal.text == f"the proxy refused the login (status {status})"


@pytest.mark.parametrize(
    ("before", "octets", "what"),
    [
        (b"", b"\4\0", "version 4 in place of 5"),
        (b"", b"HTTP/1.1 400 Bad Request\r\n", "version 72 in place of 5"),
        (b"", b"\5\2", "method 2, which was not offered"),
        (b"", b"\5\1", "method 1, which was not offered"),
        (b"\5\0", b"\4\0", "version 4 in place of 5"),
        (b"\5\0", b"\4\5\0\1\0", "version 4 in place of 5"),
        (b"\5\0", b"\5\0\7\1\0", "reserved octet 7 in place of 0"),
        (b"\5\0", b"\5\0\0\0\0", "address type 0"),
        (b"\5\0", b"\5\0\0\2\0", "address type 2"),
        (b"\5\0", b"\5\0\0\3\0\0\x19", "a name that is empty"),
        (b"\5\0", b"\5\0\0\3\4a\r\nb\0\x19", "other than visible ASCII"),
        (b"\5\0", b"\5\0\0\3\4a b!\0\x19", "other than visible ASCII"),
        (b"\5\0", b"\5\0\0\3\3a\x1b[\0\x19", "other than visible ASCII"),
        (b"\5\0", b"\5\0\0\3\2\xc3\xb6\0\x19", "other than visible ASCII"),
    ],
)
def test_what_is_no_socks5_is_malformed_and_has_no_code(before, octets, what):
    dialogue = make()
    dialogue.receive(before)
    refusal = refusal_of(dialogue, octets)
    assert (refusal.code, refusal.cause) == (None, Cause.MALFORMED_REPLY)
    assert what in refusal.text
    assert refusal.text.isprintable()


@pytest.mark.parametrize("octets", [b"\5\0", b"\2\0"])
def test_the_answer_to_a_login_has_the_version_of_logins(octets):
    dialogue = make(**LOGIN)
    dialogue.receive(b"\5\2")
    text = refusal_of(dialogue, octets).text
    assert f"version {octets[0]} in place of 1" in text


def test_a_proxy_may_not_skip_the_login():
    assert "method 0, which was not offered" in refusal_of(make(**LOGIN), b"\5\0").text


def test_a_refusal_stays_one_whatever_comes_behind_it():
    dialogue = asked()
    first = refusal_of(dialogue, b"\5\4")
    assert refusal_of(dialogue, REPLY_V4).text == first.text


def test_a_refusal_is_an_error_of_the_engine():
    assert isinstance(refusal_of(make(), b"\5\xff"), EngineError)


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["mx.test", "", "[2001:db8::1]", "fe80::1%eth0", "192.0.2.01"])
def test_only_numeric_addresses_can_be_asked_for(address):
    with pytest.raises(ValueError, match="is not an IP address; allowed are"):
        make(address)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(ValueError, match=f"port {port}: allowed are numbers from 1 to 65535"):
        make(port=port)


@pytest.mark.parametrize("bad", ["", "s3cretW0rd" * 26, "ö" * 128, "s3cretW0rd\udc80"])
@pytest.mark.parametrize("name", ["username", "password"])
def test_a_login_of_a_size_that_cannot_be_sent_is_refused_and_not_quoted(name, bad):
    with pytest.raises(ValueError, match="allowed are 1 to 255 octets of UTF-8") as caught:
        make(**(LOGIN | {name: bad}))
    assert "s3cretW0rd" not in repr(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", ["username", "password"])
def test_half_a_login_is_refused_and_not_quoted(name):
    with pytest.raises(ValueError, match="user and password together, or neither") as caught:
        make(**{name: "s3cretW0rd"})
    assert "s3cretW0rd" not in str(caught.value)


def test_credentials_show_in_no_repr_and_no_refusal():
    dialogue = make(**LOGIN)
    dialogue.receive(b"\5\2")
    shown = repr(dialogue) + repr(refusal_of(dialogue, b"\1\1"))
    assert "anna" not in shown
    assert "s3cretW0rd" not in shown


# -- whatever a proxy may send ------------------------------------------------------------------

replies = st.builds(
    lambda code, kind, rest: bytes([5, code, 0, kind]) + rest,
    st.sampled_from([0, 0, 0, 1, 5, 99]),
    st.sampled_from([0, 1, 3, 4]),
    st.binary(max_size=40),
)
talk = st.builds(
    lambda head, reply, rest: head + reply + rest,
    st.sampled_from([b"", b"\5\0", b"\5\2\1\0", b"\5\2\1\1", b"\5\xff"]),
    replies | st.binary(max_size=300),
    st.binary(max_size=40),
)


def result_of(login, pieces):
    """What comes of it: the octets sent and either the end, the wait, or the refusal."""
    dialogue = make(**login)
    sent = b""
    try:
        for piece in pieces:
            sent += dialogue.receive(piece)
    except ProxyRefused as refusal:
        return refusal.code, refusal.text, refusal.cause
    return sent, dialogue.is_done, dialogue.bound, dialogue.leftover


@given(st.sampled_from([{}, LOGIN]), talk, st.lists(st.integers(0, 300), max_size=5))
@example({}, b"\5\0" + REPLY_NAME + GREETING, [1, 3, 9])
@example(LOGIN, b"\5\2\1\0" + REPLY_V6 + GREETING, [3, 30])
def test_any_octets_give_progress_done_or_a_refusal_however_they_are_cut(login, octets, cuts):
    places = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    pieces = [octets[start:end] for start, end in pairwise(places)]
    whole = result_of(login, [octets])
    assert result_of(login, pieces) == whole
    assert result_of(login, [bytes([octet]) for octet in octets]) == whole


@pytest.mark.parametrize("login", [{}, LOGIN])
def test_a_proxy_cannot_make_us_wait_for_more_than_the_longest_reply(login):
    dialogue = asked(**login)
    dialogue.receive(b"\5\0\0\3\xff" + b"n" * 256)
    assert not dialogue.is_done
    dialogue.receive(b"n" * 1000)
    assert dialogue.is_done
    assert dialogue.leftover == b"n" * 999


ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)


@given(
    ipv4 | ipv6,
    st.integers(1, 65535),
    ipv4 | ipv6 | st.text("abc-.09", min_size=1, max_size=255),
    st.integers(0, 65535),
    st.binary(max_size=60),
)
def test_any_target_and_any_bound_address_get_through(target, port, bound, bound_port, behind):
    dialogue = make(str(target), port)
    request = dialogue.receive(b"\5\0")
    assert request[:4] == bytes([5, 1, 0, 1 if target.version == 4 else 4])
    assert request[4:] == target.packed + port.to_bytes(2, "big")
    if isinstance(bound, str):
        octets = bytes([3, len(bound)]) + bound.encode()
    else:
        octets = bytes([1 if bound.version == 4 else 4]) + bound.packed
    assert dialogue.receive(b"\5\0\0" + octets + bound_port.to_bytes(2, "big") + behind) == b""
    assert dialogue.bound == (str(bound), bound_port)
    assert dialogue.leftover == behind
