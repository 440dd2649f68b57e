"""The decisions of TCP Fast Open, as tables."""

from __future__ import annotations

import errno

import pytest

from engine.net import fastopen
from engine.net.fastopen import Step, is_harmful, judge, next_step, syn_payload
from engine.net.tcp_info import SynFailure, TcpInfo, TcpState

EARLY = b"EHLO a.test\r\n"


def info(state=TcpState.ESTABLISHED, **facts) -> TcpInfo:
    known = {
        "is_syn_data_acked": False,
        "syn_failure": SynFailure.UNKNOWN,
        "unacked": 0,
        "rtt": 0.1,
        "repeated": 0,
        "received": 0,
    }
    return TcpInfo(state, **known | facts)


@pytest.mark.parametrize(
    ("mode", "early_data", "is_avoided", "payload"),
    [
        ("off", b"", False, None),
        ("off", EARLY, False, None),
        ("connect", b"", False, b""),
        ("connect", EARLY, False, b""),
        ("connect", b"", True, None),
        ("connect", EARLY, True, None),
        ("commands", b"", False, b""),
        ("commands", EARLY, False, EARLY),
        ("commands", b"", True, None),
        ("commands", EARLY, True, None),
    ],
)
def test_what_the_syn_carries(mode, early_data, is_avoided, payload):
    assert syn_payload(mode, early_data, is_avoided=is_avoided) == payload


def test_a_system_without_it_sends_ordinary_syns(monkeypatch):
    monkeypatch.setattr(fastopen, "SYN_FLAGS", None)
    assert syn_payload("commands", EARLY) is None


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (None, Step.WAIT),
        ("EINPROGRESS", Step.WAIT),
        ("EAGAIN", Step.WAIT),
        ("EOPNOTSUPP", Step.CONNECT),
        ("EPIPE", Step.CONNECT),
        ("ENOTCONN", Step.CONNECT),
        ("EINVAL", Step.CONNECT),
        ("EPERM", Step.CONNECT),
        ("ECONNREFUSED", Step.FAIL),
        ("ENETUNREACH", Step.FAIL),
        ("EHOSTUNREACH", Step.FAIL),
        ("EADDRNOTAVAIL", Step.FAIL),
        ("EACCES", Step.FAIL),
        ("ENOBUFS", Step.FAIL),
    ],
)
def test_what_follows_on_each_error_of_sendto(name, step):
    assert next_step(getattr(errno, name) if name else 0) is step


@pytest.mark.parametrize(
    ("known", "sent", "verdict"),
    [
        pytest.param(None, 0, "asked", id="nothing-known"),
        pytest.param(None, 9, "asked", id="nothing-known-of-data"),
        pytest.param(info(TcpState.SYN_SENT, unacked=1), 0, "asked", id="syn-without-cookie"),
        pytest.param(info(TcpState.SYN_SENT, unacked=2), 0, "used", id="syn-with-cookie"),
        pytest.param(info(TcpState.SYN_SENT, unacked=2), 9, "asked", id="syn-with-data"),
        pytest.param(info(syn_failure=SynFailure.NO_COOKIE), 0, "asked", id="had-no-cookie"),
        pytest.param(info(), 0, "used", id="had-a-cookie"),
        pytest.param(info(is_syn_data_acked=True), 9, "used-data", id="data-acknowledged"),
        pytest.param(info(syn_failure=SynFailure.DATA_NOT_TAKEN), 9, "asked", id="data-not-taken"),
        pytest.param(info(syn_failure=SynFailure.SYN_REPEATED), 9, "asked", id="syn-repeated"),
        pytest.param(info(), 9, "asked", id="old-kernel-data-not-acknowledged"),
        pytest.param(info(8, is_syn_data_acked=True), 9, "used-data", id="peer-ended-already"),
    ],
)
def test_how_far_it_got(known, sent, verdict):
    assert judge(known, sent) == verdict


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        (info(), False),
        (info(repeated=1), True),
        (info(repeated=3, syn_failure=SynFailure.SYN_REPEATED), True),
        (info(repeated=1, syn_failure=SynFailure.NO_COOKIE), True),
        # The kernel sends the data again as soon as the SYN-ACK shows that it was not taken.
        (info(repeated=1, syn_failure=SynFailure.DATA_NOT_TAKEN), False),
    ],
)
def test_only_a_syn_that_got_lost_does_harm(known, verdict):
    assert is_harmful(known) is verdict
