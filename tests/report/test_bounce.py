"""Whole bounces: what can be sent, read back by the library and by programs that live on bounces."""

from __future__ import annotations

import email
import email.policy
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.delivery.envelope import Dialect, build
from engine.message import Message
from engine.outcome import Peer, Status
from engine.report.bounce import (
    MAX_HEADER_OCTETS,
    BounceSettings,
    octets_needed,
    to_message,
)
from engine.report.bounce_rules import Fate, Kind
from engine.smtp.address import parse_mailbox
from engine.smtp.capabilities import Capabilities
from engine.smtp.content import ContentFacts, prepare, scan
from engine.smtp.mime import to_seven_bit
from engine.smtp.reply import Reply
from tests.report.bounces import (
    FAILED,
    HEADER,
    ORIGINAL,
    make_message,
    make_outcome,
    make_progress,
    make_report,
)
from tests.servers.provision import give_up

ROOT = Path(__file__).parents[2]
#: An environment with the extra `oracles`.
ORACLES = Path(os.environ.get("ENGINE_TEST_ORACLES", ROOT / ".venv-oracles"))

SETTINGS = BounceSettings("mail.a.test")
UTF8_ORIGINAL = ORIGINAL.replace(b"Hello", "Gr\u00fc\u00dfe".encode())
EIGHT_BIT = ORIGINAL.replace(
    b"\r\n\r\nDear",
    b"\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=latin-1\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\n\xfcber Dear",
)


def bounce_of(*entries, original=ORIGINAL, settings=SETTINGS, given=None, **facts):
    message = make_message(original=original, **facts)
    report = make_report(*entries, message=message)
    needed = octets_needed(report, settings)
    return to_message(report, settings, original[:needed] if given is None else given)


def read(octets):
    mail = email.message_from_bytes(octets, policy=email.policy.default)
    assert not mail.defects
    return mail


def parts_of(message):
    return list(read(message.content.octets).iter_parts())


def types_of(message):
    return [part.get_content_type() for part in parts_of(message)]


def returned_by(message):
    """The octets of the original that go back."""
    return body_of(message, 3)


def body_of(message, place):
    """The octets of a part, as a reader decodes them, who takes no message apart."""
    octets = message.content.octets
    mail = email.message_from_bytes(octets, policy=email.policy.compat32)
    boundary = mail.get_boundary().encode()
    part = octets.split(b"--" + boundary)[place]
    header, _, body = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    holder = email.message_from_bytes(
        b"Content-Type: application/x\r\n"
        + b"".join(line + b"\r\n" for line in header.split(b"\r\n") if b"Encoding" in line)
        + b"\r\n"
        + body.removesuffix(b"\r\n")
    )
    return holder.get_payload(decode=True)


def statuses_of(message):
    """The groups of the second part: dictionaries, the first about the message."""
    mail = email.message_from_bytes(message.content.octets)
    return [dict(group.items()) for group in mail.get_payload()[1].get_payload()]


# ---- the envelope -------------------------------------------------------------------------------


def test_a_bounce_goes_to_the_sender_and_never_bounces_itself():
    """RFC 3461 §6.1."""
    message = bounce_of(Kind.FAILED, envid="QQ1", ret="full")

    assert isinstance(message, Message)
    assert message.id == "report-1"
    assert message.reverse_path is None
    (recipient,) = message.recipients
    assert recipient.mailbox == parse_mailbox("alice@a.test")
    assert recipient.notify == {"never"}
    assert (message.envid, message.ret, recipient.orcpt) == (None, None, None)
    offered = Capabilities.parse(Reply(250, (b"mx.a.test", b"DSN", b"8BITMIME")))
    envelope = build(message, message.recipients, message.content.facts, Dialect(offered))
    assert envelope.mail.octets == b"MAIL FROM:<>\r\n"
    assert envelope.rcpts[0].octets == b"RCPT TO:<alice@a.test> NOTIFY=NEVER\r\n"


