from __future__ import annotations

import pytest

from engine.route import HostFailure
from engine.routing.unroutable import (
    dns_trouble,
    no_such_domain,
    no_usable_host,
    no_usable_static_host,
    null_mx,
    ruled_out,
)

GONE = HostFailure("gone.test", 10, is_temporary=False, text="gone.test does not exist")
SLOW = HostFailure("slow.test", 20, is_temporary=True, text="lookup of slow.test failed")


def no_host(*failures, was_cut=False, is_implicit=False):
    return no_usable_host("x.test", failures, was_cut=was_cut, is_implicit=is_implicit)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        pytest.param(dns_trouble("t"), "deferred domain dns 4.4.3 t", id="trouble"),
        pytest.param(no_such_domain("t"), "failed domain dns 5.1.2 t", id="no such domain"),
        pytest.param(
            null_mx("x.test"),
            "failed domain dns 5.1.10 x.test takes no mail (null MX)",
            id="null MX",
        ),
        pytest.param(ruled_out("t"), "failed domain config 5.4.4 t", id="ruled out"),
        pytest.param(
            no_host(GONE, GONE),
            "failed domain dns 5.4.4 all MX hosts of x.test point to names without addresses: "
            "gone.test does not exist",
            id="all hosts gone",
        ),
        pytest.param(
            no_host(GONE, SLOW),
            "deferred domain dns 4.4.3 lookup of slow.test failed",
            id="one host may come back",
        ),
        pytest.param(
            no_host(was_cut=True),
            "deferred domain config 4.4.6 x.test: lowest numbered MX record points to this host",
            id="only ourselves",
        ),
        pytest.param(
            no_host(GONE, was_cut=True),
            "deferred domain config 4.4.6 x.test: lowest numbered MX record points to this host",
            id="ourselves behind a host that is gone",
        ),
        pytest.param(
            no_host(SLOW, was_cut=True),
            "deferred domain dns 4.4.3 lookup of slow.test failed",
            id="ourselves behind a host that may come back",
        ),
        pytest.param(
            no_host(GONE, is_implicit=True),
            "failed domain dns 5.1.2 x.test has no MX record, and gone.test does not exist",
            id="implicit MX without addresses",
        ),
        pytest.param(
            no_usable_static_host("x.test", [GONE]),
            "deferred local config 4.3.5 "
            "no host of the static route for x.test is usable: gone.test does not exist",
            id="static hosts gone",
        ),
        pytest.param(
            no_usable_static_host("x.test", [GONE, SLOW]),
            "deferred domain dns 4.4.3 "
            "no host of the static route for x.test is usable: gone.test does not exist",
            id="a static host may come back",
        ),
    ],
)
def test_each_reason_has_its_status_blame_and_code(verdict, expected):
    v = verdict
    assert f"{v.status} {v.scope} {v.cause} {v.enhanced} {v.text}" == expected
    assert v.seconds == 0.0
