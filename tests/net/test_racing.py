"""Racing, as scenarios: who answers, after how many seconds, and how; in virtual time.

A scenario names candidates in order, each with the seconds it takes and what comes of it: `True`
for a connection, a cause for a failure, an exception for a surprise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.net.connector import Connection, Connector
from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts
from engine.net.options import ConnectOptions
from engine.net.racing import STAGGER, interleave, race
from engine.outcome import Cause, Scope
from engine.route import Candidate
from engine.smtp.stages import Stage

NEVER = float("inf")


def candidate(name: str, *, is_ipv6: bool = False) -> Candidate:
    return Candidate(name, "2001:db8::1" if is_ipv6 else "192.0.2.1")


class FakeStream:
    """A stream that must not be used, only closed."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeSeats:
    """`free` seats; every one taken must come back."""

    def __init__(self, free: int) -> None:
        self.free = self.all = free
        self.asked: list[float] = []

    def take(self) -> bool:
        self.asked.append(trio.current_time())
        if self.free == 0:
            return False
        self.free -= 1
        return True

    def give_back(self) -> None:
        self.free += 1
        assert self.free <= self.all


@dataclass
class Scenario:
    """Hosts that answer as told, and what happened to them."""

    hosts: list[tuple[str, float, object]]
    seats: FakeSeats | None = None
    begun: list[tuple[str, float]] = field(default_factory=list)
    streams: dict[str, FakeStream] = field(default_factory=dict)
    open: int = 0
    most_open: int = 0

    async def connect(self, to: Candidate) -> Connection:
        self.begun.append((to.host, trio.current_time()))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        seconds, result = next((s, r) for name, s, r in self.hosts if name == to.host)
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.open -= 1
            raise
        if result is True:
            return self.connection_to(to)
        self.open -= 1
        if isinstance(result, Exception):
            raise result
        raise ConnectFailed(Stage.CONNECT, result, Scope.HOST, f"connect to {to.host}")

    def connection_to(self, to: Candidate) -> Connection:
        scenario = self

        class Stream(FakeStream):
            def close(self) -> None:
                super().close()
                scenario.open -= 1

        self.streams[to.host] = Stream()
        facts = ConnectionFacts(to.host, to.address, 25, "", 0, False, None, None, "off", 0.0)
        return Connection(self.streams[to.host], facts)

    async def run(self):
        candidates = [candidate(name) for name, _, _ in self.hosts]
        result = await race(candidates, self.connect, seats=self.seats)
        self.check(result)
        return result

    def check(self, result) -> None:
        """What holds after every race: one connection at most, and every seat is back."""
        still_open = [name for name, stream in self.streams.items() if not stream.is_closed]
        assert still_open == ([result.winner.host] if result.winner else [])
        assert self.open == len(still_open)
        assert (result.winner is None) is (result.connection is None)
        if result.winner is not None:
            assert result.connection.facts.host == result.winner.host
        if self.seats is not None:
            assert self.seats.free == self.seats.all
            assert self.most_open <= self.seats.all + 1


def failed(result) -> list[tuple[str, Cause]]:
    return [(each.candidate.host, each.failure.cause) for each in result.failures]


# --- who wins ---


async def test_one_that_answers_soon_is_the_only_one_that_is_called(autojump_clock):
    scenario = Scenario([("a", 0.2, True), ("b", 0.0, True)])
    result = await scenario.run()
    assert result.winner.host == "a"
    assert (scenario.begun, failed(result)) == ([("a", 0.0)], [])
    assert trio.current_time() == pytest.approx(0.2)


async def test_the_next_one_starts_when_a_stagger_has_passed_and_may_win(autojump_clock):
    scenario = Scenario([("a", 10, True), ("b", 0.1, True), ("c", 0.1, True)])
    result = await scenario.run()
    assert result.winner.host == "b"
    assert scenario.begun == [("a", 0.0), ("b", STAGGER)]
    assert trio.current_time() == pytest.approx(0.35)


async def test_a_slow_first_one_may_still_win(autojump_clock):
    scenario = Scenario([("a", 0.4, True), ("b", 10, True)])
    assert (await scenario.run()).winner.host == "a"
    assert trio.current_time() == pytest.approx(0.4)


