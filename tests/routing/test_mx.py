from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.route import Candidate, HostFailure, Route, Unroutable
from engine.routing.mx import (
    Host,
    aliases_of,
    build_route,
    cut_at_ourselves,
    is_local,
    is_ourselves,
    plan,
    read_addresses,
    read_mx,
)
from engine.routing.resolver import Answer, MxRecord


def mx(*records):
    return Answer("ok", tuple(MxRecord(preference, exchange) for preference, exchange in records))


class TestReadMx:
    def test_hosts_are_sorted_by_preference(self):
        answer = mx((20, "b.test"), (10, "c.test"), (20, "a.test"))

        assert read_mx("x.test", answer) == (
            Host("c.test", 10),
            Host("b.test", 20),
            Host("a.test", 20),
        )

    def test_a_repeated_host_keeps_its_lowest_preference(self):
        answer = mx((30, "a.test"), (20, "b.test"), (10, "a.test"))

        assert read_mx("x.test", answer) == (Host("a.test", 10), Host("b.test", 20))

    def test_no_mx_records_make_the_domain_its_own_host(self):
        assert read_mx("x.test", Answer("no-data")) == (Host("x.test", 0),)

    def test_fifty_hosts_are_considered_the_best_first(self):
        answer = mx(*((100 - number, f"mx{number}.test") for number in range(100)))

        hosts = read_mx("x.test", answer)

        assert [host.preference for host in hosts] == list(range(1, 51))

    def test_an_ip_address_in_place_of_a_host_name_is_a_failed_host(self):
        hosts = read_mx("x.test", mx((10, "192.0.2.1"), (20, "mx.test")))

        text = "MX record points to the IP address 192.0.2.1 instead of a host name"
        failure = HostFailure("192.0.2.1", 10, is_temporary=False, text=text)
        assert hosts == (Host("192.0.2.1", 10, failure=failure), Host("mx.test", 20))

    def test_a_dot_beside_other_records_is_dropped(self):
        assert read_mx("x.test", mx((0, "."), (10, "mx.test"))) == (Host("mx.test", 10),)

    @pytest.mark.parametrize(
        ("answer", "status", "cause", "enhanced", "text"),
        [
            pytest.param(
                mx((0, ".")), "failed", "dns", "5.1.10", "x.test takes no mail", id="null MX"
            ),
            pytest.param(
                mx((77, ".")),
                "failed",
                "dns",
                "5.1.10",
                "(null MX)",
                id="its preference is ignored",
            ),
            pytest.param(
                Answer("no-such-name"), "failed", "dns", "5.1.2", "does not exist", id="NXDOMAIN"
            ),
            pytest.param(
                Answer("failed", text="ns.test answered SERVFAIL"),
                "deferred",
                "dns",
                "4.4.3",
                "MX lookup of x.test failed: ns.test answered SERVFAIL",
                id="trouble never falls back to the domain's own address",
            ),
        ],
    )
    def test_a_domain_without_hosts_is_unroutable(self, answer, status, cause, enhanced, text):
        verdict = read_mx("x.test", answer)

        assert isinstance(verdict, Unroutable)
        assert (verdict.status, verdict.scope, verdict.cause) == (status, "domain", cause)
        assert str(verdict.enhanced) == enhanced
        assert text in verdict.text


class TestReadAddresses:
    def test_addresses_of_all_families_are_taken_in_order(self):
        answers = [Answer("ok", ("2001:db8::1",)), Answer("ok", ("192.0.2.1", "192.0.2.2"))]

        host = read_addresses(Host("mx.test", 10), answers)

        assert host.addresses == ("2001:db8::1", "192.0.2.1", "192.0.2.2")
        assert host.failure is None

    def test_one_family_is_enough_when_the_other_cannot_be_had(self):
        answers = [Answer("failed", text="SERVFAIL"), Answer("ok", ("192.0.2.1",))]

        assert read_addresses(Host("mx.test"), answers).addresses == ("192.0.2.1",)

    def test_thirty_addresses_are_considered(self):
        answers = [Answer("ok", tuple(f"192.0.2.{number}" for number in range(100)))]

        host = read_addresses(Host("mx.test"), answers)

        assert host.addresses == tuple(f"192.0.2.{number}" for number in range(30))

    @pytest.mark.parametrize(
        ("answers", "is_temporary", "text"),
        [
            pytest.param(
                [Answer("no-data"), Answer("no-data")],
                False,
                "mx.test has no IP address of an allowed family",
                id="no address",
            ),
            pytest.param(
                [Answer("no-such-name"), Answer("no-such-name")],
                False,
                "mx.test does not exist in the DNS",
                id="no such host",
            ),
            pytest.param(
                [Answer("no-data"), Answer("failed", text="ns.test timed out")],
                True,
                "address lookup of mx.test failed: ns.test timed out",
                id="trouble",
            ),
        ],
    )
    def test_a_host_without_addresses_says_why(self, answers, is_temporary, text):
        host = read_addresses(Host("mx.test", 10, 2525), answers)

        assert host.addresses == ()
        assert host.failure == HostFailure("mx.test", 10, is_temporary, text, 2525)


