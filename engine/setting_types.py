"""What single settings may be: the types of their values, each with its check.  Knows no I/O.

Taken by `engine.settings`, which gives them names, defaults and meaning.
Not here: the words of a choice (`engine.choices`), proxies (`engine.setting_proxy`), and what a
setting does.

A value is checked where it enters and never changed in silence: `"yes"` is no boolean and `"5"` no
number.  An error says what was found and what is allowed, except where that could show a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.showing import show
from engine.smtp.mechanisms import MECHANISMS
from engine.units import DURATION_ALLOWED, parse_duration


def refusal(found: str, allowed: str) -> PydanticCustomError:
    """Make the error that refuses a value; neither part may hold a secret."""
    facts = {"found": found, "allowed": allowed}
    return PydanticCustomError("setting", "found {found}; allowed {allowed}", facts)


# ---- what single values may be ------------------------------------------------------------------

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
#: A domain name of letters, digits, `-` and `_`.
DOMAIN: Final = re.compile(rf"(?=.{{1,255}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_SERVICE: Final = re.compile(r"[A-Za-z][A-Za-z0-9._+-]{0,63}")
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
#: What has no space, no control character and no angle bracket; mailboxes and URLs are such.
MAILBOX: Final = re.compile(r"[^\x00-\x20\x7f-\x9f\ud800-\udfff<>]+")

_PORT_ALLOWED: Final = "a number from 1 to 65535 or the name of a TCP service"
_OFF: Final = ("", "off", "none")


def is_off(value: object) -> bool:
    """Whether a value says "without" for a setting whose values are no plain words themselves."""
    return value is None or value is False or (isinstance(value, str) and value in _OFF)


def _seconds(value: object) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise refusal(show(value), DURATION_ALLOWED) from None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise refusal(show(value), "true or false")
    return value


def _flag_or_auto(value: object) -> bool | str:
    if value == "auto" or isinstance(value, bool):
        return value
    raise refusal(show(value), 'true, false or "auto"')


def _whole(least: int | None = None) -> PlainValidator:
    allowed = "a whole number" if least is None else f"a whole number, {least} or more"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise refusal(show(value), allowed)
        if least is not None and value < least:
            raise refusal(show(value), allowed)
        return value

    return PlainValidator(check)


def one_of(alias: object) -> PlainValidator:
    """Make the check that a value is one of the words of a `Literal` type."""
    words: tuple[str, ...] = get_args(alias)
    allowed = ", ".join(map(show, words))

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise refusal(show(value), allowed)
        return value

    return PlainValidator(check)


def _optional(check: Callable[[object], object]) -> PlainValidator:
    # TOML has no null: an empty text takes back what the defaults set.
    return PlainValidator(lambda value: None if value is None or value == "" else check(value))


def _text(pattern: re.Pattern[str], allowed: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise refusal(show(value), allowed)
        return value

    return check


def _file_name(value: object) -> str:
    name = str(value) if isinstance(value, PurePath) else value
    return _text(_PRINTABLE, "a file name")(name)


def _unshown(check: Callable[[object], object]) -> Callable[[object], object]:
    """Refuse without the value: a password may stand where another thing of its table belongs."""

    def check_unshown(value: object) -> object:
        try:
            return check(value)
        except PydanticCustomError as error:
            kind = f"a value of type {type(value).__name__}"
            found = "a text with control characters" if isinstance(value, str) else kind
            raise refusal(found, str((error.context or {})["allowed"])) from None

    return check_unshown


def _items(value: object, allowed: str) -> list[object]:
    """Take one text for a list of one."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise refusal(show(value), allowed)
    return list(value)


def ip_text(text: object) -> str | None:
    """Write an IP address in its usual form; `None` when the text is none."""
    try:
        return str(ipaddress.ip_address(text)) if isinstance(text, str) else None
    except ValueError:
        return None


#: What a program may give in place of addresses to connect from: a function of a host's name and an
#: `engine.message.Message` that returns them.  It must not wait.
InterfaceFunction = Callable[[str, Any], Sequence[str]]


def _interface(value: object) -> tuple[str, ...] | InterfaceFunction:
    if callable(value):
        return value
    allowed = "IP addresses of this host: one, or a list"
    items = _items(value, allowed)
    addresses = [ip_text(item) for item in items]
    bad = [show(item) for item, ip in zip(items, addresses, strict=True) if ip is None]
    if bad:
        raise refusal(", ".join(bad), allowed)
    return tuple(ip for ip in addresses if ip is not None)


