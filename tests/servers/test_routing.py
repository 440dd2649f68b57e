"""Routing by MX with a real name server, all the way to a mail server that stores the message."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from engine import Engine, Message, Recipient, Settings, from_octets
from tests.servers.fixtures import SMTP_SERVERS
from tests.servers.mailbox import Received
from tests.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine import Outcome
    from tests.servers.mail_server import MailServer
    from tests.servers.unbound import NameServer

    Zone = Callable[[str], NameServer]

pytestmark = pytest.mark.servers

LETTER = b"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@b.test>\r\nFrom: a@b.test\r\n\r\nhi\r\n"
#: On the addresses beside 127.0.0.1 nobody listens: connections are refused at once.
HOSTS = """
mx1.test. IN A 127.0.0.1
mx2.test. IN A 127.0.0.2
mx3.test. IN A 127.0.0.3
"""


def letter(*recipients: str) -> Message:
    return Message(
        id="",
        reverse_path=Message.parse_sender("a@b.test"),
        recipients=tuple(map(Recipient.parse, recipients)),
        content=from_octets(LETTER),
    )


def start(name_server: NameServer, port: int, **more: Any) -> Engine:
    """An engine that routes by MX to a mail server's port; loopback addresses are others."""
    settings: Settings = more.pop("settings", Settings())
    return Engine(
        settings.model_copy(update={"helo_name": "client.test", "port": port}),
        name_servers=[f"{name_server.host}:{name_server.port}"],
        **{"own_addresses": (), **more},
    )


async def route(
    name_server: NameServer, port: int, *messages: Message, **more: Any
) -> list[Outcome]:
    """Send messages by MX; return what became of their recipients in the order of submission."""
    async with start(name_server, port, **more) as engine:
        for message in messages:
            await engine.submit(message)
    outcomes = [outcome async for outcome in engine.outcomes]
    submitted = [to.address for message in messages for to in message.recipients]
    assert Counter(outcome.recipient for outcome in outcomes) == Counter(submitted)
    return sorted(outcomes, key=lambda outcome: submitted.index(outcome.recipient))


def summary(outcome: Outcome) -> tuple[str | None, ...]:
    """Status, scope, stage, cause and enhanced status code."""
    record = outcome.as_dict()
    return tuple(record[key] for key in ("status", "scope", "stage", "cause", "enhanced"))


def place(outcome: Outcome) -> tuple[str | None, str | None]:
    """Host and address of who decided."""
    record = outcome.as_dict()
    return record["host"], record["address"]


# ---- the way to a host --------------------------------------------------------------------------


@pytest.mark.parametrize("mail_server", SMTP_SERVERS, indirect=True)
async def test_mail_goes_to_the_mx_host(mail_server: MailServer, name_server: Zone) -> None:
    zone = name_server(f"ok.test. IN MX 10 mx1.test.\n{HOSTS}")
    [outcome] = await route(zone, mail_server.port, letter("c@ok.test"))

    assert outcome.status == "delivered", outcome.text
    assert place(outcome) == ("mx1.test", "127.0.0.1")
    assert await mail_server.received() == [Received("a@b.test", ("c@ok.test",), LETTER)]


