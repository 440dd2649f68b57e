from __future__ import annotations

import os
import sys
from email import message_from_bytes, policy

import pytest
import trio

from engine.message import Message
from engine.smtp.errors import ContentError
from engine.worker import sendmail as module
from engine.worker.sendmail import Draft, read_message, sendmail
from engine.worker.sendmail_flags import Flags
from tests.worker.commands import run_engine

MAIL = b"To: Bob <bob@one.test>, root\nCc: c@two.test\nBcc: d@three.test\nSubject: hi\n\nhello\n"


@pytest.fixture
def hand_in(place):
    """Call `sendmail` as programs do."""
    place.config.write_text('[defaults]\nhelo_name = "me.test"\n')

    async def run(*arguments, stdin=MAIL, environment=None):
        variables = {"DELIVERY_ENGINE_CONFIG": str(place.config)} | (environment or {})
        return await run_engine("sendmail", *arguments, stdin=stdin, environment=variables)

    return run


async def test_mail_goes_to_whom_it_names_and_gets_what_it_lacks(hand_in, place):
    done = await hand_in("-t", "-i")

    assert (done.status, done.out, done.err) == (0, "", "")
    (stored,) = await place.messages()
    assert [entry.recipient for entry in stored.entries] == [
        "bob@one.test",
        "root@me.test",
        "c@two.test",
        "d@three.test",
    ]
    message = message_from_bytes(stored.message.content.octets, policy=policy.default)
    assert message["bcc"] is None
    assert message["to"] == "Bob <bob@one.test>, root"
    assert message["message-id"] == f"<{stored.message.id}@me.test>"
    assert message["date"].datetime.tzinfo is not None
    assert message["from"].addresses[0].addr_spec == str(stored.message.reverse_path)
    assert str(stored.message.reverse_path).endswith("@me.test")


async def test_flags_of_the_envelope_are_kept(hand_in, place):
    done = await hand_in(
        *("-f", "boss@x.test", "-F", "The Boss", "-N", "failure,delay", "-R", "hdrs"),
        *("-V", "id 7", "-B8BITMIME", "-oem", "-q", "a@one.test, Bob <b@two.test>"),
        stdin=b"hello\n",
    )

    assert done.status == 0
    (stored,) = await place.messages()
    message = stored.message
    assert (str(message.reverse_path), message.ret, message.envid) == (
        "boss@x.test",
        "hdrs",
        "id 7",
    )
    assert [each.address for each in message.recipients] == ["a@one.test", "b@two.test"]
    assert {each.notify for each in message.recipients} == {frozenset({"failure", "delay"})}
    assert b"From: The Boss <boss@x.test>\r\n" in message.content.octets


@pytest.mark.parametrize("sender", ["", "<>"])
async def test_the_null_path_is_a_sender(sender, hand_in, place):
    await hand_in("-f", sender, "a@one.test", stdin=b"hello\n")
    (stored,) = await place.messages()
    assert stored.message.reverse_path is None
    assert (
        b"From: Mail Delivery System <MAILER-DAEMON@me.test>\r\n" in stored.message.content.octets
    )


async def test_a_bcc_goes_to_nobody_also_where_the_header_names_no_recipients(hand_in, place):
    await hand_in("a@one.test")
    (stored,) = await place.messages()
    assert b"Bcc" not in stored.message.content.octets
    assert len(stored.entries) == 1


async def test_a_lone_dot_ends_the_message_or_not(hand_in, place):
    text = b"Subject: a\n\none\n.\ntwo\n"
    await hand_in("a@one.test", stdin=text)
    await hand_in("-i", "a@one.test", stdin=text)
    ends = [each.message.content.octets.split(b"\r\n\r\n")[1] for each in await place.messages()]
    assert ends == [b"one\r\n", b"one\r\n.\r\ntwo\r\n"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "said"),
    [
        (["-bs"], b"", 64, "-b: found"),
        ([], b"", 64, "found no recipient; allowed are some, or -t"),
        (["-t"], b"Subject: a\n\nb\n", 65, "found no recipient that can be used"),
        (["-t"], b"To: a@one.test, b c\n\nb\n", 65, "To: found 'b c'"),
        (["a@one.test", "b@@two.test"], b"x\n", 65, "RECIPIENT 'b@@two.test'"),
        (["a b c"], b"x\n", 65, "RECIPIENT: found 'a b c'"),
        (["-f", "a b@x", "a@one.test"], b"x\n", 65, "sender "),
        (["a@one.test"], b"Subject: a\0\n", 65, "NUL in line 1"),
        (["-C", "/none.toml", "a@one.test"], b"x\n", 66, "/none.toml: No such file"),
    ],
)
async def test_what_cannot_be_taken_is_not_taken_at_all(
    arguments, stdin, status, said, hand_in, place
):
    done = await hand_in(*arguments, stdin=stdin)
    assert done.status == status
    assert said in done.err
    assert "Traceback" not in done.err
    assert not place.file.exists()


