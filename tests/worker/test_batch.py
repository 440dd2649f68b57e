from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.address import parse_mailbox
from engine.worker.batch import TOO_LONG, Entry, LineSplitter, Wishes, read_entry

CONTENT = "Subject: hello\n\nworld\n"
GOOD = {"sender": "a@x.test", "recipients": ["b@y.test"], "content": CONTENT}
KEYS = (
    "one of id, sender, recipients, message, content, content_base64, envid, ret, require_tls, "
    "smtputf8"
)


def line(**changes: object) -> bytes:
    record = GOOD | changes
    return json.dumps({key: value for key, value in record.items() if value is not ...}).encode()


def problems(**changes: object) -> tuple[str, ...]:
    entry, found = read_entry(line(**changes))
    assert entry is None
    return found


# ---- good lines -----------------------------------------------------------------------------------


def test_a_plain_line_is_read():
    entry, found = read_entry(line())

    assert found == ()
    assert entry is not None
    assert entry.id is None
    assert entry.sender == parse_mailbox("a@x.test")
    assert [to.address for to in entry.recipients] == ["b@y.test"]
    assert entry.content.octets == CONTENT.replace("\n", "\r\n").encode()
    assert (entry.envid, entry.ret, entry.require_tls, entry.smtputf8) == (None, None, False, False)


def test_everything_a_line_may_have_is_read():
    entry, found = read_entry(
        line(
            id="seven",
            recipients=[
                {"address": "b@y.test", "notify": ["success", "delay"], "orcpt": "rfc822;c@z.test"}
            ],
            envid="envelope 7",
            ret="hdrs",
            require_tls=True,
            smtputf8=True,
        )
    )

    assert found == ()
    assert entry is not None
    (recipient,) = entry.recipients
    assert (recipient.notify, recipient.orcpt) == ({"success", "delay"}, "rfc822;c@z.test")
    assert (entry.id, entry.envid, entry.ret) == ("seven", "envelope 7", "hdrs")
    assert (entry.require_tls, entry.smtputf8) == (True, True)


@pytest.mark.parametrize("sender", ["", "<>"])
def test_the_null_path_is_a_sender(sender: str):
    entry, found = read_entry(line(sender=sender))
    assert (entry is not None and entry.sender, found) == (None, ())


def test_null_is_the_same_as_leaving_out_what_may_be_left_out():
    nothing = dict.fromkeys(("id", "message", "content_base64", "envid", "ret", "require_tls"))
    entry, found = read_entry(line(**nothing, recipients=[{"address": "b@y.test", "notify": None}]))
    assert (entry is not None, found) == (True, ())


def test_a_file_is_a_path_that_is_not_looked_at():
    entry, _ = read_entry(line(content=..., message="letters/1.eml"))
    assert entry is not None
    assert entry.content == Path("letters/1.eml")


def test_base64_is_octets():
    octets = "Subject: ü\r\n\r\n".encode("latin-1")
    entry, _ = read_entry(line(content=..., content_base64=base64.b64encode(octets).decode()))
    assert entry is not None
    assert entry.content.octets == octets


def test_text_is_sent_as_utf8():
    entry, _ = read_entry(line(content="Subject: a\r\n\r\nüñ\r\n"))
    assert entry is not None
    assert entry.content.octets == "Subject: a\r\n\r\nüñ\r\n".encode()


