from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import trio
import trio.testing

from engine.worker.signals import Signals, heed_signals

TERM, INT, HUP, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1


class Told:
    def __init__(self) -> None:
        self.words: list[str] = []
        self.news = trio.Event()

    def hear(self, word: str) -> None:
        self.words.append(word)
        self.news.set()

    def drain(self) -> None:
        self.hear("drain")

    def stop(self) -> None:
        self.hear("stop")

    def reload(self) -> None:
        self.hear("reload")

    def tell(self) -> None:
        self.hear("tell")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([TERM], ["drain"]),
        ([INT], ["drain"]),
        ([TERM, INT], ["drain", "stop"]),
        ([INT, INT], ["drain", "stop"]),
        ([HUP], ["reload"]),
        ([HUP, HUP, TERM], ["reload", "reload", "drain"]),
        ([TERM, HUP, TERM], ["drain", "stop"]),
        ([USR1, TERM, USR1], ["tell", "drain", "tell"]),
    ],
)
def test_what_signals_mean(numbers: list[int], words: list[str]):
    told = Told()
    signals = Signals(told)
    for number in numbers:
        signals.take(number)
    assert told.words == words


async def test_signals_to_the_process_are_heard(nursery: trio.Nursery):
    told = Told()
    before = [signal.getsignal(number) for number in (TERM, INT, HUP, USR1)]
    await nursery.start(heed_signals, told)
    for number in (USR1, HUP, TERM, INT):
        told.news = trio.Event()
        os.kill(os.getpid(), number)
        with trio.fail_after(5):
            await told.news.wait()
    assert told.words == ["tell", "reload", "drain", "stop"]
    # The second one to end was the last that is heard.
    await trio.testing.wait_all_tasks_blocked()
    assert [signal.getsignal(number) for number in (TERM, INT, HUP, USR1)] == before


def test_the_third_signal_ends_a_process_that_hangs():
    code = (
        "import os, signal, trio\n"
        "from engine.worker.signals import heed_signals\n"
        "class Deaf:\n"
        "    def drain(self): print('drain', flush=True)\n"
        "    def stop(self): print('stop', flush=True)\n"
        "async def main():\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        await nursery.start(heed_signals, Deaf())\n"
        "        print('heard', flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for word in ("heard", "drain", "stop"):
            assert child.stdout.readline() == f"{word}\n"
            if word == "stop":
                # The handlers are put back right behind it.
                while child.poll() is None:
                    child.send_signal(TERM)
                    time.sleep(0.01)
            else:
                child.send_signal(TERM)
        assert child.wait() == -TERM
