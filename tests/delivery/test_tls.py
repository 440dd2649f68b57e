"""Sessions over TLS: what is said before and after the handshake, and what becomes of failures.

In real time: making a context takes a thread, which virtual time does not wait for.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio

from engine.delivery.host_memory import HostMemory
from engine.engine import Engine
from engine.outcome import Peer, TlsFacts
from engine.queue.hints import MemoryHints
from engine.report import events
from engine.smtp.reply import Reply
from engine.testing.dns import FakeDns
from tests.certificates import make, server_context
from tests.delivery.helpers import (
    CONTENT,
    MX1,
    MX2,
    NEXT,
    deliver,
    delivered,
    message,
    scripted,
    settings,
    static_router,
    told,
)

if TYPE_CHECKING:
    from pathlib import Path

A, B = "a@x.test", "b@x.test"
PEER = Peer(MX1, MX1, 25)
ROOT = make("Root", is_ca=True)
GOOD = make("mx.test", ROOT, names=[MX1])
OTHER = make("elsewhere.test", ROOT, names=["elsewhere.test"])
BYE = "C: QUIT\nS: 221 bye\n"
GREETED = "S: 220 mx.test\nC: EHLO me.test\nS: 250-mx.test\nS: 250 STARTTLS\n"
STARTED = GREETED + "C: STARTTLS\nS: 220 go on\n! starttls\n"
AGAIN = "C: EHLO me.test\nS: 250-mx.test\nS: 250 PIPELINING\n"
MAIL = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
MAIL += "S: 250 ok\nS: 250 ok\nS: 354 go on\nC= content\nS: 250 queued\n"
SLOWLY = "C: MAIL FROM:<s@me.test>\nS: 250 ok\nC: RCPT TO:<a@x.test>\nS: 250 ok\n"
SLOWLY += "C: DATA\nS: 354 go on\nC= content\nS: 250 queued\n"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory) -> Path:
    """A file with the authority that signs here."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_bytes(ROOT.pem)
    return path


def context(chain=(GOOD,)) -> ssl.SSLContext:
    return server_context(list(chain))


# ---- STARTTLS ------------------------------------------------------------------------------------


async def test_mail_goes_over_tls_where_it_is_offered(drip):
    async with scripted(STARTED + AGAIN + MAIL + BYE, ssl_context=context(), drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    tls = outcome.features.tls
    assert isinstance(tls, TlsFacts)
    assert (tls.version, tls.verified, tls.policy) == ("TLSv1.3", "no", "opportunistic")
    assert outcome.features.pipelining
    assert outcome.timings.tls > 0


async def test_what_was_offered_in_clear_is_forgotten(drip):
    """RFC 3207 §4.2."""
    offer = GREETED.replace("S: 250-mx.test\n", "S: 250-mx.test\nS: 250-PIPELINING\nS: 250-SIZE\n")
    script = offer + "C: STARTTLS\nS: 220 go on\n! starttls\nC: EHLO me.test\nS: 250 mx.test\n"
    async with scripted(script + SLOWLY + BYE, ssl_context=context(), drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    assert not outcome.features.pipelining


@pytest.mark.parametrize("level", ["off", "opportunistic"])
async def test_mail_goes_in_clear_where_it_is_not_offered_or_not_wanted(level):
    offer = "S: 220 mx.test\nC: EHLO me.test\nS: 250 mx.test\n" if level != "off" else GREETED
    async with scripted(offer + SLOWLY + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={"tls": level})

    assert told([outcome]) == delivered(A)
    assert outcome.features.tls is None


@pytest.mark.parametrize("level", ["require", "verify"])
async def test_a_host_without_tls_is_left_where_tls_is_required(level):
    script = "S: 220 mx.test\nC: EHLO me.test\nS: 250 mx.test\n" + BYE
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={"tls": level})

    assert told([outcome]) == [f"{A} deferred host starttls unsupported -"]
    assert "TLS is required" in outcome.text
    assert str(outcome.enhanced) == "4.7.4"


async def test_the_sender_of_mail_with_requiretls_is_told_that_no_host_has_tls():
    """RFC 8689 §4.2.1."""
    script = "S: 220 mx.test\nC: EHLO me.test\nS: 250 mx.test\n" + BYE
    async with scripted({MX1: script, MX2: script}) as hosts:
        (outcome,) = await deliver(hosts, message(A, require_tls=True), routes=(MX1, MX2))

    assert told([outcome]) == [f"{A} failed host starttls unsupported -"]
    assert str(outcome.enhanced) == "5.7.10"
    assert "5.7.10 REQUIRETLS" in outcome.text


@pytest.mark.parametrize("code", [454, 502])
async def test_a_refused_starttls_is_no_reason_to_stop_where_tls_is_not_required(code):
    script = GREETED + f"C: STARTTLS\nS: {code} not now\n" + SLOWLY + BYE
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    assert outcome.features.tls is None


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (454, {"tls_fallback_to_clear": False}),
        (454, {"tls": "require"}),
        (502, {"tls": "require"}),
        (554, {"tls": "verify"}),
    ],
    ids=str,
)
async def test_a_refused_starttls_defers_where_clear_is_not_allowed(code, options):
    async with scripted(GREETED + f"C: STARTTLS\nS: {code} not now\n" + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred host starttls reply {code}"]


async def test_421_to_starttls_ends_the_session():
    async with scripted(GREETED + "C: STARTTLS\nS: 421 down\n! expect-eof\n") as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == [f"{A} deferred host starttls reply 421"]


@pytest.mark.parametrize("code", [450, 550])
async def test_a_refused_hello_over_tls_is_the_hosts_and_helo_is_not_tried(code):
    script = STARTED + f"C: EHLO me.test\nS: {code} no\n" + BYE
    async with scripted(script, ssl_context=context()) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    status = "failed" if code == 550 else "deferred"
    assert told([outcome]) == [f"{A} {status} host hello reply {code}"]
    assert outcome.features.tls is not None


async def test_without_esmtp_there_is_no_starttls():
    script = "S: 220 mx.test\nC: HELO me.test\nS: 250 mx.test\n" + SLOWLY + BYE
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={"esmtp": False})

    assert told([outcome]) == delivered(A)


