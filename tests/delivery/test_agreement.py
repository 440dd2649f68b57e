"""What settings and a host's offer come to together."""

import pytest

from engine.delivery.agreement import Agreement, agree
from engine.settings import Settings
from engine.smtp.capabilities import Capabilities
from engine.smtp.content import ContentFacts
from engine.smtp.reply import Reply

EIGHT_BIT = ContentFacts(10, is_8bit=True, longest_line=10, has_utf8_header=False)


def agree_on(
    *keywords,
    is_lockstep=False,
    is_bad_at_chunking=False,
    is_authenticated=False,
    is_verified=False,
    limits_count=True,
    **settings,
):
    lines = ("mx.example.net", *keywords)
    return agree(
        Settings(**settings),
        Capabilities.parse(Reply(250, tuple(line.encode() for line in lines))),
        is_lockstep=is_lockstep,
        is_bad_at_chunking=is_bad_at_chunking,
        is_authenticated=is_authenticated,
        is_verified=is_verified,
        limits_count=limits_count,
    )


def test_what_is_not_offered_is_not_used():
    assert agree_on().manner[:2] == (False, False)
    assert agree_on("PIPELINING", "CHUNKING").manner[:2] == (True, True)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ({"is_lockstep": True}, (False, False)),
        ({"is_bad_at_chunking": True}, (True, False)),
        ({"pipelining": False}, (False, True)),
        ({"chunking": False}, (True, False)),
    ],
)
def test_what_is_offered_is_not_used_for_a_reason(reason, expected):
    assert agree_on("PIPELINING", "CHUNKING", **reason).manner[:2] == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(0, None, 0), (5, None, 5), (0, 7, 7), (5, 7, 5), (7, 5, 5)],
)
def test_the_smaller_limit_counts(ours, theirs, expected):
    settings = {"max_messages_per_connection": ours, "max_recipients_per_transaction": ours}
    said = [] if theirs is None else [f"LIMITS MAILMAX={theirs} RCPTMAX={theirs}"]

    agreed = agree_on(*said, **settings)

    assert (agreed.most_transactions, agreed.most_recipients) == (expected, expected)


def test_limits_that_somebody_else_may_have_said_do_not_count():
    agreed = agree_on("LIMITS MAILMAX=1 RCPTMAX=1 RCPTDOMAINMAX=1", limits_count=False)
    ours = agree_on()
    assert agreed._replace(dialect=ours.dialect) == ours


def test_a_limit_of_domains_keeps_a_transaction_to_one():
    assert not agree_on().has_one_domain
    agreed = agree_on("LIMITS RCPTDOMAINMAX=3")
    assert (agreed.has_one_domain, agreed.most_domains) == (True, 3)
    agreed = agree_on(multi_domain=False)
    assert (agreed.has_one_domain, agreed.most_domains) == (True, 0)


def test_a_submitter_is_named_only_where_we_are_authenticated():
    settings = {"authenticated_sender": "app@client.example"}
    assert agree_on(**settings).dialect.submitter == ""
    assert agree_on(is_authenticated=True, **settings).dialect.submitter == "app@client.example"


def test_lmtp_needs_no_prdr_and_may_ignore_quota():
    assert agree_on("PRDR", prdr=True).has_prdr
    agreed = agree_on("PRDR", "IGNOREQUOTA", prdr=True, protocol="lmtp", lmtp_ignore_quota=True)
    assert not agreed.has_prdr
    assert agreed.manner.lmtp
    assert agreed.dialect.ignore_quota


@pytest.mark.parametrize(
    ("keywords", "is_binary", "expected"),
    [
        ((), False, False),
        (("8BITMIME",), False, True),
        (("8BITMIME",), True, False),
        (("8BITMIME", "BINARYMIME"), True, False),
        (("8BITMIME", "BINARYMIME", "CHUNKING"), True, True),
    ],
)
def test_octets_beyond_seven_bits_go_as_they_are_where_they_are_taken(
    keywords, is_binary, expected
):
    facts = EIGHT_BIT._replace(is_binary=is_binary)
    assert agree_on(*keywords).takes(facts) is expected


def test_nothing_is_agreed_before_a_hello():
    nothing = Agreement()
    assert nothing.manner[:2] == (False, False)
    assert not nothing.takes(EIGHT_BIT)