@pytest.mark.parametrize(
    ("sender", "to", "is_utf8"),
    [
        ("alice@a.test", b"To: <alice@a.test>", False),
        ('"al  ice"@a.test', b'To: <"al  ice"@a.test>', False),
        ("alice@[192.0.2.1]", b"To: <alice@[192.0.2.1]>", False),
        # The domain has a form that needs no SMTPUTF8.
        ("alice@b\u00fccher.test", b"To: <alice@xn--bcher-kva.test>", False),
        ("j\u00f6rg@a.test", "To: <j\u00f6rg@a.test>".encode(), True),
    ],
)
def test_only_a_sender_beyond_ascii_needs_smtputf8(sender, to, is_utf8):
    message = bounce_of(Kind.FAILED, sender=sender)

    assert to + b"\r\n" in message.content.octets
    assert message.smtputf8 is is_utf8
    assert message.recipients[0].mailbox == parse_mailbox(sender)


def test_the_facts_are_those_of_the_octets():
    content = bounce_of(Kind.FAILED, original=EIGHT_BIT).content

    assert content.facts == scan(content.octets)
    assert prepare(content.octets) == (content.octets, content.facts)


# ---- the header ---------------------------------------------------------------------------------


def test_the_header_says_what_it_is():
    mail = read(bounce_of(Kind.FAILED).content.octets)

    assert dict(mail.items()) == {
        "From": "Mail Delivery System <MAILER-DAEMON@mail.a.test>",
        "To": "alice@a.test",
        "Subject": "Your message was not delivered",
        "Date": "Sat, 28 Nov 2026 10:00:00 +0000",
        "Message-ID": "<report-1@mail.a.test>",
        "In-Reply-To": "<1@a.test>",
        "References": "<1@a.test>",
        "Auto-Submitted": "auto-replied",
        "MIME-Version": "1.0",
        "Content-Type": mail["Content-Type"],
    }
    assert mail.get_content_type() == "multipart/report"
    assert mail["Content-Type"].params["report-type"] == "delivery-status"


@pytest.mark.parametrize(
    ("kinds", "subject"),
    [
        ([Kind.FAILED], "Your message was not delivered"),
        ([Kind.EXPIRED], "Your message was not delivered"),
        ([Kind.DELAYED], "Your message is delayed"),
        ([Kind.RELAYED], "Your message was passed on"),
        ([Kind.DELIVERED], "Your message was delivered"),
        ([Kind.DELAYED, Kind.RELAYED], "Your message is delayed"),
    ],
)
def test_the_subject_tells_the_worst(kinds, subject):
    assert read(bounce_of(*kinds).content.octets)["Subject"] == subject


def test_a_message_without_message_id_is_not_referred_to():
    mail = read(bounce_of(Kind.FAILED, original=b"\r\nHello\r\n").content.octets)

    assert mail["In-Reply-To"] is None
    assert mail["References"] is None


@pytest.mark.parametrize(
    ("field", "require_tls", "has_it"),
    [
        (b"TLS-Required: No", False, True),
        (b"TLS-Required: No", True, False),
        (b"X: y", False, False),
    ],
)
def test_what_did_not_need_tls_needs_none_on_its_way_back(field, require_tls, has_it):
    """RFC 8689 §6."""
    original = field + b"\r\n" + ORIGINAL

    mail = read(bounce_of(Kind.FAILED, original=original, require_tls=require_tls).content.octets)

    assert (mail["TLS-Required"] == "No") is has_it


# ---- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_a_bounce_of_every_kind_is_read_back(kind):
    message = bounce_of(kind, envid="QQ1")

    text, _, returned = parts_of(message)
    assert text.get_content_type() == "text/plain"
    assert "alice@a.test" in text.get_content()
    first, second = statuses_of(message)
    assert first["Reporting-MTA"] == "dns; mail.a.test"
    assert first["Original-Envelope-Id"] == "QQ1"
    assert second["Action"] == kind.action
    assert second["Final-Recipient"].startswith("rfc822; ")
    assert returned.get_content_type() == (
        "message/rfc822" if kind.is_failure else "text/rfc822-headers"
    )
    assert message.content.octets.isascii()


def test_a_bounce_of_many_kinds_is_read_back():
    message = bounce_of(*Kind)

    assert [group["Action"] for group in statuses_of(message)[1:]] == [
        "failed",
        "failed",
        "delayed",
        "relayed",
        "delivered",
    ]


