from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.delivery.opening import Opening, Terms, say_quit
from engine.delivery.session import run_session
from engine.delivery.session_terms import SessionLost, Timeouts
from engine.delivery.verdict import Trouble
from engine.outcome import Cause
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.command import STAGES, Kind
from engine.smtp.stages import Stage
from engine.testing.script import parse_script
from engine.testing.server import play
from tests.delivery.helpers import PATIENT, link, open_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.net.stream import ByteStream
    from engine.smtp.reply import Reply

TIMEOUTS = Timeouts(greeting=10, command=20, quit=5)


class Around:
    """What surrounds an opening: a memory, a TLS of two words, and an ear.

    Attributes:
        known: What the server is known to offer, by whether that is over TLS.
        told: What was heard, and whether over TLS.
        veto: Why the session is to be given up when the server greets.
    """

    def __init__(
        self, known: Mapping[bool, Capabilities] | None = None, veto: Trouble | None = None
    ) -> None:
        self.known = known or {}
        self.veto = veto
        self.told: list[tuple[str, int, bool]] = []

    async def shake_hands(self, stream: ByteStream) -> ByteStream:
        await stream.send_all(b"client hello")
        assert await stream.receive_some() == b"server hello"
        return stream

    def recall(self, *, has_tls: bool) -> Capabilities | None:
        return self.known.get(has_tls)

    def heard(self, kind: Kind, reply: Reply, *, has_tls: bool) -> Trouble | None:
        self.told.append((kind.name, reply.code, has_tls))
        return self.veto if kind is Kind.CONNECT else None


async def meet(
    script: str, *, drip: bool = False, around: Around | None = None, **terms
) -> Capabilities | Trouble:
    """Open a session with a scripted server, and say QUIT."""
    client, server = link()
    loss = None
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await play(parse_script(script)[0], server, drip=drip, deadline=PATIENT)

        nursery.start_soon(serve)
        async with run_session(client, TIMEOUTS) as session:
            opening = Opening(session, Terms("me.test", **terms), around or Around())
            try:
                found = await opening.run()
            except SessionLost as ending:
                loss = ending
            await say_quit(session)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    if loss is not None:
        raise loss
    return opening.offered if found is None else found


async def test_ehlo_brings_what_the_server_offers(drip, autojump_clock):
    offered = await meet(
        """
        S: 220-mx.test says
        S: 220 hello
        C: EHLO me.test
        S: 250-mx.test
        S: 250-PIPELINING
        S: 250 SIZE 1000
        C: QUIT
        S: 221 bye
        """,
        drip=drip,
    )

    assert isinstance(offered, Capabilities)
    assert (offered.pipelining, offered.size) == (True, 1000)


@pytest.mark.parametrize("code", [500, 502, 504, 550, 421, 450, 554])
async def test_helo_follows_any_refusal_of_ehlo_but_421(code, drip, autojump_clock):
    """RFC 5321 §3.2; after 421 the server closes (RFC 5321 §3.8)."""
    fallback = """
        C: HELO me.test
        S: 250 mx.test
        C: QUIT
        S: 221 bye
    """
    script = f"""
        S: 220 mx.test
        C: EHLO me.test
        S: {code} 5.5.1 no such thing
        {"! expect-eof" if code == 421 else fallback}
    """

    offered = await meet(script, drip=drip)

    if code == 421:
        assert isinstance(offered, Trouble)
        assert (offered.stage, offered.cause) == (Stage.HELLO, Cause.REPLY)
    else:
        assert offered is NO_CAPABILITIES


async def test_helo_refused_too_is_trouble(drip, autojump_clock):
    trouble = await meet(
        """
        S: 220 mx.test
        C: EHLO me.test
        S: 502 what
        C: HELO me.test
        S: 550 5.7.1 not you
        C: QUIT
        S: 221 bye
        """,
        drip=drip,
    )

    assert isinstance(trouble, Trouble)
    assert (trouble.stage, trouble.cause, trouble.command) == (
        Stage.HELLO,
        Cause.REPLY,
        "HELO me.test",
    )
    assert trouble.reply is not None
    assert trouble.reply.code == 550


async def test_without_esmtp_helo_comes_at_once_and_extensions_do_not_count(drip, autojump_clock):
    offered = await meet(
        """
        S: 220 mx.test ESMTP
        C: HELO me.test
        S: 250-mx.test
        S: 250 PIPELINING
        C: QUIT
        S: 221 bye
        """,
        drip=drip,
        esmtp=False,
    )

    assert offered is NO_CAPABILITIES


