"""The command line: options, help, and nothing else.

Only click and the standard library are imported with this module and those beside it
(`engine.worker.cli_submit`, `engine.worker.cli_queue`); each command imports what it
needs, so that `--help` is there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from engine.worker.cli_queue import config, queue, status
from engine.worker.cli_run import run
from engine.worker.cli_submit import sendmail, submit
from engine.worker.cli_types import SetType

_Command = TypeVar("_Command", bound=Callable[..., Any])

_EXITS = """\b
Exit status:
  0    all were delivered
  64   bad usage
  65   bad input data: a malformed batch line, address or content;
       it is reported and the rest is sent
  66   a named file cannot be read
  69   something failed for good
  75   something is deferred or unknown, and nothing failed;
       also when nobody reads standard output any more
  78   bad configuration; nothing was sent
  130  interrupted, after a clean drain
Where several apply: 130, then 65, 66, 69, 75."""


_SEND = """\
Deliver now, and say what became of every recipient.

One message to the RECIPIENTs, or with --batch as many as the file has lines. There is one delivery
attempt for each recipient; messages to the same site share connections. Results go to standard
output, everything else to standard error. A first interrupt (Ctrl-C, SIGTERM) stops reading and
finishes what is in flight, a second one stops at once.

\b
Examples:
  delivery-engine send --sender me@example.org --message letter.eml \\
      you@example.net
  delivery-engine send --host 127.0.0.1:2525 --batch list.jsonl \\
      --json > outcomes.jsonl
  generate | delivery-engine send --config engine.toml --batch -

\b
A line of a batch file:
  {"id": "7", "sender": "me@example.org",
   "recipients": ["you@example.net"], "message": "letter.eml"}

In place of "message", a path relative to the batch file, there may be "content" (text) or
"content_base64". Optional: "envid", "ret" ("full" or "hdrs"), "require_tls", "smtputf8". A
recipient may be an object: {"address": "...", "notify": ["failure", "delay"], "orcpt": "rfc822;..."}.
Without "id" a message is named by its position, from 1."""


_VERIFY = """\
Ask whether addresses would be taken, and send nothing.

Hosts are walked as for mail; MAIL and RCPT are said to them, and QUIT. What they answer is believed
for a while where --state keeps it. Hosts may put off or refuse those who only ask."""

_VERIFY_EXITS = """\b
Exit status: as of send; 0 when all would be taken."""


_EXPLAIN = """\
Say what would happen to mail for each ADDRESS, and why. Nothing is sent.

An ADDRESS is a mailbox or a domain alone. Shown is where its mail would go (MX records or the static
route, hosts, addresses, the order they would be tried in), which settings hold, and what TLS each
host must show and who demands that (TLSA records, MTA-STS policy, settings). For that name servers
are asked, and servers of MTA-STS policies.

With --probe each address that would be tried is looked at as well: connect, EHLO, STARTTLS, QUIT. No
mail is begun and no password is used. It shows the certificate, what each policy makes of it, what
the host offers, and how long it all takes; nothing is waited for longer than 30 seconds.

\b
Examples:
  delivery-engine explain you@example.net
  delivery-engine explain --probe --config engine.toml example.net
  delivery-engine explain --host smarthost.example:587 --probe --json \\
      you@example.net

With --json there is one object a line for each ADDRESS, in their order."""

_EXPLAIN_EXITS = """\b
Exit status:
  0    mail would be tried for all of them
  64   bad usage
  65   a malformed ADDRESS; the others are explained
  66   the configuration cannot be read
  69   some mail could never be delivered as things are: no such domain,
       a null MX, or policies that rule out every host
  75   some mail would have to wait: trouble with name servers, or with
       --probe no host that would take it
  78   bad configuration
  130  interrupted
