from __future__ import annotations

import dns.flags
import dns.message
import dns.rrset
import pytest
import trio

from engine.routing.nameservers import parse_server
from engine.routing.resolver import MxRecord
from engine.routing.stub import DnsResolver
from engine.security import Tlsa
from engine.testing.dns import FakeDns, _listen, serve_dns

ZONE = {
    "example.test": {"MX": ["20 MX2.example.test", "10 mx1.example.test."], "TXT": ["a b", "c"]},
    "mx1.example.test": {"A": ["192.0.2.1"], "AAAA": ["2001:DB8::1"]},
    "alias.test": {"CNAME": ["second.test"]},
    "second.test": {"CNAME": ["example.test"]},
    "astray.test": {"CNAME": ["gone.test"]},
    "nodata.test": {"CNAME": ["mx1.example.test"]},
    "circle.test": {"CNAME": ["circle.test"]},
    "closed.test": {"MX": ["0 ."]},
    "big.test": {"MX": [f"{number} a-rather-long-name-{number}.test" for number in range(200)]},
    "broken.test": {"MX": "SERVFAIL"},
    "refused.test": {"MX": "REFUSED"},
    "slow.test": {"MX": "TIMEOUT"},
    "_25._tcp.mx1.example.test": {"TLSA": ["3 1 1 " + "ab" * 32]},
}
FIRST_SERVER_ONLY = {"example.test": {"MX": ["10 first.test"]}, "broken.test": {"MX": "SERVFAIL"}}


@pytest.fixture
async def serve(nursery):
    """Return a function that serves a zone or a FakeDns and gives its address."""

    async def start(zone=ZONE, **options):
        async def run(task_status):
            await serve_dns(zone, task_status=task_status, **options)

        return await nursery.start(run)

    return start


async def test_mx_records_are_read(serve):
    resolver = DnsResolver([await serve()])

    answer = await resolver.mx("Example.TEST")

    assert answer.status == "ok"
    assert set(answer.records) == {
        MxRecord(20, "mx2.example.test"),
        MxRecord(10, "mx1.example.test"),
    }
    assert (answer.ttl, answer.authentic) == (300, False)
    assert (answer.canonical, answer.text) == ("example.test", "")


@pytest.mark.parametrize(
    ("name", "rdtype", "records"),
    [
        ("mx1.example.test", "A", ("192.0.2.1",)),
        ("mx1.example.test", "AAAA", ("2001:db8::1",)),
        ("alias.test", "CNAME", ("second.test",)),
        ("closed.test", "MX", (MxRecord(0, "."),)),
        ("_25._tcp.mx1.example.test", "TLSA", (Tlsa(3, 1, 1, b"\xab" * 32),)),
    ],
)
async def test_records_of_each_type(name, rdtype, records, serve):
    answer = await DnsResolver([await serve()]).query(name, rdtype)

    assert (answer.status, answer.records) == ("ok", records)


async def test_a_tlsa_record_that_is_malformed_is_read_and_leaves_the_others_readable(serve):
    held = [
        "3 1 1 abcd",
        "3 1 2 " + "ef" * 32,
        "3 1 1 " + "ab" * 32,
        "3 1 129 " + "ab" * 32,
        "3 1 255 ab",
    ]
    resolver = DnsResolver(
        [await serve(FakeDns({"_25._tcp.mx.test": {"TLSA": held}}, authentic=True))]
    )

    answer = await resolver.tlsa("_25._tcp.mx.test")

    assert answer.authentic
    assert {f"{u} {s} {m} {data.hex()}" for u, s, m, data in answer.records} == set(held)


async def test_a_server_that_does_not_know_edns_is_asked_without(nursery):
    asked = []

    async def respond(query):
        asked.append(query.edns)
        if query.edns < 0:
            return [answer_to(query).to_wire()]
        response = dns.message.Message(query.id)  # such servers leave even the question out
        response.flags = dns.flags.QR
        response.set_rcode(dns.rcode.FORMERR)
        return [response.to_wire()]

    resolver = DnsResolver([await nursery.start(serve_datagrams, respond)])

    assert (await resolver.mx("example.test")).records == (MxRecord(10, "mx.test"),)
    assert asked == [0, -1]


