from __future__ import annotations

import json
import os

import pytest
import trio

from engine.content import FileContent, FileStamp, from_file, from_octets
from engine.queue.errors import StoreBusyError, StoreError, StoreFullError
from engine.queue.memory import MemoryStore
from engine.queue.submission import Accepted
from engine.queue.values import Action, Selection, State
from engine.worker import control_client
from engine.worker.control import MAX_GROUP_OCTETS, frame, greeting
from engine.worker.control_client import ControlLostError, groups, open_control
from engine.worker.control_server import serve_control
from engine.worker.control_socket import listen
from engine.worker.desk import Desk, Refused
from tests.queue.mail import START, mail


@pytest.fixture
def path(tmp_path):
    return tmp_path / "engine.sock"


@pytest.fixture
async def client(path, nursery):
    await nursery.start(serve_control, path, Desk(MemoryStore(), clock=lambda: START))
    async with open_control(path) as client:
        yield client


async def play(nursery, path, *answers, greets=True, hangs_up=False):
    """Be a worker that answers each request with the next of these."""

    async def run(task_status):
        async with listen(path) as listener:
            task_status.started()
            async with await listener.accept() as stream:
                if greets:
                    await stream.send_all(greeting())
                    await stream.receive_some()
                for answer in answers:
                    await stream.receive_some()
                    await stream.send_all(answer)
                if not hangs_up:
                    await trio.sleep_forever()

    await nursery.start(run)


async def test_all_that_can_be_asked_is_answered(client):
    assert await client.submit([mail("a@one.test", "b@two.test", id="x", tenant="t")]) == (
        Accepted("x", is_new=True),
    )
    assert await client.submit([]) == ()
    assert await client.apply(Action.HOLD, Selection(domain="two.test"), "why not") == 1
    page = await client.entries(Selection(states=frozenset({State.HELD})))
    assert [(entry.recipient, entry.reason) for entry in page.entries] == [
        ("b@two.test", "why not")
    ]
    await client.set_weight("t", 2.5)
    with pytest.raises(ValueError, match="weight -1"):
        await client.set_weight("t", -1.0)
    assert (await client.counts()).held == 1
    assert (await client.status()).backlog[0].site.name == "one.test"


async def test_many_tasks_ask_at_a_time(client):
    async def ask(number):
        for turn in range(5):
            name = f"{number}-{turn}"
            assert await client.submit([mail(id=name)]) == (Accepted(name, is_new=True),)
            page = await client.entries(Selection(message=name))
            assert [entry.message for entry in page.entries] == [name]

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
    assert (await client.counts()).messages == 100


async def test_a_million_octets_of_small_messages_go_in_several_requests(client):
    content = from_octets(b"x" * 99_998 + b"\r\n")
    answers = await client.submit([mail(id=f"m{n}", content=content) for n in range(100)])
    assert [answer.id for answer in answers] == [f"m{n}" for n in range(100)]


async def test_a_content_whose_file_changed_is_refused_and_the_connection_given_up(
    client, path, tmp_path
):
    file = tmp_path / "a.eml"
    file.write_bytes(b"Subject: a\n\n" + b"hello\n" * 100_000)
    content = await from_file(file)
    os.utime(file, ns=(1, 1))

    (answer,) = await client.submit([mail(id="x", content=content)])

    assert isinstance(answer, Refused)
    assert "changed since it was submitted" in answer.text
    assert client.lost.is_set()
    with pytest.raises(ControlLostError):
        await client.counts()
    async with open_control(path) as another:
        assert (await another.counts()).messages == 0


async def test_a_content_whose_file_is_gone_is_refused(client, tmp_path):
    facts = from_octets(b"x\r\n" * 100_000).facts
    content = FileContent(tmp_path / "gone.eml", facts, FileStamp(1, 1))
    (answer,) = await client.submit([mail(id="x", content=content)])
    assert answer == Refused("x", "No such file or directory")


