"""The servers themselves: each takes a message as it is sent, and refuses whom it should refuse."""

from __future__ import annotations

import os
import smtplib
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import dns.resolver
import pytest
import trio

from tests.certificates import make
from tests.servers import exim, keeper
from tests.servers.fixtures import MAIL_SERVERS
from tests.servers.mailbox import Received, take_fields, with_crlf
from tests.servers.provision import missing, superuser

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from engine.testing.link import Link
    from tests.servers.mail_server import MailServer
    from tests.servers.unbound import NameServer

    OpenLink = Callable[..., AbstractAsyncContextManager[Link]]

pytestmark = pytest.mark.servers

REFUSING = [name for name in MAIL_SERVERS if name != "smtp-sink"]
CONTENT = (
    b"Received: from elsewhere.test\r\n\tby b.test; Sun, 22 Nov 2026 10:00:00 +0000\r\n"
    b"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <1@b.test>\r\n"
    b"From: a@b.test\r\n"
    b"Subject: folded\r\n over two lines\r\n"
    b"\r\n"
    b".\r\n..dots\r\ntext \xc3\xa9\r\n\r\n"
)


def connect(server: MailServer) -> smtplib.SMTP:
    speak = smtplib.LMTP if server.protocol == "lmtp" else smtplib.SMTP
    client = speak(server.host, server.port, local_hostname="client.test")
    assert client.sock is not None
    client.sock.settimeout(20)
    return client


def send(
    server: MailServer, recipients: list[str], content: bytes = CONTENT, sender: str = "a@b.test"
) -> None:
    with connect(server) as client:
        assert client.sendmail(sender, recipients, content) == {}
        if server.protocol == "lmtp":  # each recipient has a reply, of which it heard the first
            assert {client.getreply()[0] for _ in recipients[1:]} <= {250}


def answer(server: MailServer, recipient: str) -> int:
    with connect(server) as client:
        client.ehlo()
        client.mail("a@b.test")
        return client.rcpt(recipient)[0]


async def test_a_message_arrives_octet_for_octet(mail_server: MailServer) -> None:
    await trio.to_thread.run_sync(send, mail_server, [f"c@{mail_server.accepts}"])
    [received] = await mail_server.received()
    assert received == Received("a@b.test", ("c@ok.test",), CONTENT)


async def test_the_null_reverse_path_is_read_back(mail_server: MailServer) -> None:
    await trio.to_thread.run_sync(send, mail_server, ["c@ok.test"], CONTENT, "")
    [received] = await mail_server.received()
    assert received == Received("", ("c@ok.test",), CONTENT)


@pytest.mark.parametrize("mail_server", ["aiosmtpd", "postfix", "exim", "haraka"], indirect=True)
async def test_addresses_beyond_ascii_are_read_back(mail_server: MailServer) -> None:
    def send_utf8() -> None:
        with connect(mail_server) as client:
            client.ehlo()
            client.command_encoding = "utf-8"
            client.mail("josé@b.test", ["SMTPUTF8", "BODY=8BITMIME"])
            assert client.rcpt("zoë@ok.test")[0] == 250
            assert client.data(CONTENT)[0] == 250

    await trio.to_thread.run_sync(send_utf8)
    assert await mail_server.received() == [Received("josé@b.test", ("zoë@ok.test",), CONTENT)]


async def test_the_capabilities_are_those_of_its_ehlo(mail_server: MailServer) -> None:
    def ehlo() -> frozenset[str]:
        with connect(mail_server) as client:
            lines = client.ehlo()[1].decode().splitlines()[1:]
            return frozenset(line.split()[0] for line in lines)

    assert await trio.to_thread.run_sync(ehlo) == mail_server.capabilities


@pytest.mark.parametrize("mail_server", REFUSING, indirect=True)
async def test_the_refused_the_deferred_and_strangers_are_told_so(mail_server: MailServer) -> None:
    for recipient, code in (
        (mail_server.refused, 550),
        (mail_server.deferred, 451),
        ("c@elsewhere.test", {"postfix": 554}.get(mail_server.name, 550)),
    ):
        assert recipient is not None
        assert await trio.to_thread.run_sync(answer, mail_server, recipient) == code


async def test_many_recipients_are_all_reached(mail_server: MailServer) -> None:
    recipients = [f"c{number}@ok.test" for number in range(250)]
    await trio.to_thread.run_sync(send, mail_server, recipients)
    copies = await mail_server.received(len(recipients))
    assert {copy.content for copy in copies} == {CONTENT}
    assert sorted(name for copy in copies for name in copy.recipients) == sorted(recipients)


