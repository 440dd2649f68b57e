from __future__ import annotations

import email
import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.smtp.content import normalise
from engine.smtp.errors import NotConvertibleError
from engine.smtp.mime import MAX_DEPTH, to_seven_bit


def crlf(text):
    return text.replace("\n", "\r\n").encode()


def converted(text):
    return to_seven_bit(crlf(text)).decode("ascii").replace("\r\n", "\n")


# ---- what stays as it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"a: b\r\n\r\nc\r\n",
        b"no header\r\n",
        b"a: b\r\nContent-Transfer-Encoding: 8bit\r\n\r\nc\r\n",
        b"DKIM-Signature: x\r\n\r\nlone \n and \r and \0",
        b"x" * 5000,
    ],
)
def test_what_is_7_bit_comes_back_as_the_same_object(octets):
    assert to_seven_bit(octets) is octets


# ---- one body ----------------------------------------------------------------------------------------


def test_text_becomes_quoted_printable():
    assert converted(
        "Subject: hi\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: 8bit\nX-Last: 1\n\nGrüße = gut \n\n.\n.. \nEnde\n"
    ) == (
        "Subject: hi\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\nX-Last: 1\n\n"
        "Gr=C3=BC=C3=9Fe =3D gut=20\n\n=2E\n..=20\nEnde\n"
    )


def test_what_is_not_text_becomes_base64():
    assert converted("MIME-Version: 1.0\nContent-Type: application/json\n\n{'ü': 1}\n") == (
        "MIME-Version: 1.0\nContent-Type: application/json\n"
        "Content-Transfer-Encoding: base64\n\neyfDvCc6IDF9DQo=\n"
    )


def test_base64_stands_in_lines_of_76():
    body = "ü" * 100
    result = converted(f"MIME-Version: 1.0\nContent-Type: image/x-y\n\n{body}\n")
    lines = result.partition("\n\n")[2].splitlines()
    assert list(map(len, lines)) == [76, 76, 76, 44]
    assert result.endswith("\n")


@pytest.mark.parametrize(
    ("body", "charset"),
    [("Grüße\n".encode(), b"utf-8"), ("Grüße\n".encode("latin-1"), b"unknown-8bit")],
)
def test_a_body_that_says_no_type_gets_one(body, charset):
    """RFC 1428 §3: `unknown-8bit` where nothing is known about the character set."""
    octets = b"Subject: hi\r\n\r\n" + normalise(body)
    assert to_seven_bit(octets).startswith(
        b"Subject: hi\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=" + charset + b"\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\nGr="
    )  # fmt: skip


def test_a_message_without_header_section_gets_one():
    assert converted("\nGrüße\n") == (
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\n\nGr=C3=BC=C3=9Fe\n"
    )


def test_a_type_without_mime_version_is_believed():
    assert converted("Content-Type: text/html; charset=latin-1\n\n<ü>\n") == (
        "Content-Type: text/html; charset=latin-1\nMIME-Version: 1.0\n"
        "Content-Transfer-Encoding: quoted-printable\n\n<=C3=BC>\n"
    )


@pytest.mark.parametrize(
    "label", ["7bit", "8bit", "BINARY", " 8Bit (as it comes)", "\n 8bit", "binary \n\t(x)"]
)
def test_any_label_of_what_is_not_encoded_is_replaced(label):
    result = converted(f"content-transfer-ENCODING :{label}\nX: y\n\nü\n")
    assert result.startswith("Content-Transfer-Encoding: quoted-printable\nX: y\n")


