"""The handshake and its judgement, against servers in memory that do well or badly."""

from __future__ import annotations

import contextlib
import pickle
import ssl
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from engine.net import pkix
from engine.net.stream import SocketStream
from engine.net.tls import TlsClient, _judge
from engine.net.tls_errors import TlsFailed, Unverified
from engine.net.tls_material import TlsMaterial
from engine.net.tls_stream import TlsStream
from engine.outcome import Cause, Peer, Scope, TlsFacts
from engine.security import TlsDemand, TlsLevel
from engine.smtp.stages import Stage
from engine.testing.sink import open_sink
from tests.certificates import make, rsa_key, server_context, write_chain
from tests.net.streams import memory_pair

NAME = "mx.example.test"
PEER = Peer(NAME, "192.0.2.1", 25)
ROOT = make("root", is_ca=True)
INTER = make("inter", ROOT, is_ca=True)
LEAF = make("leaf", INTER, names=[NAME])
CHAIN = [LEAF, INTER]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

OPPORTUNISTIC = TlsDemand(sni=NAME)
REQUIRE = TlsDemand(TlsLevel.REQUIRE, "required", sni=NAME)
VERIFY = TlsDemand(TlsLevel.VERIFY, "required", (NAME,), NAME)

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


def dane(*records, names=(NAME,)):
    return TlsDemand(TlsLevel.VERIFY, "dane", names, NAME, records)


@pytest.fixture
def material(tmp_path):
    """Trust the root, and nobody else."""
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    return TlsMaterial(ca_file=str(tmp_path / "ca.pem"))


class Server:
    """A TLS server over memory; each `connect` is a connection to it."""

    def __init__(self, nursery, chain=CHAIN, **options):
        self.context = chain if isinstance(chain, ssl.SSLContext) else None
        self.context = self.context or server_context(chain, **options)
        self.transports = []
        self.received = []
        self._nursery = nursery

    def connect(self):
        ours, theirs = memory_pair()
        self.transports.append(ours)
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, transport):
        stream = TlsStream(transport, partial(self.context.wrap_bio, server_side=True))
        with contextlib.suppress(ssl.SSLError, trio.BrokenResourceError):
            await stream.handshake()
            while octets := await stream.receive_some():
                self.received.append(octets)
                await stream.send_all(b"250 ok\r\n")
        stream.close()


async def start(server, demand, material, client=None, **options):
    """Start TLS and say hello; return what came of it."""
    client = client or TlsClient()
    options = {"peer": PEER, "seconds": 10} | options
    found = await client.start(server.connect(), demand, material, **options)
    await found.stream.send_all(b"EHLO a\r\n")
    assert await found.stream.receive_some() == b"250 ok\r\n"
    return found


async def fail(server, demand, material, client=None, **options):
    """Start TLS in vain; return the failure, with the connection closed."""
    with pytest.raises(TlsFailed) as info:
        await start(server, demand, material, client, **options)
    assert server.transports[-1].is_closed
    assert server.received == []
    failure = info.value
    assert failure.stage is Stage.TLS
    assert failure.text.startswith(f"start TLS with {PEER}: ")
    assert failure.text.isprintable()
    return failure


# -- what is reached ----------------------------------------------------------------------------


@each_version
@pytest.mark.parametrize("demand", [OPPORTUNISTIC, REQUIRE])
async def test_any_certificate_does_where_none_is_demanded(nursery, version, demand):
    server = Server(nursery, [make("s", key=rsa_key(1024), days=(-9, -1))], version=version)
    found = await start(server, demand, TlsMaterial())
    assert found.facts == TlsFacts(
        version.name.replace("v1_", "v1."),
        found.stream.tls.cipher()[0],
        "no",
        demand.policy,
    )
    assert found.peer.name is None
    assert not found.peer.is_resumed


@each_version
@pytest.mark.parametrize("demand", [OPPORTUNISTIC, REQUIRE])
@pytest.mark.parametrize(
    ("chain", "verified"),
    [(CHAIN, "pkix"), ([make("w", INTER, names=["mx.other.test"]), INTER], "no"), ([LEAF], "no")],
)
async def test_what_a_certificate_is_worth_is_told_where_any_will_do(
    nursery, material, version, demand, chain, verified
):
    client, server = TlsClient(), Server(nursery, chain, version=version)
    for _ in range(2):  # it is found out once
        found = await start(server, demand, material, client, resumes=False)
        assert (found.facts.verified, found.facts.policy) == (verified, demand.policy)


