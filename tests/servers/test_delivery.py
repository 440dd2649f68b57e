"""The engine against real mail servers, through its public names alone.

What is asserted twice: what the outcomes say, and what the server stored.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import engine as package
from engine import Engine, Message, Recipient, Settings, from_file, from_octets
from engine.content import FileContent, MemoryContent
from engine.smtp.content import ContentFacts
from tests.servers.fixtures import MAIL_SERVERS, SMTP_SERVERS
from tests.servers.mailbox import Received

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from engine import Outcome
    from engine.message import Content
    from tests.servers.mail_server import MailServer

pytestmark = pytest.mark.servers

#: Those that tell addresses apart, and those that were built with SMTPUTF8.
REFUSING = [name for name in MAIL_SERVERS if name != "smtp-sink"]
UTF8 = ["aiosmtpd", "postfix", "exim", "haraka"]
NOT_UTF8 = ["smtp-sink", "opensmtpd", "dovecot"]

SENDER = "a@b.test"
HEADER = (
    b"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <1@b.test>\r\n"
    b"From: a@b.test\r\n"
    b"Subject: folded\r\n over two lines\r\n"
)
LETTER = HEADER + b"\r\none line of text\r\n"


def letter(
    *recipients: str | Recipient,
    content: bytes | Content = LETTER,
    sender: str = SENDER,
    **more: Any,
) -> Message:
    return Message(
        id="",
        reverse_path=Message.parse_sender(sender),
        recipients=tuple(
            to if isinstance(to, Recipient) else Recipient.parse(to) for to in recipients
        ),
        content=from_octets(content) if isinstance(content, bytes) else content,
        **more,
    )


async def deliver(
    server: MailServer,
    *messages: Message,
    settings: Settings | None = None,
    transcripts: bool = False,
    route: str | None = None,
) -> list[Outcome]:
    """Send messages, and return what became of their recipients in the order of submission.

    That each has one outcome is asserted in passing.
    """
    settings = settings or Settings(helo_name="client.test")
    engine = Engine(
        settings.model_copy(update={"protocol": server.protocol}),
        routes=[("*", [route or server.route])],
        transcripts=transcripts,
    )
    async with engine:
        ids = [await engine.submit(message) for message in messages]
    outcomes = [outcome async for outcome in engine.outcomes]
    submitted = [
        (id_, to.address)
        for id_, message in zip(ids, messages, strict=True)
        for to in message.recipients
    ]
    places = {key: place for place, key in enumerate(submitted)}
    assert Counter((o.message, o.recipient) for o in outcomes) == Counter(submitted)
    return sorted(outcomes, key=lambda o: places[o.message, o.recipient])


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.recipient: outcome.status.value for outcome in outcomes}


def connection(outcome: Outcome) -> int | None:
    return outcome.peer.connection if outcome.peer else None


def dialogue(outcome: Outcome) -> list[str]:
    """The commands of an outcome: those that set the session up, then those of its transaction."""
    return [line[3:] for line in outcome.transcript or () if line.startswith("C: ")]


def hello(server: MailServer) -> str:
    """The verb it is greeted with (RFC 2033 §4.1)."""
    return "LHLO" if server.protocol == "lmtp" else "EHLO"


async def assert_arrives(server: MailServer, content: bytes, expected: bytes) -> None:
    [outcome] = await deliver(server, letter("c@ok.test", content=content))
    assert outcome.status == "delivered", outcome.text
    assert await server.received() == [Received(SENDER, ("c@ok.test",), expected)]


# ---- one message --------------------------------------------------------------------------------


async def test_a_message_is_delivered_and_its_outcome_says_by_whom(mail_server: MailServer) -> None:
    [outcome] = await deliver(mail_server, letter("c@ok.test"))

    assert await mail_server.received() == [Received(SENDER, ("c@ok.test",), LETTER)]
    record = outcome.as_dict()
    assert {
        "message": "1",
        "recipient": "c@ok.test",
        "status": "delivered",
    }.items() <= record.items()
    assert (record["stage"], record["cause"], record["scope"]) == ("final", "reply", None)
    assert (record["address"], record["port"]) == (mail_server.host, mail_server.port)
    assert (record["connection"], record["transaction"]) == (1, 1)
    assert record["reply"]["code"] == 250
    assert record["features"]["pipelining"] == ("PIPELINING" in mail_server.capabilities)
    assert record["attempts"] == []


async def test_the_null_reverse_path_is_delivered(mail_server: MailServer) -> None:
    [outcome] = await deliver(mail_server, letter("c@ok.test", sender="<>"))

    assert outcome.status == "delivered", outcome.text
    assert await mail_server.received() == [Received("", ("c@ok.test",), LETTER)]


@pytest.mark.parametrize("mail_server", SMTP_SERVERS, indirect=True)
async def test_without_esmtp_helo_does(mail_server: MailServer) -> None:
    settings = Settings(helo_name="client.test", esmtp=False)
    [outcome] = await deliver(mail_server, letter("c@ok.test"), settings=settings, transcripts=True)

    assert dialogue(outcome)[:2] == ["HELO client.test", f"MAIL FROM:<{SENDER}>"]
    assert not outcome.features.pipelining
    assert await mail_server.received() == [Received(SENDER, ("c@ok.test",), LETTER)]


async def test_without_a_name_of_ours_the_address_is_said(mail_server: MailServer) -> None:
    [outcome] = await deliver(
        mail_server, letter("c@ok.test"), settings=Settings(), transcripts=True
    )

    assert dialogue(outcome)[0] == f"{hello(mail_server)} [127.0.0.1]"
    assert outcome.status == "delivered", outcome.text


async def test_report_wishes_are_told_to_servers_that_understand_them(
    mail_server: MailServer,
) -> None:
    wishful = Recipient.parse("c@ok.test", {"success", "delay"}, "rfc822;c=c+c@old.test")
    # Not in one transaction: OpenSMTPD adds up what the recipients of one want, and answers 553.
    silent = Recipient.parse("d@ok.test", {"never"})
    outcomes = await deliver(
        mail_server,
        letter(wishful, envid="batch 1+1=2", ret="hdrs"),
        letter(silent),
        transcripts=True,
    )

    assert statuses(outcomes) == {"c@ok.test": "delivered", "d@ok.test": "delivered"}
    (mail, rcpt), (_, rcpt_never) = (dialogue(outcome)[1:3] for outcome in outcomes)
    if "DSN" in mail_server.capabilities:
        assert mail.endswith(" RET=HDRS ENVID=batch+201+2B1+3D2")
        assert rcpt.endswith("> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c+3Dc+2Bc@old.test")
        assert rcpt_never == "RCPT TO:<d@ok.test> NOTIFY=NEVER"
    else:
        assert "ENVID" not in mail
        assert (rcpt, rcpt_never) == ("RCPT TO:<c@ok.test>", "RCPT TO:<d@ok.test>")


@pytest.mark.parametrize(
    "mail_server", ["aiosmtpd", "postfix", "exim", "opensmtpd", "haraka"], indirect=True
)
async def test_content_over_the_announced_size_is_not_offered(mail_server: MailServer) -> None:
    facts = ContentFacts(
        64 * 1024 * 1024 + 1, is_8bit=False, longest_line=70, has_utf8_header=False
    )
    message = letter("c@ok.test", content=MemoryContent(LETTER, facts))
    [outcome] = await deliver(mail_server, message, transcripts=True)

    record = outcome.as_dict()
    assert (record["status"], record["scope"], record["stage"]) == ("failed", "message", "mail")
    assert (record["cause"], record["enhanced"]) == ("unsupported", "5.3.4")
    assert "67108864" in record["text"]
    assert dialogue(outcome) == ["EHLO client.test"]


# ---- octets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b".\r\n",
        b"..\r\n.\r\n...\r\n",
        b"a\r\n.\r\n.b\r\n.c.\r\n",
        b"\r\n\r\n.\r\n\r\n",
        b"",
    ],
    ids=["lone dot", "dots alone", "dots at starts", "empty lines", "nothing"],
)
async def test_dots_and_empty_lines_arrive(mail_server: MailServer, body: bytes) -> None:
    content = HEADER + b"\r\n" + body
    await assert_arrives(mail_server, content, content)


async def test_a_dot_may_be_the_first_octet(mail_server: MailServer) -> None:
    # RFC 5322 §3.6.8: a field name may begin with a dot.
    content = b".Dot: first\r\n" + LETTER
    await assert_arrives(mail_server, content, content)


async def test_bare_lf_and_a_missing_last_line_end_become_crlf(mail_server: MailServer) -> None:
    content = HEADER.replace(b"\r\n", b"\n") + b"\none\n.two\r\n\nthree"
    await assert_arrives(mail_server, content, HEADER + b"\r\none\r\n.two\r\n\r\nthree\r\n")


async def test_a_line_of_998_octets_arrives(mail_server: MailServer) -> None:
    content = LETTER + b"." * 998 + b"\r\n"
    await assert_arrives(mail_server, content, content)


async def test_eight_bit_content_arrives_and_is_announced(mail_server: MailServer) -> None:
    every = bytes(octet for octet in range(1, 256) if octet not in b"\r\n")
    content = HEADER + b"\r\ncaf\xc3\xa9\r\n" + every + b"\r\n"
    [outcome] = await deliver(mail_server, letter("c@ok.test", content=content), transcripts=True)

    assert "BODY=8BITMIME" in dialogue(outcome)[1].split()
    assert outcome.status == "delivered", outcome.text
    assert await mail_server.received() == [Received(SENDER, ("c@ok.test",), content)]


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 MB with LF line ends, as many lines with a dot at the start as without."""
    path = tmp_path_factory.mktemp("content") / "large.eml"
    lines = b"".join(b"%s line %d of a large message\n" % (b"." * (n % 3), n) for n in range(64))
    times = 30_000_000 // len(lines) + 1
    path.write_bytes(LETTER.replace(b"\r\n", b"\n") + lines * times)
    return path


