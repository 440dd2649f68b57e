from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.tls_required import says_tls_optional


@pytest.mark.parametrize(
    "header",
    [
        b"TLS-Required: No\r\n",
        b"TLS-Required:No\r\n",
        b"tls-REQUIRED:  no \t\r\nFrom: a@b.test\r\n",
        b"From: a@b.test\r\nTLS-Required:\r\n No\r\nTo: c@d.test\r\n",
        b"TLS-Required : No\n",
        b"From: a@b.test\r\nTLS-Required: No",
        b"TLS-Required: No\r\n\r\nTLS-Required: No\r\n",
    ],
)
def test_a_message_may_say_that_it_needs_no_tls(header):
    assert says_tls_optional(header)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"From: a@b.test\r\n",
        b"TLS-Required: Yes\r\n",
        b"TLS-Required: None\r\n",
        b"TLS-Required: N\r\n o\r\n",
        b"TLS-Required: No, No\r\n",
        b"TLS-Required:\r\n",
        b"X-TLS-Required: No\r\n",
        b"TLS-Required-Not: No\r\n",
        b"Subject: x\r\n TLS-Required: No\r\n",
        b"From: a@b.test\r\n\r\nTLS-Required: No\r\n",
        b"From: a@b.test\n\nTLS-Required: No\n",
        b"\r\nTLS-Required: No\r\n",
    ],
)
def test_anything_else_does_not_say_so(header):
    assert not says_tls_optional(header)


@pytest.mark.parametrize("second", [b"No", b"Yes"])
def test_a_field_that_is_repeated_does_not_count(second):
    """RFC 8689 §3: more than one must not appear; what is unclear asks for nothing."""
    assert not says_tls_optional(b"TLS-Required: No\r\nTLS-Required: " + second + b"\r\n")


@given(st.binary(max_size=300))
def test_any_octets_are_read(octets):
    assert says_tls_optional(octets) in (True, False)
