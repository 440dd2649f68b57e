from __future__ import annotations

import pytest
import trio

from engine import content as contents
from engine.content import FileContent
from engine.errors import EngineError
from engine.outcome import Cause, Scope, Status
from engine.smtp.stages import Stage
from tests.delivery.helpers import (
    CONTENT,
    StreamedContent,
    deliver,
    message,
    opening,
    scripted,
    told,
    transaction,
)

A, B, C = "a@x.test", "b@x.test", "c@x.test"


async def attempt(script: str, *recipients: str, drip: bool = False, **more) -> list[str]:
    """Send one message to the recipients; return what became of them."""
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(*recipients), **more)
    return told(outcomes)


# ---- what goes well ------------------------------------------------------------------------------


async def test_everybody_is_delivered(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined) + transaction(
        (A, "250 2.1.5 ok"), (B, "251 will forward"), (C, "252 will try"), pipelined=pipelined
    )
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B, C))

    assert told(outcomes) == [f"{to} delivered - final reply 250" for to in (A, B, C)]
    assert hosts.contents == [CONTENT]
    assert all(outcome.features.pipelining is pipelined for outcome in outcomes)
    assert {(outcome.transaction, outcome.peer.connection) for outcome in outcomes} == {(1, 1)}


async def test_pipelining_can_be_switched_off(drip, autojump_clock):
    dialogue = opening(pipelined=True) + transaction((A, "250 ok"), pipelined=False)

    assert await attempt(dialogue, A, drip=drip, options={"pipelining": False}) == [
        f"{A} delivered - final reply 250"
    ]


async def test_replies_may_be_bare_codes_and_many_lines(pipelined, autojump_clock):
    dialogue = opening(pipelined) + transaction(
        (A, "250"), pipelined=pipelined, mail="250-one\nS: 250 two", data="354", final="250"
    )

    assert await attempt(dialogue, A) == [f"{A} delivered - final reply 250"]


async def test_a_reply_in_utf8_or_worse_is_a_reply(pipelined, autojump_clock):
    steps = transaction((A, "250 ok"), pipelined=pipelined, final="250 schön")
    dialogue = opening(pipelined) + steps.replace(
        "S: 250 schön", "S+ 250-sch\\xc3\\xb6n\\r\\n250 \\xff\\xfe\\r\\n"
    )
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert outcome.status is Status.DELIVERED
    assert outcome.reply is not None
    assert outcome.reply.text == r"250 schön\n\xff\xfe"


async def test_a_reply_of_64_kib_is_a_reply(pipelined, autojump_clock):
    lines = [f"250-{'x' * 1000}"] * 64 + ["250 queued"]
    dialogue = opening(pipelined) + transaction(
        (A, "250 ok"), pipelined=pipelined, final="\nS: ".join(lines)
    )

    assert await attempt(dialogue, A) == [f"{A} delivered - final reply 250"]


async def test_a_reply_beyond_64_kib_is_none(pipelined, autojump_clock):
    """Up to 64 KiB; and at MAIL, for behind the content it would leave an unknown."""
    lines = [f"250-{'x' * 1000}"] * 66 + ["250 ok"]
    dialogue = opening(pipelined)
    dialogue += f"C: MAIL FROM:<s@me.test>\n{f'C: RCPT TO:<{A}>' if pipelined else ''}\n"
    dialogue += f"{'C: DATA' if pipelined else ''}\nS: " + "\nS: ".join(lines) + "\n! expect-eof"

    assert await attempt(dialogue, A) == [f"{A} deferred host mail malformed-reply -"]


async def test_the_null_path_is_sent_as_it_is(pipelined, autojump_clock):
    dialogue = opening(pipelined) + transaction((A, "250 ok"), pipelined=pipelined, sender="")
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A, sender="<>"))

    assert told(outcomes) == [f"{A} delivered - final reply 250"]


