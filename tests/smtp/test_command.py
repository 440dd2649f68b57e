from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.smtp import command as commands
from engine.smtp.command import STAGES, Command, Kind
from engine.smtp.errors import LocalProtocolError
from engine.smtp.stages import Stage

SECRET = base64.b64encode(b"\0joe\0s3cretW0rd+1")

CASES = {
    "ehlo": (commands.hello(Kind.EHLO, "out.example.org"), b"EHLO out.example.org\r\n"),
    "helo": (commands.hello(Kind.HELO, "out.example.org"), b"HELO out.example.org\r\n"),
    "lhlo": (commands.hello(Kind.LHLO, "[192.0.2.1]"), b"LHLO [192.0.2.1]\r\n"),
    "starttls": (commands.STARTTLS, b"STARTTLS\r\n"),
    "mail": (commands.mail(b"a@b.test"), b"MAIL FROM:<a@b.test>\r\n"),
    "mail from the null path": (commands.mail(b""), b"MAIL FROM:<>\r\n"),
    "mail with parameters": (
        commands.mail(b"a@b.test", [b"SIZE=5", b"BODY=8BITMIME"]),
        b"MAIL FROM:<a@b.test> SIZE=5 BODY=8BITMIME\r\n",
    ),
    "rcpt": (commands.rcpt(b"a@b.test"), b"RCPT TO:<a@b.test>\r\n"),
    "rcpt with a parameter": (
        commands.rcpt(b"a@b.test", [b"NOTIFY=NEVER"]),
        b"RCPT TO:<a@b.test> NOTIFY=NEVER\r\n",
    ),
    "rcpt in utf-8": (
        commands.rcpt("ö@b.test".encode()),
        b"RCPT TO:<\xc3\xb6@b.test>\r\n",
    ),
    "data": (commands.DATA, b"DATA\r\n"),
    "content": (commands.content(b"..\r\n.\r\n"), b"..\r\n.\r\n"),
    "lone dot": (commands.LONE_DOT, b".\r\n"),
    "bdat": (commands.bdat(b"a\r\nb", False), b"BDAT 4\r\na\r\nb"),
    "bdat last": (commands.bdat(b"abc", True), b"BDAT 3 LAST\r\nabc"),
    "bdat last, empty": (commands.bdat(b"", True), b"BDAT 0 LAST\r\n"),
    "auth": (commands.auth("LOGIN"), b"AUTH LOGIN\r\n"),
    "auth with initial response": (
        commands.auth("PLAIN", b"AGpvZQ=="),
        b"AUTH PLAIN AGpvZQ==\r\n",
    ),
    "auth with empty initial response": (commands.auth("EXTERNAL", b"="), b"AUTH EXTERNAL =\r\n"),
    "auth step": (commands.auth_step(b"AGpvZQ=="), b"AGpvZQ==\r\n"),
    "auth cancelled": (commands.auth_step(b"*"), b"*\r\n"),
    "rset": (commands.RSET, b"RSET\r\n"),
    "noop": (commands.NOOP, b"NOOP\r\n"),
    "quit": (commands.QUIT, b"QUIT\r\n"),
}


@pytest.mark.parametrize(("command", "octets"), CASES.values(), ids=CASES)
def test_a_command_is_written_as_the_rfc_says(command, octets):
    assert command.octets == octets


def test_each_maker_makes_its_kind():
    kinds = {name: command.kind for name, (command, _) in CASES.items()}
    assert kinds["ehlo"] is Kind.EHLO
    assert kinds["helo"] is Kind.HELO
    assert kinds["lhlo"] is Kind.LHLO
    assert kinds["starttls"] is Kind.STARTTLS
    assert kinds["mail"] is kinds["mail from the null path"] is Kind.MAIL
    assert kinds["rcpt"] is Kind.RCPT
    assert kinds["data"] is Kind.DATA
    assert kinds["content"] is kinds["lone dot"] is Kind.CONTENT
    assert kinds["bdat"] is Kind.BDAT
    assert kinds["bdat last"] is Kind.BDAT_LAST
    assert kinds["auth"] is Kind.AUTH
    assert kinds["auth step"] is Kind.AUTH_STEP
    assert kinds["rset"] is Kind.RSET
    assert kinds["noop"] is Kind.NOOP
    assert kinds["quit"] is Kind.QUIT
    assert commands.CONNECT.kind is Kind.CONNECT
    assert commands.CONNECT.octets == b""


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (commands.CONNECT, "initial connection"),
        (commands.mail(b""), "MAIL FROM:<>"),
        (commands.rcpt("ö@b.test".encode()), "RCPT TO:<ö@b.test>"),
        (commands.rcpt(b"\xff@b.test"), r"RCPT TO:<\xff@b.test>"),
        (commands.content(b"Subject: private\r\n\r\n.\r\n"), "end of data"),
        (commands.LONE_DOT, "end of data"),
        (commands.bdat(b"Subject: private\r\n", False), "sending data block"),
        (commands.bdat(b"private", True), "end of data"),
        (commands.auth("LOGIN"), "AUTH LOGIN"),
        (commands.auth("PLAIN", SECRET), "AUTH PLAIN ****"),
        (commands.auth_step(SECRET), "****"),
        (commands.auth_step(b""), "****"),
    ],
)
def test_a_command_is_named_for_a_person(command, text):
    assert command.text == text
    assert repr(command) == f"<{command.kind.name} {text!r}>"


