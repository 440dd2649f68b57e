from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.engine import Engine
from engine.outcome import Status
from engine.report import events
from engine.routing.router import Router
from engine.testing.dns import FakeDns
from tests.delivery.helpers import (
    connection_to,
    link,
    message,
    serving,
    settings,
    static_router,
    told,
)

MX1, MX2 = "192.0.2.1", "192.0.2.2"


async def running(service, *, hosts=(MX1,), **options) -> Engine:
    """Make an engine whose mail all goes to one site; the way there is known already."""
    router = await static_router(hosts, "x.test")
    return Engine(settings(**options), router=router, connector=service)


async def submit(engine: Engine, *names: str) -> None:
    """Submit a message to each."""
    for name in names:
        await engine.submit(message(f"{name}@x.test"))


async def receive(engine: Engine, count: int) -> list[str]:
    """Return the next outcomes as `name status`."""
    found = [await engine.outcomes.receive() for _ in range(count)]
    return [f"{each.recipient.partition('@')[0]} {each.status}" for each in found]


def numbers(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


# ---- how many connections ------------------------------------------------------------------------


async def test_messages_one_after_another_share_a_connection(autojump_clock):
    async with serving(delay=0.1) as service:
        async with await running(service) as engine:
            for name in numbers(20):
                await submit(engine, name)
                assert await receive(engine, 1) == [f"{name} delivered"]

    assert service.made == [MX1]


async def test_a_few_messages_at_once_share_a_connection(autojump_clock):
    """Setting another one up would cost more than they do."""
    async with serving(delay=0.1) as service:
        async with await running(service) as engine:
            await submit(engine, *numbers(7))
            assert await receive(engine, 7) == [f"{name} delivered" for name in numbers(7)]

    assert service.made == [MX1]


async def test_connections_grow_with_the_backlog(autojump_clock):
    async with serving(delay=0.1) as service:
        async with await running(service, max_connections=100) as engine:
            await submit(engine, *numbers(100))
            await receive(engine, 100)

    assert 8 <= service.peak <= 13


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_connections_never_exceed_the_limit(most, autojump_clock):
    async with serving(lambda _, to: "451 x" if to[-1] == "7" else "250 ok", delay=0.1) as service:
        async with await running(service, hosts=(MX1, MX2), max_connections=most) as engine:
            for batch in range(5):
                await submit(engine, *[f"b{batch}n{number}" for number in range(40)])
                await trio.sleep(0.2 * batch)
            assert all(site.connections <= most for site in engine.statistics().sites)
            await receive(engine, 200)

    assert service.peak == most


async def test_what_has_waited_too_long_gets_a_connection_of_its_own(autojump_clock):
    """A host that is slow with one message delays no other for long."""
    async with serving(lambda _, to: "stall" if to == "slow" else "250 ok") as service:
        async with await running(service) as engine:
            started = trio.current_time()
            await submit(engine, "slow", "a", "b")

            assert await receive(engine, 2) == ["a delivered", "b delivered"]

            assert trio.current_time() - started == pytest.approx(1)
            assert service.made == [MX1, MX1]
            engine.cancel()


async def test_every_stuck_message_makes_way_for_the_next(autojump_clock):
    async with serving(lambda _, to: "stall" if to[0] == "s" else "250 ok") as service:
        async with await running(service, max_connections=10) as engine:
            await submit(engine, "s1", "s2", "s3", "a")

            assert await receive(engine, 1) == ["a delivered"]

            assert service.open == 4
            engine.cancel()


# ---- idle connections ----------------------------------------------------------------------------


async def test_an_idle_connection_says_quit_after_a_while(autojump_clock):
    async with serving() as service:
        async with await running(service, idle_timeout=7) as engine:
            await submit(engine, "a")
            await receive(engine, 1)
            started = trio.current_time()
            await trio.sleep(6)
            assert (service.open, service.quits) == (1, [])
            await trio.sleep(2)
            assert service.open == 0

    assert service.quits == [pytest.approx(started + 7)]


async def test_work_in_time_keeps_a_connection(autojump_clock):
    async with serving() as service:
        async with await running(service, idle_timeout=7) as engine:
            for _ in range(5):
                await submit(engine, "a")
                await receive(engine, 1)
                await trio.sleep(6)

    assert service.made == [MX1]


async def test_drained_idle_connections_say_quit_at_once(autojump_clock):
    async with serving() as service:
        async with await running(service, idle_timeout=100) as engine:
            await submit(engine, "a")
            await receive(engine, 1)
            started = trio.current_time()

    assert service.quits == [started]


@pytest.mark.parametrize("turn", range(8))
async def test_a_peer_that_hangs_up_in_the_moment_of_new_work_costs_no_attempt(
    turn, autojump_clock
):
    async with serving() as service:
        async with await running(service) as engine:
            await submit(engine, "a")
            await receive(engine, 1)
            await wait_all_tasks_blocked()

            service.hang_up()
            await submit(engine, "b")
            outcome = await engine.outcomes.receive()

    assert told([outcome]) == ["b@x.test delivered - final reply 250"]
    assert outcome.attempts == ()
    assert service.made == [MX1, MX1]


@pytest.mark.parametrize("turn", range(4))
async def test_work_in_the_moment_of_the_idle_timeout_is_done(turn, autojump_clock):
    async with serving() as service:
        async with await running(service, idle_timeout=7) as engine:
            await submit(engine, "a")
            await receive(engine, 1)
            await wait_all_tasks_blocked()
            await trio.sleep(7)
            await submit(engine, "b")

            assert await receive(engine, 1) == ["b delivered"]


# ---- messages that need another host -------------------------------------------------------------


def only_first_busy(host: str, to: str) -> str:
    return "451 busy" if (host, to) == (MX1, "moved") else "250 ok"


async def test_who_needs_another_host_is_not_starved_by_who_does_not(autojump_clock):
    """All seats are taken by connections to the first host, and there is always work for them."""
    async with serving(only_first_busy, delay=0.01) as service:
        async with await running(service, hosts=(MX1, MX2), max_connections=1) as engine:
            started = trio.current_time()
            await submit(engine, "moved", *numbers(200))
            found = await receive(engine, 201)

    assert found.index("moved delivered") < 50
    assert set(found) == {"moved delivered", *[f"{name} delivered" for name in numbers(200)]}
    assert trio.current_time() - started < 3
    assert service.peak == 1


async def test_who_needs_another_host_is_not_starved_by_new_work(autojump_clock):
    """The same when work comes one message at a time."""
    async with serving(only_first_busy, delay=0.01) as service:
        async with await running(service, hosts=(MX1, MX2), max_connections=1) as engine:
            await submit(engine, "n", "moved", "n")
            found = []
            for _ in range(60):
                await submit(engine, "n")
                found += await receive(engine, 1)

    assert "moved delivered" in found


async def test_a_seat_is_not_kept_idle_while_somebody_needs_it(autojump_clock):
    """One recipient is delivered and the other needs the next host, and there is one seat."""
    async with serving(only_first_busy) as service:
        async with await running(
            service, hosts=(MX1, MX2), max_connections=1, idle_timeout=60
        ) as engine:
            started = trio.current_time()
            await engine.submit(message("a@x.test", "moved@x.test"))

            assert await receive(engine, 2) == ["a delivered", "moved delivered"]

            assert trio.current_time() - started < 2
    assert service.accepted == [(MX1, "a"), (MX2, "moved")]


async def test_an_idle_connection_to_another_host_makes_way(autojump_clock):
    """The best host is back, and the only seat is kept idle by a connection to the next one."""
    zone = {
        "x.test": {"MX": ["10 one.test", "20 two.test"]},
        "one.test": {"A": [MX1]},
        "two.test": {"A": [MX2]},
    }
    async with serving() as service:
        service.refusing = {MX1}
        async with Engine(
            settings(max_connections=1, idle_timeout=300),
            router=Router(FakeDns(zone, ttl=10)),
            connector=service,
        ) as engine:
            await submit(engine, "a")
            await receive(engine, 1)
            service.refusing = set()
            await trio.sleep(20)  # MX1 has rested, and the route is a new one
            started = trio.current_time()
            await submit(engine, "b")

            assert await receive(engine, 1) == ["b delivered"]

            assert trio.current_time() - started < 2
    assert service.accepted == [(MX2, "a"), (MX1, "b")]


async def test_an_open_connection_to_the_next_host_is_used(autojump_clock):
    async with serving(only_first_busy, delay=0.05) as service:
        service.refusing = {MX1}
        async with await running(service, hosts=(MX1, MX2), idle_timeout=60) as engine:
            await submit(engine, "a")
            await receive(engine, 1)
            service.refusing = set()
            await trio.sleep(20)  # MX1 has rested
            await submit(engine, "b")

            assert await receive(engine, 1) == ["b delivered"]


async def test_best_hosts_come_first_for_everybody(autojump_clock):
    async with serving(delay=0.1) as service:
        async with await running(service, hosts=(MX1, MX2), max_connections=20) as engine:
            await submit(engine, *numbers(100))
            await receive(engine, 100)

    assert set(service.made) == {MX1}


async def test_while_the_best_host_rests_all_go_to_the_next(autojump_clock):
    async with serving(delay=0.1) as service:
        service.refusing = {MX1}
        async with await running(service, hosts=(MX1, MX2), max_connections=20) as engine:
            await submit(engine, *numbers(100))
            found = await receive(engine, 100)

    assert all(each.endswith("delivered") for each in found)
    assert {host for host, _ in service.accepted} == {MX2}


@pytest.mark.parametrize("excess", ["", "421 4.7.0 too many connections", "554 too many"])
@pytest.mark.parametrize("hosts", [(MX1,), (MX1, MX2)], ids=len)
async def test_mail_flows_over_as_many_connections_as_the_host_takes(excess, hosts, autojump_clock):
    """One too many is no reason to put off the mail that the others can carry."""
    async with serving(delay=1.0) as service:
        service.room, service.excess = 3, excess
        async with await running(service, hosts=hosts, max_connections=20) as engine:
            await submit(engine, *numbers(90))
            found = await receive(engine, 90)

            assert trio.current_time() < 40
    assert all(each.endswith("delivered") for each in found)
    assert {host for host, _ in service.accepted} == {MX1}
    assert service.peak == 3
    assert len(service.made) < 20


async def test_a_greeting_that_a_program_vetoes_is_no_sign_of_a_full_host(autojump_clock):
    greeted = []

    def veto(*_: object) -> str | None:
        greeted.append(trio.current_time())
        return None if len(greeted) == 1 else "one is enough"

    async with serving(delay=1.0) as service:
        router = await static_router([MX1], "x.test")
        options = settings(max_connections=2)
        async with Engine(options, router=router, connector=service, veto_greeting=veto) as engine:
            await submit(engine, *numbers(20))
            found = await receive(engine, 20)

    assert {each.partition(" ")[2] for each in found} == {"delivered", "deferred"}


@pytest.mark.parametrize(
    ("excess", "seconds", "connections"),
    [("", 2, 20), ("421 4.3.2 down", 3, 200), ("stall", 40, 30)],
)
async def test_a_host_that_takes_no_connection_keeps_nobody_waiting(
    excess, seconds, connections, autojump_clock
):
    async with serving() as service:
        service.room, service.excess = 0, excess
        options = {"max_connections": 20, "greeting_timeout": 30, "quit_timeout": 0.01}
        async with await running(service, **options) as engine:
            started = trio.current_time()
            await submit(engine, *numbers(90))
            found = await receive(engine, 90)

            assert trio.current_time() - started < seconds
    assert all(each.endswith("deferred") for each in found)
    assert len(service.made) < connections


async def test_silence_is_no_reason_to_ask_again_and_again(autojump_clock):
    """Neither for mail that comes all the time."""
    async with serving() as service:
        service.room, service.excess = 0, "stall"
        options = {"max_connections": 20, "greeting_timeout": 300}
        async with await running(service, **options) as engine:
            for name in numbers(600):
                await submit(engine, name)
                await trio.sleep(1)
            await receive(engine, 250)

    # At most all seats, each for as long as it takes.
    assert len(service.made) <= 60


async def test_a_host_that_took_all_its_connections_back_is_asked_again(autojump_clock):
    async with serving(delay=1.0) as service:
        service.room = 1
        options = {"max_connections": 20, "max_messages_per_connection": 5}
        async with await running(service, **options) as engine:
            await submit(engine, *numbers(20))
            found = await receive(engine, 20)

    assert all(each.endswith("delivered") for each in found)
    assert service.peak == 1


# ---- statistics and events -----------------------------------------------------------------------


async def test_statistics_of_a_site_agree_with_what_happens(autojump_clock):
    def answer(_: str, to: str) -> str:
        return {"r": "550 who", "d": "451 busy"}.get(to[0], "250 ok")

    async with serving(answer, delay=1) as service:
        async with await running(service, max_connections=1, idle_timeout=5) as engine:
            await submit(engine, "a", "r", "d", "b")
            await wait_all_tasks_blocked()
            (site,) = engine.statistics().sites
            assert (site.site, site.waiting, site.connections, site.idle) == (MX1, 3, 1, 0)
            await receive(engine, 4)
            await trio.sleep(1)
            (site,) = engine.statistics().sites
            assert (site.waiting, site.connections, site.idle) == (0, 1, 1)
            assert (site.delivered, site.failed, site.deferred, site.unknown) == (2, 1, 1, 0)
            everything = engine.statistics()
            assert (everything.delivered, everything.failed, everything.deferred) == (2, 1, 1)
            assert (everything.transactions, everything.in_flight) == (4, 0)
            assert everything.connections_open == service.open == 1
            await trio.sleep(5)
            (site,) = engine.statistics().sites
            assert (site.connections, site.idle) == (0, 0)
            await trio.sleep(31)
            assert engine.statistics().sites == ()


async def test_a_site_opens_with_its_mail_and_closes_when_there_is_none(autojump_clock):
    seen = []
    async with serving() as service:
        async with await running(service, idle_timeout=5) as engine:

            def see(event: events.Event) -> None:
                if isinstance(event, events.SiteOpened | events.SiteClosed):
                    seen.append((type(event).__name__, round(trio.current_time() - started)))

            engine.events.watch(see)
            started = trio.current_time()
            await submit(engine, "a")
            await trio.sleep(60)
            await submit(engine, "b")
            await trio.sleep(1)

    assert seen == [("SiteOpened", 0), ("SiteClosed", 35), ("SiteOpened", 60), ("SiteClosed", 61)]


async def test_mail_in_the_moment_a_site_closes_is_delivered(autojump_clock):
    async with serving() as service:
        async with await running(service, idle_timeout=5) as engine:
            for wait in (35.0, 34.999, 35.001, 35.0):
                await submit(engine, "a")
                assert await receive(engine, 1) == ["a delivered"]
                await trio.sleep(wait)


# ---- cancelled -----------------------------------------------------------------------------------


async def test_what_waits_in_a_cancelled_pool_is_deferred(autojump_clock):
    async with serving(lambda _, to: "stall" if to == "s" else "250 ok") as service:
        async with await running(service, max_connections=1) as engine:
            await submit(engine, "s", "a", "b")
            await wait_all_tasks_blocked()
            engine.cancel()

    outcomes = [outcome async for outcome in engine.outcomes]
    assert sorted(told(outcomes)) == [
        "a@x.test deferred local connect cancelled -",
        "b@x.test deferred local connect cancelled -",
        "s@x.test deferred local rcpt cancelled -",
    ]
    assert engine.statistics().in_flight == 0
    assert service.open == 0


async def test_mail_that_moves_while_the_engine_is_cancelled_is_deferred(autojump_clock):
    async with serving(only_first_busy) as service:
        service.refusing = {MX2}
        async with await running(service, hosts=(MX1, MX2), max_connections=1) as engine:
            await submit(engine, "moved", *numbers(10))
            await engine.outcomes.receive()
            engine.cancel()

    outcomes = [outcome async for outcome in engine.outcomes]
    assert len(outcomes) == 10
    assert {outcome.status for outcome in outcomes} <= {Status.DEFERRED, Status.DELIVERED}


# ---- connections that come to nothing ------------------------------------------------------------


async def test_a_connection_that_is_never_greeted_keeps_no_mail(autojump_clock):
    """OpenSMTPD accepts more connections at once than it greets."""
    is_silent = iter([False, True, True, True])
    far_ends = []
    async with serving(delay=0.01) as service:
        connect = service.connect

        async def connect_or_be_left_alone(candidate, options):
            if not next(is_silent, False):
                return await connect(candidate, options)
            near, far = link()
            far_ends.append(far)
            return connection_to(candidate, near)

        service.connect = connect_or_be_left_alone
        started = trio.current_time()
        async with await running(service, max_connections=4) as engine:
            await submit(engine, *(f"r{number}" for number in range(40)))
            outcomes = await receive(engine, 40)
        took = trio.current_time() - started

    assert sorted(outcomes) == sorted(f"r{number} delivered" for number in range(40))
    assert len(far_ends) == 3
    assert took < 5


@pytest.mark.parametrize("ticks", range(12))
@pytest.mark.parametrize("is_busy", [False, True])
async def test_mail_that_comes_while_a_pool_is_cancelled_is_settled(is_busy, ticks, autojump_clock):
    """Its own task may have done all it had to, and not have come to say so."""
    async with serving(lambda _, to: "stall" if to == "slow" else "250 ok") as service:
        with trio.CancelScope() as outer:
            async with await running(service, idle_timeout=1) as engine:
                await submit(engine, "a")
                assert await receive(engine, 1) == ["a delivered"]
                if is_busy:
                    await submit(engine, "slow")
                await trio.sleep(2)
                outer.cancel()
                with trio.CancelScope(shield=True):
                    for _ in range(ticks):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    await submit(engine, "b")
                    outcomes = [await receive(engine, 1) for _ in range(1 + is_busy)]
        assert ["b deferred"] in outcomes
