"""The commands of a transaction, and why a host is not asked at all."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.content import MemoryContent
from engine.delivery.envelope import Dialect, build, not_convertible, refuse
from engine.message import Message, Recipient
from engine.outcome import Cause, Peer, Scope, Status
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.content import ContentFacts
from engine.smtp.stages import Stage

PEER = Peer("mx.test", "192.0.2.1", 25, "192.0.2.9", 1)
ALL = Capabilities(size=0, eight_bit_mime=True, smtputf8=True, dsn=True)
PLAIN = ContentFacts(1000, is_8bit=False, longest_line=70, has_utf8_header=False)
EIGHT_BIT = PLAIN._replace(is_8bit=True)
UTF8_HEADER = EIGHT_BIT._replace(has_utf8_header=True)


def message(sender="a@b.test", *recipients, facts=PLAIN, **others):
    to = [one if isinstance(one, Recipient) else Recipient.parse(one) for one in recipients]
    to = to or [Recipient.parse("c@d.test")]
    content = MemoryContent(b"", facts)
    return Message("1", Message.parse_sender(sender), tuple(to), content, **others)


def an_envelope(message, offered, size_addition=0, **more):
    dialect = Dialect(offered, size_addition, **more)
    return build(message, message.recipients, message.content.facts, dialect)


def refusal(message, offered, recipients=None, **more):
    to = message.recipients if recipients is None else recipients
    return refuse(message, to, message.content.facts, Dialect(offered, **more), PEER)


def mail_of(message, offered, size_addition=0, **more):
    line = an_envelope(message, offered, size_addition, **more).mail.octets.decode()
    assert line.endswith("\r\n")
    return line[:-2]


def rcpts_of(message, offered, **more):
    envelope = an_envelope(message, offered, **more)
    return [command.octets.decode()[:-2] for command in envelope.rcpts]


# -- MAIL ---------------------------------------------------------------------------------------


def test_the_parameters_of_mail_come_in_their_order():
    everything = message("ä@b.test", facts=EIGHT_BIT, ret="hdrs", envid="QQ+314159")
    assert mail_of(everything, ALL, 24) == (
        "MAIL FROM:<ä@b.test> SIZE=1024 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B314159"
    )


def test_to_a_host_that_offers_nothing_mail_says_nothing_more():
    wishes = message(ret="full", envid="x")
    assert mail_of(wishes, NO_CAPABILITIES) == "MAIL FROM:<a@b.test>"


@pytest.mark.parametrize("sender", ["", "<>"])
def test_the_null_path_is_empty_brackets(sender):
    assert mail_of(message(sender), NO_CAPABILITIES) == "MAIL FROM:<>"
    assert mail_of(message(sender), ALL) == "MAIL FROM:<> SIZE=1000"


@pytest.mark.parametrize(
    ("limit", "size_addition", "parameter"),
    [
        (None, 1024, ""),  # not offered
        (0, 0, " SIZE=1000"),
        (0, 1024, " SIZE=2024"),
        (5000, 1024, " SIZE=2024"),
        # The addition is a guess; it must not talk the host out of what fits.
        (1500, 1024, " SIZE=1500"),
        (1000, 1024, " SIZE=1000"),
        (0, -1, ""),
        (5000, -1, ""),
    ],
)
def test_size_is_an_estimate_within_the_limit(limit, size_addition, parameter):
    offered = Capabilities(size=limit)
    assert mail_of(message(), offered, size_addition) == f"MAIL FROM:<a@b.test>{parameter}"


@pytest.mark.parametrize(
    ("facts", "offered", "parameter"),
    [
        (PLAIN, ALL, ""),
        (EIGHT_BIT, replace(ALL, size=None), " BODY=8BITMIME"),
        (EIGHT_BIT, Capabilities(eight_bit_mime=True), " BODY=8BITMIME"),
    ],
)
def test_8_bit_content_is_announced(facts, offered, parameter):
    offered = replace(offered, size=None)
    assert mail_of(message(facts=facts), offered) == f"MAIL FROM:<a@b.test>{parameter}"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (message(), False),
        (message(smtputf8=True), True),
        (message("ä@b.test"), True),
        (message("a@b.test", "ö@d.test"), True),
        (message("a@b.test", "c@d.test", "ö@d.test"), True),
        (message(facts=UTF8_HEADER), True),
        (message("a@bücher.test"), True),
        (message("a@b.test", "c@bücher.test"), True),
        (message(facts=EIGHT_BIT), False),
    ],
)
def test_smtputf8_is_asked_for_when_it_is_needed(wanted, expected):
    assert (" SMTPUTF8" in mail_of(wanted, ALL)) is expected


@pytest.mark.parametrize(
    ("others", "parameters"),
    [
        ({}, ""),
        ({"ret": "full"}, " RET=FULL"),
        ({"ret": "hdrs"}, " RET=HDRS"),
        ({"envid": "plain-1"}, " ENVID=plain-1"),
        ({"envid": "a+b=c d"}, " ENVID=a+2Bb+3Dc+20d"),
        ({"ret": "full", "envid": "x"}, " RET=FULL ENVID=x"),
    ],
)
def test_wishes_for_reports_go_to_hosts_that_know_dsn(others, parameters):
    wished = message(**others)
    assert mail_of(wished, Capabilities(dsn=True)) == f"MAIL FROM:<a@b.test>{parameters}"
    assert mail_of(wished, NO_CAPABILITIES) == "MAIL FROM:<a@b.test>"


# -- RCPT ---------------------------------------------------------------------------------------


def test_there_is_one_rcpt_a_recipient_in_order():
    several = message("", "c@d.test", "Other.Case@D.test", '"q s"@d.test')
    assert rcpts_of(several, ALL) == [
        "RCPT TO:<c@d.test>",
        "RCPT TO:<Other.Case@D.test>",
        'RCPT TO:<"q s"@d.test>',
    ]


def test_a_transaction_may_be_for_some_of_the_recipients():
    several = message("", "c@d.test", "e@d.test", "f@d.test")
    facts, plain = several.content.facts, Dialect(NO_CAPABILITIES)
    envelope = build(several, several.recipients[1:2], facts, plain)
    assert [command.octets for command in envelope.rcpts] == [b"RCPT TO:<e@d.test>\r\n"]


@pytest.mark.parametrize(
    ("notify", "orcpt", "parameters"),
    [
        ((), None, ""),
        (("never",), None, " NOTIFY=NEVER"),
        (("failure",), None, " NOTIFY=FAILURE"),
        (("delay", "success", "failure"), None, " NOTIFY=SUCCESS,FAILURE,DELAY"),
        (("delay", "success"), None, " NOTIFY=SUCCESS,DELAY"),
        ((), "rfc822;bob@example.org", " ORCPT=rfc822;bob@example.org"),
        ((), "RFC822;Bob+Tag=1@example.org", " ORCPT=RFC822;Bob+2BTag+3D1@example.org"),
        ((), "rfc822;two words;and more", " ORCPT=rfc822;two+20words;and+20more"),
        ((), "utf-8;ö@example.org", " ORCPT=utf-8;+C3+B6@example.org"),
        (("delay", "failure"), "rfc822;b@c", " NOTIFY=FAILURE,DELAY ORCPT=rfc822;b@c"),
    ],
)
def test_a_recipients_wishes_go_to_hosts_that_know_dsn(notify, orcpt, parameters):
    wished = message("", Recipient.parse("c@d.test", notify, orcpt))
    assert rcpts_of(wished, Capabilities(dsn=True)) == [f"RCPT TO:<c@d.test>{parameters}"]
    assert rcpts_of(wished, NO_CAPABILITIES) == ["RCPT TO:<c@d.test>"]


# -- addresses ----------------------------------------------------------------------------------


def test_a_domain_goes_in_a_labels_where_smtputf8_is_not_used():
    foreign = message("a@bücher.test", "c@Bücher.test", "c@plain.test")
    for offered, when in ((NO_CAPABILITIES, "auto"), (ALL, "always"), (NO_CAPABILITIES, "always")):
        assert mail_of(foreign, offered, downconvert=when).startswith(
            "MAIL FROM:<a@xn--bcher-kva.test>"
        )
        assert " SMTPUTF8" not in mail_of(foreign, offered, downconvert=when)
        assert rcpts_of(foreign, offered, downconvert=when) == [
            "RCPT TO:<c@xn--bcher-kva.test>",
            "RCPT TO:<c@plain.test>",
        ]


def test_a_domain_is_not_converted_where_that_is_forbidden():
    foreign = message("a@bücher.test", "c@Bücher.test")

    assert mail_of(foreign, ALL, downconvert="never").startswith("MAIL FROM:<a@bücher.test> ")
    verdict = refusal(foreign, replace(ALL, smtputf8=False), downconvert="never")
    assert verdict is not None
    assert str(verdict.enhanced) == "5.6.7"


@pytest.mark.parametrize("when", ["auto", "never", "always"])
def test_a_local_part_that_is_not_ascii_needs_smtputf8_whatever_is_converted(when):
    foreign = message("ä@b.test")

    assert " SMTPUTF8" in mail_of(foreign, ALL, downconvert=when)
    assert refusal(foreign, replace(ALL, smtputf8=False), downconvert=when) is not None


def test_with_smtputf8_every_address_goes_as_it_was_written():
    foreign = message("a@bücher.test", "ö@d.test", "c@Bücher.test")
    assert " SMTPUTF8" in mail_of(foreign, ALL)
    assert mail_of(foreign, ALL).startswith("MAIL FROM:<a@bücher.test> ")
    assert rcpts_of(foreign, ALL) == ["RCPT TO:<ö@d.test>", "RCPT TO:<c@Bücher.test>"]


def test_domains_are_always_converted_where_that_is_set_whatever_needs_smtputf8():
    foreign = message("a@bücher.test", "ö@Bücher.test", "ö@d.test")
    always = {"downconvert": "always"}
    sender = "MAIL FROM:<a@xn--bcher-kva.test> "
    assert mail_of(foreign, ALL, **always).startswith(sender)
    assert " SMTPUTF8" in mail_of(foreign, ALL, **always)
    assert rcpts_of(foreign, ALL, **always) == [
        "RCPT TO:<ö@xn--bcher-kva.test>",
        "RCPT TO:<ö@d.test>",
    ]
    in_headers = message("a@bücher.test", facts=UTF8_HEADER)
    assert mail_of(in_headers, ALL, **always).startswith(sender)
    assert " SMTPUTF8" in mail_of(in_headers, ALL, **always)


# -- refusing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        (message(), NO_CAPABILITIES),
        (message(), Capabilities(size=0)),
        (message(), Capabilities(size=1000)),
        (message(facts=EIGHT_BIT), Capabilities(eight_bit_mime=True)),
        (message("a@bücher.test", "c@bücher.test"), NO_CAPABILITIES),
        (message("ä@b.test", smtputf8=True), ALL),
    ],
)
def test_a_host_that_can_take_the_message_is_asked(wanted, offered):
    assert refusal(wanted, offered) is None


@pytest.mark.parametrize(
    ("wanted", "offered", "scope", "enhanced"),
    [
        # Nothing unverified may carry what asks for verified TLS, whatever is offered.
        (message(require_tls=True), replace(ALL, requiretls=True), Scope.HOST, "5.7.30"),
        (message(require_tls=True), NO_CAPABILITIES, Scope.HOST, "5.7.30"),
        (message(), Capabilities(size=999), Scope.MESSAGE, "5.3.4"),
        (message(), Capabilities(size=1), Scope.MESSAGE, "5.3.4"),
        (message("ä@b.test"), replace(ALL, smtputf8=False), Scope.HOST, "5.6.7"),
        (message("", "ö@d.test"), replace(ALL, smtputf8=False), Scope.HOST, "5.6.7"),
        (message("", "c@d.test", "ö@e.test"), replace(ALL, smtputf8=False), Scope.HOST, "5.6.7"),
        (message(smtputf8=True), replace(ALL, smtputf8=False), Scope.HOST, "5.6.7"),
    ],
)
def test_a_host_that_would_have_to_refuse_is_not_asked(wanted, offered, scope, enhanced):
    verdict = refusal(wanted, offered)

    assert verdict is not None
    assert verdict.status is Status.FAILED
    assert (verdict.stage, verdict.cause) == (Stage.MAIL, Cause.UNSUPPORTED)
    assert verdict.scope is scope
    assert str(verdict.enhanced) == enhanced
    assert verdict.reply is None
    # Another host may take it; only when none does the failure stands.
    assert verdict.is_here_only
    assert verdict.may_go_on
    assert verdict.text.startswith(f"mx.test [192.0.2.1]:25: {enhanced} ")


def test_the_refusal_of_a_large_content_names_both_sizes():
    verdict = refusal(message(), Capabilities(size=999))
    assert verdict is not None
    assert "content of 1000 octets" in verdict.text
    assert "limit of 999" in verdict.text


# -- whatever comes together --------------------------------------------------------------------

KEYWORDS = {
    "SIZE": lambda offered: offered.size is not None,
    "BODY": lambda offered: offered.eight_bit_mime,
    "SMTPUTF8": lambda offered: offered.smtputf8,
    "RET": lambda offered: offered.dsn,
    "ENVID": lambda offered: offered.dsn,
    "NOTIFY": lambda offered: offered.dsn,
    "ORCPT": lambda offered: offered.dsn,
}
OFFERS = st.builds(
    Capabilities,
    size=st.sampled_from([None, 0, 500, 1000, 5000]),
    eight_bit_mime=st.booleans(),
    smtputf8=st.booleans(),
    dsn=st.booleans(),
)
ADDRESSES = st.sampled_from(["a@b.test", "ä@b.test", "a@bücher.test", '"a b"@c.test', "a+b@c.test"])
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
RECIPIENTS = st.builds(
    Recipient.parse,
    ADDRESSES,
    st.sampled_from([(), ("never",), ("success", "delay")]),
    st.none() | TEXT.map("rfc822;{}".format),
)
MESSAGES = st.builds(
    message,
    ADDRESSES | st.just("<>"),
    RECIPIENTS,
    RECIPIENTS,
    facts=st.sampled_from([PLAIN, EIGHT_BIT, UTF8_HEADER]),
    ret=st.sampled_from([None, "full", "hdrs"]),
    envid=st.none() | TEXT,
    smtputf8=st.booleans(),
)
LINE = re.compile(
    rb'(?:MAIL FROM|RCPT TO):<(?:"[^"\r\n]*"@[^> \r\n]+|[^> \r\n]*)>((?: [A-Z0-9]+(?:=[!-~]+)?)*)\r\n'
)


@given(MESSAGES, OFFERS, st.integers(-1, 2000))
def test_no_host_is_sent_a_parameter_that_it_does_not_offer(message, offered, size_addition):
    envelope = an_envelope(message, offered, size_addition)
    assert len(envelope.rcpts) == len(message.recipients)
    for command in (envelope.mail, *envelope.rcpts):
        match = LINE.fullmatch(command.octets)
        assert match is not None, command.octets
        keywords = [item.partition("=")[0] for item in match[1].decode().split()]
        assert keywords == [keyword for keyword in KEYWORDS if keyword in keywords]
        assert all(KEYWORDS[keyword](offered) for keyword in keywords)


@given(MESSAGES, OFFERS)
def test_what_goes_out_without_smtputf8_is_ascii(message, offered):
    if refusal(message, offered) is None:
        envelope = an_envelope(message, offered)
        if b" SMTPUTF8" not in envelope.mail.octets:
            assert all(command.octets.isascii() for command in (envelope.mail, *envelope.rcpts))


def test_smtputf8_is_needed_only_for_the_recipients_of_this_host():
    both = message("", "ö@d.test", "b@e.test")

    assert refusal(both, replace(ALL, smtputf8=False), both.recipients[1:]) is None
    assert refusal(both, replace(ALL, smtputf8=False), both.recipients[:1]) is not None


# -- parameters for some hosts only -------------------------------------------------------------


def test_what_the_dialect_says_is_said():
    """The order is the reference client's."""
    wished = message(facts=EIGHT_BIT, ret="full", envid="x", require_tls=True, smtputf8=True)
    offered = replace(ALL, requiretls=True)
    dialect = Dialect(offered, 24, submitter="me+you@b.test", is_verified=True)
    line = build(wished, wished.recipients, EIGHT_BIT, dialect, prdr=True).mail.octets.decode()

    size = EIGHT_BIT.octets + 24
    assert line == (
        f"MAIL FROM:<a@b.test> SIZE={size} BODY=8BITMIME PRDR SMTPUTF8 RET=FULL ENVID=x"
        " AUTH=me+2Byou@b.test REQUIRETLS\r\n"
    )


def test_quota_is_ignored_before_anything_else_is_said_of_a_recipient():
    to = Recipient.parse("c@d.test", notify=["failure"])
    wished = replace(message(), recipients=(to,))
    for offered, expected in ((ALL, " NOTIFY=FAILURE"), (NO_CAPABILITIES, "")):
        assert rcpts_of(wished, offered, ignore_quota=True) == [
            f"RCPT TO:<c@d.test> IGNOREQUOTA{expected}"
        ]


def test_requiretls_goes_to_hosts_that_are_verified_and_offer_it():
    wished = message(require_tls=True)

    assert refusal(wished, replace(ALL, requiretls=True), is_verified=True) is None
    assert refusal(wished, replace(ALL, requiretls=False), is_verified=True) is not None


def test_what_cannot_be_converted_fails_for_its_reason():
    verdict = not_convertible("the message is signed by DKIM", PEER)

    assert (verdict.status, verdict.scope) == (Status.FAILED, Scope.MESSAGE)
    assert str(verdict.enhanced) == "5.6.3"
    assert "signed by DKIM" in verdict.text
    assert verdict.is_here_only
