"""The client's half of a SOCKS5 handshake, octets in and octets out.  Knows no I/O.

`engine.net.proxy` drives it over a stream.  It asks for a connection to a numeric address and
nothing else: no name for the proxy to look up, no BIND, no UDP (RFC 1928 §4).
"""

from __future__ import annotations

import re
from enum import Enum, auto
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from engine.errors import EngineError
from engine.net.interface import address_family
from engine.outcome import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION: Final = 5
#: The login has a version of its own (RFC 1929 §2).
_LOGIN_VERSION: Final = 1
_CONNECT: Final = 1

# Methods (RFC 1928 §3).
_NO_LOGIN: Final = 0
_LOGIN: Final = 2
_NO_METHOD: Final = 255

# Types of address, and how many octets those of a fixed size have (RFC 1928 §5).
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_OCTETS: Final[Mapping[int, int]] = {_IPV4: 4, _IPV6: 16}

#: The reply field in words (RFC 1928 §6).
_REPLIES: Final[Mapping[int, str]] = {
    1: "general failure",
    2: "not allowed by the rules of the proxy",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}
_CAUSES: Final[Mapping[int, Cause]] = {
    3: Cause.UNREACHABLE,
    4: Cause.UNREACHABLE,
    6: Cause.UNREACHABLE,
    7: Cause.UNSUPPORTED,
    8: Cause.UNSUPPORTED,
}

# The name ends up in logs: nothing in it may pass for a line's end or a terminal's command.
_VISIBLE: Final = re.compile(rb"[!-~]+")


class ProxyRefused(EngineError):  # noqa: N818 - an expected result, read aloud: "proxy refused"
    """The proxy said no, or something that is no answer.

    Attributes:
        code: The octet that said no: a method, a login's status or a reply field, as `text` says;
            `None` where the answer was malformed.
        text: What happened, on one line, without credentials and without octets of the proxy's.
        cause: `refused`, `unreachable` or `unsupported`; `config` where the proxy wants another
            login than ours; `malformed-reply`.
    """

    def __init__(self, code: int | None, text: str, cause: Cause = Cause.REFUSED) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.cause = cause


class _Awaited(Enum):
    """What the proxy says next."""

    METHOD = auto()
    LOGIN_STATUS = auto()
    REPLY = auto()
    NOTHING = auto()


class Socks5:
    """One handshake: send `begin()`, then whatever `receive` returns, until `is_done`.

    How the octets of the proxy are cut into pieces makes no difference.  What is kept of them
    before the end is less than one reply, at most 261 octets.

    Attributes:
        bound: The address and port the proxy connects from (BND.ADDR, BND.PORT), `None` before
            the end.  The address is an IP address or, where the proxy likes it so, a name; many
            proxies say `0.0.0.0` and port 0.
    """

    __slots__ = ("_awaited", "_login", "_received", "_request", "bound")

    def __init__(
        self, address: str, port: int, username: str | None = None, password: str | None = None
    ) -> None:
        """Prepare for a target.

        Args:
            address: The target's IP address, without brackets and zone.
            port: Its TCP port.
            username: For a proxy that wants a login (RFC 1929 §2), 1 to 255 octets; `None` for
                one that wants none.
            password: The same.

        Raises:
            ValueError: One of them is not allowed; the text quotes no credentials.
        """
        address_family(address)
        if not 1 <= port <= 65535:
            raise ValueError(f"port {port}: allowed are numbers from 1 to 65535")
        packed = ip_address(address).packed
        kind = _IPV4 if len(packed) == _OCTETS[_IPV4] else _IPV6
        head = bytes([_VERSION, _CONNECT, 0, kind])
        self._request: Final = head + packed + port.to_bytes(2, "big")
        self._login: Final = _encode_login(username, password)
        self._received = bytearray()
        self._awaited = _Awaited.METHOD
        self.bound: tuple[str, int] | None = None

    def begin(self) -> bytes:
        """Return the first octets to send (RFC 1928 §3).

        One method is offered, not a choice: many proxies pick the address to connect from by the
        login, and one that might skip it would send the mail from another.
        """
        return bytes([_VERSION, 1, _LOGIN if self._login else _NO_LOGIN])

    def receive(self, octets: bytes) -> bytes:
        """Take what the proxy sent; return what to send next, `b""` where there is nothing.

        Args:
            octets: Any number of octets, from where the last call ended.

        Raises:
            ProxyRefused: There will be no connection.
        """
        self._received += octets
        to_send = b""
        while (answer := self._step()) is not None:
            to_send += answer
        return to_send

    @property
    def is_done(self) -> bool:
        """Whether the connection to the target is up."""
        return self._awaited is _Awaited.NOTHING

    @property
    def leftover(self) -> bytes:
        """What was received behind the last reply: the target's own first octets.

        Not empty where the server speaks first, as SMTP's greeting may come in one segment with
        the proxy's reply.
        """
        return bytes(self._received) if self.is_done else b""

    def _step(self) -> bytes | None:
        """Read one reply and return the answer; `None` while it is not there in full."""
        match self._awaited:
            case _Awaited.METHOD:
                return self._read_method()
            case _Awaited.LOGIN_STATUS:
                return self._read_login_status()
            case _Awaited.REPLY:
                return self._read_reply()
            case _:
                return None

    def _read_method(self) -> bytes | None:
        method = _second_octet(self._received, _VERSION)
        if method is None:
            return None
        if method == _NO_METHOD:
            wanted = "our login" if self._login else "us without a login"
            raise ProxyRefused(method, f"the proxy does not take {wanted}", Cause.CONFIG)
        if method != (_LOGIN if self._login else _NO_LOGIN):
            raise _malformed(f"method {method}, which was not offered")
        del self._received[:2]
        self._awaited = _Awaited.LOGIN_STATUS if self._login else _Awaited.REPLY
        return self._login or self._request

    def _read_login_status(self) -> bytes | None:
        status = _second_octet(self._received, _LOGIN_VERSION)
        if status is None:
            return None
        if status:
            text = f"the proxy refused the login (status {status})"
            raise ProxyRefused(status, text, Cause.CONFIG)
        del self._received[:2]
        self._awaited = _Awaited.REPLY
        return self._request

    def _read_reply(self) -> bytes | None:
        code = _second_octet(self._received, _VERSION)
        # Some proxies send no address behind a refusal: its octet alone decides.
        if code:
            words = _REPLIES.get(code, "refused without a known reason")
            text = f"the proxy answered: {words} (reply {code})"
            raise ProxyRefused(code, text, _CAUSES.get(code, Cause.REFUSED))
        found = _read_bound(bytes(self._received))
        if found is None:
            return None
        address, port, size = found
        del self._received[:size]
        self.bound = address, port
        self._awaited = _Awaited.NOTHING
        return b""