def body_of(text):
    """The encoded body of a text with one 8-bit line behind it."""
    return converted(f"\n{text}ü\n").partition("\n\n")[2].removesuffix("=C3=BC\n")


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("From me\n", "=46rom me\n"),
        (f"From {'x' * 69}\n", f"=46rom {'x' * 69}\n"),
        (f"From {'x' * 70}\n", f"=46rom=\n {'x' * 70}\n"),
        (f"From {'x' * 72}\n", f"=46rom=\n {'x' * 70}=\nxx\n"),
        ("From \n", "From=20\n"),
        (">From me\n", ">From me\n"),
        (".\n", "=2E\n"),
        (".\n.\n", "=2E\n=2E\n"),
        (f"{'x' * 75}.\n.\n", f"{'x' * 75}=\n=2E\n=2E\n"),
        (".x\n", ".x\n"),
        ("\t\n", "=09\n"),
        ("a\tb \n", "a\tb=20\n"),
        ("a\x07\x7f\n", "a=07=7F\n"),
        ("\n\n", "\n\n"),
        ("x" * 76 + "\n", f"{'x' * 75}=\nx\n"),
        (f"{'x' * 73} \n", f"{'x' * 73}=20\n"),
        (f"{'x' * 74} \n", f"{'x' * 74}=\n=20\n"),
        (f"{'x' * 75}\t\n", f"{'x' * 75}=\n=09\n"),
        (f"{'x' * 76} \n", f"{'x' * 75}=\nx=20\n"),
        (f"From {'x' * 69} \n", f"=46rom=\n {'x' * 69}=\n=20\n"),
    ],
)
def test_quoted_printable_is_safe_with_old_mail_systems(text, encoded):
    """RFC 2049 §3: dots, From lines and blanks at ends do not survive everywhere."""
    assert body_of(text) == encoded


def test_a_from_line_that_a_soft_break_makes_is_protected_too():
    text = "x" * 75 + "From here\n"
    assert body_of(text) == f"{'x' * 75}=\n=46rom here\n"


# ---- parts -------------------------------------------------------------------------------------------

MIXED = """\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="=_b 1"
Content-Transfer-Encoding: 8bit

A preamble.
--=_b 1
Content-Type:   text/plain;
   charset=utf-8
content-transfer-encoding: 8BIT

Grüße

--=_b 1 \t
CONTENT-TRANSFER-ENCODING: BINARY
X: y

plain \n

--=_b 1 not
--=_b 1
Content-Type: application/x-y

ÿ
--=_b 1

ünd

--=_b 1--
An epilogue.
--=_b 1
not a part
"""

MIXED_CONVERTED = """\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="=_b 1"
Content-Transfer-Encoding: 7bit

A preamble.
--=_b 1
Content-Type:   text/plain;
   charset=utf-8
Content-Transfer-Encoding: quoted-printable

Gr=C3=BC=C3=9Fe

--=_b 1 \t
CONTENT-TRANSFER-ENCODING: 7bit
X: y

plain \n

--=_b 1 not
--=_b 1
Content-Type: application/x-y
Content-Transfer-Encoding: base64

w78=
--=_b 1
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

=C3=BCnd

--=_b 1--
An epilogue.
--=_b 1
not a part
"""


def test_each_part_is_changed_no_more_than_it_needs():
    assert converted(MIXED) == MIXED_CONVERTED


PLAIN = "\nplain"
EIGHT_BIT = "\nü"


def message(entity):
    return f"MIME-Version: 1.0\n{entity}\n"


def wrap(*parts, kind="mixed", boundary="b"):
    """A multipart entity without the end of its last line."""
    inner = "".join(f"--{boundary}\n{part}\n" for part in parts)
    return f"Content-Type: multipart/{kind}; boundary={boundary}\n\n{inner}--{boundary}--"


def test_parts_are_found_at_any_depth():
    inner = wrap(EIGHT_BIT, boundary="b2")
    result = converted(message(wrap(inner, PLAIN)))
    expected = wrap(
        "Content-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\n\n=C3=BC",
        boundary="b2",
    )
    assert result == message(wrap(expected, PLAIN))


def test_a_message_inside_is_converted_as_one():
    inner = "Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: in\n\nü"
    result = converted(message(wrap(inner)))
    expected = (
        "Content-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\n"
        "Subject: in\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\n\n=C3=BC"
    )
    assert result == message(wrap(expected))


def test_the_parts_of_a_digest_are_messages():
    """RFC 2046 §5.1.5."""
    result = converted(message(wrap("\nSubject: in\n\nü", kind="digest")))
    assert "\n--b\n\nSubject: in\nMIME-Version: 1.0\n" in result


def test_a_7_bit_message_inside_keeps_every_octet():
    """It may be signed itself."""
    inner = (
        "Content-Type: message/rfc822\n\nDKIM-Signature: x\nContent-Transfer-Encoding: 8bit\n\nok"
    )
    assert inner in converted(message(wrap(inner, EIGHT_BIT)))


def test_a_7_bit_signed_part_keeps_every_octet_of_its_body():
    signed = wrap("Content-Transfer-Encoding: 8bit\n\nok", "\nsig", kind="signed", boundary="s")
    assert signed in converted(message(wrap(signed, EIGHT_BIT)))


