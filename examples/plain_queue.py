"""Mail that survives, in a program that knows nothing of Trio: `EmailMessage` in, a queue on disk.

Run `python examples/plain_queue.py [HOST:PORT]`; without a server it starts the shipped sink, which
puts one recipient off once.  What is queued when it is stopped goes out when it is run again.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from pathlib import Path
from tempfile import gettempdir
from threading import Thread

from engine import Policy, QueueOptions, RetryRules, message_from_email, open_store
from engine.blocking import Engine
from engine.testing.sink_thread import sink_in_thread

SPOOL = Path(gettempdir(), "plain-queue-example.sqlite")
OPTIONS = QueueOptions(
    policy=Policy(rules=RetryRules.read({"match": "*", "steps": ["1s", "5m x1.5 until 2d"]})),
    only_final=True,  # of each recipient only what became of it in the end
)


def letter(name: str) -> EmailMessage:
    """Write a letter as any program does."""
    email = EmailMessage()
    email["From"] = "The Gazette <news@example.org>"
    email["To"] = f"{name.title()} <{name}@example.net>"
    email["Subject"] = "Issue 42"
    email["Date"], email["Message-ID"] = localtime(), make_msgid(domain="example.org")
    email.set_content(f"Dear {name.title()},\n\nthe news.\n")
    return email


def tell(engine: Engine) -> None:
    """Print what became of each recipient."""
    for outcome in engine.outcomes:
        print(f"{outcome.recipient}: {outcome.status}")


def send(host: str, names: list[str]) -> None:
    """Queue a letter for each name, and wait until all are done with."""
    # The store is opened by the engine, in its thread, and closed there.
    with Engine(routes=[("*", [host])], store=open_store(SPOOL), queue=OPTIONS) as engine:
        reader = Thread(target=tell, args=(engine,))
        reader.start()
        for name in names:
            # A return path of its own (VERP): a bounce that comes back names its recipient.
            engine.submit(message_from_email(letter(name), sender=f"bounces+{name}@example.org"))
        engine.wait_empty()  # all are on disk: a program with other things to do need not wait
        engine.drain()  # then outcomes end, and with them the reader
        reader.join()


def main(hosts: list[str]) -> None:
    """Deliver to the host that was named, else to a sink."""
    with nullcontext() if hosts else sink_in_thread() as sink:
        send(
            hosts[0] if sink is None else f"{sink.host}:{sink.port}", ["ada", "greylist", "reject"]
        )


if __name__ == "__main__":
    main(sys.argv[1:])
