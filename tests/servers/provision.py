"""Where the servers' programs are, and what a test does on a machine that lacks them.

Used by the modules that start servers. `.ci/servers` is what puts the programs there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

HOW = "get them with: sudo bash .ci/servers"


def required() -> bool:
    """Whether a missing server is a failure: always under CI, and when a developer asks for it."""
    return os.environ.get("CI") == "true" or os.environ.get("ENGINE_REQUIRE_SERVERS") == "1"


def missing(what: str) -> None:
    """Skip the test that needs `what`, or fail it where every server has to be there."""
    give_up(f"{what}; {HOW}")


def give_up(message: str) -> None:
    """Skip the test with a message, or fail it where everything has to be there."""
    if required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def root() -> Path:
    """The folder that `.ci/servers` unpacked the mail servers into."""
    return Path(os.environ.get("ENGINE_TEST_SERVERS", "/opt/engine-test-servers"))


def unpacked(path: str) -> Path:
    """The program at `path` below `root()`; without it the test is skipped or fails."""
    program = root() / path
    if not program.exists():
        missing(f"no {program.name} at {program}")
    return program


def installed(name: str) -> Path:
    """The program `name` that the machine itself has; without it the test is skipped or fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        missing(f"no {name} on this machine")
    return Path(str(found))


def superuser(server: str) -> None:
    """`server` changes users when it runs; without the right to, the test is skipped or fails."""
    if os.geteuid() != 0:
        missing(f"{server} has to be started by root")
