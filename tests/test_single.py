import pytest

from engine.content import from_octets
from engine.errors import ConfigError
from engine.message import Message, Recipient
from engine.net.connector import Connector
from engine.outcome import Status
from engine.settings import Settings
from engine.single import SessionRefusedError, open_session
from engine.smtp.command import NOOP
from engine.testing.dns import FakeDns
from engine.testing.server import serve_script
from engine.testing.sink import open_sink

SETTINGS = Settings(helo_name="client.test")


def message(*recipients):
    content = from_octets(b"Subject: hello\r\n\r\nhi\r\n")
    return Message("m", None, tuple(map(Recipient.parse, recipients)), content)


async def test_a_session_delivers_and_tells_what_became_of_each_recipient():
    async with open_sink(keep=True) as sink:
        host = f"127.0.0.1:{sink.port}"
        async with open_session(Connector(), host, settings=SETTINGS) as session:
            first = await session.send(message("a@b.test", "reject@b.test"))
            second = await session.send(message("c@b.test"))
            assert session.offered.pipelining
            assert session.peer.port == sink.port

        assert {each.recipient: each.status for each in first + second} == {
            "a@b.test": Status.DELIVERED,
            "reject@b.test": Status.FAILED,
            "c@b.test": Status.DELIVERED,
        }
        assert sink.statistics().connections == 1


async def test_a_refusal_is_settled_although_there_is_no_other_host():
    async with open_sink() as sink:
        host = f"127.0.0.1:{sink.port}"
        async with open_session(Connector(), host, settings=SETTINGS) as session:
            (deferred,) = await session.send(message("defer@b.test"))
            (delivered,) = await session.send(message("a@b.test"))

    assert (deferred.status, deferred.reply.code) == (Status.DEFERRED, 451)
    assert delivered.status is Status.DELIVERED


async def test_the_first_answer_stands_where_an_engine_would_try_in_lockstep():
    script = """
        S: 220 mx.test
        C: EHLO client.test
        S: 250-mx.test
        S: 250 PIPELINING
        C: MAIL FROM:<>
        C: RCPT TO:<a@b.test>
        C: DATA
        S: 503 5.5.1 what?
        S: 503 5.5.1 what?
        S: 503 5.5.1 what?
    """
    async with serve_script(script) as server:
        host = f"127.0.0.1:{server.port}"
        async with open_session(Connector(), host, settings=SETTINGS) as session:
            (outcome,) = await session.send(message("a@b.test"))

    assert (outcome.status, outcome.reply.code) == (Status.FAILED, 503)


async def test_commands_of_ones_own_can_be_exchanged():
    async with open_sink() as sink:
        host = f"127.0.0.1:{sink.port}"
        async with open_session(Connector(), host, settings=SETTINGS) as session:
            (answer,) = await session.exchange(NOOP)

    assert answer.reply.code == 250


async def test_a_name_is_looked_up_with_the_given_resolver():
    resolver = FakeDns({"mx.test": {"A": ["127.0.0.1"]}})
    async with open_sink() as sink:
        host = f"mx.test:{sink.port}"
        async with open_session(Connector(), host, settings=SETTINGS, resolver=resolver) as session:
            assert (session.peer.host, session.peer.address) == ("mx.test", "127.0.0.1")


async def test_an_unknown_name_a_refused_connection_and_a_refused_greeting_say_why():
    with pytest.raises(SessionRefusedError, match=r"nowhere\.test"):
        async with open_session(Connector(), "nowhere.test", resolver=FakeDns({})):
            pass
    async with open_sink() as sink:
        port = sink.port
    with pytest.raises(SessionRefusedError, match="refused"):
        async with open_session(Connector(), f"127.0.0.1:{port}"):
            pass
    async with serve_script("S: 554 5.3.2 not today") as server:
        with pytest.raises(SessionRefusedError, match="not today"):
            async with open_session(Connector(), f"127.0.0.1:{server.port}"):
                pass


async def test_what_is_no_host_and_what_cannot_hold_together_is_refused_before_connecting():
    with pytest.raises(ValueError, match="port"):
        async with open_session(Connector(), "mx.test:0"):
            pass
    bad = Settings(tls="off", dane="require")
    with pytest.raises(ConfigError, match="dane"):
        async with open_session(Connector(), "mx.test", settings=bad):
            pass
    with pytest.raises(ConfigError, match='port: found "nope"'):
        async with open_session(Connector(), "mx.test", settings=Settings(port="nope")):
            pass
    with pytest.raises(ConfigError, match="tls_ca_file"):
        async with open_session(Connector(), "mx.test", settings=Settings(tls_ca_file="/none")):
            pass