async def test_the_strings_of_a_txt_record_are_one_text(serve):
    long = 'v=STSv1; "x\\y"; ' + "z" * 300
    address = await serve({"t.test": {"TXT": [long, ""]}})

    answer = await DnsResolver([address]).query("t.test", "TXT")

    assert set(answer.records) == {long, ""}


@pytest.mark.parametrize(
    ("name", "status", "canonical"),
    [
        ("nowhere.test", "no-such-name", "nowhere.test"),
        ("mx1.example.test", "no-data", "mx1.example.test"),
        ("astray.test", "no-such-name", "gone.test"),
        ("nodata.test", "no-data", "mx1.example.test"),
    ],
)
@pytest.mark.parametrize("chase", [True, False])
async def test_what_is_not_there(name, status, canonical, chase, serve):
    address = await serve(FakeDns(ZONE, ttl=42), chase=chase)

    answer = await DnsResolver([address]).mx(name)

    assert (answer.status, answer.records) == (status, ())
    # RFC 2308 §5: for as long as the SOA record says.
    assert answer.ttl == 42
    assert answer.canonical == canonical


async def test_a_cname_chain_in_the_answer_is_followed(serve):
    fake = FakeDns(ZONE)

    answer = await DnsResolver([await serve(fake)]).mx("alias.test")

    assert len(answer.records) == 2
    assert answer.canonical == "example.test"
    assert fake.asked.total() == 1


async def test_a_cname_chain_that_leads_out_of_the_answer_is_asked_again(serve):
    fake = FakeDns(ZONE, authentic=True)

    answer = await DnsResolver([await serve(fake, chase=False)]).mx("alias.test")

    assert len(answer.records) == 2
    assert answer.canonical == "example.test"
    assert answer.authentic
    assert list(fake.asked) == [("alias.test", "MX"), ("second.test", "MX"), ("example.test", "MX")]


async def test_a_cname_circle_is_a_failure(serve):
    resolver = DnsResolver([await serve(chase=False)])

    assert (await resolver.mx("circle.test")).status == "failed"


async def test_the_ad_bit_is_passed_on(serve):
    resolver = DnsResolver([await serve(FakeDns(ZONE, authentic=True))])

    assert (await resolver.mx("example.test")).authentic
    assert (await resolver.mx("nowhere.test")).authentic


@pytest.mark.parametrize(
    ("trusted", "authentic"),
    [(None, True), (["127.0.0.1"], True), (["192.0.2.53", "::1"], False), ([], False)],
)
async def test_only_a_trusted_server_is_believed_that_an_answer_is_authentic(
    trusted, authentic, serve
):
    address = await serve(FakeDns(ZONE, authentic=True))
    resolver = DnsResolver([address], trusted=trusted)

    assert (await resolver.mx("example.test")).authentic is authentic


async def test_authenticity_is_that_of_the_whole_chain(serve):
    zone = {
        "in.test": {"CNAME": ["out.example"], "A": []},
        "out.example": {"CNAME": ["end.test"]},
        "end.test": {"A": ["192.0.2.1"]},
    }
    for chase in (True, False):
        address = await serve(FakeDns(zone, authentic=["test"]), chase=chase)
        resolver = DnsResolver([address])

        assert not (await resolver.query("in.test", "A")).authentic
        assert (await resolver.query("end.test", "A")).authentic


async def test_a_cname_alone_is_authentic_whatever_it_leads_to(serve):
    zone = {"in.test": {"CNAME": ["out.example"]}, "out.example": {"A": ["192.0.2.1"]}}
    resolver = DnsResolver([await serve(FakeDns(zone, authentic=["test"]))])

    assert not (await resolver.query("in.test", "A")).authentic
    answer = await resolver.cname("in.test")
    assert (answer.records, answer.authentic) == (("out.example",), True)


