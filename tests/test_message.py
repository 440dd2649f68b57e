from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import chain, combinations

import pytest

from engine.content import MemoryContent
from engine.message import Message, Recipient
from engine.smtp.address import AddressSyntaxError, Mailbox
from engine.smtp.content import scan

CONTENT = MemoryContent(b"", scan(b""))
BOB = Recipient.parse("bob@example.net")


# -- recipients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["Bob@example.net", "<Bob@example.net>"])
def test_a_recipient_keeps_its_address_as_it_was_given(address):
    recipient = Recipient.parse(address)
    assert recipient.address == address
    assert recipient.mailbox == Mailbox("Bob", "example.net")
    assert recipient.notify == frozenset()
    assert recipient.orcpt is None


@pytest.mark.parametrize("address", ["", "<>", "bob", "<bob@example.net", "b\r\nDATA@example.net"])
def test_a_recipient_is_a_mailbox(address):
    with pytest.raises(AddressSyntaxError):
        Recipient.parse(address)


WISHES = ("success", "failure", "delay")
LEGAL = [*chain.from_iterable(combinations(WISHES, n) for n in range(4)), ("never",)]


@pytest.mark.parametrize("notify", LEGAL)
def test_notify_is_never_alone_or_any_of_the_others(notify):
    assert Recipient.parse("bob@example.net", notify).notify == frozenset(notify)


@pytest.mark.parametrize(
    "notify",
    [("never", "success"), ("never", *WISHES), ("always",), ("success", "NEVER"), ("SUCCESS",)],
)
def test_any_other_notify_is_refused_however_the_recipient_is_made(notify):
    """RFC 3461 §4.1: NEVER stands alone."""
    allowed = "allowed are success, failure and delay together, or never alone"
    with pytest.raises(ValueError, match=allowed):
        Recipient.parse("bob@example.net", notify)
    with pytest.raises(ValueError, match=allowed):
        Recipient("bob@example.net", BOB.mailbox, frozenset(notify))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"address": b"bob@example.net"}, "address is a bytes; allowed is a text, as in bob@"),
        ({"address": None}, "address is a NoneType; allowed is a text"),
        ({"notify": "never"}, r'notify is a str; allowed is a list of wishes, as in \["never"\]'),
        ({"notify": b"never"}, "notify is a bytes; allowed is a list"),
        ({"notify": 5}, "notify is a int; allowed is a list"),
        ({"notify": None}, "notify is a NoneType; allowed is a list"),
        ({"notify": ["never", 5]}, "a wish in notify is a int; allowed is a text"),
        ({"notify": [["never"]]}, "a wish in notify is a list; allowed is a text"),
        ({"orcpt": b"rfc822;bob@example.org"}, "orcpt is a bytes; allowed is a text"),
    ],
)
def test_what_a_recipient_is_parsed_of_is_looked_at(facts, said):
    with pytest.raises(TypeError, match=said):
        Recipient.parse(**{"address": "bob@example.net"} | facts)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"mailbox": "bob@example.net"}, "mailbox is a str; allowed is a Mailbox, as Recipient.p"),
        ({"mailbox": None}, "mailbox is a NoneType; allowed is a Mailbox"),
        ({"address": b"bob@example.net"}, "address is a bytes; allowed is a text"),
        ({"notify": "never"}, "notify is a str; allowed is a frozenset"),
        ({"notify": ["never"]}, "notify is a list; allowed is a frozenset"),
        ({"notify": ()}, "notify is a tuple; allowed is a frozenset"),
        ({"orcpt": 5}, "orcpt is a int; allowed is a text"),
    ],
)
def test_what_a_recipient_is_made_of_is_looked_at_when_it_is_made(facts, said):
    with pytest.raises(TypeError, match=said):
        Recipient(**{"address": "bob@example.net", "mailbox": BOB.mailbox} | facts)


def test_wishes_may_come_in_any_iterable():
    wishes = iter(["success", "delay"])
    assert Recipient.parse("b@c.test", wishes).notify == {"success", "delay"}
    assert Recipient.parse("b@c.test", []).notify == frozenset()


def test_a_wish_named_twice_counts_once():
    assert Recipient.parse("b@c.test", ["delay", "delay"]).notify == frozenset({"delay"})


@pytest.mark.parametrize(
    "orcpt",
    [
        "rfc822;bob@example.org",
        "RFC822;Bob+tag=1@example.org",
        "x-local;two words;more",
        "utf-8;ö@c",
    ],
)
def test_an_original_recipient_has_a_type_and_an_address(orcpt):
    assert Recipient.parse("bob@example.net", (), orcpt).orcpt == orcpt


@pytest.mark.parametrize(
    "orcpt",
    [
        "",
        "bob@example.org",
        "rfc822;",
        ";bob@example.org",
        "rfc822;bob\r\nDATA",
        "rfc822;bob\0",
        # A blank in the type would end the parameter and begin another.
        "rfc822 NOTIFY=NEVER;bob@example.org",
        "rfc822=x;bob@example.org",
        "räc822;bob@example.org",
        "rfc822;" + "b" * 494,
    ],
)
def test_any_other_original_recipient_is_refused_however_the_recipient_is_made(orcpt):
    with pytest.raises(ValueError, match="allowed is type;address"):
        Recipient.parse("bob@example.net", (), orcpt)
    with pytest.raises(ValueError, match="allowed is type;address"):
        Recipient("bob@example.net", BOB.mailbox, orcpt=orcpt)