# ---- bad lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"foo": 1}, f"foo: found an unknown key; allowed {KEYS}"),
        (
            {"recipient": 1},
            'recipient: found an unknown key; allowed a known name; did you mean "recipients"?',
        ),
        ({"a\nb": 1}, f'"a\\nb": found an unknown key; allowed {KEYS}'),
        ({"id": 7}, "id: found 7; allowed a text that is not empty"),
        ({"id": ""}, 'id: found ""; allowed a text that is not empty'),
        ({"id": "\ud800"}, 'id: found "\\ud800"; allowed a text that is not empty'),
        ({"sender": ...}, 'sender: found nothing; allowed an address, or "" for the null path'),
        ({"sender": None}, 'sender: found null; allowed an address, or "" for the null path'),
        (
            {"sender": "a"},
            "sender: address 'a': no \"@\"; allowed is local-part@domain",
        ),
        (
            {"recipients": ...},
            "recipients: found nothing; allowed a list of one recipient or more",
        ),
        ({"recipients": []}, "recipients: found []; allowed a list of one recipient or more"),
        (
            {"recipients": "b@y.test"},
            'recipients: found "b@y.test"; allowed a list of one recipient or more',
        ),
        (
            {"recipients": [7]},
            'recipients[0]: found 7; allowed an address, or an object with "address"',
        ),
        (
            {"recipients": [{"notify": ["never"]}]},
            "recipients[0].address: found null; allowed an address",
        ),
        (
            {"recipients": [{"address": "b@y.test", "name": "B"}]},
            "recipients[0].name: found an unknown key; allowed one of address, notify, orcpt",
        ),
        (
            {"recipients": [{"address": "b@y.test", "orcpt": "b@y.test"}]},
            (
                'recipients[0].orcpt: found "b@y.test"; allowed "type;address", up to 500 characters, '
                'as "rfc822;a@b.test" (RFC 3461 §4.2)'
            ),
        ),
        (
            {"content": ...},
            'found no content; allowed exactly one of "message", "content" and "content_base64"',
        ),
        (
            {"message": "a.eml"},
            (
                'found "message" and "content"; '
                'allowed exactly one of "message", "content" and "content_base64"'
            ),
        ),
        ({"content": ["a"]}, 'content: found ["a"]; allowed a text'),
        ({"content": "a\rb"}, "content: bare CR in line 1: lines end with CRLF or LF"),
        (
            {"content": "a\n\0"},
            "content: NUL in line 2: allowed are all octets but NUL (RFC 5322 §3.5)",
        ),
        (
            {"content": "\ud800"},
            "content: surrogate in line 1: allowed is text UTF-8 can encode",
        ),
        (
            {"content": ..., "content_base64": "a b"},
            "content_base64: found no base64; allowed base64 without line ends (RFC 4648 §4)",
        ),
        ({"content": ..., "message": ""}, 'message: found ""; allowed the path of a file'),
        ({"content": ..., "message": "a\0"}, 'message: found "a\\x00"; allowed the path of a file'),
        ({"ret": "FULL"}, 'ret: found "FULL"; allowed "full" or "hdrs"'),
        (
            {"envid": ""},
            'envid: found ""; allowed 1 to 100 printable ASCII characters (RFC 3461 §4.4)',
        ),
        ({"require_tls": "yes"}, 'require_tls: found "yes"; allowed true or false'),
        ({"smtputf8": 1}, "smtputf8: found 1; allowed true or false"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(changes: dict[str, object], problem: str):
    assert problems(**changes) == (problem,)


@pytest.mark.parametrize("notify", ["never", ["never", "delay"], ["NEVER"], [1], 0, ""])
def test_notify_takes_its_four_words_only(notify: object):
    (problem,) = problems(recipients=[{"address": "b@y.test", "notify": notify}])
    assert problem.startswith("recipients[0].notify: found ")
    assert problem.endswith(
        '; allowed "success", "failure" and "delay" in any number, or "never" alone'
    )


def test_an_envelope_identifier_is_measured_as_it_is_sent():
    # RFC 3461 §4: a space takes three characters on the wire.
    assert read_entry(line(envid="a" * 100))[1] == ()
    assert len(problems(envid="a" * 97 + "  ")) == 1


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"nonsense", "found no JSON: expecting value at position 1; allowed JSON"),
        (b'{"id": "1"', "found no JSON: expecting ',' delimiter at position 11; allowed JSON"),
        (b"[1]", "found [1]; allowed an object"),
        (b"null", "found null; allowed an object"),
        (b'{"id": "\xff"}', "found an octet that is not UTF-8 at position 9; allowed JSON"),
        (b'{"id": "1", "id": "2"}', 'found the key "id" twice; allowed once'),
        (b"[" * 100_000, "found a value too deep or a number too long; allowed JSON"),
        (b"1" * 5000, "found a value too deep or a number too long; allowed JSON"),
    ],
)
def test_what_is_no_object_is_refused(octets: bytes, problem: str):
    assert read_entry(octets) == (None, (problem,))


