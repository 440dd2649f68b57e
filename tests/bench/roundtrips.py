"""Round trips of a message over a link of 100 ms: Exim's own client, Postfix's, and this engine.

All send to one stock Exim at the far end of `engine.testing.link`, in one run.  What counts is on
the wire: from the first SYN to the arrival of the reply to the whole content; or, over a connection
that is open, messages in a round trip.  Everybody sends once before, so that Fast Open's cookie and
what the server offers are known; the medians of the rounds that follow count.

A round trip takes a little longer than the link is, for servers think: a goal is missed only by more
than a tolerance.  A row whose feature this engine does not have yet says so and misses nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import pytest
import trio

from engine.testing.link import LinkUnavailable, open_link
from engine.testing.wire import (
    dialogue,
    encrypted_round_trips,
    messages_a_round_trip,
    round_trips,
    traces,
)
from tests.bench.engine_client import IDLE_SECONDS, engine_client
from tests.bench.exim_client import exim_client
from tests.bench.postfix_client import postfix_client
from tests.bench.throughput import make_content
from tests.certificates import make
from tests.servers import exim
from tests.servers.provision import superuser, unpacked

if TYPE_CHECKING:
    from engine.testing.link import Link
    from tests.bench.exim_client import EximClient
    from tests.bench.postfix_client import PostfixClient
    from tests.servers.mail_server import MailServer

CONTENT = make_content(3 * 1024)
RECIPIENT = "to@ok.test"
NOT_YET = "not yet"
#: Messages that the peers have to send over one connection.
PEERS_BACKLOG = 13
#: Of both ends.  Where BBR is the default it spaces segments out, and a message of three takes 4 ms to
#: leave; this one sends at once what it may send, as CUBIC does, and every kernel lets us have it.
CONGESTION = {"net.ipv4.tcp_congestion_control": "reno"}
#: Round trips that a single delivery may take beyond its goal.
TOLERANCE = 0.3


@dataclass(frozen=True)
class Row:
    """One way to send, and what should come of it.

    Attributes:
        name: What is used.
        exim: Options of Exim's smtp transport.
        ours: Settings of this engine.
        goal: Round trips of a message at most; with a backlog messages a round trip at least.
        backlog: Messages of ours over one connection; 0: one message over a connection of its own.
        is_encrypted: Whether only sizes and times can tell.
        is_implicit: Whether the server's port for TLS from the first octet is used.
        has_postfix: Whether Postfix's client can do the same.
    """

    name: str
    exim: dict
    ours: dict
    goal: float
    backlog: int = 0
    is_encrypted: bool = False
    is_implicit: bool = False
    has_postfix: bool = False

    def reaches(self, value):
        return value >= self.goal if self.backlog else value <= self.goal + TOLERANCE


NO_CHUNKING = {"hosts_try_chunking": ""}
NO_FAST_OPEN = {"hosts_try_fastopen": ""}
CLEAR = {"hosts_avoid_tls": "*"}
EARLY = {"hosts_pipe_connect": "*"}
TLS = {"hosts_require_tls": "*"}

PLAIN = {"fast_open": "off", "chunking": False, "early_pipelining": False, "tls": "off"}
ENCRYPTED = {"tls": "require", "dane": "off", "mta_sts": "off"}

ROWS = [
    Row("PIPELINING", CLEAR | NO_CHUNKING | NO_FAST_OPEN, PLAIN, 5),
    Row("+ Fast Open", CLEAR | NO_CHUNKING, PLAIN | {"fast_open": "connect"}, 4),
    Row("+ Fast Open + CHUNKING", CLEAR, PLAIN | {"fast_open": "connect", "chunking": True}, 3),
    Row(
        "early pipelining + CHUNKING",
        CLEAR | EARLY | NO_FAST_OPEN,
        PLAIN | {"early_pipelining": True, "chunking": True},
        2,
    ),
    Row(
        "  + Fast Open",
        CLEAR | EARLY,
        PLAIN | {"early_pipelining": True, "chunking": True, "fast_open": "commands"},
        2,
    ),
    Row(
        "the same over STARTTLS",
        TLS | EARLY,
        ENCRYPTED | {"early_pipelining": True, "chunking": True, "fast_open": "commands"},
        3,
        is_encrypted=True,
    ),
    Row(
        "the same, TLS from the first octet",
        {"protocol": "smtps"} | EARLY,
        {"protocol": "smtps", "early_pipelining": True, "chunking": True, "fast_open": "commands"}
        | ENCRYPTED,
        2,
        is_encrypted=True,
        is_implicit=True,
    ),
    Row(
        "next message, DATA, lockstep",
        CLEAR | NO_CHUNKING | NO_FAST_OPEN,
        PLAIN | {"stream_depth": 1},
        0.45,
        backlog=13,
        has_postfix=True,
    ),
    Row(
        "next message, DATA",
        CLEAR | NO_CHUNKING | NO_FAST_OPEN,
        PLAIN | {"stream_depth": 16},
        0.95,
        backlog=97,
        has_postfix=True,
    ),
    Row(
        "next message, CHUNKING",
        CLEAR | NO_FAST_OPEN,
        PLAIN | {"stream_depth": 16, "chunking": True},
        12,
        backlog=193,
    ),
]


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows whose names have this in them")
    parser.add_argument("--milliseconds", type=float, default=100.0, help="of a round trip")


def run(arguments):
    try:
        for program in ("exim4", "smtp-source"):
            unpacked(f"usr/sbin/{program}")
        superuser("Exim")
        return trio.run(measure, arguments)
    except (LinkUnavailable, pytest.skip.Exception, pytest.fail.Exception) as reason:
        print(reason)
        return 1


async def measure(arguments):
    """Measure the rows and print each as soon as it is known; returns the exit status."""
    rows = [row for row in ROWS if arguments.rows.lower() in row.name.lower()]
    missed = []
    async with open_link(one_way=arguments.milliseconds / 2000, sysctls=CONGESTION) as link:
        with ExitStack() as stack:
            chain = [make("exim.test", names=["exim.test"])]
            server = stack.enter_context(exim.start(link.far, chain))
            bench = Bench(
                link,
                server,
                stack.enter_context(exim_client(link.near)),
                stack.enter_context(postfix_client(link.near, server.host, server.port)),
                arguments.rounds,
            )
            print_head(arguments)
            peers = {}
            for row in rows:
                # Rows that only we can tell apart have the same peers.
                key = (*row.exim.items(), row.has_postfix)
                if key not in peers:
                    theirs = await bench.measure_exim(row)
                    postfix = await bench.measure_postfix(row) if row.has_postfix else None
                    peers[key] = theirs, postfix
                theirs, postfix = peers[key]
                ours = await bench.measure_engine(row)
                print_row(row, theirs, postfix, ours)
                if isinstance(ours, str) and ours != NOT_YET:
                    print(f"  {ours}")
                if ours != NOT_YET and (isinstance(ours, str) or not row.reaches(ours)):
                    missed.append(row.name.strip())
                server.clear()
    for name in missed:
        print(f"goal missed: {name}")
    return int(bool(missed))


@dataclass(frozen=True)
class Bench:
    """Everybody who sends, and the server and the link they have in common."""

    link: Link
    server: MailServer
    exim: EximClient
    postfix: PostfixClient
    rounds: int

    async def measure_exim(self, row):
        self.exim.configure(self.server.host, self._port(row), row.exim)
        if row.backlog:
            await self.link.clear_log()
            await self.exim.send_backlog([RECIPIENT] * PEERS_BACKLOG, CONTENT)
            return await self._read(row)
        return await self._median(row, lambda: self.exim.send(RECIPIENT, CONTENT))

    async def measure_postfix(self, row):
        self.server.clear()
        await self.link.clear_log()
        await self.postfix.send_backlog(RECIPIENT, PEERS_BACKLOG, len(CONTENT))
        await self.server.received(PEERS_BACKLOG)
        return await self._read(row)

    async def measure_engine(self, row):
        """The result, or why there is none."""
        try:
            async with engine_client(
                self.link.near, self.server.host, self._port(row), row.ours
            ) as client:
                if row.backlog:
                    await client.send([RECIPIENT], CONTENT)
                    await self._be_idle()
                    await self.link.clear_log()
                    await client.send([RECIPIENT] * row.backlog, CONTENT)
                    return await self._read(row)
                return await self._median(row, lambda: client.send([RECIPIENT], CONTENT))
        except (RuntimeError, ValueError) as problem:
            return str(problem)

    def _port(self, row):
        return self.server.tls_port if row.is_implicit else self.server.port

    async def _median(self, row, send):
        values = []
        for _ in range(self.rounds + 1):
            await self.link.clear_log()
            await send()
            values.append(await self._read(row))
        return median(values[1:])

    async def _read(self, row):
        """What the log says about the row, once the connection is closed."""
        await self._be_idle()
        round_trip = self.link.round_trip
        longest = max(traces(self.link.log()), key=lambda trace: len(dialogue(trace)))
        if row.backlog:
            return messages_a_round_trip(longest, round_trip)
        if row.is_encrypted:
            return encrypted_round_trips(longest, round_trip, len(CONTENT))
        return round_trips(longest, round_trip)

    async def _be_idle(self):
        # QUIT and its reply, and all acknowledgments behind them.
        await trio.sleep(IDLE_SECONDS + 3 * self.link.round_trip)


def print_head(arguments):
    print(
        f"To a stock Exim {arguments.milliseconds:g} ms away and back, {len(CONTENT)} octets a message, "
        f"medians of {arguments.rounds} rounds.\n"
        "One message: round trips from the first SYN to the final reply; the goal is met within "
        f"{TOLERANCE}.\n"
        "Next message: messages a round trip, over one connection with a backlog.\n"
    )
    print(f"{'':<36}{'Exim':>9}{'Postfix':>9}{'this engine':>13}{'goal':>9}{'ours is':>17}")


def print_row(row, theirs, postfix, ours):
    peers = [value for value in (theirs, postfix) if value is not None]
    goal, ratio = f"{'>=' if row.backlog else '<='} {row.goal:g}", ""
    if not isinstance(ours, str):
        best = max(peers) if row.backlog else min(peers)
        ratio = f"{ours / best:.2f} x the best"
    columns = [
        f"{value:.2f}" if isinstance(value, float) else (value or "-")
        for value in (theirs, postfix, ours)
    ]
    if isinstance(ours, str) and ours != NOT_YET:
        columns[2] = "failed"
    print(
        f"{row.name:<36}{columns[0]:>9}{columns[1]:>9}{columns[2]:>13}{goal:>9}{ratio:>17}",
        flush=True,
    )
