from __future__ import annotations

import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.delivery.session import Session, run_session
from engine.delivery.session_terms import SessionLost, Timeouts
from engine.outcome import Cause
from engine.report.transcript import Transcript
from engine.smtp.command import (
    DATA,
    LONE_DOT,
    NOOP,
    QUIT,
    RSET,
    Kind,
    bdat_head,
    bdat_piece,
    content,
    hello,
    mail,
    rcpt,
)
from engine.smtp.errors import LocalProtocolError
from tests.delivery.helpers import link, open_session

MAIL = mail(b"s@me.test")
RCPT = rcpt(b"a@x.test")
TIMEOUTS = Timeouts(greeting=10, command=20, data=30, final=40, quit=5)


async def lost(session: Session) -> SessionLost:
    """Take replies until there are no more; return how the session ended."""
    with pytest.raises(SessionLost) as caught:
        while True:
            await session.reply()
    return caught.value


async def open_content(session, server) -> None:
    """Bring a transaction to where the content is due."""
    await session.send(MAIL, RCPT, DATA)
    await server.say("250 ok", "250 ok", "354 go on")
    for _ in range(3):
        await session.reply()
    await server.hear()


# ---- windows and replies -------------------------------------------------------------------------


async def test_a_window_is_one_write(autojump_clock):
    async with open_session() as (session, client, server):
        del client.writes[:]

        await session.send(MAIL, RCPT, DATA)

        assert await server.hear() == b"MAIL FROM:<s@me.test>\r\nRCPT TO:<a@x.test>\r\nDATA\r\n"
        assert len(client.writes) == 1


async def test_windows_that_the_peer_would_not_take_follow_in_order(autojump_clock):
    async with open_session(capacity=10) as (session, _, server):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(
                    session.send, mail(b"%d@x.test" % number) if not number else RCPT
                )
                await wait_all_tasks_blocked()
            heard = b""
            while octets := await server.hear():
                heard += octets

        assert heard == b"MAIL FROM:<0@x.test>\r\n" + RCPT.octets * 29


async def test_replies_are_paired_with_commands_in_order(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL, RCPT)
        await server.say("250 first", "550 second")

        first, second = await session.reply(), await session.reply()

        assert (first.command, first.reply.code) == (MAIL, 250)
        assert (second.command, second.reply.code) == (RCPT, 550)


async def test_replies_that_came_before_the_end_are_heard_before_it(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL, RCPT)
        server.send_nowait(b"550 no\r\n")
        server.close()
        await wait_all_tasks_blocked()

        assert (await session.reply()).reply.code == 550
        ending = await lost(session)

    assert (ending.cause, ending.command) == (Cause.CLOSED, RCPT)


async def test_a_reply_may_come_octet_by_octet(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL)
        for octet in b"250-one\r\n250 two\r\n":
            await wait_all_tasks_blocked()
            server.send_nowait(bytes([octet]))

        answer = await session.reply()

    assert answer.reply.lines == (b"one", b"two")


async def test_a_thousand_recipients_do_not_deadlock_a_slow_server(autojump_clock):
    """RFC 2920 §3.1: who writes more than fits into the windows must read meanwhile."""
    client, server = link(capacity=1000)
    server.outgoing.capacity = 1000
    heard = bytearray()

    async def serve() -> None:
        await server.send_all(b"220 mx\r\n")
        answered = 0
        while True:
            heard.extend(await server.receive_some(100))
            while answered < heard.count(b"\r\n"):
                await server.send_all(b"250 " + b"x" * 100 + b"\r\n")
                answered += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with run_session(client, Timeouts()) as session:
            await session.reply()
            await session.exchange(hello(Kind.EHLO, "me.test"))
            with trio.fail_after(60):
                answers = await session.exchange(MAIL, *[RCPT] * 1000)
        nursery.cancel_scope.cancel()

    assert len(answers) == 1001
    assert bytes(heard).count(b"RCPT TO:<a@x.test>\r\n") == 1000


async def test_the_replies_to_a_window_come_together(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL, RCPT, DATA)
        server.send_nowait(b"250 one\r\n550 two\r\n")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def say_the_rest() -> None:
                await wait_all_tasks_blocked()
                server.send_nowait(b"503 three\r\n")

            answers = await session.replies(3)

    assert [(answer.command, answer.reply.code) for answer in answers] == [
        (MAIL, 250),
        (RCPT, 550),
        (DATA, 503),
    ]


