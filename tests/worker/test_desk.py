from __future__ import annotations

import pytest

from engine.content import from_octets, from_text
from engine.queue.errors import StoreFullError
from engine.queue.memory import MemoryStore
from engine.queue.submission import Accepted
from engine.queue.values import Action, Selection, State
from engine.worker.desk import Desk, Refused
from tests.queue.mail import START, mail


class Unwell(MemoryStore):
    """Counts calls of `submit`, and fails when told to."""

    def __init__(self, error=None):
        super().__init__()
        self.error, self.sizes = error, []

    async def submit(self, submissions, *, forget=()):
        self.sizes.append(len(submissions))
        if self.error is not None:
            raise self.error
        return await super().submit(submissions, forget=forget)


def desk_at(store=None, **how):
    return Desk(store or MemoryStore(), clock=lambda: START, **how)


async def test_what_is_submitted_is_there_and_known_the_second_time():
    desk = desk_at()

    assert await desk.submit([mail(id="x"), mail(id="y")]) == (
        Accepted("x", is_new=True),
        Accepted("y", is_new=True),
    )
    assert await desk.submit([mail(id="y")]) == (Accepted("y", is_new=False),)
    assert (await desk.counts()).messages == 2
    assert [entry.message for entry in (await desk.entries()).entries] == ["x", "y"]


async def test_messages_that_are_fine_go_together():
    store = Unwell()
    await desk_at(store).submit([mail() for _ in range(100)])
    assert store.sizes == [100]


async def test_a_message_that_is_refused_holds_up_nobody():
    desk = desk_at()
    batch = [mail(id=f"m{n}") for n in range(20)]
    batch[7] = mail(id="m3", content=from_text("another"))
    batch[13] = mail(id="m4", sender="other@example.org")

    answers = await desk.submit(batch)

    assert [n for n, each in enumerate(answers) if isinstance(each, Refused)] == [7, 13]
    assert answers[7].id == "m3"
    assert "known already" in answers[7].text
    assert (await desk.counts()).messages == 18


async def test_a_message_that_is_too_large_is_refused_with_what_is_allowed():
    desk = desk_at(max_message_octets=1000)
    large = mail(id="big", content=from_octets(b"x\r\n" * 334))

    answers = await desk.submit([mail(id="a"), large, mail(id="b")])

    assert [answer.id for answer in answers] == ["a", "big", "b"]
    text = "a content of 1,002 octets; allowed are 1,000 (max_message_octets)"
    assert answers[1] == Refused("big", text)
    assert (await desk.counts()).messages == 2


async def test_a_content_whose_file_is_gone_is_refused(tmp_path):
    class Gone:
        facts = from_octets(b"x\r\n" * 100_000).facts
        octets = None

        async def chunks(self):
            raise FileNotFoundError(2, "No such file or directory")
            yield b""

    class Reading(MemoryStore):
        async def submit(self, submissions, *, forget=()):
            for each in submissions:
                async for _ in each.message.content.chunks():
                    pass
            return await super().submit(submissions, forget=forget)

    answers = await desk_at(Reading()).submit([mail(id="a"), mail(id="b", content=Gone())])

    assert answers == (Accepted("a", is_new=True), Refused("b", "No such file or directory"))


async def test_a_store_that_fails_refuses_nothing():
    with pytest.raises(StoreFullError):
        await desk_at(Unwell(StoreFullError("full"))).submit([mail(), mail()])


async def test_recipients_are_steered():
    desk = desk_at()
    await desk.submit([mail("a@one.test", "b@two.test", id="x")])

    assert await desk.apply(Action.HOLD, Selection(domain="two.test"), "wait") == 1

    (first, second) = (await desk.entries(Selection(message="x"))).entries
    assert (first.state, second.state, second.reason) == (State.QUEUED, State.HELD, "wait")
    with pytest.raises(ValueError, match="weight -1"):
        await desk.set_weight("t", -1.0)


async def test_the_status_has_what_the_worker_says():
    desk = desk_at(status=lambda: {"pid": 7})
    await desk.submit([mail("a@one.test", "b@one.test", "c@two.test")])

    status = await desk.status()

    assert status.counts.queued == 3
    assert [(each.site.name, each.queued) for each in status.backlog] == [
        ("one.test", 2),
        ("two.test", 1),
    ]
    assert status.worker == {"pid": 7}
    assert (await desk_at().status()).worker is None


async def test_somebody_is_told_when_recipients_may_have_been_taken_out():
    told = []

    async def tell():
        told.append(True)

    desk = desk_at(on_removed=tell)
    await desk.submit([mail(id="x")])
    for action in (Action.HOLD, Action.RELEASE, Action.RETRY):
        await desk.apply(action, Selection())
    assert not told
    assert await desk.apply(Action.CANCEL, Selection()) == 1
    assert await desk.apply(Action.PURGE, Selection()) == 1
    assert len(told) == 2
