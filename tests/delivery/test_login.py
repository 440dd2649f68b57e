from __future__ import annotations

from base64 import b64encode

import pytest
from scramp import ScramMechanism

from engine.delivery.host_memory import HostMemory
from engine.delivery.login import Login
from engine.engine import Engine
from engine.outcome import Peer
from engine.queue.hints import MemoryHints
from engine.report import events
from engine.setting_types import Auth
from engine.smtp.reply import Reply
from tests.delivery.helpers import (
    MX1,
    MX2,
    NEXT,
    deliver,
    delivered,
    link,
    message,
    scripted,
    settings,
    static_router,
    told,
)

A, B = "a@x.test", "b@x.test"
BYE = "C: QUIT\nS: 221 bye\n"
PLAIN = b64encode(b"\0me\0s3cretW0rd").decode()
AUTH = {"username": "me", "password": "s3cretW0rd"}
IN_CLEAR = {"auth": AUTH, "auth_in_clear": True}
REQUIRED = {**IN_CLEAR, "auth_required": True}
MAIL = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
MAIL += "S: 250 ok\nS: 250 ok\nS: 354 go on\nC= content\nS: 250 queued\n"


def greeted(mechanisms: str = "PLAIN LOGIN") -> str:
    offer = f"S: 250-AUTH {mechanisms}\n" if mechanisms else ""
    return "S: 220 mx.test\nC: EHLO me.test\nS: 250-mx.test\n" + offer + "S: 250 PIPELINING\n"


# ---- mechanisms ----------------------------------------------------------------------------------


async def test_plain_is_one_command(drip, autojump_clock):
    script = greeted() + f"C: AUTH PLAIN {PLAIN}\nS: 235 2.7.0 welcome\n" + MAIL + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth == "PLAIN"


async def test_login_answers_two_prompts(drip, autojump_clock):
    script = greeted("LOGIN") + "C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\n"
    script += f"C: {b64encode(b'me').decode()}\nS: 334 UGFzc3dvcmQ6\n"
    script += f"C: {b64encode(b's3cretW0rd').decode()}\nS: 235 ok\n" + MAIL + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth == "LOGIN"


async def test_cram_md5_needs_no_tls(autojump_clock):
    """The example of RFC 2195 §2."""
    challenge = b64encode(b"<1896.697170952@postoffice.reston.mci.net>").decode()
    answer = b64encode(b"tim b913a602c7eda7a495b4e6e7334d3890").decode()
    script = greeted("PLAIN CRAM-MD5") + f"C: AUTH CRAM-MD5\nS: 334 {challenge}\n"
    script += f"C: {answer}\nS: 235 ok\n" + MAIL + BYE
    options = {"auth": {"username": "tim", "password": "tanstaaftanstaaf"}}
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth == "CRAM-MD5"


async def serve_scram(stream, proof: bool = True) -> None:
    """Play a server that checks SCRAM-SHA-256, and proves that it can, or does not."""
    mechanism = ScramMechanism("SCRAM-SHA-256")
    info = mechanism.make_auth_info("s3cretW0rd", iteration_count=4096)
    server = mechanism.make_server(lambda _: info)

    async def line() -> bytes:
        octets = b""
        while not octets.endswith(b"\n"):
            octets += await stream.receive_some()
        return octets.strip()

    def challenge(text: str) -> bytes:
        return b"334 " + b64encode(text.encode()) + b"\r\n"

    def decoded(octets: bytes) -> str:
        from base64 import b64decode

        return b64decode(octets).decode()

    await stream.send_all(b"220 mx\r\n")
    await line()
    await stream.send_all(b"250-mx\r\n250 AUTH PLAIN SCRAM-SHA-256\r\n")
    server.set_client_first(decoded((await line()).split()[2]))
    await stream.send_all(challenge(server.get_server_first()))
    server.set_client_final(decoded(await line()))
    if proof:
        await stream.send_all(challenge(server.get_server_final()))
        assert await line() == b""
    await stream.send_all(b"235 ok\r\n")


