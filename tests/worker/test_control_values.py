from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.content import from_binary, from_octets
from engine.message import Message, Recipient
from engine.queue.entries import Backlog, Counts, Entry, Page
from engine.queue.errors import ContentsDamagedError, StoreDamagedError, StoreError, StoreFullError
from engine.queue.submission import Accepted, Submission
from engine.queue.values import Action, Result, Selection, SiteState, State
from engine.worker import control_values as values
from engine.worker.control import MAX_GROUP_OCTETS, WireError
from engine.worker.desk import Refused, Status
from tests.queue.mail import START, mail


def submission(**changes):
    recipients = (
        Recipient.parse("<a@one.test>"),
        Recipient.parse("ü@two.test", ("failure", "delay"), "rfc822;u@x.test"),
    )
    content = changes.pop("content", from_octets("Subject: ü\r\n\r\nä\r\n".encode()))
    sender = Message.parse_sender("me@example.org")
    message = Message("x", sender, recipients, content, "env 1", "hdrs", True, True)
    facts = {
        "tenant": "t",
        "job": "j",
        "priority": -3,
        "not_before": START + 1.5,
        "deadline": START + 99,
        "is_held": True,
    }
    return Submission(message=message, submitted_at=START, **facts | changes)


def over_the_wire(*submissions):
    request = values.SubmitRequest.model_construct(
        n=7, messages=tuple(map(values.pack, submissions))
    )
    return values.read_request(request.model_dump_json().encode())


@pytest.mark.parametrize(
    "sent",
    [
        submission(),
        mail(id="plain"),
        mail(id="null", sender="<>"),
        submission(content=from_binary(b"a: b\r\n\r\n\0")),
        submission(not_before=None, deadline=None),
    ],
)
def test_a_submission_is_the_same_at_the_other_end(sent):
    request = over_the_wire(sent)
    (wire,) = request.messages
    content = sent.message.content
    assert (request.n, wire.octets) == (7, len(content.octets))
    assert values.facts_of(wire) == content.facts
    assert values.unpack(wire, content) == sent


def test_a_group_says_how_many_octets_follow():
    assert over_the_wire(mail(), mail(), mail()).octets == 3 * 26


def test_contents_of_a_group_are_bounded_and_of_one_message_are_not():
    one = values.pack(mail(id="x")).model_copy(
        update={"facts": (MAX_GROUP_OCTETS, False, 5, False, False, False)}
    )

    def head(*messages):
        request = values.SubmitRequest.model_construct(n=1, messages=messages)
        return request.model_dump_json().encode()

    assert values.read_request(head(one)).octets == MAX_GROUP_OCTETS
    with pytest.raises(WireError, match="contents of 8388608 octets together"):
        values.read_request(head(one, one))


@pytest.mark.parametrize(
    "change",
    [
        {"n": "1"},
        {"n": -1},
        {"n": True},
        {"do": "dance"},
        {"do": None},
        {"limit": 0},
        {"limit": 10**9},
        {"after": 1.5},
        {"selection": {"states": ["asleep"]}},
        {"selection": {"message": 7}},
        {"selection": {"colour": "red"}},
        {"selection": None},
    ],
)
def test_what_does_not_fit_is_refused(change):
    request = {"n": 1, "do": "entries", "after": 0, "limit": 5, "selection": {}} | change
    with pytest.raises(WireError, match="no request: "):
        values.read_request(json.dumps(request).encode())


@given(st.binary() | st.text().map(str.encode))
def test_any_octets_are_a_request_or_an_error(octets):
    with pytest.raises(WireError):
        values.read_request(octets)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "n": json_values,
            "do": st.sampled_from(["submit", "entries", "apply", "weight", "counts"]),
        },
        optional=dict.fromkeys(
            ("messages", "selection", "limit", "action", "reason", "tenant", "weight"), json_values
        ),
    )
)
def test_any_json_is_a_request_or_an_error(record):
    try:
        request = values.read_request(json.dumps(record).encode("utf-8", "surrogatepass"))
    except WireError:
        return
    assert request.n == record["n"]
    assert request.do == record["do"]


@given(json_values)
def test_any_json_is_an_answer_or_an_error(answer):
    for load in (
        lambda value: values.load_answers(value, 1),
        values.load_page,
        values.load_status,
        values.load_counts,
        values.load_number,
    ):
        try:
            load(answer)
        except WireError:
            continue


@given(st.binary())
def test_any_octets_are_a_reply_or_an_error(octets):
    with pytest.raises(WireError):
        values.read_reply(octets)


def test_a_selection_is_the_same_at_the_other_end():
    for selection in (
        Selection(),
        Selection(
            states=frozenset({State.HELD, State.QUEUED}),
            message="m",
            recipient="r",
            domain="*.d",
            sender="",
            tenant="t",
            job="j",
        ),
    ):
        request = values.ApplyRequest(
            n=1, action=Action.HOLD, selection=values.pack_selection(selection)
        )
        read = values.read_request(request.model_dump_json().encode())
        assert read.selection.value() == selection


# ---- answers ------------------------------------------------------------------------------------

ENTRY = Entry(
    number=7,
    message="x",
    sender="",
    recipient="a@one.test",
    state=State.QUEUED,
    attempts=2,
    next_attempt=START,
    submitted_at=START,
    site="one.test",
)


def reply(answer):
    return values.read_reply(values.answered(3, answer)).answer


def test_answers_to_a_submission_are_the_same_at_the_other_end():
    answers = (Accepted("a", is_new=True), Accepted("b", is_new=False), Refused("c", "too large"))
    sent = reply(values.dump_answers(answers))
    assert values.load_answers(sent, 3) == answers
    with pytest.raises(WireError, match="3 answers to 2 messages"):
        values.load_answers(sent, 2)


def test_a_page_is_the_same_at_the_other_end():
    ended = Entry(
        **{name: getattr(ENTRY, name) for name in Entry.__slots__}
        | {"state": State.ENDED, "result": Result.FAILED, "last": '{"a": 1}', "next_attempt": None}
    )
    page = Page((ENTRY, ended), 7)
    assert values.load_page(reply(values.dump_page(page))) == page


def test_counts_and_status_are_the_same_at_the_other_end():
    counts = Counts(queued=3, due=1, oldest=START)
    assert values.load_counts(reply(values.dump_counts(counts))) == counts
    status = Status(
        counts=counts,
        backlog=(Backlog(site=SiteState(name="one.test", not_before=START), queued=3),),
        worker={"pid": 7, "tally": {"out": 1}},
    )
    assert values.load_status(reply(values.dump_status(status))) == status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreFullError("full"), StoreFullError),
        (ContentsDamagedError([1]), StoreDamagedError),
        (ValueError("weight"), ValueError),
        (ZeroDivisionError("oops"), StoreError),
    ],
)
def test_an_error_is_of_its_kind_at_the_other_end(error, kind):
    failure = values.read_reply(values.failed(3, error)).failure
    found = values.error_of(failure)
    assert type(found) is kind
    assert str(found) == str(error)


def test_what_is_not_finite_is_no_weight():
    head = b'{"n": 1, "do": "weight", "tenant": "t", "weight": Infinity}'
    with pytest.raises(WireError):
        values.read_request(head)
    assert math.isinf(float("Infinity"))
