from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.testing import faults
from engine.testing.faults import (
    CONTENT_FAULTS,
    MAIL_FAULTS,
    RCPT_FAULTS,
    Fault,
    Next,
    fault_of,
    local_part,
)

TABLES = [MAIL_FAULTS, RCPT_FAULTS, CONTENT_FAULTS]


def test_every_fault_is_described_and_nothing_else():
    table, _, senders = faults.__doc__.rpartition("=====\n")
    named = re.findall(r"^`([^`]+)@`", table, re.MULTILINE)
    assert sorted(named) == sorted(name.decode() for name in (*RCPT_FAULTS, *CONTENT_FAULTS))
    named = [name for name in re.findall(r"`([^`]+)-mail@`", senders) if name != "slow-N"]
    assert sorted(named) == sorted(name.decode() for name in MAIL_FAULTS)


def test_the_described_code_is_the_one_that_is_sent():
    described = re.findall(r"^`([^`]+)@` +.*?\b(\d{3} \d\.\d\.\d)", faults.__doc__, re.MULTILINE)
    everything = RCPT_FAULTS | CONTENT_FAULTS
    assert len(described) == 8
    for name, code in described:
        assert everything[name.encode()].reply.startswith(code.encode())


@pytest.mark.parametrize("table", TABLES)
def test_a_reply_is_one_line_and_none_is_an_acceptance_in_disguise(table):
    for fault in table.values():
        if fault.reply:
            assert fault.reply.endswith(b"\r\n")
            assert fault.reply.count(b"\n") == 1
            assert not fault.reply.startswith(b"2")


@pytest.mark.parametrize("table", [MAIL_FAULTS, RCPT_FAULTS])
def test_what_accepts_in_the_end_takes_its_time(table):
    accepting = {name: fault for name, fault in table.items() if fault.reply is None}
    assert accepting == {b"slow": Fault(seconds=1), b"tarpit": Fault(seconds=1, drip=True)}


@pytest.mark.parametrize("table", TABLES)
def test_no_fault_asks_for_tls(table):
    assert {fault.next for fault in table.values()} <= {None, Next.CLOSE, Next.STALL}


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        (b"slow-0", 0),
        (b"slow-90", 90),
        (b"slow-0.5", 0.5),
        (b"slow-0.125", 0.125),
        (b"slow-3600", 3600),
        (b"slow-9999", 3600),
    ],
)
def test_slow_takes_a_number_of_seconds_up_to_an_hour(name, seconds):
    assert fault_of(name, RCPT_FAULTS) == fault_of(name, MAIL_FAULTS) == Fault(seconds=seconds)


@pytest.mark.parametrize(
    "name",
    [
        *(b"slow-", b"slow-x", b"slow--1", b"slow-1.", b"slow-.5", b"slow-1.2345", b"slow-10000"),
        *(b"slow-1e3", b"slow-1-mail", b"slow-1\n", b"slowly", b"", b"rejects", b"data-reject"),
    ],
)
def test_any_other_name_does_nothing(name):
    assert fault_of(name, RCPT_FAULTS) is None


@given(st.binary(max_size=20) | st.binary(max_size=8).map(b"slow-".__add__))
def test_no_name_is_too_strange_to_be_looked_up(name):
    fault = fault_of(name, RCPT_FAULTS)
    assert fault is None or name in RCPT_FAULTS or 0 <= fault.seconds <= 3600


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (b"reject@example.test", b"reject"),
        (b"Reject+2@example.test", b"reject"),
        (b"slow-0.5@d", b"slow-0.5"),
        (b"reject+a+b@d", b"reject"),
        (b'"a@b"@d', b'"a@b"'),
        (b"+2@d", b""),
        (b"reject", b""),
        (b"", b""),
    ],
)
def test_the_local_part_says_what_goes_wrong(address, name):
    assert local_part(address) == name
