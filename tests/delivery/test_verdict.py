"""The failure policy as tables, written from the public contract, not from the code."""

from __future__ import annotations

import pytest

from engine.delivery.session_terms import SessionLost
from engine.delivery.verdict import (
    Trouble,
    delivered,
    describe,
    is_overflow,
    is_protocol_doubt,
    judge,
    lost,
    ours,
    overflowed,
    refused,
    unsupported,
)
from engine.outcome import Cause, Peer, Scope, Status
from engine.smtp import command as commands
from engine.smtp.command import Command, Kind
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

AT = "mx.test [192.0.2.1]:25"
PEER = Peer("mx.test", "192.0.2.1", 25, "192.0.2.9", 1)
MAIL = commands.mail(b"a@b.test")
RCPT = commands.rcpt(b"a@b.test")


def reply(text):
    code, _, line = text.partition(" ")
    return Reply(int(code), (line.encode(),))


# -- what happened where, and what becomes of the recipient -------------------------------------

STATUSES = {
    # status, may the next host be tried, is it final only when every host said so
    "deferred": (Status.DEFERRED, True, False),
    "failed": (Status.FAILED, False, False),
    "failed-here": (Status.FAILED, True, True),
    "unknown": (Status.UNKNOWN, False, False),
}
#: A stage, what was lost there, who is blamed, our enhanced status code.  One row of statuses
#: would hold for all but the last stage: before the content has left in full, what is lost is
#: deferred; behind it nobody knows (never tried on the next host).
LOSSES = """
    connect   timeout          deferred  host     4.4.1
    connect   refused          deferred  host     4.4.1
    connect   unreachable      deferred  host     4.4.1
    connect   closed           deferred  host     4.4.2
    proxy     timeout          deferred  host     4.4.2
    proxy     closed           deferred  host     4.4.2
    greeting  timeout          deferred  host     4.4.2
    greeting  closed           deferred  host     4.4.2
    greeting  malformed-reply  deferred  host     4.5.0
    hello     timeout          deferred  host     4.4.2
    hello     closed           deferred  host     4.4.2
    hello     malformed-reply  deferred  host     4.5.0
    starttls  timeout          deferred  host     4.4.2
    starttls  closed           deferred  host     4.4.2
    starttls  malformed-reply  deferred  host     4.5.0
    tls       timeout          deferred  host     4.4.2
    tls       closed           deferred  host     4.4.2
    tls       tls              deferred  host     4.7.5
    auth      timeout          deferred  host     4.4.2
    auth      closed           deferred  host     4.4.2
    auth      malformed-reply  deferred  host     4.5.0
    mail      timeout          deferred  message  4.4.2
    mail      closed           deferred  host     4.4.2
    mail      malformed-reply  deferred  host     4.5.0
    rcpt      timeout          deferred  host     4.4.2
    rcpt      closed           deferred  host     4.4.2
    rcpt      malformed-reply  deferred  host     4.5.0
    data      timeout          deferred  host     4.4.2
    data      closed           deferred  host     4.4.2
    data      malformed-reply  deferred  host     4.5.0
    content   timeout          deferred  host     4.4.2
    content   closed           deferred  host     4.4.2
    content   malformed-reply  deferred  host     4.5.0
    final     timeout          unknown   message  4.4.2
    final     closed           unknown   message  4.4.2
    final     malformed-reply  unknown   message  4.5.0
"""
#: A stage, the first digit or the code, what becomes of the recipient, who is blamed.
REPLIES = """
    greeting  421  deferred     host
    greeting  4yz  deferred     host
    greeting  5yz  failed-here  host
    hello     421  deferred     host
    hello     4yz  deferred     host
    hello     5yz  failed-here  host
    starttls  421  deferred     host
    starttls  4yz  deferred     host
    starttls  5yz  deferred     host
    auth      421  deferred     host
    auth      4yz  deferred     host
    auth      5yz  deferred     source
    mail      421  deferred     host
    mail      4yz  deferred     message
    mail      5yz  failed       message
    rcpt      421  deferred     host
    rcpt      4yz  deferred     recipient
    rcpt      5yz  failed       recipient
    data      421  deferred     host
    data      4yz  deferred     message
    data      5yz  failed       message
    content   421  deferred     host
    content   4yz  deferred     message
    content   5yz  failed       message
    final     421  deferred     host
    final     4yz  deferred     message
    final     5yz  failed       message
"""
CODES = {"421": [421], "4yz": [400, 450, 451, 452, 454, 499], "5yz": [500, 521, 535, 550, 554, 599]}


def rows(table):
    return [
        pytest.param(*row.split(), id=" ".join(row.split()))
        for row in table.split("\n")
        if row.strip()
    ]


