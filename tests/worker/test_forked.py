from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: A parent of two; what the tests add says what parent and children do.
HEAD = """
import json, os, signal, sys
import trio
from engine.worker.forked import fork

number, children = fork(2)

def say(*words):
    os.write(2, (json.dumps(words) + "\\n").encode())
"""


def said_by(script, **environment):
    """Run a script behind `HEAD`; return what was said by parent and children, sorted."""
    found = subprocess.run(
        [sys.executable, "-c", HEAD + script],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return sorted(json.loads(line) for line in found.stderr.splitlines()), found.stdout


def test_children_begin_when_they_are_let_and_tell_how_they_ended():
    said, out = said_by(
        """
if number:
    assert os.getpgid(0) == os.getpid() != os.getppid()
    print("nobody sees that")
    say("child", number, dict(os.environ))
    sys.exit(10 + number)

async def main():
    for each, child in children.items():
        await child.begin({"WHICH": f"\\udcff{each}", "LONG": "x" * 100_000 * (each - 1)})
        say("parent", each, await child.wait())
        child.send_signal(signal.SIGTERM)  # nobody else's by now
        await child.stdin.aclose()

print("said once")
trio.run(main)
""",
        INHERITED="by nobody",
    )
    first, second = [{**each[2], "LONG": len(each[2]["LONG"])} for each in said[:2]]
    assert first == {"WHICH": "\udcff1", "LONG": 0}
    assert second == {"WHICH": "\udcff2", "LONG": 100_000}
    assert said[2:] == [["parent", 1, 11], ["parent", 2, 12]]
    assert out == "said once\n"


def test_children_that_are_not_needed_end_without_having_begun():
    said, _ = said_by(
        """
if number:
    say("begun", number)
for child in children.values():
    child.dismiss()
say("left", [child.returncode for child in children.values()])
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    say("nobody is left behind")
"""
    )
    assert said == [["left", [0, 0]], ["nobody is left behind"]]


def test_a_child_that_is_killed_is_told_from_one_that_ends():
    said, _ = said_by(
        """
if number:
    say("begun", number)
    sys.stdin.read()  # until the parent is gone
    say("over", number)
    sys.exit(0)

async def main():
    first, second = children.values()
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    await first.begin({})  # it cannot hear that
    await second.begin({})
    say("first", await first.wait())
    await second.stdin.aclose()
    say("second", await second.wait())

trio.run(main)
"""
    )
    assert said == [["begun", 2], ["first", -9], ["over", 2], ["second", 0]]


def test_each_hears_that_the_parent_is_gone_though_the_others_live():
    said, _ = said_by(
        """
if number:
    if number == 2:
        sys.stdin.read()
        say("heard", number)
    elif number == 1:
        sys.stdin.read()
        say("heard", number)
    sys.exit(0)

async def main():
    for child in children.values():
        await child.begin({})
    os._exit(0)

trio.run(main)
"""
    )
    assert said == [["heard", 1], ["heard", 2]]


def test_what_cannot_be_forked_is_left_to_be_started():
    said, _ = said_by(
        """
for child in children.values():
    if not number:
        child.dismiss()
if not number:
    real, calls = os.fork, []
    def once():
        calls.append(1)
        if len(calls) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()
    os.fork = once
    number, children = fork(3)
    say("fork", number, list(children))
    for child in children.values():
        child.dismiss()
"""
    )
    assert said[-1] == ["fork", 0, [1]]