async def test_authorities_that_cannot_be_read_matter_to_nobody_who_needs_none(
    nursery, monkeypatch
):
    def unreadable(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pkix, "load_anchors", unreadable)
    found = await start(Server(nursery), OPPORTUNISTIC, TlsMaterial())
    assert found.facts.verified == "no"


@each_version
async def test_a_good_chain_and_name_are_verified(nursery, material, version):
    server = Server(nursery, version=version)
    found = await start(server, VERIFY, material)
    assert found.facts.verified == "pkix"
    assert found.facts.policy == "required"
    assert found.peer.name == NAME
    assert found.peer.certificate == LEAF.der
    assert found.peer.chain == (LEAF.der, INTER.der)


@each_version
async def test_one_of_several_names_is_enough(nursery, material, version):
    demand = replace(VERIFY, names=("example.test", NAME), policy="mta-sts")
    found = await start(Server(nursery, version=version), demand, material)
    assert found.peer.name == NAME
    assert found.facts.policy == "mta-sts"


@pytest.mark.parametrize("usage", [2, 3])
@each_version
async def test_a_tlsa_record_verifies_without_any_authority_of_ours(nursery, usage, version):
    record = (LEAF if usage == 3 else INTER).tlsa(usage, 1, 1)
    found = await start(Server(nursery, version=version), dane(record), TlsMaterial())
    assert found.facts.verified == "dane"
    assert found.facts.policy == "dane"
    assert found.peer.record == record
    assert found.peer.name == (NAME if usage == 2 else None)


async def test_records_bind_even_where_little_else_is_demanded(nursery):
    demand = replace(OPPORTUNISTIC, tlsa=(ROOT.tlsa(3, 1, 1),))
    failure = await fail(Server(nursery), demand, TlsMaterial())
    assert failure.result == "tlsa-invalid"


async def test_the_server_is_asked_for_by_name(nursery):
    asked = []
    context = server_context(CHAIN)
    context.sni_callback = lambda tls, name, _: asked.append(name)
    server = Server(nursery, context)
    await start(server, OPPORTUNISTIC, TlsMaterial())
    await start(server, replace(OPPORTUNISTIC, sni=None), TlsMaterial())
    await start(server, replace(OPPORTUNISTIC, sni="127.0.0.1"), TlsMaterial())
    assert asked == [NAME, None, None]


@each_version
async def test_our_certificate_is_shown_to_who_asks_for_it(nursery, tmp_path, version):
    ours = make("client.test", ROOT)
    certificate, key = write_chain(tmp_path, [ours])
    context = server_context(CHAIN, version=version)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ROOT.pem.decode())
    server = Server(nursery, context)
    material = TlsMaterial(certificate=str(certificate), private_key=str(key))
    await start(server, OPPORTUNISTIC, material)


async def test_ciphers_and_versions_are_as_set(nursery):
    server = Server(nursery, version=ssl.TLSVersion.TLSv1_2)
    material = TlsMaterial(ciphers="ECDHE-ECDSA-AES128-SHA")
    assert (await start(server, OPPORTUNISTIC, material)).facts.cipher == "ECDHE-ECDSA-AES128-SHA"
    server.received.clear()
    failure = await fail(server, OPPORTUNISTIC, TlsMaterial(min_version="1.3"))
    assert failure.cause is Cause.TLS
    assert failure.clear_may_help


# -- what is refused ----------------------------------------------------------------------------

_STRANGER = make("root", is_ca=True)
_WANTING = {
    "expired": ([make("e", INTER, names=[NAME], days=(-9, -1)), INTER], "certificate-expired"),
    "not yet": ([make("n", INTER, names=[NAME], days=(1, 9)), INTER], "certificate-not-trusted"),
    "wrong name": ([make("w", INTER, names=["x.test"]), INTER], "certificate-host-mismatch"),
    "common name": ([make(NAME, INTER), INTER], "certificate-host-mismatch"),
    "address": ([make("a", INTER, names=["192.0.2.1"]), INTER], "certificate-host-mismatch"),
    "self-signed": ([make("s", names=[NAME])], "certificate-not-trusted"),
    "no intermediate": ([LEAF], "certificate-not-trusted"),
    "stranger": ([make("f", _STRANGER, names=[NAME]), _STRANGER], "certificate-not-trusted"),
    "weak": ([make("k", INTER, names=[NAME], key=rsa_key(1024)), INTER], "certificate-not-trusted"),
}