@pytest.mark.parametrize(
    "octets",
    [
        b".\r\n",
        b"..\r\n",
        b".leading\r\n\r\n.\r\n..\r\n. \r\nend.\r\n",
        b"Subject: x\r\n\r\n.",
        b"no line end",
        b"\r\n.\r\n.\r\n",
    ],
    ids=repr,
)
async def test_dots_arrive_as_they_were(octets, pipelined, drip, autojump_clock):
    dialogue = opening(pipelined) + transaction((A, "250 ok"), pipelined=pipelined)
    async with scripted(dialogue, drip=drip) as hosts:
        await deliver(hosts, message(A, content=octets))

    (arrived,) = hosts.contents
    assert arrived == octets if octets.endswith(b"\r\n") else octets + b"\r\n"


async def test_a_large_file_is_streamed_byte_for_byte(pipelined, tmp_path):
    file = tmp_path / "large.eml"
    octets = b"".join(b"%s%d line\r\n" % (b"." * (n % 3), n) for n in range(60_000))
    file.write_bytes(octets)
    body = await contents.from_file(file)
    assert isinstance(body, FileContent)
    dialogue = opening(pipelined) + transaction((A, "250 ok"), pipelined=pipelined)
    async with scripted(dialogue, capacity=50_000) as hosts:
        outcomes = await deliver(hosts, message(A, body=body))

    assert told(outcomes) == [f"{A} delivered - final reply 250"]
    assert hosts.contents == [octets]


async def test_a_large_content_in_memory_arrives_byte_for_byte(pipelined, autojump_clock):
    octets = b"".join(b"%s%d line\r\n" % (b"." * (n % 3), n) for n in range(60_000))
    dialogue = opening(pipelined) + transaction((A, "250 ok"), pipelined=pipelined)
    async with scripted(dialogue, capacity=50_000) as hosts:
        await deliver(hosts, message(A, content=octets))

    assert hosts.contents == [octets]


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("550 5.7.1 no", "failed message mail reply 550"),
        ("552 5.3.4 too big", "failed message mail reply 552"),
        ("451 4.3.0 later", "deferred message mail reply 451"),
        ("452 4.3.1 no space", "deferred message mail reply 452"),
    ],
)
@pytest.mark.parametrize("data", ["503 5.5.1 no", "354 go on", "554 no"])
async def test_a_refused_mail_decides_for_everybody(
    reply, expected, data, pipelined, drip, autojump_clock
):
    """Whatever is said to RCPT and DATA that were in flight behind it."""
    dialogue = opening(pipelined) + transaction(
        (A, "503 5.5.1 no"),
        (B, "250 why not"),
        pipelined=pipelined,
        mail=reply,
        data=data,
        final="554 5.5.1 no valid recipients",
    )
    if pipelined:  # 2yz to a RCPT whose MAIL was refused: that server has lost the thread
        dialogue = dialogue.replace("S: 250 why not", "S: 550 no")

    assert await attempt(dialogue, A, B, drip=drip) == [f"{A} {expected}", f"{B} {expected}"]


async def test_a_refusal_and_then_a_disconnect_is_the_refusal(drip, autojump_clock):
    dialogue = (
        opening(pipelined=True)
        + f"""
        C: MAIL FROM:<s@me.test>
        C: RCPT TO:<{A}>
        C: DATA
        S: 550 5.7.1 blocked
        ! close
    """
    )

    async with scripted(dialogue, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == [f"{A} failed message mail reply 550"]
    assert outcome.text == (
        "SMTP error from 192.0.2.1 [192.0.2.1]:25 after pipelined MAIL FROM:<s@me.test>: "
        "550 5.7.1 blocked"
    )


async def test_recipients_are_decided_one_by_one(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined) + transaction(
        (A, "250 ok"), (B, "550 5.1.1 who"), (C, "450 4.2.1 busy"), pipelined=pipelined
    )

    assert await attempt(dialogue, A, B, C, drip=drip) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
        f"{C} deferred recipient rcpt reply 450",
    ]


