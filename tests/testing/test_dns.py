from __future__ import annotations

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from engine.routing.resolver import MxRecord
from engine.routing.stub import DnsResolver
from engine.security import Tlsa
from engine.testing.dns import FakeDns, serve_dns

ZONE = {
    "Example.test": {"MX": ["10 MX1.example.test.", "20 mx2.example.test"], "TXT": ["v=STSv1"]},
    "mx1.example.test": {"A": ["127.0.0.1"], "AAAA": ["0::1"]},
    "www.example.test": {"CNAME": ["example.test"]},
    "astray.test": {"CNAME": ["gone.test"]},
    "circle.test": {"CNAME": ["circle.test"]},
    "closed.test": {"MX": ["0 ."]},
    "broken.test": {"MX": "SERVFAIL", "A": ["192.0.2.1"]},
    "refused.test": {"MX": "REFUSED"},
    "slow.test": {"MX": "TIMEOUT"},
    "empty.test": {},
    "none.test": {"MX": []},
}


@pytest.mark.parametrize(
    ("name", "rdtype", "status", "records", "canonical"),
    [
        (
            "EXAMPLE.test",
            "MX",
            "ok",
            (MxRecord(10, "mx1.example.test"), MxRecord(20, "mx2.example.test")),
            "example.test",
        ),
        ("example.test", "TXT", "ok", ("v=STSv1",), "example.test"),
        ("mx1.example.test", "A", "ok", ("127.0.0.1",), "mx1.example.test"),
        ("mx1.example.test", "AAAA", "ok", ("::1",), "mx1.example.test"),
        ("www.example.test", "TXT", "ok", ("v=STSv1",), "example.test"),
        ("www.example.test", "CNAME", "ok", ("example.test",), "www.example.test"),
        ("www.example.test", "A", "no-data", (), "example.test"),
        ("astray.test", "A", "no-such-name", (), "gone.test"),
        ("closed.test", "MX", "ok", (MxRecord(0, "."),), "closed.test"),
        ("broken.test", "A", "ok", ("192.0.2.1",), "broken.test"),
        ("empty.test", "A", "no-data", (), "empty.test"),
        ("none.test", "MX", "no-data", (), "none.test"),
        ("gone.test", "MX", "no-such-name", (), "gone.test"),
    ],
)
async def test_a_literal_answers(name, rdtype, status, records, canonical):
    answer = await FakeDns(ZONE).query(name, rdtype)

    assert (answer.status, answer.records, answer.canonical) == (status, records, canonical)
    assert (answer.ttl, answer.authentic, answer.text) == (300, False, "")


@pytest.mark.parametrize("fault", ["SERVFAIL", "REFUSED"])
async def test_a_fault_is_a_failed_lookup(fault, autojump_clock):
    answer = await FakeDns({"x.test": {"MX": fault}}).mx("x.test")

    assert (answer.status, answer.text) == ("failed", f"the fake name server: {fault}")
    assert trio.current_time() == 0


async def test_a_timeout_takes_its_time(autojump_clock):
    answer = await FakeDns(ZONE, timeout=7, delay=1).mx("slow.test")

    assert (answer.status, answer.text) == ("failed", "the fake name server: TIMEOUT")
    assert trio.current_time() == 7


async def test_a_cname_circle_fails():
    assert (await FakeDns(ZONE).mx("circle.test")).status == "failed"


async def test_a_tlsa_record_is_a_value():
    fake = FakeDns({"_25._tcp.mx.test": {"TLSA": ["3 1 1 ABCD 01"]}})

    answer = await fake.tlsa("_25._tcp.mx.test")

    assert answer.records == (Tlsa(3, 1, 1, b"\xab\xcd\x01"),)


async def test_what_is_bogus_is_a_failed_lookup_and_not_authentic():
    answer = await FakeDns({"x.test": {"MX": "BOGUS"}}, authentic=True).mx("x.test")

    assert (answer.status, answer.authentic) == ("failed", False)


