from __future__ import annotations

from engine.queue.flight import Flight
from engine.queue.values import LeasedMessage, LeasedRecipient
from tests.queue.mail import START, mail


def leased(name, *addresses, first=1, site="one.test"):
    return LeasedMessage(
        message=mail(*addresses, id=name).message,
        recipients=tuple(
            LeasedRecipient(
                number=first + place,
                address=address,
                site=site,
                attempts=1,
                first_attempt_at=START,
            )
            for place, address in enumerate(addresses)
        ),
        lease=1,
        submitted_at=START,
    )


def test_outcomes_find_their_recipients_by_message_and_address():
    flight = Flight()
    flight.add(leased("x", "a@one.test", "b@one.test", first=1))
    flight.add(leased("y", "a@one.test", first=3))

    assert len(flight) == 3
    assert flight.take("y", "a@one.test").recipient.number == 3
    assert flight.take("x", "b@one.test").recipient.number == 2
    assert flight.take("x", "b@one.test") is None
    assert flight.take("z", "a@one.test") is None
    assert [out.recipient.number for out in flight] == [1]
    assert len(flight) == 1


def test_a_recipient_that_is_listed_twice_is_out_twice():
    flight = Flight()
    flight.add(leased("x", "a@one.test", "a@one.test"))

    assert len(flight.find("x", ["a@one.test"])) == 2
    numbers = [flight.take("x", "a@one.test").recipient.number for _ in range(2)]
    assert numbers == [1, 2]
    assert flight.take("x", "a@one.test") is None


def test_marks_last_as_long_as_the_flight():
    flight = Flight()
    message = leased("x", "a@one.test", "b@one.test")
    flight.add(message)
    flight.mark(flight.find("x", ["b@one.test"]))

    assert [flight.is_marked(out) for out in flight] == [False, True]
    flight.take("x", "b@one.test")
    flight.add(message)
    assert not any(flight.is_marked(out) for out in flight)


def test_sites_are_counted():
    flight = Flight()
    flight.add(leased("x", "a@one.test", "b@one.test"))
    flight.add(leased("y", "c@two.test", first=9, site="two.test"))
    assert flight.of_site == {"one.test": 2, "two.test": 1}

    flight.take("y", "c@two.test")
    assert flight.of_site == {"one.test": 2}
    assert next(iter(flight)).domain == "one.test"
