"""Whatever hosts say, every recipient has one outcome, and nothing of ours breaks."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
import trio
import trio.lowlevel

from engine.engine import Engine
from engine.outcome import Cause, Status
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.testing.dns import FakeDns
from tests.delivery.helpers import connection_to, link, message, run_steadily, settings
from tests.fuzzing import Mutator, by_octet

#: With those of `tests.smtp.test_fuzz` 100,000 inputs.
PARTS, SESSIONS = range(10), 1000
#: No session of one message takes longer, by the virtual clock.
LONG_ENOUGH = 3600.0 * 24
#: Messages that one engine is given, and to how many sites: what rests at one leaves others be.
TOGETHER, SITES = 60, 20
DOMAINS = [f"d{number}.test" for number in range(SITES)]
ROUTES = [(domain, [f"192.0.2.{number}"]) for number, domain in enumerate(DOMAINS, 1)]


class Babblers:
    """A connector to hosts that say what a mutator makes up, whatever they hear.

    Attributes:
        said: What each said, reply by reply, in the order of their connections.
    """

    def __init__(self, mutator: Mutator) -> None:
        self.said: list[list[bytes]] = []
        self.nursery: trio.Nursery | None = None
        self._mutator = mutator

    async def connect(self, candidate, options, *, early_data=b""):
        await trio.lowlevel.checkpoint()
        assert not early_data
        client, server = link()
        self.said.append(self._mutator.replies())
        assert self.nursery is not None
        self.nursery.start_soon(self._babble, self.said[-1], server)
        return connection_to(candidate, client)

    async def _babble(self, said, server) -> None:
        random = self._mutator.random
        drips, ends = random.random() < 0.2, random.choice(("close", "close", "crash", "stall"))
        at_once = random.random() < 0.1
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            left = 1  # replies that may be said now
            heard = b""
            for reply in said:
                while not left and not at_once:
                    octets = await server.receive_some()
                    if not octets:
                        break
                    heard = (heard + octets)[-200:]
                    left = self._count(octets)
                left -= 1
                if ends == "crash" and random.random() < 0.1:
                    break
                for piece in by_octet(reply) if drips else [reply]:
                    server.send_nowait(piece)
                    if drips:
                        await trio.lowlevel.checkpoint()
            if ends == "stall":
                while await server.receive_some():
                    pass
        server.close()

    @staticmethod
    def _count(octets: bytes) -> int:
        """Guess how many replies a client waits for; a content is one."""
        verbs = (b"EHLO", b"HELO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"QUIT", b"BDAT")
        return sum(line.startswith(verbs) or line == b"." for line in octets.split(b"\r\n"))


def a_message(mutator: Mutator, number: int):
    random = mutator.random
    domain = DOMAINS[number % len(DOMAINS)]
    recipients = [f"r{n}.m{number}@{domain}" for n in range(random.choice((1, 1, 1, 2, 3)))]
    return message(*recipients, id=str(number))


async def converse(part: int, first: int) -> tuple[Counter[str], int]:
    """Deliver some messages to babblers, and see that what came of them makes sense."""
    mutator = Mutator(part * SESSIONS + first)
    random, hosts = mutator.random, Babblers(mutator)
    options = {
        "protocol": random.choice(("smtp", "smtp", "smtp", "lmtp")),
        "max_connections": random.choice((1, 2)),
        "stream_depth": random.choice((1, 4)),
        "tls": random.choice(("off", "off", "off", "opportunistic")),
    }
    async with trio.open_nursery() as hosts.nursery:
        router = Router(FakeDns({}), table=RouteTable(ROUTES))
        submitted, settled = Counter(), Counter()
        with trio.fail_after(LONG_ENOUGH):
            engine = Engine(settings(**options), router=router, connector=hosts)
            async with engine:
                for number in range(TOGETHER):
                    each = a_message(mutator, number)
                    submitted.update(to.address for to in each.recipients)
                    await engine.submit(each)
            outcomes = [outcome async for outcome in engine.outcomes]
        hosts.nursery.cancel_scope.cancel()
    for outcome in outcomes:
        settled[outcome.recipient] += 1
        check(outcome)
    assert settled == submitted
    numbers = engine.statistics()
    assert numbers.in_flight == numbers.connections_open == 0
    return Counter(outcome.status for outcome in outcomes), len(hosts.said)


def check(outcome) -> None:
    reply = outcome.reply
    assert outcome.cause is not Cause.INTERNAL, outcome.text
    assert outcome.text.isprintable()
    assert outcome.status is not Status.DELIVERED or reply.severity == 2
    assert outcome.status is not Status.FAILED or reply is None or reply.severity == 5
    assert outcome.status is not Status.UNKNOWN or reply is None


@pytest.mark.parametrize("part", PARTS)
def test_whatever_hosts_say_everybody_has_one_outcome(part, caplog):
    statuses, sessions, number = Counter(), 0, 0
    while sessions < SESSIONS:
        found, held = run_steadily(converse, part, number, schedule=number)
        statuses, sessions, number = statuses + found, sessions + held, number + 1
    assert not caplog.records
    assert set(statuses) == {Status.DELIVERED, Status.DEFERRED, Status.FAILED, Status.UNKNOWN}
