from __future__ import annotations

import pytest

from engine.routing.families import families, family_of, is_address


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("any", ("ipv6", "ipv4")),
        ("prefer-ipv6", ("ipv6", "ipv4")),
        ("prefer-ipv4", ("ipv4", "ipv6")),
        ("ipv4", ("ipv4",)),
        ("ipv6", ("ipv6",)),
    ],
)
def test_a_policy_names_families_in_order(policy, order):
    assert families(policy) == order


def test_an_unknown_policy_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"'ipv5'; allowed: any, ipv4, ipv6, prefer-ipv4, prefer-"):
        families("ipv5")


def test_the_family_of_an_address():
    assert [family_of("192.0.2.1"), family_of("2001:db8::1")] == ["ipv4", "ipv6"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("192.0.2.1", True), ("::1", True), ("mx.test", False), ("1.2.3", False), ("", False)],
)
def test_is_address(text, expected):
    assert is_address(text) is expected
