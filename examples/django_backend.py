"""Send Django's mail through the engine: an e-mail backend, one engine a process for all threads.

In a project: `EMAIL_BACKEND = "your.module.EmailBackend"`.  `python examples/django_backend.py` shows
it with the shipped sink.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from email.utils import parseaddr
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, ClassVar

from django.conf import settings
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend

from engine import Message, Status, message_from_email
from engine.blocking import Engine
from engine.testing.sink_thread import sink_in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence


class NotDeliveredError(Exception):
    """Not everybody has the mail; the arguments are the outcomes of those who do not."""


class EmailBackend(BaseEmailBackend):
    """Sends everything to `EMAIL_HOST`; where that is "", to the recipients' MX."""

    _opening: ClassVar = Lock()
    _engines: ClassVar[dict[int, Engine]] = {}

    def open(self) -> bool:
        """Open the engine of this process, if it is not; a worker that was forked has its own."""
        with self._opening:
            if is_new := os.getpid() not in self._engines:
                host = settings.EMAIL_HOST
                routes = [("*", [f"{host}:{settings.EMAIL_PORT}"])] if host else []
                self._engines[os.getpid()] = Engine(routes=routes).open()
        return is_new  # no `close` of ours: other threads use it, and it ends with the process

    def send_messages(self, email_messages: Sequence[mail.EmailMessage]) -> int:
        """Send them side by side, and return how many reached everybody they are for."""
        self.open()
        messages = [convert(each) for each in email_messages if each.recipients()]
        outcomes = list(self._engines[os.getpid()].send_many(messages))
        lost = [each for each in outcomes if each.status is not Status.DELIVERED]
        if lost and not self.fail_silently:
            raise NotDeliveredError(*lost)
        return len(messages) - len({each.message for each in lost})


def convert(email: mail.EmailMessage) -> Message:
    """Make the engine's message of Django's; ValueError where it could never be sent."""
    sender, *recipients = [parseaddr(each)[1] for each in (email.from_email, *email.recipients())]
    return message_from_email(email.message(), sender=sender, recipients=recipients)


if __name__ == "__main__":
    send = partial(mail.send_mail, "Welcome", "Hello.", "Ada <ada@example.org>")
    with sink_in_thread() as sink, ThreadPoolExecutor(8) as threads:
        settings.configure(
            EMAIL_BACKEND="__main__.EmailBackend", EMAIL_HOST=sink.host, EMAIL_PORT=sink.port
        )
        print(sum(threads.map(send, [[f"{n}@example.net"] for n in range(100)])), "sent")
        print(send(["reject@example.net"], fail_silently=True), "sent")
        try:
            send(["reject@example.net"])
        except NotDeliveredError as error:
            print(error.args[0].text)
        print(sink.statistics().connections, "connections")