async def test_thirty_megabytes_from_a_file_arrive(
    mail_server: MailServer, large_file: Path
) -> None:
    content = await from_file(large_file)
    assert isinstance(content, FileContent)  # read while it is sent, never all in memory
    [outcome] = await deliver(mail_server, letter("c@ok.test", content=content))

    assert outcome.status == "delivered", outcome.text
    [copy] = await mail_server.received()
    expected = await trio.Path(large_file).read_bytes()
    # Not compared as values: a difference would be shown, which takes minutes.
    is_same = copy.content == expected.replace(b"\n", b"\r\n")
    mail_server.clear()
    assert is_same


# ---- SMTPUTF8 -----------------------------------------------------------------------------------

UTF8_LETTER = LETTER.replace(b"folded", "größer".encode())


@pytest.mark.parametrize("mail_server", UTF8, indirect=True)
async def test_utf8_addresses_and_header_fields_arrive(mail_server: MailServer) -> None:
    message = letter("zoë@ok.test", "c@ok.test", sender="josé@b.test", content=UTF8_LETTER)
    outcomes = await deliver(mail_server, message)

    assert statuses(outcomes) == {"zoë@ok.test": "delivered", "c@ok.test": "delivered"}
    copies = await mail_server.received(2)
    assert {(copy.reverse_path, copy.content) for copy in copies} == {("josé@b.test", UTF8_LETTER)}
    assert sorted(to for copy in copies for to in copy.recipients) == ["c@ok.test", "zoë@ok.test"]


