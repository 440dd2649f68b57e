from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError, EngineError
from engine.queue.errors import (
    StoreBusyError,
    StoreDamagedError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnusableError,
    StoreVersionError,
)
from engine.worker.lock import LockedError
from engine.worker.refusals import REFUSALS, RunExit, explain_refusal


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a", "b"), RunExit.CONFIG),
        (StoreVersionError("x"), RunExit.CONFIG),
        (LockedError(Path("spool"), 7), RunExit.TRY_LATER),
        (StoreBusyError("x"), RunExit.TRY_LATER),
        (StoreFullError("x"), RunExit.TRY_LATER),
        (StoreReadOnlyError("x"), RunExit.CANNOT_CREATE),
        (StoreDamagedError("x"), RunExit.NO_INPUT),
        (StoreUnusableError("x"), RunExit.NO_INPUT),
        (EngineError("x"), RunExit.CONFIG),
        (PermissionError(13, "Permission denied", "/x"), RunExit.CANNOT_CREATE),
    ],
)
def test_each_error_has_its_status_and_tells_itself(error: EngineError | OSError, status: RunExit):
    found, text = explain_refusal(error)
    assert found is status
    assert found in REFUSALS
    if isinstance(error, StoreDamagedError):
        text, _, hint = text.partition("\n")
        assert "queue export" in hint
    assert text == ("/x: Permission denied" if isinstance(error, OSError) else str(error))


def test_an_error_of_the_system_without_a_file_tells_itself():
    assert explain_refusal(OSError(28, "No space left on device"))[1] == "No space left on device"
    assert explain_refusal(OSError("no errno"))[1] == "no errno"


def test_to_have_ended_is_no_refusal():
    assert [int(status) for status in RunExit] == [0, 66, 73, 75, 78]
    assert RunExit.ENDED not in REFUSALS