@pytest.mark.parametrize("final", ["554 5.5.1 no valid recipients", "250 2.0.0 fine"])
async def test_354_for_nobody_is_answered_with_a_lone_dot(final, drip, autojump_clock):
    """RFC 2920 §3.1: the content is not sent, and a 250 delivers nothing."""
    dialogue = opening(pipelined=True) + transaction(
        (A, "550 5.1.1 who"), (B, "451 4.2.0 busy"), pipelined=True, final=final
    )
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B))

    assert told(outcomes) == [
        f"{A} failed recipient rcpt reply 550",
        f"{B} deferred recipient rcpt reply 451",
    ]
    assert hosts.contents == [b""]


async def test_data_refused_for_nobody_changes_nothing(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined) + transaction(
        (A, "550 5.1.1 who"), (B, "451 busy"), pipelined=pipelined, data="554 no recipients"
    )

    assert await attempt(dialogue, A, B, drip=drip) == [
        f"{A} failed recipient rcpt reply 550",
        f"{B} deferred recipient rcpt reply 451",
    ]


@pytest.mark.parametrize(
    ("reply", "status"), [("554 5.7.1 no", "failed"), ("451 4.3.0 later", "deferred")]
)
async def test_refused_data_decides_for_those_accepted(
    reply, status, pipelined, drip, autojump_clock
):
    dialogue = opening(pipelined) + transaction(
        (A, "250 ok"), (B, "550 who"), pipelined=pipelined, data=reply
    )

    assert await attempt(dialogue, A, B, drip=drip) == [
        f"{A} {status} message data reply {reply[:3]}",
        f"{B} failed recipient rcpt reply 550",
    ]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("554 5.6.0 spam", "failed message final reply 554"),
        ("451 4.3.0 later", "deferred message final reply 451"),
        ("452 4.3.1 full", "deferred message final reply 452"),
        ("421 4.3.2 down", "deferred host final reply 421"),
    ],
)
async def test_a_refused_content_decides_for_those_accepted(
    reply, expected, pipelined, drip, autojump_clock
):
    dialogue = opening(pipelined) + transaction(
        (A, "250 ok"), (B, "550 who"), pipelined=pipelined, final=reply
    )

    assert await attempt(dialogue, A, B, drip=drip) == [
        f"{A} {expected}",
        f"{B} failed recipient rcpt reply 550",
    ]


async def test_the_refusal_of_an_unpipelined_command_does_not_say_pipelined(autojump_clock):
    dialogue = opening(pipelined=False) + transaction((A, "550 5.1.1 who"), pipelined=False)
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert outcome.text == (
        f"SMTP error from 192.0.2.1 [192.0.2.1]:25 after RCPT TO:<{A}>: 550 5.1.1 who"
    )


# ---- too many recipients -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["452 4.5.3 too many", "452 enough", "552 too many", "552 5.5.3 x"]
)
async def test_recipients_beyond_the_limit_go_into_a_new_transaction(
    code, pipelined, drip, autojump_clock
):
    dialogue = (
        opening(pipelined)
        + transaction((A, "250 ok"), (B, code), (C, code), pipelined=pipelined)
        + transaction((B, "250 ok"), (C, code), pipelined=pipelined)
        + transaction((C, "250 ok"), pipelined=pipelined)
    )
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B, C))

    assert told(outcomes) == [f"{to} delivered - final reply 250" for to in (A, B, C)]
    by_recipient = {outcome.recipient: outcome for outcome in outcomes}
    assert [by_recipient[to].transaction for to in (A, B, C)] == [1, 2, 3]
    assert all(outcome.attempts == () for outcome in outcomes)