@pytest.mark.parametrize("mail_server", NOT_UTF8, indirect=True)
@pytest.mark.parametrize("recipient", ["zoë@ok.test", "c@ok.test"])
async def test_what_needs_smtputf8_fails_where_it_is_not_offered(
    mail_server: MailServer, recipient: str
) -> None:
    message = letter(recipient, content=UTF8_LETTER, smtputf8=True)
    [outcome] = await deliver(mail_server, message, transcripts=True)

    record = outcome.as_dict()
    assert (record["status"], record["scope"], record["stage"]) == ("failed", "host", "mail")
    assert (record["cause"], record["enhanced"]) == ("unsupported", "5.6.7")
    assert "SMTPUTF8" in record["text"]
    assert dialogue(outcome) == [f"{hello(mail_server)} client.test"]


async def test_a_domain_beyond_ascii_needs_smtputf8_nowhere(smtp_sink_server: MailServer) -> None:
    [outcome] = await deliver(smtp_sink_server, letter("c@bücher.test"))

    assert (outcome.status, outcome.recipient) == ("delivered", "c@bücher.test")
    assert await smtp_sink_server.received() == [
        Received(SENDER, ("c@xn--bcher-kva.test",), LETTER)
    ]


# ---- refused and deferred recipients ------------------------------------------------------------


