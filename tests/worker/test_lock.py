from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from engine.worker.lock import LockedError, hold_lock, lock_file

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from engine.worker.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


def test_the_lock_is_a_file_beside_the_store_with_the_pid_of_who_holds_it(store: Path):
    with hold_lock(store):
        assert lock_file(store) == store.with_name("spool.sqlite.lock")
        assert lock_file(store).read_text() == f"{os.getpid()}\n"
        assert lock_file(store).stat().st_mode & 0o777 == 0o600
    assert not store.exists()


def test_a_second_one_is_refused_and_told_who_the_first_is(store: Path):
    with hold_lock(store):
        with pytest.raises(LockedError) as refused, hold_lock(store):
            pass
        assert refused.value.pid == os.getpid()
        assert str(refused.value) == (
            f"{store}: process {os.getpid()} is the worker at it; stop that one first"
        )
    with hold_lock(store):
        pass


def test_a_shorter_pid_leaves_nothing_of_a_longer_one(store: Path):
    lock_file(store).write_text("123456789012345\n")
    with hold_lock(store):
        assert lock_file(store).read_text() == f"{os.getpid()}\n"


def test_who_has_not_said_its_pid_yet_is_another_process(store: Path):
    with hold_lock(store):
        lock_file(store).write_text("")
        with pytest.raises(LockedError, match="another process is the worker") as refused:
            with hold_lock(store):
                pass
        assert refused.value.pid is None


def test_what_a_killed_process_leaves_behind_means_nothing(store: Path):
    command = [sys.executable, "-c", HOLD, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {held.pid} is"), hold_lock(store):
            pass
        held.send_signal(signal.SIGKILL)
        held.wait()
        with hold_lock(store):
            assert lock_file(store).read_text() == f"{os.getpid()}\n"


def test_children_do_not_inherit_it(store: Path):
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with hold_lock(store):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, close_fds=False)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with hold_lock(store):
            pass
        child.kill()


def test_who_is_patient_gets_it_when_it_is_free(store: Path):
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_lock(store):
            is_held.set()
            may_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    threading.Timer(0.1, may_go.set).start()
    with hold_lock(store, patience=20):
        pass
    thread.join()


def test_patience_has_an_end(store: Path):
    with hold_lock(store):
        started = time.monotonic()
        with pytest.raises(LockedError), hold_lock(store, patience=0.1):
            pass
        assert 0.1 <= time.monotonic() - started < 5


def test_a_link_is_not_followed(store: Path, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock_file(store).symlink_to(victim)
    with pytest.raises(OSError, match=r"spool\.sqlite\.lock"), hold_lock(store):
        pass
    assert victim.read_text() == "precious"


def test_a_folder_that_is_not_there_is_an_error_with_its_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/spool\.sqlite\.lock"):
        with hold_lock(tmp_path / "nowhere" / "spool.sqlite"):
            pass
