from __future__ import annotations

import json

import pytest

from engine.outcome import Cause, Scope, Status, Tried
from engine.queue import decision
from engine.queue.decision import Policy, Unknown, record_of
from engine.queue.values import Action, LeasedMessage, LeasedRecipient, Removal, Result
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from tests.queue.mail import START, mail, outcome

GREYLISTED = outcome(code=450, text="4.7.1 greylisted")


def leased(*, id="x", attempts=1, deadline=None, **how):  # noqa: A002 - as in a message
    submission = mail("a@one.test", id=id)
    return LeasedMessage(
        message=submission.message,
        recipients=(
            LeasedRecipient(
                number=7,
                address="a@one.test",
                site="one.test",
                attempts=attempts,
                first_attempt_at=START,
                **how,
            ),
        ),
        lease=3,
        submitted_at=START,
        deadline=deadline,
    )


def settle(found, policy=None, now=START, **how):
    return decision.settle(policy or Policy(), leased(**how), 0, found, now)


def test_who_was_delivered_leaves_and_needs_no_record():
    settled = settle(outcome(Status.DELIVERED, code=250))

    settlement = settled.settlement
    assert (settlement.lease, settlement.recipient) == (3, 7)
    assert (settlement.result, settlement.last, settlement.report) == (
        Result.DELIVERED,
        None,
        False,
    )
    assert settled.is_final
    assert settled.next_attempt is None


def test_who_was_deferred_waits_as_the_rules_say():
    settled = settle(GREYLISTED, now=START + 2)

    settlement = settled.settlement
    assert (settlement.result, settlement.due, settlement.wait) == (
        Result.DEFERRED,
        START + 302,
        300,
    )
    assert settlement.reason == settled.text
    assert "the default rule" in settled.text
    assert json.loads(settlement.last)["reply"]["code"] == 450
    assert settled.next_attempt == START + 302
    assert not settled.is_final


def test_who_is_deferred_together_comes_back_together():
    dues = [settle(GREYLISTED, now=START + after, attempts=2).next_attempt for after in (0.1, 0.9)]
    assert dues[0] == dues[1]


def test_messages_that_are_deferred_together_do_not_come_back_together():
    dues = {settle(GREYLISTED, attempts=2, id=str(n)).next_attempt for n in range(50)}
    assert len(dues) > 30
    assert min(dues) >= START + 480
    assert max(dues) <= START + 721


def test_who_failed_is_given_up_and_whoever_wants_it_is_told():
    failed = outcome(Status.FAILED, code=550)
    asked = []

    def wants(*facts):
        asked.append(facts)
        return True

    settled = settle(failed, Policy(wants_report=wants))

    assert settled.settlement.result is Result.FAILED
    assert settled.settlement.report
    assert settled.settlement.last is not None
    message, recipient, *found = asked[0]
    assert (message.id, recipient.address, found) == ("x", "a@one.test", [failed, Result.FAILED])
    assert settle(failed).settlement.report is False


def test_who_ran_out_of_steps_is_given_up_with_its_last_outcome():
    settled = settle(GREYLISTED, now=START + 5 * 86400, attempts=40)

    assert settled.settlement.result is Result.FAILED
    assert settled.outcome.status is Status.DEFERRED
    assert settled.as_dict()["final"] is True


@pytest.mark.parametrize(
    ("policy", "result"),
    [
        (Unknown.RETRY, Result.DEFERRED),
        (Unknown.ASSUME_DELIVERED, Result.DELIVERED),
        (Unknown.HOLD, Result.HELD),
    ],
)
def test_who_may_have_been_delivered_follows_the_policy(policy, result):
    unknown = outcome(Status.UNKNOWN, stage=Stage.FINAL, cause=Cause.TIMEOUT, scope=Scope.MESSAGE)

    settled = settle(unknown, Policy(unknown=policy))

    assert settled.settlement.result is result
    assert settled.outcome.status is Status.UNKNOWN
    assert "may have" in settled.text or policy is Unknown.RETRY


def test_policies_are_named_as_in_the_configuration():
    assert [policy.value for policy in Unknown] == ["retry", "assume-delivered", "hold"]


def test_a_fault_of_ours_does_not_count():
    ours = outcome(cause=Cause.INTERNAL, stage=Stage.ROUTE, scope=Scope.LOCAL)

    settled = settle(ours)

    assert settled.settlement.result is Result.RELEASED
    assert settled.settlement.due > START
    assert settled.next_attempt == settled.settlement.due


def test_an_outcome_log_line_has_all_of_the_outcome_and_what_follows_from_it():
    record = settle(GREYLISTED, attempts=2).as_dict()

    assert record["attempt"] == 2
    assert record["final"] is False
    assert record["next_attempt"] > START
    assert record["decision"]
    assert record.items() >= GREYLISTED.as_dict().items()


def test_what_expired_is_failed_with_what_kept_it():
    fresh = decision.expired(leased(deadline=START), 0)
    tried = decision.expired(leased(deadline=START, reason="450 at attempt 2"), 0)

    assert (fresh.status, fresh.scope, str(fresh.enhanced)) == (
        Status.FAILED,
        Scope.MESSAGE,
        "4.4.7",
    )
    assert "before it was tried" in fresh.text
    assert "450 at attempt 2" in tried.text
    assert settle(fresh).settlement.result is Result.FAILED
    assert settle(fresh).text == "given up: its deadline has passed"


@pytest.mark.parametrize(
    ("action", "reason", "text"),
    [
        (Action.CANCEL, "", "cancelled by hand"),
        (Action.CANCEL, "cancelled by hand", "cancelled by hand"),
        (Action.CANCEL, "wrong link", "cancelled by hand: wrong link"),
        (Action.PURGE, "greylisted", "deleted by hand, and nobody is told"),
    ],
)
def test_who_was_taken_out_by_hand_has_failed_and_no_peer_is_to_blame(action, reason, text):
    found = decision.removed(Removal(9, "x", "a@one.test", 2, action, reason, START))

    assert (found.message, found.recipient, found.text) == ("x", "a@one.test", text)
    assert (found.status, found.scope, found.stage, found.cause) == (
        Status.FAILED,
        Scope.LOCAL,
        Stage.POLICY,
        Cause.CANCELLED,
    )
    assert (found.reply, found.enhanced, found.peer) == (None, None, None)


def test_what_is_in_doubt_is_unknown():
    found = decision.doubtful(leased(), 0)

    assert (found.status, found.stage, found.recipient) == (
        Status.UNKNOWN,
        Stage.FINAL,
        "a@one.test",
    )


def test_what_was_never_tried_is_released():
    settlement = decision.release(leased(), 0, START + 9)

    assert (settlement.result, settlement.due, settlement.last, settlement.wait) == (
        Result.RELEASED,
        START + 9,
        None,
        None,
    )


def test_a_record_is_bounded_whatever_a_server_says_and_has_no_transcript():
    talkative = outcome(code=450)._replace(
        reply=Reply(450, tuple(b"x" * 4000 for _ in range(10))),
        text="y" * 9000,
        attempts=tuple(
            Tried("mx", "192.0.2.1", 25, Stage.CONNECT, Cause.REFUSED, "z" * 3000)
            for _ in range(30)
        ),
        transcript=("S: 220",),
    )

    text = record_of(talkative, START + 0.25)
    record = json.loads(text)

    assert len(text) < 8192
    assert set(record) == {"time", *outcome().as_dict()}
    assert record["time"] == "2023-11-14T22:13:20.250Z"
    assert record["reply"]["code"] == 450
    assert len(record["attempts"]) == 3