@pytest.mark.parametrize("proof", [True, False])
async def test_scram_proves_both_sides(proof, nursery):
    """In real time, for keys are derived in a thread."""
    from engine.delivery.session import run_session
    from engine.delivery.session_terms import Timeouts
    from engine.smtp.command import Kind, hello

    client, server = link()
    nursery.start_soon(serve_scram, server, proof)
    login = Login(
        Auth(username="me", password="s3cretW0rd"),
        is_required=True,
        in_clear=False,
        host="mx",
        port=25,
        tell=lambda *_: None,
    )
    async with run_session(client, Timeouts()) as session:
        await session.reply()
        await session.exchange(hello(Kind.EHLO, "me.test"))
        trouble = await login.run(session, ("PLAIN", "SCRAM-SHA-256"), has_tls=False)

    if proof:
        assert (trouble, login.mechanism) == (None, "SCRAM-SHA-256")
    else:
        assert trouble is not None
        assert (trouble.stage, trouble.cause, trouble.scope) == ("auth", "policy", "host")
        assert login.mechanism is None


async def test_the_next_mechanism_follows_a_refused_one(drip, autojump_clock):
    script = greeted() + f"C: AUTH PLAIN {PLAIN}\nS: 504 no such mechanism\n"
    script += "C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: bWU=\nS: 334 UGFzc3dvcmQ6\n"
    script += "C: czNjcmV0VzByZA==\nS: 235 ok\n" + MAIL + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth == "LOGIN"


async def test_a_bad_challenge_is_cancelled_and_the_next_mechanism_follows(drip, autojump_clock):
    script = greeted("CRAM-MD5 PLAIN") + "C: AUTH CRAM-MD5\nS: 334 not base64!\n"
    script += f"C: *\nS: 501 cancelled\nC: AUTH PLAIN {PLAIN}\nS: 235 ok\n" + MAIL + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth == "PLAIN"


async def test_a_server_that_goes_on_after_cancelling_is_left(autojump_clock):
    script = greeted("CRAM-MD5") + "C: AUTH CRAM-MD5\nS: 334 not base64!\nC: *\nS: 334 AAAA\n"
    async with scripted(script + "! expect-eof\n") as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome]) == [f"{A} deferred host auth policy -"]


async def test_only_bad_challenges_are_the_hosts_fault(autojump_clock):
    script = greeted("CRAM-MD5") + "C: AUTH CRAM-MD5\nS: 334 ?\nC: *\nS: 501 cancelled\n" + BYE
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=REQUIRED)

    assert told([outcome]) == [f"{A} deferred host auth policy -"]
    assert "base64" in outcome.text


# ---- required or not -----------------------------------------------------------------------------


@pytest.mark.parametrize("mechanisms", ["", "GSSAPI", "CRAM-MD5 GSSAPI"])
async def test_where_it_is_not_required_mail_goes_without(mechanisms, autojump_clock):
    options = {"auth": {"username": "me", "password": "s3cretW0rd", "mechanisms": ["PLAIN"]}}
    async with scripted(greeted(mechanisms) + MAIL + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={**options, "auth_in_clear": True})

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth is None