@pytest.mark.parametrize(("stage", "cause", "becomes", "scope", "enhanced"), rows(LOSSES))
def test_what_a_loss_makes_of_a_recipient(stage, cause, becomes, scope, enhanced):
    verdict = judge(Trouble(Stage(stage), Cause(cause), "DATA"), PEER)

    status, may_go_on, is_here_only = STATUSES[becomes]
    assert verdict.status is status
    assert verdict.may_go_on is may_go_on
    assert verdict.is_here_only is is_here_only
    assert verdict.scope is Scope(scope)
    assert (verdict.stage, verdict.cause) == (Stage(stage), Cause(cause))
    assert str(verdict.enhanced) == enhanced
    assert verdict.reply is None


@pytest.mark.parametrize(("stage", "digit", "becomes", "scope"), rows(REPLIES))
def test_what_a_refusal_makes_of_a_recipient(stage, digit, becomes, scope):
    status, may_go_on, is_here_only = STATUSES[becomes]
    for code in CODES[digit]:
        for text, enhanced in [
            (f"{code} {code // 100}.7.1 no", f"{code // 100}.7.1"),
            (f"{code} no", "None"),
        ]:
            verdict = judge(Trouble(Stage(stage), Cause.REPLY, "DATA", reply=reply(text)), PEER)

            assert verdict.status is status
            assert verdict.may_go_on is may_go_on
            assert verdict.is_here_only is is_here_only
            assert verdict.scope is Scope(scope)
            assert (verdict.stage, verdict.cause) == (Stage(stage), Cause.REPLY)
            assert verdict.reply == reply(text)
            # Where a reply decided, it is the reply's or nobody's.
            assert str(verdict.enhanced) == enhanced


def test_the_tables_know_every_stage_of_a_connection():
    told = {row.split()[0] for row in LOSSES.split("\n") if row.strip()}
    assert told == {stage.value for stage in Stage} - {"route", "policy"}
    answered = {row.split()[0] for row in REPLIES.split("\n") if row.strip()}
    assert answered == told - {"connect", "proxy", "tls"}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("cause", [Cause.IO, Cause.CANCELLED, Cause.INTERNAL, Cause.CONFIG])
def test_what_is_our_own_fault_would_be_the_same_at_the_next_host(status, cause):
    verdict = ours(status, cause, Stage.CONTENT, "the content could not be read")
    assert verdict.scope is Scope.LOCAL
    assert not verdict.may_go_on
    assert verdict.reply is None
    assert verdict.enhanced.severity == 4
    assert verdict.text == "the content could not be read"


def test_delivered_blames_nobody_and_keeps_the_reply():
    verdict = delivered(reply("250 2.0.0 Ok: queued as 4XYZ"), PEER)
    assert verdict.status is Status.DELIVERED
    assert verdict.scope is None
    assert (verdict.stage, verdict.cause) == (Stage.FINAL, Cause.REPLY)
    assert verdict.reply == reply("250 2.0.0 Ok: queued as 4XYZ")
    assert str(verdict.enhanced) == "2.0.0"
    assert not verdict.may_go_on
    assert verdict.text == "accepted by mx.test [192.0.2.1]:25: 250 2.0.0 Ok: queued as 4XYZ"


@pytest.mark.parametrize("scope", [Scope.MESSAGE, Scope.HOST])
def test_what_this_host_cannot_take_another_may(scope):
    verdict = unsupported(Stage.MAIL, scope, EnhancedStatusCode(5, 3, 4), "too large", PEER)
    assert verdict.status is Status.FAILED
    assert verdict.scope is scope
    assert (verdict.stage, verdict.cause) == (Stage.MAIL, Cause.UNSUPPORTED)
    assert verdict.is_here_only
    assert verdict.may_go_on
    assert str(verdict.enhanced) == "5.3.4"
    assert verdict.text == "mx.test [192.0.2.1]:25: 5.3.4 too large"


# -- how a session ended ------------------------------------------------------------------------