@pytest.mark.parametrize(("trusted", "is_asked"), [(None, True), ([], False)])
async def test_signatures_are_asked_for_only_where_their_verdict_is_believed(
    trusted, is_asked, nursery
):
    queries = []

    async def respond(query):
        queries.append(query)
        return [answer_to(query).to_wire()]

    address = await nursery.start(serve_datagrams, respond)

    await DnsResolver([address], trusted=trusted).mx("example.test")

    (query,) = queries
    assert bool(query.flags & dns.flags.AD) is is_asked
    assert bool(query.ednsflags & dns.flags.DO) is is_asked
    assert (query.edns, query.payload) == (0, 1232)


async def test_a_bogus_answer_is_a_failure_and_no_other_server_is_asked_behind_it(serve):
    """Who can break a lookup of the trusted server must not get another one to say "unsigned"."""
    trusted = await serve({"forged.test": {"MX": "BOGUS"}})
    other = FakeDns({"forged.test": {"MX": ["10 evil.test"]}})
    untrusted = await serve(other, host="127.0.0.2")
    resolver = DnsResolver([untrusted, trusted], trusted=["127.0.0.1"])

    answer = await resolver.mx("forged.test")

    assert (answer.status, answer.authentic) == ("failed", False)
    assert answer.text == f"{trusted} answered SERVFAIL (EDE 6)"
    assert not other.asked


async def test_two_trusted_servers_stand_in_for_each_other(serve):
    first = await serve({"example.test": {"MX": "SERVFAIL"}})
    second = FakeDns(ZONE, authentic=True)
    resolver = DnsResolver([first, await serve(second)])

    assert (await resolver.mx("example.test")).authentic