async def test_a_request_that_is_cancelled_half_way_ends_the_connection(client, monkeypatch):
    class Slow:
        facts = from_octets(b"x\r\n" * 100_000).facts
        octets = None

        async def chunks(self):
            yield b"x\r\n"
            await trio.sleep_forever()

    with trio.move_on_after(0.05):
        await client.submit([mail(content=Slow())])
    assert client.lost.is_set()


async def test_a_worker_that_is_not_there_is_told_from_one_that_is_gone(path):
    with pytest.raises(FileNotFoundError):
        async with open_control(path):
            pass
    async with listen(path):
        pass
    with pytest.raises(ConnectionRefusedError):
        async with open_control(path):
            pass


async def test_a_worker_that_goes_away_leaves_everybody_with_an_error(path, nursery):
    await play(nursery, path, b"", hangs_up=True)
    async with open_control(path) as client:
        errors = []

        async def ask():
            try:
                await client.counts()
            except ControlLostError as error:
                errors.append(str(error))

        async with trio.open_nursery() as inner:
            for _ in range(3):
                inner.start_soon(ask)
        assert len(errors) == 3
        assert "went away" in errors[0]


async def test_a_worker_that_does_not_answer_is_busy(path, nursery, monkeypatch):
    monkeypatch.setattr(control_client, "REPLY_SECONDS", 0.05)
    await play(nursery, path)
    async with open_control(path) as client:
        with pytest.raises(StoreBusyError, match="has not answered"):
            await client.counts()


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mx.test ESMTP\r\n",
        frame(b"[]"),
        frame(b'{"n": 1}{'),
        frame(b'{"n": 99, "failure": {"kind": "WireError", "text": "no request"}}'),
    ],
)
async def test_who_answers_otherwise_than_agreed_is_left(answer, path, nursery):
    await play(nursery, path, answer)
    async with open_control(path) as client:
        with pytest.raises(ControlLostError):
            await client.counts()


@pytest.mark.parametrize("answer", [None, [1], {"queued": 1, "colour": "red"}, "x"])
async def test_an_answer_that_is_none_is_an_error(answer, path, nursery):
    await play(nursery, path, frame(json.dumps({"n": 1, "answer": answer}).encode()))
    async with open_control(path) as client:
        with pytest.raises(StoreError):
            await client.counts()


async def test_an_error_of_the_store_comes_out_as_it_is(path, nursery):
    failure = {"n": 1, "failure": {"kind": "StoreFullError", "text": "the disk is full"}}
    await play(nursery, path, frame(json.dumps(failure).encode()))
    async with open_control(path) as client:
        with pytest.raises(StoreFullError, match="the disk is full"):
            await client.counts()


async def test_a_worker_of_another_release_is_told(path, nursery):
    async def run(task_status):
        async with listen(path) as listener:
            task_status.started()
            async with await listener.accept() as stream:
                await stream.send_all(frame(b'{"control": 2}'))
                await stream.receive_some()

    await nursery.start(run)
    with pytest.raises(StoreError, match="one release"):
        async with open_control(path):
            pass


def test_submissions_are_grouped_by_number_size_and_recipients(monkeypatch):
    monkeypatch.setattr(control_client, "_MAX_RECIPIENTS", 5)
    many = mail(*(f"u{n}@one.test" for n in range(9)))
    held = mail(content=from_octets(b"x" * 200_000))
    large = mail(content=from_octets(b"x" * 300_000))
    small = [mail() for _ in range(2500)]

    def sizes(*submissions):
        found = [list(group) for group in groups(submissions)]
        assert [each for group in found for each in group] == list(submissions)
        return [len(group) for group in found]

    assert sizes() == []
    assert sizes(small[0], many, small[1], small[2]) == [1, 1, 2]
    assert sizes(small[0], large, large, small[1]) == [1, 1, 1, 1]
    assert sizes(*([held] * 2)) == [2]
    monkeypatch.setattr(control_client, "_MAX_RECIPIENTS", 10**9)
    assert sizes(*small) == [1000, 1000, 500]
    assert sizes(*([held] * 30)) == [20, 10]
    assert 20 * 200_002 <= MAX_GROUP_OCTETS < 21 * 200_002
