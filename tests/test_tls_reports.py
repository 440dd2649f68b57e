from __future__ import annotations

import gzip
import json
from email import message_from_bytes
from email.policy import SMTP

import pytest
import trio

from engine.engine import Engine
from engine.queue.hints import MemoryHints
from engine.report.tlsrpt_form import Reporter
from engine.routing.router import Router
from engine.testing.dns import FakeDns
from tests.delivery.helpers import (
    MX1,
    MX2,
    delivered,
    delivery,
    message,
    opening,
    scripted,
    settings,
    told,
)

DAY = 86_400
ZONE = {
    "x.test": {"MX": ["10 mx.test"]},
    "mx.test": {"A": [MX1]},
    "_smtp._tls.x.test": {"TXT": ["v=TLSRPTv1; rua=mailto:tls@y.test"]},
    "y.test": {"MX": ["10 other.test"]},
    "other.test": {"A": [MX2]},
}
REPORTER = Reporter("Me, Inc.", "postmaster@me.test")


def engine(hosts, hints=None, sign=None) -> Engine:
    dns = FakeDns(ZONE)
    return Engine(
        settings(),
        router=Router(dns),
        resolver=dns,
        connector=hosts,
        hints=MemoryHints(clock=trio.current_time) if hints is None else hints,
        tls_reporter=REPORTER,
        sign=sign,
        clock=trio.current_time,
    )


def report_in(content: bytes) -> dict:
    mail = message_from_bytes(content, policy=SMTP)
    (part,) = [each for each in mail.walk() if each.get_content_type() == "application/tlsrpt+gzip"]
    return json.loads(gzip.decompress(part.get_content()))


def mailed(sign: str = "") -> str:
    lines = "C: MAIL FROM:<postmaster@me.test>\nC: RCPT TO:<tls@y.test>\nC: DATA\n"
    return opening(True) + lines + "S: 250 ok\nS: 250 ok\nS: 354 go on\nC= report\nS: 250 ok\n"


async def test_receivers_are_told_by_mail_how_tls_with_them_went(autojump_clock):
    async with scripted({MX1: opening(True) + delivery("a@x.test", True), MX2: mailed()}) as hosts:
        async with engine(hosts) as running:
            await running.submit(message("a@x.test"))
            outcome = await running.outcomes.receive()
            await trio.sleep(1.5 * DAY)
            # The report is nobody's outcome.
            with pytest.raises(trio.WouldBlock):
                running.outcomes.receive_nowait()

    assert told([outcome]) == delivered("a@x.test")
    report = report_in(hosts.contents[1])
    assert report["organization-name"] == "Me, Inc."
    (policy,) = report["policies"]
    assert policy["policy"]["policy-type"] == "no-policy-found"
    assert policy["summary"]["total-failure-session-count"] == 1
    (detail,) = policy["failure-details"]
    assert detail["result-type"] == "starttls-not-supported"
    assert detail["receiving-mx-hostname"] == "mx.test"
    assert b"TLS-Required: No" in hosts.contents[1]


async def test_reports_are_signed_where_somebody_signs(autojump_clock):
    async def sign(octets: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"DKIM-Signature: v=1\r\n" + octets

    async with scripted({MX1: opening(True) + delivery("a@x.test", True), MX2: mailed()}) as hosts:
        async with engine(hosts, sign=sign) as running:
            await running.submit(message("a@x.test"))
            await running.outcomes.receive()
            await trio.sleep(1.5 * DAY)

    assert hosts.contents[1].startswith(b"DKIM-Signature: v=1\r\n")


async def test_what_was_counted_before_a_restart_is_reported_after_it(autojump_clock):
    hints = MemoryHints(clock=trio.current_time)
    async with scripted({MX1: opening(True) + delivery("a@x.test", True), MX2: mailed()}) as hosts:
        async with engine(hosts, hints) as running:
            await running.submit(message("a@x.test"))
            await running.outcomes.receive()
        async with engine(hosts, hints):
            await trio.sleep(1.5 * DAY)

    assert len(hosts.contents) == 2


async def test_a_report_that_nobody_takes_is_tried_again(autojump_clock):
    refused = "S: 421 busy\n! connection\n"
    scripts = {MX1: opening(True) + delivery("a@x.test", True), MX2: refused + mailed()}
    async with scripted(scripts) as hosts:
        async with engine(hosts) as running:
            await running.submit(message("a@x.test"))
            await running.outcomes.receive()
            await trio.sleep(1.5 * DAY)

    assert len(hosts.contents) == 2


async def test_without_a_reporter_nobody_counts(autojump_clock):
    async with scripted({MX1: opening(True) + delivery("a@x.test", True)}) as hosts:
        dns = FakeDns(ZONE)
        async with Engine(settings(), router=Router(dns), resolver=dns, connector=hosts) as running:
            await running.submit(message("a@x.test"))
            await running.outcomes.receive()
            await trio.sleep(1.5 * DAY)

    assert ("_smtp._tls.x.test", "TXT") not in dns.asked
