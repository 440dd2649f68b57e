from __future__ import annotations

import smtplib
from contextlib import suppress
from email import message_from_bytes, policy
from email.header import Header
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.blocking import Engine
from engine.email_message import message_from_email
from engine.smtp.errors import AddressSyntaxError, ContentError
from engine.testing.sink_thread import sink_in_thread


def an_email(body: str = "Hello.\n", **fields: str) -> EmailMessage:
    email = EmailMessage()
    for name, value in ({"From": "Me <me@x.test>", "To": "a@x.test"} | fields).items():
        if value:
            email[name.replace("_", "-")] = value
    email["Subject"] = "Hello"
    email.set_content(body)
    return email


def octets_of(email: object, **more: object) -> bytes:
    octets = message_from_email(email, **more).content.octets
    assert octets is not None
    return octets


def addresses_of(email: object) -> list[str]:
    return [recipient.address for recipient in message_from_email(email).recipients]


def test_fields_say_whom_it_is_from_and_for():
    email = an_email(To="Ann <a@x.test>, b@x.test", Cc="g: c@x.test, a@x.test;", Bcc="d@x.test")
    message = message_from_email(email)

    assert str(message.reverse_path) == "me@x.test"
    assert [each.address for each in message.recipients] == [f"{n}@x.test" for n in "abcd"]
    assert (message.id, message.smtputf8) == ("", False)
    assert email["Bcc"] == "d@x.test"


def test_what_others_must_not_see_is_taken_out_and_nothing_is_added():
    octets = octets_of(an_email(Bcc="d@x.test"))

    assert octets.startswith(b"From: Me <me@x.test>\r\nTo: a@x.test\r\nSubject: Hello\r\n")
    assert octets.endswith(b"\r\n\r\nHello.\r\n")
    for name in (b"Bcc", b"Date", b"Message-ID"):
        assert name not in octets


def test_the_caller_may_say_it_all():
    message = message_from_email(
        an_email(From="", To="nobody"), sender="bounces+1@x.test", recipients=["b@x.test"], id="one"
    )
    assert (message.id, str(message.reverse_path)) == ("one", "bounces+1@x.test")
    assert [each.address for each in message.recipients] == ["b@x.test"]
    assert message_from_email(an_email(), sender="").reverse_path is None


def test_who_sent_it_comes_before_who_wrote_it():
    email = an_email(From="a@x.test, b@x.test", Sender="c@x.test")
    assert str(message_from_email(email).reverse_path) == "c@x.test"


def test_of_mail_that_was_resent_the_last_resending_counts():
    email = an_email(Sender="s@x.test", Resent_From="r@x.test", Resent_To="t@x.test")
    email["Resent-Bcc"] = "u@x.test"
    message = message_from_email(email)
    assert str(message.reverse_path) == "r@x.test"
    assert [each.address for each in message.recipients] == ["t@x.test", "u@x.test"]
    assert b"u@x.test" not in octets_of(email)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"From": ""}, "found 0 addresses in From and none in Sender"),
        ({"From": "a@x.test, b@x.test"}, "found 2 addresses in From"),
        ({"To": ""}, "found nobody in To, Cc and Bcc"),
        ({"To": "undisclosed-recipients:;"}, "found nobody"),
        ({"To": "a@x.test b@x.test"}, "To: found .*invalid address in address-list"),
        ({"To": "a@x.test; b@x.test"}, "To: found .*allowed are addresses with commas"),
        ({"To": "a@x.test, Bob <b@x.test"}, "To: found .*missing trailing '>'"),
        ({"Cc": "bob"}, "Cc: found .*no domain"),
    ],
)
def test_fields_that_do_not_say_it_are_refused(fields: dict[str, str], text: str):
    with pytest.raises(ValueError, match=text):
        message_from_email(an_email(**fields))


@pytest.mark.parametrize(
    ("field", "text"),
    [("a@x.test b@x.test", "To: found"), ("bob", 'no "@"'), ("Bob <b@x.test", "To: found")],
)
def test_fields_of_older_messages_are_refused_as_well(field: str, text: str):
    email = MIMEText("Hello.\n")
    email["From"], email["To"] = "me@x.test", field
    with pytest.raises(ValueError, match=text):
        message_from_email(email)


