"""Send mail from a FastAPI application: one engine, opened and drained with the application.

`SMTP_HOST=192.0.2.1:25 uvicorn fastapi_endpoint:app` serves it; run alone it calls itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

from engine import Message, Recipient, from_text
from engine.aio import Engine
from engine.testing.sink_thread import sink_in_thread


class Mail(BaseModel):
    """What a request asks for."""

    sender: str
    recipients: list[str]
    text: str

    def message(self) -> Message:
        """Make the message; ValueError says what cannot be sent."""
        to = tuple(Recipient.parse(each) for each in self.recipients)
        content = from_text(f"Subject: News\n\n{self.text}\n")
        return Message("", Message.parse_sender(self.sender), to, content)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the engine; when the application stops, finish what is in flight."""
    routes = [("*", [os.environ["SMTP_HOST"]])]  # without routes: by MX
    async with asyncio.TaskGroup() as tasks:
        async with Engine(routes=routes) as app.state.engine:
            tasks.create_task(print_late(app.state.engine))
            yield


async def print_late(engine: Engine) -> None:
    """Print the outcomes nobody waits for any more: of requests that were late or cancelled."""
    async for outcome in engine.outcomes:
        print(f"late: {outcome.recipient} {outcome.status}")


app = FastAPI(lifespan=lifespan)


@app.post("/mail")
async def send(mail: Mail, request: Request, response: Response) -> list[dict[str, Any]]:
    """Send a message, and answer with what became of each recipient; 202 if that takes long."""
    try:
        outcomes = await request.app.state.engine.send(mail.message(), timeout=1)
    except TimeoutError:
        response.status_code, outcomes = 202, []
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return [outcome.as_dict() for outcome in outcomes]


async def main() -> None:
    """Send requests to the application, without a port."""
    async with lifespan(app), httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as client:
        for to in (["ada@x.test", "reject@x.test"], ["slow-2@x.test"], ["nobody"]):
            mail = {"sender": "me@x.test", "recipients": to, "text": "Hello."}
            reply = await client.post("http://app/mail", json=mail)
            print(reply.status_code, reply.json())


if __name__ == "__main__":
    with sink_in_thread() as sink:
        os.environ["SMTP_HOST"] = f"{sink.host}:{sink.port}"
        asyncio.run(main())