async def test_hosts_are_tried_by_preference_until_one_takes_the_message(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    records = (
        "ok.test. IN MX 30 mx1.test.\nok.test. IN MX 20 mx3.test.\nok.test. IN MX 10 mx2.test."
    )
    zone = name_server(f"{records}\n{HOSTS}")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"))

    assert outcome.status == "delivered", outcome.text
    assert place(outcome) == ("mx1.test", "127.0.0.1")
    assert [(tried.host, tried.address, tried.port) for tried in outcome.attempts] == [
        ("mx2.test", "127.0.0.2", smtp_sink_server.port),
        ("mx3.test", "127.0.0.3", smtp_sink_server.port),
    ]
    assert {(tried.stage.value, tried.cause.value) for tried in outcome.attempts} == {
        ("connect", "refused")
    }
    assert await smtp_sink_server.received() == [Received("a@b.test", ("c@ok.test",), LETTER)]


async def test_worse_hosts_are_not_tried_when_the_best_takes_the_message(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(f"ok.test. IN MX 20 mx2.test.\nok.test. IN MX 10 mx1.test.\n{HOSTS}")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"))

    assert (outcome.status, place(outcome)) == ("delivered", ("mx1.test", "127.0.0.1"))
    assert outcome.attempts == ()


async def test_every_address_of_a_host_is_tried(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    addresses = "".join(f"mx.test. IN A 127.0.0.{last}\n" for last in (1, 2, 3, 4))
    zone = name_server(f"ok.test. IN MX 10 mx.test.\nmx.test. IN AAAA 2001:db8::1\n{addresses}")
    settings = Settings(address_family="ipv4")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"), settings=settings)

    assert outcome.status == "delivered", outcome.text
    assert place(outcome) == ("mx.test", "127.0.0.1")
    assert {tried.address for tried in outcome.attempts} <= {"127.0.0.2", "127.0.0.3", "127.0.0.4"}


async def test_mail_that_no_host_takes_is_deferred(name_server: Zone) -> None:
    zone = name_server(f"ok.test. IN MX 10 mx2.test.\nok.test. IN MX 20 mx3.test.\n{HOSTS}")
    [outcome] = await route(zone, free_port(), letter("c@ok.test"))

    assert summary(outcome) == ("deferred", "host", "connect", "refused", "4.4.1")
    assert place(outcome) == ("mx3.test", "127.0.0.3")
    assert [tried.host for tried in outcome.attempts] == ["mx2.test"]


@pytest.mark.parametrize("mail_server", ["aiosmtpd", "postfix"], indirect=True)
async def test_a_refused_recipient_is_not_taken_to_the_next_host(
    mail_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(f"ok.test. IN MX 10 mx1.test.\nok.test. IN MX 20 mx2.test.\n{HOSTS}")
    message = letter("nobody@ok.test", "defer@ok.test", "c@ok.test")
    refused, deferred, delivered = await route(zone, mail_server.port, message)

    assert (refused.status, place(refused)) == ("failed", ("mx1.test", "127.0.0.1"))
    assert (delivered.status, place(delivered)) == ("delivered", ("mx1.test", "127.0.0.1"))
    # What is merely deferred may go on.
    assert (deferred.status, place(deferred)) == ("deferred", ("mx2.test", "127.0.0.2"))
    assert [(tried.host, tried.stage.value) for tried in deferred.attempts] == [
        ("mx1.test", "rcpt")
    ]


# ---- names --------------------------------------------------------------------------------------


async def test_a_domain_without_mx_is_its_own_host(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server("ok.test. IN A 127.0.0.1")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"))

    assert (outcome.status, place(outcome)) == ("delivered", ("ok.test", "127.0.0.1"))


async def test_an_mx_host_may_be_an_alias(smtp_sink_server: MailServer, name_server: Zone) -> None:
    # RFC 5321 §5.1 rules it out, and many have it.
    zone = name_server(f"ok.test. IN MX 10 alias.test.\nalias.test. IN CNAME mx1.test.\n{HOSTS}")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"))

    assert (outcome.status, place(outcome)) == ("delivered", ("alias.test", "127.0.0.1"))


async def test_a_domain_may_be_an_alias_and_stays_in_the_envelope(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(f"www.test. IN CNAME ok.test.\nok.test. IN MX 10 mx1.test.\n{HOSTS}")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@www.test"))

    assert (outcome.status, place(outcome)) == ("delivered", ("mx1.test", "127.0.0.1"))
    [copy] = await smtp_sink_server.received()
    assert copy.recipients == ("c@www.test",)


async def test_a_domain_beyond_ascii_is_asked_for_in_a_labels(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(f"xn--bcher-kva.test. IN MX 10 mx1.test.\n{HOSTS}")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@Bücher.test"))

    assert (outcome.status, place(outcome)) == ("delivered", ("mx1.test", "127.0.0.1"))


async def test_an_address_literal_asks_nobody(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    [outcome] = await route(name_server(""), smtp_sink_server.port, letter("c@[127.0.0.1]"))

    assert (outcome.status, place(outcome)) == ("delivered", ("127.0.0.1", "127.0.0.1"))


async def test_an_answer_too_long_for_a_datagram_is_fetched_over_tcp(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    names = [f"{'long' * 15}{number}.test" for number in range(28)]
    records = "".join(f"ok.test. IN MX {n} {name}.\n" for n, name in enumerate(names, 10))
    zone = name_server(f"{records}{names[-1]}. IN A 127.0.0.1")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"))

    assert (outcome.status, place(outcome)) == ("delivered", (names[-1], "127.0.0.1"))
    # The last of all: what a datagram has room for would not have named it.
    assert [tried.host for tried in outcome.attempts] == names[:-1]


# ---- no way -------------------------------------------------------------------------------------


async def test_what_cannot_be_routed_fails_and_says_why(name_server: Zone) -> None:
    records = """
        null.test. IN MX 0 .
        lost.test. IN MX 10 nowhere.test.
        bare.test. IN TXT "neither MX nor address"
        """
    zone = name_server(records.replace("    ", ""))
    domains = ["null.test", "gone.test", "lost.test", "bare.test"]
    outcomes = await route(zone, free_port(), letter(*(f"c@{domain}" for domain in domains)))

    assert [summary(outcome) for outcome in outcomes] == [
        ("failed", "domain", "route", "dns", "5.1.10"),
        ("failed", "domain", "route", "dns", "5.1.2"),
        ("failed", "domain", "route", "dns", "5.4.4"),
        ("failed", "domain", "route", "dns", "5.1.2"),
    ]
    assert all(outcome.peer is None for outcome in outcomes)
    for outcome, domain in zip(outcomes, domains, strict=True):
        assert domain in outcome.text


async def test_one_bad_domain_does_not_hold_up_the_others(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(f"null.test. IN MX 0 .\nok.test. IN MX 10 mx1.test.\n{HOSTS}")
    message = letter("c@null.test", "c@ok.test", "c@gone.test")
    outcomes = await route(zone, smtp_sink_server.port, message)

    assert [outcome.status.value for outcome in outcomes] == ["failed", "delivered", "failed"]
    [copy] = await smtp_sink_server.received()
    assert copy.recipients == ("c@ok.test",)


async def test_a_name_server_that_is_not_there_defers() -> None:
    engine = Engine(name_servers=[f"127.0.0.1:{free_port()}"], dns_timeout=0.5)
    async with engine:
        await engine.submit(letter("c@ok.test"))
    [outcome] = [outcome async for outcome in engine.outcomes]

    assert summary(outcome) == ("deferred", "domain", "route", "dns", "4.4.3")


async def test_an_mx_host_that_is_ourselves_is_no_way(name_server: Zone) -> None:
    zone = name_server(f"ok.test. IN MX 10 mx1.test.\nok.test. IN MX 20 mx2.test.\n{HOSTS}")
    [outcome] = await route(zone, free_port(), letter("c@ok.test"), own_addresses=None)

    assert summary(outcome) == ("deferred", "domain", "route", "config", "4.4.6")


async def test_hosts_behind_ourselves_are_not_tried(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    # RFC 5321 §5.1: we are the backup MX, and only what is better than we are counts.
    records = "ok.test. IN MX 10 mx2.test.\nok.test. IN MX 20 us.test.\nok.test. IN MX 30 mx1.test."
    zone = name_server(f"{records}\nus.test. IN A 127.0.0.9\n{HOSTS}")
    [outcome] = await route(zone, smtp_sink_server.port, letter("c@ok.test"), own_names=["us.test"])

    assert summary(outcome) == ("deferred", "host", "connect", "refused", "4.4.1")
    assert (place(outcome), outcome.attempts) == (("mx2.test", "127.0.0.2"), ())


# ---- sites --------------------------------------------------------------------------------------

TWO_DOMAINS = f"""\
one.test. IN MX 10 mx1.test.
one.test. IN MX 20 mx2.test.
two.test. IN MX 10 mx1.test.
two.test. IN MX 20 mx2.test.
{HOSTS}"""


@pytest.mark.parametrize(
    "preferences",
    [
        (10, 20),
        (5, 50),
    ],
    ids=["same numbers", "same order"],
)
async def test_domains_with_the_same_hosts_share_a_connection(
    smtp_sink_server: MailServer, name_server: Zone, preferences: tuple[int, int]
) -> None:
    best, worse = preferences
    two = f"two.test. IN MX {best} mx1.test.\ntwo.test. IN MX {worse} mx2.test."
    zone = name_server(
        f"one.test. IN MX 10 mx1.test.\none.test. IN MX 20 mx2.test.\n{two}\n{HOSTS}"
    )
    outcomes = []
    async with start(zone, smtp_sink_server.port) as engine:
        for recipient in ("c@one.test", "c@two.test", "d@one.test"):
            await engine.submit(letter(recipient))
            outcomes.append(await engine.outcomes.receive())

    assert {outcome.status.value for outcome in outcomes} == {"delivered"}
    places = [(o.as_dict()["connection"], o.as_dict()["transaction"]) for o in outcomes]
    assert places == [(1, 1), (1, 2), (1, 3)]
    assert len(await smtp_sink_server.received(3)) == 3


async def test_domains_that_rank_the_same_hosts_otherwise_keep_their_order(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    one = "one.test. IN MX 10 mx1.test.\none.test. IN MX 20 mx2.test."
    two = "two.test. IN MX 10 mx2.test.\ntwo.test. IN MX 20 mx1.test."
    zone = name_server(f"{one}\n{two}\n{HOSTS}")
    first, second = await route(zone, smtp_sink_server.port, letter("c@one.test", "c@two.test"))

    assert (first.status, place(first)) == ("delivered", ("mx1.test", "127.0.0.1"))
    assert first.attempts == ()
    assert (second.status, place(second)) == ("delivered", ("mx1.test", "127.0.0.1"))
    assert [tried.host for tried in second.attempts] == ["mx2.test"]


async def test_recipients_of_one_site_share_a_transaction(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(TWO_DOMAINS)
    outcomes = await route(zone, smtp_sink_server.port, letter("c@one.test", "c@two.test"))

    assert [outcome.as_dict()["transaction"] for outcome in outcomes] == [1, 1]
    [copy] = await smtp_sink_server.received(2)
    assert sorted(copy.recipients) == ["c@one.test", "c@two.test"]


async def test_other_hosts_are_another_site(
    smtp_sink_server: MailServer, name_server: Zone
) -> None:
    zone = name_server(
        f"one.test. IN MX 10 mx1.test.\ntwo.test. IN MX 10 mx4.test.\n"
        f"mx4.test. IN A 127.0.0.1\n{HOSTS}"
    )
    outcomes = await route(zone, smtp_sink_server.port, letter("c@one.test", "c@two.test"))

    assert {outcome.status.value for outcome in outcomes} == {"delivered"}
    assert {outcome.as_dict()["connection"] for outcome in outcomes} == {1, 2}


async def test_static_hosts_are_tried_in_the_order_they_are_named(
    smtp_sink_server: MailServer,
) -> None:
    closed, port = free_port(), smtp_sink_server.port
    hosts = [f"127.0.0.1:{closed}", f"127.0.0.2:{port}", f"127.0.0.1:{port}", "127.0.0.3"]
    engine = Engine(Settings(helo_name="client.test"), routes=[("*.test", hosts)])
    async with engine:
        await engine.submit(letter("c@ok.test"))
    [outcome] = [outcome async for outcome in engine.outcomes]

    assert (outcome.status, place(outcome)) == ("delivered", ("127.0.0.1", "127.0.0.1"))
    assert [(tried.address, tried.port) for tried in outcome.attempts] == [
        ("127.0.0.1", closed),
        ("127.0.0.2", port),
    ]
