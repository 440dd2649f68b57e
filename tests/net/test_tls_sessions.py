"""Which sessions are kept, for how long, and for whom."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass, replace

import pytest
import trio

from engine.net.tls_material import TlsMaterial
from engine.net.tls_sessions import SessionKey, TlsSessions, Verdict
from engine.security import Tlsa, TlsDemand, TlsLevel

KEY = SessionKey("mx.test", "192.0.2.1", 25, TlsDemand(), TlsMaterial())
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
NO = Verdict("no")


@dataclass(frozen=True)
class Session:
    """As `ssl.SSLSession`, which cannot be made by hand."""

    has_ticket: bool = True
    ticket_lifetime_hint: int = 7200
    timeout: int = 300
    id: bytes = b""


async def test_a_session_is_found_again_with_its_verdict():
    sessions = TlsSessions()
    verdict = Verdict("pkix", "mx.test", None, math.inf)
    sessions.put(KEY, Session(), CONTEXT, verdict)
    kept = sessions.get(KEY, CONTEXT)
    assert kept.session == Session()
    assert kept.verdict is verdict
    assert sessions.get(KEY, CONTEXT) is kept  # again and again


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(host="mx2.test"),
        KEY._replace(address="192.0.2.2"),
        KEY._replace(port=465),
        KEY._replace(material=TlsMaterial(min_version="1.3")),
        KEY._replace(demand=replace(KEY.demand, level=TlsLevel.VERIFY)),
        KEY._replace(demand=replace(KEY.demand, policy="mta-sts")),
        KEY._replace(demand=replace(KEY.demand, names=("mx.test",))),
        KEY._replace(demand=replace(KEY.demand, sni="mx.test")),
        KEY._replace(demand=replace(KEY.demand, tlsa=(Tlsa(3, 1, 1, b"x"),))),
    ],
)
async def test_another_question_has_another_answer(other):
    sessions = TlsSessions()
    sessions.put(KEY, Session(), CONTEXT, NO)
    assert sessions.get(other, CONTEXT) is None


async def test_a_session_is_of_no_use_with_another_context():
    sessions = TlsSessions()
    sessions.put(KEY, Session(), CONTEXT, NO)
    assert sessions.get(KEY, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) is None
    assert len(sessions) == 0


@pytest.mark.parametrize(
    ("session", "seconds"),
    [
        (Session(ticket_lifetime_hint=100), 100),
        (Session(ticket_lifetime_hint=7 * 86400), 86400),
        (Session(ticket_lifetime_hint=0), 0),
        (Session(has_ticket=False, id=b"x", ticket_lifetime_hint=0), 300),
        (Session(has_ticket=False), 0),
        (None, 0),
    ],
)
async def test_a_session_lasts_as_long_as_the_server_says_and_a_day_at_most(
    session, seconds, autojump_clock
):
    sessions = TlsSessions()
    sessions.put(KEY, session, CONTEXT, NO)
    if seconds:
        await trio.sleep(seconds - 1)
        assert sessions.get(KEY, CONTEXT) is not None
        await trio.sleep(2)
    assert sessions.get(KEY, CONTEXT) is None
    assert len(sessions) == 0


async def test_a_session_ends_with_its_verdict(autojump_clock):
    sessions = TlsSessions()
    sessions.put(KEY, Session(), CONTEXT, Verdict("pkix", until=trio.current_time() + 60))
    await trio.sleep(59)
    assert sessions.get(KEY, CONTEXT) is not None
    await trio.sleep(2)
    assert sessions.get(KEY, CONTEXT) is None


async def test_those_longest_not_used_make_room():
    sessions = TlsSessions(3)
    keys = [KEY._replace(port=port) for port in range(4)]
    for key in keys[:3]:
        sessions.put(key, Session(), CONTEXT, NO)
    assert sessions.get(keys[0], CONTEXT) is not None
    sessions.put(keys[3], Session(), CONTEXT, NO)
    sessions.put(keys[3], Session(), CONTEXT, NO)
    assert len(sessions) == 3
    assert sessions.get(keys[1], CONTEXT) is None
    assert sessions.get(keys[0], CONTEXT) is not None


async def test_a_session_can_be_forgotten():
    sessions = TlsSessions()
    sessions.put(KEY, Session(), CONTEXT, NO)
    sessions.forget(KEY)
    sessions.forget(KEY)
    assert sessions.get(KEY, CONTEXT) is None