def test_the_same_report_is_the_same_octets():
    assert bounce_of(Kind.FAILED) == bounce_of(Kind.FAILED)


def test_a_boundary_in_the_original_does_no_harm():
    boundary = read(bounce_of(Kind.FAILED).content.octets).get_boundary()
    original = ORIGINAL + f"--{boundary}--\r\n".encode()

    message = bounce_of(Kind.FAILED, original=original)

    assert types_of(message) == ["text/plain", "message/delivery-status", "message/rfc822"]
    assert returned_by(message) == original


# ---- how much goes back -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ret", "limit", "is_whole"),
    [
        # RFC 3461 §4.3 and §6.2.
        (Kind.FAILED, None, 50_000, True),
        (Kind.FAILED, "full", 50_000, True),
        (Kind.FAILED, "hdrs", 50_000, False),
        (Kind.EXPIRED, None, 50_000, True),
        (Kind.DELAYED, "full", 50_000, False),
        (Kind.RELAYED, "full", 50_000, False),
        (Kind.DELIVERED, None, 50_000, False),
        (Kind.FAILED, None, len(ORIGINAL), True),
        (Kind.FAILED, None, len(ORIGINAL) - 1, False),
        (Kind.FAILED, "full", len(ORIGINAL) - 1, False),
        (Kind.FAILED, None, 0, False),
    ],
)
def test_a_small_message_that_failed_goes_back_whole(kind, ret, limit, is_whole):
    message = bounce_of(kind, ret=ret, settings=replace(SETTINGS, max_content_octets=limit))

    assert types_of(message)[2] == ("message/rfc822" if is_whole else "text/rfc822-headers")
    assert returned_by(message) == (ORIGINAL if is_whole else HEADER)
    text = " ".join(parts_of(message)[0].get_content().split())
    assert text.endswith("Your message is attached.") is is_whole


@pytest.mark.parametrize("ret", [None, "full", "hdrs"])
def test_a_protected_message_goes_back_without_its_body_and_protected(ret):
    """RFC 8689 §5."""
    message = bounce_of(Kind.FAILED, ret=ret, require_tls=True)

    assert message.require_tls
    assert returned_by(message) == HEADER
    assert b"Dear Bob" not in message.content.octets
    assert "protected connections only" in parts_of(message)[0].get_content()


def test_an_unprotected_message_goes_back_unprotected():
    assert not bounce_of(Kind.FAILED).require_tls


class Large:
    """A content that is not in memory."""

    octets = None

    def __init__(self, octets):
        self.facts = ContentFacts(octets, False, 78, False)


@pytest.mark.parametrize(
    ("size", "facts", "needed"),
    [
        (1000, {}, 1000),
        (1000, {"ret": "hdrs"}, 1000),
        (50 * 1024, {}, 50 * 1024),
        (90_000, {}, MAX_HEADER_OCTETS),
        (10**9, {"require_tls": True}, MAX_HEADER_OCTETS),
    ],
)
def test_no_more_of_a_content_is_read_than_is_needed(size, facts, needed):
    message = replace(make_message(**facts), content=Large(size))

    assert octets_needed(make_report(Kind.FAILED, message=message), SETTINGS) == needed


def test_of_a_large_content_the_header_goes_back():
    message = replace(make_message(), content=Large(10**9))
    report = make_report(Kind.FAILED, message=message)

    bounce = to_message(report, SETTINGS, ORIGINAL + b"x" * 60_000)

    assert returned_by(bounce) == HEADER


def test_half_a_content_does_not_pass_for_all_of_it():
    assert returned_by(bounce_of(Kind.FAILED, given=ORIGINAL[:-10])) == HEADER


def test_a_header_section_without_end_is_cut():
    original = HEADER + b"X: y\r\n" * 20_000

    returned = returned_by(bounce_of(Kind.FAILED, original=original))

    assert MAX_HEADER_OCTETS - 10 < len(returned) <= MAX_HEADER_OCTETS
    assert returned.endswith(b"X: y\r\n")


# ---- 8-bit and UTF-8 ----------------------------------------------------------------------------