def test_a_signed_message_inside_may_be_converted():
    """Only the signature of the message itself is what its receivers check."""
    inner = "Content-Type: message/rfc822\n\nDKIM-Signature: x\n\nü"
    assert "=C3=BC" in converted(message(wrap(inner)))


def test_a_body_that_looks_like_a_label_is_let_alone():
    part = "\nContent-Transfer-Encoding: 8bit\n\nok"
    assert f"--b\n{part}\n--b" in converted(message(wrap(part, EIGHT_BIT)))


def test_an_international_message_inside_may_be_encoded():
    """RFC 6532 §3.7, unlike message/rfc822."""
    inner = "Content-Type: message/global\n\nSubject: ü\n\nü"
    result = converted(message(wrap(inner)))
    assert (
        "Content-Transfer-Encoding: quoted-printable\n\nSubject: =C3=BC\n\n=C3=BC\n--b--" in result
    )


def test_a_missing_last_delimiter_is_no_obstacle():
    text = message(wrap(PLAIN, EIGHT_BIT).removesuffix("--b--")).removesuffix("\n")
    assert converted(text).endswith("--b\n\nplain\n--b\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\n\n=C3=BC\n")  # fmt: skip
    text = text.replace("\n\nü", "\nContent-Type: image/x\n\nü")
    assert converted(text).endswith("Content-Transfer-Encoding: base64\n\nw7wNCg==\n")


def test_empty_parts_and_delimiters_in_a_row_are_kept():
    text = "Content-Type: multipart/mixed; boundary=b\n\n--b\n--b\n\n--b\n\n\n--b\n\nü\n--b--\n"
    result = converted(f"MIME-Version: 1.0\n{text}")
    assert "\n\n--b\n--b\n\n--b\n\n\n--b\nContent-Type: " in result


@pytest.mark.parametrize(
    "value",
    [
        "multipart/mixed; boundary=b",
        "Multipart/Mixed;BOUNDARY=b",
        'multipart/mixed; boundary="b"',
        'multipart/mixed; boundary="\\b" ; x=y',
        'multipart/mixed;;; x="a;\\" boundary=c"; boundary = "b "',
        "multipart/mixed\n ;\n\tboundary\n =\n b",
        "multipart/mixed; boundary=b; boundary=c",
    ],
)
def test_a_boundary_is_found_however_it_is_written(value):
    text = f"MIME-Version: 1.0\nContent-Type: {value}\n\n--b\n\nü\n--b--\n"
    assert "=C3=BC\n--b--\n" in converted(text)


