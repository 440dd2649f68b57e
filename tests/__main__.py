"""The developers' one command: `python -m tests [--fix] [-- PYTEST-ARGUMENTS]`.

Runs what a change must pass, what fails fastest first, and stops at the first failure; its exit
status is that step's.  Who may import whom is among the tests (`tests/test_architecture.py`).

mypy is not here: it needs an environment of its own.  trio-typing, which comes with the `dev`
packages, brings stubs for Trio from 2023 that hide Trio's own types, so beside them mypy misses
real errors and reports false ones.  `.ci/run` checks types too, from the `types` packages.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parents[1]

# What cannot be repaired is reported by the steps that follow.
FIX: Final = (("ruff", "check", "--fix", "--exit-zero", "--quiet", "."), ("ruff", "format", "."))
STYLE: Final = (("ruff", "format", "--check", "."), ("ruff", "check", "."))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; return the exit status of the first that fails, else 0.

    Args:
        arguments: As on the command line; `None`: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        usage="%(prog)s [-h] [--fix] [-- PYTEST-ARGUMENTS]",
        description="Check the format, lint, and run the tests.",
    )
    parser.add_argument(
        "--fix", action="store_true", help="first repair and format what ruff can, in place"
    )
    parser.add_argument(
        "pytest",
        nargs="*",
        metavar="PYTEST-ARGUMENTS",
        help="arguments for pytest; without any it runs all tests",
    )
    options = parser.parse_args(arguments)
    for step in _steps(fix=options.fix, for_pytest=options.pytest):
        if status := _run(step):
            return status
    return 0


def _steps(*, fix: bool, for_pytest: Sequence[str]) -> Iterator[Sequence[str]]:
    if fix:
        yield from FIX
    yield from STYLE
    yield ("pytest", *for_pytest)


def _run(step: Sequence[str]) -> int:
    started = time.perf_counter()
    # The project's own root, so that it can be called from anywhere that finds this module.
    status = subprocess.run([sys.executable, "-m", *step], cwd=ROOT, check=False).returncode
    seconds = time.perf_counter() - started
    verdict = "ok" if status == 0 else f"FAILED with status {status}"
    print(f"-- {shlex.join(step)}: {verdict}, {seconds:.1f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
