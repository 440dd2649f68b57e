from __future__ import annotations

import shlex
import subprocess
import sys

import pytest


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_nothing_gets_the_number_of_a_stream_that_is_closed(closed: str):
    code = (
        "import os\n"
        "from engine.worker.descriptors import occupy_standard_descriptors\n"
        "occupy_standard_descriptors()\n"
        "assert os.open('/', os.O_RDONLY) > 2\n"
    )
    ran = subprocess.run(
        ["sh", "-c", f"{shlex.join([sys.executable, '-c', code])} {closed}"], check=False
    )
    assert ran.returncode == 0


def test_reading_and_writing_fail_as_they_would():
    code = (
        "import os, sys\n"
        "from engine.worker.descriptors import occupy_standard_descriptors\n"
        "occupy_standard_descriptors()\n"
        "failed = 0\n"
        "for act in (lambda: os.read(0, 1), lambda: os.write(1, b'x')):\n"
        "    try: act()\n"
        "    except OSError: failed += 1\n"
        "sys.exit(failed)\n"
    )
    ran = subprocess.run(
        ["sh", "-c", f"{shlex.join([sys.executable, '-c', code])} <&- >&-"], check=False
    )
    assert ran.returncode == 2