async def test_thirty_megabytes_are_accepted(mail_server: MailServer) -> None:
    line = b"0123456789abcdef" * 4 + b"\r\n"
    content = CONTENT + line * (30 * 1024 * 1024 // len(line))
    await trio.to_thread.run_sync(send, mail_server, ["c@ok.test"], content)
    [received] = await mail_server.received()
    assert received.content == content
    mail_server.clear()


async def test_messages_on_one_connection_are_stored_one_by_one(mail_server: MailServer) -> None:
    def send_some() -> None:
        with connect(mail_server) as client:
            for number in range(25):
                client.sendmail("a@b.test", [f"c{number}@ok.test"], CONTENT)

    await trio.to_thread.run_sync(send_some)
    assert len(await mail_server.received(25)) == 25


async def test_a_mailbox_starts_empty(mail_server: MailServer) -> None:
    with pytest.raises(TimeoutError, match="stored mail for 0 recipients"):
        await mail_server.received(timeout=0.0)


async def test_unbound_answers_for_the_records_it_was_given(
    name_server: Callable[[str], NameServer],
) -> None:
    server = name_server("ok.test. IN MX 10 mx.ok.test.\nmx.ok.test. IN A 127.0.0.1")
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [server.host]
    resolver.port = server.port

    def lookups() -> tuple[str, str]:
        exchange = resolver.resolve("ok.test", "MX")[0].exchange.to_text()
        return exchange, resolver.resolve(exchange, "A")[0].address

    assert await trio.to_thread.run_sync(lookups) == ("mx.ok.test.", "127.0.0.1")
    with pytest.raises(dns.resolver.NXDOMAIN):
        await trio.to_thread.run_sync(resolver.resolve, "nobody.test", "MX")


async def test_exim_runs_at_the_end_of_a_link(open_link: OpenLink, exim_server: MailServer) -> None:
    async with open_link(one_way=0.0) as link:
        with exim.start(link.far) as server:
            assert server.host == link.far.address
            script = (
                "import smtplib, sys; print(smtplib.SMTP(sys.argv[1], int(sys.argv[2])).noop())"
            )
            words = [sys.executable, "-c", script, server.host, str(server.port)]
            done = await link.near.run(*words, capture_stdout=True)
            assert done.stdout == b"(250, b'OK')\n"
            with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
                smtplib.SMTP(server.host, server.port, timeout=0.2)


def test_exim_offers_tls_when_it_has_a_certificate(exim_server: MailServer) -> None:
    authority = make("Authority", is_ca=True)
    context = ssl.create_default_context(cadata=authority.pem.decode("ascii"))
    with exim.start(chain=[make("exim.test", authority, names=["127.0.0.1"])]) as server:
        assert server.tls_port is not None
        assert server.capabilities - exim_server.capabilities == {"STARTTLS"}
        with connect(server) as client:
            client.ehlo()
            assert client.has_extn("STARTTLS")
            assert client.starttls(context=context)[0] == 220
            assert client.noop()[0] == 250
        with smtplib.SMTP_SSL(server.host, server.tls_port, "c.test", context=context) as client:
            assert client.noop()[0] == 250
    assert exim_server.tls_port is None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("ends_itself", [True, False])
def test_the_keeper_ends_orphans_that_left_its_session(
    tmp_path: Path, *, ends_itself: bool
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    orphan = f"setsid sh -c 'echo $$ > {folder}/pid; echo; exec sleep 60' &"
    script = orphan + (" sleep 0.05" if ends_itself else " exec sleep 60")
    with subprocess.Popen(
        [sys.executable, keeper.__file__, folder, "/bin/sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        pid = int((folder / "pid").read_text())
        assert alive(pid)
        if not ends_itself:
            process.stdin.close()
        assert process.wait(10) == (1 if ends_itself else 0)
    assert not alive(pid)
    assert folder.exists() == ends_itself


def test_only_the_fields_of_the_server_are_removed() -> None:
    stored = b"Received: from a\n by b\nReceived: from c\n\nbody\n"
    assert take_fields(stored, ["Received"]) == (["from a\n by b"], b"Received: from c\n\nbody\n")
    with pytest.raises(ValueError, match="expected the field Return-Path"):
        take_fields(stored, ["Return-Path"])


def test_line_ends_are_those_of_the_wire() -> None:
    assert with_crlf(b"a\nb\r\nc\n") == b"a\r\nb\r\nc\r\n"


def test_a_missing_server_skips_here_and_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_REQUIRE_SERVERS", raising=False)
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception, match="no exim4; get them with: sudo bash"):
        missing("no exim4")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no exim4"):
        missing("no exim4")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match="Postfix has to be started by root"):
        superuser("Postfix")
