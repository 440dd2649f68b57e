from __future__ import annotations

import smtplib
import socket
import threading

import pytest

from engine.testing.sink_thread import sink_in_thread
from tests.left_behind import nothing_left_behind


def test_a_sink_serves_who_is_not_in_trio():
    with nothing_left_behind():
        with sink_in_thread(keep=True) as sink, smtplib.SMTP(sink.host, sink.port) as client:
            client.sendmail("a@x.test", ["b@x.test"], "Subject: hello\r\n\r\nhello\r\n")
            assert [each.recipients for each in sink.messages] == [("b@x.test",)]
            assert sink.statistics().open == 1


def test_connections_are_broken_off_with_the_block():
    with sink_in_thread() as sink:
        client = socket.create_connection((sink.host, sink.port))
        assert client.recv(100).startswith(b"220 ")
    with client:
        client.settimeout(10)
        assert client.recv(100) == b""


def test_an_error_of_the_block_ends_it():
    with nothing_left_behind():
        with pytest.raises(KeyError), sink_in_thread():
            raise KeyError


@pytest.mark.parametrize(
    ("options", "error"), [({"host": "x"}, ValueError), ({"port": 1}, OSError)]
)
def test_what_it_cannot_do_is_said_at_once(options: dict[str, object], error: type[Exception]):
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        if "port" in options:
            options = {"port": occupied.getsockname()[1]}
        with nothing_left_behind(), pytest.raises(error), sink_in_thread(**options):
            pass
    assert "sink" not in {thread.name for thread in threading.enumerate()}