async def test_a_message_that_is_too_large_is_not_read_to_its_end(hand_in, place):
    place.config.write_text('[queue]\nmax_message_octets = "1 KiB"\n')
    done = await hand_in("a@one.test", stdin=b"x\n" * 100_000)
    assert done.status == 65
    assert "allowed are 1,024 (max_message_octets)" in done.err


async def test_the_queue_is_listed_for_who_asks(hand_in):
    await hand_in("a@one.test", stdin=b"x\n")
    done = await hand_in("-bp")
    assert done.status == 0
    assert "a@one.test queued 0 now not tried yet" in done.words


@pytest.mark.parametrize("flag", ["-q", "-q30m", "-vq"])
async def test_to_run_the_queue_is_the_worker_s_matter(hand_in, flag):
    done = await hand_in(flag, stdin=b"x\n")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert "The queue is empty." in (await hand_in("-bp")).out


async def test_by_the_name_of_mailq_it_lists_the_queue(place, capfd):
    status = await trio.to_thread.run_sync(
        lambda: sendmail(["-C", str(place.config)], {}, name="mailq")
    )
    assert (status, capfd.readouterr().out) == (0, "The queue is empty.\n")


def test_help_is_there_and_fits(capsys):
    assert sendmail(["--help"]) == 0
    text = capsys.readouterr().out
    assert "-bp           list the queue" in text
    assert "Exit status: 0 taken" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_console_script_exits_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/sendmail", "-z"])
    with pytest.raises(SystemExit) as info:
        module.main()
    assert info.value.code == 64
    assert capsys.readouterr().err.startswith('sendmail: "-z": found an unknown flag')


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"a\n.\nb\n", b"a\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n"),
        (b".\na\n", b""),
        (b".\r\na\n", b""),
        (b"a\n.", b"a\n"),
        (b".", b""),
        (b"a\n..\n.b\n", b"a\n..\n.b\n"),
        (b"a.\n", b"a.\n"),
        (b"a\n.\r\n.\n", b"a\n"),
        (b"", b""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_a_dot_alone_on_its_line_ends_it_however_it_comes(
    size, octets, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(module, "_PIECE_OCTETS", size)
    (tmp_path / "a").write_bytes(octets)
    assert await read_message(str(tmp_path / "a"), 100, ends_at_dot=True) == expected
    assert await read_message(str(tmp_path / "a"), 100) == octets


async def test_more_than_is_allowed_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 101)
    with pytest.raises(ContentError, match="allowed are 100"):
        await read_message(str(tmp_path / "a"), 100)


# ---- a draft ------------------------------------------------------------------------------------


def draft(**changes):
    facts = {
        "octets": MAIL,
        "sender": "me",
        "recipients": (),
        "name": "n1",
        "host": "me.test",
        "from_header": True,
    }
    return Draft(**facts | changes)


def test_recipients_that_can_be_used_are_there_beside_what_is_wrong():
    message, problems = draft(recipients=("x@one.test", "y z")).finish()
    assert isinstance(message, Message)
    assert [each.address for each in message.recipients][:2] == ["x@one.test", "bob@one.test"]
    assert problems == ["RECIPIENT: found 'y z'; allowed are addresses with commas between"]
    assert str(message.reverse_path) == "me@me.test"


def test_each_recipient_is_there_once():
    message, _ = draft(recipients=("bob@one.test", "root")).finish(Flags(ret="full"))
    assert len(message.recipients) == 4
    assert message.ret == "full"


def test_a_user_without_a_name_is_somebody(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    from engine.paths import SettingsTable
    from engine.settings import Settings
    from engine.worker.config import Config

    config = Config(SettingsTable(Settings(helo_name="me.test")))
    assert module._who_and_where(config) == ("nobody", "", "me.test")
