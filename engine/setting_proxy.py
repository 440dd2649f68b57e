"""What a proxy is: its URL, and the values that the setting `proxy` may have.  Knows no I/O.

Taken by `engine.settings`; `engine.net` goes through proxies.
Not here: which of several is tried first (`engine.net.proxy_choice`).

A URL may hold a password, so no error shows anything of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Final, Self, TypedDict
from urllib.parse import unquote, urlsplit

from pydantic import PlainSerializer, PlainValidator

from engine.setting_types import DOMAIN, MAILBOX, ip_text, is_off, refusal
from engine.units import parse_duration

_ALLOWED: Final = (
    '"socks5://[user:pass@]host[:port]" or "haproxy://host[:port]", perhaps followed by '
    '"?priority=2&weight=3&timeout=5s" (numbers up to 65535): one, or a list'
)
# A PROXY-protocol relay has no port of its own that the world agreed on: it stands in for port 25.
_PORTS: Final = {"socks5": 1080, "haproxy": 25}
_MOST_CHOICE: Final = 65535
_DIGITS: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where connections go through.

    Attributes:
        scheme: `socks5` (RFC 1928 §3) or `haproxy` (the PROXY protocol).
        host: Name or IP address, without brackets.
        port: TCP port.
        username: For RFC 1929 §2, or `None`.
        password: The same; never shown.
        priority: The higher is tried first, as in Exim.
        weight: How often it is chosen among those of its priority, in proportion.
        timeout: Seconds until it is given up for the next one, the handshake not counted.  Exim 5s.
        name: `scheme://host:port`, for a person.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    priority: int = 1
    weight: int = 1
    timeout: float = 5.0
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "name", f"{self.scheme}://{host}:{self.port}")

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a proxy URL.

        Raises:
            ValueError: It breaks the form; the text says where and quotes nothing of it, for a
                password may stand anywhere in a URL with a slip in it.
        """
        if not MAILBOX.fullmatch(url):
            raise ValueError("a proxy URL with a space, a control character or < >")
        scheme, _, rest = url.partition("://")
        if scheme not in _PORTS or not rest:
            raise ValueError("a proxy URL of an unknown scheme")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("a proxy URL with a host or port that cannot be read") from None
        if parts.path not in {"", "/"} or "#" in url or port == 0:
            raise ValueError("a proxy URL with more than a host and a port from 1 to 65535")
        host = parts.hostname or ""
        if not (DOMAIN.match(host) or ip_text(host)):
            raise ValueError("a proxy URL without a proper host")
        username, password = _credentials(scheme, parts.username, parts.password)
        port = port or _PORTS[scheme]
        return cls(scheme, host, port, username, password, **_choice(parts.query))

    def __str__(self) -> str:
        if self.username is None:
            return self.name
        return self.name.replace("://", f"://{self.username}:***@", 1)


class _Choice(TypedDict, total=False):
    """What a proxy URL may say of how the proxy is chosen."""

    priority: int
    weight: int
    timeout: float


def _choice(query: str) -> _Choice:
    chosen: _Choice = {}
    for item in query.split("&") if query else ():
        name, _, value = item.partition("=")
        if name in chosen:
            raise ValueError("a proxy URL that says one thing twice")
        if name == "priority":
            chosen["priority"] = _small(value, 0)
        elif name == "weight":
            chosen["weight"] = _small(value, 1)
        elif name == "timeout":
            chosen["timeout"] = _patience(value)
        else:
            raise ValueError("a proxy URL with an unknown word behind the question mark")
    return chosen


def _patience(text: str) -> float:
    try:
        return parse_duration(int(text) if _DIGITS.fullmatch(text) else text)
    except ValueError:
        raise ValueError("a proxy URL with a timeout that is no duration") from None


def _small(text: str, least: int) -> int:
    number = int(text) if _DIGITS.fullmatch(text) else -1
    if not least <= number <= _MOST_CHOICE:
        raise ValueError("a proxy URL with a priority or weight out of range")
    return number


def _credentials(
    scheme: str, username: str | None, password: str | None
) -> tuple[str | None, str | None]:
    if username is None:
        return None, None
    if scheme != "socks5":
        raise ValueError("a proxy URL with a user, which only socks5 knows")
    pair = unquote(username), unquote(password or "")
    # RFC 1929 §2: each has a length octet, and a length of 0 is not provided for.
    if not all(1 <= len(text.encode()) <= 255 for text in pair):
        raise ValueError("a proxy URL with a user or password not of 1 to 255 octets")
    return pair


def _proxies(value: object) -> tuple[Proxy, ...]:
    if is_off(value):
        return ()
    items = [value] if isinstance(value, str | Proxy) else value
    if not isinstance(items, list | tuple):
        raise refusal(f"a value of type {type(value).__name__}", _ALLOWED)
    return tuple(map(_proxy, items))


def _proxy(item: object) -> Proxy:
    if isinstance(item, Proxy):
        return item
    if not isinstance(item, str):
        raise refusal(f"an item of type {type(item).__name__}", _ALLOWED)
    try:
        return Proxy.parse(item)
    except ValueError as error:
        raise refusal(str(error), _ALLOWED) from None


#: Proxies, as values or URLs; without their passwords where settings are dumped.
Proxies = Annotated[
    tuple[Proxy, ...],
    PlainValidator(_proxies),
    PlainSerializer(lambda proxies: tuple(map(str, proxies))),
]
