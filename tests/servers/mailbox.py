"""What a mail server stored, read back byte for byte.

Used by the modules that start mail servers and, through `MailServer.received`, by the tests.
"""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Received:
    """One stored copy of a message.

    Attributes:
        reverse_path: as the server understood it; empty for the null reverse-path.
        recipients: the forward-paths this copy is for. Some servers store one copy for all
            recipients of a message, others one for each.
        content: what the client sent: without the trace fields this server put on top of it
            (RFC 5321 §4.4), every line ending in CRLF.
    """

    reverse_path: str
    recipients: tuple[str, ...]
    content: bytes


class Mailbox(Protocol):
    """Where one server stores its mail."""

    def copies(self) -> list[Received]:
        """Everything stored so far, in no particular order."""

    def clear(self) -> None:
        """Forget everything stored so far."""


def take_fields(stored: bytes, names: Sequence[str]) -> tuple[list[str], bytes]:
    """The bodies of the first header fields of `stored`, which must be `names` in order; the rest.

    Fields further down are the client's own, whatever they are called, and stay.

    Raises:
        ValueError: the next field is another one, so the server does not do what we believe.
    """
    bodies: list[str] = []
    for name in names:
        if stored[: len(name) + 1].lower() != f"{name.lower()}:".encode():
            raise ValueError(f"expected the field {name}, found {stored[:80]!r}")
        end = stored.index(b"\n") + 1
        while stored[end : end + 1] in (b" ", b"\t"):  # folded (RFC 5322 §2.2.3)
            end = stored.index(b"\n", end) + 1
        bodies.append(os.fsdecode(stored[len(name) + 1 : end]).strip())
        stored = stored[end:]
    return bodies, stored


def with_crlf(stored: bytes) -> bytes:
    """`stored` with every line ending in CRLF, as it travelled (RFC 5321 §2.3.8)."""
    return stored.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@dataclass(frozen=True, slots=True)
class Maildir:
    """A Maildir whose messages begin with three fields of the server's.

    Those are Return-Path, the one that names the recipients, and Received. Files appear in `new/`
    in one step, so whoever sees a message sees all of it.

    Attributes:
        path: holds `tmp/`, `new/` and `cur/`.
        recipients: the name of the second field.
    """

    path: Path
    recipients: str

    @classmethod
    def create(cls, home: Path, user: str, recipients: str) -> Maildir:
        """Make the folder in `home`, for a server that delivers as `user`."""
        path = home / "mail"
        account = pwd.getpwnam(user)
        for part in (path, path / "tmp", path / "new", path / "cur"):
            part.mkdir()
            os.chown(part, account.pw_uid, account.pw_gid)
        return cls(path, recipients)

    def copies(self) -> list[Received]:
        """Everything stored so far."""
        return [self._read(file) for file in (self.path / "new").iterdir()]

    def _read(self, file: Path) -> Received:
        content = file.read_bytes()
        reverse_path = ""
        # OpenSMTPD writes no such field for the null reverse-path.
        if content[:12].lower() == b"return-path:":
            [reverse_path], content = take_fields(content, ["Return-Path"])
        (recipients, _), content = take_fields(content, [self.recipients, "Received"])
        return Received(
            reverse_path.removeprefix("<").removesuffix(">"),
            tuple(name.strip() for name in recipients.split(",")),
            with_crlf(content),
        )

    def clear(self) -> None:
        """Remove everything stored so far."""
        for file in (self.path / "new").iterdir():
            file.unlink()


@dataclass(frozen=True, slots=True)
class Maildirs:
    """A folder of Maildirs, one for each recipient and named after it, made by the server.

    Messages begin with the fields Return-Path and Received.
    """

    path: Path

    @classmethod
    def create(cls, home: Path, user: str) -> Maildirs:
        """Make the folder in `home`, for a server that delivers as `user`."""
        path = home / "mail"
        path.mkdir()
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
        return cls(path)

    def copies(self) -> list[Received]:
        """Everything stored so far."""
        return [self._read(file) for file in self.path.glob("*/new/*")]

    def _read(self, file: Path) -> Received:
        (reverse_path, _), content = take_fields(file.read_bytes(), ["Return-Path", "Received"])
        return Received(
            reverse_path.removeprefix("<").removesuffix(">"),
            (file.parts[-3],),
            with_crlf(content),
        )

    def clear(self) -> None:
        """Remove everything stored so far."""
        for folder in self.path.iterdir():
            shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class SinkFolder:
    """A folder that `smtp-sink -d` fills; its format is described in smtp-sink(1).

    Files grow while content arrives: read them after the final replies.
    """

    path: Path

    def copies(self) -> list[Received]:
        """Everything stored so far."""
        return [self._read(file) for file in self.path.iterdir()]

    def _read(self, file: Path) -> Received:
        rest = file.read_bytes()
        fields: list[tuple[str, str]] = []
        while rest.startswith(b"X-"):
            line, _, rest = rest.partition(b"\n")
            name, _, value = os.fsdecode(line).partition(": ")
            fields.append((name, value))
        paths = {
            wanted: [
                value.split(">")[0].partition("<")[2] for name, value in fields if name == wanted
            ]
            for wanted in ("X-Mail-Args", "X-Rcpt-Args")
        }
        # An empty line of its own ends the file.
        _, rest = take_fields(rest, ["Received"])
        content = rest.removesuffix(b"\n")
        return Received(paths["X-Mail-Args"][0], tuple(paths["X-Rcpt-Args"]), with_crlf(content))

    def clear(self) -> None:
        """Remove everything stored so far."""
        shutil.rmtree(self.path)
        self.path.mkdir()
        self.path.chmod(0o1777)