def test_an_8_bit_message_goes_back_octet_for_octet():
    message = bounce_of(Kind.FAILED, original=EIGHT_BIT)

    assert types_of(message)[2] == "message/rfc822"
    assert returned_by(message) == EIGHT_BIT
    assert message.content.facts.is_8bit
    assert read(message.content.octets)["Content-Transfer-Encoding"] == "8bit"


@pytest.mark.parametrize(
    ("utf8", "kind"), [(True, "message/global"), (False, "text/rfc822-headers")]
)
def test_a_message_with_a_utf8_header_goes_back_as_such_or_without_body(utf8, kind):
    """RFC 6533 §4.2."""
    message = bounce_of(
        Kind.FAILED, original=UTF8_ORIGINAL, settings=replace(SETTINGS, utf8=utf8), smtputf8=True
    )

    assert types_of(message) == ["text/plain", "message/delivery-status", kind]
    assert not message.smtputf8
    # RFC 6533 §4.5: the way back may be without SMTPUTF8.
    assert message.content.octets.isascii()
    if utf8:
        assert returned_by(message) == UTF8_ORIGINAL


def test_to_whom_smtputf8_is_needed_anyway_nothing_is_encoded():
    """RFC 6533 §6.3, §6.4: 8-bit wherever possible."""
    progress = make_progress(Fate.GIVEN_UP, Status.FAILED, "j\u00f6rg@b.test")

    message = bounce_of((Kind.FAILED, progress), original=UTF8_ORIGINAL, sender="\u4e2d@a.test")

    assert message.smtputf8
    assert types_of(message)[1:] == ["message/global-delivery-status", "message/global"]
    assert message.content.octets.count(b"Content-Transfer-Encoding: 8bit") == 3
    assert UTF8_ORIGINAL in message.content.octets
    assert "Final-Recipient: utf-8; j\u00f6rg@b.test\r\n".encode() in message.content.octets


def test_a_utf8_header_alone_goes_back_as_such():
    """RFC 6533 §4.3."""
    message = bounce_of(Kind.FAILED, original=UTF8_ORIGINAL, ret="hdrs")

    assert types_of(message)[2] == "message/global-headers"
    assert returned_by(message) == HEADER.replace(b"Hello", "Gr\u00fc\u00dfe".encode())


@pytest.mark.parametrize(
    ("utf8", "kind", "recipient"),
    [
        (True, "message/global-delivery-status", "utf-8; j\u00f6rg@b.test"),
        (False, "message/delivery-status", r"utf-8; j\x{F6}rg@b.test"),
    ],
)
def test_a_recipient_beyond_ascii_is_named(utf8, kind, recipient):
    progress = make_progress(Fate.GIVEN_UP, Status.FAILED, "j\u00f6rg@b.test")

    message = bounce_of((Kind.FAILED, progress), settings=replace(SETTINGS, utf8=utf8))

    assert types_of(message)[1] == kind
    assert f"Final-Recipient: {recipient}\r\n".encode() in body_of(message, 2)
    assert "j\u00f6rg@b.test" in parts_of(message)[0].get_content()
    # The sender is ASCII, and so is all of the report: no host has to know SMTPUTF8.
    assert message.content.octets.isascii()


@pytest.mark.parametrize(
    "original",
    [
        pytest.param(ORIGINAL + b"\0\r\n", id="a NUL"),
        pytest.param(ORIGINAL + b"a\rb\r\n", id="a bare CR"),
        pytest.param(ORIGINAL + b"x" * 999 + b"\r\n", id="a long line"),
        pytest.param(ORIGINAL.replace(b"Hello", b"\xfc"), id="an 8-bit header"),
        pytest.param(b"Subject: \0\r\n" + ORIGINAL, id="a NUL in the header"),
        pytest.param(b"X: " + b"x" * 2000 + b"\r\n" + ORIGINAL, id="a long header field"),
        pytest.param(
            b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n"
            b"--b\r\n\r\n\xfc\r\n--b--\r\n",
            id="8-bit octets that are signed",
        ),
        pytest.param(
            b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n\r\n\xfc\r\n",
            id="8-bit octets that say they are encoded",
        ),
    ],
)
def test_a_message_that_not_every_host_could_take_goes_back_without_its_body(original):
    message = bounce_of(Kind.FAILED, original=original)

    content = message.content
    assert types_of(message)[2] == "text/rfc822-headers"
    assert content.octets.isascii()
    assert content.facts.longest_line <= 998
    assert returned_by(message) == original[: original.index(b"\r\n\r\n") + 2]
    assert "cannot be sent on as it is" in " ".join(parts_of(message)[0].get_content().split())


