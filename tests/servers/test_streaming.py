"""Several mail transactions in flight on a connection, against real servers and in real time.

Streaming is asked for by number, so that no server is spared; only one that announces no
PIPELINING, or speaks LMTP, is served in lockstep.  What is asserted: each recipient has exactly one
outcome, and each message arrived once and octet for octet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine import Engine, Settings
from engine.queue.hints import MemoryHints
from tests.servers.test_delivery import letter, numbered

if TYPE_CHECKING:
    from engine import Message, Outcome
    from tests.servers.mail_server import MailServer

pytestmark = pytest.mark.servers

MESSAGES = 1000
DEPTH = 8

#: Each server, and whether chunks are sent where it offers CHUNKING.
CASES = [
    pytest.param("aiosmtpd", False, id="aiosmtpd"),
    pytest.param("smtp-sink", False, id="smtp-sink"),
    pytest.param("postfix", False, id="postfix"),
    pytest.param("postfix", True, id="postfix, chunking"),
    pytest.param("exim", False, id="exim"),
    pytest.param("exim", True, id="exim, chunking"),
    pytest.param("opensmtpd", False, id="opensmtpd"),
    pytest.param("dovecot", False, id="dovecot"),
    pytest.param("dovecot", True, id="dovecot, chunking"),
    pytest.param("haraka", False, id="haraka"),
]
#: What is remembered of a server afterwards; of the others nothing, for they were not tried.
TAKES_STREAMS = {"smtp-sink": b"yes", "postfix": b"yes", "exim": b"yes", "haraka": b"no"}


#: Connections enough for every server to be busy; few, or nothing would be in flight together.
#: Haraka writes each reply by itself, and Nagle's algorithm holds the second one back until we
#: acknowledge the first, some 40 ms later: on two connections that would be 24 seconds.
CONNECTIONS = {"haraka": 20}


async def stream(
    server: MailServer, *messages: Message, chunking: bool, route: str | None = None
) -> list[Outcome]:
    """Send messages over few connections; return their outcomes.

    That each recipient has one outcome, and that those delivered to have one copy of their message
    and nobody else has one, is asserted in passing; and so is what is remembered of the server.
    """
    hints = MemoryHints()
    settings = Settings(
        helo_name="client.test",
        protocol=server.protocol,
        stream_depth=DEPTH,
        chunking=chunking,
        max_connections=CONNECTIONS.get(server.name, 2),
    )
    engine = Engine(settings, routes=[("*", [route or server.route])], hints=hints)
    async with engine:
        for message in messages:
            await engine.submit(message)
    outcomes = [outcome async for outcome in engine.outcomes]

    submitted = [(message.id, to.address) for message in messages for to in message.recipients]
    assert Counter((o.message, o.recipient) for o in outcomes) == Counter(submitted)
    assert {outcome.features.chunking for outcome in outcomes} == {chunking}
    assert hints.get("stream", server.route) == TAKES_STREAMS.get(server.name)
    by_id = {message.id: message for message in messages}
    expected = {o.recipient: by_id[o.message] for o in outcomes if o.status == "delivered"}
    copies = await server.received(len(expected), timeout=60)
    assert sorted(to for copy in copies for to in copy.recipients) == sorted(expected)
    for copy in copies:
        for to in copy.recipients:
            assert copy.reverse_path == str(expected[to].reverse_path)
            assert copy.content == expected[to].content.octets
    return outcomes


def numbered_letter(number: int, *recipients: str) -> Message:
    """A message of its own, under one of three reverse-paths."""
    content, sender = numbered(number % 100), f"s{number // 10 % 3}@b.test"
    return replace(letter(*recipients, content=content, sender=sender), id=str(number))


def undelivered(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text for outcome in outcomes if outcome.status != "delivered"]


@pytest.mark.parametrize(("mail_server", "chunking"), CASES, indirect=["mail_server"])
async def test_1000_messages_are_each_delivered_once(
    mail_server: MailServer, *, chunking: bool
) -> None:
    messages = [numbered_letter(number, f"c{number}@ok.test") for number in range(MESSAGES)]
    outcomes = await stream(mail_server, *messages, chunking=chunking)

    assert undelivered(outcomes) == []


@pytest.mark.parametrize("chunking", [False, True])
async def test_1000_messages_over_a_unix_socket_are_each_delivered_once(
    dovecot_server: MailServer, *, chunking: bool
) -> None:
    messages = [numbered_letter(number, f"c{number}@ok.test") for number in range(MESSAGES)]
    route = f"unix:{dovecot_server.socket}"
    outcomes = await stream(dovecot_server, *messages, chunking=chunking, route=route)

    assert undelivered(outcomes) == []


@pytest.mark.parametrize(
    ("mail_server", "chunking"),
    [case for case in CASES if case.id != "smtp-sink"],
    indirect=["mail_server"],
)
async def test_refusals_among_messages_in_flight_stay_with_whom_they_are_about(
    mail_server: MailServer, *, chunking: bool
) -> None:
    messages = []
    for number in range(200):
        # Transactions for nobody, for somebody, and for both.
        somebody = [f"c{number}@ok.test"] * (number % 3 > 0)
        nobody = ["nobody@ok.test", "defer@ok.test"] * (number % 3 < 2)
        messages.append(numbered_letter(number, *nobody, *somebody))
    outcomes = await stream(mail_server, *messages, chunking=chunking)

    expected = {"nobody@ok.test": "failed", "defer@ok.test": "deferred"}
    wrong = [o.text for o in outcomes if o.status != expected.get(o.recipient, "delivered")]
    assert wrong == []
    assert {outcome.stage.value for outcome in outcomes} == {"rcpt", "final"}


async def test_envelopes_larger_than_haraka_has_room_for_are_each_delivered_once(
    haraka_server: MailServer,
) -> None:
    """It hangs up on more than 8 KB behind a dot, stores that message and does not say so."""
    messages = [
        numbered_letter(number, *(f"{'c' * 58}{number}-{to:02}@ok.test" for to in range(100)))
        for number in range(9)
    ]
    settings = Settings(helo_name="client.test", stream_depth=DEPTH, max_connections=1)
    engine = Engine(settings, routes=[("*", [haraka_server.route])])
    async with engine:
        for message in messages:
            await engine.submit(message)
    outcomes = [outcome async for outcome in engine.outcomes]

    assert undelivered(outcomes) == []
    copies = await haraka_server.received(len(outcomes))
    assert len(copies) == len(messages)