@pytest.mark.parametrize(
    ("mechanisms", "options", "text"),
    [
        ("", REQUIRED, "the server offers no AUTH"),
        ("GSSAPI", REQUIRED, "no mechanism that we can use"),
        ("PLAIN", {"auth": AUTH, "auth_required": True}, "the password in clear only"),
    ],
)
async def test_a_host_without_it_is_to_blame_where_it_is_required(
    mechanisms, options, text, autojump_clock
):
    async with scripted(greeted(mechanisms) + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred host auth unsupported -"]
    assert text in outcome.text
    assert str(outcome.enhanced) == "4.7.4"


async def test_without_credentials_we_are_to_blame(autojump_clock):
    async with scripted(greeted() + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={"auth_required": True})

    assert told([outcome]) == [f"{A} deferred source auth config -"]


async def test_credentials_that_cannot_be_had_defer(autojump_clock):
    auth = {"username": "me", "password_file": "/none"}
    async with scripted(greeted() + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={**IN_CLEAR, "auth": auth})

    assert told([outcome]) == [f"{A} deferred source auth config -"]
    assert "/none" in outcome.text


# ---- refusals ------------------------------------------------------------------------------------

REFUSED = f"C: AUTH PLAIN {PLAIN}\nS: 535 5.7.8 wrong\n"


async def test_refused_credentials_suspend_the_source_and_bounce_nothing(drip, autojump_clock):
    options = {**REQUIRED, "auth": {**AUTH, "mechanisms": ["PLAIN"]}}
    async with scripted(greeted() + REFUSED + BYE, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), options=options)

    assert told(outcomes) == [
        f"{A} deferred source auth reply 535",
        f"{B} deferred source auth reply 535",
    ]
    assert "AUTH PLAIN ****" in outcomes[0].text
    assert hosts.made == [MX1]  # the second was not even tried


async def test_credentials_that_one_host_refuses_may_please_the_next(autojump_clock):
    options = {**REQUIRED, "auth": {**AUTH, "mechanisms": ["PLAIN"]}}
    good = greeted() + f"C: AUTH PLAIN {PLAIN}\nS: 235 ok\n" + MAIL + BYE
    async with scripted({MX1: greeted() + REFUSED + BYE, MX2: good}) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=(MX1, MX2), options=options)

    assert told([outcome]) == delivered(A)
    assert [tried.stage for tried in outcome.attempts] == ["auth"]


async def test_mail_that_misses_refused_credentials_is_deferred(drip, autojump_clock):
    """530 would be for good; but with the right password it would not have come."""
    options = {**IN_CLEAR, "auth": {**AUTH, "mechanisms": ["PLAIN"]}}
    script = greeted() + REFUSED + "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
    script += "S: 530 5.7.0 authenticate\nS: 503 no\nS: 503 no\n" + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == [f"{A} deferred source mail reply 530"]


@pytest.mark.parametrize("code", [421, 454])
async def test_a_temporary_refusal_is_the_hosts(code, autojump_clock):
    end = "! expect-eof\n" if code == 421 else BYE
    async with scripted(greeted() + f"C: AUTH PLAIN {PLAIN}\nS: {code} later\n" + end) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome]) == [f"{A} deferred host auth reply {code}"]


@pytest.mark.parametrize(
    "answer", ["! close", "! stall", "S: 999 what", "S+ 535 no\\r\\n421 going\\r\\n"]
)
async def test_a_session_lost_at_auth_is_the_hosts(answer, autojump_clock):
    async with scripted(greeted() + f"C: AUTH PLAIN {PLAIN}\n{answer}\n") as hosts:
        (outcome,) = await deliver(hosts, message(A), options=IN_CLEAR)

    assert told([outcome])[0].startswith(f"{A} deferred host auth ")


async def test_refusals_are_events(autojump_clock):
    seen = []
    options = {**IN_CLEAR, "auth": {**AUTH, "mechanisms": ["PLAIN"]}}
    async with scripted(greeted() + REFUSED + MAIL + BYE) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(**options), router=router, connector=hosts) as engine:
            engine.events.watch(seen.append, events.AuthFailed)
            await engine.submit(message(A))
            await engine.outcomes.receive()

    assert [(event.mechanism, event.text) for event in seen] == [("PLAIN", "535 5.7.8 wrong")]


# ---- what is said of the sender ------------------------------------------------------------------


