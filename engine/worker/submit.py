"""The command `submit`: put messages into the queue of a worker, whether it runs or not.

Called by the command line with options that were understood, and by `engine.worker.sendmail`.  A
message is accepted when it is on disk.  Not here: where the queue is (`engine.worker.shards`), and
the input (`engine.worker.intake`).
"""

from __future__ import annotations

import json
import secrets
import signal
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from engine.errors import SubmitError
from engine.nursery import tasks_beside
from engine.queue.errors import (
    StoreDamagedError,
    StoreError,
    StoreUnusableError,
)
from engine.queue.submission import Submission
from engine.units import parse_moment
from engine.worker.batch import Wishes
from engine.worker.desk import Refused
from engine.worker.exits import Exit, Incidents
from engine.worker.gathering import Gathering
from engine.worker.given import read_config
from engine.worker.intake import STDIN, Batch, CommandLine
from engine.worker.output import open_output
from engine.worker.shards import open_shards
from engine.worker.summary import printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from engine.message import Message
    from engine.worker.config import Config
    from engine.worker.desk import Answer
    from engine.worker.intake import Say
    from engine.worker.output import Output
    from engine.worker.shards import Shards

#: Groups under way at a time: while one is written to disk the next are made.
_GROUPS: Final = 4
#: Messages and octets of one group.
_GROUP_MESSAGES: Final = 500
_GROUP_OCTETS: Final = 4 * 1024 * 1024
#: Messages and octets that were read and are not on disk yet.
_AHEAD_MESSAGES: Final = 2000
_AHEAD_OCTETS: Final = 32 * 1024 * 1024
#: What an envelope takes besides its content, about.
_ENVELOPE_OCTETS: Final = 256

_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """The options of `submit`, as `engine.worker.cli` describes them.

    Attributes:
        config: The configuration file.
        recipients: Forward-paths; empty with `batch`.
        sender: The reverse-path; `None` with `batch`.
        message: The content's file or `-`; `None`: `-`.
        batch: The batch file or `-`; `None`: there is none.
        from_header: Whether recipients stand in the header section as well.
        id: The id of the one message; `None`: it gets one of its own.
        wishes: How messages are queued, where their lines do not say.
        as_json: One JSON object a message.
        stdout: Descriptor for results.
        stderr: Descriptor for everything else.
    """

    config: str | None
    recipients: tuple[str, ...] = ()
    sender: str | None = None
    message: str | None = None
    batch: str | None = None
    from_header: bool = False
    id: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    as_json: bool = False
    stdout: int = 1
    stderr: int = 2


@dataclass(frozen=True, slots=True)
class Letter:
    """A message on its way into the queue.

    Attributes:
        message: It, with the id it will have.
        wishes: How it is to be queued.
        place: Where it comes from, for whoever reads an error: `FILE line N`; empty where there is
            but one.
        is_named: Whether its id was given, and not made here.
    """

    message: Message
    wishes: Wishes
    place: str = ""
    is_named: bool = True


def submit(options: SubmitOptions) -> int:
    """Run `submit` and return its exit status."""
    config = read_config(options.config, ())
    if isinstance(config, Exit):
        return config
    return trio.run(put_in, options, config)


async def put_in(
    options: SubmitOptions, config: Config, *, clock: Callable[[], float] = time.time
) -> Exit:
    """Run `submit` with a configuration that was read.

    Args:
        options: Those of the input and the output are used.
        config: Says where the queue is.
        clock: Wall clock, seconds since the epoch.
    """

    def read(say: Say, incidents: Incidents) -> AsyncGenerator[Letter, None]:
        if options.batch is not None:
            return _letters_of_batch(options, say, incidents)
        return _letter(options, config, say, incidents)

    return await submit_all(
        read,
        config,
        as_json=options.as_json,
        stdout=options.stdout,
        stderr=options.stderr,
        clock=clock,
    )


async def submit_all(
    read: Callable[[Say, Incidents], AsyncGenerator[Letter, None]],
    config: Config,
    *,
    as_json: bool = False,
    is_quiet: bool = False,
    stdout: int = 1,
    stderr: int = 2,
    clock: Callable[[], float] = time.time,
) -> Exit:
    """Submit letters, say what became of each, and return the exit status.

    The first SIGINT or SIGTERM ends the reading, and what was read is submitted; the second ends
    that as well.

    Args:
        read: Gives the letters; gets where to say what is wrong, and where to note it.
        config: Says where the queue is.
        as_json: One JSON object a message, in place of lines for a person.
        is_quiet: Nothing on standard output.
        stdout: Descriptor for results.
        stderr: Descriptor for everything else.
        clock: Wall clock, seconds since the epoch.
    """
    async with (
        open_output(stderr) as err,
        open_output(stdout) as out,
        open_shards(config, "submit") as shards,
    ):
        this = _Run(shards, _Report(out, err, as_json=as_json, is_quiet=is_quiet), clock)
        await this.to_the_end(read)
        this.conclude()
        await out.flush()
        this.incidents.is_unheard = out.broken.is_set()
        if out.complaint is not None:
            err.put(f"{out.complaint}\n")
    return this.exit_status()


