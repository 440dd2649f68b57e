"""Verdicts by TLSA records, without a network.  `tests/servers/test_dane.py` compares with OpenSSL."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from engine.net.dane import DaneMatch, is_match, key_of, verify_dane
from engine.net.tls_errors import Unverified
from engine.security import Tlsa
from tests.certificates import make, rsa_key

NOW = datetime.now(UTC)
NAME = "mx.example.test"
ROOT = make("root", is_ca=True)
INTER = make("inter", ROOT, is_ca=True)
LEAF = make("leaf", INTER, names=[NAME])
CHAIN = [LEAF.der, INTER.der, ROOT.der]
JUNK = b"0\x03\x02\x01\x00"
OTHER = make("other", is_ca=True)


def verify(*records, chain=CHAIN, names=(NAME,), now=NOW):
    return verify_dane(records, chain, names, now)


def refused(*records, **options):
    with pytest.raises(Unverified) as info:
        verify(*records, **options)
    return info.value


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_a_record_matches_by_selector_and_matching_type(selector, matching):
    record = LEAF.tlsa(3, selector, matching)
    assert verify(record) == DaneMatch(record, None)
    assert not is_match(record, INTER.der)


def test_usage_3_ignores_names_and_dates():
    old = make("old", names=["elsewhere.test"], days=(-30, -1))
    assert verify(old.tlsa(3, 1, 1), chain=[old.der], names=()).name is None


def test_usage_3_looks_at_the_peers_own_certificate_only():
    assert refused(INTER.tlsa(3, 1, 1)).result == "tlsa-invalid"


def test_one_record_that_matches_is_enough():
    record = LEAF.tlsa(3, 1, 1)
    assert verify(OTHER.tlsa(3, 1, 1), OTHER.tlsa(2, 0, 1), record).record is record


def test_usage_2_tells_the_name_it_went_by():
    record = ROOT.tlsa(2, 0, 1)
    match = verify(record, names=("example.test", NAME))
    assert match == DaneMatch(record, NAME)


@pytest.mark.parametrize("names", [(), ("example.test",), ("mx.example.test.evil.test",)])
def test_usage_2_wants_a_name(names):
    flaw = refused(ROOT.tlsa(2, 0, 1), names=names)
    assert flaw.result == "certificate-host-mismatch"


def test_usage_2_minds_the_dates():
    flaw = refused(ROOT.tlsa(2, 0, 1), now=NOW + timedelta(days=91))
    assert flaw.result == "certificate-expired"
    assert "expired on" in flaw.text
    flaw = refused(ROOT.tlsa(2, 0, 1), now=NOW - timedelta(days=2))
    assert flaw.result == "certificate-not-trusted"
    assert "begins on" in flaw.text


def test_an_authority_that_expired_is_told_from_one_that_is_not_trusted():
    inter = make("inter", ROOT, is_ca=True, days=(-9, -1))
    leaf = make("leaf", inter, names=[NAME])
    flaw = refused(ROOT.tlsa(2, 0, 1), chain=[leaf.der, inter.der, ROOT.der])
    assert flaw.result == "certificate-expired"


def test_usage_2_takes_the_common_name_where_there_is_no_other():
    leaf = make(NAME, ROOT)
    assert verify(ROOT.tlsa(2, 0, 1), chain=[leaf.der, ROOT.der]).name == NAME


def test_what_does_not_lead_to_the_anchor_is_not_trusted():
    leaf = make("leaf", make("inter", is_ca=True), names=[NAME])  # signed by an impostor
    flaw = refused(INTER.tlsa(2, 0, 1), chain=[leaf.der, INTER.der])
    assert flaw.result == "certificate-not-trusted"


def test_an_anchor_from_dns_need_not_be_in_the_chain():
    record = ROOT.tlsa(2, 0, 0)
    assert verify(record, chain=CHAIN[:2]).record is record
    assert refused(ROOT.tlsa(2, 0, 1), chain=CHAIN[:2]).result == "tlsa-invalid"
    assert refused(OTHER.tlsa(2, 0, 0), chain=CHAIN[:2]).result == "certificate-not-trusted"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa_key(2048),
        ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=lambda key: type(key).__name__,
)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_bare_key_from_dns_need_not_be_in_the_chain(key, depth):
    root = make("root", is_ca=True, key=key)
    inter = make("inter", root, is_ca=True)
    leaf = make("leaf", inter if depth == 2 else root, names=[NAME])
    record = root.tlsa(2, 1, 0)
    chain = [each.der for each in leaf.path[:depth]]
    assert verify(record, chain=chain) == DaneMatch(record, NAME)
    assert refused(OTHER.tlsa(2, 1, 0), chain=chain).result == "tlsa-invalid"


def test_a_key_that_is_in_several_certificates_is_found_in_the_one_that_serves():
    elsewhere = make("elsewhere", is_ca=True)
    vouched_for = make("root", elsewhere, is_ca=True, key=ROOT.key, days=(-9, -1))
    chain = [LEAF.der, INTER.der, JUNK, vouched_for.der, ROOT.der]
    assert verify(ROOT.tlsa(2, 1, 1), chain=chain).name == NAME


def test_a_bare_key_vouches_for_dates_and_names_no_more_than_a_certificate():
    old = make("old", ROOT, names=[NAME], days=(-9, -1))
    assert refused(ROOT.tlsa(2, 1, 0), chain=[old.der]).result == "certificate-expired"
    wrong = make("wrong", ROOT, names=["elsewhere.test"])
    flaw = refused(ROOT.tlsa(2, 1, 0), chain=[wrong.der])
    assert flaw.result == "certificate-host-mismatch"


def test_a_bare_key_below_which_there_is_no_authority_is_refused():
    no_ca = make("no-ca", ROOT)
    leaf = make("leaf", no_ca, names=[NAME])
    flaw = refused(ROOT.tlsa(2, 1, 0), chain=[leaf.der, no_ca.der])
    assert flaw.result == "certificate-not-trusted"


@pytest.mark.parametrize(
    "record",
    [
        Tlsa(0, 0, 1, hashlib.sha256(LEAF.der).digest()),
        Tlsa(1, 0, 1, hashlib.sha256(LEAF.der).digest()),
        Tlsa(3, 2, 1, hashlib.sha256(LEAF.der).digest()),
        Tlsa(3, 0, 3, hashlib.sha256(LEAF.der).digest()),
        Tlsa(255, 255, 255, b""),
        Tlsa(3, 0, 0, b""),
        Tlsa(2, 0, 0, b""),
        Tlsa(2, 0, 0, b"0\x80no certificate"),
        Tlsa(2, 1, 0, b"no key"),
        Tlsa(2, 1, 0, LEAF.der),
        Tlsa(2, 0, 0, LEAF.der),
    ],
    ids=lambda record: " ".join(map(str, record[:3])),
)
def test_what_cannot_be_used_matches_nothing(record):
    assert refused(record).result == "tlsa-invalid"


def test_the_text_names_the_kinds_of_records_and_nothing_of_the_peer():
    flaw = refused(OTHER.tlsa(3, 1, 1), OTHER.tlsa(2, 0, 1), OTHER.tlsa(3, 1, 1))
    assert flaw.text == "no TLSA record matches the certificate (2 0 1, 3 1 1)"


@pytest.mark.parametrize("chain", [[JUNK, *CHAIN[1:]], [LEAF.der, JUNK, ROOT.der]])
def test_a_chain_that_cannot_be_read_is_refused(chain):
    flaw = refused(ROOT.tlsa(2, 0, 0), chain=chain)
    assert flaw.result == "certificate-not-trusted"


def test_what_cannot_be_read_is_no_matter_where_nothing_depends_on_it():
    record = ROOT.tlsa(2, 0, 0)
    assert verify(record, chain=[*CHAIN[:2], JUNK]).record is record


# -- the key in a certificate -------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        rsa_key(1024),
        rsa_key(4096),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.BrainpoolP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(3, 2048),
    ],
    ids=lambda key: f"{type(key).__name__}",
)
def test_the_key_is_taken_out_octet_for_octet(key):
    issued = make("a name of some length " * 2, names=[f"{n}.test" for n in range(40)], key=key)
    assert key_of(issued.der) == issued.spki


def test_a_key_that_no_library_would_write_so_is_taken_as_it_stands():
    compressed = bytearray(LEAF.der)
    place = compressed.index(LEAF.spki)
    compressed[place + 26] = 0x02  # of an uncompressed point's octets, this says which form it is
    assert key_of(bytes(compressed)) == bytes(compressed[place : place + len(LEAF.spki)])


@given(st.binary(max_size=80))
def test_no_octets_crash_it(octets):
    with contextlib.suppress(Unverified):
        assert key_of(octets) in octets


@given(st.integers(0, len(LEAF.der) - 1), st.integers(0, 255))
def test_no_change_of_a_certificate_crashes_the_verdict(place, octet):
    changed = bytearray(LEAF.der)
    changed[place] = octet
    for record in (LEAF.tlsa(3, 1, 1), ROOT.tlsa(2, 0, 1), ROOT.tlsa(2, 1, 0)):
        try:
            match = verify(record, chain=[bytes(changed), INTER.der, ROOT.der])
        except Unverified:
            continue
        # It stands where it did, or the change was outside of what the record is about.
        assert bytes(changed) == LEAF.der or match.record.usage == 3


def test_a_key_of_a_kind_that_signs_nothing_we_read_is_no_anchor():
    key = dsa.generate_private_key(1024).public_key()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert refused(Tlsa(2, 1, 0, octets)).result == "tlsa-invalid"