LOCAL = frozenset({"192.0.2.99", "2001:db8::99"})


class TestCutAtOurselves:
    HOSTS = (
        Host("a.test", 10, addresses=("192.0.2.1",)),
        Host("b.test", 20, addresses=("192.0.2.2", "192.0.2.99")),
        Host("c.test", 20, addresses=("192.0.2.3",)),
        Host("d.test", 30).fail("gone"),
    )

    def cut(self, names, addresses):
        own = [host for host in self.HOSTS if is_ourselves(host, frozenset(names), addresses)]
        return cut_at_ourselves(self.HOSTS, own)

    def test_our_address_cuts_off_all_of_equal_or_worse_preference(self):
        assert self.cut((), LOCAL) == self.HOSTS[:1]

    def test_our_name_cuts_off_even_without_addresses(self):
        assert self.cut({"d.test"}, frozenset()) == self.HOSTS[:3]

    def test_our_name_behind_an_alias_is_ours(self):
        alias = Host("alias.test", 10, addresses=("192.0.2.1",), canonical="me.test")

        assert is_ourselves(alias, frozenset({"me.test"}), frozenset())
        assert not is_ourselves(alias, frozenset({"you.test"}), frozenset())

    def test_the_best_of_our_hosts_decides(self):
        assert self.cut({"d.test", "a.test"}, LOCAL) == ()

    def test_nothing_is_cut_off_where_we_are_not_among_the_hosts(self):
        assert self.cut((), frozenset({"192.0.2.98"})) == self.HOSTS


@pytest.mark.parametrize(
    ("address", "local", "expected"),
    [
        ("192.0.2.99", LOCAL, True),
        ("2001:db8::99", LOCAL, True),
        ("::ffff:192.0.2.99", LOCAL, True),
        ("192.0.2.1", LOCAL, False),
        ("127.0.0.1", LOCAL, True),
        ("127.8.8.8", LOCAL, True),
        ("0.0.0.0", LOCAL, True),
        ("::", LOCAL, True),
        ("::1", LOCAL, True),
        ("::ffff:127.0.0.1", LOCAL, True),
        ("127.0.0.1", frozenset(), False),
        ("0.0.0.0", frozenset(), False),
    ],
)
def test_is_local(address, local, expected):
    assert is_local(address, local) is expected


class TestBuildRoute:
    def test_every_address_of_every_host_is_a_candidate_in_order(self):
        route = build_route(
            [
                Host("b.test", 10, addresses=("2001:db8::1", "192.0.2.1")),
                Host("a.test", 20, 2525, addresses=("192.0.2.2",)),
                Host("c.test", 30).fail("gone"),
            ]
        )

        assert route == Route(
            site="a.test:2525,b.test,c.test",
            candidates=(
                Candidate("b.test", "2001:db8::1", None, 0),
                Candidate("b.test", "192.0.2.1", None, 0),
                Candidate("a.test", "192.0.2.2", 2525, 1),
            ),
            failures=(HostFailure("c.test", 2, is_temporary=False, text="gone"),),
            order="b.test;a.test:2525;c.test",
        )

    def test_preferences_are_numbered_so_that_only_their_order_counts(self):
        one = [Host("a.test", 10, addresses=("192.0.2.1",)), Host("b.test", 20)]
        two = [Host("a.test", 5, addresses=("192.0.2.1",)), Host("b.test", 50)]
        other = [Host("b.test", 5), Host("a.test", 50, addresses=("192.0.2.1",))]

        assert build_route(one) == build_route(two)
        assert build_route(one).site == build_route(other).site
        assert build_route(one).order != build_route(other).order

    def test_an_address_that_is_met_again_is_dropped_under_the_same_name_only(self):
        """Its certificate and policies are a name's."""
        route = build_route(
            [
                Host("a.test", 10, addresses=("192.0.2.1",)),
                Host("b.test", 20, addresses=("192.0.2.1", "192.0.2.2")),
                Host("a.test", 30, addresses=("192.0.2.1",)),
            ]
        )

        assert [(c.host, c.address) for c in route.candidates] == [
            ("a.test", "192.0.2.1"),
            ("b.test", "192.0.2.1"),
            ("b.test", "192.0.2.2"),
        ]

    def test_one_address_on_two_ports_is_two_candidates(self):
        hosts = [Host("::1", port, port, addresses=("::1",)) for port in (25, 26)]

        assert len(build_route(hosts, is_static=True).candidates) == 2

    def test_a_unix_socket_is_a_candidate_without_an_address(self):
        hosts = [Host("unix:/run/b", 1), Host("unix:/run/a", 2), Host("unix:/run/b", 3)]

        assert build_route(hosts, is_static=True).candidates == (
            Candidate("unix:/run/b", None, None, 0),
            Candidate("unix:/run/a", None, None, 1),
        )

    def test_what_dnssec_vouches_for_is_told_and_is_no_part_of_the_place(self):
        host = Host("a.test", 10, None, ("192.0.2.1",), None, "b.test", True)

        route = build_route([host], is_secure=True, aliases=("example.test",))

        (candidate,) = route.candidates
        assert (candidate.canonical, candidate.is_secure) == ("b.test", True)
        assert candidate == Candidate("a.test", "192.0.2.1")
        assert (route.is_secure, route.aliases) == (True, ("example.test",))


