"""Contents for hosts that take seven bits only."""

import pytest

from engine.content import from_octets
from engine.delivery import seven_bit
from engine.delivery.seven_bit import in_seven_bit
from engine.smtp.content import ContentFacts, scan
from engine.smtp.errors import NotConvertibleError
from engine.smtp.mime import to_seven_bit
from tests.delivery.helpers import StreamedContent

HEADER = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
UMLAUTS = HEADER + "schöne Grüße\r\n".encode() * 20


@pytest.mark.parametrize("size", [1, 3000], ids=["on the spot", "in a thread"])
async def test_a_content_in_memory_is_converted_and_scanned_anew(size):
    octets = HEADER + "ä\r\n".encode() * 20 * size

    converted = await in_seven_bit(from_octets(octets))

    assert converted.octets == to_seven_bit(octets)
    assert converted.octets.isascii()
    assert converted.facts == scan(converted.octets)


async def test_one_that_is_read_is_converted_whole_wherever_its_pieces_end():
    for piece in (1, 7, 1000):
        converted = await in_seven_bit(StreamedContent(UMLAUTS, piece=piece))
        assert converted.octets == to_seven_bit(UMLAUTS)


async def test_one_that_cannot_be_read_says_so():
    with pytest.raises(OSError, match="gone"):
        await in_seven_bit(StreamedContent(UMLAUTS, OSError("gone")))


async def test_one_that_is_too_large_is_not_even_read():
    content = StreamedContent(UMLAUTS)
    content.facts = ContentFacts(seven_bit._MOST_CONVERTED + 1, True, 70, False)

    with pytest.raises(NotConvertibleError, match="67108864 octets"):
        await in_seven_bit(content)

    assert content.octets_read == 0


async def test_what_is_signed_stays_as_it_is():
    octets = b'Content-Type: multipart/signed; boundary="x"\r\n\r\n--x\r\n\r\n\xc3\xa4\r\n--x--\r\n'

    with pytest.raises(NotConvertibleError):
        await in_seven_bit(from_octets(octets))
