"""The command line of `run`.

Part of `engine.worker.cli`: options and help, and nothing else; only click is imported with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.worker.cli_types import SetType

if TYPE_CHECKING:
    from engine.worker.share import Share

_RUN = """\
Run a worker: deliver what is in the queue, and keep trying.

It tries again as the retry rules say. What was submitted is on disk, and stays there until it is delivered, given up or taken out by hand;
a worker that was killed goes on where it was. One line on standard output says that it is ready. Log
lines go to standard error, and every outcome of every attempt to the file that "outcomes" in [worker]
names; that file may be moved away at any time.

\b
Signals:
  TERM, INT  take nothing new, finish what is in flight ("drain_timeout" at
             most) and end; the second one ends at once, and loses no mail
  HUP        read the configuration again; a bad one is not taken, and the
             log says why
  USR1       say in the log how much is there, and what was done so far

With "processes" in [worker] above 1 there are as many workers, each with a store of its own beside the
first, and a parent that starts again those that die; ps -o pid,comm tells them apart. Under systemd: Type=notify, or notify-reload, and
WatchdogSec if you like."""

_RUN_EXITS = """\b
Exit status:
  0    it was told to end, or nothing was left to do
  64   bad usage
  66   the configuration or the store cannot be read: not permitted,
       damaged, or no store
  73   a file (lock, socket, log of outcomes, store) cannot be made or
       written to
  75   another worker is at the store, or the disk is full: try later
  78   bad configuration, a store of a later release, or mail in stores
       of processes that there are no more"""


class ShareType(click.ParamType["Share"]):
    """`NUMBER/COUNT`."""

    name = "number/count"

    def convert(
        self, value: str | Share, param: click.Parameter | None, ctx: click.Context | None
    ) -> Share:
        """Return the share; fail as bad usage when it is none."""
        from engine.worker.share import Share

        try:
            return Share.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(help=_RUN, epilog=_RUN_EXITS)
@click.option("--config", metavar="FILE", required=True, help="Configuration, TOML.")
@click.option(
    "--set", "sets", type=SetType(), multiple=True, metavar="KEY=VALUE", help="As for send."
)
@click.option(
    "--until-empty",
    is_flag=True,
    help="End when nothing is left to do, or the store turns out to be damaged; what is held does "
    "not count.",
)
@click.option("--share", type=ShareType(), hidden=True, help="Which process of its parent's.")
def run(*, config: str, sets: tuple[str, ...], until_empty: bool, share: Share | None) -> int:
    """Run `engine.worker.start`."""
    from engine.worker.start import RunOptions, run_worker

    return run_worker(RunOptions(config, sets, until_empty, share))