async def test_limits_said_in_clear_before_tls_do_not_count():
    """RFC 9422 §6."""
    offer = GREETED.replace("S: 250-mx.test\n", "S: 250-mx.test\nS: 250-LIMITS MAILMAX=1\n")
    script = offer + "C: STARTTLS\nS: 454 not now\n" + SLOWLY
    script += SLOWLY.replace(A, B) + BYE
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == delivered(A, B)


# ---- the certificate -----------------------------------------------------------------------------


async def test_a_certificate_of_the_host_is_verified(trusted):
    options = {"tls": "verify", "tls_ca_file": str(trusted)}
    async with scripted(STARTED + AGAIN + MAIL + BYE, ssl_context=context()) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == delivered(A)
    tls = outcome.features.tls
    assert tls is not None
    assert (tls.verified, tls.policy) == ("pkix", "required")


async def test_a_certificate_of_somebody_else_is_no_tls_and_never_a_reason_for_clear(trusted):
    options = {"tls": "verify", "tls_ca_file": str(trusted)}
    async with scripted(STARTED + "! expect-eof\n", ssl_context=context([OTHER])) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred host tls tls -"]
    assert "elsewhere.test" in outcome.text
    assert str(outcome.enhanced) == "4.7.5"


# ---- handshakes that fail ------------------------------------------------------------------------

NO_TLS = (
    GREETED + "C: STARTTLS\nS: 220 go on\nS: 220 but not with TLS, which this is not\n! close\n"
)


def broken(more: str) -> str:
    """A host that accepts STARTTLS, and then speaks something else than TLS."""
    return GREETED + "C: STARTTLS\nS: 220 go on\n! sleep 0.2\nS: 500 what\n! close\n" + more


async def test_where_tls_fails_mail_goes_in_clear_over_a_new_connection():
    hints = MemoryHints()
    script = broken(NEXT + GREETED + SLOWLY + BYE)
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), hints=hints)

    assert told([outcome]) == delivered(A)
    assert outcome.features.tls is None
    assert outcome.peer.connection == 2
    assert HostMemory(hints, PEER).has_broken_tls


@pytest.mark.parametrize("end", ["! close\n", "! sleep 0.2\n! reset\n"])
async def test_who_hangs_up_instead_of_a_handshake_has_no_tls(end):
    script = GREETED + "C: STARTTLS\nS: 220 go on\n" + end + NEXT + GREETED + SLOWLY + BYE
    async with scripted(script, is_watched=False) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    assert outcome.features.tls is None
    assert outcome.peer.connection == 2


