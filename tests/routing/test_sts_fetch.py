from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio

from engine.routing.mta_sts import MAX_POLICY_OCTETS, StsPolicy
from engine.routing.sts_fetch import StsFetcher, StsFetchError, dial_by
from engine.testing.dns import FakeDns
from tests.https_server import HOST, HttpsServer, Page

PATH = "/.well-known/mta-sts.txt"
GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mx1.example.test\r\nmax_age: 86400\r\n"
HTML = [("content-type", "text/html")]


@pytest.fixture
async def fetch(nursery):
    """Return a function that serves a page as the policy of example.test and fetches it."""

    async def start(page, *names, timeout=5.0, **certificate):
        server = HttpsServer({PATH: page}, *names, **certificate)
        await nursery.start(server.run)
        fetcher = StsFetcher(server.dial, make_context=server.trusting, timeout=timeout)
        return await fetcher.fetch("example.test")

    return start


async def test_a_policy_is_fetched(fetch):
    assert await fetch(Page(GOOD)) == StsPolicy("enforce", 86400, ("mx1.example.test",))


async def test_parameters_of_the_media_type_do_not_matter(fetch):
    await fetch(Page(GOOD, headers=[("content-type", "text/plain; charset=utf-8")]))


@pytest.mark.parametrize(
    ("page", "failure", "reason"),
    [
        (Page(GOOD, status=404), "sts-policy-fetch-error", "answered with status 404"),
        (Page(GOOD, status=203), "sts-policy-fetch-error", "answered with status 203"),
        (
            Page(GOOD, 301, [("location", f"https://{HOST}{PATH}")]),
            "sts-policy-fetch-error",
            "answered with status 301",
        ),
        (Page(GOOD, headers=HTML), "sts-policy-fetch-error", "media type 'text/html'"),
        (Page(GOOD, headers=[]), "sts-policy-fetch-error", "media type ''"),
        (Page(b"<html>"), "sts-policy-invalid", "line 1 is no field"),
        (
            Page(GOOD + b"x: " + b"y" * MAX_POLICY_OCTETS),
            "sts-policy-fetch-error",
            "longer than 65536 octets",
        ),
    ],
)
async def test_what_is_no_policy_is_refused(page, failure, reason, fetch):
    with pytest.raises(StsFetchError, match=reason) as caught:
        await fetch(page)

    assert (caught.value.failure, caught.value.reason) == (failure, str(caught.value))


YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        pytest.param(["example.test"], {}, id="the domain is not the policy host"),
        pytest.param(["*.other.test"], {}, id="another domain"),
        pytest.param([HOST], {"not_after": YESTERDAY}, id="expired"),
    ],
)
async def test_a_policy_host_must_prove_who_it_is(names, options, fetch):
    with pytest.raises(StsFetchError) as caught:
        await fetch(Page(GOOD), *names, **options)

    assert caught.value.failure == "sts-webpki-invalid"


async def test_a_wildcard_stands_for_the_policy_host(fetch):
    """RFC 8461 §3.3."""
    await fetch(Page(GOOD), "*.example.test")


async def test_a_policy_that_trickles_in_is_given_up(fetch):
    with pytest.raises(StsFetchError, match=r"no answer within 0\.2 s") as caught:
        await fetch(Page([b"x"] * 100, pause=0.05), timeout=0.2)

    assert caught.value.failure == "sts-policy-fetch-error"


async def test_who_cannot_be_reached_is_told():
    fetcher = StsFetcher(dial_by(FakeDns({})))

    with pytest.raises(StsFetchError, match=f"{HOST} has no IP address") as caught:
        await fetcher.fetch("example.test")

    assert caught.value.failure == "sts-policy-fetch-error"


class Connects:
    """Records what is connected to; addresses that begin with 2 refuse, others hang."""

    def __init__(self, good=()):
        self.good = good
        self.tried = []

    async def __call__(self, address, port):
        self.tried.append((address, port))
        if address in self.good:
            return trio.testing.memory_stream_pair()[0]
        if address.startswith("2"):
            raise ConnectionRefusedError(f"{address} refuses")
        return await trio.sleep_forever()


ZONE = {
    "two.test": {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1"]},
    "alias.test": {"CNAME": ["two.test"]},
    "many.test": {"A": [f"203.0.113.{number}" for number in range(20)]},
    "gone.test": {"A": "SERVFAIL"},
}


async def test_the_addresses_of_a_host_are_tried_in_turn(autojump_clock):
    connects = Connects(good=["192.0.2.2"])

    await dial_by(FakeDns(ZONE), connects)("alias.test", 443)

    assert connects.tried == [("2001:db8::1", 443), ("192.0.2.1", 443), ("192.0.2.2", 443)]
    assert trio.current_time() == 10


async def test_the_last_trouble_is_told(autojump_clock):
    with pytest.raises(OSError, match=r"two.test \[192.0.2.2\] did not answer in 10 s"):
        await dial_by(FakeDns(ZONE), Connects())("two.test", 443)


async def test_not_all_of_many_addresses_are_tried():
    connects = Connects()

    with pytest.raises(OSError, match=r"203\.0\.113\.5 refuses"):
        await dial_by(FakeDns(ZONE), connects)("many.test", 443)
    assert len(connects.tried) == 6


@pytest.mark.parametrize("name", ["gone.test", "nowhere.test"])
async def test_a_host_without_addresses_cannot_be_dialled(name):
    with pytest.raises(OSError, match=f"{name} has no IP address"):
        await dial_by(FakeDns(ZONE), Connects())(name, 443)
