"""`python -m tests.crash`: kill a worker under load again and again; nothing may be lost.

    python -m tests.crash --kills 200
    python -m tests.crash --kills 100 --processes 2
    python -m tests.crash --kills 50 --disk-full

`submit` feeds the worker all the while, and is killed itself now and then.  At the end
`run --until-empty` delivers the rest, and everybody who was accepted is accounted for.  The exit
status is 1 if anything is not as the worker promises, see `tests.crash.account`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.crash.disk import NoDiskError
from tests.crash.drill import Plan, run


def main() -> int:
    """Run it, print the account, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="how long a worker lives at most (%(default)s)"
    )
    parser.add_argument("--disk-full", action="store_true", help="on a small disk that fills up")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    options = parser.parse_args()
    plan = Plan(
        kills=options.kills,
        processes=options.processes,
        seconds=options.seconds,
        is_disk_full=options.disk_full,
        seed=options.seed,
    )
    # As Ctrl-C, which takes the workers along; also where a shell had that ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    print(f"seed {plan.seed}", flush=True)
    began = time.monotonic()
    try:
        report = run(plan, folder=options.folder, say=lambda text: print(f"… {text}", flush=True))
    except NoDiskError as error:
        print(f"skipped: a small disk cannot be made here ({error})")
        return 0
    for name, count in report.counts.items():
        print(f"{name:<34}{count:>10,}")
    print(f"{'seconds':<34}{time.monotonic() - began:>10,.0f}")
    if report.violations:
        print(f"\n{report.log}")
    for violation in report.violations:
        print(f"VIOLATION {violation}")
    print("FAILED" if report.violations else "nothing was lost")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
