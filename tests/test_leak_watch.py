"""`tests.leak_watch` finds a secret wherever it is told: a search that finds nothing proves nothing.

The secrets are planted in tests of their own, which another pytest runs; there another word is the
secret, so that these tests are no leak themselves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from engine.smtp.address import parse_path
from tests.leak_watch import TESTS, texts_of

CONFTEST = """
from tests import leak_watch
from tests.leaks import forms
leak_watch.FORMS.clear()
leak_watch.FORMS.update(dict.fromkeys(forms(b"planted-W0rd"), "it"))
"""
SOURCE = """
import logging, os, subprocess, sys
from base64 import b64encode
import pytest
from engine.errors import ConfigError
from engine.outcome import Cause, Outcome, Status
from engine.report.events import SiteOpened
from engine.report.log import LogWriter
from engine.report.stream import EventStream
from engine.report.transcript import Transcript
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage

IT = "planted-W0rd"
logger = logging.getLogger("engine.x")

def fail():
    raise ValueError(IT)

def outcome(**facts):
    return Outcome("m", "a@x.test", Status.FAILED, Stage.RCPT, Cause.REPLY, **{"text": ""} | facts)

def test_nothing(tmp_path):
    print("nothing")
    logger.warning("nothing")
    (tmp_path / "engine.toml").write_text(f'password = "{IT}"')
    (tmp_path / "password").write_text(IT)

def test_record():
    logger.warning("no: %s", IT)

def test_unheard_record():
    logging.getLogger("aloof").propagate = False
    logging.getLogger("aloof").warning(IT)

def test_logged_error():
    try:
        fail()
    except ValueError:
        logger.exception("it failed")

def test_print():
    print(IT)

def test_stderr():
    print(IT, file=sys.stderr)

def test_descriptor():
    os.write(2, IT.encode())

def test_read_output(capsys):
    print(IT)
    assert capsys.readouterr().out

@pytest.mark.parametrize("before", ["", "a", "ab"])
def test_base64(before):
    print("AUTH PLAIN", b64encode(f"{before}{IT}zz".encode()).decode())

def test_hex():
    print(IT.encode().hex())

def test_event():
    EventStream().publish(SiteOpened(1.0, IT))

def test_outcome():
    outcome(text=f"5.7.8 not {IT}")

def test_reply():
    outcome(reply=Reply(535, (b"5.7.8 not " + IT.encode(),)))

def test_outcomes_transcript():
    outcome(transcript=("C: AUTH PLAIN", f"C: {IT}"))

def test_transcript():
    transcript = Transcript()
    transcript.note(IT)
    transcript.since(0)

@pytest.mark.parametrize("form", ["text", "json"])
def test_log_line(form):
    LogWriter(lambda line: None, form, "debug")(SiteOpened(1.0, IT))

def test_error():
    fail()

def test_cause():
    try:
        fail()
    except ValueError as error:
        raise RuntimeError("harmless") from error

def test_caught():
    try:
        raise ConfigError("fine", IT)
    except ConfigError:
        pass

def test_expected():
    with pytest.raises(ValueError):
        fail()

def test_expected_context():
    with pytest.raises(RuntimeError):
        try:
            fail()
        except ValueError:
            raise RuntimeError("harmless")

def test_suppressed_context():
    with pytest.raises(RuntimeError):
        try:
            fail()
        except ValueError:
            raise RuntimeError("harmless") from None

def test_expected_note():
    with pytest.raises(RuntimeError):
        error = RuntimeError("harmless")
        error.add_note(IT)
        raise error

def test_expected_group():
    with pytest.raises(ExceptionGroup):
        raise ExceptionGroup("some", [ValueError(IT)])

def test_argument():
    def log_in(password):
        raise RuntimeError("harmless")
    log_in(IT)

def test_file(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "outcomes.jsonl").write_text(IT)

def test_command():
    subprocess.run([sys.executable, "-c", f"print({IT!r})"], capture_output=True)

@pytest.fixture
def late():
    yield
    logger.warning(IT)

def test_teardown(late):
    pass
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What was found, by the name of the test: an own pytest ran them."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_planted.py").write_text(SOURCE)
    command = [sys.executable, "-m", "pytest", "-p", "tests.leak_watch", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--color=no", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "COLUMNS": "200"},
    )
    found = {}
    for part in re.split(r"^_+ (?=ERROR at teardown of )", done.stdout, flags=re.MULTILINE)[1:]:
        name = re.match(r"ERROR at teardown of test_(\S+)", part)[1]
        found[name] = re.findall(r"it as '\S+' in (.*?): ['\"]", part)
    return found


@pytest.mark.parametrize(
    ("name", "places"),
    {
        "record": {"log record of engine.x"},
        "unheard_record": {"log record of aloof", "Captured stderr call"},
        "logged_error": {"log record of engine.x"},
        "print": {"Captured stdout call"},
        "stderr": {"Captured stderr call"},
        "descriptor": {"Captured stderr call"},
        "read_output": {"output"},
        "base64[]": {"Captured stdout call"},
        "base64[a]": {"Captured stdout call"},
        "base64[ab]": {"Captured stdout call"},
        "hex": {"Captured stdout call"},
        "event": {"site.opened"},
        "outcome": {"outcome"},
        "reply": {"outcome"},
        "outcomes_transcript": {"outcome"},
        "transcript": {"transcript"},
        "log_line[text]": {"log line"},
        "log_line[json]": {"log line"},
        "error": {"error of the test"},
        "cause": {"error of the test"},
        "caught": {"error"},
        "expected": {"error a test expects"},
        "expected_context": {"error a test expects"},
        "expected_note": {"error a test expects"},
        "expected_group": {"error a test expects"},
        "argument": {"report"},
        "file": {"file logs/outcomes.jsonl"},
        "command": {"command"},
        "teardown": {"log record of engine.x"},
    }.items(),
)
def test_a_planted_secret_is_found_and_its_place_named(name, places, told):
    assert places <= set(told[name])


@pytest.mark.parametrize("name", ["nothing", "suppressed_context"])
def test_what_nobody_is_told_is_no_leak(name, told):
    assert name not in told


# ---- the line between what is told and what a test knows -----------------------------------------


def error_of(function):
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - of every sort
        return error
    raise AssertionError


def fail():
    raise ValueError("mine")


def fail_in_the_engine():
    parse_path("<a b>")


def test_what_a_test_raises_itself_is_not_told():
    assert list(texts_of(error_of(fail))) == []
    group = ExceptionGroup("some", [error_of(fail), error_of(fail_in_the_engine)])
    assert len(list(texts_of(group))) == 1


def test_what_the_engine_raises_is_told_with_its_cause_and_without_lines_of_tests():
    error = error_of(fail_in_the_engine)
    error.__cause__ = error_of(fail)
    (text,) = texts_of(error)
    assert "ValueError: mine" in text
    assert "parse_path" not in text
