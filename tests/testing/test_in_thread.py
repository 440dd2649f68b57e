from __future__ import annotations

import smtplib
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from engine.testing.in_thread import in_thread
from engine.testing.script import ScriptMismatchError
from engine.testing.server import serve_script
from engine.testing.sink import open_sink
from tests.left_behind import nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SCRIPT = """
    S: 220 mx.test ESMTP
    C~ ehlo *
    S: 250 mx.test
    C: mail FROM:<a@x.test>
    S: 250 ok
    C: rcpt TO:<b@x.test>
    S: 550 5.1.1 no such user
    C~ *
    S: 250 ok
"""


def send(port: int, to: str = "b@x.test") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.sendmail("a@x.test", [to], "Subject: hello\r\n\r\nhello\r\n")


def test_a_script_is_played_for_who_is_not_in_trio():
    with nothing_left_behind(), in_thread(serve_script, SCRIPT) as server:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(server.port)
    assert server.connections == 1


def test_a_mismatch_is_raised_with_what_the_sender_made_of_it_as_its_cause():
    with nothing_left_behind():
        with pytest.raises(ScriptMismatchError, match="line 7") as info:
            with in_thread(serve_script, SCRIPT, deadline=5) as server:
                send(server.port, "c@x.test")
    assert isinstance(info.value.__cause__, smtplib.SMTPException | OSError)


def test_what_was_never_played_is_raised_on_leaving():
    with nothing_left_behind():
        with pytest.raises(ScriptMismatchError), in_thread(serve_script, SCRIPT):
            pass


def test_an_error_of_the_block_comes_out_as_it_is():
    error = KeyError("mine")
    with nothing_left_behind():
        with pytest.raises(KeyError) as info, in_thread(open_sink):
            raise error
    assert info.value is error
    assert info.value.__cause__ is None


def test_arguments_that_cannot_be_used_are_refused_at_once():
    with nothing_left_behind():
        with pytest.raises(ValueError, match="no script"), in_thread(serve_script, "no script"):
            pass
        with pytest.raises(TypeError), in_thread(open_sink, keeps=True):
            pass


@pytest.mark.parametrize("kind", [AssertionError, pytest.fail.Exception])
def test_what_a_callback_of_the_server_raises_is_not_lost(kind: type[BaseException]):
    def check(_: object) -> None:
        raise kind("not this one")

    with nothing_left_behind():
        with pytest.raises(BaseExceptionGroup) as info:
            with in_thread(open_sink, on_message=check) as sink:
                send(sink.port)
    assert info.group_contains(kind, match="not this one")


def test_interrupted_it_is_cancelled_and_waited_for():
    ends = []

    @asynccontextmanager
    async def slow() -> AsyncIterator[int]:
        try:
            yield 7
            await trio.sleep_forever()
        except trio.Cancelled:
            ends.append(threading.current_thread().name)
            raise

    with nothing_left_behind():
        with pytest.raises(KeyboardInterrupt), in_thread(slow) as seven:
            assert seven == 7
            raise KeyboardInterrupt
    assert ends == ["slow_0"]


def test_a_server_that_waits_for_its_client_is_left_in_order():
    with nothing_left_behind(), in_thread(serve_script, "S: 220 hello\n! stall") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            assert client.recv(100) == b"220 hello\r\n"
