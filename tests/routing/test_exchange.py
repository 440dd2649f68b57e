from __future__ import annotations

import contextlib

import dns.exception
import dns.flags
import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.exchange import matching_type, read

NAME = "_25._tcp.mx.test"


def answer_with(*datas, alias=None):
    """Return the wire form of an answer with TLSA records of these octets."""
    query = dns.message.make_query(NAME, "TLSA", use_edns=0)
    response = dns.message.make_response(query)
    owner = query.question[0].name
    if alias is not None:
        cname = dns.rrset.from_text(owner, 60, "IN", "CNAME", f"{alias}.")
        response.answer.append(cname)
        owner = dns.name.from_text(alias)
    kind = dns.rdatatype.TLSA
    records = [dns.rdata.GenericRdata(dns.rdataclass.IN, kind, data) for data in datas]
    response.answer.append(dns.rrset.from_rdata_list(owner, 60, records))
    return response.to_wire()


@pytest.mark.parametrize("alias", [None, "tlsa.mx.test"])
@pytest.mark.parametrize(
    "data",
    [
        b"\3\1\1" + bytes(32),
        b"\3\1\2" + bytes(64),
        b"\3\1\1" + bytes(31),
        b"\3\1\1" + bytes(64),
        b"\3\1\2" + bytes(32),
        b"\3\1\1",
        b"\3\1\0",
        b"\3\1\x81" + bytes(32),
        b"\3\1\xff" + bytes(7),
    ],
)
def test_tlsa_records_are_read_as_they_are_whatever_the_length_of_their_digests(data, alias):
    good = b"\2\0\1" + b"\xab" * 32

    rrset = read(answer_with(data, good, alias=alias)).answer[-1]

    found = {bytes([it.usage, it.selector, matching_type(it)]) + it.cert for it in rrset}
    assert found == {data, good}


def test_a_message_that_was_cut_says_so_wherever_it_was_cut():
    octets = bytearray(answer_with(b"\3\1\1" + bytes(31)))
    octets[2] |= dns.flags.TC >> 8

    with pytest.raises(dns.message.Truncated):
        read(bytes(octets))
    with pytest.raises(dns.message.Truncated):
        read(bytes(octets[:-20]))


@given(st.data())
def test_junk_is_refused_with_an_error_of_its_own(data):
    octets = bytearray(answer_with(b"\3\1\1" + bytes(31), alias="tlsa.mx.test"))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(dns.exception.DNSException, ValueError):
        read(bytes(octets[: data.draw(st.integers(0, len(octets)))]))
