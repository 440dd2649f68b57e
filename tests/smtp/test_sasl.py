from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp import command
from engine.smtp.errors import LocalProtocolError, SaslError
from engine.smtp.mechanisms import MECHANISMS, Credentials
from engine.smtp.reply import Reply
from engine.smtp.sasl import (
    CANCEL,
    MAX_COMMAND_OCTETS,
    choose,
    encode,
    encode_initial,
    read_challenge,
    start,
)

PASSWORD = Credentials("me", "s3cretW0rd")
TOKEN = Credentials("me", "s3cretW0rd", is_token=True)
NOTHING = Credentials(None)
ALL = list(MECHANISMS)


def chosen(offered, wanted=(), credentials=PASSWORD, *, tls=True, in_clear=False):
    return choose(offered, wanted, has_tls=tls, in_clear_allowed=in_clear, credentials=credentials)


# ---- choosing -------------------------------------------------------------------------------------


def test_a_password_tries_the_strongest_first_whatever_the_server_prefers():
    assert chosen(ALL[::-1]) == ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"]


def test_a_token_tries_what_takes_tokens():
    assert chosen(ALL, credentials=TOKEN) == ["OAUTHBEARER", "XOAUTH2"]
    assert chosen(ALL, credentials=Credentials(None, "t", is_token=True)) == ["OAUTHBEARER"]


def test_external_is_tried_only_when_it_is_named():
    assert chosen(["EXTERNAL"]) == []
    assert chosen(["EXTERNAL"], credentials=NOTHING) == []
    assert chosen(["EXTERNAL", "PLAIN"], ["EXTERNAL"], NOTHING) == ["EXTERNAL"]


def test_named_mechanisms_keep_their_order():
    assert chosen(ALL, ["login", "PLAIN", "LOGIN", "SCRAM-SHA-1"]) == [
        "LOGIN",
        "PLAIN",
        "SCRAM-SHA-1",
    ]


def test_named_mechanisms_say_what_the_secret_is():
    """A file may hold a token, and a command may print a password."""
    assert chosen(ALL, ["XOAUTH2", "PLAIN"], PASSWORD) == ["XOAUTH2", "PLAIN"]
    assert chosen(ALL, ["XOAUTH2", "PLAIN"], TOKEN) == ["XOAUTH2", "PLAIN"]


def test_the_servers_list_counts_in_any_case_and_unknown_names_are_passed_over():
    offered = ["plain", "GSSAPI", "Scram-Sha-256-Plus", "NTLM", "login"]
    assert chosen(offered) == ["PLAIN", "LOGIN"]
    assert chosen(offered, ["NTLM", "LOGIN"]) == ["LOGIN"]
    assert chosen([]) == []