@pytest.mark.parametrize("what", _WANTING)
@each_version
async def test_a_certificate_found_wanting_is_refused_and_clear_is_no_help(
    nursery, material, what, version
):
    chain, result = _WANTING[what]
    server = Server(nursery, chain, version=version)
    failure = await fail(server, VERIFY, material)
    assert failure.result == result
    assert failure.cause is Cause.TLS
    assert failure.scope is Scope.HOST
    assert not failure.clear_may_help
    # Where nothing is demanded it does.
    await start(server, REQUIRE, material)


@pytest.mark.parametrize(
    ("accepted", "chain"),
    [
        ("192.0.2.1", [make("a", INTER, names=["192.0.2.1"]), INTER]),
        (NAME, [make("*", INTER, names=["*.example.test"]), INTER]),
    ],
)
async def test_addresses_and_wildcards_are_names_too(nursery, material, accepted, chain):
    server = Server(nursery, chain)
    assert (await start(server, replace(VERIFY, names=(accepted,)), material)).peer.name == accepted


async def test_a_chain_is_not_trusted_because_its_record_would_match(nursery, material):
    """Each way of verifying is held to its own."""
    server = Server(nursery, [make("s", names=[NAME])])
    await fail(server, VERIFY, material)
    server = Server(nursery)
    await fail(server, dane(_STRANGER.tlsa(3, 1, 1)), material)


class Nobody:
    """A handshake by a cipher without certificates, which Python's contexts do not even offer."""

    session_reused = False

    def get_unverified_chain(self):
        return ()

    def getpeercert(self, binary_form):
        return None


@pytest.mark.parametrize("demand", [VERIFY, dane(ROOT.tlsa(2, 0, 0))])
def test_a_peer_without_a_certificate_is_nobody(demand):
    with pytest.raises(Unverified, match="has no certificate"):
        _judge(demand, Nobody(), None)


async def test_the_host_of_a_failed_judgement_has_not_seen_our_last_flight(nursery):
    server = Server(nursery)
    await fail(server, dane(_STRANGER.tlsa(3, 1, 1)), TlsMaterial())
    assert len(server.transports[0].sent) == 1  # the ClientHello


@pytest.mark.parametrize(
    "demand", [TlsDemand(TlsLevel.OFF), TlsDemand(TlsLevel.VERIFY, "required")]
)
async def test_a_demand_without_sense_is_an_error_of_ours(demand):
    ours, _ = memory_pair()
    with pytest.raises(ValueError, match="allowed are"):
        await TlsClient().start(ours, demand, TlsMaterial(), peer=PEER, seconds=1)
    assert ours.is_closed


async def test_files_that_cannot_be_used_are_our_own_fault(nursery, tmp_path):
    server = Server(nursery)
    material = TlsMaterial(ca_file=str(tmp_path / "none.pem"))
    failure = await fail(server, VERIFY, material)
    assert (failure.cause, failure.scope, failure.errno) == (Cause.CONFIG, Scope.LOCAL, 2)
    assert not failure.clear_may_help
    assert failure.result is None
    server.received.clear()
    (tmp_path / "none.pem").write_bytes(b"junk")
    failure = await fail(server, VERIFY, material)
    assert (failure.cause, failure.scope, failure.errno) == (Cause.CONFIG, Scope.LOCAL, None)


# -- hostile and broken peers -------------------------------------------------------------------


async def begin(answer, demand=OPPORTUNISTIC, seconds=30.0):
    """Start TLS with a peer that answers as told; return the failure."""
    ours, theirs = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, theirs)
        with pytest.raises(TlsFailed) as info:
            await TlsClient().start(ours, demand, TlsMaterial(), peer=PEER, seconds=seconds)
        nursery.cancel_scope.cancel()
    assert ours.is_closed
    assert info.value.text.isprintable()
    return info.value


