"""Which names a certificate is for."""

from __future__ import annotations

from functools import cache

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from engine.net.names import match_name
from engine.net.tls_errors import Unverified
from tests.certificates import make


@cache
def certificate(*names, common_name="host"):
    return make(common_name, names=names).certificate


def is_for(accepted, *names, **options):
    try:
        return match_name(certificate(*names), [accepted], **options) == accepted
    except Unverified:
        return False


@pytest.mark.parametrize(
    ("presented", "name", "is_match"),
    [
        ("mx.example.test", "mx.example.test", True),
        ("MX.Example.TEST", "mx.example.test", True),
        ("mx.example.test.", "mx.example.test", True),
        ("xn--mx-bka.example.test", "xn--mx-bka.example.test", True),
        ("_mx.example.test", "_mx.example.test", True),
        ("example.test", "mx.example.test", False),
        ("mx.example.test", "example.test", False),
        ("mx.example.test", "x.mx.example.test", False),
        ("*.example.test", "mx.example.test", True),
        ("*.Example.test", "mx.example.test", True),
        ("*.example.test", "xn--mx-bka.example.test", True),
        ("*.example.test", "example.test", False),
        ("*.example.test", "a.mx.example.test", False),
        ("*.example.test", ".example.test", False),
        ("mx*.example.test", "mx1.example.test", False),
        ("*mx.example.test", "1mx.example.test", False),
        ("a.*.test", "a.example.test", False),
        ("*.*.test", "mx.example.test", False),
        ("*.test", "example.test", False),
        ("*", "test", False),
        ("*.example.test", "*.example.test", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("2001:db8::1", "2001:0db8:0::1", True),
    ],
)
def test_names_are_compared_label_by_label(presented, name, is_match):
    assert is_for(name, presented) is is_match


def test_an_address_is_no_host_name_even_where_a_certificate_writes_it_so():
    issued = make("host", alternatives=[x509.DNSName("127.0.0.1")])
    with pytest.raises(Unverified):
        match_name(issued.certificate, ["127.0.0.1"])


def test_any_of_the_accepted_names_does_and_the_first_is_told():
    names = ["mx.example.test", "example.test"]
    assert match_name(certificate("example.test"), names) == "example.test"
    assert match_name(certificate("example.test", "mx.example.test"), names) == "mx.example.test"


@pytest.mark.parametrize(
    ("names", "takes", "is_match"),
    [
        ((), True, True),
        ((), False, False),
        (("other.test",), True, False),  # RFC 7672 §3.2.3: with a DNS name only those count
        (("127.0.0.1",), True, True),
    ],
)
def test_the_common_name_counts_only_where_asked_for_and_alone(names, takes, is_match):
    named = certificate(*names, common_name="mx.example.test")
    if is_match:
        assert match_name(named, ["mx.example.test"], takes_common_name=takes)
    else:
        with pytest.raises(Unverified):
            match_name(named, ["mx.example.test"], takes_common_name=takes)


def test_the_text_says_what_it_is_for_instead():
    with pytest.raises(Unverified) as info:
        match_name(certificate("a.test", "b.test"), ["mx.test", "test"])
    assert info.value.text == 'the certificate is for ["a.test", "b.test"], not for mx.test or test'
    with pytest.raises(Unverified) as info:
        match_name(certificate(), ["mx.test"])
    assert info.value.text == "the certificate is for no host, not for mx.test"
    assert info.value.result == "certificate-host-mismatch"


def test_the_text_is_short_and_safe_whatever_the_certificate_says():
    hostile = certificate("evil\x1b[2J\r\n.test", *[f"{n}.{'x' * 60}.test" for n in range(100)])
    with pytest.raises(Unverified) as info:
        match_name(hostile, ["mx.test"])
    assert info.value.text.isprintable()
    assert len(info.value.text) < 700


@pytest.mark.parametrize(
    "alternative",
    [
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.9"), b"\x0c\x03a@b"),
        x509.RFC822Name("mx.example.test"),
        x509.UniformResourceIdentifier("smtp://mx.example.test"),
    ],
)
def test_names_of_other_kinds_are_no_hosts(alternative):
    issued = make("host", alternatives=[alternative])
    with pytest.raises(Unverified):
        match_name(issued.certificate, ["mx.example.test"])


def test_names_that_cannot_be_read_are_no_match():
    broken = bytearray(make("host", names=["mx.example.test"]).der)
    place = broken.index(b"mx.example.test")
    broken[place] = 0xFF  # no ASCII
    with pytest.raises(Unverified, match="cannot be read"):
        match_name(x509.load_der_x509_certificate(bytes(broken)), ["mx.example.test"])


labels = st.text("abxz-", min_size=1, max_size=5)


@given(st.lists(labels, min_size=1, max_size=4).map(".".join), labels)
def test_a_wildcard_stands_for_one_label_of_any_kind(parent, label):
    wanted = f"{label}.{parent}"
    assert is_for(wanted, f"*.{parent}") is ("." in parent)
    assert is_for(wanted, wanted)
    assert not is_for(f"{label}.{wanted}", f"*.{parent}")