#: The oldest command without a reply, and the stage of whoever was being served, while the
#: content has not left in full.
LOST_AT = {
    "greeting": (commands.CONNECT, Stage.GREETING, "initial connection"),
    "ehlo": (commands.hello(Kind.EHLO, "out"), Stage.HELLO, "EHLO out"),
    "helo": (commands.hello(Kind.HELO, "out"), Stage.HELLO, "HELO out"),
    "lhlo": (commands.hello(Kind.LHLO, "out"), Stage.HELLO, "LHLO out"),
    "starttls": (commands.STARTTLS, Stage.STARTTLS, "STARTTLS"),
    "auth": (commands.auth("PLAIN", b"AGE="), Stage.AUTH, "AUTH PLAIN ****"),
    "auth step": (commands.auth_step(b"AGE="), Stage.AUTH, "AUTH ****"),
    "mail": (MAIL, Stage.MAIL, "MAIL FROM:<a@b.test>"),
    "rcpt": (RCPT, Stage.RCPT, "RCPT TO:<a@b.test>"),
    "data": (commands.DATA, Stage.DATA, "DATA"),
    "content": (commands.content(b".\r\n"), Stage.CONTENT, "sending data block"),
    "bdat": (commands.bdat(b"x", False), Stage.CONTENT, "sending data block"),
    "bdat last": (commands.bdat(b"x", True), Stage.CONTENT, "sending data block"),
    "rset": (commands.RSET, Stage.MAIL, "RSET"),
    "noop": (commands.NOOP, Stage.MAIL, "NOOP"),
    "quit": (commands.QUIT, Stage.MAIL, "QUIT"),
    "nothing": (None, Stage.MAIL, "a new transaction"),
}
CAUSES = [Cause.TIMEOUT, Cause.CLOSED, Cause.MALFORMED_REPLY]


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize(("command", "stage", "text"), LOST_AT.values(), ids=LOST_AT)
def test_before_the_content_has_left_a_loss_belongs_to_what_was_owed(command, stage, text, cause):
    ending = SessionLost(cause, command, "reset by peer")
    trouble = lost(ending, ending.command, is_pipelined=True, is_content_written=False, octets=7)
    assert trouble == Trouble(stage, cause, text, True, None, "reset by peer", 7)
    assert judge(trouble, PEER).status is Status.DEFERRED


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("command", [case[0] for case in LOST_AT.values()], ids=LOST_AT)
def test_behind_the_whole_content_every_loss_is_unknown_whatever_was_owed_first(command, cause):
    """The replies to MAIL and RCPT may still be owed in a one-flight send; all the same."""
    ending = SessionLost(cause, command)
    verdict = judge(
        lost(ending, ending.command, is_pipelined=False, is_content_written=True, octets=9), PEER
    )
    assert verdict.status is Status.UNKNOWN
    assert (verdict.stage, verdict.scope) == (Stage.FINAL, Scope.MESSAGE)
    assert not verdict.may_go_on
    assert "end of data (9 octets written)" in verdict.text


def test_a_421_nobody_asked_for_defers_what_comes_next():
    ending = SessionLost(Cause.REPLY, None, reply=reply("421 4.4.2 idle too long"))
    verdict = judge(
        lost(ending, ending.command, is_pipelined=False, is_content_written=False), PEER
    )
    assert (verdict.status, verdict.scope) == (Status.DEFERRED, Scope.HOST)
    assert verdict.cause is Cause.REPLY
    assert verdict.reply == reply("421 4.4.2 idle too long")
    assert str(verdict.enhanced) == "4.4.2"


@pytest.mark.parametrize(
    ("command", "is_early", "stage", "text"),
    [
        (commands.CONNECT, False, Stage.GREETING, "initial connection"),
        (MAIL, False, Stage.MAIL, "MAIL FROM:<a@b.test>"),
        (RCPT, False, Stage.RCPT, "RCPT TO:<a@b.test>"),
        (commands.DATA, False, Stage.DATA, "DATA"),
        (commands.content(b".\r\n"), False, Stage.FINAL, "end of data"),
        (commands.content(b"x", is_last=False), True, Stage.CONTENT, "sending data block"),
    ],
)
def test_a_refusal_is_counted_where_its_command_belongs(command, is_early, stage, text):
    no = reply("550 no")
    trouble = refused(command, no, is_pipelined=False, is_early=is_early)
    assert trouble == Trouble(stage, Cause.REPLY, text, False, no)


# -- replies that mean something else -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("452 too many recipients", True),
        ("452 4.5.3 too many recipients", True),
        ("452 4.2.2 mailbox full", True),
        ("552 too many recipients", True),
        ("552 5.5.3 too many recipients", True),
        ("552 5.3.4 message too big", True),
        ("552 5.2.2 mailbox full", False),
        ("552 5.2.3 message too big for this mailbox", False),
        # It contradicts its code, so it says nothing.
        ("552 4.2.2 mailbox full", True),
        ("450 4.2.1 busy", False),
        ("451 4.5.3 too many recipients", False),
        ("550 5.5.3 too many recipients", False),
        ("554 no", False),
        ("250 ok", False),
    ],
)
def test_too_many_in_this_transaction_or_not_this_one(text, expected):
    assert is_overflow(reply(text)) is expected


@pytest.mark.parametrize("text", ["452 4.5.3 enough", "552 5.5.3 enough"])
def test_a_recipient_beyond_what_a_transaction_holds_is_worth_trying_again(text):
    trouble = refused(RCPT, reply(text), is_pipelined=True)
    verdict = overflowed(trouble, PEER)
    assert (verdict.status, verdict.scope) == (Status.DEFERRED, Scope.RECIPIENT)
    assert (verdict.stage, verdict.cause) == (Stage.RCPT, Cause.REPLY)
    assert verdict.may_go_on
    assert verdict.reply == reply(text)
    assert verdict.enhanced == reply(text).enhanced
    assert verdict.text.endswith(f"after pipelined RCPT TO:<a@b.test>: {text}")