def test_a_folded_boundary_is_one_with_a_blank():
    text = 'Content-Type: multipart/mixed; boundary="b\n c"\n\n--b c\n\nü\n--b c--'
    assert "=C3=BC\n--b c--\n" in converted(message(text))


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("DKIM-Signature: v=1\n\nü\n", "signed by DKIM"),
        ("dkim-signature : v=1\n\nü\n", "signed by DKIM"),
        ("ARC-Seal: i=1\n\nü\n", "signed by ARC"),
        ("ARC-Message-Signature: i=1\n\nü\n", "signed by ARC"),
        ("Subject: ü\n\nhi\n", "8-bit octets in a header section"),
        ("ü\n", "8-bit octets in a header section"),
        (
            wrap("Content-Disposition: x; filename=ü\n\nhi") + "\n",
            "8-bit octets in a header section",
        ),
        ("Content-Type: message/rfc822\n\nSubject: ü\n\nhi\n", "8-bit octets in a header section"),
        ("From joe Mon\nSubject: hi\n\nü\n", "no field"),
        (" folded\nSubject: hi\n\nü\n", "no field"),
        ("Sub ject: hi\n\nü\n", "no field"),
        (wrap(EIGHT_BIT, "\nsig", kind="signed") + "\n", "8-bit octets in a multipart/signed"),
        (wrap(EIGHT_BIT, kind="ENCRYPTED") + "\n", "8-bit octets in a multipart/encrypted"),
        (
            wrap(wrap(EIGHT_BIT, kind="signed", boundary="s")) + "\n",
            "8-bit octets in a multipart/signed",
        ),
        (wrap("\nhi").replace("\n\n--b", "\n\npré\n--b", 1) + "\n", "outside its parts"),
        (wrap("\nhi") + "\népilogue\n", "outside its parts"),
        (wrap(EIGHT_BIT).replace("boundary=b", "x=y") + "\n", "without a boundary"),
        (wrap(EIGHT_BIT).replace("boundary=b", "boundary") + "\n", "without a boundary"),
        (wrap(EIGHT_BIT).replace("boundary=b", 'boundary="b') + "\n", "without a boundary"),
        (wrap(EIGHT_BIT).replace("boundary=b", 'boundary=""') + "\n", "without a boundary"),
        (wrap(EIGHT_BIT).replace("boundary=b", "boundary*0=b") + "\n", "without a boundary"),
        (wrap(EIGHT_BIT).replace("boundary=b", "boundary=c") + "\n", "without its delimiters"),
        (wrap(EIGHT_BIT).replace("--b", "-b") + "\n", "without its delimiters"),
        ("Content-Type: message/partial; id=x\n\nü\n", "a message that may not be encoded"),
        ("Content-Type: message/external-body\n\nü\n", "a message that may not be encoded"),
        ("Content-Type: message/delivery-status\n\nü\n", "a message that may not be encoded"),
        ("Content-Type: text\n\nü\n", "a Content-Type that cannot be read"),
        ("Content-Type: \n\nü\n", "a Content-Type that cannot be read"),
        ("Content-Type: (x) text/plain\n\nü\n", "a Content-Type that cannot be read"),
        ("Content-Type: a/b\nContent-type: a/b\n\nü\n", "2 fields of the name content-type"),
        (
            "Content-Transfer-Encoding: 8bit\n" * 3 + "\nü\n",
            "3 fields of the name content-transfer-encoding",
        ),
        ("Content-Transfer-Encoding: quoted-printable\n\nü\n", "says it is encoded"),
        ("Content-Transfer-Encoding: base64\n\nü\n", "says it is encoded"),
        ("Content-Transfer-Encoding: x-uue\n\nü\n", "says it is encoded"),
        ("Content-Transfer-Encoding: \n\nü\n", "says it is encoded"),
        (
            wrap(EIGHT_BIT).replace("\n\n", "\nContent-Transfer-Encoding: base64\n\n", 1) + "\n",
            "says it is encoded",
        ),
        ("\nü\0\n", "a NUL, or a line"),
    ],
)
def test_what_must_not_or_cannot_be_converted_is_refused(text, problem):
    with pytest.raises(NotConvertibleError, match=problem) as caught:
        converted(text)
    assert "ü" not in str(caught.value)


@pytest.mark.parametrize(
    "octets", [b"\r\n\xff\n", b"\r\n\xff\r", b"\r\n\r\xff\r\n", b"\n\n\xff\r\n"]
)
def test_other_line_ends_are_refused(octets):
    with pytest.raises(NotConvertibleError, match="a line that does not end in CRLF"):
        to_seven_bit(octets)


def nested(depth):
    entity = EIGHT_BIT
    for level in range(depth):
        entity = wrap(entity, boundary=f"b{level}.")
    return message(entity)


def test_nesting_is_bounded():
    assert "=C3=BC" in converted(nested(MAX_DEPTH))
    with pytest.raises(NotConvertibleError, match="parts nested more than 50 deep"):
        converted(nested(MAX_DEPTH + 1))
    with pytest.raises(NotConvertibleError, match="parts nested more than 50 deep"):
        converted("Content-Type: message/rfc822\n\n" * 5000 + "ü\n")


# ---- whatever comes ------------------------------------------------------------------------------------

TEXT = st.lists(
    st.sampled_from(["a", "Gr", "ü", "ÿ", "\xa0", " ", "\t", ".", "=", "From ", "\n", "--b", "x" * 80, "--"])
    | st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), max_size=8),
    max_size=20,
).map("".join)  # fmt: skip
LABEL = st.sampled_from(
    ["", "Content-Transfer-Encoding: 8bit\n", "Content-Transfer-Encoding: binary\n", "X: y\n"]
)
LEAF = st.builds(
    "{}{}\n{}".format,
    st.sampled_from(
        [
            "",
            "Content-Type: text/plain\n",
            "Content-Type: text/html; charset=utf-8\n",
            "Content-Type: application/octet-stream\n",
            "Content-Type: image/png;\n\tname=x\n",
        ]
    ),
    LABEL,
    # A line that is a delimiter would make another structure of it.
    TEXT.map(lambda text: re.sub("(?m)^--", "__", text)),
)