class TestSecurity:
    """What is kept of DNSSEC's verdicts (RFC 7672 §2.2.1 and §2.2.2)."""

    V4 = Answer("ok", ("192.0.2.1",), 60, True, "b.test")
    V6 = Answer("ok", ("2001:db8::1",), 60, True, "b.test")
    NONE = Answer("no-data", (), 60, False, "b.test")
    FAILED = Answer("failed", text="no answer")

    @pytest.mark.parametrize(
        ("answers", "is_secure"),
        [
            ([V6, V4], True),
            ([V6, replace(V4, authentic=False)], False),
            ([NONE, V4], True),
            ([FAILED, V4], True),
            ([V6, NONE], True),
        ],
    )
    def test_addresses_are_secure_when_all_that_were_found_are(self, answers, is_secure):
        host = read_addresses(Host("a.test"), answers)

        assert (host.is_secure, host.canonical) == (is_secure, "b.test")

    def test_a_host_without_addresses_is_not_secure(self):
        assert not read_addresses(Host("a.test"), [self.NONE, self.FAILED]).is_secure

    @pytest.mark.parametrize(
        ("answer", "aliases"),
        [
            (Answer("ok", (MxRecord(0, "a.test"),), 1, True, "a.test"), ("a.test",)),
            (Answer("ok", (MxRecord(0, "a.test"),), 1, True, "c.test"), ("a.test", "c.test")),
            (Answer("ok", (MxRecord(0, "a.test"),), 1, True), ("a.test",)),
            (Answer("ok", (MxRecord(0, "a.test"),), 1, False, "c.test"), ()),
            (Answer("no-data", (), 1, True, "c.test"), ()),
        ],
    )
    def test_the_domain_stands_for_its_hosts_where_secure_records_name_them(self, answer, aliases):
        assert aliases_of("a.test", answer) == aliases


def route_of(*hosts, is_static=False):
    """Return a route of (name, preference, addresses)."""
    return build_route(
        [Host(name, preference, None, tuple(addresses)) for name, preference, addresses in hosts],
        is_static=is_static,
    )


def addresses(route, family, seed=1):
    return [candidate.address for candidate in plan(route, family, Random(seed))]


