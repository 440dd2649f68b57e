"""The fixture `leaks` finds what it looks for: a search that finds nothing proves nothing."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from urllib.parse import quote

import pytest

from tests.leaks import Leaks, forms

SECRET = "s3cret/p@ss wörd"


@pytest.mark.parametrize(
    "text",
    [
        f"AUTH {SECRET}!",
        SECRET.upper(),
        quote(SECRET, safe=""),
        json.dumps(SECRET),
        repr(SECRET.encode()),
        SECRET.encode().hex(),
        *(
            b64encode(f"{before}{SECRET}{behind}".encode()).decode()
            for before in ("", "\0me\0", "user=x\1", "ab")
            for behind in ("", "\1\1", "z", "\n")
        ),
    ],
)
def test_a_secret_is_found_in_any_form(text):
    leaks = Leaks()
    leaks.look("reply", f"535 no: {text}")
    leaks.keep(SECRET)
    assert leaks.check()


@pytest.mark.parametrize("text", ["s3cret", "AUTH PLAIN ****", "", b64encode(b"me").decode()])
def test_other_texts_are_none(text):
    leaks = Leaks()
    leaks.keep(SECRET)
    leaks.look("reply", text)
    assert leaks.check() == []


def test_an_error_is_looked_at_with_what_caused_it():
    leaks = Leaks()
    leaks.keep(SECRET)
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise RuntimeError("harmless") from error
    except RuntimeError as error:
        leaks.look("error", error)
    assert leaks.check()


def test_a_file_is_looked_at_as_octets(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"\xff\0" + SECRET.encode())
    leaks = Leaks()
    leaks.keep(SECRET)
    leaks.file(file)
    assert leaks.check()


def test_what_is_too_short_to_be_found_is_refused():
    with pytest.raises(AssertionError):
        Leaks().keep("s3cre")
    assert all(len(form) >= 6 for form in forms(b"abcdef"))


@pytest.mark.parametrize(
    "code", ["logging.getLogger('x').debug(SECRET)", "print(SECRET)", "sys.stderr.write(SECRET)"]
)
def test_the_fixture_sees_logs_and_output_for_itself(code, leaks, capfd, caplog):
    """In a fixture of its own, ended by hand."""
    namespace = {"SECRET": SECRET, "logging": logging, "sys": __import__("sys")}
    exec(code, namespace)
    other = Leaks()
    other.keep(SECRET)
    other.look("output", *capfd.readouterr())
    for record in caplog.records:
        other.look("logging", record.getMessage())
    assert other.check()
