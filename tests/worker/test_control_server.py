from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.content import from_binary, from_octets
from engine.queue.errors import StoreFullError
from engine.queue.memory import MemoryStore
from engine.queue.sqlite import open_store
from engine.queue.submission import Accepted
from engine.worker import control_server
from engine.worker.control import frame, greeting
from engine.worker.control_client import open_control
from engine.worker.control_server import serve_control
from engine.worker.control_socket import SocketInUseError
from engine.worker.desk import Desk, Refused
from tests.queue.mail import START, mail

LARGE = from_octets(b"Subject: large\r\n\r\n" + b"hello, world\r\n" * 50_000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "engine.sock"


async def serve(nursery, path, store=None, **how):
    desk = Desk(store or MemoryStore(), clock=lambda: START, **how)
    await nursery.start(serve_control, path, desk)
    return desk


class Raw:
    """A client that says what it likes."""

    def __init__(self, stream):
        self.stream = stream
        self.got = b""

    async def say(self, *heads, contents=b""):
        for head in heads:
            octets = head if isinstance(head, bytes) else json.dumps(head).encode()
            await self.stream.send_all(frame(octets))
        if contents:
            await self.stream.send_all(contents)

    async def hear(self):
        """Return the next head, or `None` at the end."""
        while len(self.got) < 4 or len(self.got) < 4 + int.from_bytes(self.got[:4]):
            octets = await self.stream.receive_some()
            if not octets:
                return None
            self.got += octets
        end = 4 + int.from_bytes(self.got[:4])
        head, self.got = json.loads(self.got[4:end]), self.got[end:]
        return head


@pytest.fixture
async def dial(path):
    """Connects clients that say what they like; by default they have greeted."""
    async with AsyncExitStack() as stack:

        async def connect(*, greets=True):
            stream = await trio.open_unix_socket(str(path))
            raw = Raw(await stack.enter_async_context(stream))
            if greets:
                await stream.send_all(greeting())
                assert await raw.hear() == {"control": 1}
            return raw

        yield connect


def wire(octets=5, **changes):
    facts = [octets, False, 3, False, False, False]
    recipients = ["a@one.test"]
    head = {"id": "x", "sender": "", "recipients": recipients, "facts": facts, "submitted_at": 1}
    return head | changes


async def test_the_socket_is_for_its_user_alone_and_goes_with_the_server(path, nursery):
    async with trio.open_nursery() as inner:
        await serve(inner, path)
        mode = path.lstat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        inner.cancel_scope.cancel()
    assert not path.exists()


async def test_who_is_somebody_else_is_not_heard(path, nursery, monkeypatch, caplog, dial):
    monkeypatch.setattr(control_server, "is_welcome", lambda user: user != os.geteuid())
    await serve(nursery, path)

    raw = await dial(greets=False)
    assert await raw.hear() is None
    assert f"user {os.geteuid()} is not welcome" in caplog.text


async def test_a_socket_that_an_ended_worker_left_is_replaced(path, nursery):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.listen()
    left.close()

    await serve(nursery, path)
    async with open_control(path) as client:
        assert (await client.counts()).messages == 0


async def test_a_socket_that_is_in_use_is_left_alone(path, nursery):
    await serve(nursery, path)

    with pytest.raises(SocketInUseError, match="another process listens on it"):
        await serve_control(path, Desk(MemoryStore()))
    async with open_control(path) as client:
        assert (await client.counts()).messages == 0


async def test_a_file_that_is_no_socket_is_left_alone(path):
    path.write_text("mine")

    with pytest.raises(SocketInUseError, match="it is no socket"):
        await serve_control(path, Desk(MemoryStore()))
    assert path.read_text() == "mine"


async def test_a_socket_that_is_another_s_by_now_is_not_removed(path):
    async with trio.open_nursery() as inner:
        await serve(inner, path)
        path.unlink()
        path.write_text("mine")
        inner.cancel_scope.cancel()
    assert path.read_text() == "mine"


async def test_a_path_may_be_longer_than_an_address_of_a_socket(tmp_path, nursery):
    folder = tmp_path / ("f" * 100) / ("g" * 100)
    folder.mkdir(parents=True)
    await serve(nursery, folder / "engine.sock")

    async with open_control(folder / "engine.sock") as client:
        assert (await client.counts()).messages == 0


async def test_contents_of_every_size_and_kind_arrive_as_they_are(path, nursery, tmp_path):
    contents = {
        "small": from_octets(b"Subject: a\r\n\r\nb\r\n"),
        "empty": from_octets(b""),
        "eight": from_octets("Subject: ä\r\n\r\nö\r\n".encode()),
        "held": from_octets(b"x\r\n" * 40_000),
        "large": LARGE,
        "binary": from_binary(b"Content-Type: a/b\r\n\r\n\0\r\n\r" + b"\n" * 300_000),
    }
    store = MemoryStore()
    await serve(nursery, path, store)
    async with open_control(path) as client:
        answers = await client.submit([mail(id=k, content=v) for k, v in contents.items()])

    assert [(each.id, each.is_new) for each in answers] == [(k, True) for k in contents]
    stored = {each.message.id: each.message.content for each in await store.messages()}
    for name, content in contents.items():
        octets = b"".join([chunk async for chunk in stored[name].chunks()])
        assert (octets, stored[name].facts) == (content.octets, content.facts), name


async def test_many_messages_are_taken_a_few_at_a_time_and_answered_in_order(path, nursery):
    class Counting(MemoryStore):
        taken: list[int] = []  # noqa: RUF012 - of this test alone

        async def submit(self, submissions, **how):
            self.taken.append(len(submissions))
            return await super().submit(submissions, **how)

    store = Counting()
    await serve(nursery, path, store, max_message_octets=1000)
    contents = {str(n): from_octets(b"x\r\n" * (400 if n == 70 else n)) for n in range(200)}
    async with open_control(path) as client:
        answers = await client.submit([mail(id=k, content=v) for k, v in contents.items()])

    assert [each.id for each in answers] == list(contents)
    assert [each.id for each in answers if isinstance(each, Refused)] == ["70"]
    assert sum(store.taken) == 199
    assert max(store.taken) <= 64
    for each in await store.messages():
        assert each.message.content == contents[each.message.id]


async def test_a_large_content_goes_into_a_real_store_in_pieces(path, nursery, tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        async with trio.open_nursery() as inner:
            await serve(inner, path, store)
            async with open_control(path) as client:
                for _ in range(2):
                    (answer,) = await client.submit([mail(id="big", content=LARGE)])
            inner.cancel_scope.cancel()
        assert answer == Accepted("big", is_new=False)
        (stored,) = await store.messages()
        octets = b"".join([chunk async for chunk in stored.message.content.chunks()])
        assert octets == LARGE.octets


@pytest.mark.parametrize("octets", [2, 300_000], ids=["held", "streamed"])
async def test_what_is_refused_does_not_disturb_what_comes_behind(octets, path, nursery, dial):
    desk = await serve(nursery, path, max_message_octets=1_000_000)
    raw = await dial()
    bad = [
        (wire(octets, recipients=["nobody"]), 'no "@"'),
        (wire(octets, recipients=[]), "no recipients"),
        (wire(octets, priority=99), "priority 99"),
        (wire(octets, id=""), "id of 0 characters"),
    ]
    for number, (message, text) in enumerate(bad):
        request = {"n": number, "do": "submit", "messages": [message]}
        await raw.say(request, contents=b"\r\n" * (octets // 2))
        reply = await raw.hear()
        assert (reply["n"], reply["failure"]) == (number, None)
        ((_, answer),) = reply["answer"]
        assert text in answer
    await raw.say({"n": 9, "do": "counts"})
    assert (await raw.hear())["answer"]["messages"] == 0
    assert (await desk.counts()).messages == 0


@pytest.mark.parametrize(
    ("facts", "piece"),
    [
        ([300_000, True, 3, False, False, False], b"abc\r\n"),  # said to be 8-bit
        ([300_000, False, 4, False, False, False], b"abc\r\n"),  # with longer lines
        ([300_000, False, 3, False, False, False], b"ab\0\r\n"),  # with a NUL
        ([300_000, False, 4, False, False, False], b"abcd\n"),  # with lines that are none
    ],
)
async def test_a_large_content_that_is_not_what_was_said_is_refused(
    facts, piece, path, nursery, dial
):
    desk = await serve(nursery, path)
    raw = await dial()

    await raw.say(
        {"n": 1, "do": "submit", "messages": [wire(facts=facts)]}, contents=piece * 60_000
    )

    ((_, answer),) = (await raw.hear())["answer"]
    assert isinstance(answer, str)
    assert (await desk.counts()).messages == 0


async def test_a_content_that_is_cut_short_was_never_submitted(path, nursery, dial):
    desk = await serve(nursery, path)
    for octets in (5, 300_000):
        raw = await dial()
        await raw.say({"n": 1, "do": "submit", "messages": [wire(octets)]}, contents=b"a\r\n")
        await raw.stream.send_eof()
        assert await raw.hear() is None
    assert (await desk.counts()).messages == 0


async def test_a_message_larger_than_allowed_is_refused_without_being_read(path, nursery):
    await serve(nursery, path, max_message_octets=100_000)
    async with open_control(path) as client:
        small = await client.submit([mail(id="a"), mail(id="big", content=LARGE), mail(id="b")])

    assert [isinstance(each, Refused) for each in small] == [False, True, False]
    assert "allowed are 100,000 (max_message_octets)" in small[1].text


@pytest.mark.parametrize(
    "octets",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        frame(b"[]"),
        frame(b'{"n": 1, "do": "nothing"}'),
        frame(b'{"n": -1, "do": "counts"}'),
        frame(b'{"n": 1, "do": "counts", "more": 1}'),
        frame(b'{"n": 1, "do": "submit", "messages": []}'),
        frame(json.dumps({"n": 1, "do": "submit", "messages": [wire(-5)]}).encode()),
        frame(b'{"n": 1, "do": "submit", "messages": [' + b"[" * 10_000),
        frame(b'{"n": 1, "do": "apply", "action": "explode", "selection": {}}'),
        frame(b'{"n": 1, "do": "weight", "tenant": "t", "weight": NaN}'),
    ],
)
async def test_who_does_not_speak_as_agreed_is_told_and_hung_up_on(octets, path, nursery, dial):
    await serve(nursery, path)
    raw = await dial()

    await raw.stream.send_all(octets)

    assert (await raw.hear())["failure"]["kind"] == "WireError"
    assert await raw.hear() is None
    async with open_control(path) as client:  # others are served
        assert (await client.counts()).messages == 0


async def test_who_speaks_another_version_is_told(path, nursery, dial):
    await serve(nursery, path)
    raw = await dial(greets=False)
    await raw.say({"control": 2})

    assert await raw.hear() == {"control": 1}
    assert "version 2" in (await raw.hear())["failure"]["text"]


async def test_an_error_of_ours_is_an_answer_and_harms_nobody_else(path, nursery, caplog, dial):
    class Broken(MemoryStore):
        async def counts(self, *, now):
            raise ZeroDivisionError("oops")

        async def entries(self, *args, **how):
            raise StoreFullError("the disk is full")

    await serve(nursery, path, Broken())
    raw = await dial()
    await raw.say({"n": 1, "do": "counts"}, {"n": 2, "do": "entries"})

    replies = {reply["n"]: reply["failure"] for reply in (await raw.hear(), await raw.hear())}

    assert replies[1] == {"kind": "internal", "text": "oops"}
    assert replies[2] == {"kind": "StoreFullError", "text": "the disk is full"}
    assert "ZeroDivisionError" in caplog.text
    async with open_control(path) as client:
        assert (await client.submit([mail(id="x")]))[0].is_new


async def test_a_page_fits_into_a_reply_however_long_last_outcomes_are(path, nursery, monkeypatch):
    monkeypatch.setattr(control_server, "_MAX_PAGE_OCTETS", 1000)
    store = MemoryStore()
    desk = await serve(nursery, path, store)
    await desk.submit([mail(id=f"m{n}") for n in range(40)])
    for kept in store._recipients.values():
        kept.reason = "x" * 100
    names, after = [], 0
    async with open_control(path) as client:
        while after is not None:
            page = await client.entries(after=after, limit=40)
            assert 1 <= len(page.entries) <= 10
            names += [entry.message for entry in page.entries]
            after = page.next
    assert names == [f"m{n}" for n in range(40)]


async def test_connections_beyond_the_bound_wait_their_turn(path, nursery, monkeypatch, dial):
    monkeypatch.setattr(control_server, "MAX_CONNECTIONS", 2)
    await serve(nursery, path)
    first, second = await dial(), await dial()
    third = await dial(greets=False)
    await third.stream.send_all(greeting())
    await wait_all_tasks_blocked()

    with trio.move_on_after(0.05):
        await third.hear()
        pytest.fail("it was served beside two others")
    await first.stream.aclose()
    assert await third.hear() == {"control": 1}
    await second.stream.aclose()


async def test_who_says_nothing_for_too_long_is_hung_up_on(path, nursery, monkeypatch, dial):
    monkeypatch.setattr(control_server, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(control_server, "PIECE_SECONDS", 0.05)
    await serve(nursery, path)
    silent = await dial(greets=False)
    assert await silent.hear() == {"control": 1}
    assert await silent.hear() is None
    idle = await dial()
    assert await idle.hear() is None
    slow = await dial()
    await slow.say({"n": 1, "do": "submit", "messages": [wire(5)]}, contents=b"a")
    assert await slow.hear() is None


async def test_requests_are_answered_beside_one_another(path, nursery, dial):
    class Slow(MemoryStore):
        def __init__(self):
            super().__init__()
            self.go = trio.Event()

        async def apply(self, *args, **how):
            await self.go.wait()
            return await super().apply(*args, **how)

    store = Slow()
    await serve(nursery, path, store)
    raw = await dial()
    await raw.say(
        {"n": 1, "do": "apply", "action": "hold", "selection": {}}, {"n": 2, "do": "counts"}
    )
    assert (await raw.hear())["n"] == 2
    store.go.set()
    assert await raw.hear() == {"n": 1, "answer": 0, "failure": None}