@pytest.mark.parametrize("refused", [False, True])
async def test_who_submitted_is_said_only_to_who_knows_us(refused, autojump_clock):
    """RFC 4954 §5."""
    options = {**IN_CLEAR, "auth": {**AUTH, "mechanisms": ["PLAIN"]}}
    options["authenticated_sender"] = "me+you@me.test"
    answer = REFUSED if refused else f"C: AUTH PLAIN {PLAIN}\nS: 235 ok\n"
    mail = MAIL if refused else MAIL.replace("@me.test>", "@me.test> AUTH=me+2Byou@me.test", 1)
    async with scripted(greeted() + answer + mail + BYE) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == delivered(A)


# ---- together with the hello ---------------------------------------------------------------------

EARLY = (b"mx.test", b"PIPELINING", b"PIPECONNECT", b"AUTH PLAIN LOGIN")
OFFER = "S: 250-mx.test\nS: 250-PIPELINING\nS: 250-PIPECONNECT\nS: 250 AUTH PLAIN LOGIN\n"


def knowing(*more: bytes) -> MemoryHints:
    hints = MemoryHints()
    HostMemory(hints, Peer(MX1, MX1, 25)).note_hello(Reply(250, more or EARLY), has_tls=False)
    return hints


async def test_auth_goes_with_the_hello_to_a_host_that_takes_it(drip, autojump_clock):
    script = f"C: EHLO me.test\nC: AUTH PLAIN {PLAIN}\nS: 220 mx.test\n" + OFFER
    script += "S: 235 ok\n" + MAIL + BYE
    options = {**IN_CLEAR, "early_pipelining": True}
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=knowing())

    assert told([outcome]) == delivered(A)
    assert outcome.features.early_pipelining
    assert outcome.features.auth == "PLAIN"


async def test_a_mechanism_of_many_steps_waits_for_the_hello(drip, autojump_clock):
    script = "C: EHLO me.test\nS: 220 mx.test\n" + OFFER + "C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\n"
    script += "C: bWU=\nS: 334 UGFzc3dvcmQ6\nC: czNjcmV0VzByZA==\nS: 235 ok\n" + MAIL + BYE
    auth = {**AUTH, "mechanisms": ["LOGIN", "PLAIN"]}
    options = {"auth": auth, "auth_in_clear": True, "early_pipelining": True}
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=knowing())

    assert told([outcome]) == delivered(A)


async def test_a_refusal_of_early_auth_leaves_the_other_mechanisms(drip, autojump_clock):
    script = f"C: EHLO me.test\nC: AUTH PLAIN {PLAIN}\nS: 220 mx.test\n" + OFFER
    script += "S: 504 not this one\nC: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: bWU=\n"
    script += "S: 334 UGFzc3dvcmQ6\nC: czNjcmV0VzByZA==\nS: 235 ok\n" + MAIL + BYE
    options = {**IN_CLEAR, "early_pipelining": True}
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=knowing())

    assert told([outcome]) == delivered(A)
    assert outcome.features.auth == "LOGIN"


async def test_a_hello_refused_with_auth_behind_it_is_asked_again_in_turn(autojump_clock):
    first = f"C: EHLO me.test\nC: AUTH PLAIN {PLAIN}\nS: 220 mx.test\nS: 502 no\nS: 503 no\n"
    again = greeted() + f"C: AUTH PLAIN {PLAIN}\nS: 235 ok\n" + MAIL + BYE
    options = {**IN_CLEAR, "early_pipelining": True}
    async with scripted(first + "! expect-eof\n" + NEXT + again) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=options, hints=knowing())

    assert told([outcome]) == delivered(A)
    assert outcome.attempts == ()


async def test_a_hello_that_repeats_the_password_tells_nobody(autojump_clock):
    """With early pipelining a host has heard it before it answers our hello."""
    seen = []
    lines = OFFER.splitlines(keepends=True)
    lines.insert(1, f"S: 250-{AUTH['password'].upper()} more\n")
    script = f"C: EHLO me.test\nC: AUTH PLAIN {PLAIN}\nS: 220 mx.test\n" + "".join(lines)
    options = {**IN_CLEAR, "early_pipelining": True}
    async with scripted(script + "S: 235 ok\n" + MAIL + BYE) as hosts:
        async with Engine(
            settings(**options),
            router=await static_router([MX1], "x.test"),
            connector=hosts,
            hints=knowing(),
        ) as engine:
            engine.events.watch(seen.append, events.SessionReady)
            await engine.submit(message(A))
            outcome = await engine.outcomes.receive()

    assert told([outcome]) == delivered(A)
    assert "****" in seen[0].keywords
    assert AUTH["password"].lower() not in repr(seen).lower()


