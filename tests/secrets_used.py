"""The secrets of the tests, so that a search finds whatever of them was told.

Every password, token and proxy login that a test gives to the engine has `MARK` in it: one search
finds them all, whole or in part, and a new one needs no entry anywhere.  A key that is made on the
fly is known by what all keys of its kind have.  `tests/test_secrets_used.py` holds tests to both.

Used by `tests.leak_watch`, which looks at what every test told.
"""

from __future__ import annotations

from typing import Final

#: Letters and digits alone, so that no notation has to escape it; long enough that Base64 of it
#: is no coincidence, wherever it starts.
MARK: Final = "s3cretW0rd"

#: What the RFCs' own examples use, where a test holds us to their octets (RFC 4616 §4, RFC 7628
#: §4.1), and Google's.
EXAMPLES: Final = (
    "tanstaaftanstaaf",
    "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==",
    "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg",
)

#: A private key in PEM (RFC 7468 §10 and §11, and the older forms with the algorithm's name), and what no DER but one of a private key has: PKCS #8
#: (RFC 5958 §2) at its beginning, with an elliptic curve, short and long, or RSA; the form of
#: RFC 5915 §3, which trustme writes, between the private key and the public one.
KEYS: Final = (
    # With its beginning: what is behind that stands in the engine's source, and Hypothesis makes up
    # texts of what it finds there.
    b"BEGIN PRIVATE KEY-----",
    b"BEGIN EC PRIVATE KEY-----",
    b"BEGIN RSA PRIVATE KEY-----",
    b"BEGIN ENCRYPTED PRIVATE KEY-----",
    bytes.fromhex("020100 3013 06072a8648ce3d0201"),
    bytes.fromhex("020100 3010 06072a8648ce3d0201"),
    bytes.fromhex("020100 300d 06092a864886f70d010101"),
    bytes.fromhex("a00a06082a8648ce3d030107 a14403420004"),
)
