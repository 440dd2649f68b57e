from __future__ import annotations

import base64
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramMechanism

from engine.smtp.errors import CredentialsError, LocalProtocolError, SaslError, ServerProofError
from engine.smtp.mechanisms import MAX_ITERATIONS, MECHANISMS, Credentials
from engine.smtp.sasl import start

TIM = Credentials("tim", "tanstaaftanstaaf")
PENCIL = Credentials("user", "pencil")
SHA1_NONCE = "fyko+d2lbbFgONRv9qkxdawL"
SHA1_FIRST = b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096"
SHA256_NONCE = "rOprNGfwEbeRWgbNEkqO"
SHA256_FIRST = (
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
SHA256_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def play(exchange, *challenges):
    """What the client says: the initial response, then one response a challenge."""
    return [exchange.initial_response(), *map(exchange.respond, challenges)]


# ---- what each says ------------------------------------------------------------------------------


def test_plain_says_all_at_once():
    """RFC 4616 §4, first example."""
    exchange = start("PLAIN", TIM)
    assert play(exchange) == [b"\0tim\0tanstaaftanstaaf"]
    exchange.finish()


def test_login_answers_two_prompts_whatever_they_say():
    exchange = start("LOGIN", TIM)
    assert play(exchange, b"Username:", b"") == [None, b"tim", b"tanstaaftanstaaf"]
    exchange.finish()


def test_cram_md5_answers_with_a_digest():
    """RFC 2195 §2."""
    exchange = start("CRAM-MD5", TIM)
    assert play(exchange, b"<1896.697170952@postoffice.reston.mci.net>") == [
        None,
        b"tim b913a602c7eda7a495b4e6e7334d3890",
    ]
    exchange.finish()


def test_scram_sha_1_proves_itself_and_takes_the_servers_proof():
    """RFC 5802 §5."""
    exchange = start("SCRAM-SHA-1", PENCIL, nonce=SHA1_NONCE)
    assert play(exchange, SHA1_FIRST, b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=") == [
        b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        b"",
    ]
    exchange.finish()


def test_scram_sha_256_proves_itself_and_takes_the_servers_proof():
    """RFC 7677 §3."""
    exchange = start("SCRAM-SHA-256", PENCIL, nonce=SHA256_NONCE)
    assert play(exchange, SHA256_FIRST, SHA256_FINAL) == [
        b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        (
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        ),
        b"",
    ]
    exchange.finish()


def test_xoauth2_says_user_and_token():
    """The example in Google's description of the mechanism."""
    token = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"
    exchange = start("XOAUTH2", Credentials("someuser@example.com", token, is_token=True))
    (initial,) = play(exchange)
    assert base64.b64encode(initial) == (
        b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRx"
        b"bVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ=="
    )
    exchange.finish()


def test_xoauth2_answers_the_reason_of_a_refusal_with_nothing():
    exchange = start("XOAUTH2", Credentials("me", "t", is_token=True))
    reason = b'{"status":"401","schemes":"bearer","scope":"https://mail.google.com/"}'
    assert play(exchange, reason)[1] == b""
    with pytest.raises(SaslError, match="a challenge more than XOAUTH2 has"):
        exchange.respond(reason)


OAUTH = Credentials("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", is_token=True)


def test_oauthbearer_says_where_it_goes_and_the_token():
    """RFC 7628 §4.1."""
    exchange = start("OAUTHBEARER", OAUTH, host="server.example.com", port=143)
    (initial,) = play(exchange)
    assert base64.b64encode(initial) == (
        b"bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9"
        b"MTQzAWF1dGg9QmVhcmVyIHZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZ"
        b"Mjl0Q2c9PQEB"
    )
    exchange.finish()


def test_oauthbearer_acknowledges_the_reason_of_a_refusal():
    """RFC 7628 §4.3: `AQ==` on the wire."""
    exchange = start("OAUTHBEARER", OAUTH)
    assert play(exchange, b'{"status":"invalid_token"}')[1] == b"\x01"
    with pytest.raises(SaslError, match="a challenge more than OAUTHBEARER has"):
        exchange.respond(b"")


@pytest.mark.parametrize(
    ("username", "header"),
    [(None, b"n,,"), ("", b"n,,"), ("a=b,c", b"n,a=a=3Db=2Cc,"), ("jörg", "n,a=jörg,".encode())],
)
def test_oauthbearer_writes_the_identity_as_a_saslname(username, header):
    (initial,) = play(start("OAUTHBEARER", Credentials(username, "t", is_token=True)))
    assert initial == header + b"\x01auth=Bearer t\x01\x01"


@pytest.mark.parametrize(
    ("username", "said"), [(None, b""), ("joe@example.com", b"joe@example.com")]
)
def test_external_says_whom_to_act_as_or_nothing(username, said):
    exchange = start("EXTERNAL", Credentials(username))
    assert play(exchange) == [said]
    exchange.finish()


def test_names_and_passwords_go_out_as_utf_8():
    assert play(start("PLAIN", Credentials("jörg", "s3cretW0rd wört"))) == [
        "\0jörg\0s3cretW0rd wört".encode()
    ]
    assert play(start("LOGIN", Credentials("jörg", "ü")), b"", b"")[1:] == [
        "jörg".encode(),
        "ü".encode(),
    ]
    # printf '<1@a>' | openssl dgst -md5 -mac HMAC -macopt hexkey:c3bc
    (_, response) = play(start("CRAM-MD5", Credentials("jörg", "ü")), b"<1@a>")
    assert response == "jörg 30d9161bdc11d80e3e27f62fe99f5beb".encode()


# ---- SCRAM against its server ---------------------------------------------------------------------


def scram_server(mechanism, credentials):
    facts = ScramMechanism(mechanism).make_auth_info(credentials.secret)
    return ScramMechanism(mechanism).make_server(lambda _name: facts)


@settings(max_examples=20)
@given(
    st.sampled_from(["SCRAM-SHA-1", "SCRAM-SHA-256"]),
    st.text(
        st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_characters="\x7f"), min_size=1
    ),
    st.text(st.sampled_from("abc=,\u00aa\u2168 "), min_size=1),
)
def test_scram_comes_to_terms_with_an_independent_server(mechanism, password, username):
    try:
        credentials = Credentials(username, password)
        exchange = start(mechanism, credentials, nonce="client-nonce")
    except CredentialsError:
        return  # SASLprep does not allow it
    server = scram_server(mechanism, credentials)
    server.set_client_first(exchange.initial_response().decode())
    client_final = exchange.respond(server.get_server_first().encode())
    server.set_client_final(client_final.decode())
    assert exchange.respond(server.get_server_final().encode()) == b""
    exchange.finish()