class _Run:
    """The tasks of a run, and what they share."""

    def __init__(self, shards: Shards, report: _Report, clock: Callable[[], float]) -> None:
        self.incidents = Incidents()
        self._shards = shards
        self._report = report
        self._clock = clock
        self._line: Gathering[tuple[Letter, Submission]] = Gathering(
            most=_AHEAD_MESSAGES, octets=_AHEAD_OCTETS
        )
        self._intake = trio.CancelScope()
        self._all = trio.CancelScope()
        self._trouble: StoreError | None = None
        self._started = trio.current_time()

    async def to_the_end(
        self, read: Callable[[Say, Incidents], AsyncGenerator[Letter, None]]
    ) -> None:
        async with tasks_beside() as nursery:
            await nursery.start(self._heed_signals)
            nursery.start_soon(self._heed_reader)
            with self._all:
                async with trio.open_nursery() as inner:
                    for _ in range(_GROUPS):
                        inner.start_soon(self._submit)
                    with self._intake:
                        await self._feed(read(self._report.say, self.incidents))
                    self._line.close()

    def conclude(self) -> None:
        """Say what there is to say at the end."""
        if self._trouble is not None:
            self._report.say(f"{self._trouble}")
            self._report.say("what was not accepted can be submitted again, and the rest as well")
        self._report.conclude(trio.current_time() - self._started)

    def exit_status(self) -> Exit:
        incidents = self.incidents
        if incidents.is_interrupted:
            return Exit.INTERRUPTED
        if self._trouble is not None:
            is_lasting = isinstance(self._trouble, StoreUnusableError | StoreDamagedError)
            return Exit.IO_ERROR if is_lasting else Exit.DEFERRED
        if incidents.has_bad_data:
            return Exit.DATA
        if incidents.has_unreadable_file:
            return Exit.NO_INPUT
        return Exit.DEFERRED if incidents.is_unheard else Exit.DELIVERED

    # -- tasks

    async def _feed(self, letters: AsyncGenerator[Letter, None]) -> None:
        async with aclosing(letters):
            async for letter in letters:
                submission = self._make(letter)
                if submission is not None:
                    octets = len(letter.message.content.octets or b"") + _ENVELOPE_OCTETS
                    await self._report.room()
                    await self._line.put((letter, submission), octets)

    def _make(self, letter: Letter) -> Submission | None:
        now = self._clock()
        wishes = letter.wishes
        try:
            not_before, deadline = (
                None if moment is None else parse_moment(moment, now)
                for moment in (wishes.not_before, wishes.deadline)
            )
            if not_before is not None and deadline is not None and deadline <= not_before:
                raise SubmitError("deadline: found one before not_before; allowed is one behind it")
            return Submission(
                message=letter.message,
                submitted_at=now,
                tenant=wishes.tenant or "",
                job=wishes.job or "",
                priority=wishes.priority or 0,
                not_before=not_before,
                deadline=deadline,
                is_held=bool(wishes.hold),
            )
        except ValueError as error:
            self._refuse(letter, str(error))
            return None

    async def _submit(self) -> None:
        while taken := await self._line.take(_GROUP_MESSAGES, _GROUP_OCTETS):
            letters = [letter for (letter, _), _ in taken]
            try:
                if self._trouble is not None:
                    raise self._trouble
                answers = await self._shards.submit([submission for (_, submission), _ in taken])
            except StoreError as error:
                self._trouble = self._trouble or error
                self._intake.cancel()
                for letter in letters:
                    self._report.not_taken(letter, self._trouble)
            else:
                for letter, answer in zip(letters, answers, strict=True):
                    self._note(letter, answer)
            self._line.done(sum(octets for _, octets in taken))

    def _note(self, letter: Letter, answer: Answer) -> None:
        if isinstance(answer, Refused):
            self._refuse(letter, answer.text)
        else:
            self._report.accepted(letter, is_new=answer.is_new)

    def _refuse(self, letter: Letter, text: str) -> None:
        self.incidents.has_bad_data = True
        self._report.refused(letter, text)

    async def _heed_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            await anext(signals)
            self.incidents.is_interrupted = True
            self._intake.cancel()
            await anext(signals)
            self._all.cancel()

    async def _heed_reader(self) -> None:
        await self._report.out.broken.wait()
        self._intake.cancel()