@pytest.mark.parametrize("options", [{"tls": "require"}, {"tls_fallback_to_clear": False}], ids=str)
async def test_who_hangs_up_instead_of_a_handshake_is_to_blame(options):
    async with scripted(GREETED + "C: STARTTLS\nS: 220 go on\n! close\n") as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred host tls tls -"]
    assert str(outcome.enhanced) == "4.7.5"


async def test_a_handshake_has_its_time():
    options = {"tls": "require", "command_timeout": 0.2}
    async with scripted(GREETED + "C: STARTTLS\nS: 220 go on\n! stall\n") as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred host tls timeout -"]
    assert str(outcome.enhanced) == "4.4.2"


async def test_broken_tls_is_remembered():
    hints = MemoryHints()
    HostMemory(hints, PEER).note_broken_tls()
    async with scripted(GREETED + SLOWLY + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), hints=hints)

    assert told([outcome]) == delivered(A)


@pytest.mark.parametrize("options", [{"tls": "require"}, {"tls_fallback_to_clear": False}], ids=str)
async def test_where_clear_is_not_allowed_broken_tls_defers(options):
    hints = MemoryHints()
    HostMemory(hints, PEER).note_broken_tls()
    async with scripted(broken("")) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=hints)

    assert told([outcome]) == [f"{A} deferred host tls tls -"]


async def test_the_next_host_may_have_better_tls():
    scripts = {MX1: broken(""), MX2: STARTED + AGAIN + MAIL + BYE}
    async with scripted(scripts, ssl_context=context()) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=(MX1, MX2), options={"tls": "require"})

    assert told([outcome]) == delivered(A)
    assert [(tried.stage, tried.cause) for tried in outcome.attempts] == [("tls", "tls")]


@pytest.mark.parametrize("more", ["250 injected\\r\\n", "250 inj"])
async def test_octets_in_clear_behind_starttls_are_an_attack(more, autojump_clock):
    """RFC 3207 §6: somebody in between would have them taken for the host's."""
    seen = []
    script = GREETED + f"C: STARTTLS\nS+ 220 go on\\r\\n{more}\n! expect-eof\n"
    async with scripted(script) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(), router=router, connector=hosts) as engine:
            engine.events.watch(seen.append, events.SecurityAlert)
            await engine.submit(message(A))
            outcome = await engine.outcomes.receive()

    assert told([outcome]) == [f"{A} deferred host starttls tls -"]
    assert len(seen) == 1


@pytest.mark.parametrize("pause", ["", "! sleep 0.1\n"])
async def test_a_positive_reply_in_place_of_a_handshake_is_the_same_attack(pause):
    """It may come in a segment of its own."""
    seen = []
    script = GREETED + f"C: STARTTLS\nS: 220 go on\n{pause}S: 250 injected\n! stall\n"
    async with scripted(script, is_watched=False) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(), router=router, connector=hosts) as engine:
            engine.events.watch(seen.append, events.SecurityAlert)
            await engine.submit(message(A))
            outcome = await engine.outcomes.receive()

    assert (outcome.status, outcome.scope, outcome.cause) == ("deferred", "host", "tls")
    assert outcome.peer.connection == 1
    assert len(seen) == 1


# ---- TLS from the first octet --------------------------------------------------------------------


async def test_smtps_begins_with_tls(drip):
    script = "! starttls\nS: 220 mx.test\n" + AGAIN + MAIL + BYE
    async with scripted(script, ssl_context=context(), drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={"protocol": "smtps"})

    assert told([outcome]) == delivered(A)
    assert outcome.features.tls is not None
    assert outcome.features.tls.policy == "required"
    assert outcome.peer.port == 465


async def test_the_client_hello_may_ride_in_the_syn():
    script = "! starttls\nS: 220 mx.test\n" + AGAIN + MAIL + BYE
    options = {"protocol": "smtps", "fast_open": "commands"}
    async with scripted(script, ssl_context=context()) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == delivered(A)
    assert hosts.early[0][:3] == b"\x16\x03\x01"  # a record of the handshake


@pytest.mark.parametrize("fast_open", ["connect", "commands"])
async def test_smtps_without_tls_is_never_followed_by_clear(fast_open):
    options = {"protocol": "smtps", "fast_open": fast_open}
    async with scripted("S: 220 mx.test\n! expect-eof\n", is_watched=False) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred host tls tls -"]
    assert len(hosts.made) == 1


# ---- early pipelining over TLS -------------------------------------------------------------------

