from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.site import host_text, site_name


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("mx.example.test", None, "mx.example.test"),
        ("mx.example.test", 2525, "mx.example.test:2525"),
        ("192.0.2.1", 25, "192.0.2.1:25"),
        ("2001:db8::1", None, "2001:db8::1"),
        ("2001:db8::1", 2525, "[2001:db8::1]:2525"),
    ],
)
def test_host_text(host, port, text):
    assert host_text(host, port) == text


def test_a_site_is_the_sorted_set_of_its_hosts_in_lower_case():
    hosts = [("MX2.example.test", None), ("mx1.example.test", None), ("mx2.example.test", None)]

    assert site_name(hosts) == "mx1.example.test,mx2.example.test"


def test_a_port_that_the_route_fixes_is_part_of_the_site():
    assert site_name([("mx.test", 2525), ("mx.test", None)]) == "mx.test,mx.test:2525"


def test_the_case_of_a_unix_sockets_path_counts():
    assert site_name([("unix:/run/A", None), ("MX.test", None)]) == "mx.test,unix:/run/A"


@given(st.lists(st.tuples(st.sampled_from(["a.test", "b.test", "::1"]), st.none() | st.just(25))))
def test_order_and_repetition_do_not_change_a_site(hosts):
    assert site_name(hosts) == site_name(reversed(hosts)) == site_name(hosts + hosts)