@pytest.mark.parametrize("mail_server", REFUSING, indirect=True)
@pytest.mark.parametrize("pipelining", [True, False])
async def test_recipients_are_refused_and_deferred_one_by_one(
    mail_server: MailServer, *, pipelining: bool
) -> None:
    settings = Settings(helo_name="client.test", pipelining=pipelining)
    message = letter(
        "c@ok.test", "nobody@ok.test", "defer@ok.test", "d@ok.test", "e@elsewhere.test"
    )
    outcomes = await deliver(mail_server, message, settings=settings)

    assert statuses(outcomes) == {
        "c@ok.test": "delivered",
        "nobody@ok.test": "failed",
        "defer@ok.test": "deferred",
        "d@ok.test": "delivered",
        "e@elsewhere.test": "failed",
    }
    word = "pipelined " if pipelining and "PIPELINING" in mail_server.capabilities else ""
    for outcome, code in ((outcomes[1], 550), (outcomes[2], 451)):
        record = outcome.as_dict()
        assert (record["stage"], record["cause"], record["scope"]) == ("rcpt", "reply", "recipient")
        assert record["reply"]["code"] == code
        assert f" after {word}RCPT TO:<{outcome.recipient}>: {code} " in record["text"]
        assert record["enhanced"] == record["reply"]["enhanced"]
    later = {"dovecot": "4.3.0"}.get(mail_server.name, "4.7.1")
    assert outcomes[2].as_dict()["enhanced"] == later
    copies = await mail_server.received(2)
    assert sorted(to for copy in copies for to in copy.recipients) == ["c@ok.test", "d@ok.test"]
    assert {copy.content for copy in copies} == {LETTER}


@pytest.mark.parametrize("mail_server", REFUSING, indirect=True)
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_connection_goes_on_after_messages_that_nobody_takes(
    mail_server: MailServer, *, pipelining: bool
) -> None:
    settings = Settings(helo_name="client.test", pipelining=pipelining, max_connections=1)
    recipients = ["nobody@ok.test", "c@ok.test", "defer@ok.test", "nobody@ok.test", "d@ok.test"]
    outcomes = await deliver(mail_server, *map(letter, recipients), settings=settings)

    expected = ["failed", "delivered", "deferred", "failed", "delivered"]
    assert [outcome.status.value for outcome in outcomes] == expected
    assert {connection(outcome) for outcome in outcomes} == {1}
    copies = await mail_server.received(2)
    assert sorted(to for copy in copies for to in copy.recipients) == ["c@ok.test", "d@ok.test"]


# ---- many recipients ----------------------------------------------------------------------------


