from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from engine.delivery import credentials
from engine.delivery.credentials import (
    MAX_SECRET_OCTETS,
    CredentialsUnavailableError,
    read_credentials,
)
from engine.setting_types import Auth
from engine.smtp.mechanisms import Credentials

COMMAND_PROBLEMS = [
    ("import sys; sys.exit(3)", "ended with status 3"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "ended by signal 15"),
    ("pass", "empty"),
    ("print(' ')", "empty"),
    ("print('s3cretW0rd\\nother')", "more than one line, or control characters"),
    ("print('s3cretW0rd\\0')", "more than one line, or control characters"),
    ("import sys; sys.stdout.buffer.write(b's3cretW0rd\\xff')", "not UTF-8"),
    (f"print('s3cretW0rd' * {MAX_SECRET_OCTETS})", "more than 16384 octets"),
    ("while True: print('s3cretW0rd')", "more than 16384 octets"),
]


def python(source):
    return (sys.executable, "-c", source)


async def problem_of(auth, **options):
    with pytest.raises(CredentialsUnavailableError) as caught:
        await read_credentials(auth, **options)
    error = caught.value
    assert "s3cretW0rd" not in repr(error)
    assert error.__suppress_context__ or error.__context__ is None
    return str(error)


# ---- a password -----------------------------------------------------------------------------------


async def test_a_password_is_taken_as_it_is():
    read = await read_credentials(Auth(username="me", password=" s3cretW0rd "))
    assert read == Credentials("me", " s3cretW0rd ")


async def test_external_needs_neither_secret_nor_name():
    assert await read_credentials(Auth(mechanisms=("EXTERNAL",))) == Credentials(None)


@pytest.mark.parametrize(
    ("octets", "password"),
    [
        (b"s3cretW0rd", "s3cretW0rd"),
        (b"s3cretW0rd\n", "s3cretW0rd"),
        (b"s3cretW0rd\r\n", "s3cretW0rd"),
        (b" s3 cret \n", " s3 cret "),
        ("\ufeffs3cretW0rdé\n".encode(), "s3cretW0rdé"),
        (b"x" * MAX_SECRET_OCTETS, "x" * MAX_SECRET_OCTETS),
    ],
)
async def test_a_password_is_read_from_its_file(tmp_path, octets, password):
    path = tmp_path / "password"
    path.write_bytes(octets)
    read = await read_credentials(Auth(username="me", password_file=str(path)))
    assert read == Credentials("me", password)


async def test_a_changed_file_is_seen(tmp_path):
    path = tmp_path / "password"
    auth = Auth(username="me", password_file=str(path))
    for password in ("one", "two"):
        path.write_text(password)
        assert (await read_credentials(auth)).secret == password


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"s3cretW0rd\n\n", "more than one line, or control characters"),
        (b"s3cretW0rd\nother\n", "more than one line, or control characters"),
        (b"s3cretW0rd\0", "more than one line, or control characters"),
        (b"s3cretW0rd\xff", "not UTF-8"),
        (b"x" * (MAX_SECRET_OCTETS + 1), "more than 16384 octets"),
    ],
)
async def test_a_file_that_is_no_password_is_named(tmp_path, octets, problem):
    path = tmp_path / "password"
    path.write_bytes(octets)
    auth = Auth(username="me", password_file=str(path))
    assert await problem_of(auth) == f"password_file {path}: {problem}"


async def test_a_file_that_cannot_be_read_is_named(tmp_path):
    auth = partial(Auth, username="me")
    missing, fifo = tmp_path / "missing", tmp_path / "fifo"
    os.mkfifo(fifo)
    found = await problem_of(auth(password_file=str(missing)))
    assert found == f"password_file {missing}: No such file or directory"
    found = await problem_of(auth(password_file=str(tmp_path)))
    assert found == f"password_file {tmp_path}: not a regular file"
    found = await problem_of(auth(password_file=str(fifo)))
    assert found == f"password_file {fifo}: not a regular file"


async def test_a_file_that_hangs_is_given_up(monkeypatch, autojump_clock):
    async def hang(*_args, **_options):
        await trio.sleep_forever()

    monkeypatch.setattr(trio.to_thread, "run_sync", hang)
    auth = Auth(username="me", password_file="/mnt/away")
    assert await problem_of(auth, timeout=12) == "password_file /mnt/away: not done after 12 s"
    assert trio.current_time() == pytest.approx(12)


# ---- a token from a command -----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["print('s3cretW0rd')", "print('  s3cretW0rd\\n')"])
async def test_a_token_is_what_the_command_prints(source):
    read = await read_credentials(Auth(username="me", token_command=python(source)))
    assert read == Credentials("me", "s3cretW0rd", is_token=True)