@pytest.mark.parametrize(
    ("name", "rdtype", "authentic"),
    [
        ("signed.test", "A", True),
        ("www.SIGNED.test", "A", True),
        ("nothing.signed.test", "A", True),
        ("unsigned.test", "A", False),
        ("notsigned.test", "A", False),
        ("out.signed.test", "A", False),
        ("out.signed.test", "CNAME", True),
        ("in.unsigned.test", "A", False),
    ],
)
async def test_zones_can_be_signed_one_by_one(name, rdtype, authentic):
    zone = {
        "signed.test": {"A": ["192.0.2.1"]},
        "www.signed.test": {"CNAME": ["signed.test"]},
        "out.signed.test": {"CNAME": ["unsigned.test"]},
        "unsigned.test": {"A": ["192.0.2.2"]},
        "in.unsigned.test": {"CNAME": ["signed.test"]},
        "notsigned.test": {"A": ["192.0.2.3"]},
    }

    answer = await FakeDns(zone, authentic=["Signed.test."]).query(name, rdtype)

    assert answer.authentic is authentic


async def test_ttl_delay_and_authenticity_are_of_every_answer(autojump_clock):
    fake = FakeDns(ZONE, ttl=5, delay=2, authentic=True)

    for name in ("example.test", "gone.test"):
        answer = await fake.mx(name)
        assert (answer.ttl, answer.authentic) == (5, True)
    assert trio.current_time() == 4


async def test_questions_are_counted():
    fake = FakeDns(ZONE)

    await fake.mx("example.test")
    await fake.mx("Example.Test")
    await fake.addresses("mx1.example.test", "ipv6")

    assert fake.asked == {("example.test", "MX"): 2, ("mx1.example.test", "AAAA"): 1}


async def test_the_zone_can_change():
    fake = FakeDns({})

    assert (await fake.mx("example.test")).status == "no-such-name"
    fake.change(ZONE)
    assert (await fake.mx("example.test")).status == "ok"


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ({"SRV": []}, r"x\.test SRV: no such record type; allowed: \('MX', 'A'"),
        (
            {"MX": "10 mx.test"},
            r"x\.test MX '10 mx\.test': allowed: a list, or one of \('SERVFAIL'",
        ),
        ({"MX": ["mx.test"]}, r"x\.test MX: 'mx\.test': allowed: a preference and a host"),
        ({"MX": ["10"]}, "allowed: a preference and a host"),
        ({"TLSA": [""]}, r"x\.test TLSA: '': allowed: three numbers and hexadecimal digits"),
        ({"TLSA": ["3 1 1"]}, "allowed: three numbers and hexadecimal digits"),
        ({"TLSA": ["3 1 256 ab"]}, "allowed: three numbers and hexadecimal digits"),
        ({"TLSA": ["3 1 1 abc"]}, "allowed: three numbers and hexadecimal digits"),
        ({"TLSA": ["3 1 1 xy"]}, "allowed: three numbers and hexadecimal digits"),
        ({"MX": ["-1 mx.test"]}, "allowed: a preference and a host"),
        ({"MX": ["10 mx.test 20"]}, "allowed: a preference and a host"),
        ({"A": ["mx.test"]}, r"x\.test A: .*'mx\.test'"),
        ({"A": ["::1"]}, r"x\.test A: .*'::1'"),
        ({"AAAA": ["192.0.2.1"]}, r"x\.test AAAA: .*'192\.0\.2\.1'"),
    ],
)
def test_a_slip_in_the_literal_is_named(types, reason):
    with pytest.raises(ValueError, match=reason):
        FakeDns({"x.test": types})


async def ask(address, name, rdtype, *, by=dns.asyncquery.udp, timeout=1.0, **options):
    host, _, port = address.rpartition(":")
    query = dns.message.make_query(name, rdtype, **options)
    return await by(query, host.strip("[]"), timeout, int(port))