async def test_a_peer_that_speaks_in_clear_is_quoted_nowhere():
    async def answer(stream):
        await stream.receive_some()
        await stream.send_all(b"454 4.3.0 no TLS \x1b[2Jtoday\r\n")

    failure = await begin(answer)
    assert failure.reason == "the peer does not answer with TLS (wrong version number)"
    assert failure.cause is Cause.TLS
    assert failure.clear_may_help


async def test_a_peer_that_hangs_up():
    async def answer(stream):
        await stream.receive_some()
        await stream.send_eof()

    failure = await begin(answer)
    assert (failure.cause, failure.result) == (Cause.TLS, "validation-failure")
    assert failure.clear_may_help


async def test_a_peer_that_is_gone():
    async def answer(stream):
        stream.close()

    failure = await begin(answer)
    assert failure.cause is Cause.TLS
    assert failure.clear_may_help


async def test_a_peer_that_is_silent(autojump_clock):
    async def answer(_):
        await trio.sleep_forever()

    failure = await begin(answer, seconds=300)
    assert trio.current_time() == pytest.approx(300, abs=1)
    assert failure.reason == "timed out after 300 s"
    assert (failure.cause, failure.result) == (Cause.TIMEOUT, None)
    assert failure.clear_may_help


async def test_one_deadline_holds_for_a_handshake_that_drips(autojump_clock):
    context = server_context(CHAIN)

    async def drip(stream):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(await stream.receive_some())
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        for octet in outgoing.read():
            await trio.sleep(1)
            await stream.send_all(bytes([octet]))

    failure = await begin(drip, seconds=120)
    assert trio.current_time() == pytest.approx(120, abs=1)
    assert failure.cause is Cause.TIMEOUT


async def test_a_peer_that_drips_in_time_is_spoken_to(nursery, autojump_clock):
    server = Server(nursery)
    transport = server.connect()
    transport.at_once = 1
    found = await TlsClient().start(transport, OPPORTUNISTIC, TlsMaterial(), peer=PEER, seconds=120)
    assert found.facts.version == "TLSv1.3"


async def test_cancelled_it_leaves_the_transport_closed():
    ours, _ = memory_pair()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    TlsClient().start, ours, OPPORTUNISTIC, TlsMaterial(), peer=PEER, seconds=10
                )
            )
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert ours.is_closed


@given(octets=st.binary(max_size=200), cut=st.integers(1, 50))
async def test_no_octets_crash_it(octets, cut):
    async def answer(stream):
        for start in range(0, len(octets), cut):
            await stream.send_all(octets[start : start + cut])
        await stream.send_eof()

    failure = await begin(answer)
    assert failure.cause is Cause.TLS


# -- over real sockets --------------------------------------------------------------------------


async def test_the_shipped_sink_is_spoken_to_after_starttls(material):
    client = TlsClient()
    async with open_sink(keep=True, tls=server_context(CHAIN)) as sink:
        for is_resumed in (False, True):
            stream = await trio.open_tcp_stream(sink.host, sink.port)
            stream = SocketStream(stream.socket._sock)
            await stream.receive_some()
            for command in (b"EHLO client.test\r\n", b"STARTTLS\r\n"):
                await stream.send_all(command)
                reply = await stream.receive_some()
            assert reply.startswith(b"220")
            tls = await client.start(stream, VERIFY, material, peer=PEER, seconds=10)
            assert tls.peer.is_resumed is is_resumed
            for command, code in (
                (b"EHLO client.test\r\n", b"250"),
                (b"MAIL FROM:<>\r\n", b"250"),
                (b"RCPT TO:<a@b.test>\r\n", b"250"),
                (b"DATA\r\n", b"354"),
                (b"Subject: x\r\n\r\nx\r\n.\r\n", b"250"),
                (b"QUIT\r\n", b"221"),
            ):
                await tls.stream.send_all(command)
                assert (await tls.stream.receive_some()).startswith(code)
            await tls.stream.aclose()
        assert len(sink.messages) == 2


# -- resumption ---------------------------------------------------------------------------------