def test_without_tls_nothing_shows_the_secret():
    """RFC 4954 §4 and §9."""
    assert chosen(ALL, tls=False) == ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5"]
    assert chosen(ALL, credentials=TOKEN, tls=False) == []
    assert chosen(ALL, ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"], tls=False) == []
    assert chosen(ALL, ["EXTERNAL"], NOTHING, tls=False) == ["EXTERNAL"]


def test_without_tls_the_secret_shows_when_it_is_allowed_to():
    assert chosen(["PLAIN", "LOGIN"], tls=False, in_clear=True) == ["PLAIN", "LOGIN"]
    assert chosen(ALL, credentials=TOKEN, tls=False, in_clear=True) == ["OAUTHBEARER", "XOAUTH2"]


@given(
    st.lists(st.sampled_from([*ALL, "NTLM"])),
    st.lists(st.sampled_from([*ALL, "NTLM"])),
    st.builds(
        Credentials, st.sampled_from([None, "", "me"]), st.sampled_from([None, "t"]), st.booleans()
    ),
    st.booleans(),
    st.booleans(),
)
def test_what_is_chosen_can_be_started(offered, wanted, credentials, tls, in_clear):
    names = chosen(offered, wanted, credentials, tls=tls, in_clear=in_clear)
    assert len(set(names)) == len(names)
    for name in names:
        assert name in offered
        assert tls or in_clear or not MECHANISMS[name].shows_secret
        start(name, credentials, nonce="abc")


# ---- one exchange ---------------------------------------------------------------------------------


def test_an_exchange_says_its_mechanism_and_no_secret():
    exchange = start("PLAIN", PASSWORD)
    assert repr(exchange) == "<Exchange PLAIN>"
    assert exchange.mechanism == "PLAIN"


def test_a_mechanism_that_is_unknown_is_a_bug_of_ours():
    for name in ("NTLM", "plain", ""):
        with pytest.raises(LocalProtocolError, match="not known"):
            start(name, PASSWORD)


@pytest.mark.parametrize(
    ("mechanism", "one_step", "derives"),
    [
        ("PLAIN", True, False),
        ("EXTERNAL", True, False),
        ("LOGIN", False, False),
        ("CRAM-MD5", False, False),
        ("XOAUTH2", False, False),
        ("OAUTHBEARER", False, False),
        ("SCRAM-SHA-1", False, True),
        ("SCRAM-SHA-256", False, True),
    ],
)
def test_an_exchange_knows_what_may_follow_and_what_it_costs(mechanism, one_step, derives):
    exchange = start(mechanism, PASSWORD, nonce="abc")
    assert exchange.is_one_step is one_step
    assert exchange.derives_keys is derives


@pytest.mark.parametrize("mechanism", ["PLAIN", "EXTERNAL"])
def test_a_challenge_nobody_expects_ends_the_exchange(mechanism):
    exchange = start(mechanism, PASSWORD)
    for _ in range(2):
        with pytest.raises(SaslError, match=f"a challenge more than {mechanism} has"):
            exchange.respond(b"more")


def test_an_early_success_of_a_mechanism_without_proofs_is_a_success():
    exchange = start("LOGIN", PASSWORD)
    exchange.finish()
    with pytest.raises(SaslError):
        exchange.respond(b"Username:")


def auth_line(exchange):
    initial = exchange.initial_response()
    argument = None if initial is None else encode_initial(initial)
    return command.auth(exchange.mechanism, argument).octets


@pytest.mark.parametrize("mechanism", ["PLAIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL"])
@given(st.integers(300, 420))
def test_a_long_initial_response_waits_for_the_empty_challenge(mechanism, length):
    """RFC 4954 §4: it must not make the command longer than RFC 5321 §4.5.3.1.4 allows."""
    credentials = Credentials("m" * length if mechanism == "EXTERNAL" else "me", "t" * length)
    whole = start(mechanism, credentials)._initial
    exchange = start(mechanism, credentials)
    line = auth_line(exchange)
    assert len(line) <= MAX_COMMAND_OCTETS
    in_one = f"AUTH {mechanism} {base64.b64encode(whole).decode()}\r\n".encode()
    if len(in_one) <= MAX_COMMAND_OCTETS:
        assert line == in_one
        assert exchange.is_one_step is MECHANISMS[mechanism].is_one_step
    else:
        assert line == f"AUTH {mechanism}\r\n".encode()
        assert exchange.is_one_step is False
        assert exchange.respond(b"") == whole
        exchange.finish()


def test_a_long_initial_response_is_not_given_to_a_challenge_with_data():
    exchange = start("XOAUTH2", Credentials("me", "t" * 600, is_token=True))
    with pytest.raises(SaslError, match="where the server waits for us to begin"):
        exchange.respond(b"{}")


def test_a_refusal_is_acknowledged_after_a_long_initial_response_too():
    exchange = start("XOAUTH2", Credentials("me", "t" * 600, is_token=True))
    assert exchange.respond(b"").startswith(b"user=me\x01")
    assert exchange.respond(b'{"status":"400"}') == b""


# ---- lines ----------------------------------------------------------------------------------------


def test_lines_are_base64_and_an_empty_initial_response_is_an_equals_sign():
    assert encode(b"\0test\0" + b"1234") == b"AHRlc3QAMTIzNA=="
    assert encode(b"") == b""
    assert encode_initial(b"") == b"="
    assert encode_initial(b"\0test\0" + b"1234") == b"AHRlc3QAMTIzNA=="
    assert len(encode(b"x" * 9000)) == 12000


def test_the_commands_show_nothing_of_it():
    exchange = start("PLAIN", PASSWORD)
    opening = command.auth("PLAIN", encode_initial(exchange.initial_response()))
    assert opening.octets == b"AUTH PLAIN AG1lAHMzY3JldFcwcmQ=\r\n"
    assert opening.text == "AUTH PLAIN ****"
    assert command.auth("EXTERNAL", encode_initial(b"")).octets == b"AUTH EXTERNAL =\r\n"
    assert command.auth_step(CANCEL).octets == b"*\r\n"
    assert command.auth_step(encode(b"")).octets == b"\r\n"


@given(st.binary(max_size=200))
def test_a_challenge_is_read_as_it_was_written(octets):
    assert read_challenge(Reply(334, (base64.b64encode(octets),))) == octets


@pytest.mark.parametrize(
    "lines",
    [
        (b"=",),
        (b"=AAA",),
        (b"AAA=BBB",),
        (b"AAAA=",),
        (b"AAA",),
        (b"A",),
        (b"AA==AA==",),
        (b"AAAA AAAA",),
        (b"AAAA\tAAAA",),
        (b" AAAA",),
        (b"AAAA ",),
        (b"AAAA\n",),
        (b"Username:",),
        (b"Gr\xfc\xdfe",),
        (b"AA-_",),
        (b"AAAA", b"AAAA"),
        (b"", b""),
    ],
)
def test_a_challenge_of_anything_but_one_line_of_base64_is_refused(lines):
    """RFC 4954 §4: it must be refused, and nothing in it may be passed over."""
    with pytest.raises(SaslError, match=r"more than one line|no base64") as caught:
        read_challenge(Reply(334, lines))
    assert "User" not in str(caught.value)


@given(st.lists(st.binary(max_size=30) | st.text("AQ=").map(str.encode), min_size=1, max_size=2))
def test_any_challenge_is_read_or_refused(lines):
    with suppress(SaslError):
        challenge = read_challenge(Reply(334, tuple(lines)))
        assert len(encode(challenge)) == len(lines[0])
