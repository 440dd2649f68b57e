from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from engine.outcome import Status
from engine.queue import decision
from engine.queue.decision import Policy, Settled
from engine.queue.values import LeasedMessage, LeasedRecipient
from engine.testing.clock import FakeClock
from engine.units import timestamp
from engine.worker.outcome_log import OutcomeLog, outcome_record
from tests.left_behind import descriptors
from tests.queue.mail import START, mail, outcome

if TYPE_CHECKING:
    from pathlib import Path

CLOCK = FakeClock(1_700_000_000.1234)
NOW = "2023-11-14T22:13:20.123Z"


def settled(address: str = "a@one.test", *, status: Status = Status.DELIVERED) -> Settled:
    message = LeasedMessage(
        message=mail(address, id="x").message,
        recipients=(
            LeasedRecipient(
                number=7, address=address, site="one.test", attempts=2, first_attempt_at=START
            ),
        ),
        lease=3,
        submitted_at=START,
    )
    found = outcome(status, recipient=address, code=250 if status is Status.DELIVERED else 450)
    return decision.settle(Policy(), message, 0, found, 1_700_000_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outcomes.jsonl"


@pytest.fixture
def log(path: Path) -> OutcomeLog:
    return OutcomeLog(path, clock=CLOCK)


def records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def who(path: Path) -> list[str]:
    return [record["recipient"] for record in records(path)]


# ---- what is in a line ----------------------------------------------------------------------------


def test_a_record_is_that_of_the_outcome_and_what_it_makes_of_the_recipient():
    final = settled()
    record = outcome_record(final, at=timestamp(CLOCK()))
    assert record == {
        "time": NOW,
        **final.outcome.as_dict(),
        "attempt": 2,
        "final": True,
        "next_attempt": None,
        "decision": "delivered",
    }
    assert next(iter(record)) == "time"


def test_the_next_attempt_is_a_time_as_people_read_it():
    deferred = settled(status=Status.DEFERRED)
    assert deferred.next_attempt is not None
    record = outcome_record(deferred, at=timestamp(CLOCK()))
    assert record["final"] is False
    assert record["next_attempt"].startswith("2023-11-14T22:")
    assert record["next_attempt"].endswith("Z")


def test_where_dialogues_are_kept_every_record_has_one():
    assert "transcript" not in outcome_record(settled(), at="now")
    assert outcome_record(settled(), at="now", has_transcript=True)["transcript"] is None


# ---- writing --------------------------------------------------------------------------------------


async def test_outcomes_are_there_when_note_returns(log, path):
    await log.note([settled("a@one.test"), settled("b@one.test")])
    assert who(path) == ["a@one.test", "b@one.test"]
    assert path.stat().st_mode & 0o137 == 0
    await log.note([settled("c@one.test")])
    assert who(path) == ["a@one.test", "b@one.test", "c@one.test"]
    await log.close()


async def test_what_was_there_is_kept(path, log):
    path.write_text('{"recipient": "before"}\n')
    await log.open()
    await log.note([settled()])
    await log.close()
    await log.close()
    assert who(path) == ["before", "a@one.test"]


@pytest.mark.parametrize("text", ["plain", "line\nend é", "\U0001f4ec", "\udc80", "\x00\x7f"])
async def test_records_of_other_kinds_have_their_lines(log, path, text):
    await log.write([{"event": "bounce", "text": text}, {"time": 1.25, "none": None}])
    await log.close()
    assert records(path) == [{"event": "bounce", "text": text}, {"time": 1.25, "none": None}]
    assert path.read_bytes().isascii()


async def test_tasks_do_not_get_in_each_others_way(log, path):
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(log.note, [settled(f"{number}@one.test")] * 2)
    await log.close()
    found = who(path)
    assert sorted(found[::2]) == sorted(f"{number}@one.test" for number in range(50))
    assert found[::2] == found[1::2]


async def test_a_device_will_do(tmp_path):
    log = OutcomeLog(tmp_path / "null")
    (tmp_path / "null").symlink_to("/dev/null")
    await log.note([settled()])
    await log.close()


# ---- rotation -------------------------------------------------------------------------------------


async def test_a_file_that_was_moved_away_is_not_written_to_any_more(log, path):
    await log.note([settled("old@one.test")])
    path.rename(path.with_suffix(".1"))
    await log.note([settled("new@one.test")])
    assert who(path.with_suffix(".1")) == ["old@one.test"]
    assert who(path) == ["new@one.test"]
    path.rename(path.with_suffix(".2"))
    path.touch()
    await log.note([settled("newest@one.test")])
    assert who(path) == ["newest@one.test"]
    await log.close()


async def test_a_file_that_was_cut_off_is_written_to_from_its_beginning(log, path: Path):
    await log.note([settled("old@one.test")])
    os.truncate(path, 0)
    await log.note([settled("new@one.test")])
    await log.close()
    assert who(path) == ["new@one.test"]


async def test_a_closed_log_holds_no_descriptor_and_opens_again(log, path):
    await log.note([settled("old@one.test")])
    await log.close()
    assert str(path) not in descriptors().values()
    await log.note([settled("new@one.test")])
    await log.close()
    assert who(path) == ["old@one.test", "new@one.test"]


# ---- lines that are not whole ---------------------------------------------------------------------


@pytest.mark.parametrize("octets", [1, 5, 20, 200])
@pytest.mark.parametrize("before", ["", '{"recipient": "first"}\n'])
async def test_a_line_that_was_left_unfinished_is_taken_back(
    path, log, octets, before, caplog: pytest.LogCaptureFixture
):
    await log.note([settled("cut@one.test")])
    await log.close()
    path.write_text(before + path.read_text()[:octets])
    await log.note([settled("b@one.test")])
    await log.close()
    assert who(path) == ["first"] * bool(before) + ["b@one.test"]
    assert "left unfinished" in caplog.text


@pytest.mark.parametrize("tail", ["what is this", '{"recipient": "x"', "x" * 2_000_000])
async def test_what_is_not_ours_is_left_and_ends_its_line(path, log, tail):
    path.write_text(tail)
    await log.note([settled("b@one.test")])
    await log.close()
    first, second = path.read_text().splitlines()
    assert first == tail
    assert json.loads(second)["recipient"] == "b@one.test"


async def test_a_disk_with_room_for_a_part_has_none_of_it(
    path, log, monkeypatch: pytest.MonkeyPatch
):
    await log.note([settled("a@one.test")])
    room = 700
    write = os.write

    def scarce(descriptor: int, octets: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, octets[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", scarce)
    with pytest.raises(OSError, match="No space left"):
        await log.note([settled("b@one.test"), settled("c@one.test")])
    assert who(path) == ["a@one.test"]
    room = 100_000
    await log.note([settled("b@one.test"), settled("c@one.test")])
    await log.close()
    assert who(path) == ["a@one.test", "b@one.test", "c@one.test"]


def test_a_limit_of_the_kernel_is_an_error_and_leaves_whole_lines(path: Path):
    code = (
        "import resource, signal, sys, trio\n"
        "from pathlib import Path\n"
        "from engine.worker.outcome_log import OutcomeLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = OutcomeLog(Path(sys.argv[1]))\n"
        "async def main():\n"
        "    for number in range(1000):\n"
        "        await log.write([{'number': number}, {'number': number}])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try: trio.run(main)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    numbers = [record["number"] for record in records(path)]
    assert 20 < len(numbers) < 100
    assert numbers[::2] == numbers[1::2] == list(range(len(numbers) // 2))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


async def test_processes_write_whole_lines_into_one_file(path):
    code = (
        "import sys, trio\n"
        "from pathlib import Path\n"
        "from engine.worker.outcome_log import OutcomeLog\n"
        "log = OutcomeLog(Path(sys.argv[1]))\n"
        "async def main():\n"
        "    for number in range(100):\n"
        "        await log.write([{'who': sys.argv[2], 'number': number, 'pad': 'x' * 9000}] * 3)\n"
        "trio.run(main)\n"
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(trio.run_process, [sys.executable, "-c", code, str(path), name])
    found = [(record["who"], record["number"]) for record in records(path)]
    assert found[::3] == found[1::3] == found[2::3]
    for name in "abc":
        assert [number for who, number in found[::3] if who == name] == list(range(100))


# ---- what cannot be written -----------------------------------------------------------------------


async def test_a_file_that_cannot_be_made_is_an_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/outcomes\.jsonl"):
        await OutcomeLog(tmp_path / "nowhere" / "outcomes.jsonl").open()
    with pytest.raises(IsADirectoryError):
        await OutcomeLog(tmp_path).open()


async def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with trio.fail_after(5), pytest.raises(OSError, match="allowed is a file"):
        await OutcomeLog(tmp_path / "fifo").open()


async def test_a_folder_that_comes_back_is_written_to(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    log = OutcomeLog(folder / "outcomes.jsonl")
    await log.note([settled("a@one.test")])
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        await log.note([settled("b@one.test")])
    folder.mkdir()
    await log.note([settled("b@one.test")])
    await log.close()
    assert who(folder / "outcomes.jsonl") == ["b@one.test"]