@each_version
@pytest.mark.parametrize(
    ("demand", "verified"),
    [
        (OPPORTUNISTIC, "pkix"),
        (VERIFY, "pkix"),
        (dane(LEAF.tlsa(3, 1, 1)), "dane"),
        (dane(ROOT.tlsa(2, 0, 1)), "dane"),
    ],
)
async def test_a_session_is_resumed_with_the_verdict_it_was_kept_with(
    nursery, material, version, demand, verified
):
    client, server = TlsClient(), Server(nursery, [*CHAIN, ROOT], version=version)
    first = await start(server, demand, material, client)
    for _ in range(3):
        again = await start(server, demand, material, client)
        assert again.peer.is_resumed
        assert again.facts == first.facts
        assert again.facts.verified == verified
        assert (again.peer.name, again.peer.record) == (first.peer.name, first.peer.record)
        assert again.peer.certificate == LEAF.der
        assert again.peer.chain == ()
    assert not first.peer.is_resumed


@each_version
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (OPPORTUNISTIC, VERIFY),
        (VERIFY, replace(VERIFY, policy="mta-sts")),
        (VERIFY, replace(VERIFY, names=(NAME, "example.test"))),
        (dane(LEAF.tlsa(3, 1, 1)), dane(LEAF.tlsa(3, 0, 1))),
        (OPPORTUNISTIC, dane(LEAF.tlsa(3, 1, 1))),
        (dane(LEAF.tlsa(3, 1, 1)), VERIFY),
    ],
)
async def test_a_changed_demand_resumes_nothing(nursery, material, version, first, second):
    client, server = TlsClient(), Server(nursery, version=version)
    await start(server, first, material, client)
    assert not (await start(server, second, material, client)).peer.is_resumed


@each_version
async def test_what_was_never_verified_is_never_taken_for_it(nursery, material, version):
    """A session of an impostor's, made where nothing was demanded, opens no door."""
    client, server = TlsClient(), Server(nursery, [make("s", names=[NAME])], version=version)
    await start(server, OPPORTUNISTIC, material, client)
    server.received.clear()
    await fail(server, VERIFY, material, client)


@each_version
async def test_another_host_or_address_resumes_nothing(nursery, version):
    client, server = TlsClient(), Server(nursery, version=version)
    await start(server, OPPORTUNISTIC, TlsMaterial(), client)
    for other in (Peer("mx2.test", "192.0.2.1", 25), Peer(NAME, "192.0.2.2", 25)):
        found = await start(server, OPPORTUNISTIC, TlsMaterial(), client, peer=other)
        assert not found.peer.is_resumed


@each_version
async def test_who_must_see_the_certificate_itself_resumes_nothing(nursery, material, version):
    client, server = TlsClient(), Server(nursery, version=version)
    fresh = replace(VERIFY, is_fresh=True)
    for _ in range(2):
        assert not (await start(server, fresh, material, client)).peer.is_resumed
    assert len(client.sessions) == 0


@each_version
async def test_resumption_can_be_off(nursery, version):
    client, server = TlsClient(), Server(nursery, version=version)
    await start(server, OPPORTUNISTIC, TlsMaterial(), client)
    found = await start(server, OPPORTUNISTIC, TlsMaterial(), client, resumes=False)
    assert not found.peer.is_resumed


@each_version
async def test_a_server_that_has_forgotten_makes_a_full_handshake_and_is_judged(
    nursery, material, version
):
    client = TlsClient()
    await start(Server(nursery, version=version), VERIFY, material, client)
    found = await start(Server(nursery, version=version), VERIFY, material, client)
    assert not found.peer.is_resumed
    assert found.facts.verified == "pkix"
    assert found.peer.certificate == LEAF.der


@each_version
@pytest.mark.parametrize(
    "demand",
    [VERIFY, dane(LEAF.tlsa(3, 1, 1)), dane(INTER.tlsa(2, 0, 1)), dane(ROOT.tlsa(2, 0, 0))],
)
@pytest.mark.parametrize(
    "impostor",
    [
        [make("s", names=[NAME])],
        [make("w", INTER, names=["elsewhere.test"]), INTER],  # by an authority we trust
    ],
    ids=["self-signed", "of another name"],
)
async def test_an_impostor_gains_nothing_by_a_session_of_ours_with_the_host(
    nursery, material, version, demand, impostor
):
    client = TlsClient()
    await start(Server(nursery, version=version), demand, material, client)
    assert len(client.sessions) == 1
    await fail(Server(nursery, impostor, version=version), demand, material, client)
    assert len(client.sessions) == 0