def test_all_problems_of_a_line_are_named():
    assert len(problems(foo=1, sender="a", recipients=["b", "c"], content=1)) == 5


def test_a_bad_recipient_does_not_hold_up_those_beside_it():
    entry, found = read_entry(line(recipients=["b@y.test", "nobody", "c@y.test"]))

    assert entry is not None
    assert [to.address for to in entry.recipients] == ["b@y.test", "c@y.test"]
    assert found == ("recipients[1]: address 'nobody': no \"@\"; allowed is local-part@domain",)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_value_of_any_key_raises(value: object):
    for key in (*GOOD, "id", "message", "content_base64", "envid", "ret", "smtputf8", "x"):
        read_entry(json.dumps(GOOD | {key: value}).encode())


@given(st.binary(max_size=50))
def test_no_octets_raise(octets: bytes):
    entry, found = read_entry(octets)
    assert entry is None
    assert found


# ---- lines of a stream ----------------------------------------------------------------------------


def split(pieces: list[bytes], limit: int = 100) -> list[tuple[int, bytes | None]]:
    splitter = LineSplitter(limit)
    lines = [found for piece in pieces for found in splitter.feed(piece)]
    return [*lines, *splitter.finish()]


@given(st.lists(st.text("ab\n", max_size=12).map(str.encode)))
def test_lines_are_the_same_however_the_stream_is_cut(pieces: list[bytes]):
    whole = b"".join(pieces)
    *complete, rest = whole.split(b"\n")
    lines = [*complete, rest] if rest else complete
    assert split(pieces) == list(enumerate(lines, 1))


def test_a_line_that_is_too_long_is_refused_and_the_next_is_read():
    assert split([b"1234\n123", b"45", b"\n12\n"], limit=4) == [(1, b"1234"), (2, None), (3, b"12")]


def test_a_line_that_is_too_long_is_not_held():
    splitter = LineSplitter(1000)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 1000)) == []
    assert sum(map(len, splitter._parts)) <= 1000
    assert list(splitter.finish()) == [(1, None)]
    assert "64 MiB" in TOO_LONG


# ---- lines for the queue --------------------------------------------------------------------------


def for_queue(**changes: object) -> tuple[Entry | None, tuple[str, ...]]:
    record = {"sender": "a@x.test", "recipients": ["b@y.test"], "content": "x"} | changes
    return read_entry(json.dumps(record).encode(), is_for_queue=True)


def test_lines_for_the_queue_may_say_how_their_message_is_queued():
    wishes = {
        "tenant": "t",
        "job": "",
        "priority": -9,
        "not_before": "2026-08-23T10:00:00Z",
        "deadline": 1_800_000_000.5,
        "hold": False,
    }
    entry, problems = for_queue(**wishes)
    assert problems == ()
    assert entry is not None
    assert entry.wishes == Wishes(**wishes)
    assert for_queue(**dict.fromkeys(wishes))[0].wishes == Wishes()
    assert for_queue()[0].wishes == Wishes()


def test_other_lines_may_not():
    line = b'{"sender": "", "recipients": ["b@y.test"], "content": "x", "job": "j"}'
    entry, (problem,) = read_entry(line)
    assert entry is None
    assert problem.startswith("job: found an unknown key")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tenant", 7, "tenant: found 7; allowed a text of 255 characters at most"),
        ("tenant", "t" * 256, "tenant: found "),
        ("job", "a\0b", "without NUL"),
        ("job", "\ud800", "job: found "),
        ("priority", 10, "priority: found 10; allowed a whole number from -9 to 9"),
        ("priority", 1.0, "priority: found 1.0"),
        ("priority", True, "priority: found true"),
        ("not_before", "later", 'not_before: found "later"; allowed a time with its zone'),
        ("deadline", "2026-08-23T10:00:00", "deadline: found "),
        ("deadline", [1], "deadline: found [1]"),
        ("hold", "yes", 'hold: found "yes"; allowed true or false'),
    ],
)
def test_wishes_that_cannot_be_are_refused(key: str, value: object, said: str):
    entry, problems = for_queue(**{key: value})
    assert entry is None
    (problem,) = problems
    assert said in problem
