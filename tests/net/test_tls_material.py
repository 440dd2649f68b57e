"""Contexts as settings want them, and problems with files and ciphers, told before any mail."""

from __future__ import annotations

import ssl

import pytest

from engine.net.tls_material import TlsMaterial, make_context, material_problems
from engine.settings import Settings
from tests.certificates import make, rsa_key, write_chain

ROOT = make("root", is_ca=True)
OURS = make("client.test", ROOT, names=["client.test"])
OTHER = make("other", ROOT)


@pytest.fixture
def files(tmp_path):
    """Write files of every sort, good and bad; return their names by what they are."""
    contents = {
        "ca": ROOT.pem,
        "certificate": OURS.pem + ROOT.pem,
        "key": OURS.key_pem,
        "both": OURS.key_pem + OURS.pem,
        "other key": OTHER.key_pem,
        "encrypted": OURS.private_pem(b"s3cretW0rd"),
        "both, encrypted": OURS.private_pem(b"s3cretW0rd") + OURS.pem,
        "nothing": b"",
        "junk": b"s3cretW0rd\n",
        "cut": OURS.pem[:200],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    write_chain(tmp_path, [make("weak", key=rsa_key(1024))], "weak")
    (tmp_path / "weak.key").rename(tmp_path / "weak key.pem")
    (tmp_path / "folder.pem").mkdir()
    return lambda name: None if name is None else str(tmp_path / f"{name}.pem")


def problems(**settings):
    found = material_problems(TlsMaterial(**settings))
    for problem in found:
        text = str(problem)
        assert text.isprintable()
        assert "s3cretW0rd" not in text
        assert "PRIVATE" not in text
    return {problem.key: problem.found for problem in found}


def test_the_settings_are_taken_over():
    settings = Settings(
        tls_ca_file="a", tls_certificate="b", tls_private_key="c", tls_ciphers="d",
        tls_min_version="1.3",
    )  # fmt: skip
    assert TlsMaterial.from_settings(settings) == TlsMaterial("a", "b", "c", "d", "1.3")
    assert TlsMaterial.from_settings(Settings()) == TlsMaterial()


def test_nothing_is_wrong_with_nothing():
    assert problems() == {}


@pytest.mark.parametrize(
    ("certificate", "key"), [("certificate", "key"), ("both", None), ("both", "key")]
)
def test_nothing_is_wrong_with_what_is_right(files, certificate, key):
    settings = {
        "ca_file": files("ca"),
        "certificate": files(certificate),
        "private_key": files(key),
        "ciphers": "ECDHE+AESGCM:!aNULL:!RC4:@STRENGTH",
    }
    assert problems(**settings) == {}
    for verifies in (False, True):
        assert make_context(TlsMaterial(**settings), verifies=verifies)


@pytest.mark.parametrize(
    ("certificate", "key", "place", "found"),
    [
        (None, "key", "tls_certificate", "nothing, though there is a tls_private_key"),
        ("certificate", None, "tls_private_key", "nothing, though there is a tls_certificate"),
        ("none", "key", "tls_certificate", "cannot be read: No such file"),
        ("certificate", "none", "tls_private_key", "cannot be read: No such file"),
        ("folder", "key", "tls_certificate", "cannot be read: Is a directory"),
        ("nothing", "key", "tls_certificate", "without a certificate"),
        ("junk", "key", "tls_certificate", "without a certificate"),
        ("cut", "key", "tls_certificate", "without a certificate"),
        ("key", "key", "tls_certificate", "without a certificate"),
        ("certificate", "nothing", "tls_private_key", "no usable key"),
        ("certificate", "junk", "tls_private_key", "no usable key"),
        ("certificate", "certificate", "tls_private_key", "no usable key"),
        ("certificate", "other key", "tls_private_key", "with the key of another certificate"),
        ("certificate", "encrypted", "tls_private_key", "an encrypted key"),
        ("both, encrypted", None, "tls_private_key", "an encrypted key"),
        ("weak", "weak key", "tls_certificate", "too weak for OpenSSL (key too small)"),
    ],
)
def test_what_is_wrong_with_our_certificate_is_said(files, certificate, key, place, found):
    said = problems(certificate=files(certificate), private_key=files(key))
    assert said.keys() == {place}
    assert found in said[place]


def test_both_files_are_named_when_both_cannot_be_read(files):
    said = problems(certificate=files("none"), private_key=files("none"))
    assert said.keys() == {"tls_certificate", "tls_private_key"}


def test_a_file_that_cannot_be_read_is_said_to_be_one(files, tmp_path):
    (tmp_path / "key.pem").unlink()
    (tmp_path / "key.pem").symlink_to("key.pem")
    said = problems(certificate=files("certificate"), private_key=files("key"))
    assert "cannot be read: Too many levels" in said["tls_private_key"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("none", "cannot be read: No such file"),
        ("folder", "cannot be read"),
        ("nothing", "without a certificate"),
        ("junk", "without a certificate"),
        ("key", "without a certificate"),
        ("cut", "without a certificate"),
    ],
)
def test_what_is_wrong_with_the_authorities_is_said(files, name, found):
    said = problems(ca_file=files(name))
    assert found in said["tls_ca_file"]


