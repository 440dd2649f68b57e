"""The flags of `sendmail`, as programs that hand in mail give them.  Knows no I/O.

Those that change what is sent are understood, those that tune a daemon we are not are ignored, and
all others are refused.  Called by `engine.worker.sendmail`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from engine.showing import show

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.message import Notify

#: Flags whose value is the rest of the argument, or the next one.
_WITH_VALUE: Final = "ABCFLNORVXefhopr"
#: Flags whose value, if any, is the rest of the argument.
_WITH_REST: Final = "bdq"
#: They ask for what is so anyway, or for what no program depends on.
_IGNORED: Final = "ABGLOUXdehmnopv"
_ENVID: Final = re.compile(r"[ -~]{1,100}")
_ALLOWED: Final = (
    "-t, -i, -f ADDR, -F NAME, -r ADDR, -N DSN, -R full|hdrs, -V ENVID, -B TYPE, -C FILE, -bm, -bp"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the flags ask for.

    Attributes:
        recipients: Addresses, as header fields may have them.
        shows_queue: `-bp`: list the queue, and send nothing.
        runs_queue: `-q`: have what waits tried, which the worker does by itself.
        from_header: `-t`: recipients stand in the header section as well.
        ignores_dots: `-i`, `-oi`: a line with a lone dot does not end the message.
        sender: `-f`, `-r`: the reverse-path; `None`: the user's.
        name: `-F`: the sender's full name, for From.
        notify: `-N`: when to report.
        ret: `-R`: what a report returns.
        envid: `-V`: the envelope identifier.
        config: `-C`: the configuration file.
    """

    recipients: tuple[str, ...] = ()
    shows_queue: bool = False
    runs_queue: bool = False
    from_header: bool = False
    ignores_dots: bool = False
    sender: str | None = None
    name: str | None = None
    notify: frozenset[Notify] = frozenset()
    ret: Literal["full", "hdrs"] | None = None
    envid: str | None = None
    config: str | None = None


def read_flags(arguments: Sequence[str]) -> Flags:
    """Read the arguments of a call.

    Raises:
        ValueError: One is unknown, or has a value that cannot be; the text says which.
    """
    flags = Flags()
    recipients: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            recipients += rest
            break
        if argument.startswith("-") and len(argument) > 1:
            flags = _read_cluster(flags, argument, rest)
        else:
            recipients.append(argument)
    return replace(flags, recipients=tuple(recipients))


def _read_cluster(flags: Flags, argument: str, rest: list[str]) -> Flags:
    """Read one argument: single letters, of which the last may have a value."""
    if argument.startswith("--"):
        raise ValueError(f"{show(argument)}: found an unknown flag; allowed are {_ALLOWED}")
    letters = argument[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        value = ""
        if letter in _WITH_REST:
            value, letters = letters, ""
        elif letter in _WITH_VALUE:
            if not letters and not rest:
                raise ValueError(f"-{letter}: found no value; allowed is one behind it")
            value, letters = letters or rest.pop(0), ""
        flags = _apply(flags, letter, value)
    return flags


def _apply(flags: Flags, letter: str, value: str) -> Flags:
    if letter in _READ:
        name, read = _READ[letter]
        return replace(flags, **{name: read(value)})
    if letter == "t":
        return replace(flags, from_header=True)
    if letter == "i" or (letter == "o" and value == "i"):
        return replace(flags, ignores_dots=True)
    if letter == "b":
        if value not in ("m", "p"):
            raise _refusal("b", value, "-bm (send, the default) and -bp (list the queue)")
        return replace(flags, shows_queue=value == "p")
    if letter == "q":
        return replace(flags, runs_queue=True)
    if letter == "B" and value.upper() not in ("7BIT", "8BITMIME"):
        raise _refusal("B", value, "7BIT or 8BITMIME")
    if letter in _IGNORED:
        return flags
    raise ValueError(f'"-{letter}": found an unknown flag; allowed are {_ALLOWED}')


def _envid(value: str) -> str:
    if not _ENVID.fullmatch(value):
        raise _refusal("V", value, "1 to 100 printable ASCII characters (RFC 3461 §4.4)")
    return value


def _notify(value: str) -> frozenset[Notify]:
    words = {word.strip().lower() for word in value.split(",")}
    known: tuple[Notify, ...] = ("success", "failure", "delay", "never")
    if not words <= set(known) or ("never" in words and len(words) > 1):
        raise _refusal("N", value, "never, or of success, failure and delay some with commas")
    return frozenset(word for word in known if word in words)


def _ret(value: str) -> Literal["full", "hdrs"]:
    if value.lower() == "full":
        return "full"
    if value.lower() == "hdrs":
        return "hdrs"
    raise _refusal("R", value, "full or hdrs")


def _refusal(letter: str, value: str, allowed: str) -> ValueError:
    return ValueError(f"-{letter}: found {show(value)}; allowed {allowed}")


#: Flags whose value is kept: where, and how it is read.
_READ: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "f": ("sender", str),
    "r": ("sender", str),
    "F": ("name", str),
    "C": ("config", str),
    "N": ("notify", _notify),
    "R": ("ret", _ret),
    "V": ("envid", _envid),
}