EARLY = (b"mx.test", b"PIPELINING", b"PIPECONNECT")
HELLO = "S: 250-mx.test\nS: 250-PIPELINING\nS: 250 PIPECONNECT\n"
ENVELOPE = "C: EHLO me.test\nC: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
CONTENTS = "S: 250 ok\nS: 250 ok\nS: 354 go on\nC= content\nS: 250 queued\n"


def knowing() -> MemoryHints:
    hints = MemoryHints()
    for port in (25, 465):
        memory = HostMemory(hints, Peer(MX1, MX1, port))
        memory.note_hello(Reply(250, (*EARLY, b"STARTTLS")), has_tls=False)
        memory.note_hello(Reply(250, EARLY), has_tls=True)
    return hints


async def test_ehlo_and_starttls_go_together_and_then_the_envelope_with_ehlo(drip):
    script = "C: EHLO me.test\nC: STARTTLS\nS: 220 mx.test\n"
    script += HELLO.replace("250 PIPE", "250-STARTTLS\nS: 250 PIPE") + "S: 220 go on\n! starttls\n"
    script += ENVELOPE + HELLO + CONTENTS + BYE
    async with scripted(script, ssl_context=context(), drip=drip) as hosts:
        (outcome,) = await deliver(
            hosts, message(A), options={"early_pipelining": True}, hints=knowing()
        )

    assert told([outcome]) == delivered(A)
    assert outcome.features.early_pipelining
    assert outcome.features.tls is not None


async def test_smtps_says_the_envelope_before_it_is_greeted(drip):
    script = "! starttls\n" + ENVELOPE + "S: 220 mx.test\n" + HELLO + CONTENTS + BYE
    options = {"early_pipelining": True, "protocol": "smtps"}
    async with scripted(script, ssl_context=context(), drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=knowing())

    assert told([outcome]) == delivered(A)
    assert outcome.features.early_pipelining


async def test_where_tls_is_required_a_host_known_without_it_speaks_first():
    hints = MemoryHints()
    HostMemory(hints, PEER).note_hello(Reply(250, EARLY), has_tls=False)
    script = "S: 220 mx.test\nC: EHLO me.test\n" + HELLO + BYE
    options = {"early_pipelining": True, "tls": "require"}
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=hints)

    assert told([outcome]) == [f"{A} deferred host starttls unsupported -"]


async def test_a_host_that_has_tls_now_is_asked_again_over_it():
    """What was said in clear fits no more, and no content has left."""
    hints = MemoryHints()
    HostMemory(hints, PEER).note_hello(Reply(250, EARLY), has_tls=False)
    offer = HELLO.replace("250 PIPE", "250-STARTTLS\nS: 250 PIPE")
    script = ENVELOPE + "S: 220 mx.test\n" + offer + "! expect-eof\n" + NEXT
    script += "S: 220 mx.test\nC: EHLO me.test\n" + offer
    script += "C: STARTTLS\nS: 220 go on\n! starttls\n" + AGAIN + MAIL + BYE
    async with scripted(script, ssl_context=context()) as hosts:
        (outcome,) = await deliver(
            hosts, message(A), options={"early_pipelining": True}, hints=hints
        )

    assert told([outcome]) == delivered(A)
    assert outcome.features.tls is not None


# ---- sessions ------------------------------------------------------------------------------------


async def test_a_session_is_resumed_on_the_next_connection(trusted):
    options = {"tls": "verify", "tls_ca_file": str(trusted), "max_messages_per_connection": 1}
    one = STARTED + AGAIN + MAIL + BYE
    seen = []
    async with scripted(one + NEXT + one.replace(A, B), ssl_context=context()) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(**options), router=router, connector=hosts) as engine:
            engine.events.watch(seen.append, events.TlsStarted)
            for recipient in (A, B):
                await engine.submit(message(recipient))
                assert (await engine.outcomes.receive()).status == "delivered"
            sessions = engine._shared.tls.sessions

    assert [event.verified for event in seen] == ["pkix", "pkix"]
    assert len(sessions) == 1


async def test_a_cancelled_handshake_defers(trusted):
    script = GREETED + "C: STARTTLS\nS: 220 go on\n! stall\n"
    async with scripted(script) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(), router=router, connector=hosts, grace=5) as engine:
            await engine.submit(message(A))
            await trio.sleep(0.1)
            engine.cancel()
        outcomes = [outcome async for outcome in engine.outcomes]

    assert [(each.status, each.cause) for each in outcomes] == [("deferred", "cancelled")]


