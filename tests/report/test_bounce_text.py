"""What a person reads, who is no mail administrator."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Peer, Status
from engine.report.bounce_rules import Fate, Kind
from engine.report.bounce_text import SUBJECTS, explain
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode
from tests.report.bounces import (
    DELAYED,
    FAILED,
    HEADER,
    make_message,
    make_outcome,
    make_progress,
    make_report,
)

NAME = "mail.a.test"


def text_of(*entries, header=HEADER, returned="whole", **facts):
    return explain(make_report(*entries, **facts), NAME, header, returned)


def words_of(*entries, **facts):
    """The text without regard to where its lines end."""
    return " ".join(text_of(*entries, **facts).split())


def test_a_failure_is_explained():
    assert text_of(Kind.FAILED) == (
        "This is an automatic report from the mail system at mail.a.test.\n"
        "\n"
        "It is about a message that was sent from this address:\n"
        "    <alice@a.test>\n"
        "\n"
        "    Subject: Hello\n"
        "    Date: Sat, 28 Nov 2026 04:26:39 +0000\n"
        "\n"
        "NOT DELIVERED. Your message could not be delivered to:\n"
        "\n"
        "    <bob@b.test>\n"
        "\n"
        "The mail server mx.b.test [192.0.2.1] said when it was told the recipient's\n"
        "address:\n"
        "    550 5.1.1 no such user\n"
        "\n"
        "What you can do: Check the address for mistakes. If it is right, it may no\n"
        "longer exist: reach the recipient in another way.\n"
        "\n"
        "We will not try again.\n"
        "\n"
        "Your message is attached.\n"
    )


def test_a_delay_says_that_nothing_need_be_done():
    text = words_of(Kind.DELAYED)

    assert "DELAYED. Your message has not been delivered yet to: <dave@b.test>" in text
    assert "said when it had been given the message: 452 4.2.2 mailbox full" in text
    assert (
        "You need not do anything; please do not send the message again. We go on trying until "
        "Tue, 01 Dec 2026 21:20:00 +0000, and you will be told if it cannot be delivered."
    ) in text
    assert "What you can do" not in text


def test_who_does_not_know_until_when_does_not_say_so():
    text = words_of((Kind.DELAYED, replace(DELAYED, retry_until=None)))

    assert "We go on trying, and you will be told" in text


def test_the_end_is_that_of_the_last_to_be_given_up():
    text = words_of(
        (Kind.DELAYED, replace(DELAYED, retry_until=86_400.0)),
        (Kind.DELAYED, replace(DELAYED, retry_until=2 * 86_400.0)),
        (Kind.DELAYED, replace(DELAYED, retry_until=None)),
    )

    assert text.count("until") == 1
    assert "until Sat, 03 Jan 1970 00:00:00 +0000," in text


def test_who_gave_up_says_why():
    text = words_of(Kind.EXPIRED)

    assert "NOT DELIVERED. In all that time your message could not be delivered to:" in text
    assert "Why it ended: given up: quota at attempt 30, 4d after the first" in text
    assert "The mailbox is full. Try again later" in text
    assert "We will not try again." in text


def test_what_was_cancelled_says_so():
    text = words_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, reason="cancelled by postmaster")))

    assert "Why it ended: cancelled by postmaster" in text
    assert "said" not in text


def test_a_refusal_needs_no_other_reason():
    text = words_of((Kind.FAILED, replace(FAILED, reason="permanent: trying again would not help")))

    assert "permanent" not in text


def test_what_was_passed_on_is_not_called_delivered():
    text = words_of(Kind.RELAYED)

    assert "PASSED ON. Your message was handed over to the mail system of: <erin@b.test>" in text
    assert "we cannot tell whether the message arrived" in text
    assert "DELIVERED" not in text


def test_what_was_delivered_is_not_called_read():
    text = words_of(Kind.DELIVERED)

    assert "DELIVERED. Your message was delivered to: <frank@b.test>" in text
    assert "That does not say that anybody has read it." in text


def test_what_may_have_arrived_is_not_called_lost():
    outcome = make_outcome(
        Status.UNKNOWN, reply=False, stage=Stage.FINAL, text="SMTP timeout after end of data"
    )

    text = words_of((Kind.EXPIRED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    assert "What happened: SMTP timeout after end of data" in text
    assert "It may have arrived all the same" in text


def test_one_report_may_tell_of_everything_the_worst_first():
    text = text_of(Kind.DELIVERED, Kind.RELAYED, Kind.DELAYED, Kind.EXPIRED, Kind.FAILED)

    starts = ("NOT DELIVERED.", "DELAYED.", "PASSED ON.", "DELIVERED.")
    assert [line.split(" Y")[0] for line in text.split("\n") if line.startswith(starts)] == [
        "NOT DELIVERED.",
        "NOT DELIVERED. In all that time your message could not be delivered to:",
        "DELAYED.",
        "PASSED ON.",
        "DELIVERED.",
    ]


def test_equal_stories_are_told_once():
    progress = [
        (Kind.FAILED, make_progress(Fate.GIVEN_UP, Status.FAILED, f"{name}@b.test"))
        for name in ("a", "b", "c")
    ]
    other = make_outcome(Status.FAILED, reply=Reply(554, (b"5.7.1 spam",)))

    text = text_of(
        *progress[:2],
        (Kind.FAILED, make_progress(Fate.GIVEN_UP, address="d@b.test", outcome=other)),
        progress[2],
    )

    assert text.count("550 5.1.1 no such user") == 1
    assert "    <a@b.test>\n    <b@b.test>\n    <c@b.test>\n\nThe mail server" in text
    assert text.index("<c@b.test>") < text.index("<d@b.test>") < text.index("554 5.7.1 spam")
    assert text.count("NOT DELIVERED") == text.count("We will not try again") == 1


@pytest.mark.parametrize(
    ("stage", "when"),
    [
        (Stage.GREETING, "when we turned to it"),
        (Stage.STARTTLS, "when we turned to it"),
        (Stage.MAIL, "when it was told your address"),
        (Stage.RCPT, "when it was told the recipient's address"),
        (Stage.DATA, "when it was about to be given the message"),
        (Stage.CONTENT, "while it was being given the message"),
        (Stage.FINAL, "when it had been given the message"),
    ],
)
def test_it_says_what_the_other_mail_system_answered_to(stage, when):
    outcome = make_outcome(Status.FAILED, stage=stage)

    text = words_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    assert f"The mail server mx.b.test [192.0.2.1] said {when}: 550" in text


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        (Peer("mx.b.test", "192.0.2.1", 25), "The mail server mx.b.test [192.0.2.1] said"),
        (Peer("192.0.2.1", "192.0.2.1", 25), "The mail server 192.0.2.1 said"),
        (Peer("mx.b.test"), "The mail server mx.b.test said"),
        (None, "The mail server said"),
    ],
)
def test_the_other_mail_system_is_named_as_far_as_it_is_known(peer, who):
    outcome = make_outcome(Status.FAILED, peer=peer)

    assert who in words_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("5.1.1", "Check the address for mistakes."),
        ("5.1.2", "there is no such domain"),
        ("5.1.10", "This domain takes no mail at all."),
        ("5.2.1", "Something is wrong with the mailbox."),
        ("5.2.2", "The mailbox is full."),
        ("5.2.3", "The message is too large for this recipient."),
        ("5.3.4", "The message is too large for the other mail system."),
        ("5.3.0", "Show this report to the administrator of your mail system."),
        ("5.4.4", "could not be reached"),
        ("5.6.3", "Send it as plain text."),
        ("5.6.7", "letters beyond a to z"),
        ("5.7.1", "refuses the message by its own rules"),
        ("5.7.10", "protected connections only, and none could be made"),
        ("5.7.30", "does not promise to do so"),
        ("5.0.0", "Show this report to the administrator of your mail system."),
        ("5.999.0", "Show this report to the administrator of your mail system."),
    ],
)
def test_it_says_what_can_be_done(code, advice):
    outcome = make_outcome(Status.FAILED, enhanced=EnhancedStatusCode.parse(code))

    text = words_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    assert "What you can do: " in text
    assert advice in text.partition("What you can do: ")[2]


@pytest.mark.parametrize(
    ("returned", "end"),
    [
        ("whole", "Your message is attached."),
        ("header", "The header of your message is attached."),
        ("too-large", "which is too large or cannot be sent on as it is."),
        ("protected", "which was to travel over protected connections only."),
    ],
)
def test_it_ends_with_what_is_attached(returned, end):
    assert words_of(Kind.FAILED, returned=returned).endswith(end)


def test_a_message_without_subject_and_date_is_known_by_its_sender():
    text = text_of(Kind.FAILED, header=b"")

    assert "    <alice@a.test>\n\nNOT DELIVERED" in text


def test_letters_of_all_languages_are_shown():
    message = make_message(sender="j\u00f6rg@a.test")
    outcome = make_outcome(Status.FAILED, reply=Reply(550, ("\u7528\u6237".encode(),)))
    progress = make_progress(Fate.GIVEN_UP, address="\u4e2d@b.test", outcome=outcome)

    text = text_of(
        (Kind.FAILED, progress), message=message, header="Subject: \u00e9t\u00e9\r\n".encode()
    )

    for word in ("<j\u00f6rg@a.test>", "<\u4e2d@b.test>", "550 \u7528\u6237", "\u00e9t\u00e9"):
        assert word in text


def test_what_others_say_is_indented_so_that_it_cannot_pass_for_ours():
    outcome = make_outcome(
        Status.FAILED, reply=Reply(550, (b"no. " * 40 + b"NOT DELIVERED. Send money to:",))
    )
    header = b"Subject: DELIVERED. We will try again.\r\n"

    text = text_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)), header=header)

    lines = text.split("\n")
    assert [line for line in lines if "DELIVERED." in line and line[0] != " "] == [
        "NOT DELIVERED. Your message could not be delivered to:"
    ]
    assert max(map(len, lines)) <= 78


@given(
    st.text(st.characters(), max_size=300),
    st.text(st.characters(), max_size=300),
    st.lists(st.binary(max_size=3000), min_size=1, max_size=30),
    st.binary(max_size=300),
)
def test_whatever_is_said_lines_are_short_enough(text, host, lines, subject):
    peer = Peer(host, host, 25)
    told = make_outcome(Status.FAILED, reply=Reply(550, tuple(lines)), peer=peer)
    lost = make_outcome(Status.DEFERRED, reply=False, text=text, cause=Cause.CLOSED, peer=peer)
    header = b"Subject: " + subject.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"

    found = text_of(
        (Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=told)),
        (Kind.EXPIRED, make_progress(Fate.GIVEN_UP, outcome=lost, reason=text)),
        header=header,
    )

    assert all(len(line.encode()) <= 998 for line in found.split("\n"))
    assert found.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_subject(kind):
    assert SUBJECTS[kind].startswith("Your message ")