@pytest.mark.parametrize("pipelining", [True, False])
async def test_250_recipients_take_three_transactions_on_one_connection(
    mail_server: MailServer, *, pipelining: bool
) -> None:
    recipients = [f"c{number}@ok.test" for number in range(250)]
    settings = Settings(
        helo_name="client.test", pipelining=pipelining, max_recipients_per_transaction=100
    )
    outcomes = await deliver(mail_server, letter(*recipients), settings=settings)

    assert {outcome.status.value for outcome in outcomes} == {"delivered"}
    assert {connection(outcome) for outcome in outcomes} == {1}
    transactions = [outcome.transaction for outcome in outcomes]
    assert transactions == [1] * 100 + [2] * 100 + [3] * 50
    copies = await mail_server.received(250)
    assert {copy.content for copy in copies} == {LETTER}
    assert sorted(to for copy in copies for to in copy.recipients) == sorted(recipients)


async def test_one_transaction_takes_250_recipients_where_it_may(mail_server: MailServer) -> None:
    recipients = [f"c{number}@ok.test" for number in range(250)]
    settings = Settings(helo_name="client.test", max_recipients_per_transaction=0)
    outcomes = await deliver(mail_server, letter(*recipients), settings=settings)

    assert {(outcome.status.value, outcome.transaction) for outcome in outcomes} == {
        ("delivered", 1)
    }
    copies = await mail_server.received(250)
    assert sorted(to for copy in copies for to in copy.recipients) == sorted(recipients)


# ---- many messages ------------------------------------------------------------------------------


def numbered(number: int) -> bytes:
    """A content of its own: some hundred octets to a few kilobytes, full of dots."""
    body = b"".join(b"%s%d\r\n" % (b"." * (line % 3), number) for line in range(number))
    return LETTER.replace(b"<1@", b"<%d@" % number) + body


async def test_500_messages_share_few_connections_and_arrive_once_each(
    mail_server: MailServer,
) -> None:
    contents = {f"c{number}@ok.test": numbered(number) for number in range(500)}
    engine = Engine(
        Settings(helo_name="client.test", protocol=mail_server.protocol),
        routes=[("*", [mail_server.route])],
    )
    async with engine:
        for recipient, content in contents.items():
            await engine.submit(letter(recipient, content=content))
    outcomes = [outcome async for outcome in engine.outcomes]

    assert Counter(outcome.recipient for outcome in outcomes) == Counter(list(contents))
    assert {outcome.status.value for outcome in outcomes} == {"delivered"}
    statistics = engine.statistics()
    assert statistics.transactions == 500
    # Some connections may have come too late to carry anything.
    used = {connection(outcome) for outcome in outcomes}
    assert len(used) <= statistics.connections_opened < 25
    # Each connection counts its own transactions, without a gap.
    pairs = {(connection(outcome), outcome.transaction) for outcome in outcomes}
    assert len(pairs) == 500
    longest = Counter(number for number, _ in pairs)
    assert pairs == {(number, 1 + n) for number in longest for n in range(longest[number])}
    copies = await mail_server.received(500, timeout=60)
    assert sorted(copy.recipients for copy in copies) == sorted((to,) for to in contents)
    wrong = [copy.recipients for copy in copies if copy.content != contents[copy.recipients[0]]]
    assert wrong == []


async def test_a_connection_carries_no_more_messages_than_it_may(mail_server: MailServer) -> None:
    settings = Settings(helo_name="client.test", max_connections=1, max_messages_per_connection=3)
    messages = [letter(f"c{number}@ok.test") for number in range(8)]
    outcomes = await deliver(mail_server, *messages, settings=settings)

    assert {outcome.status.value for outcome in outcomes} == {"delivered"}
    places = [(connection(outcome), outcome.transaction) for outcome in outcomes]
    assert sorted(places) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]
    assert len(await mail_server.received(8)) == 8


# ---- replies after the content that are about one recipient ---------------------------------------