async def test_replies_end_with_the_session(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL, RCPT, DATA)
        server.send_nowait(b"250 one\r\n")
        server.close()

        answers = await session.replies(3)

        assert [answer.reply.code for answer in answers] == [250]
        assert session.loss is not None
        assert (session.loss.cause, session.loss.command) == (Cause.CLOSED, RCPT)


async def test_replies_end_with_a_421(autojump_clock):
    """RFC 5321 §3.8: nothing else is answered, and the server may take its time to close."""
    async with open_session() as (session, _, server):
        started = trio.current_time()
        await session.send(MAIL, RCPT, DATA)
        server.send_nowait(b"250 one\r\n421 two\r\n")

        answers = await session.replies(3)

        assert [answer.reply.code for answer in answers] == [250, 421]
        assert trio.current_time() == started
        assert await session.replies(1) == []


async def test_replies_wait_for_last_words_behind_a_failed_write(autojump_clock):
    async with open_session() as (session, _, server):
        server.incoming.is_broken = True
        await session.send(MAIL, RCPT, DATA)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def say_why() -> None:
                await trio.sleep(1)
                server.send_nowait(b"554 5.7.1 go away\r\n")
                server.close()

            answers = await session.replies(3)

        assert [answer.reply.code for answer in answers] == [554]
        assert session.loss is not None
        assert (session.loss.cause, session.loss.command) == (Cause.CLOSED, RCPT)


# ---- deadlines -----------------------------------------------------------------------------------


async def test_the_greeting_has_its_own_deadline(autojump_clock):
    client, _ = link()
    async with run_session(client, TIMEOUTS) as session:
        started = trio.current_time()

        ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(10)
    assert ending.cause is Cause.TIMEOUT
    assert ending.command is not None
    assert ending.command.kind is Kind.CONNECT


@pytest.mark.parametrize(
    ("command", "seconds"), [(MAIL, 20), (NOOP, 20), (RSET, 20), (QUIT, 5)], ids=repr
)
async def test_each_kind_of_command_has_its_deadline(command, seconds, autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, _server):
        started = trio.current_time()
        await session.send(command)

        ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(seconds)
    assert (ending.cause, ending.command) == (Cause.TIMEOUT, command)


@pytest.mark.parametrize("pieces", [1, 2, 5])
async def test_the_reply_to_a_content_has_the_final_deadline(pieces, autojump_clock):
    """However many pieces the content was sent in."""
    async with open_session(TIMEOUTS) as (session, _, server):
        await open_content(session, server)
        for _ in range(pieces - 1):
            await session.send(content(b"text\r\n", is_last=False))
            await trio.sleep(100)
        started = trio.current_time()
        await session.send(content(b".\r\n"))

        with trio.fail_after(1000):
            ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(40)
    assert ending.cause is Cause.TIMEOUT


async def open_chunk(session, server, octets: int) -> None:
    """Bring a transaction to where the octets of a chunk are due."""
    await session.send(MAIL, RCPT)
    await server.say("250 ok", "250 ok")
    for _ in range(2):
        await session.reply()
    await session.send(bdat_head(octets))
    await server.hear()


@pytest.mark.parametrize("pieces", [1, 2, 5])
async def test_the_reply_to_a_chunk_has_the_final_deadline(pieces, autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, server):
        await open_chunk(session, server, 6 * pieces)
        for _ in range(pieces - 1):
            await session.send(bdat_piece(b"text\r\n", is_last=False))
            await trio.sleep(100)
        started = trio.current_time()
        await session.send(bdat_piece(b"text\r\n", is_last=True))

        with trio.fail_after(1000):
            ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(40)
    assert ending.cause is Cause.TIMEOUT


async def test_a_reply_that_drips_has_one_deadline(autojump_clock):
    """A line every few seconds must not keep us for ever."""
    async with open_session(TIMEOUTS) as (session, _, server):
        started = trio.current_time()
        await session.send(MAIL)
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                while True:
                    server.send_nowait(b"250-and another line\r\n")
                    await trio.sleep(3)

            nursery.start_soon(drip)
            ending = await lost(session)
            nursery.cancel_scope.cancel()

        assert trio.current_time() - started == pytest.approx(20)
    assert ending.cause is Cause.TIMEOUT