async def test_a_refused_recipient_is_progress_too(pipelined, drip, autojump_clock):
    """The transaction stays open without anybody accepted, so RSET comes before the next."""
    reset = "C: RSET\nS: 250 ok\n"
    dialogue = (
        opening(pipelined)
        + transaction((A, "550 who"), (B, "452 too many"), pipelined=pipelined, data="554 nobody")
        + reset
        + transaction((B, "250 ok"), pipelined=pipelined)
    )

    assert await attempt(dialogue, A, B, drip=drip) == [
        f"{A} failed recipient rcpt reply 550",
        f"{B} delivered - final reply 250",
    ]


async def test_without_progress_452_defers(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined) + transaction(
        (A, "452 4.5.3 too many"), (B, "451 busy"), pipelined=pipelined, data="554 nobody"
    )

    assert await attempt(dialogue, A, B, drip=drip) == [
        f"{A} deferred recipient rcpt reply 452",
        f"{B} deferred recipient rcpt reply 451",
    ]


async def test_a_full_mailbox_is_not_too_many_recipients(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined) + transaction(
        (A, "250 ok"), (B, "552 5.2.2 mailbox full"), pipelined=pipelined
    )

    assert await attempt(dialogue, A, B, drip=drip) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 552",
    ]


async def test_refused_data_is_no_reason_not_to_ask_the_rest(pipelined, autojump_clock):
    dialogue = (
        opening(pipelined)
        + transaction((A, "250 ok"), (B, "452 enough"), pipelined=pipelined, data="554 no")
        + "C: RSET\nS: 250 ok\n"
        + transaction((B, "452 still"), pipelined=pipelined, data="554 no")
    )

    assert await attempt(dialogue, A, B) == [
        f"{A} failed message data reply 554",
        f"{B} deferred recipient rcpt reply 452",
    ]


# ---- 421, lost connections, timeouts, nonsense ----------------------------------------------------

MAIL, RCPT = "C: MAIL FROM:<s@me.test>\n", f"C: RCPT TO:<{A}>\n"
OK, DATA, GO_ON, BODY = "S: 250 ok\n", "C: DATA\n", "S: 354 go on\n", "C= content\n"


def dialogue_up_to(stage: str, pipelined: bool) -> str:
    """A dialogue in which the reply that belongs to the stage comes next."""
    if pipelined:
        envelope = MAIL + RCPT + DATA
        parts = {"mail": envelope, "rcpt": OK, "data": OK, "final": GO_ON + BODY}
    else:
        parts = {"mail": MAIL, "rcpt": OK + RCPT, "data": OK + DATA, "final": GO_ON + BODY}
    stages = list(parts)
    before = [parts[each] for each in stages[: stages.index(stage) + 1]]
    return opening(pipelined) + "".join(before)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("mail", "deferred host mail reply 421"),
        ("rcpt", "deferred host rcpt reply 421"),
        ("data", "deferred host data reply 421"),
        ("final", "deferred host final reply 421"),
    ],
)
async def test_421_ends_the_session_wherever_it_comes(
    stage, expected, pipelined, drip, autojump_clock
):
    dialogue = dialogue_up_to(stage, pipelined) + "S: 421 4.3.2 down\n! expect-eof"

    assert await attempt(dialogue, A, drip=drip) == [f"{A} {expected}"]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("mail", "deferred host mail closed -"),
        ("rcpt", "deferred host rcpt closed -"),
        ("data", "deferred host data closed -"),
        ("final", "unknown message final closed -"),
    ],
)
@pytest.mark.parametrize("half", ["", "S+ 250-half a re"], ids=["silent", "in-reply"])
async def test_a_lost_connection_is_deferred_but_unknown_behind_the_dot(
    stage, half, expected, pipelined, autojump_clock
):
    dialogue = dialogue_up_to(stage, pipelined) + half + "\n! close"

    assert await attempt(dialogue, A) == [f"{A} {expected}"]


