"""Ways to play the same dialogue."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["whole", "dripped"])
def drip(request: pytest.FixtureRequest) -> bool:
    """Whether the server writes one octet at a time."""
    return bool(request.param)


@pytest.fixture(params=[True, False], ids=["pipelined", "lockstep"])
def pipelined(request: pytest.FixtureRequest) -> bool:
    """Whether the server offers PIPELINING."""
    return bool(request.param)
