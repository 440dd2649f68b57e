from __future__ import annotations

import pytest

from engine.queue.values import Selection, State
from engine.worker.selecting import select


def test_nothing_said_is_everybody():
    assert select() == Selection()


def test_all_options_are_taken():
    assert select(
        states=["held", "queued"], message="m", recipient="r@x.test", tenant="t", job="j"
    ) == Selection(
        states=frozenset({State.HELD, State.QUEUED}),
        message="m",
        recipient="r@x.test",
        tenant="t",
        job="j",
    )


@pytest.mark.parametrize(
    ("written", "domain"),
    [
        ("one.test", "one.test"),
        ("One.TEST.", "one.test"),
        ("Bücher.test", "xn--bcher-kva.test"),
        ("*.Example.net", "*.example.net"),
        ("*.bücher.test", "*.xn--bcher-kva.test"),
        ("a_b.test", "a_b.test"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
    ],
)
def test_a_domain_may_be_written_in_any_way(written, domain):
    assert select(domain=written).domain == domain


@pytest.mark.parametrize("written", ["", "*.", ".", "a b", "a\n", "\u2028", "ü" * 70])
def test_what_is_no_domain_is_refused(written):
    with pytest.raises(ValueError, match=r'allowed are a domain and "\*\.domain"'):
        select(domain=written)


@pytest.mark.parametrize(
    ("written", "sender"),
    [("<>", ""), ("", ""), ("me@x.test", "me@x.test"), ("<me@x.test>", "me@x.test")],
)
def test_a_sender_may_be_written_with_its_brackets(written, sender):
    assert select(sender=written).sender == sender


@pytest.mark.parametrize("name", ["message", "recipient", "tenant", "job"])
def test_octets_that_are_no_text_are_refused(name):
    with pytest.raises(ValueError, match=rf"--{name}: found '\\udcff'; allowed is text"):
        select(**{name: "\udcff"})


def test_what_is_no_sender_is_refused():
    with pytest.raises(ValueError, match="--sender: "):
        select(sender="me")
