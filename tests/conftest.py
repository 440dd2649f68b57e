"""What every test can ask for: the real servers, started when first used, and a search for leaks."""

from __future__ import annotations

import hypothesis

# The same examples every time, and no clock: machines that run tests are slow and busy.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")

pytest_plugins = ["tests.servers.fixtures", "tests.leaks", "tests.leak_watch"]