def boundary_for(parts):
    # What stands inside is shorter, so that no boundary has its like inside.
    return f"=_{sum(map(len, parts))}."


def multiparts(children):
    parts = st.lists(children, min_size=1, max_size=3)
    multipart = st.builds(
        lambda label, parts, kind: label + wrap(*parts, kind=kind, boundary=boundary_for(parts)),
        LABEL.filter(lambda label: "binary" not in label),
        parts,
        st.sampled_from(["mixed", "alternative", "report"]),
    )
    return multipart | st.builds("{}Content-Type: message/rfc822\n\n{}".format, LABEL, children)


ENTITY = st.recursive(LEAF, multiparts, max_leaves=6)
MESSAGE = st.builds(
    "Subject: x\n{}{}\n".format, st.sampled_from(["", "MIME-Version: 1.0\n"]), ENTITY
)


def leaves(octets):
    """What a reader makes of a message: type and decoded payload of each part, in order."""
    return [
        (part.get_content_type(), part.get_filename(), part.get_payload(decode=True))
        for part in email.message_from_bytes(octets).walk()
    ]


@given(MESSAGE)
@example("Subject: x\n\nü\n")
def test_a_reader_finds_the_same_in_the_result(text):
    octets = crlf(text)
    result = to_seven_bit(octets)
    assert result.isascii()
    assert leaves(result) == leaves(octets)
    assert to_seven_bit(result) is result
    assert result.endswith(b"\r\n")
    assert result.count(b"\n") == result.count(b"\r") == result.count(b"\r\n")


@given(MESSAGE)
def test_encoded_lines_are_short(text):
    octets = crlf(text)
    before = set(octets.split(b"\r\n"))
    for line in to_seven_bit(octets).split(b"\r\n"):
        assert len(line) <= 76 or line in before


@given(TEXT)
def test_quoted_printable_lines_are_safe_and_short(text):
    result = to_seven_bit(crlf(f"\n{text}\nü\n"))
    for line in result.partition(b"\r\n\r\n")[2].split(b"\r\n"):
        assert len(line) <= 76
        assert not line.startswith(b"From ")
        assert line != b"."
        assert not line.endswith((b" ", b"\t"))


WILD = st.lists(
    st.sampled_from(
        [
            b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"\xff", "ü".encode(), b"--b", b"--b--", b"--",
            b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Type: message/rfc822\r\n",
            b"Content-Type: text/plain", b"Content-Transfer-Encoding: 8bit\r\n", b";", b'"', b"\\",
            b"boundary=", b"=", b":", b" ", b"DKIM-Signature: x\r\n", b"MIME-Version: 1.0\r\n", b"/",
        ]
    )
    | st.binary(max_size=5),
    max_size=30,
).map(b"".join)  # fmt: skip


@given(WILD)
def test_whatever_comes_is_7_bit_afterwards_or_refused(octets):
    for content in (octets, octets.replace(b"\r", b"").replace(b"\n", b"\r\n")):
        with suppress(NotConvertibleError):
            result = to_seven_bit(content)
            assert result.isascii()
            assert to_seven_bit(result) is result


# -- binary ---------------------------------------------------------------------------------------


def test_a_part_that_is_not_made_of_lines_becomes_base64():
    image = bytes(range(256))
    octets = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"
        b"--x\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
        b"--x\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        + image
        + b"\r\n--x\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: binary\r\n\r\none\ntwo"
        b"\r\n--x--\r\n"
    )

    converted = to_seven_bit(octets, is_binary=True)

    assert converted.isascii()
    assert not set(converted.replace(b"\r\n", b"")) & set(b"\r\n\0")
    parts = email.message_from_bytes(converted).get_payload()
    assert [part.get_payload(decode=True) for part in parts] == [b"hello", image, b"one\ntwo"]


def test_a_binary_message_without_parts_becomes_base64():
    octets = b"MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\n\r\n\0\r\n\n\xff"

    converted = to_seven_bit(octets, is_binary=True)

    assert email.message_from_bytes(converted).get_payload(decode=True) == b"\0\r\n\n\xff"


def test_binary_octets_between_parts_are_refused():
    octets = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n\0\r\n--x\r\n\r\na\r\n--x--\r\n"

    with pytest.raises(NotConvertibleError, match="outside its parts"):
        to_seven_bit(octets, is_binary=True)
