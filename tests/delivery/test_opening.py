from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.delivery.opening import Opened, say_quit, set_up
from engine.delivery.session import Timeouts, run_session
from engine.delivery.verdict import Trouble
from engine.outcome import Cause
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.stages import Stage
from engine.testing.script import parse_script
from engine.testing.server import play
from tests.delivery.helpers import PATIENT, link, open_session

TIMEOUTS = Timeouts(greeting=10, command=20, quit=5)


async def meet(script: str, *, drip: bool = False, **options) -> Capabilities | Trouble:
    """Set up a session with a scripted server, and say QUIT."""
    client, server = link()
    found = None
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await play(parse_script(script)[0], server, drip=drip, deadline=PATIENT)

        nursery.start_soon(serve)
        async with run_session(client, TIMEOUTS) as session:
            found = await set_up(session, name="me.test", **options)
            await say_quit(session)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert found is not None
    return found.offered if isinstance(found, Opened) else found


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
async def test_a_session_lost_in_its_set_up_is_trouble(script, stage, cause, autojump_clock):
    trouble = await meet(script)

    assert isinstance(trouble, Trouble)
    assert (trouble.stage, trouble.cause) == (stage, cause)


async def test_nothing_is_said_before_the_greeting(autojump_clock):
    client, server = link()
    async with run_session(client, TIMEOUTS) as session, trio.open_nursery() as nursery:

        async def talk() -> None:
            await set_up(session, name="me.test")

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
