"""The words that settings choose from; types only, and nothing is imported for them.

Taken by `engine.settings`, which checks them, and by the rooms that act on them.
Not here: what the words do.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

#: What is spoken to a host.
ProtocolName: TypeAlias = Literal["smtp", "lmtp", "smtps"]
#: What TCP Fast Open may carry (RFC 7413 §4).
FastOpenMode: TypeAlias = Literal["off", "connect", "commands"]
#: When domains in envelopes become A-labels (RFC 6531 §3.2).
Downconvert: TypeAlias = Literal["never", "auto", "always"]
#: How much TLS is asked for, the least first (RFC 3207 §4, RFC 7435 §3).
TlsLevel: TypeAlias = Literal["off", "opportunistic", "require", "verify"]
#: The oldest TLS version accepted.
TlsVersion: TypeAlias = Literal["1.2", "1.3"]
#: What becomes of TLSA records (RFC 7672 §2.2).
DaneMode: TypeAlias = Literal["off", "try", "require"]
#: Whether MTA-STS policies hold (RFC 8461 §3).
MtaStsMode: TypeAlias = Literal["off", "on"]
#: Which IP addresses of a host are used, and which first.
AddressFamily: TypeAlias = Literal["any", "ipv4", "ipv6", "prefer-ipv4", "prefer-ipv6"]
