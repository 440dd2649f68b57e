"""What an errno means for an outcome."""

from __future__ import annotations

import errno
import os

import pytest

from engine.errors import EngineError
from engine.net.errors import ConnectFailed
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage

DOING = "connect to mx.test [192.0.2.1]:25"


def make(number, **how):
    error = OSError(number, os.strerror(number))
    return ConnectFailed.from_os_error(Stage.CONNECT, DOING, error, **how)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("ECONNREFUSED", Cause.REFUSED),
        ("ECONNRESET", Cause.REFUSED),
        ("ENOENT", Cause.REFUSED),
        ("EHOSTUNREACH", Cause.UNREACHABLE),
        ("ENETUNREACH", Cause.UNREACHABLE),
        ("EADDRNOTAVAIL", Cause.UNREACHABLE),
        ("EACCES", Cause.UNREACHABLE),
        ("EPERM", Cause.UNREACHABLE),
        ("ETIMEDOUT", Cause.TIMEOUT),
        ("EPROTO", Cause.IO),
        ("EINVAL", Cause.IO),
    ],
)
def test_each_errno_has_its_cause_and_blames_the_host(name, cause):
    failure = make(getattr(errno, name))
    assert (failure.cause, failure.scope) == (cause, Scope.HOST)
    assert failure.errno == getattr(errno, name)


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_an_exhausted_machine_blames_itself_whatever_the_step(name):
    failure = make(getattr(errno, name), scope=Scope.SOURCE, cause=Cause.CONFIG)
    assert (failure.cause, failure.scope) == (Cause.IO, Scope.LOCAL)


def test_the_step_may_say_who_is_to_blame_and_why():
    failure = make(errno.EADDRNOTAVAIL, scope=Scope.SOURCE, cause=Cause.CONFIG)
    assert (failure.cause, failure.scope) == (Cause.CONFIG, Scope.SOURCE)


def test_the_text_is_one_line_for_a_person():
    failure = make(errno.ECONNREFUSED)
    assert failure.text == str(failure) == f"{DOING}: Connection refused"
    assert failure.stage is Stage.CONNECT


def test_an_error_without_a_number_keeps_its_text():
    failure = ConnectFailed.from_os_error(Stage.PROXY, "greet proxy", OSError("odd"))
    assert failure.text == "greet proxy: odd"
    assert (failure.stage, failure.cause, failure.errno) == (Stage.PROXY, Cause.IO, None)


def test_it_is_one_of_the_engines_errors():
    assert isinstance(make(errno.EIO), EngineError)