async def test_a_session_that_was_offered_in_vain_is_forgotten(nursery):
    client, server = TlsClient(), Server(nursery)
    await start(server, OPPORTUNISTIC, TlsMaterial(), client)
    assert len(client.sessions) == 1
    ours, theirs = memory_pair()
    await theirs.send_eof()
    with pytest.raises(TlsFailed):
        await client.start(ours, OPPORTUNISTIC, TlsMaterial(), peer=PEER, seconds=1)
    assert len(client.sessions) == 0


async def test_a_verified_session_ends_with_its_certificate(nursery, material, autojump_clock):
    short = make("short", INTER, names=[NAME], days=(-1, 600 / 86400))
    client, server = TlsClient(), Server(nursery, [short, INTER, ROOT])
    demands = VERIFY, dane(ROOT.tlsa(2, 0, 1)), dane(short.tlsa(3, 1, 1)), OPPORTUNISTIC
    for demand in demands:
        await start(server, demand, material, client)
    await trio.sleep(500)
    for demand in demands:
        assert (await start(server, demand, material, client)).peer.is_resumed
    await trio.sleep(110)
    resumed = [
        (await start(server, demand, material, client)).peer.is_resumed for demand in demands
    ]
    # DANE-EE(3) takes no notice of dates (RFC 7672 §3.1.1).
    assert resumed == [False, False, True, False]


async def test_what_a_certificate_is_worth_is_not_remembered_beyond_its_end(
    nursery, material, autojump_clock, monkeypatch
):
    asked = []
    verify = TlsClient.would_verify

    async def would_verify(self, *args):
        asked.append(trio.current_time())
        return await verify(self, *args)

    monkeypatch.setattr(TlsClient, "would_verify", would_verify)
    short = make("short", INTER, names=[NAME], days=(-1, 600 / 86400))
    client, server = TlsClient(), Server(nursery, [short, INTER, ROOT])
    for seconds, times in [(0, 1), (500, 1), (110, 2)]:
        await trio.sleep(seconds)
        await start(server, OPPORTUNISTIC, material, client, resumes=False)
        assert len(asked) == times


async def test_a_session_is_kept_only_once_the_ticket_has_come(nursery):
    client, server = TlsClient(), Server(nursery)
    found = await client.start(
        server.connect(), OPPORTUNISTIC, TlsMaterial(), peer=PEER, seconds=10
    )
    assert len(client.sessions) == 0
    await found.stream.send_all(b"EHLO a\r\n")
    await found.stream.receive_some()
    assert len(client.sessions) == 1


async def test_pythons_sessions_cannot_be_written_down(nursery):
    """Why they are not among the hints, which outlive the run."""
    found = await start(Server(nursery), OPPORTUNISTIC, TlsMaterial())
    with pytest.raises(TypeError):
        pickle.dumps(found.stream.tls.session)


# -- would verify -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [None, *_WANTING])
async def test_what_would_be_refused_can_be_asked_of_what_was_not(material, what):
    chain, result = _WANTING[what] if what else (CHAIN, None)
    flaw = await TlsClient().would_verify([each.der for each in chain], [NAME], material)
    assert (flaw and flaw.result) == result


async def test_no_chain_would_not_verify(material):
    flaw = await TlsClient().would_verify([], [NAME], material)
    assert flaw.text == "the peer has no certificate"


async def test_authorities_are_read_once_an_hour(tmp_path, autojump_clock):
    file = tmp_path / "ca.pem"
    file.write_bytes(ROOT.pem)
    client, material = TlsClient(), TlsMaterial(ca_file=str(file))
    chain = [each.der for each in CHAIN]
    assert await client.would_verify(chain, [NAME], material) is None
    file.write_bytes(_STRANGER.pem)
    assert await client.would_verify(chain, [NAME], material) is None
    await trio.sleep(3700)
    assert await client.would_verify(chain, [NAME], material) is not None
