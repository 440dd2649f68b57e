from __future__ import annotations

import pytest

from engine.queue.memory import MemoryStore
from tests.queue.store_conformance import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_store_in_memory_behaves(check):
    await check(MemoryStore())