@pytest.mark.parametrize("code", ["250 ok", "500 no"])
async def test_lhlo_has_no_fallback(code, autojump_clock):
    """RFC 2033 §4.1."""
    answer = await meet(
        f"""
        S: 220 mx.test LMTP
        C: LHLO me.test
        S: {code}
        C: QUIT
        S: 221 bye
        """,
        lmtp=True,
    )

    assert isinstance(answer, Trouble if code == "500 no" else Capabilities)


@pytest.mark.parametrize("greeting", ["450 busy", "521 no mail", "554 go away", "571 no"])
async def test_a_refusing_greeting_is_answered_with_quit(greeting, drip, autojump_clock):
    """RFC 5321 §3.1: such a server waits for QUIT."""
    trouble = await meet(f"S: {greeting}\nC: QUIT\nS: 221 bye", drip=drip)

    assert isinstance(trouble, Trouble)
    assert (trouble.stage, trouble.command) == (Stage.GREETING, "initial connection")
    assert trouble.reply is not None
    assert trouble.reply.text == greeting


async def test_421_as_greeting_leaves_nothing_to_say(drip, autojump_clock):
    trouble = await meet("S: 421 4.3.2 too busy\n! expect-eof", drip=drip)

    assert isinstance(trouble, Trouble)
    assert trouble.reply is not None
    assert trouble.reply.code == 421


@pytest.mark.parametrize(
    ("script", "stage", "cause"),
    [
        ("! close", Stage.GREETING, Cause.CLOSED),
        ("! stall", Stage.GREETING, Cause.TIMEOUT),
        ("S: 354 go on", Stage.GREETING, Cause.MALFORMED_REPLY),
        ("S: SSH-2.0-OpenSSH_9.2", Stage.GREETING, Cause.MALFORMED_REPLY),
        ("S: 220 hi\nC: EHLO me.test\n! close", Stage.HELLO, Cause.CLOSED),
        ("S: 220 hi\nC: EHLO me.test\n! stall", Stage.HELLO, Cause.TIMEOUT),
        ("S: 220 hi\nC: EHLO me.test\nS+ 250-half a\n! close", Stage.HELLO, Cause.CLOSED),
        ("S: 220 hi\nC: EHLO me.test\nS: 354 what", Stage.HELLO, Cause.MALFORMED_REPLY),
        (
            "S: 220 hi\nC: EHLO me.test\nS: 502 no\nC: HELO me.test\n! close",
            Stage.HELLO,
            Cause.CLOSED,
        ),
    ],
)
async def test_a_session_that_is_lost_says_what_it_was_waiting_for(
    script, stage, cause, autojump_clock
):
    with pytest.raises(SessionLost) as caught:
        await meet(script)

    assert caught.value.command is not None
    assert (STAGES[caught.value.command.kind], caught.value.cause) == (stage, cause)


async def test_what_ehlo_was_answered_is_told_when_helo_meets_silence(autojump_clock):
    with pytest.raises(SessionLost) as caught:
        await meet("S: 220 hi\nC: EHLO me.test\nS: 550 5.5.1 no\nC: HELO me.test\n! close")

    assert caught.value.detail == "EHLO response was: 550 5.5.1 no"


async def test_nothing_is_said_before_the_greeting(autojump_clock):
    client, server = link()
    async with run_session(client, TIMEOUTS) as session, trio.open_nursery() as nursery:

        async def talk() -> None:
            await Opening(session, Terms("me.test"), Around()).run()

        nursery.start_soon(talk)
        await server.say("220-wait")
        assert await server.hear() == b""
        await server.say("220 now")
        assert await server.hear() == b"EHLO me.test\r\n"
        nursery.cancel_scope.cancel()


async def test_quit_waits_for_its_reply_only_so_long(autojump_clock):
    """RFC 5321 §4.1.1.10: wait for it; but nothing depends on it."""
    async with open_session(TIMEOUTS) as (session, _, server):
        started = trio.current_time()

        await say_quit(session)

        assert trio.current_time() - started == pytest.approx(5)
        assert await server.hear() == b"QUIT\r\n"


async def test_quit_is_not_said_to_a_session_that_is_out_of_step(autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, server):
        async with session.listening():
            await server.say("250 nobody asked")

        await say_quit(session)

        assert await server.hear() == b""


async def test_a_peer_that_hangs_up_on_quit_is_no_error(autojump_clock):
    async with open_session(TIMEOUTS) as (session, _, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_quit, session)
            await server.hear()
            server.close()
