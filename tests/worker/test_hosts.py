from __future__ import annotations

import pytest

from engine.worker.hosts import read_hosts


def test_hosts_become_one_route_for_everything_in_their_order():
    hosts = ["b.test", "a.test:2525", "[2001:db8::1]:25", "unix:/run/lmtp"]
    assert read_hosts(hosts) == (("*", tuple(hosts)),)


def test_without_hosts_there_is_no_route():
    assert read_hosts(()) == ()


@pytest.mark.parametrize("host", ["", "a.test:0", "a.test:65536", "a.test:x", "a b"])
def test_what_is_no_host_is_refused(host: str):
    with pytest.raises(ValueError, match="allowed"):
        read_hosts(["good.test", host])