Where several apply: 65, then 69, 75."""


class HostType(click.ParamType[str]):
    """`HOST[:PORT]` or `unix:/PATH`."""

    name = "host[:port]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text when it is a host; fail as bad usage when not."""
        from engine.routing.table import parse_host

        try:
            parse_host(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"delivery-engine {version('delivery-engine')}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Deliver mail over SMTP, and say what became of every recipient.

    See it work, on this machine alone: python -m engine demo
    """


_WHERE_AND_HOW = (
    click.option(
        "--host",
        "hosts",
        multiple=True,
        type=HostType(),
        metavar="HOST[:PORT]",
        help="Use this host instead of looking up MX records; repeat it for hosts to fall back on, "
        "in this order. A name, 192.0.2.1, [2001:db8::1]:2525, or unix:/PATH for a Unix socket.",
    ),
    click.option("--config", metavar="FILE", help="Configuration, TOML."),
    click.option(
        "--set",
        "sets",
        type=SetType(),
        multiple=True,
        metavar="KEY=VALUE",
        help="One setting, for all hosts: over those of the configuration, [[paths]] included; "
        "repeatable. The value is read as TOML, else taken as text.",
    ),
    click.option(
        "--state",
        metavar="FILE",
        help="SQLite file that keeps between runs what was learned of hosts and addresses; it may be "
        "deleted at any time. Without it that is forgotten at the end.",
    ),
)


def _where_and_how(command: _Command) -> _Command:
    """Add the options that say where mail goes, and by which settings."""
    for option in reversed(_WHERE_AND_HOW):
        command = option(command)
    return command


@cli.command(help=_SEND, epilog=_EXITS)
@click.option("--sender", metavar="ADDR", help='Reverse-path; "<>" or "" is the null path.')
@click.option(
    "--message",
    metavar="FILE",
    help="The content, RFC 5322; - (default) is standard input. It is sent as it is, with any Bcc.",
)
@click.option(
    "--batch", metavar="FILE", help="JSON Lines, one message a line; - is standard input."
)
@_where_and_how
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a recipient, as each is known."
)
@click.option("--transcript", is_flag=True, help="With each outcome, the SMTP dialogue.")
@click.option(
    "--log",
    type=click.Choice(["text", "json", "off"]),
    help="Log lines on standard error; by default text, and none beside a live progress display.",
)
@click.argument("recipients", nargs=-1, metavar="[RECIPIENT]...")
def send(
    *,
    sender: str | None,
    message: str | None,
    batch: str | None,
    hosts: tuple[str, ...],
    config: str | None,
    sets: tuple[str, ...],
    state: str | None,
    as_json: bool,
    transcript: bool,
    log: str | None,
    recipients: tuple[str, ...],
) -> int:
    """Check the options and run `engine.worker.send`."""
    _check_usage(sender, message, batch, recipients)
    from engine.worker.run import Manner
    from engine.worker.send import SendOptions
    from engine.worker.send import send as run_send

    manner = Manner(as_json=as_json, transcripts=transcript, log=log)  # type: ignore[arg-type]
    return run_send(
        SendOptions(recipients, sender, message, batch, hosts, config, sets, state, manner)
    )


def _check_usage(
    sender: str | None, message: str | None, batch: str | None, recipients: tuple[str, ...]
) -> None:
    if batch is None:
        if not recipients:
            raise click.UsageError("RECIPIENT or --batch is needed")
        if sender is None:
            raise click.UsageError('--sender is needed; --sender "<>" is the null path')
        return
    for given, name in ((recipients, "RECIPIENT"), (message, "--message"), (sender, "--sender")):
        if given or (given is not None and name != "RECIPIENT"):
            raise click.UsageError(f"--batch and {name} exclude each other; the batch has it all")


@cli.command(help=_VERIFY, epilog=_VERIFY_EXITS)
@click.option(
    "--sender",
    metavar="ADDR",
    default="<>",
    help='Reverse-path to ask with; default "<>", the null path.',
)
@_where_and_how
@click.option("--json", "as_json", is_flag=True, help="One JSON object an address.")
@click.option(
    "--catch-all",
    is_flag=True,
    help="Also ask about an address that cannot exist: a host that would take that takes any.",
)
@click.option("--fresh", is_flag=True, help="Ask again what was answered before.")
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
def verify(
    *,
    sender: str,
    hosts: tuple[str, ...],
    config: str | None,
    sets: tuple[str, ...],
    state: str | None,
    as_json: bool,
    catch_all: bool,
    fresh: bool,
    addresses: tuple[str, ...],
) -> int:
    """Check the options and run `engine.worker.verify`."""
    from engine.smtp.address import parse_reverse_path
    from engine.worker.verify import VerifyOptions
    from engine.worker.verify import verify as run_verify

    try:
        parse_reverse_path(sender)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--sender") from None
    return run_verify(
        VerifyOptions(addresses, sender, hosts, config, sets, state, as_json, catch_all, fresh)
    )


@cli.command(help=_EXPLAIN, epilog=_EXPLAIN_EXITS)
@_where_and_how
@click.option("--probe", "probes", is_flag=True, help="Connect to the hosts and look at them, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an address.")
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
def explain(
    *,
    hosts: tuple[str, ...],
    config: str | None,
    sets: tuple[str, ...],
    state: str | None,
    probes: bool,
    as_json: bool,
    addresses: tuple[str, ...],
) -> int:
    """Run `engine.worker.explain`."""
    from engine.worker.explain import ExplainOptions
    from engine.worker.explain import explain as run_explain

    return run_explain(ExplainOptions(addresses, hosts, config, sets, state, as_json, probes))


@cli.command()
@click.option(
    "--messages",
    type=click.IntRange(1),
    default=5000,
    show_default=True,
    help="How many to send.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many connections to use at most.",
)
def demo(messages: int, connections: int) -> int:
    """Send mail to a sink on this machine, and watch.

    Starts a mail sink on a free loopback port, sends personalised messages through the whole
    engine, some of them to recipients that the sink refuses, and shows what became of them.
    """
    from engine.worker.demo import demo as run_demo

    return run_demo(messages, connections)


for _command in (run, submit, sendmail, queue, status, config):
    cli.add_command(_command)