async def test_the_servers_of_the_system_are_sorted_by_trust_too(serve, tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\nnameserver 127.0.0.1\n")
    resolver = DnsResolver(resolv_conf=str(path))

    assert [server.address for server in await resolver._name_servers()] == ["127.0.0.1"]
    assert len(await DnsResolver(trusted=(), resolv_conf=str(path))._name_servers()) == 2


def test_what_is_trusted_is_an_address():
    with pytest.raises(ValueError, match=r"trusted name server 'ns\.test': allowed: an IP address"):
        DnsResolver(trusted=["ns.test"])


async def test_a_truncated_answer_is_fetched_by_tcp(serve):
    fake = FakeDns(ZONE)

    answer = await DnsResolver([await serve(fake)]).mx("big.test")

    assert len(answer.records) == 200
    assert fake.asked["big.test", "MX"] == 2


@pytest.mark.parametrize(
    ("name", "trouble"), [("broken.test", "SERVFAIL"), ("refused.test", "REFUSED")]
)
async def test_the_next_server_is_asked_after_trouble(name, trouble, serve):
    first, second = FakeDns(ZONE), FakeDns({name: {"MX": ["10 mx.test"]}})
    resolver = DnsResolver([await serve(first), await serve(second)])

    assert (await resolver.mx(name)).records == (MxRecord(10, "mx.test"),)
    assert (first.asked.total(), second.asked.total()) == (1, 1)


async def test_the_first_server_is_asked_first(serve):
    first, second = FakeDns(FIRST_SERVER_ONLY), FakeDns(ZONE)
    resolver = DnsResolver([await serve(first), await serve(second)])

    assert (await resolver.mx("example.test")).records == (MxRecord(10, "first.test"),)
    assert not second.asked


async def test_when_every_server_has_trouble_the_answer_names_them(serve):
    first, second = await serve(), await serve(FIRST_SERVER_ONLY)

    answer = await DnsResolver([first, second]).mx("broken.test")

    assert answer.status == "failed"
    assert answer.text == f"{first} answered SERVFAIL; {second} answered SERVFAIL"


async def test_a_server_that_does_not_answer_is_passed_over(serve):
    fake = FakeDns(ZONE)
    silent, good = await serve(fake), await serve({"slow.test": {"MX": ["10 mx.test"]}})

    answer = await DnsResolver([silent, good], timeout=0.6).mx("slow.test")

    assert answer.records == (MxRecord(10, "mx.test"),)
    assert fake.asked.total() == 1


async def test_a_silent_server_is_asked_again_until_the_time_is_over(serve):
    fake = FakeDns(ZONE)
    address = await serve(fake)
    started = trio.current_time()

    answer = await DnsResolver([address], timeout=0.24).mx("slow.test")

    assert answer.status == "failed"
    assert f"{address} did not answer in 0.08 s" in answer.text
    assert 2 <= fake.asked.total() <= 3
    assert trio.current_time() - started < 1


async def test_a_lost_datagram_is_sent_again(serve, nursery):
    received = []

    async def lose_the_first(query):
        received.append(query)
        return [] if len(received) == 1 else [answer_to(query).to_wire()]

    address = await nursery.start(serve_datagrams, lose_the_first)

    assert (await DnsResolver([address], timeout=0.6).mx("example.test")).status == "ok"
    assert len(received) == 2


async def test_a_port_where_nobody_listens_is_known_at_once(serve):
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as unused:
        await unused.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{unused.getsockname()[1]}"
    resolver = DnsResolver([closed, await serve()])

    with trio.fail_after(1):
        assert (await resolver.mx("example.test")).status == "ok"
    answer = await DnsResolver([closed]).mx("example.test")
    assert answer.text == f"{closed} cannot be reached: Connection refused"


def answer_to(query):
    """Return an answer that says `10 mx.test`, with recursion available."""
    response = dns.message.make_response(query, recursion_available=True)
    name = query.question[0].name
    response.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", "10 mx.test."))
    return response


async def serve_datagrams(respond, udp=None, *, task_status):
    """Answer each query with the datagrams that `respond` gives."""
    with udp or trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        if udp is None:
            await sock.bind(("127.0.0.1", 0))
        task_status.started(f"127.0.0.1:{sock.getsockname()[1]}")
        while True:
            wire, sender = await sock.recvfrom(65535)
            for datagram in await respond(dns.message.from_wire(wire)):
                await sock.sendto(datagram, sender)


async def test_eight_cnames_are_followed_and_no_more(nursery):
    async def respond(query):
        name = query.question[0].name
        number = int(name.labels[0])
        if number == 0:
            return [answer_to(query).to_wire()]
        response = dns.message.make_response(query, recursion_available=True)
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", f"{number - 1}.test."))
        return [response.to_wire()]

    resolver = DnsResolver([await nursery.start(serve_datagrams, respond)])

    answer = await resolver.mx("8.test")
    assert (answer.status, answer.canonical) == ("ok", "0.test")
    answer = await resolver.mx("9.test")
    assert (answer.status, answer.text) == ("failed", "more than 8 CNAMEs in a row")


async def test_the_query_wants_recursion_and_has_edns_and_the_ad_bit(nursery):
    queries = []

    async def respond(query):
        queries.append(query)
        return [answer_to(query).to_wire()]

    resolver = DnsResolver([await nursery.start(serve_datagrams, respond)])
    for _ in range(4):
        await resolver.mx("example.test")

    (first, *_) = queries
    assert first.flags == dns.flags.RD | dns.flags.AD
    assert (first.edns, first.payload) == (0, 1232)
    assert len({query.id for query in queries}) > 1


async def test_datagrams_that_answer_another_question_are_ignored(nursery):
    async def respond(query):
        wrong_id, right = answer_to(query), answer_to(query)
        wrong_id.id ^= 1
        wrong_name = answer_to(dns.message.make_query("other.test", "MX", id=query.id))
        return [b"", b"junk", wrong_id.to_wire(), wrong_name.to_wire(), right.to_wire()]

    resolver = DnsResolver([await nursery.start(serve_datagrams, respond)])

    assert (await resolver.mx("example.test")).records == (MxRecord(10, "mx.test"),)


async def test_a_referral_is_not_taken_for_no_data(nursery):
    async def respond(query):
        return [dns.message.make_response(query).to_wire()]

    answer = await DnsResolver([await nursery.start(serve_datagrams, respond)]).mx("example.test")

    assert answer.status == "failed"
    assert answer.text.endswith("does not look up names for us (no recursion)")


async def test_an_answer_beside_nxdomain_is_not_believed(nursery):
    async def respond(query):
        response = answer_to(query)
        response.set_rcode(dns.rcode.NXDOMAIN)
        return [response.to_wire()]

    answer = await DnsResolver([await nursery.start(serve_datagrams, respond)]).mx("example.test")

    assert answer.status == "failed"
    assert answer.text.endswith("gave an answer that cannot be read: AnswerForNXDOMAIN")


@pytest.mark.parametrize("octets", [b"", b"\0", b"\0\x05junk!", b"\0\xffshort"])
async def test_junk_over_tcp_is_a_failure(octets, nursery):
    async def respond(query):
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.TC
        return [response.to_wire()]

    async def serve_junk(stream):
        async with stream:
            await stream.receive_some()
            await stream.send_all(octets)

    udp, listeners = await _listen("127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve_junk, listeners)
    address = await nursery.start(serve_datagrams, respond, udp)

    answer = await DnsResolver([address]).mx("example.test")

    assert answer.status == "failed"
    assert answer.text.startswith(address)


@pytest.mark.parametrize("name", ["a..test", "a" * 64 + ".test", ("a" * 60 + ".") * 5])
async def test_what_is_no_domain_name_does_not_exist(name):
    answer = await DnsResolver(["192.0.2.53"]).mx(name)

    assert answer.status == "no-such-name"
    assert "is no domain name" in answer.text


@pytest.mark.parametrize(
    ("name", "rdtype", "status", "records"),
    [
        ("localhost", "A", "ok", ("127.0.0.1",)),
        ("Mail.LOCALHOST", "AAAA", "ok", ("::1",)),
        ("localhost", "MX", "no-data", ()),
    ],
)
async def test_localhost_is_not_asked_for(name, rdtype, status, records):
    answer = await DnsResolver(["192.0.2.53"]).query(name, rdtype)

    assert (answer.status, answer.records) == (status, records)


async def test_no_more_lookups_are_in_flight_than_allowed(serve):
    fake = FakeDns({f"x{number}.test": {"MX": "TIMEOUT"} for number in range(20)})
    resolver = DnsResolver([await serve(fake)], at_once=3)

    async with trio.open_nursery() as asking:
        for number in range(20):
            asking.start_soon(resolver.mx, f"x{number}.test")
        while fake.asked.total() < 3:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.01)
        asking.cancel_scope.cancel()

    assert fake.asked.total() == 3


async def test_servers_of_the_system_are_read_once(serve, tmp_path, monkeypatch):
    server, reads, answers = parse_server(await serve()), [], []

    def read(path):
        reads.append(path)
        return (server,)

    monkeypatch.setattr("engine.routing.stub.system_servers", read)
    resolver = DnsResolver(resolv_conf=str(tmp_path / "resolv.conf"))

    async def ask():
        answers.append(await resolver.mx("example.test"))

    async with trio.open_nursery() as asking:
        for _ in range(3):
            asking.start_soon(ask)
    await ask()

    assert [answer.status for answer in answers] == ["ok"] * 4
    assert reads == [tmp_path / "resolv.conf"]


async def test_a_cancelled_lookup_leaves_its_seat(serve):
    resolver = DnsResolver([await serve()], at_once=1)

    with trio.move_on_after(0.02) as scope:
        await resolver.mx("slow.test")

    assert scope.cancelled_caught
    assert (await resolver.mx("example.test")).status == "ok"


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_no_time_is_refused(timeout):
    with pytest.raises(ValueError, match="allowed: seconds above 0"):
        DnsResolver(["192.0.2.53"], timeout=timeout)


def test_a_server_that_is_no_address_is_refused():
    with pytest.raises(ValueError, match=r"name server 'ns\.test': allowed: an IP address"):
        DnsResolver(["ns.test"])


def test_one_text_is_no_list_of_name_servers():
    for options in ({"servers": "192.0.2.53"}, {"trusted": "192.0.2.53"}):
        with pytest.raises(TypeError, match="allowed: a list of addresses"):
            DnsResolver(**options)