@pytest.mark.parametrize(
    ("stage", "seconds", "expected"),
    [
        ("mail", 20, "deferred message mail timeout -"),
        ("rcpt", 20, "deferred host rcpt timeout -"),
        ("data", 20, "deferred host data timeout -"),
        ("final", 40, "unknown message final timeout -"),
    ],
)
async def test_every_wait_for_a_reply_ends(stage, seconds, expected, pipelined, autojump_clock):
    dialogue = dialogue_up_to(stage, pipelined) + "! stall"
    started = trio.current_time()
    options = {"command_timeout": 20, "final_timeout": 40}

    assert await attempt(dialogue, A, options=options) == [f"{A} {expected}"]
    assert trio.current_time() - started == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("mail", "deferred host mail malformed-reply -"),
        ("rcpt", "deferred host rcpt malformed-reply -"),
        ("data", "deferred host data malformed-reply -"),
        ("final", "unknown message final malformed-reply -"),
    ],
)
async def test_what_is_no_reply_ends_the_session(stage, expected, pipelined, drip, autojump_clock):
    dialogue = dialogue_up_to(stage, pipelined) + "S: <html>Bad Gateway\n! expect-eof"

    assert await attempt(dialogue, A, drip=drip) == [f"{A} {expected}"]


async def test_250_to_data_is_no_reply_to_data(pipelined, drip, autojump_clock):
    """RFC 5321 §4.3.2; taken at its word it would lose the mail."""
    dialogue = dialogue_up_to("data", pipelined) + "S: 250 ok\n! expect-eof"

    assert await attempt(dialogue, A, drip=drip) == [f"{A} deferred host data malformed-reply -"]


async def test_a_reply_that_may_not_stand_there_is_shown(pipelined, autojump_clock):
    dialogue = dialogue_up_to("data", pipelined) + "S: 250 ok\n! expect-eof"
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    after = "pipelined DATA" if pipelined else "DATA"
    assert outcome.text.endswith(f"in response to {after}: 250 ok")


@pytest.mark.parametrize(
    ("stage", "command"),
    [("mail", "MAIL FROM:<s@me.test>"), ("rcpt", f"RCPT TO:<{A}>"), ("data", "DATA")],
)
@pytest.mark.parametrize(
    ("surplus", "expected", "text"),
    [
        ("250 more", "malformed-reply -", "in response to {}: 250 more"),
        ("421 4.3.2 bye", "reply 421", "after {}: 421 4.3.2 bye"),
    ],
)
async def test_a_reply_too_many_belongs_to_the_command_it_came_behind(
    stage, command, surplus, expected, text, autojump_clock
):
    dialogue = dialogue_up_to(stage, pipelined=False)
    dialogue += f"S+ {354 if stage == 'data' else 250} ok\\r\\n{surplus}\\r\\n\n! expect-eof"
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == [f"{A} deferred host {stage} {expected}"]
    assert outcome.text.endswith(text.format(command))


async def test_who_was_refused_before_the_loss_stays_refused(pipelined, autojump_clock):
    more = f"C: RCPT TO:<{B}>\n"
    refused = "S: 550 5.1.1 who\n"
    if pipelined:
        dialogue = opening(True) + MAIL + RCPT + more + DATA + OK + refused + OK + "! close"
    else:
        dialogue = opening(False) + MAIL + OK + RCPT + refused + more + OK + DATA + "! close"

    assert await attempt(dialogue, A, B) == [
        f"{A} failed recipient rcpt reply 550",
        f"{B} deferred host data closed -",
    ]


async def test_an_unknown_names_how_much_was_written(autojump_clock):
    async with scripted(dialogue_up_to("final", True) + "! close") as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert outcome.status is Status.UNKNOWN
    assert f"({len(CONTENT) + 3} octets written)" in outcome.text


# ---- while the content is written ----------------------------------------------------------------

LARGE = b"x" * 70 + b"\r\n"


