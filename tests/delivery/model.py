"""Which outcomes are right: told from what hosts really did, and from nothing of the engine.

`deliver_by` lets an engine deliver a scenario to the hosts of `tests.delivery.model_server`, and
`check` holds every rule of this module against what came of it.  The rules are RFC 5321's, §4.2.5
and §6.1 above all, read from the host's side:

* who was told that the message was taken has it;
* who took it and could not say so may have it: that is `unknown`, never "not delivered";
* what never left to its last octet cannot have been taken;
* whoever is asked again must be certain not to have it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import trio

from engine.engine import Engine
from engine.outcome import Cause, Status
from tests.delivery.helpers import (
    MX1,
    MX2,
    StreamedContent,
    message,
    run_steadily,
    settings,
    static_router,
)
from tests.delivery.model_server import Act, House, Manners, Trip, Visit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine.message import Message
    from engine.outcome import Outcome
    from engine.report.statistics import Statistics
    from tests.delivery.model_server import Command, Reply

DELIVERED, DEFERRED, FAILED, UNKNOWN = (
    Status.DELIVERED,
    Status.DEFERRED,
    Status.FAILED,
    Status.UNKNOWN,
)
#: Nothing that is right takes longer, by the virtual clock.
A_DAY = 86400.0


# ---- what is delivered ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mail:
    """A message of a scenario.

    Attributes:
        recipients: How many.
        sender: Which of two reverse-paths; what has the second one has an envelope id, too.
        octets: Of its content, about.
        kind: Whether the content is held in memory, read while it is sent, or cannot be read to
            its end.
        domains: Over how many domains the recipients are spread.
    """

    recipients: int = 1
    sender: int = 0
    octets: int = 40
    kind: str = "memory"
    domains: int = 1


@dataclass(frozen=True)
class Scenario:
    """What is sent, to whom, and what goes wrong.

    Attributes:
        mails: In the order they are submitted.
        plan: What hosts do wrong, and when.
        manners: What hosts are like.
        options: Settings of the engine.
        hosts: How many there are, one behind the other.
        together: Whether all is submitted at once; else each when the one before is settled.
        pause: Seconds until the next one is submitted.
        schedule: Which of the orders in which Trio may run its tasks.
    """

    mails: tuple[Mail, ...] = (Mail(),)
    plan: Mapping[int, Act] = field(default_factory=dict)
    manners: Manners = field(default_factory=Manners)
    options: Mapping[str, object] = field(default_factory=dict)
    hosts: int = 1
    together: bool = True
    pause: float = 0.0
    schedule: int = 0

    def messages(self) -> list[Message]:
        return [_message(number, mail) for number, mail in enumerate(self.mails, 1)]


def _message(number: int, mail: Mail) -> Message:
    octets = b"Message: %d\r\n\r\n.\r\n" % number
    octets += b"." * max(0, mail.octets - len(octets)) + b"\r\n"
    failure = OSError("no more") if mail.kind == "failing" else None
    return message(
        *[f"r{n}.m{number}@{'xy'[n % mail.domains]}.test" for n in range(mail.recipients)],
        id=str(number),
        sender=f"s{mail.sender}@me.test",
        envid=str(number) if mail.sender else None,
        content=octets,
        body=None if mail.kind == "memory" else StreamedContent(octets, failure, piece=30),
    )


@dataclass
class History:
    """What came of a scenario.

    Attributes:
        scenario: It.
        house: The hosts, with what they wrote down.
        messages: That were submitted.
        outcomes: In the order they came.
        statistics: The engine's, at the end.
        left: Tasks that were left when the engine had ended, apart from the hosts'.
    """

    scenario: Scenario
    house: House
    messages: list[Message] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    statistics: Statistics | None = None
    left: list[str] = field(default_factory=list)

    @property
    def visits(self) -> list[Visit]:
        return self.house.visits

    def trips(self) -> list[Trip]:
        """All mail transactions, in the order the client began them."""
        trips = [trip for visit in self.visits for trip in visit.trips]
        return sorted(trips, key=lambda trip: trip.begun)


def deliver_by(scenario: Scenario) -> History:
    """Let an engine deliver a scenario, in virtual time."""
    return run_steadily(_deliver, scenario, schedule=scenario.schedule)


async def _deliver(scenario: Scenario) -> History:
    house = House(scenario.plan, scenario.manners)
    history = History(scenario, house)
    router = await static_router([MX1, MX2][: scenario.hosts], "x.test", "y.test")
    protocol = "lmtp" if scenario.manners.lmtp else "smtp"
    before = {*_tasks()}
    async with trio.open_nursery() as house.nursery:
        with trio.fail_after(A_DAY):
            engine = Engine(
                settings(protocol=protocol, **scenario.options), router=router, connector=house
            )
            house.cancel = engine.cancel
            async with engine:
                for each in scenario.messages():
                    if house.is_cancelled:
                        break
                    await engine.submit(each)
                    history.messages.append(each)
                    if not scenario.together:
                        for _ in each.recipients:
                            history.outcomes.append(await engine.outcomes.receive())
                    await trio.sleep(scenario.pause)
            history.outcomes += [outcome async for outcome in engine.outcomes]
            history.statistics = engine.statistics()
        hosts = {task.name for task in house.nursery.child_tasks}
        history.left = [
            task.name for task in _tasks() if task not in before and task.name not in hosts
        ]
        house.nursery.cancel_scope.cancel()
    for visit in house.visits:
        visit.read_rest()
    return history


def _tasks() -> Iterator[trio.lowlevel.Task]:
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        yield task
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


# ---- what is right -------------------------------------------------------------------------------


class Judgement(NamedTuple):
    """What one mail transaction made of a recipient.

    Attributes:
        statuses: Which of them it may be called.
        replies: The replies that may have decided it; none where silence did.
    """

    statuses: frozenset[Status]
    replies: tuple[Reply, ...] = ()

    def __or__(self, other: Judgement) -> Judgement:
        return Judgement(self.statuses | other.statuses, self.replies + other.replies)


def judge(trip: Trip, who: str) -> Judgement:
    """Say what a transaction made of a recipient who was named in it."""
    mail = _answer(trip.mail)
    if mail is None or mail.code // 100 == 2:
        return _judge_recipient(trip, who)
    refused = _by_code(mail)
    if who in trip.takers:
        # It took the recipient in a transaction that was still open, for all it said to MAIL.
        return Judgement(frozenset({DELIVERED, UNKNOWN}), (*trip.content.replies,))
    if mail.code == 503 and trip is not trip.visit.trips[0]:
        # The transaction before may be open still; then what is said of the recipient counts.
        return refused | _judge_recipient(trip, who)
    return refused


def _judge_recipient(trip: Trip, who: str) -> Judgement:
    rcpt, data = _answer(trip.rcpts[who]), _answer(trip.data)
    if rcpt is not None and rcpt.code // 100 != 2:
        # RFC 5321 §4.5.3.1.10: too many for now.
        is_overflow = rcpt.code == 452 or (rcpt.code == 552 and " 5.2." not in rcpt.text)
        return Judgement(frozenset({DEFERRED}), (rcpt,)) if is_overflow else _by_code(rcpt)
    if data is not None and data.code // 100 != 3:
        return _by_code(data)
    finals = [reply for reply in trip.content.replies if who in reply.about]
    if finals and finals[0].code == 353:
        return _judge_prdr(trip, *finals[1:])
    if finals and finals[0].is_told and finals[0].code:
        return _by_code(finals[0])
    return _judge_silence(trip)


def _judge_prdr(trip: Trip, *replies: Reply) -> Judgement:
    """A reply for each recipient, and one for all that outweighs them."""
    one, everybody = [*(reply for reply in replies if reply.is_told and reply.code), None, None][:2]
    if one is None or everybody is None:
        if one is None or one.code // 100 == 2 or one.code == 421:
            return _judge_silence(trip)
        return _by_code(one)
    if everybody.code // 100 == 2 or (everybody.code // 100 == 4 and one.code // 100 != 2):
        return _by_code(one)
    return _by_code(everybody)


def _judge_silence(trip: Trip) -> Judgement:
    """No reply decided."""
    if goodbye := _goodbye(trip.visit):
        return Judgement(frozenset({DEFERRED}), (goodbye,))
    if trip.is_brimming:
        return Judgement(frozenset({UNKNOWN, DEFERRED}))
    return Judgement(frozenset({UNKNOWN if trip.is_whole else DEFERRED}))


def _goodbye(visit: Visit) -> Reply | None:
    """Return the 421 that was told on a connection: what it had not decided on, it has not taken."""
    commands = [*visit.commands, *(trip.content for trip in visit.trips)]
    replies = [reply for command in commands for reply in command.replies]
    return next((reply for reply in replies if reply.code == 421 and reply.is_told), None)


def _is_good(reply: Reply | None) -> bool:
    return reply is not None and reply.code // 100 == 2


def _answer(command: Command | None) -> Reply | None:
    if command is None or not command.replies:
        return None
    reply = command.replies[0]
    return reply if reply.is_told and reply.code else None


def _by_code(reply: Reply) -> Judgement:
    statuses = {2: DELIVERED, 4: DEFERRED, 5: FAILED}
    return Judgement(frozenset({statuses[reply.code // 100]}), (reply,))


def _is_doubt(judgement: Judgement) -> bool:
    """Whether it may be a disagreement about the protocol, after which one asks once more."""
    return any(500 <= reply.code <= 504 for reply in judgement.replies)


def permitted(history: History, each: Message, who: str) -> Judgement:
    """Say what a recipient's outcome may be."""
    trips = [trip for trip in history.trips() if who in trip.rcpts]
    if not trips:
        return _judge_setup(history, each)
    *earlier, last = [judge(trip, who) for trip in trips]
    for trip, judgement in zip(trips, earlier, strict=False):
        assert DEFERRED in judgement.statuses or _is_doubt(judgement), (
            f"{who} was asked again though {judgement} had decided on it, of {trip.mail.text}"
        )
    if _is_doubt(last):
        last |= Judgement(frozenset({DEFERRED}))
    if DEFERRED in last.statuses:
        for judgement in earlier:
            last |= Judgement(frozenset(), judgement.replies)
        is_asked = any(trip.visit.has_session for trip in trips)
        last |= _judge_setup(history, each, is_asked=is_asked)
    if history.scenario.mails[int(each.id) - 1].kind == "failing" and not trips[-1].is_whole:
        last |= Judgement(frozenset({DEFERRED}))  # that may have come first
    if history.house.is_cancelled and last.statuses != {DELIVERED}:
        last |= Judgement(frozenset({UNKNOWN if trips[-1].is_whole else DEFERRED}))
    return last


