"""What is said, and who is blamed, when TLS fails."""

from __future__ import annotations

import ssl

import pytest
import trio

from engine.net.tls_errors import TlsFailed, Unverified, describe
from engine.outcome import Cause, Peer, Scope
from engine.smtp.stages import Stage

PEER = Peer("mx.test", "192.0.2.1", 25)


def ssl_error(reason, kind=ssl.SSLError, **attributes):
    error = kind(1, f"[SSL: {reason}] whatever (_ssl.c:1006)")
    error.reason = reason
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def test_a_failed_handshake_is_the_hosts_and_may_work_in_clear():
    failure = TlsFailed.from_handshake(PEER, ssl_error("TLSV1_ALERT_INTERNAL_ERROR"))
    assert failure.text == ("start TLS with mx.test [192.0.2.1]:25: tlsv1 alert internal error")
    assert str(failure) == failure.text
    assert failure.reason == "tlsv1 alert internal error"
    assert (failure.stage, failure.cause, failure.scope) == (Stage.TLS, Cause.TLS, Scope.HOST)
    assert failure.result == "validation-failure"
    assert failure.clear_may_help
    assert failure.errno is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("WRONG_VERSION_NUMBER", "wrong version number"),
        ("HTTP_REQUEST", "http request"),
        (None, "failed"),
        ("", "failed"),
    ],
)
def test_openssls_words_are_made_plain(reason, text):
    assert describe(ssl_error(reason)) == text


def test_common_failures_of_a_handshake_are_said_in_words_of_ours_too():
    failure = TlsFailed.from_handshake(PEER, ssl_error("WRONG_VERSION_NUMBER"))
    assert failure.reason == "the peer does not answer with TLS (wrong version number)"


def test_who_hangs_up_is_said_to_have_hung_up():
    failure = TlsFailed.from_handshake(PEER, ssl_error("", ssl.SSLEOFError))
    assert failure.cause is Cause.TLS
    assert failure.reason == "the peer closed the connection"
    assert failure.clear_may_help


@pytest.mark.parametrize(
    ("code", "result"),
    [
        (10, "certificate-expired"),
        (9, "certificate-not-trusted"),
        (18, "certificate-not-trusted"),
        (20, "certificate-not-trusted"),
        (66, "certificate-not-trusted"),
    ],
)
def test_a_certificate_found_wanting_is_reported_by_its_flaw_and_forbids_clear(code, result):
    error = ssl_error(
        "CERTIFICATE_VERIFY_FAILED",
        ssl.SSLCertVerificationError,
        verify_code=code,
        verify_message="it is not well",
    )
    failure = TlsFailed.from_handshake(PEER, error)
    assert failure.result == result
    assert failure.reason == "it is not well"
    assert failure.cause is Cause.TLS
    assert not failure.clear_may_help
    assert Unverified.from_openssl(error).result == result


def test_a_broken_connection_keeps_the_systems_number():
    error = trio.BrokenResourceError("connection broken: Connection reset by peer")
    error.__cause__ = OSError(104, "Connection reset by peer")
    failure = TlsFailed.from_lost_connection(PEER, error)
    assert failure.errno == 104
    assert failure.cause is Cause.TLS
    assert failure.clear_may_help
    assert TlsFailed.from_lost_connection(PEER, trio.BrokenResourceError()).reason