async def test_a_large_content_goes_over_tls_in_pieces(drip):
    large = CONTENT + b"x" * 70 + b"\r\n"
    large *= 3000
    async with scripted(STARTED + AGAIN + MAIL + BYE, ssl_context=context()) as hosts:
        (outcome,) = await deliver(hosts, message(A, content=CONTENT + b"\r\n" + large))

    assert told([outcome]) == delivered(A)
    assert hosts.contents == [CONTENT + b"\r\n" + large]


async def want_our_certificate(stream, ssl_context):
    """Serve STARTTLS as servers do that ask for a certificate; without TLS take any mail."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl_context.wrap_bio(incoming, outgoing, server_side=True)
    await stream.send_all(b"220 mx.test\r\n")
    while line := await stream.receive_some():
        if line.startswith(b"EHLO"):
            await stream.send_all(b"250-mx.test\r\n250 STARTTLS\r\n")
        elif line.startswith(b"STARTTLS"):
            await stream.send_all(b"220 go on\r\n")
            break
        else:
            word = line[:4].upper()
            answer = {b"DATA": b"354 go on", b"QUIT": b"221 bye"}.get(word, b"250 ok")
            await stream.send_all(answer + b"\r\n")
    while octets := await stream.receive_some():
        incoming.write(octets)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await stream.send_all(outgoing.read())
        except ssl.SSLError:
            await stream.send_all(outgoing.read())  # the alert
            return


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
@pytest.mark.parametrize("level", ["opportunistic", "require"])
async def test_a_peer_that_misses_our_certificate_has_no_tls_for_us(version, level, nursery):
    """With TLS 1.3 it says so when our side of the handshake is done."""
    ssl_context = server_context([GOOD], version=version)
    ssl_context.verify_mode = ssl.CERT_REQUIRED

    async def serve(stream):
        async with stream:
            await want_our_certificate(stream, ssl_context)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with Engine(settings(tls=level), routes=[("*", [host])]) as engine:
        await engine.submit(message(A))
        outcome = await engine.outcomes.receive()

    if level == "opportunistic":
        assert told([outcome]) == delivered(A)
        assert outcome.features.tls is None
    else:
        assert (outcome.status, outcome.stage, outcome.cause) == ("deferred", "tls", "tls")
        assert "start TLS with" in outcome.text
        if version is ssl.TLSVersion.TLSv1_3:
            assert "the peer wants a certificate of ours" in outcome.text


# ---- hosts that share an address -----------------------------------------------------------------

SHARED = {"MX": ["10 b.test", "20 a.test"]}
SHARED_ZONE = {"x.test": SHARED, "a.test": {"A": [MX1]}, "b.test": {"A": [MX1]}}


async def test_an_address_is_tried_under_the_name_that_its_certificate_has(trusted):
    shown = make("a.test", ROOT, names=["a.test"])
    options = {"tls": "verify", "tls_ca_file": str(trusted)}
    script = STARTED + NEXT + STARTED + AGAIN + MAIL + BYE
    async with scripted(script, ssl_context=context([shown])) as hosts:
        resolver = FakeDns(SHARED_ZONE)
        (outcome,) = await deliver(hosts, message(A), resolver=resolver, options=options)

    assert told([outcome]) == delivered(A)
    assert outcome.peer is not None
    assert outcome.peer.host == "a.test"
    assert [(tried.host, tried.cause) for tried in outcome.attempts] == [("b.test", "tls")]


async def test_an_address_is_tried_under_the_name_that_a_policy_lets_through():
    dns = FakeDns({**SHARED_ZONE, "_25._tcp.b.test": {"TLSA": "SERVFAIL"}}, authentic=True)
    async with (
        scripted(STARTED + AGAIN + MAIL + BYE, ssl_context=context()) as hosts,
        Engine(settings(), resolver=dns, own_addresses=(), connector=hosts) as engine,
    ):
        await engine.submit(message(A))
        outcome = await engine.outcomes.receive()

    assert told([outcome]) == delivered(A)
    assert [(tried.host, tried.stage) for tried in outcome.attempts] == [("b.test", "policy")]


async def test_an_address_that_refuses_mail_is_not_asked_again_under_another_name():
    async with scripted("S: 450 4.3.2 later\nC: QUIT\nS: 221 bye\n") as hosts:
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(SHARED_ZONE))

    assert (outcome.status, outcome.attempts) == ("deferred", ())
