"""What every test can ask for: the real servers of `tests/servers`, started when first used."""

from __future__ import annotations

pytest_plugins = ["tests.servers.fixtures"]
