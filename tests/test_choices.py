from __future__ import annotations

import subprocess
import sys
from typing import get_args

from engine.choices import AddressFamily
from engine.routing.families import families


def test_every_address_family_is_one_the_router_knows():
    words = get_args(AddressFamily)
    assert words == ("any", "ipv4", "ipv6", "prefer-ipv4", "prefer-ipv6")
    assert all(families(word) for word in words)


def test_importing_the_choices_brings_in_nothing_else():
    script = (
        "import __future__, sys, typing; before = set(sys.modules); "
        "import engine.choices; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["engine", "engine.choices"]