CHUNK = commands.bdat(b"x", False)
LAST_CHUNK = commands.bdat(b"x", True)
DOUBTFUL = [
    # command, pipelined, whether 500 to 504 may be a disagreement about the protocol
    (MAIL, True, True),
    (commands.DATA, True, True),
    (CHUNK, True, True),
    (LAST_CHUNK, True, True),
    # CHUNKING was in use, which is enough.
    (CHUNK, False, True),
    (LAST_CHUNK, False, True),
    # In lockstep with DATA the answer stands.
    (MAIL, False, False),
    (commands.DATA, False, False),
    # Not about one recipient, and not about the content itself.
    (RCPT, True, False),
    (commands.content(b".\r\n"), True, False),
    (commands.hello(Kind.EHLO, "out"), True, False),
]


@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
@pytest.mark.parametrize(("command", "is_pipelined", "expected"), DOUBTFUL)
def test_a_refusal_that_may_be_a_disagreement_about_the_protocol(
    command, is_pipelined, expected, code
):
    trouble = refused(command, reply(f"{code} what"), is_pipelined=is_pipelined)
    assert is_protocol_doubt(trouble) is expected


@pytest.mark.parametrize("code", [421, 450, 451, 452, 505, 521, 550, 552, 554])
@pytest.mark.parametrize("command", [MAIL, commands.DATA, CHUNK])
def test_other_codes_leave_no_doubt(command, code):
    assert not is_protocol_doubt(refused(command, reply(f"{code} no"), is_pipelined=True))


def test_without_a_reply_there_is_no_disagreement():
    assert not is_protocol_doubt(Trouble(Stage.MAIL, Cause.CLOSED, "DATA", True))


# -- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        (
            refused(RCPT, reply("550 5.1.1 no such user"), is_pipelined=True),
            f"SMTP error from {AT} after pipelined RCPT TO:<a@b.test>: 550 5.1.1 no such user",
        ),
        (
            refused(commands.CONNECT, reply("554 no"), is_pipelined=False),
            f"SMTP error from {AT} after initial connection: 554 no",
        ),
        (
            refused(MAIL, Reply(550, (b"one", b"tw\xff\x07")), is_pipelined=False),
            rf"SMTP error from {AT} after MAIL FROM:<a@b.test>: 550 one\ntw\xff\x07",
        ),
        (
            Trouble(Stage.RCPT, Cause.TIMEOUT, "RCPT TO:<a@b.test>", True),
            f"SMTP timeout from {AT} after pipelined RCPT TO:<a@b.test>",
        ),
        (
            Trouble(Stage.CONTENT, Cause.TIMEOUT, "sending data block", octets=4096),
            f"SMTP timeout from {AT} after sending data block (4096 octets written)",
        ),
        (
            # What was written of some earlier content does not matter here.
            Trouble(Stage.MAIL, Cause.TIMEOUT, "RSET", octets=4096),
            f"SMTP timeout from {AT} after RSET",
        ),
        (
            Trouble(Stage.FINAL, Cause.CLOSED, "end of data", detail="Connection reset by peer"),
            f"{AT} closed the connection in response to end of data: Connection reset by peer",
        ),
        (
            Trouble(Stage.HELLO, Cause.MALFORMED_REPLY, "EHLO out", detail="SSH-2.0"),
            f"malformed SMTP reply from {AT} in response to EHLO out: SSH-2.0",
        ),
        (
            Trouble(Stage.HELLO, Cause.MALFORMED_REPLY, "EHLO out"),
            f"malformed SMTP reply from {AT} in response to EHLO out: (an empty line)",
        ),
        (
            Trouble(Stage.TLS, Cause.TLS, "STARTTLS", detail="certificate expired"),
            f"{AT}: certificate expired",
        ),
    ],
)
def test_one_line_for_a_person_names_the_peer_and_the_command(trouble, text):
    assert describe(trouble, PEER) == text
    assert judge(trouble, PEER).text == text


@pytest.mark.parametrize("name", LOST_AT)
@pytest.mark.parametrize("cause", CAUSES)
def test_a_text_is_one_printable_line_whatever_the_peer_said(name, cause):
    command: Command | None = LOST_AT[name][0]
    ending = SessionLost(cause, command, r"\x00what")
    text = judge(
        lost(ending, ending.command, is_pipelined=True, is_content_written=False), PEER
    ).text
    assert text.isprintable()
    assert "AGE=" not in text