def test_scram_prepares_the_user_name():
    """RFC 4013 §3: U+00AA becomes a, U+2168 becomes IX, a soft hyphen goes."""
    exchange = start("SCRAM-SHA-256", Credentials("I\u00ad\u00aa\u2168", "x"), nonce="abc")
    assert exchange.initial_response() == b"n,,n=IaIX,r=abc"


def test_a_success_without_the_servers_proof_is_none():
    """RFC 5802 §9: without it anybody could have played the server."""
    exchange = start("SCRAM-SHA-256", PENCIL, nonce=SHA256_NONCE)
    exchange.respond(SHA256_FIRST)
    with pytest.raises(ServerProofError, match="success without proof"):
        exchange.finish()
    with pytest.raises(ServerProofError, match="success without proof"):
        start("SCRAM-SHA-1", PENCIL, nonce=SHA1_NONCE).finish()


@pytest.mark.parametrize(
    "server_final",
    [
        SHA256_FINAL.replace(b"6rri", b"6rrj"),
        b"v=",
        b"v=x",
        b"",
        b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        b"V=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ],
)
def test_a_wrong_proof_of_the_server_unmasks_it(server_final):
    exchange = start("SCRAM-SHA-256", PENCIL, nonce=SHA256_NONCE)
    exchange.respond(SHA256_FIRST)
    with pytest.raises(ServerProofError, match="does not prove"):
        exchange.respond(server_final)


@pytest.mark.parametrize("server_final", [b"e=invalid-proof", b"e=whatever they like"])
def test_a_refusal_in_the_last_challenge_is_no_impostor(server_final):
    exchange = start("SCRAM-SHA-256", PENCIL, nonce=SHA256_NONCE)
    exchange.respond(SHA256_FIRST)
    with pytest.raises(SaslError, match="refused our proof") as caught:
        exchange.respond(server_final)
    assert not isinstance(caught.value, ServerProofError)


@pytest.mark.parametrize(
    ("server_first", "problem"),
    [
        (b"", "no server-first-message"),
        (b"\xff", "no UTF-8"),
        (SHA256_FIRST.replace(b"r=r", b"r=s"), "no server-first-message"),
        (SHA256_FIRST.replace(b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", b""), "no server-first-message"),
        (SHA256_FIRST.replace(b"i=4096", b"i=0"), "no server-first-message"),
        (SHA256_FIRST.replace(b"i=4096", b"i=1"), "no server-first-message"),
        (SHA256_FIRST.replace(b"i=4096", b"i=4096x"), "no server-first-message"),
        (SHA256_FIRST.replace(b"i=4096", b"i=" + b"9" * 5000), "no server-first-message"),
        (SHA256_FIRST.replace(b"s=W22Z", b"s=!!!!"), "no server-first-message"),
        (b"m=ext," + SHA256_FIRST, "no server-first-message"),
        (SHA256_FIRST.replace(b"i=4096", b"i=1000001"), f"over {MAX_ITERATIONS} rounds"),
        (SHA256_FIRST.replace(b"i=4096", b"i=99999999999"), f"over {MAX_ITERATIONS} rounds"),
    ],
)
def test_a_bad_first_challenge_of_scram_is_refused(server_first, problem):
    exchange = start("SCRAM-SHA-256", PENCIL, nonce=SHA256_NONCE)
    with pytest.raises(SaslError, match=problem) as caught:
        exchange.respond(server_first)
    assert not isinstance(caught.value, ServerProofError)


def test_scram_takes_extensions_it_does_not_know():
    exchange = start("SCRAM-SHA-256", PENCIL, nonce=SHA256_NONCE)
    assert exchange.respond(SHA256_FIRST + b",x=new").startswith(b"c=biws,")


@pytest.mark.parametrize("nonce", ["", "a,b", "a b", "a\n", "é"])
def test_scram_refuses_a_nonce_that_is_none(nonce):
    with pytest.raises(LocalProtocolError, match="nonce"):
        start("SCRAM-SHA-1", PENCIL, nonce=nonce)


# ---- hostile servers --------------------------------------------------------------------------------


CHALLENGES = st.lists(
    st.binary(max_size=60)
    | st.sampled_from([SHA1_FIRST, SHA256_FIRST, SHA256_FINAL, b"e=x", b"v=", b"<a@b>", b""])
    | st.lists(st.sampled_from([b"r=abc", b"s=", b"i=5000", b",", b"=", b"QSXCR+Q6sek8bf92", b"\xff", b"\0"])).map(b"".join),
    max_size=5,
)  # fmt: skip


def error_of(exchange, challenges):
    """Play an exchange to its end, and return the one error it may end with."""
    try:
        for challenge in challenges:
            assert isinstance(exchange.respond(challenge), bytes)
        exchange.finish()
    except SaslError as error:
        return error
    return None


@given(st.sampled_from(list(MECHANISMS)), CHALLENGES)
def test_whatever_a_server_says_is_answered_or_a_sasl_error(mechanism, challenges):
    exchange = start(mechanism, Credentials("user", "pencil-s3cretW0rd"), nonce="abc")
    error = error_of(exchange, challenges)
    assert "s3cretW0rd" not in "".join(traceback.format_exception(error)) + repr(exchange)
    # What the library says of a challenge may quote it.
    assert error is None or error.__suppress_context__ or error.__context__ is None


def test_cram_md5_without_a_challenge_is_refused():
    with pytest.raises(SaslError, match="without a challenge"):
        start("CRAM-MD5", TIM).respond(b"")
    with pytest.raises(SaslError, match="without a challenge"):
        start("CRAM-MD5", TIM).finish()


def test_cram_md5_without_md5_is_refused(monkeypatch):
    def refuse(*_):
        raise ValueError("unsupported hash type md5")

    monkeypatch.setattr("hmac.new", refuse)
    with pytest.raises(SaslError, match="MD5 is switched off"):
        start("CRAM-MD5", TIM).respond(b"<1@a>")


# ---- credentials -------------------------------------------------------------------------------------


def test_credentials_show_no_secret():
    credentials = Credentials("me", "s3cretW0rd", is_token=True)
    assert repr(credentials) == "Credentials(username='me', is_token=True)"


@pytest.mark.parametrize(("username", "secret"), [("a\0b", "x"), ("a", "s3\0"), ("a", "s3\ud800")])
def test_credentials_that_no_mechanism_could_carry_are_refused(username, secret):
    with pytest.raises(CredentialsError, match="a NUL or a surrogate") as caught:
        Credentials(username, secret)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("mechanism", "credentials", "problem"),
    [
        *[(name, Credentials(None, "s3"), "no user name") for name in ("PLAIN", "LOGIN", "CRAM-MD5")],
        *[(name, Credentials("", "s3"), "no user name") for name in ("SCRAM-SHA-1", "XOAUTH2")],
        *[
            (name, Credentials("me"), "no password or token")
            for name in MECHANISMS
            if name != "EXTERNAL"
        ],
        ("SCRAM-SHA-256", Credentials("me", "s3\x07"), "outside SASLprep"),
        ("SCRAM-SHA-256", Credentials("\u0627a", "s3"), "outside SASLprep"),
        ("SCRAM-SHA-256", Credentials("\u00ad", "s3"), "outside SASLprep"),
        ("XOAUTH2", Credentials("me\x01", "s3"), "a control character in the user name"),
        ("OAUTHBEARER", Credentials("me\x01", "s3"), "a control character in the user name"),
        *[
            (name, Credentials("me", secret), "a token that is not")
            for name in ("XOAUTH2", "OAUTHBEARER")
            for secret in ("", "s3 4", "s3\x01", "s3\r\n", "s3é")
        ],
    ],
)  # fmt: skip
def test_a_mechanism_refuses_credentials_it_cannot_carry(mechanism, credentials, problem):
    with pytest.raises(CredentialsError, match=problem) as caught:
        start(mechanism, credentials, nonce="abc")
    assert "s3" not in str(caught.value)


def test_the_table_is_in_order_of_strength():
    assert list(MECHANISMS) == [
        "SCRAM-SHA-256",
        "SCRAM-SHA-1",
        "CRAM-MD5",
        "PLAIN",
        "LOGIN",
        "OAUTHBEARER",
        "XOAUTH2",
        "EXTERNAL",
    ]
    shown = [name for name, facts in MECHANISMS.items() if facts.shows_secret]
    assert shown == ["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"]


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_what_shows_the_secret_is_what_the_table_says(name):
    credentials = Credentials("user", "s3cretW0rd")
    exchange = start(name, credentials, nonce=SHA256_NONCE)
    said = exchange.initial_response() or b""
    for challenge in (SHA256_FIRST, SHA256_FINAL):
        try:
            said += b"|" + exchange.respond(challenge)
        except SaslError:
            break
    assert (b"s3cretW0rd" in said) is MECHANISMS[name].shows_secret
