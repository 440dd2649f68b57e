"""The command line of what looks at the queue and steers it: `queue …`, `status` and `config`.

Part of `engine.worker.cli`: options and help, and nothing else; only click is imported with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from engine.worker.cli_types import SetType

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.queue.values import Selection

_EXITS = """\b
Exit status:
  0    done
  64   bad usage
  66   the configuration cannot be read
  74   the queue cannot be opened, or is damaged
  75   not done, or not all shown; try again: the queue is busy, the disk full
       or read only
  78   bad configuration"""
_MESSAGE_EXITS = _EXITS.replace("be read\n", "be read, or there is no such message\n", 1)

_QUEUE = """\
Look at the queue of a worker, and steer it.

Whether the worker runs is no matter: these commands talk to it, or read the file themselves. Filters
select recipients; of several all must be met."""

_LIST = """\
List the recipients that are still there, in the order they came.

\b
Examples:
  delivery-engine queue list --config engine.toml --domain example.net
  delivery-engine queue list --config engine.toml --state held --json

With --json each is an object: "message", "recipient", "state" (queued, leased or held), "attempts",
"next_attempt", "last" (its last outcome, or null), "reason", what it was submitted with, and
"left_alone_until" and "left_alone_for" (where its site is backed off: until when, and why)."""

_SHOW = """\
Show a message and its recipients: their state, and why it is so.

Of each recipient it says when it is tried next, and what became of it last."""

_STATUS = """\
Show whether the worker runs, and what waits, site by site."""

_STATUS_EXITS = """\b
Exit status:
  0    every process runs, and is well
  66   the configuration cannot be read
  69   the worker does not run, or not all of its processes
  74   the queue cannot be opened, or is damaged
  75   it runs, and something is wrong with it: what, is shown
  78   bad configuration"""

_CONFIG = """\
Show every value in effect, and where it comes from.

That is the line of the file, --set, or the default. Of paths only what they change is shown. Secrets are not shown."""

_EXPORT = """\
Save all messages into a folder, even of a file that is damaged.

Each content becomes a file, and messages.jsonl a batch that `submit` takes again. Whether the worker
runs is no matter, and nothing is changed. What is damaged is said; its envelopes are in
damaged.jsonl."""

_EXPORT_EXITS = """\b
Exit status:
  0    all was saved
  64   bad usage, or a folder that is not empty
  66   the configuration cannot be read
  74   something is damaged, or cannot be written; the rest was saved
  78   bad configuration"""

_CHECK = """\
Look whether all that is in the queue can be read.

Says what cannot be. Reads every content, which takes long; the worker may run meanwhile."""

_WHAT: Final = {
    "retry": (
        "Try at once, whatever the retry rules say.\n\nA back-off of the recipients' sites ends.",
        "queue retry --config engine.toml --domain example.net",
    ),
    "hold": (
        "Keep until released.\n\nWhat is under way is kept unless that attempt ends it.",
        'queue hold --config engine.toml --job 12 --reason "bad link"',
    ),
    "release": (
        "Let go of what is held; it is due at once.",
        "queue release --config engine.toml --job newsletter-12",
    ),
    "cancel": (
        "Give up; senders are told as of any failure.\n\nThe log of outcomes gets a last line of each.",
        "queue cancel --config engine.toml --message 7",
    ),
    "purge": (
        "Delete, and tell nobody.\n\nThe log of outcomes gets a last line of each.",
        "queue purge --config engine.toml --recipient old@example.net",
    ),
}

_config = click.option("--config", metavar="FILE", required=True, help="Configuration, TOML.")
_json = click.option("--json", "as_json", is_flag=True, help="In JSON.")


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select recipients."""
    for option in reversed(
        (
            click.option("--message", metavar="ID", help="Of the message with this id."),
            click.option("--recipient", metavar="ADDR", help="With this address, just so."),
            click.option(
                "--domain", metavar="DOMAIN", help="Of this domain; *.DOMAIN: of its subdomains."
            ),
            click.option("--sender", metavar="ADDR", help='Of this reverse-path; "<>" is null.'),
            click.option("--tenant", metavar="NAME", help="Of this tenant."),
            click.option("--job", metavar="NAME", help="Of this job."),
            click.option(
                "--state",
                "states",
                multiple=True,
                type=click.Choice(["queued", "leased", "held"]),
                help="In this state; repeatable.",
            ),
        )
    ):
        command = option(command)
    return command


def _select(filters: dict[str, Any]) -> Selection:
    from engine.worker.selecting import select

    try:
        return select(**filters)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.group(help=_QUEUE)
def queue() -> None:
    """Hold the commands on the queue."""