async def test_every_reply_of_a_window_has_a_deadline_of_its_own(autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, server):
        started = trio.current_time()
        await session.send(MAIL, *[RCPT] * 4)
        async with session.listening():
            for _ in range(4):
                await trio.sleep(15)
                await server.say("250 ok")

        ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(80)
    assert (ending.cause, ending.command) == (Cause.TIMEOUT, RCPT)


async def test_no_deadline_runs_while_nothing_is_owed(autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, server):
        await trio.sleep(50_000)
        await session.send(MAIL)
        await server.say("250 ok")

        assert (await session.reply()).reply.code == 250


async def test_a_block_that_is_not_taken_ends_the_session(autojump_clock):
    async with open_session(TIMEOUTS, capacity=1000) as (session, _, server):
        await open_content(session, server)
        started = trio.current_time()
        await session.send(content(b"x" * 998 + b"\r\n", is_last=False))
        await session.send(content(b"x" * 998 + b"\r\n", is_last=False))

        ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(30)
        assert session.contents_written == 0
    assert (ending.cause, ending.detail) == (Cause.TIMEOUT, "a block was not taken in time")


async def test_the_end_of_a_content_that_is_not_taken_is_not_a_content_written(autojump_clock):
    """What did not leave to its last octet cannot have been accepted."""
    async with open_session(TIMEOUTS, capacity=1000) as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x" * 3000 + b"\r\n.\r\n"))

        await lost(session)

        assert session.contents_written == 0


async def test_a_content_taken_slowly_does_not_use_up_the_deadline_of_its_reply(autojump_clock):
    """RFC 5321 §4.5.3.2.6: ten minutes from the end of the data, not from its beginning."""
    async with open_session(TIMEOUTS, capacity=90_000) as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x" * 500_000 + b"\r\n.\r\n"))
        started = trio.current_time()
        while not session.contents_written:
            await trio.sleep(20)
            await server.hear()
        assert trio.current_time() - started > 80
        await server.say("250 queued")

        assert (await session.reply()).reply.code == 250


async def test_hurry_shortens_the_wait_for_a_reply(autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, server):
        await open_content(session, server)
        await session.send(content(b".\r\n"))
        started = trio.current_time()
        session.hurry(3)

        ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(3)
    assert ending.cause is Cause.TIMEOUT


async def test_hurry_holds_for_a_content_that_leaves_later(autojump_clock):
    """It bounds the shield of a cancelled engine: nothing may lengthen it again."""
    async with open_session(TIMEOUTS, capacity=1000) as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x" * 1500 + b"\r\n.\r\n"))
        await wait_all_tasks_blocked()
        started = trio.current_time()
        session.hurry(3)
        await server.hear()

        await lost(session)

        assert trio.current_time() - started == pytest.approx(3)


async def test_hurry_never_lengthens_a_wait(autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, _server):
        started = trio.current_time()
        await session.send(MAIL)
        session.hurry(1000)

        await lost(session)

        assert trio.current_time() - started == pytest.approx(20)


# ---- endings -------------------------------------------------------------------------------------


async def test_421_with_nothing_owed_ends_the_session(autojump_clock):
    async with open_session() as (session, _, server):
        told = []
        session.when_over = lambda: told.append("over")
        async with session.listening():
            await server.say("421 4.3.2 going down")

        assert told == ["over"]
        assert not session.is_ready
        assert not session.is_usable
        await session.send(MAIL)
        assert await server.hear() == b""
        ending = await lost(session)

    assert ending.cause is Cause.REPLY
    assert ending.command is None
    assert ending.reply is not None
    assert ending.reply.code == 421


async def test_another_reply_with_nothing_owed_spoils_the_session(autojump_clock):
    """It must never be taken for the answer to the next command."""
    async with open_session() as (session, _, server):
        async with session.listening():
            await server.say("250 by the way")

        assert not session.is_usable
        await session.send(MAIL)
        ending = await lost(session)
        assert await server.hear() == b""

    assert (ending.cause, ending.detail) == (Cause.MALFORMED_REPLY, "250 by the way")