async def test_the_next_one_starts_at_once_when_one_has_failed(autojump_clock):
    scenario = Scenario([("a", 0.1, Cause.REFUSED), ("b", 0.1, True)])
    result = await scenario.run()
    assert result.winner.host == "b"
    assert failed(result) == [("a", Cause.REFUSED)]
    assert scenario.begun == [("a", 0.0), ("b", pytest.approx(0.1))]


async def test_the_stagger_counts_from_the_last_start(autojump_clock):
    scenario = Scenario([("a", NEVER, True), ("b", 0.1, Cause.REFUSED), ("c", NEVER, True)])
    scenario.hosts += [("d", 0.0, True)]
    result = await scenario.run()
    assert result.winner.host == "d"
    starts = [0.0, 0.25, 0.35, 0.6]
    assert scenario.begun == [
        (name, pytest.approx(at)) for name, at in zip("abcd", starts, strict=True)
    ]


async def test_two_that_fail_together_have_two_successors_at_once(autojump_clock):
    scenario = Scenario([("a", 0.5, Cause.REFUSED), ("b", 0.25, Cause.REFUSED)])
    scenario.hosts += [("c", NEVER, True), ("d", 0.1, True)]
    # a and b fail at 0.5, c has begun by its stagger then.
    result = await scenario.run()
    assert result.winner.host == "d"
    both = sorted(scenario.begun[2:])  # in the same moment
    assert both == [("c", pytest.approx(0.5)), ("d", pytest.approx(0.5))]


async def test_when_all_fail_there_is_no_winner_and_every_reason(autojump_clock):
    scenario = Scenario(
        [("a", 0.6, Cause.TIMEOUT), ("b", 0.1, Cause.REFUSED), ("c", 0.1, Cause.UNREACHABLE)]
    )
    result = await scenario.run()
    assert result.winner is None
    assert failed(result) == [
        ("b", Cause.REFUSED),
        ("c", Cause.UNREACHABLE),
        ("a", Cause.TIMEOUT),
    ]
    assert trio.current_time() == pytest.approx(0.6)


async def test_nobody_to_race_is_nobody_who_wins(autojump_clock):
    result = await Scenario([]).run()
    assert (result.winner, result.connection, result.failures) == (None, None, [])


async def test_of_two_that_stand_together_one_is_closed_without_a_word(autojump_clock):
    scenario = Scenario([("a", 0.5, True), ("b", 0.25, True)])
    result = await scenario.run()
    loser = {"a": "b", "b": "a"}[result.winner.host]
    assert scenario.streams[loser].is_closed
    assert failed(result) == []


async def test_the_same_candidate_twice_is_two_attempts(autojump_clock):
    same = candidate("a")
    seats = FakeSeats(1)
    scenario = Scenario([("a", 0.3, True)])
    result = await race([same, same], scenario.connect, seats=seats)
    assert result.winner is same
    assert [name for name, _ in scenario.begun] == ["a", "a"]
    assert (seats.free, scenario.open) == (1, 1)


async def test_the_stagger_is_the_callers(autojump_clock):
    scenario = Scenario([("a", NEVER, True), ("b", 0.0, True)])
    result = await race([candidate("a"), candidate("b")], scenario.connect, stagger=0.1)
    assert result.winner.host == "b"
    assert trio.current_time() == pytest.approx(0.1)


# --- seats ---


async def test_without_a_free_seat_one_runs_after_the_other(autojump_clock):
    scenario = Scenario([("a", 1.1, Cause.TIMEOUT), ("b", 0.1, True)], FakeSeats(0))
    result = await scenario.run()
    assert result.winner.host == "b"
    assert scenario.begun == [("a", 0.0), ("b", pytest.approx(1.1))]
    # It asks again after each stagger: a seat may have become free meanwhile.
    assert scenario.seats.asked == [pytest.approx(at) for at in (0.25, 0.5, 0.75, 1.0)]


async def test_a_seat_that_becomes_free_is_used(autojump_clock):
    seats = FakeSeats(1)
    scenario = Scenario([("a", NEVER, True), ("b", 0.1, True)], seats)
    assert seats.take()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def free():
            await trio.sleep(0.6)
            seats.give_back()

        result = await scenario.run()
    assert result.winner.host == "b"
    assert scenario.begun[1] == ("b", pytest.approx(0.75))


