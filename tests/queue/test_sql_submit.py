from __future__ import annotations

import json

import pytest
import trio

from engine.content import from_text
from engine.queue.database import open_in_memory
from engine.queue.errors import DuplicateIdError
from engine.queue.sql_contents import checksum
from engine.queue.sql_submit import Intake, fingerprint, pack, submit
from engine.queue.sqlite import open_store
from tests.queue.mail import CONTENT, START, mail
from tests.queue.plans import walks
from tests.queue.store_conformance import entries_of


def packed(*addresses, **how):
    submission = mail(*addresses, **how)
    octets = submission.message.content.octets
    return pack(submission, octets, checksum(octets), None)


def intake(*parcels, forget=()):
    return Intake(tuple(parcels), forget, int(START * 1000), 0, 0)


@pytest.mark.parametrize(
    "name",
    [
        "known_messages",
        "insert_messages",
        "insert_recipients",
        "finish_uploads",
        "drop_pieces_of",
    ],
)
def test_taking_in_goes_through_no_large_table(name):
    assert walks(name) == []


def test_calls_that_gathered_are_taken_together_and_each_has_its_own_answer():
    db = open_in_memory()
    known = packed(id="known")
    submit(db, [intake(known)])

    results = submit(
        db,
        [
            intake(packed(id="a"), packed(id="b")),
            intake(known),
            intake(packed(id="c"), packed("other@one.test", id="known")),
            intake(packed(id="a")),
            intake(),
        ],
    )

    assert [[each.is_new for each in result] for result in (results[0], results[1])] == [
        [True, True],
        [False],
    ]
    assert isinstance(results[2], DuplicateIdError)
    assert [each.is_new for each in results[3]] == [False]
    assert results[4] == ()
    ids = json.dumps(["known", "a", "b", "c"])
    assert sorted(row[0] for row in db.rows("known_messages", ids=ids)) == ["a", "b", "known"]


def test_one_id_for_two_messages_in_one_group_is_refused_to_the_second():
    db = open_in_memory()

    first, second = submit(db, [intake(packed(id="x")), intake(packed("other@one.test", id="x"))])

    assert [each.is_new for each in first] == [True]
    assert isinstance(second, DuplicateIdError)


def test_what_makes_a_message_the_same_is_its_envelope_and_content():
    same = mail(id="x")
    sha256 = checksum(CONTENT.octets)

    assert fingerprint(same, sha256) == fingerprint(mail(id="y", at=START + 9, job="j"), sha256)
    for other in (mail("b@one.test"), mail(sender=""), mail("a@one.test", "a@one.test")):
        assert fingerprint(other, sha256) != fingerprint(same, sha256)
    assert fingerprint(same, checksum(b"other")) != fingerprint(same, sha256)


def test_who_is_held_stands_in_no_lane():
    db = open_in_memory()
    submit(db, [intake(packed(id="x", is_held=True))])

    (row,) = db._connection.execute("select state, lane, due from recipients").fetchall()
    assert row == ("held", None, START * 1000)
    assert db._connection.execute("select count(*) from lanes").get == 0


async def test_many_tasks_submit_at_once(tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                submission = mail(
                    f"u{number}@d{number % 9}.test", content=from_text(f"number {number}\n")
                )
                nursery.start_soon(store.submit, [submission])

        assert len(await entries_of(store)) == 200
        assert store._committer.commits < 60