def _helo_name(value: object) -> str:
    if isinstance(value, str):
        literal = re.fullmatch(r"\[(?:(?i:IPv6:)(.*:.*)|([0-9.]+))\]", value)
        known = ip_text(literal[1] or literal[2]) is not None if literal else DOMAIN.match(value)
        if known and "%" not in value:
            return value
    raise refusal(
        show(value),
        'a domain name, or an address literal such as "[192.0.2.1]" or "[IPv6:2001:db8::1]"',
    )


def _port(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    if isinstance(value, str):
        if value.isascii() and value.isdecimal() and len(value) <= 5 and 1 <= int(value) <= 65535:
            return int(value)
        if _SERVICE.fullmatch(value):
            return value
    raise refusal(show(value), _PORT_ALLOWED)


#: The names a `dscp` may have, and the octet each puts into the IP header: the classes of RFC 2474
#: §4.2 and RFC 2597 §6, and the older type-of-service bits of RFC 1349 §4.
DSCP_NAMES: Final[Mapping[str, int]] = MappingProxyType(
    {f"af{c}{p}": (8 * c + 2 * p) << 2 for c in range(1, 5) for p in range(1, 4)}
    | {"ef": 0xB8, "lowcost": 0x02, "lowdelay": 0x10, "mincost": 0x02}
    | {"reliability": 0x04, "throughput": 0x08}
)
_NUMBER: Final = re.compile(r"(0[xX][0-9A-Fa-f]{1,4})|0([0-7]{1,4})|(0|[1-9][0-9]{0,3})")


def _dscp(value: object) -> int | str | None:
    if is_off(value):
        return None
    if isinstance(value, str) and value in DSCP_NAMES:
        return value
    number = value
    if isinstance(value, str) and (digits := _NUMBER.fullmatch(value)):
        base = 16 if digits[1] else 8 if digits[2] else 10
        number = int(digits[0], base)
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 0x3F:
        return number
    raise refusal(show(value), f"a number from 0 to 0x3F, or one of {', '.join(DSCP_NAMES)}")


def _stream_depth(value: object) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise refusal(show(value), '"auto", or a whole number, 1 or more')


# ---- the table of secrets ------------------------------------------------------------------------


def _password(value: object) -> SecretStr:
    secret = SecretStr(value) if isinstance(value, str) else value
    if not isinstance(secret, SecretStr) or not secret.get_secret_value():
        raise refusal("an empty text or no text", "a password")
    if not _PRINTABLE.fullmatch(secret.get_secret_value()):  # no mechanism could carry it
        raise refusal("more than one line, or control characters", "a password")
    return secret


#: What a program may give in place of a command that prints a token: an asynchronous function that
#: returns one.
TokenFunction = Callable[[], Awaitable[str]]


def _token_command(value: object) -> object:
    return value if callable(value) else _command(value)


def _command(value: object) -> tuple[str, ...]:
    # A command line may hold a secret, so nothing of it is shown.
    allowed = "a command: a list of its words, or one text that is split as a shell would"
    try:
        words = _shell_words(value) if isinstance(value, str) else value
    except ValueError:
        raise refusal("a command with an open quotation", allowed) from None
    if not isinstance(words, list | tuple) or not words:
        raise refusal("no command", allowed)
    if not all(isinstance(word, str) and word for word in words):
        raise refusal("a command with a word that is empty or no text", allowed)
    return tuple(words)


def _shell_words(text: str) -> list[str]:
    import shlex

    return shlex.split(text)


def _mechanisms(value: object) -> tuple[str, ...]:
    allowed = f"one or more of {', '.join(MECHANISMS)}"
    # A password may stand here by mistake, so nothing of it is shown.
    if not isinstance(value, str | list | tuple):
        raise refusal(f"a value of type {type(value).__name__}", allowed)
    names: list[str] = []
    for place, item in enumerate(_items(value, allowed), 1):
        name = item.upper() if isinstance(item, str) and item.isascii() else ""
        if name not in MECHANISMS:
            where = "" if isinstance(value, str) else f" in place {place}"
            raise refusal(f"an unknown name{where}", allowed)
        names.append(name)
    return tuple(names)


class Auth(BaseModel):
    """Who we are to a server that asks for AUTH (RFC 4954 §4); the `auth` table."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: SASL mechanisms we agree to use, best first, in upper case.  Empty: any that fits the kind of
    #: secret, strongest first, but not EXTERNAL.
    mechanisms: Annotated[tuple[str, ...], PlainValidator(_mechanisms)] = ()
    #: The authentication identity.  `None` only where the mechanisms named do without: EXTERNAL,
    #: whose identity is that of our certificate, and OAUTHBEARER.
    username: Annotated[str | None, _optional(_unshown(_text(_PRINTABLE, "a user name")))] = Field(
        default=None, validate_default=True
    )
    #: The password itself.
    password: Annotated[SecretStr | None, _optional(_password)] = None
    #: A file that holds the password; read when a connection needs it, so it can be changed.
    password_file: Annotated[str | None, _optional(_unshown(_file_name))] = None
    #: A command that prints a token (OAuth 2.0); run without a shell.  From Python an asynchronous
    #: function that returns one will do.  Never shown: its words may hold a secret.
    token_command: Annotated[
        tuple[str, ...] | TokenFunction | None,
        _optional(_token_command),
        PlainSerializer(lambda source: source and "**********"),
    ] = Field(default=None, repr=False)

    @field_validator("username")
    @classmethod
    def _username_where_needed(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = info.data.get("mechanisms")
        if value is not None or names is None:  # what was refused says nothing about what it needs
            return value
        if not names or any(MECHANISMS[name].needs_username for name in names):
            raise refusal("nothing", "a value: it is needed")
        return None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        names = ("password", "password_file", "token_command")
        given = [name for name in names if getattr(self, name) is not None]
        # EXTERNAL alone has no use for one.
        can_do_without = self.mechanisms and all(
            MECHANISMS[name].takes_token is None for name in self.mechanisms
        )
        if len(given) > 1 or not (given or can_do_without):
            raise refusal(" and ".join(given) or "none", f"exactly one of {', '.join(names)}")
        return self


def _auth(value: object) -> object:
    if is_off(value):
        return None
    if not isinstance(value, Mapping | Auth):
        raise refusal(f"a value of type {type(value).__name__}", 'a table, or "off"')
    return value


# ---- the types ----------------------------------------------------------------------------------

#: A duration, in seconds; text such as `"5m"` is read.
Seconds = Annotated[float, PlainValidator(_seconds)]
#: True or false, and nothing like it.
Flag = Annotated[bool, PlainValidator(_flag)]
#: True, false, or where the server is known to take it.
FlagOrAuto = Annotated[bool | Literal["auto"], PlainValidator(_flag_or_auto)]
#: A whole number.
Whole = Annotated[int, _whole()]
#: A whole number, 0 or more.
Count = Annotated[int, _whole(0)]
#: A whole number, 1 or more.
Limit = Annotated[int, _whole(1)]
#: The name of a file, or `None`; from Python also a `Path`.
FileName = Annotated[str | None, _optional(_file_name)]
#: A domain name, or `None`.
DomainName = Annotated[str | None, _optional(_text(DOMAIN, "a domain name"))]
#: A domain name or an address literal (RFC 5321 §4.1.3), or `None`.
HeloName = Annotated[str | None, _optional(_helo_name)]
#: A mailbox without angle brackets, or `None`.
Mailbox = Annotated[str | None, _optional(_text(MAILBOX, "a mailbox without angle brackets"))]
#: Cipher names in OpenSSL's notation, or `None`.
CipherList = Annotated[str | None, _optional(_text(_PRINTABLE, "a cipher list"))]
#: IP addresses of this host, in the usual text form, or what chooses them.
Interfaces = Annotated[tuple[str, ...] | InterfaceFunction, PlainValidator(_interface)]
#: A TCP port or the name of a service, or `None`.
Port = Annotated[int | str | None, _optional(_port)]
#: A name of `DSCP_NAMES` or a code point from 0 to 0x3F (RFC 2474 §3), or `None`.
Dscp = Annotated[int | str | None, PlainValidator(_dscp)]
#: `auto`, or a whole number, 1 or more.
StreamDepth = Annotated[int | Literal["auto"], PlainValidator(_stream_depth)]
#: An `auth` table, or `None`.
AuthTable = Annotated[Auth | None, BeforeValidator(_auth)]