@pytest.fixture(params=[contents.from_octets, StreamedContent], ids=["memory", "streamed"])
def large(request):
    """A content of 360 kB, more than the peer takes at once."""
    return request.param(LARGE * 5000)


async def send_large(script: str, large, **options) -> list[str]:
    async with scripted(script, capacity=100_000) as hosts:
        outcomes = await deliver(hosts, message(A, body=large), options=options)
    return told(outcomes)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("552 5.3.4 too large", "failed message content reply 552"),
        ("451 4.3.0 later", "deferred message content reply 451"),
        ("421 4.3.2 down", "deferred host content reply 421"),
    ],
)
async def test_a_refusal_is_heard_while_the_content_is_written(
    reply, expected, pipelined, large, autojump_clock
):
    """The content is not finished, or the server might still take it."""
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY)
    dialogue += f"C# 50000\nS: {reply}\n! sleep 1\n! close"

    assert await send_large(dialogue, large) == [f"{A} {expected}"]


async def test_a_content_that_is_refused_is_not_read_to_its_end(pipelined, autojump_clock):
    body = StreamedContent(LARGE * 100_000)
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY)
    dialogue += "C# 50000\nS: 552 5.3.4 too large\n! sleep 1\n! close"

    await send_large(dialogue, body)

    assert body.octets_read < 1_000_000


@pytest.mark.parametrize("ending", ["! close", "S: 421 4.3.2 down\n! close"], ids=["", "421"])
async def test_a_connection_lost_while_the_content_is_written_is_no_unknown(
    ending, pipelined, large, autojump_clock
):
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY) + f"C# 50000\n{ending}"

    (outcome,) = await send_large(dialogue, large)
    assert outcome.startswith(f"{A} deferred host content ")


async def test_a_peer_that_stops_reading_is_given_up(pipelined, large, autojump_clock):
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY) + "C# 50000\n! stall"
    started = trio.current_time()

    assert await send_large(dialogue, large, data_timeout=30) == [
        f"{A} deferred host content timeout -"
    ]
    assert trio.current_time() - started == pytest.approx(30)


async def test_a_positive_reply_before_the_end_is_not_believed(pipelined, large, autojump_clock):
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY)
    dialogue += "C# 50000\nS: 250 thanks\n! sleep 1\n! close"

    assert await send_large(dialogue, large) == [f"{A} deferred host content malformed-reply -"]


@pytest.mark.parametrize("pieces", [0, 1, 5])
@pytest.mark.parametrize("kind", [OSError, EngineError])  # a file's, and a store's
async def test_a_content_that_cannot_be_read_is_our_fault_and_never_finished(
    kind, pieces, pipelined, autojump_clock
):
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY) + "C# 0\n! sleep 1\n! close"
    body = StreamedContent(LARGE * 900 * pieces, kind("disk on fire"))
    async with scripted(dialogue, capacity=100_000) as hosts:
        (outcome,) = await deliver(hosts, message(A, body=body), routes=["192.0.2.1", "192.0.2.2"])

    assert (outcome.status, outcome.scope) == (Status.DEFERRED, Scope.LOCAL)
    assert (outcome.stage, outcome.cause) == (Stage.CONTENT, Cause.IO)
    assert outcome.text == "the content could not be read: disk on fire"
    assert hosts.made == ["192.0.2.1"]


async def test_a_file_that_changed_is_never_finished(pipelined, tmp_path):
    file = tmp_path / "large.eml"
    file.write_bytes(LARGE * 5000)
    body = await contents.from_file(file)
    file.write_bytes(LARGE * 5001)
    dialogue = dialogue_up_to("final", pipelined).removesuffix(BODY) + "! stall"

    async with scripted(dialogue, capacity=100_000) as hosts:
        outcomes = await deliver(hosts, message(A, body=body))

    assert told(outcomes) == [f"{A} deferred local content io -"]
    assert b"\r\n.\r\n" not in b"".join(hosts.streams[0].writes)