def _judge_setup(history: History, each: Message, *, is_asked: bool = False) -> Judgement:
    """No host got to hear of the recipient, or the last one did not."""
    found = Judgement(frozenset({DEFERRED}))
    addresses = {to.address for to in each.recipients}
    for trip in history.trips():
        # Of a client that waits for it before it names anybody, or was cut off while it did.
        mail, is_its = _answer(trip.mail), bool(addresses & trip.rcpts.keys())
        if (
            mail
            and mail.code // 100 != 2
            and (is_its or (not trip.rcpts and trip.sender == str(each.reverse_path)))
        ):
            found |= _by_code(mail)
    refusals = [
        reply
        for visit in history.visits
        for command in visit.commands
        if command.kind in ("CONNECT", "EHLO", "HELO", "LHLO")
        for reply in command.replies
        if reply.code // 100 in (4, 5) and reply.is_told
    ]
    goodbyes = filter(None, map(_goodbye, history.visits))
    found |= Judgement(frozenset(), (*refusals, *goodbyes))
    refusing = {
        visit.address
        for visit in history.visits
        for command in visit.commands
        if command.kind in ("CONNECT", "EHLO", "HELO", "LHLO")
        for reply in command.replies
        if reply.code // 100 == 5 and reply.is_told
    }
    if not is_asked and len(refusing) == history.scenario.hosts:
        # The last resort: everybody who was asked for a session refused for good.
        found |= Judgement(frozenset({FAILED}))
    return found