# ---- whatever peers and submitters say ----------------------------------------------------------


def test_a_hostile_reply_changes_nothing_but_its_text():
    reply = Reply(
        550,
        (
            b"x" * 10_000,
            b"\r\n\r\n--boundary\r\nContent-Type: text/html\r\n\r\n<b>hi</b>",
            b"\r\nAction: delivered\r\nBcc: eve@c.test",
            b"\x00\x07\x1b]0;title\x07\x85\xff",
        )
        * 100,
    )
    outcome = make_outcome(Status.FAILED, reply=reply, peer=Peer("mx\r\nX: y", "192.0.2.1", 25))

    message = bounce_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    octets = message.content.octets
    assert types_of(message) == ["text/plain", "message/delivery-status", "message/rfc822"]
    assert statuses_of(message)[1]["Action"] == "failed"
    assert set(statuses_of(message)[1]) == {
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
    }
    assert octets.isascii()
    assert octets.replace(b"\r\n", b"").decode().isprintable()
    assert message.content.facts.longest_line <= 998
    assert len(octets) < 40_000


ADDRESSES = st.builds(
    lambda local, domain: f"{local}@{domain}.test",
    st.from_regex(r"[a-z!#+=\u00e0-\u00ff\u4e00-\u4eff]{1,20}", fullmatch=True)
    | st.just('"\\" \\\\"'),
    st.sampled_from(["a", "b\u00fccher"]),
)
ORIGINALS = st.lists(
    st.sampled_from(
        [
            *(b"Subject: ", b"From: a@a.test", b"Content-Type: multipart/mixed; boundary=b"),
            *(
                b"Content-Type: message/rfc822",
                b"Content-Transfer-Encoding: base64",
                b"--b",
                b"--b--",
            ),
            *(
                b"\r\n",
                b"\r\n\r\n",
                b" ",
                b"\0",
                b"\r",
                b"\n",
                b"x" * 999,
                b"\xff",
                "\u00fc".encode(),
            ),
        ]
    ),
    max_size=30,
).map(b"".join)


@given(
    sender=ADDRESSES,
    address=ADDRESSES,
    original=ORIGINALS,
    lines=st.none() | st.lists(st.binary(max_size=1500), min_size=1, max_size=25),
    text=st.text(st.characters(), max_size=700),
    ret=st.sampled_from([None, "full", "hdrs"]),
    kind=st.sampled_from(Kind),
    utf8=st.booleans(),
    require_tls=st.booleans(),
)
def test_any_bounce_can_be_sent_and_read(
    sender, address, original, lines, text, ret, kind, utf8, require_tls
):
    reply = False if lines is None else Reply(550, tuple(lines))
    outcome = make_outcome(Status.FAILED, reply=reply, text=text, peer=Peer(text, text, 25))
    progress = make_progress(
        Fate.GIVEN_UP, address=address, outcome=outcome, reason=text, tried_at=1.0
    )
    settings = replace(SETTINGS, utf8=utf8)

    message = bounce_of(
        (kind, progress),
        sender=sender,
        original=original,
        settings=settings,
        ret=ret,
        require_tls=require_tls,
    )

    octets = message.content.octets
    # Lines end with CRLF and are short enough; no NUL; nothing else has to be done to it.
    assert prepare(octets) == (octets, message.content.facts)
    assert message.content.facts.longest_line <= 998
    # A host without 8BITMIME can be given it, unless it needs SMTPUTF8, which includes 8BITMIME.
    if not message.smtputf8:
        assert to_seven_bit(octets).isascii()
    mail = email.message_from_bytes(octets, policy=email.policy.default)
    first, second, third = mail.iter_parts()
    assert first.get_content_type() == "text/plain"
    assert second.get_content_type().endswith("delivery-status")
    assert third.get_content_type() in {
        *("message/rfc822", "message/global"),
        *("text/rfc822-headers", "message/global-headers"),
    }
    assert mail["Subject"].startswith("Your message")
    assert mail["Bcc"] is None
    if second.get_content_type() == "message/delivery-status":
        assert statuses_of(message)[1]["Action"] == kind.action
    if third.get_content_type() in {"message/rfc822", "message/global"}:
        assert returned_by(message) == original


