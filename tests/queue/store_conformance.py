"""What every store of queued mail does, whatever it is made of.

Run by `test_memory` and `test_sqlite` over their stores.  A check takes an empty store whose
back-offs keep what is due for four hours at most.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import trio

from engine.content import from_binary, from_octets, from_text
from engine.errors import SubmitError
from engine.message import Message, Recipient
from engine.queue.errors import DuplicateIdError, LeaseLostError
from engine.queue.store import DEFAULT_OVERDUE
from engine.queue.submission import Submission
from engine.queue.values import Action, Result, Selection, Settlement, SiteState, State
from tests.queue.mail import START, addresses_in, leased_in, mail, settlements, take

HOUR = 3600.0


async def entries_of(store, **selection):
    entries, after = [], 0
    while after is not None:
        page = await store.entries(Selection(**selection), after=after)
        entries += page.entries
        after = page.next
    return entries


async def states_of(store):
    return [(entry.recipient, entry.state.value) for entry in await entries_of(store)]


async def all_of(generator):
    return [item async for item in generator]


# -- going in -----------------------------------------------------------------------------------


async def what_was_submitted_comes_out_as_it_went_in(store):
    content = from_octets(
        b"Subject: \xc3\xa9\r\n\r\n.\r\n" + bytes(range(1, 256)).replace(b"\r", b"")
    )
    message = Message(
        id="ünique \n id",
        reverse_path=Message.parse_sender("me@example.org"),
        recipients=(
            Recipient.parse("a@one.test", ["success", "failure"], "rfc822;other@one.test"),
            Recipient.parse("<jö@exämple.test>"),
            Recipient.parse('"a b"@[192.0.2.1]', ["never"]),
        ),
        content=content,
        envid="env-1",
        ret="hdrs",
        require_tls=True,
        smtputf8=True,
    )
    submission = Submission(
        message=message,
        submitted_at=START,
        tenant="t",
        job="j",
        priority=3,
        deadline=START + 60.5,
    )

    await store.submit([submission])
    lease = await take(store)

    assert [(each.lease, each.submitted_at, each.deadline) for each in lease.messages] == [
        (lease.number, START, START + 60.5)
    ]
    (leased,) = lease.messages
    assert (leased.tenant, leased.job, leased.priority) == ("t", "j", 3)
    found = leased.message
    order = {each.address: each for each in message.recipients}
    assert {each.address: each for each in found.recipients} == order
    assert [each.address for each in leased.recipients] == [r.address for r in found.recipients]
    assert found.content.octets == content.octets
    assert found.content.facts == content.facts
    for name in ("id", "reverse_path", "envid", "ret", "require_tls", "smtputf8"):
        assert getattr(found, name) == getattr(message, name)


async def the_null_path_stays_null(store):
    await store.submit([mail(sender="")])

    lease = await take(store)

    assert lease.messages[0].message.reverse_path is None
    assert (await entries_of(store))[0].sender == ""


async def what_a_content_asks_of_a_host_is_kept(store):
    optional = from_text("TLS-Required: No\nSubject: x\n\nhello\n")
    binary = from_binary(b"Subject: x\r\n\r\n\x00\xff")

    await store.submit([mail("a@one.test", id="x", content=optional)])
    await store.submit([mail("a@two.test", id="y", content=binary)])
    lease = await take(store)

    found = {each.message.id: each.message.content.facts for each in lease.messages}
    assert found == {"x": optional.facts, "y": binary.facts}
    assert found["x"].is_tls_optional
    assert found["y"].is_binary


async def an_empty_content_is_a_content(store):
    await store.submit([mail(content=from_text(""))])

    lease = await take(store)

    assert lease.messages[0].message.content.octets == b""


async def a_large_content_comes_out_in_pieces_as_it_went_in(store):
    octets = b"".join(b"line %d\r\n" % number for number in range(60_000))
    content = from_octets(octets)

    await store.submit([mail("a@one.test", "b@two.test", content=content)])
    lease = await take(store)

    (leased,) = lease.messages
    assert leased.message.content.facts == content.facts
    pieces = await all_of(leased.message.content.chunks())
    assert b"".join(pieces) == octets
    assert max(map(len, pieces)) <= 64 * 1024
    # It can be read as often as it is sent.
    assert b"".join(await all_of(leased.message.content.chunks())) == octets


async def a_known_id_is_accepted_again_without_a_second_copy(store):
    (first,) = await store.submit([mail(id="x")])
    (second,) = await store.submit([mail(id="x", at=START + 5)])

    assert (first.id, first.is_new) == ("x", True)
    assert (second.id, second.is_new) == ("x", False)
    assert addresses_in(await take(store)) == ["a@one.test"]


async def an_id_is_known_after_its_message_is_done_with(store):
    await store.submit([mail(id="x")])
    await store.settle(settlements(await take(store)), now=START)

    (again,) = await store.submit([mail(id="x")])

    assert not again.is_new
    assert not (await take(store)).messages


async def an_id_is_known_within_one_submission(store):
    accepted = await store.submit([mail(id="x"), mail(id="x"), mail(id="y")])

    assert [each.is_new for each in accepted] == [True, False, True]
    assert len(leased_in(await take(store))) == 2


async def an_id_for_another_message_is_refused_and_nothing_of_that_call_is_taken(store):
    await store.submit([mail(id="x")])

    for other in (
        mail("b@one.test", id="x"),
        mail(id="x", sender="you@example.org"),
        mail(id="x", content=from_text("other")),
    ):
        with pytest.raises(DuplicateIdError, match="'x'"):
            await store.submit([mail(id="new"), other])

    assert [entry.message for entry in await entries_of(store)] == ["x"]
    await store.settle(settlements(await take(store)), now=START)
    with pytest.raises(SubmitError):
        await store.submit([mail(id="x", content=from_text("other"))])


async def one_call_that_is_refused_is_no_matter_to_others_at_the_same_time(store):
    await store.submit([mail(id="x")])
    refused = []

    async def submit(submission):
        try:
            await store.submit([submission])
        except DuplicateIdError:
            refused.append(submission.message.id)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(submit, mail(id=f"good{number}"))
            nursery.start_soon(submit, mail("other@one.test", id="x"))

    assert refused == ["x"] * 20
    assert len(await entries_of(store)) == 21


async def nothing_submitted_is_nothing_done(store):
    assert await store.submit([]) == ()
    assert await store.settle([], now=START) == ()
    assert (await store.counts(now=START)).messages == 0


# -- leases -------------------------------------------------------------------------------------


async def an_empty_store_has_nothing_and_will_never_have(store):
    lease = await take(store)

    assert (lease.number, lease.messages, lease.expired) == (0, (), ())
    assert lease.next_due is None
    assert not lease.is_clogged


async def a_lease_takes_no_more_than_there_are_seats(store):
    await store.submit([mail(f"u{n}@d{n % 7}.test") for n in range(50)])

    sizes = []
    while (lease := await take(store, seats=8)).messages:
        sizes.append(len(leased_in(lease)))
        await store.settle(settlements(lease), now=START)

    assert sum(sizes) == 50
    assert max(sizes) == 8
    assert len(sizes) <= 10  # and it takes nearly as many as there are


async def nobody_is_leased_twice(store):
    await store.submit([mail("a@one.test", "b@two.test")])

    first, second = await take(store), await take(store, owner="w2")

    assert len(leased_in(first)) == 2
    assert not second.messages
    assert second.number == 0


async def concurrent_leases_share_what_is_due_without_overlap(store):
    await store.submit([mail(f"u{n}@d{n % 5}.test") for n in range(60)])
    taken = []

    async def work(name):
        while (lease := await take(store, seats=4, owner=name)).messages:
            taken.extend(addresses_in(lease))
            await store.settle(settlements(lease), now=START)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(work, f"w{number}")

    assert sorted(taken) == sorted(f"u{n}@d{n % 5}.test" for n in range(60))


async def recipients_of_a_message_at_one_site_are_leased_together(store):
    addresses = [f"u{n}@one.test" for n in range(6)]
    await store.submit([mail(*addresses), mail("x@two.test")])

    lease = await take(store)

    assert sorted(len(message.recipients) for message in lease.messages) == [1, 6]


async def an_attempt_is_counted_and_the_next_is_written_down_before_it_begins(store):
    await store.submit([mail()])

    lease = await take(store, retry_at=START + 300)

    ((_, recipient),) = leased_in(lease)
    assert (recipient.attempts, recipient.first_attempt_at) == (1, START)
    (entry,) = await entries_of(store)
    assert (entry.state, entry.attempts, entry.next_attempt) == (State.LEASED, 1, START + 300)


async def what_is_not_due_yet_is_not_leased_and_the_store_says_when(store):
    await store.submit([mail(not_before=START + 60), mail(not_before=START + 30)])

    lease = await take(store)

    assert not lease.messages
    assert lease.next_due == START + 30
    assert not lease.is_clogged
    lease = await take(store, START + 30)
    assert len(lease.messages) == 1
    assert lease.next_due == START + 60
    assert len((await take(store, START + 60)).messages) == 1


async def what_came_first_is_leased_first(store):
    for number in range(5):
        await store.submit([mail(f"u{number}@one.test", at=START + number)])

    order = []
    while (lease := await take(store, START + 9, seats=1)).messages:
        order += addresses_in(lease)
        await store.settle(settlements(lease), now=START)

    assert order == [f"u{number}@one.test" for number in range(5)]


async def higher_priorities_go_first_whatever_came_when(store):
    await store.submit([mail(f"low{n}@d{n}.test", priority=-1) for n in range(5)])
    await store.submit([mail(f"mid{n}@d{n}.test") for n in range(5)])
    await store.submit([mail(f"top{n}@d{n}.test", priority=9) for n in range(5)])

    order = []
    while (lease := await take(store, seats=1)).messages:
        order += [address[:3] for address in addresses_in(lease)]
        await store.settle(settlements(lease), now=START)

    assert order == ["top"] * 5 + ["mid"] * 5 + ["low"] * 5


async def a_site_has_no_more_out_than_it_may(store):
    await store.submit([mail(f"u{n}@one.test") for n in range(30)])
    await store.submit([mail(f"u{n}@two.test") for n in range(2)])

    first = await take(store, seats=100, site_seats=5)
    second = await take(store, seats=100, site_seats=5, owner="w2")

    assert Counter(r.site for _, r in leased_in(first)) == {"one.test": 5, "two.test": 2}
    assert first.is_clogged
    assert not second.messages
    assert second.is_clogged
    await store.settle(settlements(first)[:3], now=START)
    assert len(leased_in(await take(store, seats=100, site_seats=5))) >= 1


async def clogged_sites_leave_seats_to_others(store):
    """The fewer seats are free, the fewer a site may have."""
    for site in range(5):
        await store.submit([mail(f"u{n}@slow{site}.test") for n in range(100)])
    out = 0
    while (lease := await take(store, seats=100 - out, site_seats=100)).messages:
        out += len(leased_in(lease))
    assert lease.is_clogged
    assert 80 <= out < 100

    await store.submit([mail("x@quick.test")])

    assert addresses_in(await take(store, seats=100 - out)) == ["x@quick.test"]


async def a_small_job_does_not_wait_for_a_large_one(store):
    await store.submit([mail(f"u{n}@d{n}.test", job="large") for n in range(300)])
    await take(store, seats=20)
    await store.submit([mail(f"u{n}@e{n}.test", job="small") for n in range(10)])

    lease = await take(store, seats=30)

    jobs = Counter(message.job for message in lease.messages)
    assert jobs["small"] == 10


async def jobs_with_deep_queues_at_the_same_site_take_turns(store):
    await store.submit([mail(f"u{n}@one.test", job="large") for n in range(300)])
    await take(store, seats=20)
    await store.submit([mail(f"v{n}@one.test", job="small") for n in range(100)])

    taken = Counter()
    for _ in range(10):
        lease = await take(store, seats=12)
        taken.update(message.job for message in lease.messages)
        await store.settle(settlements(lease), now=START)

    assert abs(taken["large"] - taken["small"]) <= 20


async def tenants_share_evenly_whatever_number_of_jobs_they_have(store):
    await store.submit(
        [mail(f"u{n}@a{n}.test", tenant="many", job=f"j{n % 4}") for n in range(400)]
        + [mail(f"u{n}@b{n}.test", tenant="few", job="j") for n in range(400)]
    )

    taken = Counter()
    for _ in range(20):
        lease = await take(store, seats=10)
        taken.update(message.tenant for message in lease.messages)

    assert 70 <= taken["few"] <= 130, taken


async def weights_decide_who_gets_how_much(store):
    await store.set_weight("heavy", 3)
    await store.submit(
        [mail(f"u{n}@a{n % 20}.test", tenant="heavy") for n in range(400)]
        + [mail(f"u{n}@b{n % 20}.test", tenant="light") for n in range(400)]
    )

    taken = Counter()
    for _ in range(25):
        lease = await take(store, seats=8)
        taken.update(message.tenant for message in lease.messages)
        await store.settle(settlements(lease), now=START)

    assert 120 <= taken["heavy"] <= 175, taken


async def jobs_have_weights_among_their_tenants_jobs(store):
    await store.set_weight("t", 4, job="urgent")
    await store.submit(
        [mail(f"u{n}@a{n % 20}.test", tenant="t", job="urgent") for n in range(400)]
        + [mail(f"u{n}@b{n % 20}.test", tenant="t", job="bulk") for n in range(400)]
    )

    taken = Counter()
    for _ in range(25):
        lease = await take(store, seats=8)
        taken.update(message.job for message in lease.messages)
        await store.settle(settlements(lease), now=START)

    assert 130 <= taken["urgent"] <= 190, taken


async def a_weight_is_above_0_and_finite(store):
    for weight in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="weight"):
            await store.set_weight("t", weight)


async def what_is_past_its_deadline_is_leased_to_be_given_up(store):
    await store.submit([mail("a@one.test", id="x", deadline=START + 60)])
    lease = await take(store, START)
    await store.settle(
        settlements(lease, Result.DEFERRED, due=START + 300, reason="because"), now=START
    )

    lease = await take(store, START + 59)
    assert (lease.messages, lease.expired, lease.next_due) == ((), (), START + 60)
    lease = await take(store, START + 60, seats=0)

    assert not lease.messages
    ((number, recipient),) = leased_in(lease)
    assert (number, recipient.attempts, recipient.reason) == (lease.number, 1, "because")
    await store.settle(settlements(lease, Result.FAILED), now=START + 60)
    assert await states_of(store) == []


async def a_deadline_is_kept_by_what_was_never_due(store):
    await store.submit([mail(not_before=START + 100, deadline=START + 50)])

    lease = await take(store, START + 50)

    assert [len(message.recipients) for message in lease.expired] == [1]
    ((_, recipient),) = leased_in(lease)
    assert recipient.attempts == 0


async def what_is_held_has_no_deadline_until_it_is_released(store):
    await store.submit([mail(deadline=START + 50, is_held=True)])

    lease = await take(store, START + 60)
    assert (lease.expired, lease.next_due) == ((), None)
    await store.apply(Action.RELEASE, Selection(), now=START + 60)

    assert len((await take(store, START + 60)).expired) == 1


# -- settling -----------------------------------------------------------------------------------


async def who_was_delivered_is_gone_and_with_the_last_the_message(store):
    await store.submit([mail("a@one.test", "b@two.test", id="x")])
    lease = await take(store)
    first, second = settlements(lease)

    assert await store.settle([first], now=START) == ()
    assert (await store.counts(now=START)).messages == 1
    assert len((await store.messages())[0].entries) == 1
    assert await store.settle([second], now=START) == ()

    assert (await store.counts(now=START)).messages == 0
    assert await store.messages() == ()


async def who_was_deferred_is_due_again_when_it_was_said(store):
    await store.submit([mail()])
    lease = await take(store)
    await store.settle(
        settlements(
            lease, Result.DEFERRED, due=START + 300, wait=290.0, reason="why", last='{"a": 1}'
        ),
        now=START,
    )

    (entry,) = await entries_of(store)
    assert (entry.state, entry.next_attempt, entry.reason) == (State.QUEUED, START + 300, "why")
    assert entry.as_dict()["last"] == {"a": 1}
    lease = await take(store, START + 299.9)
    assert not lease.messages
    assert lease.next_due == START + 300
    ((_, recipient),) = leased_in(await take(store, START + 300))
    assert (recipient.attempts, recipient.wait, recipient.reason) == (2, 290.0, "why")
    assert recipient.first_attempt_at == START


async def an_attempt_that_does_not_count_is_taken_back(store):
    await store.submit([mail()])
    lease = await take(store)
    await store.settle(settlements(lease, Result.RELEASED, due=START + 5), now=START)

    (entry,) = await entries_of(store)
    assert (entry.state, entry.attempts, entry.next_attempt) == (State.QUEUED, 0, START + 5)
    ((_, recipient),) = leased_in(await take(store, START + 5))
    assert (recipient.attempts, recipient.first_attempt_at) == (1, START + 5)


async def settling_twice_is_no_harm_and_is_told(store):
    await store.submit([mail("a@one.test", "b@one.test")])
    lease = await take(store)
    first, second = settlements(lease)
    again = Settlement(
        lease=first.lease, recipient=first.recipient, result=Result.DEFERRED, due=START
    )

    assert await store.settle([first, first], now=START) == (first.recipient,)
    assert await store.settle([first, second], now=START) == (first.recipient,)
    assert await store.settle([again], now=START) == (first.recipient,)
    assert await states_of(store) == []


async def a_settlement_of_an_older_lease_is_ignored(store):
    await store.submit([mail()])
    old = await take(store)
    await store.settle(settlements(old, Result.DEFERRED, due=START), now=START)
    new = await take(store)

    (number,) = await store.settle(settlements(old), now=START)

    assert number == leased_in(new)[0][1].number
    assert await states_of(store) == [("a@one.test", "leased")]


async def the_last_outcome_stays_until_another_is_told(store):
    await store.submit([mail()])
    lease = await take(store)
    await store.settle(
        settlements(lease, Result.DEFERRED, due=START, reason="why", last='"first"'), now=START
    )
    lease = await take(store)
    await store.settle(settlements(lease, Result.RELEASED, due=START), now=START)

    (entry,) = await entries_of(store)

    assert (entry.last, entry.reason) == ('"first"', "why")


async def who_is_to_be_reported_stays_until_it_is_forgotten(store):
    await store.submit([mail("a@one.test", "b@two.test", id="x")])
    lease = await take(store)
    await store.settle(
        settlements(lease, Result.FAILED, report=True, reason="no such user", last='{"b": 2}'),
        now=START,
    )

    (message,) = await store.ended()
    assert message.message.id == "x"
    assert message.message.content.octets is not None
    assert [entry.state for entry in message.entries] == [State.ENDED] * 2
    assert {entry.result for entry in message.entries} == {Result.FAILED}
    assert {entry.reason for entry in message.entries} == {"no such user"}
    assert not (await take(store, START + 9)).messages
    first, second = (entry.number for entry in message.entries)
    await store.forget([first])
    assert [len(each.entries) for each in await store.ended()] == [1]

    # A report goes in as what it is about goes out: both, or neither.
    await store.submit([mail(id="report", sender="")], forget=[second])

    assert await store.ended() == ()
    assert [entry.message for entry in await entries_of(store)] == ["report"]


async def a_report_that_is_refused_forgets_nobody(store):
    await store.submit([mail(id="x"), mail("b@two.test", id="taken")])
    lease = await take(store)
    await store.settle(settlements(lease, Result.FAILED, report=True), now=START)
    numbers = [entry.number for message in await store.ended() for entry in message.entries]

    with pytest.raises(DuplicateIdError):
        await store.submit([mail("c@two.test", id="taken")], forget=numbers)

    assert len(await store.ended()) == 2


async def who_ended_is_listed_from_behind_a_number_on(store):
    await store.submit([mail(id=f"m{number}") for number in range(5)])
    await store.settle(settlements(await take(store), Result.FAILED, report=True), now=START)

    first = await store.ended(limit=2)
    rest = await store.ended(after=first[-1].number)

    assert [each.message.id for each in (*first, *rest)] == ["m0", "m1", "m2", "m3", "m4"]


async def who_ended_comes_with_whether_a_worker_is_at_others(store):
    await store.submit([mail("a@one.test", "b@two.test", "c@three.test", id="x"), mail(id="y")])
    lease = await take(store)
    failures = settlements(lease, Result.FAILED, report=True)

    async def at_work():
        return {each.message.id: each.is_at_work for each in await store.ended()}

    await store.settle([failures[0], failures[-1]], now=START)
    assert await at_work() == {"x": True, "y": False}
    deferred = settlements(lease, Result.DEFERRED, due=START + 60)
    await store.settle(deferred, now=START)
    # Who waits for a later try is not waited for.
    assert await at_work() == {"x": False, "y": False}


async def only_who_has_ended_can_be_forgotten(store):
    await store.submit([mail()])
    (entry,) = await entries_of(store)

    await store.forget([entry.number, 12345])

    assert len(await entries_of(store)) == 1


async def who_is_held_by_a_settlement_waits_for_a_person(store):
    await store.submit([mail()])
    await store.settle(settlements(await take(store), Result.HELD, reason="unknown"), now=START)

    lease = await take(store, START + 1e6)
    assert (lease.messages, lease.next_due) == ((), None)
    (entry,) = await entries_of(store)
    assert (entry.state, entry.reason, entry.next_attempt) == (State.HELD, "unknown", None)


# -- delays -------------------------------------------------------------------------------------


async def delayed_in(store, now, *waits, **how):
    """Return who is late: message ids and addresses, and where to go on."""
    found = await store.delayed(now=now, waits=waits, **how)
    late = [(each.message.id, entry.recipient) for each in found.messages for entry in each.entries]
    return late, found.next


async def who_waits_for_so_long_is_late(store):
    await store.submit([mail("a@one.test", "b@two.test", id="x")])
    await store.submit([mail("c@one.test", id="y", at=START + 50)])
    await take(store, seats=1)

    assert await delayed_in(store, START + 99.999, 100) == ([], None)
    # Also who is being tried just then.
    assert await delayed_in(store, START + 100, 100) == (
        [("x", "a@one.test"), ("x", "b@two.test")],
        None,
    )
    assert len((await delayed_in(store, START + 150, 100))[0]) == 3


async def who_is_late_comes_with_what_a_warning_needs(store):
    octets = b"Subject: x\r\n\r\n" + b"line\r\n" * 20_000
    await store.submit([mail(id="x", content=from_octets(octets), deadline=START + 9000)])
    await store.settle(
        settlements(
            await take(store), Result.DEFERRED, due=START + 60, reason="r", last='{"b": 2}'
        ),
        now=START,
    )

    (message,) = (await store.delayed(now=START + 100, waits=[100])).messages

    (entry,) = message.entries
    assert (entry.state, entry.reason, entry.last) == (State.QUEUED, "r", '{"b": 2}')
    assert (entry.submitted_at, entry.deadline, entry.attempts) == (START, START + 9000, 1)
    content = message.message.content
    assert content.facts.octets == len(octets)
    assert content.octets or b"".join(await all_of(content.chunks())) == octets


async def who_is_done_with_or_held_is_not_late(store):
    await store.submit([mail(f"{name}@{name}.test") for name in ("done", "failed", "held")])
    lease = await take(store)
    done, failed, held = settlements(lease)
    order = addresses_in(lease)
    by_name = dict(zip(order, (done, failed, held), strict=True))
    await store.settle(
        [
            by_name["done@done.test"],
            by_name["failed@failed.test"]._replace(result=Result.FAILED, report=True),
            by_name["held@held.test"]._replace(result=Result.HELD),
        ],
        now=START,
    )

    assert await delayed_in(store, START + 1e6, 100) == ([], None)
    await store.apply(Action.RELEASE, Selection(), now=START)
    assert len((await delayed_in(store, START + 1e6, 100))[0]) == 1


async def nobody_waits_for_what_came_from_the_null_path(store):
    await store.submit([mail(sender="")])

    assert await delayed_in(store, START + 1e6, 100) == ([], None)


async def nobody_waits_before_they_may_be_tried(store):
    await store.submit([mail(not_before=START + 1000)])
    await store.submit([mail("b@two.test", not_before=START - 1000)])

    assert (await delayed_in(store, START + 100, 100))[0][0][1] == "b@two.test"
    assert len((await delayed_in(store, START + 1099, 100))[0]) == 1
    found = await store.delayed(now=START + 1100, waits=[100])
    assert [each.not_before for each in found.messages] == [START + 1000, START - 1000]


async def who_was_warned_is_late_again_after_the_next_wait(store):
    await store.submit([mail(), mail("b@two.test")])
    found = await store.delayed(now=START + 150, waits=[100, 200])
    (first, _) = [entry.number for each in found.messages for entry in each.entries]

    await store.note_warned([first, 12345], now=START + 150)

    assert len((await delayed_in(store, START + 199, 100, 200))[0]) == 1
    assert len((await delayed_in(store, START + 200, 100, 200))[0]) == 2
    assert len((await delayed_in(store, START + 200, 100))[0]) == 1
    await store.note_warned([first], now=START + 200)
    assert len((await delayed_in(store, START + 1e6, 100, 200))[0]) == 1


async def what_was_warned_of_is_noted_as_the_warning_goes_in(store):
    await store.submit([mail(id="x"), mail("b@two.test", id="taken")])
    found = await store.delayed(now=START + 150, waits=[100])
    numbers = [entry.number for each in found.messages for entry in each.entries]

    with pytest.raises(DuplicateIdError):
        await store.submit([mail("c@two.test", id="taken", at=START + 150)], warned=numbers)
    assert len((await delayed_in(store, START + 150, 100))[0]) == 2
    await store.submit([mail(id="warning", sender="", at=START + 150)], warned=numbers)

    assert await delayed_in(store, START + 160, 100) == ([], None)
    # Again is no harm.
    await store.submit([mail(id="warning", sender="", at=START + 150)], warned=numbers)
    assert await delayed_in(store, START + 160, 100) == ([], None)


async def who_is_late_is_listed_in_pages(store):
    await store.submit([mail(f"{n}@one.test", f"{n}@two.test", id=f"m{n}") for n in range(5)])
    found, after = [], 0
    while after is not None:
        late, after = await delayed_in(store, START + 100, 100, after=after, limit=3)
        assert len(late) <= 3
        found += late

    assert found == [(f"m{n}", f"{n}@{d}.test") for n in range(5) for d in ("one", "two")]


# -- leases that are lost -----------------------------------------------------------------------


async def who_was_not_marked_is_queued_again_and_who_was_is_handed_on(store):
    await store.submit([mail(f"{name}@{name}.test", id=name) for name in "abc"])
    lease = await take(store, deadline=START + 60, retry_at=START + 300)
    by_address = {recipient.address: recipient.number for _, recipient in leased_in(lease)}
    await store.mark(lease.number, [by_address["b@b.test"]])

    nothing = await store.recover(owner="w2", now=START + 59, deadline=START + 119)
    assert (nothing.released, nothing.doubtful) == (0, ())
    found = await store.recover(owner="w2", now=START + 60, deadline=START + 120)

    assert found.released == 2
    ((number, recipient),) = [
        (each.lease, recipient) for each in found.doubtful for recipient in each.recipients
    ]
    assert (recipient.address, recipient.attempts) == ("b@b.test", 1)
    assert found.doubtful[0].message.id == "b"
    assert dict(await states_of(store)) == {
        "a@a.test": "queued",
        "b@b.test": "leased",
        "c@c.test": "queued",
    }
    assert {
        entry.reason for entry in await entries_of(store, states=frozenset({State.QUEUED}))
    } == {"the worker was gone before its attempt had ended"}
    assert not (await take(store, START + 299)).messages
    assert len(leased_in(await take(store, START + 300))) == 2
    await store.settle(
        [Settlement(lease=number, recipient=recipient.number, result=Result.DELIVERED)],
        now=START + 60,
    )
    assert len(await states_of(store)) == 2


async def an_owner_known_to_be_dead_loses_its_leases_before_their_deadline(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    await take(store, seats=1, owner="dead")
    await take(store, seats=1, owner="alive")

    found = await store.recover(owner="w3", now=START, deadline=START + 60, dead=["dead", "nobody"])

    assert found.released == 1
    assert [owner.name for owner in await store.owners()] == ["alive"]


async def who_recovers_keeps_its_own_leases(store):
    await store.submit([mail()])
    await take(store, owner="me", deadline=START)

    found = await store.recover(owner="me", now=START + 9, deadline=START + 60, dead=["me"])

    assert found.released == 0
    assert await states_of(store) == [("a@one.test", "leased")]


async def a_mark_survives_a_second_crash(store):
    await store.submit([mail()])
    lease = await take(store, owner="w1")
    await store.mark(lease.number, [leased_in(lease)[0][1].number])
    await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])

    found = await store.recover(owner="w3", now=START, deadline=START + 60, dead=["w2"])

    assert found.released == 0
    assert len(found.doubtful) == 1


async def a_mark_ends_with_its_attempt(store):
    await store.submit([mail()])
    lease = await take(store, owner="w1")
    await store.mark(lease.number, [leased_in(lease)[0][1].number])
    await store.settle(settlements(lease, Result.DEFERRED, due=START), now=START)
    await take(store, owner="w1")

    found = await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])

    assert (found.released, found.doubtful) == (1, ())


async def a_lost_lease_cannot_be_marked(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    lease = await take(store)
    first, second = (recipient.number for _, recipient in leased_in(lease))
    await store.settle(settlements(lease)[:1], now=START)

    with pytest.raises(LeaseLostError):
        await store.mark(lease.number, [second, first])
    await store.mark(lease.number, [second])
    await store.mark(lease.number, [second])
    await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])
    with pytest.raises(LeaseLostError):
        await store.mark(lease.number, [second])


async def an_end_that_is_told_late_counts_as_long_as_nobody_else_has_tried(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    lease = await take(store, retry_at=START + 300)
    late = settlements(lease)
    await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])

    assert await store.settle(late[:1], now=START) == ()
    assert len(await states_of(store)) == 1
    again = await take(store, START + 300)
    assert await store.settle(late[1:], now=START) == (late[1].recipient,)
    assert len(leased_in(again)) == 1


async def a_deferral_that_is_told_late_changes_nothing(store):
    await store.submit([mail()])
    lease = await take(store, retry_at=START + 300)
    await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])

    await store.settle(settlements(lease, Result.DEFERRED, due=START + 9999), now=START)

    (entry,) = await entries_of(store)
    assert entry.next_attempt == START + 300


async def leases_hold_as_long_as_they_are_put_off(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    await take(store, seats=1, deadline=START + 60)
    await take(store, seats=1, deadline=START + 60)

    assert await store.extend("w1", deadline=START + 120) == 2
    assert await store.extend("nobody", deadline=START + 120) == 0

    assert [(o.name, o.deadline, o.recipients) for o in await store.owners()] == [
        ("w1", START + 120, 2)
    ]
    assert (await store.recover(owner="w2", now=START + 119, deadline=START)).released == 0
    assert (await store.recover(owner="w2", now=START + 120, deadline=START)).released == 2
    assert await store.owners() == ()


# -- sites --------------------------------------------------------------------------------------


async def a_site_that_is_backed_off_keeps_its_mail_and_nobody_elses(store):
    state = SiteState(name="one.test", not_before=START + 100, failures=2, reason="421 busy")
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    await store.settle([], now=START, sites=[state])

    lease = await take(store)
    assert addresses_in(lease) == ["b@two.test"]
    assert lease.next_due == START + 100
    (entry,) = await entries_of(store, domain="one.test")
    assert (entry.left_alone_until, entry.left_alone_for) == (START + 100, "421 busy")
    assert not lease.is_clogged
    await store.submit([mail("c@one.test")])
    assert not (await take(store, START + 99)).messages
    assert await store.sites() == (state,)
    lease = await take(store, START + 100)
    assert sorted(addresses_in(lease)) == ["a@one.test", "c@one.test"]
    assert lease.sites == {"one.test": state}


async def a_back_off_keeps_nobody_who_is_overdue(store):
    """A site that is down for days must not keep its mail from ever being given up."""
    await store.submit([mail("old@one.test"), mail("new@one.test", not_before=START + 60)])
    state = SiteState(name="one.test", not_before=START + 1e6, failures=9)
    await store.settle([], now=START, sites=[state])

    lease = await take(store, START + DEFAULT_OVERDUE - 1)
    assert not lease.messages
    assert lease.next_due == START + DEFAULT_OVERDUE
    assert addresses_in(await take(store, START + DEFAULT_OVERDUE)) == ["old@one.test"]
    assert addresses_in(await take(store, START + DEFAULT_OVERDUE + 60)) == ["new@one.test"]


async def a_back_off_that_ends_early_lets_mail_go_early(store):
    await store.submit([mail("a@one.test")])
    await store.settle([], now=START, sites=[SiteState(name="one.test", not_before=START + 900)])
    assert not (await take(store)).messages

    await store.settle([], now=START, sites=[SiteState(name="one.test")])

    assert await store.sites() == ()
    assert addresses_in(await take(store)) == ["a@one.test"]


async def domains_of_one_site_share_what_it_may_have_out(store):
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(10)])
    await store.settle([], now=START, routes={f"d{n}.test": "mx.big.test" for n in range(8)})

    lease = await take(store, site_seats=3)

    assert Counter(r.site for _, r in leased_in(lease)) == {
        "mx.big.test": 3,
        "d8.test": 1,
        "d9.test": 1,
    }
    assert {entry.site for entry in await entries_of(store, domain="d3.test")} == {"mx.big.test"}


async def what_is_out_when_its_site_is_found_counts_for_that(store):
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(4)])
    lease = await take(store, seats=2)
    out = [recipient.address.partition("@")[2] for _, recipient in leased_in(lease)]
    await store.settle([], now=START, routes={f"d{n}.test": "mx.test" for n in range(4)})

    assert not (await take(store, site_seats=2)).messages
    await store.settle(settlements(lease), now=START)
    found = await take(store, site_seats=2)

    assert len(leased_in(found)) == 2
    assert not {r.address.partition("@")[2] for _, r in leased_in(found)} & set(out)


async def a_back_off_of_a_site_holds_for_all_its_domains(store):
    await store.settle([], now=START, sites=[SiteState(name="mx.test", not_before=START + 60)])
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    await store.settle([], now=START, routes={"one.test": "mx.test", "two.test": "mx.test"})

    lease = await take(store)
    assert (lease.messages, lease.next_due) == ((), START + 60)
    assert len(leased_in(await take(store, START + 60))) == 2


async def a_back_off_of_a_domain_ends_when_its_site_is_found_to_be_well(store):
    await store.submit([mail("a@one.test")])
    await store.settle([], now=START, sites=[SiteState(name="one.test", not_before=START + 60)])
    assert not (await take(store)).messages

    await store.settle([], now=START, routes={"one.test": "mx.test"})

    assert addresses_in(await take(store)) == ["a@one.test"]


async def a_domain_that_moves_leaves_behind_what_waits_and_loses_nothing(store):
    await store.submit([mail("a@one.test")])
    await store.settle([], now=START, routes={"one.test": "old.test"})
    await store.settle([], now=START, routes={"one.test": "new.test"})
    await store.submit([mail("b@one.test")])

    lease = await take(store)

    assert {r.address: r.site for _, r in leased_in(lease)} == {
        "a@one.test": "old.test",
        "b@one.test": "new.test",
    }


async def the_route_of_a_domain_without_mail_is_no_matter(store):
    await store.settle([], now=START, routes={"nobody.test": "mx.test"})

    assert (await take(store)).next_due is None


# -- steering -----------------------------------------------------------------------------------


async def what_is_held_stays_until_it_is_released(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])

    assert (
        await store.apply(Action.HOLD, Selection(domain="one.test"), now=START, reason="stop") == 1
    )
    assert addresses_in(await take(store)) == ["b@two.test"]
    assert (await store.counts(now=START)).held == 1
    (entry,) = await entries_of(store, states=frozenset({State.HELD}))
    assert (entry.recipient, entry.reason) == ("a@one.test", "stop")
    assert await store.apply(Action.RELEASE, Selection(), now=START + 5) == 1
    (entry,) = await entries_of(store, states=frozenset({State.QUEUED}))
    assert entry.reason == "released by hand"
    assert addresses_in(await take(store, START + 5)) == ["a@one.test"]


async def mail_can_be_submitted_held(store):
    await store.submit([mail(is_held=True, not_before=START + 60)])

    assert (await take(store, START + 100)).next_due is None
    await store.apply(Action.RELEASE, Selection(), now=START)
    assert len((await take(store)).messages) == 1


async def retrying_makes_due_at_once_and_ends_the_back_off(store):
    await store.submit([mail("a@one.test")])
    await store.settle(
        settlements(await take(store), Result.DEFERRED, due=START + 900, wait=900),
        now=START,
        sites=[SiteState(name="one.test", not_before=START + 500, failures=3)],
    )

    assert await store.apply(Action.RETRY, Selection(), now=START + 1) == 1

    ((_, recipient),) = leased_in(await take(store, START + 1))
    assert (recipient.attempts, recipient.wait) == (2, 900)
    assert await store.sites() == ()


async def cancelling_gives_up_and_leaves_who_is_to_be_told(store):
    await store.submit([mail("a@one.test", id="x"), mail("b@two.test", is_held=True)])

    assert await store.apply(Action.CANCEL, Selection(), now=START, reason="by hand") == 2

    assert not (await take(store)).messages
    entries = [entry for message in await store.ended() for entry in message.entries]
    assert {(entry.result, entry.reason) for entry in entries} == {(Result.FAILED, "by hand")}


async def what_is_done_by_hand_says_so_where_nobody_gave_a_reason(store):
    await store.submit([mail("a@one.test"), mail("b@two.test"), mail("c@three.test")])
    await take(store, seats=1)
    await store.apply(Action.HOLD, Selection(), now=START)
    await store.apply(Action.CANCEL, Selection(domain="three.test"), now=START)
    await store.recover(owner="w2", now=START, deadline=START, dead=["w1"])

    reasons = {entry.recipient: entry.reason for entry in await entries_of(store)}

    assert reasons == {
        "a@one.test": "held by hand",
        "b@two.test": "held by hand",
        "c@three.test": "cancelled by hand",
    }


async def purging_leaves_nothing(store):
    await store.submit([mail("a@one.test", "b@one.test"), mail("c@two.test", is_held=True)])
    lease = await take(store, seats=1)
    await store.settle(settlements(lease, Result.FAILED, report=True), now=START)

    assert await store.apply(Action.PURGE, Selection(), now=START) == 3

    assert await entries_of(store) == []
    assert await store.ended() == ()
    assert (await take(store)).next_due is None
    assert (await store.counts(now=START)).messages == 0


async def what_does_not_wait_any_more_is_not_waited_for(store):
    await store.submit([mail("a@one.test", id="x", not_before=START + 10)])
    await store.submit([mail("b@one.test", id="y", not_before=START + 20)])
    await store.submit([mail("c@two.test", not_before=START + 30, deadline=START)])

    assert len((await take(store, seats=0)).expired) == 1
    assert (await take(store)).next_due == START + 10
    await store.apply(Action.HOLD, Selection(message="x"), now=START)
    assert (await take(store)).next_due == START + 20
    await store.apply(Action.PURGE, Selection(message="y"), now=START)
    assert (await take(store)).next_due is None


async def what_is_leased_is_held_cancelled_or_purged_when_it_comes_back(store):
    await store.submit([mail(f"{name}@{name}.test") for name in ("hold", "cancel", "purge", "x")])
    lease = await take(store)
    for action in (Action.HOLD, Action.CANCEL, Action.PURGE):
        domain = f"{action.value}.test"
        assert await store.apply(action, Selection(domain=domain), now=START, reason="hand") == 1

    assert {state for _, state in await states_of(store)} == {"leased"}
    await store.settle(settlements(lease, Result.DEFERRED, due=START + 5, reason="busy"), now=START)

    assert dict(await states_of(store)) == {
        "hold@hold.test": "held",
        "cancel@cancel.test": "ended",
        "x@x.test": "queued",
    }
    reasons = [entry.reason for entry in await entries_of(store)]
    assert reasons == ["hand", "hand", "busy"]


async def what_was_delivered_while_it_was_to_be_cancelled_was_delivered(store):
    await store.submit([mail()])
    lease = await take(store)
    await store.apply(Action.CANCEL, Selection(), now=START)

    await store.settle(settlements(lease), now=START)

    assert await states_of(store) == []
    assert await store.ended() == ()
    assert await store.removals() == ()


async def removed_from(store):
    return [
        (each.message, each.recipient, each.attempts, each.action.value, each.reason, each.at)
        for each in await store.removals()
    ]


async def who_is_taken_out_by_hand_is_known_until_forgotten(store):
    await store.submit([mail("a@one.test", "b@one.test", id="x")])
    await store.submit([mail("c@two.test", id="y", is_held=True)])
    await store.settle(
        settlements(await take(store), Result.DEFERRED, due=START + 60, reason="busy"), now=START
    )

    await store.apply(Action.CANCEL, Selection(recipient="a@one.test"), now=START + 1)
    await store.apply(Action.CANCEL, Selection(message="y"), now=START + 2, reason="a mistake")
    await store.apply(Action.PURGE, Selection(recipient="b@one.test"), now=START + 3)

    assert await removed_from(store) == [
        ("x", "a@one.test", 1, "cancel", "cancelled by hand", START + 1),
        ("y", "c@two.test", 0, "cancel", "a mistake", START + 2),
        ("x", "b@one.test", 1, "purge", "busy", START + 3),
    ]
    (first,) = await store.removals(limit=1)
    await store.forget_removals([first.number, 10**9])
    assert [each.recipient for each in await store.removals()] == ["c@two.test", "b@one.test"]
    await store.forget_removals([each.number for each in await store.removals()])
    assert await store.removals() == ()
    await store.apply(Action.CANCEL, Selection(), now=START + 4)
    await store.submit([mail("d@one.test")])
    await store.apply(Action.PURGE, Selection(recipient="d@one.test"), now=START + 5)
    (last,) = await store.removals()
    assert last.number > first.number + 2  # whoever forgets a first one late does not meet it


async def a_reason_that_could_not_be_read_again_is_refused(store):
    await store.submit([mail()])
    for reason, text in [("\udcff", "UTF-8"), ("x" * 1001, "found 1001 characters")]:
        with pytest.raises(ValueError, match=text):
            await store.apply(Action.CANCEL, Selection(), now=START, reason=reason)
    assert [state for _, state in await states_of(store)] == ["queued"]
    assert await store.apply(Action.HOLD, Selection(), now=START, reason="\n" * 1000) == 1


async def who_has_ended_is_not_taken_out_again(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    lease = await take(store, seats=1)
    await store.settle(settlements(lease, Result.FAILED, report=True), now=START)
    await store.apply(Action.CANCEL, Selection(), now=START)
    assert len(await store.removals()) == 1

    assert await store.apply(Action.PURGE, Selection(), now=START) == 2

    assert len(await store.removals()) == 1


async def who_was_leased_is_taken_out_when_he_comes_back(store):
    names = ("cancel", "purge", "held", "late", "lost")
    await store.submit([mail(f"{name}@{name}.test", id=name) for name in names])
    lease = await take(store)
    for name in ("cancel", "late", "lost", "held"):
        await store.apply(Action.CANCEL, Selection(message=name), now=START, reason="hand")
    await store.apply(Action.PURGE, Selection(message="purge"), now=START)
    await store.apply(Action.HOLD, Selection(message="held"), now=START)
    assert await store.removals() == ()

    names_of = {each.recipients[0].number: each.message.id for each in lease.messages}
    deferred = settlements(lease, Result.DEFERRED, due=START + 5, reason="busy")
    for each in sorted(deferred, key=lambda each: names.index(names_of[each.recipient])):
        name = names_of[each.recipient]
        if name in ("cancel", "purge", "held"):
            await store.settle([each], now=START + 6)
        if name == "late":
            await store.settle([each._replace(result=Result.RELEASED)], now=START + 7)
    assert await removed_from(store) == [
        ("cancel", "cancel@cancel.test", 1, "cancel", "hand", START + 6),
        ("purge", "purge@purge.test", 1, "purge", "", START + 6),
        ("late", "late@late.test", 0, "cancel", "hand", START + 7),
    ]
    await store.recover(owner="w2", now=START + 8, deadline=START + 60, dead=["w1"])
    assert (await removed_from(store))[3:] == [
        ("lost", "lost@lost.test", 1, "cancel", "hand", START + 8)
    ]


async def who_was_taken_out_is_not_known_for_ever(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    await store.apply(Action.CANCEL, Selection(domain="one.test"), now=START)
    await store.apply(Action.PURGE, Selection(domain="two.test"), now=START + 10)

    await store.sweep(now=START + HOUR, remember=HOUR)

    assert [each.recipient for each in await store.removals()] == ["b@two.test"]


async def a_wish_is_granted_when_the_lease_is_lost(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    await take(store)
    await store.apply(Action.HOLD, Selection(domain="one.test"), now=START)
    await store.apply(Action.PURGE, Selection(domain="two.test"), now=START)

    await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])

    assert await states_of(store) == [("a@one.test", "held")]


# -- looking ------------------------------------------------------------------------------------


async def entries_are_selected_by_all_that_is_given(store):
    await store.submit(
        [
            mail("a@one.test", "b@sub.one.test", id="x", tenant="t", job="j"),
            mail("a@one.test", id="y", sender=""),
            mail("c@two.test", id="z", tenant="t", is_held=True),
        ]
    )

    async def found(**selection):
        return [(e.message, e.recipient) for e in await entries_of(store, **selection)]

    assert len(await found()) == 4
    assert await found(message="x") == [("x", "a@one.test"), ("x", "b@sub.one.test")]
    assert await found(message="nobody") == []
    assert await found(recipient="a@one.test", message="y") == [("y", "a@one.test")]
    assert await found(domain="one.test") == [("x", "a@one.test"), ("y", "a@one.test")]
    assert await found(domain="*.one.test") == [("x", "b@sub.one.test")]
    assert await found(sender="") == [("y", "a@one.test")]
    assert await found(tenant="t", job="j") == [("x", "a@one.test"), ("x", "b@sub.one.test")]
    assert await found(states=frozenset({State.HELD})) == [("z", "c@two.test")]
    assert await found(states=frozenset(State), tenant="") == [("y", "a@one.test")]


async def entries_come_in_pages_and_none_is_left_out(store):
    await store.submit([mail(f"u{n}@one.test") for n in range(25)])

    pages, after = [], 0
    while after is not None:
        page = await store.entries(after=after, limit=10)
        pages.append([entry.recipient for entry in page.entries])
        after = page.next

    assert [len(page) for page in pages if page] == [10, 10, 5]
    assert [each for page in pages for each in page] == [f"u{n}@one.test" for n in range(25)]


async def an_entry_tells_all_that_is_known(store):
    await store.submit(
        [mail(id="x", tenant="t", job="j", priority=2, deadline=START + 999, not_before=START + 9)]
    )

    (entry,) = await entries_of(store)

    assert entry.as_dict() == {
        "message": "x",
        "recipient": "a@one.test",
        "state": "queued",
        "attempts": 0,
        "next_attempt": "2023-11-14T22:13:29.000Z",
        "last": None,
        "reason": "",
        "sender": "me@example.org",
        "submitted_at": "2023-11-14T22:13:20.000Z",
        "deadline": "2023-11-14T22:29:59.000Z",
        "tenant": "t",
        "job": "j",
        "priority": 2,
        "site": "one.test",
        "result": None,
        "left_alone_until": None,
        "left_alone_for": "",
    }


async def counts_are_what_is_there(store):
    await store.submit([mail("a@one.test", "b@two.test", at=START - 50), mail("c@three.test")])
    await store.submit([mail(is_held=True), mail(not_before=START + 100)])
    lease = await take(store, seats=1)

    counts = await store.counts(now=START)

    assert (counts.queued, counts.due, counts.leased, counts.held) == (3, 2, 1, 1)
    assert (counts.ended, counts.messages, counts.oldest) == (0, 4, START - 50)
    assert counts.next_due == START - 50 or counts.next_due == START
    await store.settle(settlements(lease, Result.FAILED, report=True), now=START)
    assert (await store.counts(now=START)).ended == 1


async def backlogs_are_told_by_site_the_largest_first(store):
    state = SiteState(name="mx.test", not_before=START + 60, failures=2, reason="421 busy")
    await store.submit([mail(f"u{n}@d{n % 3}.test") for n in range(9)])
    await store.submit([mail(f"u{n}@well.test", not_before=START + 30) for n in range(2)])
    await store.submit([mail("a@held.test", is_held=True), mail("b@out.test", priority=9)])
    await take(store, seats=1)
    await store.settle(
        [], now=START, sites=[state], routes={f"d{n}.test": "mx.test" for n in range(3)}
    )

    found = await store.backlog(now=START)

    assert [(b.site.name, b.queued, b.due, b.leased, b.next_due) for b in found] == [
        ("mx.test", 9, 9, 0, START),
        ("well.test", 2, 0, 0, START + 30),
        ("out.test", 0, 0, 1, None),
    ]
    assert found[0].site == state
    assert await store.backlog(now=START, limit=1) == found[:1]


async def whole_messages_come_in_their_order(store):
    await store.submit([mail(f"u{n}@one.test", id=f"m{n}") for n in range(5)])
    await store.settle(settlements(await take(store, seats=1)), now=START)

    first = await store.messages(limit=3)
    rest = await store.messages(after=first[-1].number)

    assert [each.message.id for each in (*first, *rest)] == ["m1", "m2", "m3", "m4"]
    assert all(each.message.content.octets for each in first)
    assert not any(each.is_damaged for each in first)


async def a_store_in_order_has_no_problems(store):
    await store.submit([mail("a@one.test", "b@two.test"), mail(is_held=True)])
    await store.submit([mail(content=from_text("x\n" * 100_000))])
    lease = await take(store, seats=1)
    await store.settle(settlements(lease, Result.DEFERRED, due=START + 9), now=START)

    assert await all_of(store.check()) == []


# -- upkeep -------------------------------------------------------------------------------------


async def ids_are_forgotten_after_the_time_they_are_remembered(store):
    await store.submit([mail(id="x"), mail("b@two.test", id="y")])
    await store.settle(settlements(await take(store))[:1], now=START)

    await store.sweep(now=START + 59, remember=60)
    assert not (await store.submit([mail(id="x")]))[0].is_new
    await store.sweep(now=START + 60, remember=60)

    assert (await store.submit([mail(id="x")]))[0].is_new
    assert not (await store.submit([mail("b@two.test", id="y")]))[0].is_new


async def a_sweep_takes_nothing_that_is_needed(store):
    await store.submit([mail("a@one.test"), mail("b@two.test", not_before=START + 60)])
    lease = await take(store)
    await store.settle([], now=START, sites=[SiteState(name="x.test", not_before=START + 900)])

    for _ in range(3):
        await store.sweep(now=START + 1e7, remember=0)

    await store.settle(settlements(lease, Result.DEFERRED, due=START + 60), now=START)
    assert len(leased_in(await take(store, START + 60))) == 2


async def back_offs_that_are_over_are_forgotten(store):
    over = SiteState(name="over.test", not_before=START)
    failing = SiteState(name="failing.test", not_before=START, failures=1)
    later = SiteState(name="later.test", not_before=START + 1)
    await store.settle([], now=START, sites=[over, failing, later])

    await store.sweep(now=START, remember=0)

    assert {state.name for state in await store.sites()} == {"failing.test", "later.test"}


async def changes_wake_those_who_wait_for_work(store):
    woken = []

    async def wait(since):
        await store.wait_changed(since)
        woken.append(since)

    async def rouse(do):
        before = store.changes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, before)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken
            await do()
        assert woken.pop() == before

    await rouse(lambda: store.submit([mail()]))
    lease = await take(store)
    await store.settle(settlements(lease, Result.DEFERRED, due=START), now=START)
    await rouse(lambda: store.apply(Action.RETRY, Selection(), now=START))
    await take(store)
    await rouse(lambda: store.recover(owner="w2", now=START, deadline=START, dead=["w1"]))


CHECKS = [
    value
    for value in list(globals().values())
    if getattr(value, "__module__", "") == __name__
    and callable(value)
    and getattr(value, "__code__", None) is not None
    and value.__code__.co_varnames[: value.__code__.co_argcount] == ("store",)
    and value is not states_of
]