# ---- the rules -----------------------------------------------------------------------------------


def check(history: History) -> None:
    """Hold every rule against what came of a scenario.

    Raises:
        AssertionError: One is broken.
    """
    for rule in RULES:
        rule(history)


def everybody_has_exactly_one_outcome(history: History) -> None:
    submitted = Counter(
        (each.id, to.address) for each in history.messages for to in each.recipients
    )
    settled = Counter((outcome.message, outcome.recipient) for outcome in history.outcomes)
    assert settled == submitted


def every_outcome_is_permitted(history: History) -> None:
    by_id = {each.id: each for each in history.messages}
    for outcome in history.outcomes:
        judgement = permitted(history, by_id[outcome.message], outcome.recipient)
        assert outcome.status in judgement.statuses, (
            f"{outcome.recipient} is {outcome.status} ({outcome.text}); "
            f"permitted: {sorted(judgement.statuses)}"
        )
        reply = outcome.reply
        if reply is not None:
            number = int(reply.lines[-1].rpartition(b"#")[2])
            numbers = [each.number for each in judgement.replies]
            assert number in numbers, f"{outcome.text}: that was said of others, not of {numbers}"
            assert reply.code == history.house.replies[number].code


def nothing_is_our_own_fault(history: History) -> None:
    for outcome in history.outcomes:
        assert outcome.cause is not Cause.INTERNAL, outcome.text
        kind = history.scenario.mails[int(outcome.message) - 1].kind
        assert outcome.cause is not Cause.IO or kind == "failing", outcome.text
        assert outcome.cause is not Cause.CANCELLED or history.house.is_cancelled, outcome.text


def nobody_has_two_copies(history: History) -> None:
    copies = Counter(who for trip in history.trips() for who in trip.takers)
    assert not copies or max(copies.values()) == 1, copies