async def test_a_hello_that_holds_the_password_by_chance_is_read_as_it_is(autojump_clock):
    """What is shown of it is another matter."""
    seen = []
    by_chance = "PIPELINING"[:4].lower()
    plain = b64encode(f"\0me\0{by_chance}".encode()).decode()
    script = f"C: EHLO me.test\nC: AUTH PLAIN {plain}\nS: 220 mx.test\n" + OFFER + "S: 235 ok\n"
    options = {
        "auth": {"username": "me", "password": by_chance},
        "auth_in_clear": True,
        "early_pipelining": True,
    }
    async with scripted(script + MAIL + BYE) as hosts:
        async with Engine(
            settings(**options),
            router=await static_router([MX1], "x.test"),
            connector=hosts,
            hints=knowing(),
        ) as engine:
            engine.events.watch(seen.append, events.HelloAnswered)
            await engine.submit(message(A))
            outcome = await engine.outcomes.receive()

    assert told([outcome]) == delivered(A)
    assert outcome.features.pipelining
    assert "****LINING" in seen[0].text


# ---- servers that say back what they refuse ------------------------------------------------------


@pytest.mark.parametrize("transcripts", [True, False])
@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(f"S: 535 5.7.8 not you: AUTH PLAIN {PLAIN}\n", id="refused"),
        pytest.param(f"S: 454 4.7.0 later: AUTH PLAIN {PLAIN[:12]}...\n", id="cut short"),
        pytest.param("S: 535 5.7.8 your password s3cretW0rd is wrong\n", id="in clear"),
        pytest.param(f"S: AUTH PLAIN {PLAIN}\n", id="no reply"),
        pytest.param(f"S: 235-AUTH PLAIN {PLAIN}\nS: 535 x\n", id="a reply at odds with itself"),
    ],
)
async def test_what_a_server_says_back_is_concealed(refusal, transcripts, autojump_clock):
    script = greeted("PLAIN") + f"C: AUTH PLAIN {PLAIN}\n" + refusal
    seen = []
    async with scripted(script, is_watched=False) as hosts:
        async with Engine(
            settings(**REQUIRED),
            router=await static_router([MX1], "x.test"),
            connector=hosts,
            transcripts=transcripts,
        ) as engine:
            engine.events.watch(lambda event: seen.append(repr(event)))
            await engine.submit(message(A))
            outcome = await engine.outcomes.receive()

    told_of = repr(outcome) + str(outcome.as_dict()) + outcome.text + "".join(seen)
    assert outcome.stage == "auth"
    assert "****" in told_of
    assert PLAIN[:8] not in told_of
    assert "s3cretW0rd" not in told_of


async def test_a_challenge_that_holds_the_password_by_chance_is_answered_as_it_is(autojump_clock):
    import hmac

    challenge = b64encode(b"<s3cretW0rd@mx.test>").decode()
    digest = hmac.new(b"PHMzY3JldFcw", b"<s3cretW0rd@mx.test>", "md5").hexdigest()
    answer = b64encode(f"me {digest}".encode()).decode()
    assert "PHMzY3JldFcw" in challenge
    script = greeted("CRAM-MD5") + f"C: AUTH CRAM-MD5\nS: 334 {challenge}\nC: {answer}\nS: 235 ok\n"
    async with scripted(script + MAIL + BYE) as hosts:
        options = {"auth": {"username": "me", "password": "PHMzY3JldFcw"}}
        (outcome,) = await deliver(hosts, message(A), options=options)

    assert told([outcome]) == delivered(A)
