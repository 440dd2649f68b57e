"""A server in a process of its own that writes down whom it has accepted mail for, and is no angel.

    python -m tests.crash.receiver --record FILE --seed N

It shares no code with the engine.  Every acceptance is in the record before its reply goes out, in
one write, so the record is what really arrived, whatever became of replies and senders.  At random it
is slow, says 4xx or 421, or breaks the connection off: before the content, behind it, and in place of
the reply to it.  Who is called `refused…` is refused for good.

A content says for itself what it has to be (`tests.crash.load`): one that is damaged, or is not for
its recipients, is written down as such.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
from dataclasses import dataclass, field

import trio

#: Addresses it listens on: each is a site of its own.
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 9)]
IDLE_SECONDS = 120.0
DIGEST = re.compile(rb"^X-Digest: ([0-9a-f]{64})\r\n", re.MULTILINE)
FOR = re.compile(rb"^X-For: ([!-~]+)\r\n", re.MULTILINE)


class GoneError(Exception):
    """The connection is over."""


@dataclass
class Temper:
    """How often it does what; parts of 1."""

    close: float = 0.01  # instead of a greeting
    busy: float = 0.003  # 421 at MAIL
    defer: float = 0.03  # 451 to a recipient
    drop: float = 0.003  # the connection, at a recipient
    refuse_content: float = 0.02  # 451
    lose_content: float = 0.01  # broken off before it is written down
    lose_reply: float = 0.01  # broken off when it is
    slow: float = 0.05  # before it is written down, and behind that
    slow_seconds: float = 0.3


class Receiver:
    """What all connections share."""

    def __init__(self, record, seed, temper=None):
        self.rng = random.Random(seed)
        self.temper = temper or Temper()
        self._descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def happens(self, chance):
        return self.rng.random() < chance

    def note(self, what, recipients):
        lines = "".join(f"{what} {recipient}\n" for recipient in recipients).encode()
        assert os.write(self._descriptor, lines) == len(lines)

    async def serve(self, stream):
        try:
            with trio.move_on_after(IDLE_SECONDS):
                await _Conversation(self, stream).run()
        except (GoneError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)


@dataclass
class _Conversation:
    receiver: Receiver
    stream: trio.SocketStream
    octets: bytearray = field(default_factory=bytearray)
    recipients: list = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    has_sender: bool = False

    async def run(self):
        happens, temper = self.receiver.happens, self.receiver.temper
        if happens(temper.close):
            return
        await self.say("220 receiver.test ESMTP")
        while True:
            line = (await self.line()).decode("ascii", "replace")
            match line[:4].upper():
                case "EHLO":
                    names = ["PIPELINING", "8BITMIME", "SIZE 50000000"]
                    # Both ways to send a content get their share.
                    names += ["CHUNKING"] * happens(0.5)
                    lines = ["receiver.test", *names]
                    for name in lines[:-1]:
                        await self.say(f"250-{name}")
                    await self.say(f"250 {lines[-1]}")
                case "HELO" | "RSET" | "NOOP":
                    self.start_over()
                    await self.say("250 ok")
                case "MAIL":
                    if happens(temper.busy):
                        await self.say("421 4.3.2 too busy")
                        return
                    self.start_over()
                    self.has_sender = True
                    await self.say("250 2.1.0 ok")
                case "RCPT":
                    await self.take_recipient(line)
                case "DATA":
                    if not self.recipients:
                        await self.say("554 5.5.1 no recipients")
                        continue
                    await self.say("354 go on")
                    await self.read_lines()
                    await self.finish()
                case "BDAT":
                    await self.take_chunk(line)
                case "QUIT":
                    await self.say("221 2.0.0 bye")
                    return
                case _:
                    await self.say("500 5.5.1 what?")

    def start_over(self):
        self.recipients, self.content, self.has_sender = [], bytearray(), False

    async def say(self, line):
        await self.stream.send_all(f"{line}\r\n".encode())

    async def more(self):
        octets = await self.stream.receive_some(65536)
        if not octets:
            raise GoneError
        self.octets += octets

    async def until(self, mark):
        start = 0
        while (end := self.octets.find(mark, start)) < 0:
            start = max(len(self.octets) - len(mark), 0)
            await self.more()
        taken = bytes(self.octets[: end + len(mark)])
        del self.octets[: end + len(mark)]
        return taken

    async def line(self):
        return (await self.until(b"\r\n"))[:-2]

    async def take_recipient(self, line):
        happens, temper = self.receiver.happens, self.receiver.temper
        address = line[line.index("<") + 1 : line.index(">")]
        if not self.has_sender:
            await self.say("503 5.5.1 MAIL first")
        elif address.startswith("refused"):
            self.receiver.note("refused", [address])
            await self.say("550 5.1.1 no such user")
        elif happens(temper.defer):
            await self.say("451 4.2.0 mailbox busy")
        elif happens(temper.drop):
            raise GoneError
        else:
            self.recipients.append(address)
            await self.say("250 2.1.5 ok")

    async def read_lines(self):
        # A content that is empty ends with the line behind DATA.
        self.octets[:0] = b"\r\n"
        text = await self.until(b"\r\n.\r\n")
        # RFC 5321 §4.5.2: the dot at the start of a line is taken away.
        self.content += text[:-3].replace(b"\r\n.", b"\r\n")[2:]

    async def take_chunk(self, line):
        _, size, *last = line.split()
        while len(self.octets) < int(size):
            await self.more()
        self.content += self.octets[: int(size)]
        del self.octets[: int(size)]
        if not self.recipients:
            await self.say("554 5.5.1 no recipients")
        elif last:
            await self.finish()
        else:
            await self.say("250 2.0.0 go on")

    async def finish(self):
        happens, temper = self.receiver.happens, self.receiver.temper
        if happens(temper.refuse_content):
            self.start_over()
            await self.say("451 4.3.0 try again")
            return
        if happens(temper.lose_content):
            raise GoneError
        if happens(temper.slow):
            await trio.sleep(self.receiver.rng.uniform(0, temper.slow_seconds))
        what = "accepted" if is_whole(self.content, self.recipients) else "damaged"
        self.receiver.note(what, self.recipients)
        if happens(temper.lose_reply):
            raise GoneError
        if happens(temper.slow):
            await trio.sleep(self.receiver.rng.uniform(0, temper.slow_seconds))
        self.start_over()
        await self.say("250 2.0.0 accepted")


def is_whole(content, recipients):
    """Whether a content is what was submitted for these recipients; reports say nothing of that."""
    head, _, body = bytes(content).partition(b"\r\n\r\n")
    head += b"\r\n"
    digest, names = DIGEST.search(head), FOR.search(head)
    if digest is None or names is None:
        return all(recipient.startswith("sender.") for recipient in recipients)
    id_ = names[1].decode()
    return digest[1].decode() == hashlib.sha256(body).hexdigest() and all(
        recipient.partition("@")[0].partition(".")[2] == id_ for recipient in recipients
    )


async def listen(receiver, port, task_status=trio.TASK_STATUS_IGNORED):
    """Serve until cancelled."""
    async with trio.open_nursery() as nursery:
        for address in ADDRESSES:
            listeners = await trio.open_tcp_listeners(port, host=address, backlog=1024)
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, receiver.serve, listeners)
        task_status.started(port)


async def _main(options):
    receiver = Receiver(options.record, options.seed)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            print(await nursery.start(listen, receiver, options.port), flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    trio.run(_main, parser.parse_args())


if __name__ == "__main__":
    main()