@pytest.mark.parametrize(
    "octets",
    [b"hello\r\n", b"199 no\r\n", b"600 no\r\n", b"25\r\n", b"\r\n", b"250-a\r\n450 b\r\n"],
)
async def test_what_is_no_reply_ends_the_session(octets, autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL)
        server.send_nowait(octets)

        ending = await lost(session)

    assert (ending.cause, ending.command) == (Cause.MALFORMED_REPLY, MAIL)


async def test_a_reply_of_the_wrong_class_names_the_command(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL, RCPT, DATA)
        await server.say("250 ok", "250 ok", "250 no such reply to DATA")

        ending = await lost(session)

    assert (ending.cause, ending.command) == (Cause.MALFORMED_REPLY, DATA)


async def test_a_peer_that_closes_ends_the_session(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL)
        server.close()

        ending = await lost(session)
        assert session.loss is ending

    assert (ending.cause, ending.command) == (Cause.CLOSED, MAIL)


async def test_the_last_words_behind_a_failed_write_are_heard(autojump_clock):
    """A server that refuses and hangs up makes our write fail; its refusal counts."""
    async with open_session() as (session, _, server):
        server.incoming.is_broken = True
        server.send_nowait(b"554 5.7.1 go away\r\n")
        await session.send(MAIL)

        assert (await session.reply()).reply.code == 554
        assert not session.is_usable


async def test_without_last_words_a_failed_write_is_a_closed_connection(autojump_clock):
    async with open_session() as (session, _, server):
        server.incoming.is_broken = True
        started = trio.current_time()
        await session.send(MAIL)

        ending = await lost(session)

        assert trio.current_time() - started == pytest.approx(2)
    assert (ending.cause, ending.detail) == (Cause.CLOSED, "write failed")


async def test_a_write_that_fails_midway_is_a_closed_connection(autojump_clock):
    async with open_session(capacity=1000) as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x" * 5000, is_last=False))
        await wait_all_tasks_blocked()
        server.close()

        ending = await lost(session)

        assert session.contents_written == 0
    assert ending.cause is Cause.CLOSED


async def test_sending_on_a_lost_session_goes_nowhere(autojump_clock):
    async with open_session() as (session, _, server):
        server.close()
        await wait_all_tasks_blocked()

        await session.send(MAIL)
        with pytest.raises(SessionLost):
            await session.exchange(RSET)


async def test_sending_waits_no_longer_when_the_session_is_lost(autojump_clock):
    async with open_session(capacity=100) as (session, _, server):
        await open_content(session, server)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(session.send, content(b"x" * 5000, is_last=False))
            await wait_all_tasks_blocked()
            server.close()

        assert (await lost(session)).cause is Cause.CLOSED


# ---- refused while the content is written --------------------------------------------------------


async def test_an_early_refusal_stops_the_content(autojump_clock):
    async with open_session(capacity=1000) as (session, client, server):
        await open_content(session, server)
        await session.send(content(b"x" * 5000, is_last=False))
        await server.say("552 5.3.4 too large")

        answer = await session.reply()

        assert answer.is_early
        assert not session.is_usable
        written = len(b"".join(client.writes))
        await session.send(content(b"\r\n.\r\n"))
        await server.hear()
        assert len(b"".join(client.writes)) == written
        assert session.contents_written == 0


async def test_an_early_refusal_just_before_the_last_piece_stops_it(autojump_clock):
    async with open_session() as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x\r\n", is_last=False))
        async with session.listening():
            await server.say("552 5.3.4 too large")
            await server.hear()

            await session.send(content(b".\r\n"))

        assert await server.hear() == b""
        assert (await session.reply()).is_early


@pytest.mark.parametrize("turn", range(16))
async def test_a_refusal_in_the_moment_a_block_is_taken_stops_the_content(turn, autojump_clock):
    """Whichever of reader and writer runs first: Trio throws the dice, so it is tried often."""
    async with open_session(capacity=1000) as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x" * 1500, is_last=False))
        await session.send(content(b"\r\n.\r\n"))
        await wait_all_tasks_blocked()
        server.send_nowait(b"552 5.3.4 too large\r\n")
        server.incoming.take(1000)

        assert (await session.reply()).reply.code == 552
        await wait_all_tasks_blocked()


async def test_a_content_accepted_before_its_end_spoils_the_session(autojump_clock):
    async with open_session() as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"x\r\n", is_last=False))
        await server.say("250 thanks, enough")

        ending = await lost(session)

    assert ending.cause is Cause.MALFORMED_REPLY


