from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from engine.worker.explain_certificate import MAX_NAMES, MAX_TEXT, read_certificate
from tests.certificates import make, rsa_key

NOW = datetime.now(UTC)
ROOT = make("Example Root", is_ca=True)


def test_it_says_whom_it_is_for_who_signed_it_and_until_when():
    issued = make("mx.test", ROOT, names=["mx.test", "192.0.2.1", "2001:db8::1"], days=(-1, 30.5))
    found = read_certificate(issued.der, NOW)
    assert found is not None
    assert (found.subject, found.issuer) == ("CN=mx.test", "CN=Example Root")
    assert found.names == ("mx.test", "192.0.2.1", "2001:db8::1")
    assert found.count == 3
    assert found.days_left == 30
    assert datetime.fromisoformat(found.not_after) > NOW + timedelta(30)
    assert datetime.fromisoformat(found.not_before) < NOW
    assert found.key == "elliptic curve secp256r1"


def test_the_tlsa_records_are_those_that_match_it():
    issued = make("mx.test", ROOT)
    found = read_certificate(issued.der, NOW)
    assert found is not None
    records = (issued.tlsa(3, 1, 1), issued.tlsa(3, 0, 1))
    assert found.tlsa == tuple(f"{u} {s} {m} {data.hex()}" for u, s, m, data in records)


@pytest.mark.parametrize(
    ("key", "text"),
    [(rsa_key(2048), "RSA, 2048 bits"), (ed25519.Ed25519PrivateKey.generate(), "Ed25519")],
)
def test_the_kind_of_key_is_told(key, text):
    found = read_certificate(make("mx.test", key=key).der, NOW)
    assert found is not None
    assert found.key == text


def test_one_that_has_expired_says_so():
    found = read_certificate(make("mx.test", days=(-30, -1.5)).der, NOW)
    assert found is not None
    assert found.days_left == -2


def test_what_a_host_makes_up_is_bounded_and_cannot_steer_a_terminal():
    evil = "\x1b[2J\x07" + "x" * 55
    names = [x509.DNSName(f"{number}.\x1b[7m.test") for number in range(MAX_NAMES + 50)]
    found = read_certificate(make(evil, alternatives=names).der, NOW)
    assert found is not None
    assert (len(found.names), found.count) == (MAX_NAMES, MAX_NAMES + 50)
    for text in (found.subject, found.issuer, *found.names):
        assert text.isprintable()
        assert len(text) <= MAX_TEXT


@given(st.binary(max_size=300))
def test_what_is_none_is_none(octets: bytes):
    assert read_certificate(octets, NOW) is None


@given(st.data())
def test_a_damaged_one_never_raises(data: st.DataObject):
    octets = bytearray(ROOT.der)
    place = data.draw(st.integers(0, len(octets) - 1))
    octets[place] = data.draw(st.integers(0, 255))
    read_certificate(bytes(octets), NOW)
