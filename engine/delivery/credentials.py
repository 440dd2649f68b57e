"""Read what an `auth` table names: the password in its file, the token that a command prints.

Called by whoever authenticates, once a connection: so a password can be changed and a token be
renewed while the engine runs.  Not here: what is done with it (`engine.smtp.sasl`), and keeping a
token: a command that gets one from afar keeps it until it expires.

Nothing here shows a secret, nor a command or what it printed.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from engine.smtp.mechanisms import Credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.setting_types import Auth, TokenFunction

#: Seconds until a password or token must be there; a token may have to come from afar.
DEFAULT_TIMEOUT: Final = 30.0
#: The longest password or token; real tokens have up to a few thousand octets.
MAX_SECRET_OCTETS: Final = 16 * 1024
#: A process is killed, so this is only ever reached when the system is in trouble.
_KILL_TIMEOUT: Final = 5.0

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class CredentialsUnavailableError(Exception):
    """A password or token cannot be had now; the text says which and why, on one line."""


async def read_credentials(auth: Auth, timeout: float = DEFAULT_TIMEOUT) -> Credentials:
    """Read the credentials that an `auth` table names.

    Cancellation leaves nothing behind: a command that runs is killed, with all it started.

    Args:
        auth: The table.
        timeout: Seconds until the file must be read, the command have ended or the function have
            returned.

    Raises:
        CredentialsUnavailableError: They cannot be had, or they are none.
    """
    with trio.move_on_after(timeout):
        if auth.password is not None:
            return Credentials(auth.username, auth.password.get_secret_value())
        if auth.password_file is not None:
            return Credentials(auth.username, await _read_password(auth.password_file))
        if auth.token_command is not None:
            return Credentials(auth.username, await _token(auth.token_command), is_token=True)
        return Credentials(auth.username)
    raise CredentialsUnavailableError(f"{_name(auth)}: not done after {timeout:g} s")


def _name(auth: Auth) -> str:
    if auth.password_file is not None:
        return f"password_file {auth.password_file}"
    return "token_command" if isinstance(auth.token_command, tuple) else "token function"


async def _token(source: Sequence[str] | TokenFunction) -> str:
    return await (_call(source) if callable(source) else _run(source))


async def _read_password(file: str) -> str:
    name, path = f"password_file {file}", Path(file)
    try:
        # A file on a server that hangs must not hold up more than this.
        octets = await trio.to_thread.run_sync(_read_file, path, abandon_on_cancel=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CredentialsUnavailableError(f"{name}: {reason}") from None
    if octets is None:
        raise CredentialsUnavailableError(f"{name}: not a regular file")
    # Editors end the line; a space at an end may be the password's own.
    return _check(_decode(octets, name).removesuffix("\n").removesuffix("\r"), name)


def _read_file(path: Path) -> bytes | None:
    # Before it is opened: opening a FIFO waits for a writer, and the thread with it.
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as file:
        return file.read(MAX_SECRET_OCTETS + 1)


async def _run(words: Sequence[str]) -> str:
    name = "token_command"
    try:
        # A session of its own makes what it starts one group, which can be killed with it.
        process = await trio.lowlevel.open_process(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise CredentialsUnavailableError(f"{name}: {error.strerror}") from None
    except ValueError:  # a NUL or a surrogate in a word
        raise CredentialsUnavailableError(f"{name}: no command that can be run") from None
    assert process.stdout is not None
    async with process.stdout:
        try:
            octets = await _receive(process.stdout, name)
            status = await process.wait()
        except BaseException:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.move_on_after(_KILL_TIMEOUT, shield=True):
                await process.wait()
            raise
    if status:
        how = f"ended with status {status}" if status > 0 else f"ended by signal {-status}"
        raise CredentialsUnavailableError(f"{name}: {how}")
    return _check(_decode(octets, name).strip(), name)


async def _receive(stream: trio.abc.ReceiveStream, name: str) -> bytes:
    octets = b""
    while piece := await stream.receive_some():
        octets += piece
        if len(octets) > MAX_SECRET_OCTETS:
            _refuse_length(name)
    return octets


async def _call(function: TokenFunction) -> str:
    name = "token function"
    try:
        token = await function()
    except Exception as error:  # noqa: BLE001 - a program's own; its text may hold a secret
        raise CredentialsUnavailableError(f"{name}: raised {type(error).__name__}") from None
    if not isinstance(token, str):
        raise CredentialsUnavailableError(f"{name}: returned no text")
    return _check(token.strip(), name)


def _decode(octets: bytes, name: str) -> str:
    if len(octets) > MAX_SECRET_OCTETS:
        _refuse_length(name)
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CredentialsUnavailableError(f"{name}: not UTF-8") from None


def _check(secret: str, name: str) -> str:
    if not secret:
        raise CredentialsUnavailableError(f"{name}: empty")
    if _CONTROL.search(secret):
        raise CredentialsUnavailableError(f"{name}: more than one line, or control characters")
    return secret


def _refuse_length(name: str) -> NoReturn:
    raise CredentialsUnavailableError(f"{name}: more than {MAX_SECRET_OCTETS} octets")
