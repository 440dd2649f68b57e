"""The command line of what puts mail into the queue: `submit` and `sendmail`.

Part of `engine.worker.cli`: options and help, and nothing else; only click is imported with it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

SUBMIT = """\
Put messages into the queue of a worker, whether it runs or not.

One message to the RECIPIENTs, or with --batch as many as the file has lines. A message is accepted
once it is on disk; the worker delivers it from there. Submitting a message again under the same id
is harmless: it is accepted and not delivered twice, so whoever was interrupted repeats the whole
batch. Results go to standard output, everything else to standard error.

\b
Examples:
  delivery-engine submit --config engine.toml --sender me@example.org \\
      --message letter.eml you@example.net
  delivery-engine submit --config engine.toml --job newsletter-12 \\
      --batch list.jsonl --json > accepted.jsonl
  generate | delivery-engine submit --config engine.toml --batch -

\b
A line of a batch file is as for send, and may have besides:
  "tenant", "job"           whose mail it is, and what it is part of
  "priority"                -9 to 9; a higher one goes first
  "not_before", "deadline"  a time with its zone, seconds since the epoch,
                            or a time from now such as "30m"
  "hold"                    true: keep it until `queue release`

What a line does not say is as the options say. Without "id" a message gets one of its own, which
is printed."""

SUBMIT_EXITS = """\b
Exit status:
  0    every message is on disk
  64   bad usage
  65   bad input data: a malformed batch line, address or content, one that
       is too large, or an id that stands for another message already;
       it is reported and the rest is taken
  66   a named file cannot be read
  74   the queue cannot be opened, or is damaged
  75   not all was taken, mostly because the disk is full: submit it again;
       also when nobody reads standard output any more
  78   bad configuration; nothing was taken
  130  interrupted; what was read before was taken
Where several apply: 130, then 75, 74, 65, 66."""


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | float | None:
    """Check a moment; a number is seconds since the epoch."""
    del ctx, param
    if value is None:
        return None
    from engine.units import parse_moment

    moment: str | float = value
    with suppress(ValueError):
        moment = float(value)
    try:
        parse_moment(moment, 0.0)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; allowed is {error}") from None
    return moment


@click.command(help=SUBMIT, epilog=SUBMIT_EXITS)
@click.option("--config", metavar="FILE", required=True, help="Configuration, TOML.")
@click.option("--sender", metavar="ADDR", help='Reverse-path; "<>" or "" is the null path.')
@click.option(
    "--message", metavar="FILE", help="The content, RFC 5322; - (default) is standard input."
)
@click.option(
    "-t",
    "--from-header",
    is_flag=True,
    help="Send also to those whom To, Cc and Bcc name, and take Bcc out; where there are Resent- "
    "fields, to those of the last resending. Date and Message-ID are added where they are missing.",
)
@click.option(
    "--batch", metavar="FILE", help="JSON Lines, one message a line; - is standard input."
)
@click.option("--id", "name", metavar="ID", help="The message's id; without it one is made.")
@click.option("--tenant", metavar="NAME", help="Whose mail it is; tenants share what can be sent.")
@click.option(
    "--job", metavar="NAME", help="What it is part of; jobs share what their tenant can send."
)
@click.option(
    "--priority", type=click.IntRange(-9, 9), help="-9 to 9; a higher one goes first, always."
)
@click.option(
    "--not-before", callback=moment, metavar="WHEN", help="Do not try earlier: a time, or 30m."
)
@click.option(
    "--deadline", callback=moment, metavar="WHEN", help="Give up then: a time, or 2d from now."
)
@click.option("--hold", is_flag=True, help="Keep it until `queue release`.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a message, as it is accepted."
)
@click.argument("recipients", nargs=-1, metavar="[RECIPIENT]...")
def submit(
    *,
    config: str,
    sender: str | None,
    message: str | None,
    from_header: bool,
    batch: str | None,
    name: str | None,
    as_json: bool,
    recipients: tuple[str, ...],
    **wishes: Any,
) -> int:
    """Check the options and run `engine.worker.submit`."""
    _check_usage(sender, message, batch, recipients, from_header=from_header, name=name)
    from engine.worker.batch import Wishes
    from engine.worker.submit import SubmitOptions
    from engine.worker.submit import submit as run_submit

    wishes["hold"] = wishes["hold"] or None
    return run_submit(
        SubmitOptions(
            config=config,
            recipients=recipients,
            sender=sender,
            message=message,
            batch=batch,
            from_header=from_header,
            id=name,
            wishes=Wishes(**wishes),
            as_json=as_json,
        )
    )


def _check_usage(
    sender: str | None,
    message: str | None,
    batch: str | None,
    recipients: tuple[str, ...],
    *,
    from_header: bool,
    name: str | None,
) -> None:
    if batch is None:
        if not recipients and not from_header:
            raise click.UsageError("RECIPIENT, --batch or -t is needed")
        if sender is None:
            raise click.UsageError('--sender is needed; --sender "<>" is the null path')
        return
    others = {
        "RECIPIENT": bool(recipients),
        "--message": message is not None,
        "--sender": sender is not None,
        "--id": name is not None,
        "-t": from_header,
    }
    for other, is_given in others.items():
        if is_given:
            raise click.UsageError(f"--batch and {other} exclude each other; the batch has it all")


class _AsItComes(click.Command):
    """A command whose flags are not click's to understand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        ctx.params = {}
        return []


@click.command(cls=_AsItComes, short_help="Be what programs call as sendmail.")
@click.pass_context
def sendmail(ctx: click.Context) -> int:
    """Run `engine.worker.sendmail` with all arguments as they are."""
    from engine.worker.sendmail import sendmail as run_sendmail

    return run_sendmail(ctx.args)
