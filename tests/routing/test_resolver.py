from __future__ import annotations

from engine.routing.resolver import Answer, MxRecord, Record, RecordType, Resolver


class Recorder(Resolver):
    """A resolver of one's own: `query` is all there is to write."""

    def __init__(self):
        self.asked = []

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        self.asked.append((name, rdtype))
        record = MxRecord(10, "mx.example.test") if rdtype == "MX" else "192.0.2.1"
        return Answer("ok", (record,))


async def test_a_resolver_with_a_query_alone_answers_mx_and_addresses():
    resolver = Recorder()

    assert (await resolver.mx("example.test")).records == (MxRecord(10, "mx.example.test"),)
    assert (await resolver.addresses("mx.example.test", "ipv4")).records == ("192.0.2.1",)
    await resolver.addresses("mx.example.test", "ipv6")

    assert resolver.asked == [
        ("example.test", "MX"),
        ("mx.example.test", "A"),
        ("mx.example.test", "AAAA"),
    ]


async def test_the_other_questions_are_queries_too():
    resolver = Recorder()

    await resolver.tlsa("_25._tcp.mx.example.test")
    await resolver.txt("_mta-sts.example.test")
    await resolver.cname("mx.example.test")

    assert resolver.asked == [
        ("_25._tcp.mx.example.test", "TLSA"),
        ("_mta-sts.example.test", "TXT"),
        ("mx.example.test", "CNAME"),
    ]