@pytest.mark.parametrize("turn", range(8))
async def test_an_abandoned_content_is_never_finished(turn, autojump_clock):
    async with open_session(capacity=1000) as (session, client, server):
        await open_content(session, server)
        await session.send(content(b"x" * 1500, is_last=False))
        await session.send(content(b"\r\n.\r\n"))
        session.abandon()
        await server.hear()
        await server.hear()

        assert b"\r\n.\r\n" not in b"".join(client.writes)
        assert session.contents_written == 0


# ---- cancellation --------------------------------------------------------------------------------


async def test_with_nothing_at_stake_nothing_is_waited_for(autojump_clock):
    with trio.CancelScope() as scope:
        async with open_session() as (session, client, _server):
            await session.send(MAIL)
            scope.cancel()
            await session.reply()

    assert scope.cancelled_caught
    assert client.is_closed


async def test_with_a_content_at_stake_a_session_outlives_cancellation_until_its_reply(
    autojump_clock,
):
    heard = []
    with trio.CancelScope() as scope:
        async with open_session(grace=5) as (session, client, server):
            await open_content(session, server)
            await session.send(content(b".\r\n"))
            scope.cancel()
            await server.say("250 queued")
            heard.append((await session.reply()).reply.code)
            await trio.lowlevel.checkpoint()
            heard.append("still here")

    assert heard == [250]
    assert scope.cancelled_caught
    assert client.is_closed


async def test_with_a_content_at_stake_a_session_outlives_cancellation_for_its_grace(
    autojump_clock,
):
    started = trio.current_time()
    with trio.CancelScope() as scope:
        async with open_session(grace=7) as (session, _client, server):
            await open_content(session, server)
            await session.send(content(b".\r\n"))
            scope.cancel()
            ending = await lost(session)

    assert trio.current_time() - started == pytest.approx(7)
    assert ending.cause is Cause.TIMEOUT


async def test_a_content_that_has_not_left_is_not_at_stake(autojump_clock):
    """Its peer cannot have accepted it, so cancellation breaks it off at once."""
    started = trio.current_time()
    with trio.CancelScope() as scope:
        async with open_session(capacity=1000) as (session, client, server):
            await open_content(session, server)
            await session.send(content(b"x" * 5000 + b"\r\n.\r\n"))
            await wait_all_tasks_blocked()
            scope.cancel()
            await session.reply()

    assert scope.cancelled_caught
    assert trio.current_time() == started
    assert not b"".join(client.writes).endswith(b"\r\n.\r\n")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "pieces"])
async def test_a_content_taken_in_the_moment_of_cancellation_does_not_leave(whole, autojump_clock):
    """The conversation is being cancelled already: nobody would hear the reply."""
    with trio.CancelScope() as scope:
        async with open_session(capacity=100) as (session, client, server):
            await open_content(session, server)
            if whole:
                await session.send(content(b"x" * 150 + b"\r\n.\r\n"))
            else:
                await session.send(content(b"x" * 148 + b"\r\n", is_last=False))
                await session.send(content(b".\r\n"))
            await wait_all_tasks_blocked()
            server.incoming.take(100)
            scope.cancel()
            await session.reply()

    assert scope.cancelled_caught
    assert not b"".join(client.writes).endswith(b"\r\n.\r\n")


async def test_a_content_that_leaves_late_is_at_stake_when_it_does(autojump_clock):
    heard = []
    with trio.CancelScope() as scope:
        async with open_session(capacity=1000, grace=5) as (session, _client, server):
            await open_content(session, server)
            await session.send(content(b"x" * 5000 + b"\r\n.\r\n"))
            while not session.contents_written:
                await server.hear()
            scope.cancel()
            await server.say("250 queued")
            heard.append((await session.reply()).reply.code)

    assert heard == [250]


# ---- the block -----------------------------------------------------------------------------------


async def test_exceptions_of_the_block_come_out_ungrouped(autojump_clock):
    client, _ = link()

    with pytest.raises(KeyError, match="mine"):
        async with run_session(client, Timeouts()):
            raise KeyError("mine")

    assert client.is_closed