class _Report:
    """Says what became of messages."""

    def __init__(self, out: Output, err: Output, *, as_json: bool, is_quiet: bool) -> None:
        self.out = out
        self._err = err
        self._as_json = as_json
        self._is_quiet = is_quiet
        self._new = self._known = self._refused = self._left = 0

    def say(self, text: str) -> None:
        self._err.put(f"{text}\n")

    async def room(self) -> None:
        await self.out.room()
        await self._err.room()

    def accepted(self, letter: Letter, *, is_new: bool) -> None:
        self._new += is_new
        self._known += not is_new
        if self._as_json:
            self._put({"message": letter.message.id, "accepted": True})
        elif not self._is_quiet and not (letter.is_named and letter.place):
            known = "" if is_new else " (it was known already)"
            self.out.put(f"accepted {printable(letter.message.id)}{known}\n")

    def refused(self, letter: Letter, text: str) -> None:
        self._refused += 1
        place = letter.place or f"message {printable(letter.message.id)}"
        self.say(f"{place}: {printable(text)}")
        if self._as_json:
            self._put({"message": letter.message.id, "accepted": False, "error": text})

    def not_taken(self, letter: Letter, error: StoreError) -> None:
        self._left += 1
        if self._as_json:
            self._put({"message": letter.message.id, "accepted": False, "error": str(error)})

    def conclude(self, seconds: float) -> None:
        total = self._new + self._known
        if self._as_json or self._is_quiet or (total == 1 and not self._refused + self._left):
            return
        parts = [f"{total:,} message{'' if total == 1 else 's'} accepted"]
        parts += [f"{self._known:,} of them known already"] if self._known else []
        parts += [f"{self._refused:,} refused"] if self._refused else []
        parts += [f"{self._left:,} not taken"] if self._left else []
        parts.append(f"{seconds:.1f} s")
        parts += [f"{total / seconds:,.0f}/s"] if total >= 100 and seconds > 0 else []
        self.out.put(" · ".join(parts) + "\n")

    def _put(self, record: dict[str, object]) -> None:
        self.out.put(_ENCODER.encode(record) + "\n")


# ---- where letters come from --------------------------------------------------------------------


async def _letters_of_batch(
    options: SubmitOptions, say: Say, incidents: Incidents
) -> AsyncGenerator[Letter, None]:
    assert options.batch is not None
    batch = Batch(options.batch, say, incidents, is_for_queue=True)
    name = "<stdin>" if options.batch == STDIN else printable(options.batch)
    async with aclosing(batch.items()) as items:
        async for item in items:
            is_named = item.entry.id is not None
            message = item.message if is_named else item.message.with_id(new_id())
            wishes = _merged(item.entry.wishes, options.wishes)
            yield Letter(message, wishes, f"{name} line {item.line}", is_named)


def _merged(own: Wishes | None, general: Wishes) -> Wishes:
    """Lay what a line says over what the command line says."""
    if own is None or own == _NO_WISHES:
        return general
    return Wishes(
        **{
            name: getattr(general if getattr(own, name) is None else own, name)
            for name in Wishes.__slots__
        }
    )


_NO_WISHES: Final = Wishes()


async def _letter(
    options: SubmitOptions, config: Config, say: Say, incidents: Incidents
) -> AsyncGenerator[Letter, None]:
    name = options.id or new_id()
    is_named = options.id is not None
    if options.from_header:
        from engine.worker.sendmail import letter_with_header

        source = letter_with_header(options, config, say, incidents)
    else:
        file = STDIN if options.message is None else options.message
        source = CommandLine(
            options.sender or "", options.recipients, file, say, incidents
        ).messages()
    async with aclosing(source) as messages:
        async for message in messages:
            yield Letter(message.with_id(name), options.wishes, is_named=is_named)


def new_id() -> str:
    """Return an id that no other message has: 20 characters, and ids of one machine sort by time."""
    number = (time.time_ns() // 1_000_000) << 55 | secrets.randbits(55)
    return "".join(_DIGITS[number >> shift & 31] for shift in range(95, -1, -5))


#: Base 32 without letters that look like digits.
_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
