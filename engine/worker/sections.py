"""The sections of the worker in the configuration: `[queue]`, `[worker]` and `[tls_reports]`.

Read by `engine.worker.config`; whoever runs the worker, or talks to one, is given them.
Not here: settings for hosts (`engine.settings`), and `[[retry]]` (`engine.queue.retry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, PlainValidator

from engine.queue.decision import Unknown
from engine.report.bounce import BounceSettings
from engine.setting_types import Flag, Limit, Seconds, one_of, refusal
from engine.showing import show
from engine.units import (
    DAYS,
    DURATION_ALLOWED,
    HOURS,
    OCTETS_ALLOWED,
    parse_duration,
    parse_octets,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Bounce: TypeAlias = Literal["report", "event", "both"]
LogFormat: TypeAlias = Literal["text", "json"]
UnknownWord: TypeAlias = Literal["retry", "assume-delivered", "hold"]

#: Of one worker.
MAX_PROCESSES: Final = 64
#: What stands beside a store, by what its name ends in: SQLite's own, and locks.
_BESIDE_STORE: Final = ("-wal", "-shm", "-journal", ".lock", ".parent.lock", ".removals.lock")


def _file(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise refusal(show(value), "a file name")
    return value


def _processes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PROCESSES:
        return value
    raise refusal(show(value), f"a whole number from 1 to {MAX_PROCESSES}")


def _waits(value: object) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    try:
        return tuple(sorted(map(parse_duration, values)))
    except ValueError:
        allowed = f"{DURATION_ALLOWED}; or a list of them, an empty one for never"
        raise refusal(show(value), allowed) from None


def _octets(value: object) -> int:
    try:
        return parse_octets(value)
    except ValueError:
        raise refusal(show(value), OCTETS_ALLOWED) from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise refusal(show(value), "a text of one line")
    return value


def _own_name(value: object) -> str | None:
    if value is None or value == "":
        return None
    try:
        BounceSettings(str(value))
    except ValueError:
        raise refusal(show(value), "a domain name or an address literal") from None
    return str(value)


def _mailbox(value: object) -> str | None:
    if value is None or value == "":
        return None
    try:
        BounceSettings("localhost", str(value))
    except ValueError:
        raise refusal(show(value), "a mailbox in US-ASCII") from None
    return str(value)


FileName = Annotated[str, PlainValidator(_file)]
Line = Annotated[str, PlainValidator(_text)]


class Section(BaseModel):
    """A section; unknown names and unusable values are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class QueueSection(Section):
    """`[queue]`: what is kept, and what becomes of it."""

    #: The durable store; relative to the configuration file.
    path: FileName = "spool.sqlite"
    #: What becomes of a recipient that may have been delivered, or may not.
    unknown: Annotated[UnknownWord, one_of(UnknownWord)] = "retry"
    #: How senders are told what became of their mail: by mail (RFC 3464 §2), by a line for each report
    #: in the log of outcomes, or both.
    bounce: Annotated[Bounce, one_of(Bounce)] = "report"
    #: The name of this host in reports; `None`: `helo_name`, else the host's own.
    bounce_name: Annotated[str | None, PlainValidator(_own_name)] = None
    #: From whom reports are; `None`: `MAILER-DAEMON@` and the name.
    bounce_from: Annotated[str | None, PlainValidator(_mailbox)] = None
    #: After how long a wait senders are warned.  Sendmail: 4h.
    warn_after: Annotated[tuple[float, ...], PlainValidator(_waits)] = (4 * HOURS,)
    #: Contents up to this size are returned whole.  Postfix: 50000.
    return_octets: Limit = 50 * 1024
    #: Contents up to this size are taken in.  Postfix: 10240000; Exim: 50M.
    max_message_octets: Annotated[int, PlainValidator(_octets)] = 50 * 1024 * 1024
    #: For how long ids are known after their messages are done with: as long, a batch can be
    #: repeated without harm.
    remember: Seconds = 3 * DAYS

    @property
    def unknown_policy(self) -> Unknown:
        """`unknown` as the scheduler takes it."""
        return Unknown(self.unknown)


class WorkerSection(Section):
    """`[worker]`: the process."""

    #: Where the command line talks to the running worker; relative to the configuration file.
    socket: FileName = "engine.sock"
    #: How many processes share the work, each with its own store.
    processes: Annotated[int, PlainValidator(_processes)] = 1
    #: Every outcome of every attempt, one JSON object a line; relative to the configuration file.
    outcomes: FileName = "outcomes.jsonl"
    #: What was learned of hosts; it may be deleted at any time.
    state: FileName = "state.sqlite"
    #: Recipients in work at a time, in each process.
    seats: Limit = 1000
    #: How long a worker that is told to stop finishes what it has begun.
    drain_timeout: Seconds = 60.0
    #: How log lines are written to standard error.
    log: Annotated[LogFormat, one_of(LogFormat)] = "text"
    #: Whether outcomes in their log have their SMTP dialogues.
    transcripts: Flag = False


class TlsReportsSection(Section):
    """`[tls_reports]`: who tells receivers how TLS with them went (RFC 8460 §5)."""

    #: What the organization is called.
    organization: Line
    #: A mailbox to write to about reports; they are sent from it.
    contact: Annotated[str | None, PlainValidator(_mailbox)]
    #: Letters and digits that tell this worker from others of the same domain.
    unique: Line = "1"


def shard_file(base: Path, name: str, shard: int) -> Path:
    """Return the file of one process: the first has the plain name, others their number in it.

    Args:
        base: The folder that names are relative to.
        name: As configured.
        shard: The process, from 1.
    """
    path = base / name
    return path if shard == 1 else path.with_name(f"{path.stem}-{shard}{path.suffix}")


def all_files(base: Path, queue: QueueSection, worker: WorkerSection) -> Iterator[tuple[str, Path]]:
    """Yield every file that processes of a worker write to, with the key that names it.

    Args:
        base: The folder that names are relative to.
        queue: Names the store.
        worker: Names the others.
    """
    numbers = range(1, worker.processes + 1)
    for key, name in (("queue.path", queue.path), ("worker.state", worker.state)):
        for number in numbers:
            file = shard_file(base, name, number)
            yield key, file
            for end in _BESIDE_STORE:
                yield key, file.with_name(f"{file.name}{end}")
    for number in numbers:
        yield "worker.socket", shard_file(base, worker.socket, number)
    yield "worker.outcomes", base / worker.outcomes