def test_what_is_no_message_and_no_list_is_refused():
    for found in ("From: me@x.test\n\nHello.\n", b"", None):
        with pytest.raises(TypeError, match=r"allowed is an email\.message\.EmailMessage"):
            message_from_email(found)
    with pytest.raises(TypeError, match="allowed is a list of addresses"):
        message_from_email(an_email(), recipients="a@x.test")
    with pytest.raises(AddressSyntaxError):
        message_from_email(an_email(), recipients=["bob"])
    with pytest.raises(ContentError):
        message_from_email(message_from_bytes(b"From: a@x.test\nTo: b@x.test\n\n\0\n"))


def test_what_the_standard_library_stumbles_over_is_refused():
    email = message_from_bytes(b"From: a@x.test\nTo: b:; <b@x.test>\n\nx\n", policy=policy.default)
    with pytest.raises(ValueError, match="cannot be read: AttributeError"):
        message_from_email(email)


def test_names_are_encoded_and_need_nothing_of_hosts():
    message = message_from_email(an_email(To="Jürgen <a@x.test>"))
    assert b"To: =?utf-8?" in (message.content.octets or b"")
    assert not message.smtputf8
    assert not message.content.facts.has_utf8_header


def test_addresses_that_are_not_ascii_are_shown_as_they_are():
    older = MIMEText("Hällo.\n")
    older["From"], older["To"] = "me@x.test", "Jürgen <ü@x.test>"
    older["Subject"] = Header("Grüße", "utf-8")
    older["Received"], older["received"] = "one", "two"
    for email in (an_email(To="Jürgen <ü@x.test>"), older):
        message = message_from_email(email)
        assert "To: Jürgen <ü@x.test>\r\n".encode() in (message.content.octets or b"")
        assert message.smtputf8
        assert [each.address for each in message.recipients] == ["ü@x.test"]
    octets = octets_of(older)
    assert "Subject: Grüße\r\n".encode() in octets
    assert octets.index(b": one\r\n") < octets.index(b": two\r\n")
    assert isinstance(older["Subject"], Header)


def test_lines_that_begin_with_from_stay_as_they_are():
    assert octets_of(an_email("From here on.\n")).endswith(b"\r\n\r\nFrom here on.\r\n")
    older = MIMEText("From here on.\n")
    older["From"] = older["To"] = "me@x.test"
    assert octets_of(older).endswith(b"\r\n\r\nFrom here on.\r\n")


def test_messages_with_parts_keep_them():
    email = MIMEMultipart()
    email["From"] = email["To"] = "me@x.test"
    email.attach(MIMEText("Hällo.\n", "plain", "utf-8"))
    email.attach(MIMEText("<p>Hällo.</p>\n", "html", "utf-8"))
    read = message_from_bytes(octets_of(email), policy=policy.default)
    assert [part.get_content() for part in read.iter_parts()] == ["Hällo.\n", "<p>Hällo.</p>\n"]


def test_it_sends_what_smtplib_sends():
    email = an_email(Cc="Jürgen <c@x.test>", Bcc="d@x.test")
    with sink_in_thread(keep=True) as sink:
        with smtplib.SMTP(sink.host, sink.port) as client:
            client.send_message(email)
        with Engine(routes=[("*", [f"{sink.host}:{sink.port}"])]) as engine:
            engine.send(message_from_email(email))
        theirs, ours = sink.messages
    assert sorted(ours.recipients) == sorted(theirs.recipients)
    assert ours.reverse_path == theirs.reverse_path
    assert ours.content == theirs.content


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, unique=True), st.text('ab,;<>@:" é', max_size=9)
)
def test_nobody_is_lost_without_a_word(names: list[str], noise: str):
    wanted = [f"{name}@x.test" for name in names]
    for make in (an_email, lambda **_: MIMEText("Hello.\n")):
        email = make(To="")
        if "From" not in email:
            email["From"] = "me@x.test"
        with suppress(AttributeError, IndexError):  # it stumbles over some
            email["To"] = ", ".join([*wanted[:1], f"{noise} <{wanted[-1]}>", *wanted])
        try:
            found = addresses_of(email)
        except ValueError:
            continue
        assert set(wanted) <= set(found)
