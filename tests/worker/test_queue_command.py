from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.queue.errors import (
    StoreBusyError,
    StoreDamagedError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnusableError,
    StoreVersionError,
)
from engine.worker.queue_command import run_on_queue, tell


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreFullError("full"), 75),
        (StoreBusyError("busy"), 75),
        (StoreReadOnlyError("read only"), 75),
        (StoreUnusableError("no folder"), 74),
        (StoreVersionError("later release"), 74),
        (StoreDamagedError("damaged"), 74),
    ],
)
def test_what_is_wrong_with_a_store_is_said_with_its_status(error, status, capsys):
    assert tell(error) == status
    said = capsys.readouterr().err
    assert said.startswith(f"{error}\n")
    assert ("can be saved: queue export" in said) is isinstance(error, StoreDamagedError)


def test_the_exit_status_is_the_command_s_and_its_output_is_written(place, capfd):
    async def do(shards, out):
        out.put("hello\n")
        assert len(shards.shards) == 1
        return 7

    assert run_on_queue(str(place.config), "look", do) == 7
    assert capfd.readouterr().out == "hello\n"


@pytest.mark.parametrize(("status", "expected"), [(0, 75), (69, 69)])
def test_what_cannot_be_written_is_no_success(status, expected, place, capfd):
    async def do(shards, out):
        out.put("hello\n")
        return status

    with Path("/dev/full").open("w") as full:
        assert run_on_queue(str(place.config), "look", do, stdout=full.fileno()) == expected
    assert capfd.readouterr().err == "standard output: No space left on device\n"


def test_who_has_read_enough_of_it_hears_nothing(place, capfd):
    async def do(shards, out):
        out.put("hello\n")
        return 0

    reading, writing = os.pipe()
    os.close(reading)
    assert run_on_queue(str(place.config), "look", do, stdout=writing) == 0
    os.close(writing)
    assert capfd.readouterr().err == ""


def test_an_error_of_the_store_ends_it(place, capfd):
    async def do(shards, out):
        raise StoreFullError("the disk is full")

    assert run_on_queue(str(place.config), "look", do) == 75
    assert capfd.readouterr().err == "the disk is full\n"


@pytest.mark.parametrize(("text", "status"), [(None, 66), ("nonsense = 1", 78)])
def test_a_configuration_that_cannot_be_used_ends_it(text, status, place, capfd):
    if text is None:
        place.config.unlink()
    else:
        place.config.write_text(text)
    assert run_on_queue(str(place.config), "look", None) == status
    assert str(place.config) in capfd.readouterr().err