async def test_the_command_is_run_without_a_shell():
    auth = Auth(username="me", token_command="echo '$HOME' ';' id")
    assert (await read_credentials(auth)).secret == "$HOME ; id"


async def test_the_command_gets_no_input_and_its_complaints_go_nowhere(capfd):
    source = "import sys; print('s3cretW0rd', file=sys.stderr); print(len(sys.stdin.read()))"
    read = await read_credentials(Auth(username="me", token_command=python(source)))
    assert read.secret == "0"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("source", "problem"), COMMAND_PROBLEMS)
async def test_a_command_that_gives_no_token_is_not_shown(source, problem):
    auth = Auth(username="me", token_command=python(source))
    assert await problem_of(auth) == f"token_command: {problem}"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("/no/such/s3cretW0rd",), "No such file or directory"),
        (("/tmp",), "Permission denied"),
        (("echo", "s3cretW0rd\0"), "no command that can be run"),
        (("echo", "s3cretW0rd\ud800"), "no command that can be run"),
    ],
)
async def test_a_command_that_cannot_be_run_is_not_shown(words, problem):
    found = await problem_of(Auth(username="me", token_command=words))
    assert found == f"token_command: {problem}"


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def wait_until(is_so):
    """Wait in real time, whatever clock Trio has: processes know no other."""

    def look():
        for _ in range(3000):
            if is_so():
                return
            time.sleep(0.01)
        raise TimeoutError

    await trio.to_thread.run_sync(look)


async def wait_until_gone(pid):
    await wait_until(lambda: not is_there(pid))


#: Starts another process, writes down the ids of both, and waits for ever.
HANGING = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as file:
    print(os.getpid(), child.pid, file=file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
child.wait()
"""


async def wait_for_processes(path):
    await wait_until(path.exists)
    return [int(word) for word in path.read_text().split()]


async def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path, mock_clock):
    auth = Auth(username="me", token_command=(*python(HANGING), str(tmp_path / "ids")))
    found = []

    async def ask():
        found.append(await problem_of(auth, timeout=12))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        ids = await wait_for_processes(tmp_path / "ids")
        assert all(map(is_there, ids))
        mock_clock.jump(12)
    assert found == ["token_command: not done after 12 s"]
    for pid in ids:
        await wait_until_gone(pid)


async def test_a_cancelled_wait_leaves_no_process(tmp_path):
    auth = Auth(username="me", token_command=(*python(HANGING), str(tmp_path / "ids")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_credentials, auth)
        ids = await wait_for_processes(tmp_path / "ids")
        nursery.cancel_scope.cancel()
    for pid in ids:
        await wait_until_gone(pid)


async def test_what_a_command_leaves_running_is_its_own_affair(tmp_path):
    """An agent that a command starts for its next run must live on."""
    source = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " stdout=subprocess.DEVNULL)\n"
        "print(child.pid)"
    )
    read = await read_credentials(Auth(username="me", token_command=python(source)))
    pid = int(read.secret)
    assert is_there(pid)
    os.kill(pid, signal.SIGKILL)
    await wait_until_gone(pid)


# ---- a token from a function ----------------------------------------------------------------------


async def test_a_token_may_come_from_a_function():
    async def token():
        await trio.lowlevel.checkpoint()
        return "s3cretW0rd\n"

    read = await read_credentials(Auth(username="me", token_command=token))
    assert read == Credentials("me", "s3cretW0rd", is_token=True)


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (b"s3cretW0rd", "returned no text"),
        (None, "returned no text"),
        ("", "empty"),
        ("s3cretW0rd\0", "more than one line, or control characters"),
        (RuntimeError("s3cretW0rd"), "raised RuntimeError"),
        (ExceptionGroup("s3cretW0rd", [OSError("s3cretW0rd")]), "raised ExceptionGroup"),
    ],
)
async def test_a_function_that_gives_no_token_is_named(token, problem):
    async def function():
        await trio.lowlevel.checkpoint()
        if isinstance(token, Exception):
            raise token
        return token

    auth = Auth(username="me", token_command=function)
    assert await problem_of(auth) == f"token function: {problem}"


async def test_a_function_that_is_not_asynchronous_is_named():
    auth = Auth(username="me", token_command=lambda: "s3cretW0rd")
    assert await problem_of(auth) == "token function: raised TypeError"


async def test_a_function_that_hangs_is_given_up(autojump_clock):
    auth = Auth(username="me", token_command=trio.sleep_forever)
    assert await problem_of(auth) == "token function: not done after 30 s"
    assert trio.current_time() == pytest.approx(credentials.DEFAULT_TIMEOUT)


async def test_cancelling_a_function_is_no_failure_of_it(autojump_clock):
    with trio.move_on_after(1) as scope:
        await read_credentials(Auth(username="me", token_command=trio.sleep_forever))
    assert scope.cancelled_caught