@pytest.mark.parametrize("by", [dns.asyncquery.udp, dns.asyncquery.tcp])
async def test_the_literal_is_served_over_udp_and_tcp(by, nursery):
    address = await nursery.start(serve_dns, ZONE)

    response = await ask(address, "www.example.test", "MX", by=by)

    # In any order: as real servers do, this one shuffles the records of a set.
    lines = {line for rrset in response.answer for line in str(rrset).splitlines()}
    assert lines == {
        "www.example.test. 300 IN CNAME example.test.",
        "example.test. 300 IN MX 10 mx1.example.test.",
        "example.test. 300 IN MX 20 mx2.example.test.",
    }
    assert response.flags & dns.flags.RA
    assert not response.flags & dns.flags.AD


async def test_one_tcp_connection_can_carry_several_questions(nursery):
    address = await nursery.start(serve_dns, ZONE)
    query = dns.message.make_query("example.test", "TXT").to_wire(prepend_length=True)
    stream = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))

    async with stream:
        for _ in range(2):
            await stream.send_all(query)
            assert b"v=STSv1" in await stream.receive_some()


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        ("broken.test", dns.rcode.SERVFAIL),
        ("refused.test", dns.rcode.REFUSED),
        ("gone.test", dns.rcode.NXDOMAIN),
        ("empty.test", dns.rcode.NOERROR),
    ],
)
async def test_faults_and_absence_are_served(name, rcode, nursery):
    address = await nursery.start(serve_dns, ZONE)

    response = await ask(address, name, "MX")

    assert response.rcode() == rcode
    assert not response.answer
    is_negative = rcode in (dns.rcode.NXDOMAIN, dns.rcode.NOERROR)
    assert bool(response.authority) == is_negative


@pytest.mark.parametrize("by", [dns.asyncquery.udp, dns.asyncquery.tcp])
async def test_a_timeout_is_served_as_silence(by, nursery):
    address = await nursery.start(serve_dns, ZONE)

    with pytest.raises((dns.exception.Timeout, EOFError)):
        await ask(address, "slow.test", "MX", by=by, timeout=0.05)


async def test_what_does_not_fit_into_a_datagram_is_truncated(nursery):
    zone = {"big.test": {"TXT": [f"{number:0200}" for number in range(20)]}}
    address = await nursery.start(serve_dns, zone)

    for payload, is_truncated in ((1232, True), (8000, False)):
        response = await ask(address, "big.test", "TXT", use_edns=0, payload=payload)
        assert bool(response.flags & dns.flags.TC) == is_truncated
    assert len((await ask(address, "big.test", "TXT", by=dns.asyncquery.tcp)).answer[0]) == 20


async def test_a_fake_dns_can_be_served_and_counts(nursery):
    fake = FakeDns(ZONE, ttl=7, authentic=True)
    address = await nursery.start(serve_dns, fake)

    response = await ask(address, "example.test", "MX")

    assert response.answer[0].ttl == 7
    assert response.flags & dns.flags.AD
    assert fake.asked == {("example.test", "MX"): 1}


async def test_an_ipv6_server_has_brackets_around_its_address(nursery):
    async def run(task_status):
        await serve_dns(ZONE, host="::1", task_status=task_status)

    address = await nursery.start(run)

    assert address.startswith("[::1]:")
    assert (await DnsResolver([address]).mx("example.test")).status == "ok"


async def test_a_served_zone_says_which_answers_are_authentic_and_which_are_bogus(nursery):
    zone = {**ZONE, "forged.test": {"TLSA": "BOGUS"}}
    address = await nursery.start(serve_dns, FakeDns(zone, authentic=["example.test"]))

    assert (await ask(address, "example.test", "MX")).flags & dns.flags.AD
    assert not (await ask(address, "closed.test", "MX")).flags & dns.flags.AD
    response = await ask(address, "forged.test", "TLSA", use_edns=0)
    assert response.rcode() == dns.rcode.SERVFAIL
    assert [int(option.code) for option in response.options] == [6]