# ---- settings -----------------------------------------------------------------------------------


def test_a_bounce_is_from_whom_the_settings_say():
    settings = replace(SETTINGS, mailbox="postmaster@a.test")

    mail = read(bounce_of(Kind.FAILED, settings=settings).content.octets)

    assert mail["From"].addresses[0].addr_spec == "postmaster@a.test"
    assert mail["From"].addresses[0].display_name == "Mail Delivery System"


@pytest.mark.parametrize("name", ["localhost", "[192.0.2.1]", "[IPv6:2001:db8::1]"])
def test_a_host_may_have_any_name_it_can_give_in_ehlo(name):
    mail = read(bounce_of(Kind.FAILED, settings=BounceSettings(name)).content.octets)

    assert mail["From"].endswith(f"<MAILER-DAEMON@{name}>")
    assert mail["Message-ID"] == f"<report-1@{name}>"


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"name": ""}, "name ''"),
        ({"name": "a b"}, "address literal"),
        ({"name": "a\r\nBcc: x"}, "address literal"),
        ({"name": "b\u00fccher.test"}, "US-ASCII"),
        ({"name": "b\u00fccher.test", "mailbox": "a@b.test"}, "US-ASCII"),
        ({"mailbox": "nobody"}, "mailbox 'nobody'"),
        ({"mailbox": "j\u00f6rg@a.test"}, "US-ASCII"),
        ({"max_content_octets": -1}, "0 or more"),
        ({"warn_after": (0.0,)}, "above 0"),
        ({"warn_after": (float("nan"),)}, "above 0"),
        ({"warn_after": (float("inf"),)}, "above 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(facts, problem):
    with pytest.raises(ValueError, match=problem):
        replace(SETTINGS, **facts)


def test_senders_are_warned_after_four_hours_unless_somebody_says_otherwise():
    assert SETTINGS.warn_after == (14_400.0,)
    assert replace(SETTINGS, warn_after=()).warn_after == ()


# ---- independent readers ------------------------------------------------------------------------

MANY = [
    Kind.FAILED,
    (
        Kind.FAILED,
        make_progress(
            Fate.GIVEN_UP,
            Status.FAILED,
            "list+eve@c.test",
            orcpt="rfc822;Eve@c.test",
            outcome=None,
        ),
    ),
    Kind.EXPIRED,
    Kind.DELAYED,
    Kind.RELAYED,
]

MAILMAN = """\
import email, json, sys
from flufl.bounce import all_failures
temporary, permanent = all_failures(email.message_from_bytes(sys.stdin.buffer.read()))
print(json.dumps([sorted(each.decode() for each in found) for found in (temporary, permanent)]))
"""

RUST = """\
import json, sys
from fast_mail_parser import parse_email
mail = parse_email(sys.stdin.buffer.read())
parts = [(part.mimetype, part.content.decode("latin-1")) for part in mail.attachments]
print(json.dumps([mail.text_plain, parts]))
"""


def read_by_oracle(script, message):
    python = ORACLES / "bin" / "python"
    if not python.exists():
        give_up("no .venv-oracles: make it, and install '.[oracles]' there")
    done = subprocess.run(
        [python, "-c", script], input=message.content.octets, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def read_by_mailman(message):
    """What Mailman's bounce processor finds: who failed for now, and who for good."""
    return read_by_oracle(MAILMAN, message)


@pytest.mark.parametrize("sender", ["alice@a.test", "\u4e2d@a.test"])
@pytest.mark.parametrize(
    ("original", "kind"),
    [
        (ORIGINAL, "message/rfc822"),
        (EIGHT_BIT, "message/rfc822"),
        (UTF8_ORIGINAL, "message/global"),
    ],
)
def test_a_reader_that_knows_mime_takes_a_bounce_apart(sender, original, kind):
    progress = make_progress(Fate.GIVEN_UP, Status.FAILED, "j\u00f6rg@b.test")
    message = bounce_of((Kind.FAILED, progress), original=original, sender=sender)

    (text,), (status, returned) = read_by_oracle(RUST, message)

    assert "<j\u00f6rg@b.test>" in text
    assert status[0] == "message/global-delivery-status"
    recipient = "Final-Recipient: utf-8; j\u00f6rg@b.test\r\n".encode()
    assert recipient in status[1].encode("latin-1")
    assert returned == [kind, original.decode("latin-1")]


@pytest.mark.parametrize(
    ("entries", "temporary", "permanent"),
    [
        ([Kind.FAILED], [], ["bob@b.test"]),
        ([Kind.EXPIRED], [], ["carol@b.test"]),
        ([Kind.DELAYED], ["dave@b.test"], []),
        ([Kind.RELAYED], [], []),
        ([Kind.DELIVERED], [], []),
        # It takes the original recipient where there is one.
        (MANY, ["dave@b.test"], ["Eve@c.test", "bob@b.test", "carol@b.test"]),
    ],
)
def test_a_list_manager_knows_who_cannot_be_reached(entries, temporary, permanent):
    assert read_by_mailman(bounce_of(*entries)) == [temporary, permanent]


@pytest.mark.parametrize("original", [EIGHT_BIT, UTF8_ORIGINAL, ORIGINAL + b"\0\r\n"])
def test_a_list_manager_knows_it_whatever_is_returned(original):
    message = bounce_of(Kind.FAILED, original=original)

    assert read_by_mailman(message) == [[], ["bob@b.test"]]


SISIMAI = """\
use Sisimai;
local $/;
my $mail = <STDIN>;
print Sisimai->dump(\\$mail, "delivered" => 1) // "[]";
"""


def read_by_sisimai(message):
    """What Sisimai, which reads bounces of some fifty mail systems, makes of one."""
    perl = shutil.which("perl")
    if (
        perl is None
        or subprocess.run([perl, "-MSisimai", "-e1"], check=False, capture_output=True).returncode
    ):
        give_up("no Sisimai: get it with apt-get install libsisimai-perl")
    done = subprocess.run(
        [perl, "-e", SISIMAI], input=message.content.octets, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    keys = ("recipient", "action", "deliverystatus", "reason", "replycode", "softbounce")
    return sorted(tuple(each[key] for key in keys) for each in found)


BOB = ("bob@b.test", "failed", "5.1.1", "userunknown", "550", 0)
CAROL = ("carol@b.test", "failed", "4.2.2", "mailboxfull", "452", 1)
DAVE = ("dave@b.test", "delayed", "4.2.2", "mailboxfull", "452", 1)
ERIN = ("erin@b.test", "relayed", "2.6.0", "delivered", "250", -1)
FRANK = ("frank@b.test", "delivered", "2.6.0", "delivered", "250", -1)


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([Kind.FAILED], [BOB]),
        ([Kind.EXPIRED], [CAROL]),
        ([Kind.DELAYED], [DAVE]),
        ([Kind.RELAYED], [ERIN]),
        ([Kind.DELIVERED], [FRANK]),
        (list(Kind), [BOB, CAROL, DAVE, ERIN, FRANK]),
    ],
)
def test_a_bounce_analyser_knows_what_became_of_whom(entries, found):
    assert read_by_sisimai(bounce_of(*entries)) == found


@pytest.mark.parametrize("original", [EIGHT_BIT, UTF8_ORIGINAL])
def test_a_bounce_analyser_knows_it_whatever_is_returned(original):
    assert read_by_sisimai(bounce_of(Kind.FAILED, original=original)) == [BOB]


def test_a_bounce_analyser_reads_a_reply_of_several_lines():
    reply = Reply(550, (b"5.7.1 [192.0.2.9] Our system has detected", b"5.7.1 spam (see x)"))
    outcome = make_outcome(Status.FAILED, reply=reply)

    message = bounce_of((Kind.FAILED, replace(FAILED, outcome=outcome)))

    ((recipient, action, status, _, code, _),) = read_by_sisimai(message)
    assert (recipient, action, status, code) == ("bob@b.test", "failed", "5.7.1", "550")