class TestPlan:
    DUAL = route_of(
        ("a.test", 10, ["2001:db8::a", "192.0.2.10"]),
        ("b.test", 20, ["2001:db8::b", "192.0.2.11"]),
    )

    @pytest.mark.parametrize(
        ("family", "expected"),
        [
            ("any", ["2001:db8::a", "192.0.2.10", "2001:db8::b", "192.0.2.11"]),
            ("prefer-ipv6", ["2001:db8::a", "192.0.2.10", "2001:db8::b", "192.0.2.11"]),
            ("prefer-ipv4", ["192.0.2.10", "2001:db8::a", "192.0.2.11", "2001:db8::b"]),
            ("ipv4", ["192.0.2.10", "192.0.2.11"]),
            ("ipv6", ["2001:db8::a", "2001:db8::b"]),
        ],
    )
    def test_preference_goes_before_family(self, family, expected):
        assert addresses(self.DUAL, family) == expected

    def test_a_route_without_the_family_has_no_plan(self):
        assert plan(route_of(("a.test", 10, ["192.0.2.1"])), "ipv6", Random(1)) == ()

    def test_an_unknown_policy_is_refused(self):
        with pytest.raises(ValueError, match="allowed: any"):
            plan(self.DUAL, "both", Random(1))

    def test_inside_a_preference_all_of_one_family_go_before_the_other(self):
        route = route_of(
            ("a.test", 10, ["2001:db8::a", "192.0.2.10"]),
            ("b.test", 10, ["2001:db8::b", "192.0.2.11"]),
        )

        for seed in range(20):
            order = addresses(route, "any", seed)
            assert [":" in address for address in order] == [True, True, False, False]
            # The hosts come in the same order in both families.
            assert [a[-1] for a in order[:2]] in (["a", "b"], ["b", "a"])
            assert (order[0] == "2001:db8::a") == (order[2] == "192.0.2.10")

    def test_hosts_of_equal_preference_come_first_equally_often(self):
        route = route_of(*((f"{name}.test", 10, [f"192.0.2.{name}"]) for name in range(4)))
        rng = Random(42)

        first = [plan(route, "any", rng)[0].address for _ in range(4000)]

        assert all(900 < first.count(f"192.0.2.{name}") < 1100 for name in range(4))

    def test_a_host_with_many_addresses_is_first_no_more_often_than_another(self):
        route = route_of(
            ("one.test", 10, ["192.0.2.1"]),
            ("many.test", 10, [f"198.51.100.{number}" for number in range(9)]),
        )
        rng = Random(42)

        first = [plan(route, "any", rng)[0].host for _ in range(2000)]

        assert 900 < first.count("one.test") < 1100

    def test_the_addresses_of_a_host_are_shuffled_and_stay_together(self):
        route = route_of(
            ("a.test", 10, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]),
            ("b.test", 10, ["198.51.100.1", "198.51.100.2"]),
        )
        rng = Random(7)
        orders = {plan(route, "any", rng) for _ in range(500)}

        assert len(orders) == 2 * 6 * 2
        for order in orders:
            hosts = [candidate.host for candidate in order]
            assert hosts in (
                ["a.test"] * 3 + ["b.test"] * 2,
                ["b.test"] * 2 + ["a.test"] * 3,
            )

    def test_a_static_route_is_kept_in_order(self):
        route = route_of(
            *((f"192.0.2.{number}", number, [f"192.0.2.{number}"]) for number in range(5)),
            ("mx.test", 5, ["2001:db8::1", "2001:db8::2", "192.0.2.9", "192.0.2.8"]),
            is_static=True,
        )

        expected = [f"192.0.2.{number}" for number in range(5)]
        for seed in range(5):
            assert addresses(route, "any", seed) == [
                *expected,
                *("2001:db8::1", "2001:db8::2", "192.0.2.9", "192.0.2.8"),
            ]
        assert addresses(route, "prefer-ipv4")[5:7] == ["192.0.2.9", "192.0.2.8"]

    @pytest.mark.parametrize("family", ["any", "ipv4", "ipv6", "prefer-ipv4", "prefer-ipv6"])
    def test_no_policy_rules_a_unix_socket_out(self, family):
        route = route_of(("192.0.2.1", 0, ["192.0.2.1"]), ("unix:/run/a", 1, []), is_static=True)

        assert plan(route, family, Random(1))[-1] == Candidate("unix:/run/a", None, None, 1)

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=12),
        st.sampled_from(["any", "ipv4", "ipv6", "prefer-ipv4", "prefer-ipv6"]),
        st.integers(0, 1000),
    )
    def test_a_plan_holds_every_usable_candidate_once_by_preference(self, hosts, family, seed):
        route = route_of(
            *(
                (f"h{host}.test", preference, [f"{'2001:db8::' if v6 else '192.0.2.'}{number}"])
                for number, (preference, host, v6) in enumerate(sorted(hosts))
            )
        )

        order = plan(route, family, Random(seed))

        usable = {c for c in route.candidates if family not in ("ipv4", "ipv6")}
        usable |= {c for c in route.candidates if family == ("ipv6" if c.is_ipv6 else "ipv4")}
        assert len(order) == len(usable)
        assert set(order) == usable
        assert [c.preference for c in order] == sorted(c.preference for c in order)