# -- messages -----------------------------------------------------------------------------------


def test_a_message_needs_a_recipient():
    with pytest.raises(ValueError, match="message 'm1' has no recipients; at least one is needed"):
        Message("m1", None, (), CONTENT)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"id": 5}, "id is a int; allowed is a text"),
        ({"id": None}, "id is a NoneType; allowed is a text"),
        (
            {"reverse_path": "me@x.test"},
            "reverse_path is a str; allowed is what Message.parse_sender makes",
        ),
        (
            {"recipients": (BOB, "bob@example.net")},
            r"recipients\[1\] is a str; allowed is what Recipient.parse makes",
        ),
        (
            {"recipients": "bob@example.net"},
            "recipients is a str; allowed is a list of what Recipient.parse makes",
        ),
        ({"recipients": BOB}, "recipients is a Recipient; allowed is a list of what"),
        ({"recipients": None}, "recipients is a NoneType; allowed is a list of what"),
        ({"envid": 5}, "envid is a int; allowed is a text or None"),
        ({"envid": b"x"}, "envid is a bytes; allowed is a text or None"),
        ({"ret": True}, "ret is a bool; allowed is full, hdrs or None"),
        ({"ret": ["full"]}, "ret is a list; allowed is full, hdrs or None"),
        ({"require_tls": "no"}, "require_tls is a str; allowed is True or False"),
        ({"require_tls": None}, "require_tls is a NoneType; allowed is True or False"),
        ({"require_tls": 0}, "require_tls is a int; allowed is True or False"),
        ({"smtputf8": "no"}, "smtputf8 is a str; allowed is True or False"),
        (
            {"content": "Subject: x"},
            "content is a str; allowed is what from_text, from_octets, from_binary and from_file make",
        ),
    ],
)
def test_what_a_message_is_made_of_is_looked_at_when_it_is_made(facts, said):
    with pytest.raises(TypeError, match=said):
        Message(
            **{"id": "1", "reverse_path": None, "recipients": (BOB,), "content": CONTENT} | facts
        )


@pytest.mark.parametrize("recipients", [[BOB], iter([BOB]), {BOB}])
def test_recipients_may_come_in_any_iterable(recipients):
    assert Message("1", None, recipients, CONTENT).recipients == (BOB,)


@pytest.mark.parametrize("ret", ["full", "hdrs", None])
def test_a_report_returns_the_whole_message_or_its_header_section(ret):
    """RFC 3461 §4.3."""
    assert Message("1", None, (BOB,), CONTENT, ret=ret).ret == ret


@pytest.mark.parametrize("ret", ["bodies", "FULL", "", "full\r\nRCPT TO:<x@y.test>"])
def test_a_report_returns_nothing_else(ret):
    with pytest.raises(ValueError, match="allowed are full and hdrs, or None"):
        Message("1", None, (BOB,), CONTENT, ret=ret)


def test_a_message_asks_for_nothing_by_default():
    message = Message("m1", None, (BOB,), CONTENT)
    assert (message.envid, message.ret) == (None, None)
    assert not message.require_tls
    assert not message.smtputf8


@pytest.mark.parametrize("envid", ["x", "QQ+31=4159", "two words", "e" * 100])
def test_an_envelope_identifier_is_printable_ascii(envid):
    assert Message("m1", None, (BOB,), CONTENT, envid=envid).envid == envid


@pytest.mark.parametrize("envid", ["", "e" * 101, "a\r\nRCPT TO:<x@y.test>", "a\tb", "ö", "a\x7f"])
def test_any_other_envelope_identifier_is_refused(envid):
    with pytest.raises(ValueError, match="allowed are 1 to 100 printable US-ASCII characters"):
        Message("m1", None, (BOB,), CONTENT, envid=envid)


@pytest.mark.parametrize("sender", ["", "<>"])
def test_the_null_path_is_none(sender):
    assert Message.parse_sender(sender) is None


@pytest.mark.parametrize("sender", ["a@b.test", "<a@b.test>"])
def test_a_sender_is_a_mailbox(sender):
    assert Message.parse_sender(sender) == Mailbox("a", "b.test")


@pytest.mark.parametrize("sender", [" ", "a", "a@", "<a@b.test"])
def test_any_other_sender_is_refused(sender):
    with pytest.raises(AddressSyntaxError):
        Message.parse_sender(sender)


@pytest.mark.parametrize("sender", [None, b"a@b.test", BOB.mailbox, ["a@b.test"]])
def test_a_sender_is_a_text(sender):
    said = f'sender is a {type(sender).__name__}; allowed is a text.* or "" for the null path'
    with pytest.raises(TypeError, match=said):
        Message.parse_sender(sender)


def test_messages_and_recipients_are_frozen():
    message = Message("m1", None, (BOB,), CONTENT)
    with pytest.raises(FrozenInstanceError):
        message.id = "m2"
    with pytest.raises(FrozenInstanceError):
        BOB.notify = frozenset({"never"})