async def test_one_seat_is_two_at_a_time(autojump_clock):
    scenario = Scenario([(name, 0.9, Cause.TIMEOUT) for name in "abcd"], FakeSeats(1))
    await scenario.run()
    assert scenario.most_open == 2
    starts = [0.0, 0.25, 0.9, 1.15]
    assert [at for _, at in scenario.begun] == [pytest.approx(at) for at in starts]


# --- how it ends otherwise ---


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6])
async def test_a_cancelled_race_leaves_nothing_open_and_no_seat_taken(autojump_clock, seconds):
    scenario = Scenario([(name, NEVER, True) for name in "abc"], FakeSeats(2))
    with trio.move_on_after(seconds) as scope:
        await scenario.run()
    assert scope.cancelled_caught
    assert (scenario.open, scenario.seats.free) == (0, 2)


async def test_cancelled_when_one_has_just_won_it_closes_what_it_won(autojump_clock):
    scenario = Scenario([("a", 0.1, True)])
    with trio.CancelScope() as scope:

        async def connect(to):
            connection = await scenario.connect(to)
            scope.cancel()
            return connection

        await race([candidate("a")], connect)
    assert scope.cancelled_caught
    assert scenario.streams["a"].is_closed
    assert scenario.open == 0


async def test_a_surprise_ends_the_race_and_leaves_nothing_open(autojump_clock):
    scenario = Scenario([("a", NEVER, True), ("b", 0.1, RuntimeError("a bug"))], FakeSeats(1))
    with pytest.RaisesGroup(RuntimeError):
        await scenario.run()
    assert (scenario.open, scenario.seats.free) == (0, 1)


async def test_a_surprise_at_the_moment_of_victory_closes_what_was_won(autojump_clock):
    scenario = Scenario([("a", 0.5, True), ("b", 0.25, RuntimeError("a bug"))])
    with pytest.RaisesGroup(RuntimeError):
        await scenario.run()
    assert scenario.open == 0


answers = st.sampled_from([True, Cause.REFUSED, Cause.TIMEOUT])
hosts = st.lists(st.tuples(st.integers(0, 12), answers), max_size=6)


@settings(max_examples=200)
@given(hosts, st.integers(0, 3), st.none() | st.integers(0, 20))
def test_whatever_happens_when_nothing_is_left_behind(answers, free, cancelled_after):
    named = [(str(at), eighths / 8, result) for at, (eighths, result) in enumerate(answers)]
    scenario = Scenario(named, FakeSeats(free))

    async def main():
        seconds = NEVER if cancelled_after is None else cancelled_after / 8 + 0.01
        with trio.move_on_after(seconds) as scope:
            result = await scenario.run()
            if result.winner is None:
                assert len(result.failures) == len(named)
        if scope.cancelled_caught:
            assert scenario.open == 0
            assert scenario.seats.free == free
        assert scenario.most_open <= free + 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- the order ---


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("", ""),
        ("4", "4"),
        ("444", "444"),
        ("6644", "6464"),
        ("4466", "4646"),
        ("66644", "64646"),
        ("644", "644"),
        ("466", "466"),
        ("444466", "464644"),
    ],
)
def test_families_take_turns_and_the_first_one_stays_first(order, expected):
    candidates = [candidate(f"{at}", is_ipv6=family == "6") for at, family in enumerate(order)]
    mixed = interleave(candidates)
    assert "".join("6" if each.is_ipv6 else "4" for each in mixed) == expected
    for is_ipv6 in (True, False):
        kept = [each for each in candidates if each.is_ipv6 is is_ipv6]
        assert [each for each in mixed if each.is_ipv6 is is_ipv6] == kept


# --- with real sockets ---


async def test_real_losers_are_closed_and_hear_nothing(listen, clogged_port, descriptors):
    slow, fast = Candidate("slow.test", "127.0.0.1", clogged_port), listen("::1")
    quick = Candidate("quick.test", "::1", fast.getsockname()[1])
    connector = Connector()
    before = descriptors()

    async def connect(to):
        return await connector.connect(to, ConnectOptions())

    result = await race([slow, quick], connect)
    assert result.winner is quick
    assert descriptors() == before + 1
    result.connection.stream.close()
    peer, _ = fast.accept()
    with peer:
        assert peer.recv(100) == b""
    assert descriptors() == before