EACH = ["c@ok.test", "full@ok.test", "d@ok.test"]


@pytest.mark.parametrize("mail_server", ["dovecot", "exim"], indirect=True)
@pytest.mark.parametrize("chunking", [True, False])
async def test_one_of_three_recipients_may_be_refused_after_the_content(
    mail_server: MailServer, *, chunking: bool
) -> None:
    settings = Settings(helo_name="client.test", chunking=chunking)
    outcomes = await deliver(mail_server, letter(*EACH), settings=settings)

    assert [outcome.status.value for outcome in outcomes] == ["delivered", "failed", "delivered"]
    record = outcomes[1].as_dict()
    assert (record["stage"], record["cause"], record["scope"]) == ("final", "reply", "recipient")
    assert (record["reply"]["code"], record["enhanced"]) == (552, "5.2.2")
    by = "lmtp" if mail_server.protocol == "lmtp" else "prdr"
    assert all(outcome.as_dict()["features"][by] for outcome in outcomes)
    copies = await mail_server.received(2)
    assert sorted(to for copy in copies for to in copy.recipients) == ["c@ok.test", "d@ok.test"]
    assert {copy.content for copy in copies} == {LETTER}


async def test_without_prdr_the_reply_to_the_content_is_for_all(exim_server: MailServer) -> None:
    settings = Settings(helo_name="client.test", prdr=False)
    outcomes = await deliver(exim_server, letter(*EACH), settings=settings)

    assert {outcome.status.value for outcome in outcomes} == {"delivered"}
    assert not any(outcome.features.prdr for outcome in outcomes)
    [copy] = await exim_server.received(3)
    assert sorted(copy.recipients) == sorted(EACH)


async def test_lmtp_recipients_are_deferred_after_the_content_one_by_one(
    dovecot_server: MailServer,
) -> None:
    message = letter("broken@ok.test", "c@ok.test", "nobody@ok.test", "full@ok.test", "d@ok.test")
    outcomes = await deliver(dovecot_server, message, letter("e@ok.test"))

    assert [(outcome.status.value, outcome.stage.value) for outcome in outcomes] == [
        ("deferred", "final"),
        ("delivered", "final"),
        ("failed", "rcpt"),
        ("failed", "final"),
        ("delivered", "final"),
        ("delivered", "final"),
    ]
    record = outcomes[0].as_dict()
    assert (record["cause"], record["scope"]) == ("reply", "recipient")
    assert (record["reply"]["code"], record["enhanced"]) == (451, "4.2.0")
    replies = [outcome.reply.text for outcome in outcomes if outcome.reply]
    names = ("broken", "c", "nobody", "full", "d", "e")
    for name, reply in zip(names, replies, strict=True):
        assert f"<{name}@ok.test>" in reply
    assert len(await dovecot_server.received(3)) == 3


# ---- LMTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunking", [True, False])
async def test_lmtp_goes_over_a_unix_socket(dovecot_server: MailServer, *, chunking: bool) -> None:
    settings = Settings(helo_name="client.test", chunking=chunking)
    route = f"unix:{dovecot_server.socket}"
    messages = [letter("c@ok.test", "nobody@ok.test"), letter("d@ok.test")]
    outcomes = await deliver(
        dovecot_server, *messages, settings=settings, transcripts=True, route=route
    )

    assert [outcome.status.value for outcome in outcomes] == ["delivered", "failed", "delivered"]
    for outcome in outcomes:
        record = outcome.as_dict()
        assert (record["host"], record["address"], record["port"]) == (route, None, None)
        assert (record["features"]["lmtp"], record["features"]["chunking"]) == (True, chunking)
    assert dialogue(outcomes[0])[:2] == ["LHLO client.test", f"MAIL FROM:<{SENDER}>"]
    copies = await dovecot_server.received(2)
    assert sorted(copy.recipients for copy in copies) == [("c@ok.test",), ("d@ok.test",)]
    assert {copy.content for copy in copies} == {LETTER}


