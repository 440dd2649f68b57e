"""`python -m engine`, and the console script `delivery-engine`."""

from __future__ import annotations

import gc
import os
import sys

import click

from engine.worker.cli import cli
from engine.worker.descriptors import occupy_standard_descriptors

_INTERRUPTED = 130
#: Objects that come between two looks of the garbage collector; by default it is 700.
_COLLECT_AFTER = 50_000
#: Leaves a terminal as it was found: a live display hides the cursor.
_SHOW_CURSOR = "\x1b[?25h"


def main() -> None:
    """Run the command line and exit with its status."""
    occupy_standard_descriptors()
    # A message is a hundred objects, none of them in a cycle: by default the collector would look
    # at every few messages, and find nothing.
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    try:
        status = cli.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        status = os.EX_USAGE
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = _INTERRUPTED
    except BaseExceptionGroup as group:
        # Trio hands the interrupt up in a group where several tasks were told of it.
        interrupts, others = group.split(KeyboardInterrupt)
        if interrupts is None or others is not None:
            raise
        status = _INTERRUPTED
    if status == _INTERRUPTED and sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
    sys.exit(status)


if __name__ == "__main__":
    main()