def _encode_login(username: str | None, password: str | None) -> bytes:
    """Return the login as it is sent (RFC 1929 §2); `b""` for none."""
    if username is None and password is None:
        return b""
    if username is None or password is None:
        raise ValueError("a SOCKS5 login: allowed are user and password together, or neither")
    user, secret = _login_field("user", username), _login_field("password", password)
    return bytes([_LOGIN_VERSION, len(user)]) + user + bytes([len(secret)]) + secret


def _login_field(name: str, text: str) -> bytes:
    try:
        octets = text.encode()
    except UnicodeEncodeError:
        octets = b""  # nothing of that error may get out: it carries the text
    if not 1 <= len(octets) <= 255:
        raise ValueError(f"a SOCKS5 {name}: allowed are 1 to 255 octets of UTF-8")
    return octets


def _second_octet(received: bytearray, version: int) -> int | None:
    """Return what a reply comes down to, `None` while it is not there."""
    if len(received) < 2:
        return None
    if received[0] != version:
        raise _malformed(f"version {received[0]} in place of {version}")
    return received[1]


def _read_bound(received: bytes) -> tuple[str, int, int] | None:
    """Return address, port and size of a reply; `None` while it is not there in full.

    Its size depends on the type of address, which need not be that of the request
    (RFC 1928 §6): octets misjudged here would be taken for the target's.
    """
    if len(received) < 5:
        return None
    reserved, kind, length = received[2:5]
    if reserved:
        raise _malformed(f"reserved octet {reserved} in place of 0")
    if kind not in (_IPV4, _NAME, _IPV6):
        raise _malformed(f"address type {kind}")
    start, octets = (5, length) if kind == _NAME else (4, _OCTETS[kind])
    end = start + octets
    if len(received) < end + 2:
        return None
    address = received[start:end]
    text = _read_name(address) if kind == _NAME else str(ip_address(address))
    return text, int.from_bytes(received[end : end + 2], "big"), end + 2


def _read_name(octets: bytes) -> str:
    if not _VISIBLE.fullmatch(octets):
        raise _malformed("a name that is empty or has octets other than visible ASCII")
    return octets.decode("ascii")


def _malformed(what: str) -> ProxyRefused:
    text = f"the proxy does not speak SOCKS5 as it should: {what}"
    return ProxyRefused(None, text, Cause.MALFORMED_REPLY)
