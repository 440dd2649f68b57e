"""Every recipient is settled exactly once, whatever the hosts make of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.content import MemoryContent
from engine.delivery.attempt import Attempt, Carriage
from engine.delivery.verdict import Trouble, Verdict, delivered, judge, ours, unsupported
from engine.message import Message, Recipient
from engine.outcome import Cause, Features, Peer, Scope, Status, Timings, Tried
from engine.smtp.content import scan
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

CONTENT = MemoryContent(b"", scan(b""))
ONE, TWO, THREE = (Peer(f"mx{n}.test", f"192.0.2.{n}", 25, "192.0.2.9", n) for n in (1, 2, 3))
NOBODY = Peer("mx4.test")


def attempt_for(count, settle, **others):
    recipients = tuple([Recipient.parse(f"r{n}@d.test") for n in range(count)])
    message = Message("m1", None, recipients, CONTENT)
    return Attempt(message, recipients, settle, submitted_at=100.0, **others)


def refusal(stage, code, text="no"):
    return judge(Trouble(stage, Cause.REPLY, "X", reply=Reply(code, (text.encode(),))), ONE)


def loss(stage, cause):
    return judge(Trouble(stage, cause, "X"), ONE)


#: What every host's verdict counts as: settled at once, or one more reason at the end.
ACCEPTED = delivered(Reply(250, (b"2.0.0 queued",)), ONE)
NO_SUCH_USER = refusal(Stage.RCPT, 550, "5.1.1 no such user")
LOST_BEHIND_DOT = loss(Stage.FINAL, Cause.CLOSED)
UNREADABLE = ours(Status.DEFERRED, Cause.IO, Stage.CONTENT, "content cannot be read")
GREETED_554 = refusal(Stage.GREETING, 554, "5.7.1 not you")
HELO_550 = refusal(Stage.HELLO, 550)
GREETED_450 = refusal(Stage.GREETING, 450)
GREETED_421 = refusal(Stage.GREETING, 421)
REFUSED = loss(Stage.CONNECT, Cause.REFUSED)
SILENT = loss(Stage.GREETING, Cause.TIMEOUT)
GREYLISTED = refusal(Stage.RCPT, 451, "4.7.1 later")
TOO_LARGE = unsupported(Stage.MAIL, Scope.MESSAGE, EnhancedStatusCode(5, 3, 4), "too large", ONE)
NO_ADDRESS = Verdict(
    Status.FAILED, Stage.ROUTE, Cause.DNS, "no address", Scope.HOST, is_here_only=True
)

AT_ONCE = [ACCEPTED, NO_SUCH_USER, LOST_BEHIND_DOT, UNREADABLE]
PERMANENT_HERE = [GREETED_554, HELO_550, TOO_LARGE, NO_ADDRESS]
TEMPORARY = [GREETED_450, GREETED_421, REFUSED, SILENT, GREYLISTED]

# -- one host -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", AT_ONCE)
def test_what_no_other_host_can_change_is_settled_at_once(verdict):
    settled = []
    attempt = attempt_for(1, settled.append)
    attempt.report(0, verdict, 101.0, Carriage(ONE))
    (outcome,) = settled
    assert (outcome.status, outcome.scope) == (verdict.status, verdict.scope)
    assert attempt.is_done
    attempt.give_up(102.0)
    assert len(settled) == 1


@pytest.mark.parametrize("verdict", PERMANENT_HERE + TEMPORARY)
def test_what_another_host_may_change_waits(verdict):
    settled = []
    attempt = attempt_for(1, settled.append)
    attempt.report(0, verdict, 101.0, Carriage(ONE))
    assert settled == []
    assert not attempt.is_done
    assert attempt.waiting == [0]
    assert attempt.unasked == []
    attempt.arrive()
    assert attempt.unasked == [0]


def test_the_outcome_tells_all_that_was_known():
    settled = []
    attempt = attempt_for(2, settled.append, route_seconds=0.25)
    features = Features(pipelining=True)
    attempt.report(
        1,
        NO_SUCH_USER,
        103.0,
        Carriage(
            peer=ONE,
            features=features,
            transaction=4,
            connect=0.5,
            tls=0.1,
            hello=0.2,
            seconds=1.5,
            transcript=("C: QUIT",),
        ),
    )
    (outcome,) = settled
    assert (outcome.message, outcome.recipient) == ("m1", "r1@d.test")
    assert (outcome.status, outcome.scope) == (Status.FAILED, Scope.RECIPIENT)
    assert (outcome.stage, outcome.cause) == (Stage.RCPT, Cause.REPLY)
    assert outcome.reply == Reply(550, (b"5.1.1 no such user",))
    assert str(outcome.enhanced) == "5.1.1"
    assert outcome.text == NO_SUCH_USER.text
    assert outcome.peer == ONE
    assert outcome.features == features
    assert outcome.transaction == 4
    assert outcome.attempts == ()
    assert outcome.transcript == ("C: QUIT",)
    # The way and the whole belong to the attempt, the rest to the host.
    assert outcome.timings == Timings(0.25, 0.5, 0.1, 0.2, 1.5, 3.0)


def test_one_verdict_for_everybody_spares_those_who_have_one():
    settled = []
    attempt = attempt_for(4, settled.append)
    attempt.report(1, ACCEPTED, 101.0, Carriage(ONE))
    attempt.report(2, GREYLISTED, 101.0, Carriage(ONE))
    attempt.report_all(SILENT, 102.0, Carriage(ONE))
    attempt.give_up(103.0)
    assert {o.recipient: o.stage for o in settled} == {
        "r1@d.test": Stage.FINAL,
        "r0@d.test": Stage.GREETING,
        "r2@d.test": Stage.RCPT,
        "r3@d.test": Stage.GREETING,
    }


# -- several hosts ------------------------------------------------------------------------------


def test_the_hosts_tried_before_are_listed_in_order():
    settled = []
    attempt = attempt_for(1, settled.append)
    attempt.report(0, REFUSED, 101.0, Carriage(ONE))
    attempt.arrive()
    attempt.report(0, NO_ADDRESS, 102.0, Carriage(NOBODY))
    attempt.arrive()
    attempt.report(0, GREYLISTED, 103.0, Carriage(TWO))
    attempt.arrive()
    attempt.report(0, ACCEPTED, 104.0, Carriage(THREE))
    (outcome,) = settled
    assert outcome.peer == THREE
    assert outcome.attempts == (
        Tried("mx1.test", "192.0.2.1", 25, Stage.CONNECT, Cause.REFUSED, REFUSED.text),
        Tried("mx4.test", None, None, Stage.ROUTE, Cause.DNS, "no address"),
        Tried("mx2.test", "192.0.2.2", 25, Stage.RCPT, Cause.REPLY, GREYLISTED.text, 451),
    )


def test_giving_up_the_last_host_decided_and_is_not_among_those_before():
    settled = []
    attempt = attempt_for(1, settled.append)
    attempt.report(0, REFUSED, 101.0, Carriage(ONE))
    attempt.arrive()
    attempt.report(0, GREYLISTED, 102.5, Carriage(TWO))
    attempt.give_up(110.0)
    (outcome,) = settled
    assert outcome.peer == TWO
    assert outcome.text == GREYLISTED.text
    assert [tried.host for tried in outcome.attempts] == ["mx1.test"]
    assert outcome.timings.total == 2.5


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([GREETED_554], Status.FAILED),
        ([GREETED_554, HELO_550], Status.FAILED),
        ([HELO_550, GREETED_554, HELO_550], Status.FAILED),
        ([GREETED_554, NO_ADDRESS], Status.FAILED),
        ([TOO_LARGE], Status.FAILED),
        ([TOO_LARGE, TOO_LARGE], Status.FAILED),
        # One that was refused, timed out or temporary: it may yet take the mail.
        *(([temporary, GREETED_554], Status.DEFERRED) for temporary in TEMPORARY),
        *(([GREETED_554, temporary], Status.DEFERRED) for temporary in TEMPORARY),
        ([GREETED_554, REFUSED, HELO_550], Status.DEFERRED),
        ([REFUSED, TOO_LARGE], Status.DEFERRED),
    ],
)
def test_setup_fails_only_when_every_host_said_so(verdicts, status):
    settled = []
    attempt = attempt_for(1, settled.append)
    for verdict in verdicts:
        attempt.arrive()
        attempt.report(0, verdict, 101.0, Carriage(ONE))
    attempt.give_up(102.0)
    (outcome,) = settled
    assert outcome.status is status
    assert outcome.text == verdicts[-1].text
    assert outcome.scope is verdicts[-1].scope


def test_where_no_host_could_be_tried_mail_is_deferred():
    settled = []
    attempt = attempt_for(2, settled.append, route_seconds=0.5)
    attempt.give_up(101.0)
    assert [o.recipient for o in settled] == ["r0@d.test", "r1@d.test"]
    for outcome in settled:
        assert outcome.status is Status.DEFERRED
        assert outcome.scope is Scope.LOCAL
        assert outcome.stage is Stage.ROUTE
        assert outcome.text == "no host could be tried"
        assert outcome.peer is None
        assert outcome.timings == Timings(route=0.5, total=1.0)
    assert attempt.is_done


def test_an_end_of_our_own_keeps_what_was_decided_and_lists_what_was_tried():
    settled = []
    attempt = attempt_for(2, settled.append)
    attempt.report(0, ACCEPTED, 101.0, Carriage(ONE))
    attempt.report(1, GREYLISTED, 101.0, Carriage(ONE))
    cancelled = ours(Status.DEFERRED, Cause.CANCELLED, Stage.CONNECT, "stopped")
    attempt.end(cancelled, 104.0)
    attempt.end(cancelled, 105.0)
    first, second = settled
    assert first.status is Status.DELIVERED
    assert (second.status, second.cause, second.text) == (
        Status.DEFERRED,
        Cause.CANCELLED,
        "stopped",
    )
    assert str(second.enhanced) == "4.3.2"
    assert second.peer is None
    assert [tried.host for tried in second.attempts] == ["mx1.test"]
    assert second.timings.total == 4.0
    assert attempt.is_done


def test_nobody_is_settled_twice():
    settled = []
    attempt = attempt_for(1, settled.append)
    attempt.report(0, ACCEPTED, 101.0, Carriage(ONE))
    with pytest.raises(ValueError, match="not in list"):
        attempt.report(0, NO_SUCH_USER, 102.0, Carriage(ONE))
    assert len(settled) == 1


# -- any course of events -----------------------------------------------------------------------


class Deliveries(RuleBasedStateMachine):
    """Random hosts make random verdicts; a plain model says what must come out."""

    def __init__(self) -> None:
        super().__init__()
        self.settled = []
        self.count = 4
        self.attempt = attempt_for(self.count, self.settled.append)
        self.said = {index: [] for index in range(self.count)}  # by each host, in order
        self.final = {}
        self.asked = set()

    def expect(self, index):
        """Model: what becomes of a recipient when there are no more hosts."""
        if not self.said[index]:
            return Status.DEFERRED
        is_permanent = all(verdict in PERMANENT_HERE for verdict in self.said[index])
        return Status.FAILED if is_permanent else Status.DEFERRED

    @rule()
    def go_to_the_next_host(self):
        self.attempt.arrive()
        self.asked.clear()

    @precondition(lambda self: self.attempt.unasked)
    @rule(data=st.data(), verdict=st.sampled_from(AT_ONCE + PERMANENT_HERE + TEMPORARY))
    def decide_on_one(self, data, verdict):
        index = data.draw(st.sampled_from(self.attempt.unasked))
        self.attempt.report(index, verdict, 101.0, Carriage(ONE))
        self.note(index, verdict)

    @rule(verdict=st.sampled_from(AT_ONCE + PERMANENT_HERE + TEMPORARY))
    def decide_on_the_rest(self, verdict):
        unasked = list(self.attempt.unasked)
        self.attempt.report_all(verdict, 101.0, Carriage(ONE))
        for index in unasked:
            self.note(index, verdict)

    def note(self, index, verdict):
        if verdict in AT_ONCE:
            self.final[index] = verdict.status
        else:
            self.said[index].append(verdict)
            self.asked.add(index)

    @rule()
    def run_out_of_hosts(self):
        for index in self.attempt.waiting:
            self.final[index] = self.expect(index)
        self.attempt.give_up(102.0)

    @rule()
    def be_stopped(self):
        for index in self.attempt.waiting:
            self.final[index] = Status.DEFERRED
        self.attempt.end(ours(Status.DEFERRED, Cause.CANCELLED, Stage.CONNECT, "stopped"), 103.0)

    @invariant()
    def every_recipient_is_waiting_or_settled_once(self):
        settled = Counter(outcome.recipient for outcome in self.settled)
        waiting = {f"r{index}@d.test" for index in self.attempt.waiting}
        assert set(settled.values()) <= {1}
        assert waiting.isdisjoint(settled)
        assert len(waiting) + len(settled) == self.count
        assert self.attempt.is_done is (not waiting)

    @invariant()
    def outcomes_are_those_of_the_model(self):
        assert {o.recipient: o.status for o in self.settled} == {
            f"r{index}@d.test": status for index, status in self.final.items()
        }

    @invariant()
    def attempts_are_what_was_said_before_in_order(self):
        for outcome in self.settled:
            index = int(outcome.recipient[1])
            texts = [verdict.text for verdict in self.said[index]]
            # When a host was the last one, its own word is the outcome, not an attempt before it.
            before = [tried.text for tried in outcome.attempts]
            assert texts in (before, [*before, outcome.text])

    @invariant()
    def those_the_present_host_has_decided_on_are_not_asked_again(self):
        assert self.asked.isdisjoint(self.attempt.unasked)
        assert set(self.attempt.unasked) | self.asked >= set(self.attempt.waiting)


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
