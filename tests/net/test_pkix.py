"""Chains that lead to an anchor, and those that do not."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from engine.net import pkix
from engine.net.pkix import load_anchors, load_certificate, verify_path, verify_signature
from engine.net.tls_errors import Unverified
from tests.certificates import CLIENTS_ONLY, NOT_SIGNING, make, rsa_key

NOW = datetime.now(UTC)
ROOT = make("root", is_ca=True)
INTER = make("inter", ROOT, is_ca=True)
LEAF = make("leaf", INTER, names=["mx.test"])


def verify(chain, *anchors):
    verify_path([each.certificate for each in chain], [each.certificate for each in anchors], NOW)


@pytest.mark.parametrize("anchor", [ROOT, INTER, LEAF])
def test_an_anchor_may_stand_anywhere_in_the_path(anchor):
    verify([LEAF, INTER, ROOT], anchor)
    verify([LEAF, ROOT, INTER], anchor)


def test_the_root_need_not_be_sent():
    verify([LEAF, INTER], ROOT)


def test_names_are_not_looked_at():
    verify([make("nameless", ROOT)], ROOT)


@pytest.mark.parametrize(
    "chain",
    [
        [LEAF],
        [LEAF, ROOT],
        [make("other", is_ca=True)],
        [make("leaf", make("root", is_ca=True))],
        [make("leaf", ROOT, usages=CLIENTS_ONLY)],
        [make("leaf", make("root", is_ca=True, key=rsa_key(1024)))],
        make("leaf", make("inter", ROOT, is_ca=True, key_usage=NOT_SIGNING)).path,
    ],
    ids=[
        "no intermediate",
        "a gap",
        "itself",
        "impostor",
        "clients only",
        "weak authority",
        "authority that may not sign",
    ],
)
def test_what_leads_nowhere_is_not_trusted(chain):
    with pytest.raises(Unverified) as info:
        verify(chain, ROOT)
    assert info.value.result == "certificate-not-trusted"
    assert info.value.text.startswith("the certificate is not trusted: ")
    assert info.value.text.isprintable()
    assert len(info.value.text) < 250
    assert "exhausted with" not in info.value.text


def test_no_anchors_trust_nobody():
    with pytest.raises(Unverified, match="no authority is trusted"):
        verify([LEAF, INTER, ROOT])


def test_a_chain_of_a_hundred_certificates_ends_in_a_verdict():
    below = ROOT
    for number in range(100):
        below = make(f"inter {number}", below, is_ca=True)
    with pytest.raises(Unverified):
        verify(make("leaf", below).path, ROOT)


def test_a_hundred_authorities_of_one_name_end_in_a_verdict():
    crowd = [make("root", is_ca=True) for _ in range(100)]
    with pytest.raises(Unverified):
        verify([make("leaf", make("root", is_ca=True)), *crowd], ROOT)


def test_what_is_no_certificate_is_said_to_be_none():
    with pytest.raises(Unverified, match="cannot be read"):
        load_certificate(b"no certificate")


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (ec.generate_private_key(ec.SECP256R1()), hashes.SHA224()),
        (rsa_key(1024), hashes.SHA256()),
    ],
)
def test_a_bare_key_signs_with_nothing_weak(key, digest):
    root = make("root", is_ca=True, key=key)
    leaf = make("leaf", root, digest=digest)
    with pytest.raises(InvalidSignature):
        verify_signature(leaf.certificate, key.public_key())


def test_a_bare_key_signs_only_what_it_signed():
    verify_signature(LEAF.certificate, INTER.key.public_key())
    for stranger in (ROOT.key, rsa_key(2048)):
        with pytest.raises(InvalidSignature):
            verify_signature(LEAF.certificate, stranger.public_key())


def test_anchors_come_from_a_file(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_bytes(ROOT.pem + b"text between\n" + INTER.pem)
    assert load_anchors(str(file)) == (ROOT.certificate, INTER.certificate)
    file.write_bytes(b"nothing\n")
    assert load_anchors(str(file)) == ()
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    file.write_bytes(ROOT.pem + broken + INTER.pem)
    assert load_anchors(str(file)) == (ROOT.certificate, INTER.certificate)
    with pytest.raises(FileNotFoundError):
        load_anchors(str(tmp_path / "none.pem"))


def test_the_serial_number_0_of_well_known_authorities_warns_nobody(tmp_path):
    octets = make("zero", is_ca=True, serial_number=127).der
    octets = octets.replace(b"\x02\x01\x7f", b"\x02\x01\x00", 1)
    file = tmp_path / "ca.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(octets))
    # Warnings are errors in tests: with one, neither could be read.
    assert len(load_anchors(str(file))) == 1
    assert load_certificate(octets).subject == load_anchors(str(file))[0].subject


def test_anchors_come_from_the_systems_file_or_else_its_folder(tmp_path, monkeypatch):
    (tmp_path / "root.crt").write_bytes(ROOT.pem)
    for link in ("01234567.0", "89abcdef.1"):
        (tmp_path / link).symlink_to("root.crt")
    (tmp_path / "ca.pem").write_bytes(INTER.pem)

    def paths(cafile, capath):
        found = ssl.DefaultVerifyPaths(cafile, capath, "", "", "", "")
        monkeypatch.setattr(pkix.ssl, "get_default_verify_paths", lambda: found)

    paths(str(tmp_path / "ca.pem"), str(tmp_path))
    assert load_anchors(None) == (INTER.certificate,)
    paths(None, str(tmp_path))
    assert load_anchors(None) == (ROOT.certificate,)
    paths(None, None)
    assert load_anchors(None) == ()


def test_an_extension_that_is_critical_and_unknown_is_not_passed_over():
    builder = (
        x509.CertificateBuilder()
        .subject_name(ROOT.certificate.subject)
        .issuer_name(ROOT.certificate.subject)
        .public_key(LEAF.certificate.public_key())
        .serial_number(1)
        .not_valid_before(ROOT.certificate.not_valid_before_utc)
        .not_valid_after(ROOT.certificate.not_valid_after_utc)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=True
        )
    )
    leaf = builder.sign(ROOT.key, hashes.SHA256())
    with pytest.raises(Unverified):
        verify_path([leaf], [ROOT.certificate], NOW)
