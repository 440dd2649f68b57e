"""What hosts may say: real dialogues, what a broken one makes of them, and noise.

By a seed, so the same every time.  Used by the fuzz tests of the rooms; knows nothing of the engine.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Reply by reply, as servers in use say it.
DIALOGUES: Final[Sequence[Sequence[bytes]]] = (
    (  # Postfix
        b"220 mail.example.org ESMTP Postfix (Debian/GNU)\r\n",
        (
            b"250-mail.example.org\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n"
            b"250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n"
        ),
        b"250 2.1.0 Ok\r\n",
        b"250 2.1.5 Ok\r\n",
        b"354 End data with <CR><LF>.<CR><LF>\r\n",
        b"250 2.0.0 Ok: queued as 4FqQ9z2Jxqz9sRN\r\n",
        b"250 2.0.0 Ok\r\n",
        b"221 2.0.0 Bye\r\n",
    ),
    (  # Postfix, that refuses
        b"220-mx.example.org ESMTP\r\n220 mx.example.org ESMTP Postfix\r\n",
        b"250-mx.example.org\r\n250-PIPELINING\r\n250 DSN\r\n",
        b"250 2.1.0 Ok\r\n",
        b"450 4.2.0 <a@x.test>: Recipient address rejected: Greylisted\r\n",
        b"550 5.1.1 <b@x.test>: Recipient address rejected: User unknown\r\n",
        b"554 5.5.1 Error: no valid recipients\r\n",
        b"421 4.4.2 mx.example.org Error: timeout exceeded\r\n",
    ),
    (  # Exim
        b"220 mx.example.net ESMTP Exim 4.97 Mon, 01 Jan 2024 00:00:00 +0000\r\n",
        (
            b"250-mx.example.net Hello me.test [192.0.2.7]\r\n250-SIZE 52428800\r\n"
            b"250-LIMITS MAILMAX=1000 RCPTMAX=50000\r\n250-8BITMIME\r\n250-PIPELINING\r\n"
            b"250-PIPECONNECT\r\n250-CHUNKING\r\n250-PRDR\r\n250 HELP\r\n"
        ),
        b"250 OK\r\n",
        b"250 Accepted\r\n",
        b"353 PRDR content analysis beginning\r\n",
        b"250 PRDR R=<a@x.test> acceptance\r\n",
        b"550 PRDR R=<b@x.test> refused\r\n",
        b"250 OK id=1rKabc-0002Xy-1A\r\n",
        b"221 mx.example.net closing connection\r\n",
    ),
    (  # Exchange
        (
            b"220 HE1EUR01FT013.mail.protection.outlook.test Microsoft ESMTP MAIL Service ready at "
            b"Mon, 1 Jan 2024 00:00:00 +0000\r\n"
        ),
        (
            b"250-HE1EUR01FT013.mail.protection.outlook.test Hello [192.0.2.7]\r\n250-SIZE 157286400\r\n"
            b"250-PIPELINING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n250-STARTTLS\r\n250-8BITMIME\r\n"
            b"250-BINARYMIME\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n"
        ),
        b"250 2.1.0 Sender OK\r\n",
        b"452 4.5.3 Too many recipients (AS780090)\r\n",
        b"250 2.1.5 Recipient OK\r\n",
        b"250 2.6.0 <1@me.test> [InternalId=123, Hostname=x] 8525 bytes in 0.2, 39 KB/sec Queued\r\n",
        b"451 4.7.500 Server busy. Please try again later from [192.0.2.7]. (S77719)\r\n",
    ),
    (  # Sendmail, in its own words
        b"220 gw.example.com ESMTP Sendmail 8.17.1/8.17.1; Mon, 1 Jan 2024 00:00:00 GMT\r\n",
        (
            b"250-gw.example.com Hello me.test [192.0.2.7], pleased to meet you\r\n"
            b"250-ENHANCEDSTATUSCODES\r\n250-PIPELINING\r\n250-EXPN\r\n250-VERB\r\n250-8BITMIME\r\n"
            b"250-SIZE\r\n250-AUTH DIGEST-MD5 CRAM-MD5\r\n250 DELIVERBY\r\n"
        ),
        b"250 2.1.0 <s@me.test>... Sender ok\r\n",
        b"250 2.1.5 <a@x.test>... Recipient ok\r\n",
        b'354 Enter mail, end with "." on a line by itself\r\n',
        b"250 2.0.0 401Kx3Ab000123 Message accepted for delivery\r\n",
    ),
    (  # A large provider's
        b"220 mx.provider.test ESMTP a640c23a62f3a-a2x7wxyz.123 - gsmtp\r\n",
        (
            b"250-mx.provider.test at your service, [192.0.2.7]\r\n250-SIZE 157286400\r\n250-8BITMIME\r\n"
            b"250-STARTTLS\r\n250-ENHANCEDSTATUSCODES\r\n250-PIPELINING\r\n250-CHUNKING\r\n"
            b"250 SMTPUTF8\r\n"
        ),
        b"250 2.1.0 OK a640c23a62f3a-a2x7wxyz.123 - gsmtp\r\n",
        (
            b"550-5.1.1 The email account that you tried to reach does not exist. Please try\r\n"
            b"550-5.1.1 double-checking the recipient's address for typos or\r\n"
            b"550 5.1.1 unnecessary spaces. a640c23a62f3a-a2x7wxyz.123 - gsmtp\r\n"
        ),
        b"421-4.7.28 Our system has detected an unusual rate of\r\n421 4.7.28 mail. - gsmtp\r\n",
    ),
    (  # Haraka
        b"220 haraka.test ESMTP Haraka/3.0.3 ready\r\n",
        (
            b"250-haraka.test Hello me.test [192.0.2.7] Haraka is at your service.\r\n"
            b"250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 0\r\n"
        ),
        b"250 sender <s@me.test> OK\r\n",
        b"250 recipient <a@x.test> OK\r\n",
        b"354 go ahead, make my day\r\n",
        b"250 Message Queued (8AF3B2D0-1D2A-4B1C-8D39-2C0C9D0C3E3A.1)\r\n",
        b"503 Use EHLO/HELO before MAIL\r\n",
    ),
    (  # Dovecot's LMTP
        b"220 imap.test Dovecot ready.\r\n",
        (
            b"250-imap.test\r\n250-8BITMIME\r\n250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n"
            b"250-PIPELINING\r\n250 IGNOREQUOTA\r\n"
        ),
        b"250 2.1.0 OK\r\n",
        b"250 2.1.5 OK\r\n",
        b"354 OK\r\n",
        b"250 2.0.0 <a@x.test> 4QmGNk0nk2XxTQAAKWJpSw Saved\r\n",
        b"552 5.2.2 <b@x.test> Quota exceeded (mailbox for user is full)\r\n",
    ),
    (  # Old, bare, and not ASCII
        b"220\r\n",
        b"250 hi\r\n",
        b"250\n",
        b"251 User not local; will forward to <c@y.test>\r\n",
        b"354\r\n",
        "550 boîte inconnue \N{EM DASH} désolé\r\n".encode(),
        b"554 n\xf6\xdf\x00\x1b[2J\r\n",
    ),
)
_TOKENS: Final[Sequence[bytes]] = (
    *(b"2", b"25", b"250", b"354", b"421", b"452", b"503", b"550", b"552", b"600", b"099"),
    *(b" ", b"-", b"\t", b"\r\n", b"\r\n", b"\n", b"\r", b"\0", b"\xff", b"\xc3\xbc"),
    *(b"5.1.1 ", b"4.7.500 ", b"2.0.0", b"PIPELINING", b"CHUNKING", b"SIZE ", b"SIZE -1"),
    *(b"LIMITS RCPTMAX=0", b"LIMITS MAILMAX=99999999999999999999", b"AUTH ", b"PRDR", b"DSN"),
)


class Mutator:
    """Makes inputs, each another one.

    Attributes:
        random: What it throws its dice with.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def noise(self) -> bytes:
        """Octets that mean nothing, or nearly nothing."""
        random = self.random
        if random.random() < 0.3:
            return random.randbytes(random.randrange(40))
        return b"".join(random.choices(_TOKENS, k=random.randrange(12)))

    def dialogue(self) -> list[bytes]:
        """Replies of a real server, in its order, or of several in none."""
        random = self.random
        if random.random() < 0.8:
            return list(random.choice(DIALOGUES))
        return [random.choice(random.choice(DIALOGUES)) for _ in range(random.randrange(1, 9))]

    def stream(self) -> bytes:
        """All that one server says, as one string of octets."""
        random = self.random
        if random.random() < 0.2:
            return self.noise()
        said = self.dialogue()
        start = random.randrange(len(said))
        return self.garble(b"".join(said[start : start + random.randrange(1, 5)]))

    def replies(self) -> list[bytes]:
        """What a server says, reply by reply, with some of them not as they should be."""
        random = self.random
        said = self.dialogue()
        for _ in range(random.choice((0, 1, 1, 2, 5))):
            # More often late than early: behind a bad greeting nothing is heard.
            place = max(random.randrange(len(said)), random.randrange(len(said)))
            match random.randrange(6):
                case 0:
                    said[place] = self.garble(said[place])
                case 1:
                    said[place] = self.noise()
                case 2:
                    said.insert(place, random.choice(random.choice(DIALOGUES)))
                case 3 if len(said) > 1:
                    del said[place]
                case 4:
                    code = b"%d" % random.choice((200, 250, 354, 353, 421, 450, 452, 503, 550, 552))
                    said[place] = code + said[place][3:]
                case _:
                    said[place] += said[place - 1]
        return said

    def garble(self, octets: bytes) -> bytes:
        """Break octets in a few places."""
        random, text = self.random, bytearray(octets)
        for _ in range(random.choice((0, 1, 1, 2, 3, 8))):
            start = random.randrange(len(text) + 1)
            end = min(len(text), start + random.choice((1, 1, 2, 5, 30)))
            match random.randrange(7):
                case 0:
                    text[start:end] = b""
                case 1:
                    text[start:start] = text[start:end]
                case 2:
                    text[start:end] = random.randbytes(end - start)
                case 3:
                    text[start:start] = random.choice(_TOKENS)
                case 4:
                    del text[start:]
                case 5:
                    text = text.replace(b"\r\n", random.choice((b"\n", b"\r", b"\r\r\n", b"")), 1)
                case _ if start < end:
                    text[start] ^= 1 << random.randrange(8)
        if random.random() < 0.001:
            text[len(text) // 2 : len(text) // 2] = b"x" * random.choice((512, 9000, 70_000))
        if random.random() < 0.001:
            text[:0] = b"250-on and on\r\n" * random.choice((100, 5000))
        return bytes(text)

    def cut(self, octets: bytes) -> Iterator[bytes]:
        """Divide octets into pieces, as a network does."""
        start = 0
        while start < len(octets):
            end = start + self.random.choice((1, 2, 3, 10, 50, 1000))
            yield octets[start:end]
            start = end


def by_octet(octets: bytes) -> Iterator[bytes]:
    """Divide octets into as many pieces as there are."""
    return (octets[place : place + 1] for place in range(len(octets)))