@pytest.mark.parametrize(
    ("ciphers", "unknown"),
    [
        ("NO-SUCH-CIPHER", '"NO-SUCH-CIPHER"'),
        ("ECDHE-RSA-AES256-GCM-SHA384:NO-SUCH-CIPHER", '"NO-SUCH-CIPHER"'),
        ("HIGH, NOPE MEDIUM+NOPE", '"NOPE", "MEDIUM+NOPE"'),
        ("TLS_AES_256_GCM_SHA384", '"TLS_AES_256_GCM_SHA384"'),
        ("!ALL", '"!ALL"'),
        ("@SECLEVEL=9:HIGH", '"@SECLEVEL=9:HIGH"'),
    ],
)
def test_a_cipher_that_is_unknown_is_named(ciphers, unknown):
    assert problems(ciphers=ciphers) == {"tls_ciphers": f"{unknown}, which selects no cipher"}


@pytest.mark.parametrize("ciphers", ["HIGH:!aNULL", "DEFAULT@SECLEVEL=0", "ECDHE-RSA-AES128-SHA"])
def test_ciphers_that_are_known_are_taken(ciphers):
    assert problems(ciphers=ciphers) == {}


# -- contexts -----------------------------------------------------------------------------------


def test_a_context_verifies_only_what_it_is_to():
    assert make_context(TlsMaterial(), verifies=False).verify_mode is ssl.CERT_NONE
    context = make_context(TlsMaterial(), verifies=True)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname


def test_a_context_renegotiates_nothing_and_compresses_nothing():
    context = make_context(TlsMaterial(), verifies=False)
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


@pytest.mark.parametrize(
    ("version", "least"), [("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3)]
)
def test_a_context_has_the_versions_asked_for(version, least):
    assert make_context(TlsMaterial(min_version=version), verifies=False).minimum_version == least


def test_a_context_has_the_ciphers_asked_for():
    context = make_context(TlsMaterial(ciphers="ECDHE-RSA-AES128-SHA"), verifies=False)
    chosen = {each["name"] for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"}
    assert chosen == {"ECDHE-RSA-AES128-SHA"}


def test_a_ca_file_is_all_that_is_trusted(files):
    context = make_context(TlsMaterial(ca_file=files("ca")), verifies=True)
    assert context.get_ca_certs(binary_form=True) == [ROOT.der]


@pytest.mark.parametrize(
    "bad",
    [
        {"ca_file": "none"},
        {"certificate": "none", "private_key": "key"},
        {"certificate": "certificate", "private_key": "other key"},
    ],
)
def test_files_that_cannot_be_used_raise(files, bad):
    with pytest.raises(OSError):  # noqa: PT011 - ssl.SSLError among them
        make_context(
            TlsMaterial(**{name: files(file) for name, file in bad.items()}), verifies=True
        )


def test_an_encrypted_key_raises_and_asks_nobody(files):
    material = TlsMaterial(certificate=files("certificate"), private_key=files("encrypted"))
    with pytest.raises(ValueError, match="encrypted"):
        make_context(material, verifies=False)