def who_has_it_is_not_told_otherwise(history: History) -> None:
    """The one that matters most, said once more without any cleverness."""
    takers = {who for trip in history.trips() for who in trip.takers}
    for outcome in history.outcomes:
        if outcome.recipient in takers:
            assert outcome.status in (DELIVERED, UNKNOWN), outcome.text
        else:
            assert outcome.status is not DELIVERED, outcome.text


def what_was_taken_is_what_was_sent(history: History) -> None:
    messages = history.scenario.messages()
    for trip in history.trips():
        addressed = trip.rcpts.keys() | trip.takers
        found = [each for each in messages if addressed & {to.address for to in each.recipients}]
        assert len(found) == bool(addressed), f"{trip.rcpts} are of several messages"
        for each in found:
            assert str(each.reverse_path) == trip.sender
            assert trip.envid in (each.envid or "", "")  # no extensions with HELO
            if trip.takers:
                assert trip.content.octets == _octets(each)
                # A host that refuses RSET, which nobody may, delivers on the terms it likes.
                is_reset = trip.before.kind == "RSET" and not _is_good(_answer(trip.before))
                assert is_reset or trip.taken_as == (trip.sender, trip.envid)


def _octets(each: Message) -> bytes:
    content = each.content
    return content._octets if isinstance(content, StreamedContent) else content.octets


def causes_are_what_happened(history: History) -> None:
    for outcome in history.outcomes:
        is_ending = outcome.cause in (Cause.TIMEOUT, Cause.CLOSED, Cause.MALFORMED_REPLY)
        if is_ending and outcome.reply is None and outcome.peer and outcome.peer.connection:
            endings = {*history.visits[outcome.peer.connection - 1].endings}
            if history.house.is_cancelled:
                endings.add(Cause.TIMEOUT)  # it was waited for no longer
            assert outcome.cause in endings, f"{outcome.text}; it was {endings}"


def statistics_add_up(history: History) -> None:
    numbers, statuses = history.statistics, Counter(each.status for each in history.outcomes)
    assert numbers is not None
    assert numbers.messages == len(history.messages)
    assert numbers.submitted == sum(len(each.recipients) for each in history.messages)
    assert numbers.in_flight == 0
    of_mail = (DELIVERED, DEFERRED, FAILED, UNKNOWN)
    assert {status: getattr(numbers, status) for status in of_mail} == {
        status: statuses[status] for status in of_mail
    }
    assert numbers.connections_opened == len(history.visits)
    assert numbers.connections_open == 0
    assert numbers.connections_failed == len(history.house.refused)
    assert numbers.transactions >= len(history.trips())
    octets = sum(visit.content_octets for visit in history.visits)
    # Where a content was cut off, nobody can say how much of it had left.
    is_cut = any(visit.is_cut for visit in history.visits)
    assert (
        numbers.octets <= octets + is_cut * len(history.visits)
        if is_cut
        else numbers.octets == octets
    )


def limits_are_kept(history: History) -> None:
    options = history.scenario.options
    assert history.house.peak <= options.get("max_connections", 20)
    for visit in history.visits:
        limits = history.scenario.manners.limits if visit.has_offered else {}
        for most in (options.get("max_messages_per_connection"), limits.get("MAILMAX")):
            assert not most or len(visit.trips) <= most
        for trip in visit.trips:
            for most in (options.get("max_recipients_per_transaction"), limits.get("RCPTMAX")):
                assert not most or len(trip.rcpts) <= most
        if most := limits.get("RCPTDOMAINMAX"):
            domains = [{who.partition("@")[2] for who in trip.rcpts} for trip in visit.trips]
            assert all(len(each) <= 1 for each in domains)
            # A message that was begun is gone on with.
            others = max(mail.domains for mail in history.scenario.mails) - 1
            assert len(set().union(*domains)) <= most + others


def connections_begin_in_lockstep(history: History) -> None:
    """Until something was delivered there is one transaction; then as many as are allowed."""
    depth = history.scenario.options.get("stream_depth", 1)
    for visit in history.visits:
        unanswered = [trip for trip in visit.trips if not trip.content.replies]
        is_proved = any(trip.takers for trip in visit.trips)
        assert len(unanswered) <= (depth if is_proved else 1) + 0, visit.trips


def the_protocol_is_kept(history: History) -> None:
    complaints = [each for visit in history.visits for each in visit.complaints]
    assert not complaints, complaints


def nothing_is_left(history: History) -> None:
    assert not history.left
    assert history.house.open == 0


RULES = (
    nothing_is_left,
    nothing_is_our_own_fault,
    everybody_has_exactly_one_outcome,
    who_has_it_is_not_told_otherwise,
    nobody_has_two_copies,
    every_outcome_is_permitted,
    what_was_taken_is_what_was_sent,
    causes_are_what_happened,
    statistics_add_up,
    limits_are_kept,
    the_protocol_is_kept,
)
