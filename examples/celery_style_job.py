"""Deliver in a job, and let the job queue try again what was deferred; here with Celery.

Run `python examples/celery_style_job.py`: the jobs run in this process, at once and without a broker,
and the mail goes to the shipped sink.  What matters is the same with any queue: open the engine in
each worker process, behind its fork, and try again for those recipients alone who are left.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from engine import Message, Recipient, Status, from_text
from engine.blocking import Engine
from engine.testing.sink_thread import sink_in_thread

if TYPE_CHECKING:
    from celery import Task

RETRIES = 10

app = Celery("mail", broker=os.environ.get("BROKER", "memory://"))
#: The engine of this worker process, once it has one.
engines: list[Engine] = []


@worker_process_init.connect
def open_engine(**_: Any) -> None:
    """Open the engine of this worker process."""
    engines.append(Engine(routes=[("*", [os.environ["SMTP_HOST"]])]).open())


@worker_process_shutdown.connect
def close_engine(**_: Any) -> None:
    """Finish what is in flight."""
    engines.pop().close(timeout=30)


@app.task(bind=True, max_retries=RETRIES, acks_late=True)  # a job that is lost half way comes again
def deliver(
    self: Task[Any, Any], recipients: list[str], text: str, final: dict[str, str]
) -> dict[str, str]:
    """Send a message, and return what became of each recipient in the end.

    Args:
        self: The job.
        recipients: Those who are left.
        text: The message.
        final: What became of the others.
    """
    message = Message(
        id="",
        reverse_path=Message.parse_sender("news@example.org"),
        recipients=tuple(Recipient.parse(each) for each in recipients),
        content=from_text(text),
    )
    left = []
    for outcome in engines[0].send(message):
        if outcome.status is Status.DEFERRED:
            left.append(outcome.recipient)
        else:  # one that is `unknown` may have it: to send again would risk a second copy
            final = {**final, outcome.recipient: str(outcome.status)}
    if left and self.request.retries < RETRIES:
        print(f"deferred: {', '.join(left)}")
        raise self.retry(args=(left, text, final), countdown=300 * 2**self.request.retries)
    return {**final, **dict.fromkeys(left, "given up")}


if __name__ == "__main__":
    app.conf.task_always_eager = True
    with sink_in_thread() as sink:
        os.environ["SMTP_HOST"] = f"{sink.host}:{sink.port}"
        open_engine()
        for names in (("ada", "greylist", "reject"), ("close-after-dot", "defer")):
            to = [f"{name}@example.net" for name in names]
            print(deliver.delay(to, "Subject: News\n\nHello.\n", {}).get())
        close_engine()