async def test_ignorequota_is_not_asked_of_servers_that_do_not_offer_it(
    dovecot_server: MailServer,
) -> None:
    settings = Settings(helo_name="client.test", lmtp_ignore_quota=True)
    outcomes = await deliver(
        dovecot_server, letter("c@ok.test", "full@ok.test"), settings=settings, transcripts=True
    )

    assert "IGNOREQUOTA" not in dovecot_server.capabilities
    assert "RCPT TO:<full@ok.test>" in dialogue(outcomes[0])
    assert statuses(outcomes) == {"c@ok.test": "delivered", "full@ok.test": "failed"}


async def test_the_command_line_takes_a_unix_socket(dovecot_server: MailServer) -> None:
    options = ["--host", f"unix:{dovecot_server.socket}", "--set", "protocol=lmtp"]
    done = await send(*options, "--sender", SENDER, *EACH, stdin=LETTER)

    assert done.returncode == 69, done.stderr
    assert {record["recipient"]: record["status"] for record in records(done)} == {
        "c@ok.test": "delivered",
        "full@ok.test": "failed",
        "d@ok.test": "delivered",
    }
    assert len(await dovecot_server.received(2)) == 2


# ---- the command line ---------------------------------------------------------------------------


async def send(*arguments: str | Path, stdin: bytes = b"") -> CompletedProcess[bytes]:
    """Run `python -m engine send` as anybody would."""
    assert package.__file__ is not None
    return await trio.run_process(
        [sys.executable, "-m", "engine", "send", "--json", *map(str, arguments)],
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=Path(package.__file__).parents[1],
    )


def records(process: CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.parametrize(
    "mail_server", ["postfix", "exim", "opensmtpd", "dovecot", "haraka"], indirect=True
)
async def test_the_command_line_sends_a_message(mail_server: MailServer) -> None:
    options = ["--host", mail_server.route, "--set", f"protocol={mail_server.protocol}"]
    to = ["c@ok.test", "nobody@ok.test"]
    done = await send(*options, "--sender", SENDER, *to, stdin=LETTER)

    assert done.returncode == 69, done.stderr
    found = {record["recipient"]: record for record in records(done)}
    assert {name: record["status"] for name, record in found.items()} == {
        "c@ok.test": "delivered",
        "nobody@ok.test": "failed",
    }
    assert found["nobody@ok.test"]["reply"]["code"] == 550
    assert await mail_server.received() == [Received(SENDER, ("c@ok.test",), LETTER)]


@pytest.mark.parametrize("mail_server", ["aiosmtpd", "smtp-sink"], indirect=True)
async def test_the_command_line_sends_a_batch(mail_server: MailServer, tmp_path: Path) -> None:
    batch, file = tmp_path / "batch.jsonl", tmp_path / "letter.eml"
    file.write_bytes(LETTER.replace(b"\r\n", b"\n"))
    encoded = base64.b64encode(LETTER).decode()
    contents: list[dict[str, str]] = [
        {"message": "letter.eml"},
        {"content": LETTER.decode()},
        {"content_base64": encoded},
    ]
    lines = [
        json.dumps({"id": f"m{n}", "sender": SENDER, "recipients": [f"c{n}@ok.test"], **content})
        for n, content in enumerate(contents)
    ]
    batch.write_text("\n".join(lines))
    done = await send("--host", mail_server.route, "--batch", batch)

    assert done.returncode == 0, done.stderr
    assert {(r["message"], r["recipient"], r["status"]) for r in records(done)} == {
        (f"m{n}", f"c{n}@ok.test", "delivered") for n in range(3)
    }
    copies = await mail_server.received(3)
    assert sorted(copy.recipients for copy in copies) == [(f"c{n}@ok.test",) for n in range(3)]
    assert {copy.content for copy in copies} == {LETTER}
