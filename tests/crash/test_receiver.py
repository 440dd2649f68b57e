from __future__ import annotations

import hashlib
import json
import random

import pytest
import trio

from engine import Engine, Settings
from engine.content import from_text
from engine.message import Message, Recipient
from engine.outcome import Status
from tests.crash.load import make_letter, text_of
from tests.crash.receiver import Receiver, Temper, is_whole, listen


def message(letter):
    record = letter.record()
    return Message(
        id=letter.id,
        reverse_path=Message.parse_sender(record["sender"]),
        recipients=tuple(map(Recipient.parse, record["recipients"])),
        content=from_text(record["content"]),
    )


@pytest.mark.parametrize("temper", [Temper(), Temper(0, 0, 0, 0, 0, 0, 0, 0)])
async def test_what_it_wrote_down_is_what_the_engine_says(tmp_path, temper):
    receiver, rng = Receiver(tmp_path / "record", 4, temper), random.Random(3)
    letters = [make_letter(f"m{n}", rng) for n in range(150)]
    outcomes = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(listen, receiver, 0)
            routes = [("*", [f"127.0.0.1:{port}"])]
            async with Engine(Settings(tls="off"), routes=routes, own_addresses=[]) as engine:
                for letter in letters:
                    await engine.submit(message(letter))
                    outcomes += [await engine.outcomes.receive() for _ in letter.recipients]
            nursery.cancel_scope.cancel()
    record = [line.split() for line in (tmp_path / "record").read_text().splitlines()]
    accepted = {who for what, who in record if what == "accepted"}
    assert {what for what, _ in record} == {"accepted", "refused"}
    for outcome in outcomes:
        if outcome.status is not Status.UNKNOWN:
            assert (outcome.recipient in accepted) is (outcome.status is Status.DELIVERED)
        if outcome.recipient.startswith("refused"):
            assert outcome.recipient not in accepted
    statuses = {outcome.status for outcome in outcomes}
    if temper.close:
        assert statuses == {Status.DELIVERED, Status.DEFERRED, Status.FAILED, Status.UNKNOWN}
    else:
        assert statuses == {Status.DELIVERED, Status.FAILED}


def test_a_content_says_what_it_has_to_be():
    letter = make_letter("m7", random.Random(1))
    octets = letter.record()["content"].replace("\n", "\r\n").encode()
    assert is_whole(octets, letter.recipients)
    assert not is_whole(octets[:-2], letter.recipients)
    assert not is_whole(octets.replace(b"much", b"Much", 1), letter.recipients)
    assert not is_whole(octets, ["to0.m8@d1.crash.test"])
    assert is_whole(b"Subject: report\r\n\r\nIt failed.\r\n", [letter.sender])
    assert not is_whole(b"Subject: report\r\n\r\nIt failed.\r\n", letter.recipients)


def test_texts_are_of_the_size_that_was_asked_for_and_have_dots_in_front():
    assert len(text_of(300)) < 400
    assert text_of(300).startswith(".")
    assert text_of(300_000).count("\n.") > 1000
    record = make_letter("m1", random.Random(1)).record()
    body = record["content"].partition("\n\n")[2].replace("\n", "\r\n").encode()
    assert hashlib.sha256(body).hexdigest() in json.dumps(record)