async def test_the_stream_is_closed_behind_the_block(autojump_clock):
    async with open_session() as (_session, client, _server):
        pass

    assert client.is_closed


async def test_a_command_smtp_forbids_is_our_bug(autojump_clock):
    async with open_session() as (session, _, _server):
        with pytest.raises(LocalProtocolError, match="RCPT"):
            await session.send(RCPT)


async def test_state_follows_the_replies(autojump_clock):
    async with open_session() as (session, _, server):
        assert session.is_ready
        await session.send(MAIL)
        assert not session.is_ready
        async with session.listening():
            await server.say("250 ok")
            assert session.has_answers
        await session.reply()
        assert not session.has_answers
        assert session.is_transaction_open
        await session.send(RSET)
        await server.say("250 ok")
        await session.reply()
        assert session.is_ready
        assert not session.is_transaction_open


async def test_contents_and_their_octets_are_counted(autojump_clock):
    async with open_session() as (session, _, server):
        await open_content(session, server)
        await session.send(content(b"12345678\r\n", is_last=False))
        assert session.contents_written == 0

        await session.send(LONE_DOT)

        assert (session.contents_written, session.content_octets) == (1, 13)


async def test_a_glance_sees_what_has_come_without_waiting(autojump_clock):
    async with open_session() as (session, client, server):
        session.glance()
        assert session.is_ready

        server.send_nowait(b"250 by the way\r\n")
        session.glance()

        assert session.loss is not None
        assert session.loss.cause is Cause.MALFORMED_REPLY
        assert client.is_closed


async def test_what_was_heard_while_listening_is_not_lost(autojump_clock):
    async with open_session() as (session, _, server):
        await session.send(MAIL, *[RCPT] * 20)
        async with session.listening():
            for number in range(20):
                await server.say(f"250 {number}")

        answers = [(await session.reply()).reply.lines[0] for _ in range(20)]

    assert answers == [b"%d" % number for number in range(20)]


async def test_a_reader_is_relieved_before_the_conversation_reads_for_itself(autojump_clock):
    async with open_session() as (session, _, server):
        for _ in range(5):
            async with session.listening():
                await wait_all_tasks_blocked()
            await session.send(MAIL if session.is_ready else RSET)
            server.send_nowait(b"250 ok\r\n")
            assert (await session.reply()).reply.code == 250


async def test_the_scribe_keeps_the_dialogue_without_the_content(autojump_clock):
    client, server = link()
    scribe = Transcript()
    async with run_session(client, Timeouts(), scribe=scribe) as session:
        await server.say("220 mx.test")
        await session.reply()
        await session.send(hello(Kind.EHLO, "me.test"))
        await server.say("250-mx.test", "250 PIPELINING")
        await session.reply()
        await open_content(session, server)
        await session.send(content(b"secret\r\n.\r\n"))
        await server.say("250 queued")
        await session.reply()
        async with session.listening():
            await server.say("421 bye")

    assert scribe.since(0) == (
        "S: 220 mx.test",
        "C: EHLO me.test",
        "S: 250-mx.test",
        "S: 250 PIPELINING",
        "C: MAIL FROM:<s@me.test>",
        "C: RCPT TO:<a@x.test>",
        "C: DATA",
        "S: 250 ok",
        "S: 250 ok",
        "S: 354 go on",
        "C= 11 octets",
        "S: 250 queued",
        "S: 421 bye",
        "# connection is being closed by the server",
    )


@pytest.mark.parametrize(("act", "expected"), [("close", "! close"), ("wait", "! stall")])
async def test_the_scribe_keeps_how_the_host_went(act, expected, autojump_clock):
    client, server = link()
    scribe = Transcript()
    async with run_session(client, Timeouts(), scribe=scribe) as session:
        if act == "close":
            server.close()
        await lost(session)

    assert scribe.since(0) == (expected,)


def test_timeouts_say_how_long_each_reply_is_waited_for():
    table = TIMEOUTS.of_kinds()

    assert table[Kind.CONNECT] == 10
    assert table[Kind.CONTENT] == table[Kind.BDAT_LAST] == 40
    assert table[Kind.QUIT] == 5
    assert {table[kind] for kind in (Kind.EHLO, Kind.MAIL, Kind.RCPT, Kind.DATA, Kind.BDAT)} == {20}
    assert all(seconds < math.inf for seconds in table.values())