@given(st.binary(min_size=1, max_size=60).map(base64.b64encode))
def test_secrets_show_neither_in_text_nor_repr_not_even_by_their_length(secret):
    for command in (commands.auth("PLAIN", secret), commands.auth_step(secret)):
        # Same octets, same look: nothing but stars tells of the secret.
        assert command.text.endswith("****")
        assert command.text.removeprefix("AUTH PLAIN ") == "****"
        assert secret in command.octets
        assert repr(command) in ("<AUTH 'AUTH PLAIN ****'>", "<AUTH_STEP '****'>")


def test_a_refused_secret_does_not_show_in_the_error():
    with pytest.raises(LocalProtocolError) as caught:
        commands.auth("PLAIN", SECRET + b"\n")
    assert SECRET.decode() not in str(caught.value)


def makers(octets: bytes):
    yield lambda: commands.mail(octets)
    yield lambda: commands.mail(b"a@b.test", [b"SIZE=1", octets])
    yield lambda: commands.rcpt(octets)
    yield lambda: commands.rcpt(b"a@b.test", [octets])
    yield lambda: commands.auth("PLAIN", octets)
    yield lambda: commands.auth_step(octets)
    if octets.isascii():
        yield lambda: commands.hello(Kind.EHLO, octets.decode())
        yield lambda: commands.auth(octets.decode())


@given(st.binary(max_size=40))
@example(b"a@b.test>\r\nRCPT TO:<evil@b.test")
@example(b"a@b.test>\nDATA")
@example(b"a\rb")
@example(b"a\0b")
@example(b"a\x7fb")
@example(b"a\tb")
def test_no_octets_in_a_path_or_parameter_make_a_second_command(octets):
    is_clean = all(0x20 <= value != 0x7F for value in octets)
    for make in makers(octets):
        if is_clean:
            line = make().octets
            assert line.endswith(b"\r\n")
            assert all(0x20 <= value != 0x7F for value in line[:-2])
        else:
            with pytest.raises(LocalProtocolError, match="control octet in"):
                make()


@given(st.binary(max_size=40), st.booleans())
def test_a_chunk_may_hold_any_octets_and_is_counted(octets, is_last):
    line, _, chunk = commands.bdat(octets, is_last=is_last).octets.partition(b"\r\n")
    assert chunk == octets
    verb, size, *last = line.split(b" ")
    assert (verb, int(size), last) == (b"BDAT", len(octets), [b"LAST"] if is_last else [])


def test_every_kind_belongs_to_a_stage():
    assert set(STAGES) == set(Kind)


def test_only_replies_to_a_whole_content_count_as_final():
    # A loss at the final stage leaves recipients `unknown`: no other kind may lead there.
    finals = {kind for kind, stage in STAGES.items() if stage is Stage.FINAL}
    assert finals == {Kind.CONTENT, Kind.BDAT_LAST}


def test_only_pieces_of_content_are_not_last():
    assert not commands.content(b"a\r\n", is_last=False).is_last
    assert commands.content(b".\r\n").is_last
    assert all(command.is_last for command, _ in CASES.values())


def test_commands_are_values():
    assert commands.mail(b"a@b.test") == Command(Kind.MAIL, b"MAIL FROM:<a@b.test>\r\n")
    assert commands.content(b".\r\n") == commands.LONE_DOT
    assert hash(commands.content(b".\r\n")) == hash(commands.LONE_DOT)