@queue.command("list", help=_LIST, epilog=_EXITS)
@_config
@_filters
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Recipients at most; by default all with --json, and 100 without.",
)
@_json
def list_(*, config: str, limit: int | None, as_json: bool, **filters: Any) -> int:
    """Check the options and run `engine.worker.queue_list`."""
    selection = _select(filters)
    from engine.worker.queue_list import ListOptions, list_queue

    return list_queue(ListOptions(config=config, selection=selection, as_json=as_json, limit=limit))


@queue.command(help=_SHOW, epilog=_MESSAGE_EXITS)
@_config
@_json
@click.argument("message", metavar="ID")
def show(*, config: str, as_json: bool, message: str) -> int:
    """Run `engine.worker.queue_list`."""
    from engine.worker.queue_list import ShowOptions, show_message

    return show_message(ShowOptions(config=config, message=message, as_json=as_json))


def _add_action(name: str) -> None:
    text, example = _WHAT[name]
    is_told = name in ("hold", "cancel")

    def run(
        *,
        config: str,
        everybody: bool,
        as_json: bool,
        reason: str = "",
        **filters: Any,
    ) -> int:
        is_limited = any(value not in (None, ()) for value in filters.values())
        if is_limited is everybody:
            raise click.UsageError(
                "--all and filters exclude each other"
                if everybody
                else "at least one filter is needed, or --all"
            )
        selection = _select(filters)
        from engine.queue.values import Action, check_reason
        from engine.worker.queue_apply import ApplyOptions, apply

        # One line, as all reasons.
        reason = " ".join(reason.split())
        try:
            check_reason(reason)
        except ValueError as error:
            raise click.UsageError(f"--reason: {error}") from None
        return apply(
            ApplyOptions(
                config=config,
                action=Action(name),
                selection=selection,
                reason=reason,
                as_json=as_json,
            )
        )

    command: Any = _json(run)
    if is_told:
        option = click.option("--reason", default="", metavar="TEXT", help="Why, for queue show.")
        command = option(command)
    command = click.option("--all", "everybody", is_flag=True, help="All that there are.")(command)
    command = _config(_filters(command))
    help_text = f"{text}\n\nFilters say who; at least one is needed, or --all.\n\n\b\nExample:\n"
    made = click.command(
        name, help=f"{help_text}  delivery-engine {example}", epilog=_MESSAGE_EXITS
    )
    queue.add_command(made(command))


for _name in _WHAT:
    _add_action(_name)


@queue.command(epilog=_EXITS)
@_config
@click.option("--tenant", metavar="NAME", required=True, help="The tenant.")
@click.option("--job", metavar="NAME", help="One of its jobs; without it the tenant itself.")
@click.argument("weight", type=float)
def weight(*, config: str, tenant: str, job: str | None, weight: float) -> int:
    """Say how large a share a tenant, or one of its jobs, gets.

    A tenant has its share among tenants, and a job among its tenant's jobs.
    WEIGHT is above 0; whoever was given none has 1.
    """
    _select({"tenant": tenant, "job": job})
    from engine.worker.queue_apply import set_weight

    return set_weight(config, tenant, weight, job)


@queue.command(help=_EXPORT, epilog=_EXPORT_EXITS)
@_config
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def export(*, config: str, folder: Path) -> int:
    """Run `engine.worker.queue_export`."""
    from engine.worker.queue_export import export as run_export

    return run_export(config, folder)


@queue.command(help=_CHECK, epilog=_EXITS)
@_config
def check(*, config: str) -> int:
    """Run `engine.worker.queue_export`."""
    from engine.worker.queue_export import check as run_check

    return run_check(config)


@click.command(help=_STATUS, epilog=_STATUS_EXITS)
@_config
@_json
def status(*, config: str, as_json: bool) -> int:
    """Run `engine.worker.status`."""
    from engine.worker.status import StatusOptions, show_status

    return show_status(StatusOptions(config=config, as_json=as_json))


@click.command(
    help=_CONFIG,
    epilog="Exit status: 0; 64 bad usage; 66 the file cannot be read; 75 the output cannot be "
    "written; 78 bad configuration.",
)
@click.option("--config", metavar="FILE", help="Configuration, TOML; without it the defaults.")
@click.option(
    "--set", "sets", type=SetType(), multiple=True, metavar="KEY=VALUE", help="As for send."
)
@_json
def config(*, config: str | None, sets: tuple[str, ...], as_json: bool) -> int:
    """Run `engine.worker.config_show`."""
    from engine.worker.config_show import show_config

    return show_config(config, sets, as_json=as_json)
