"""OpenSSL's own programs: its server with any certificate, and its client with its own DANE.

Not among the mail servers: it speaks TLS and nothing above it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from tests.certificates import write_chain
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from engine.security import Tlsa
    from tests.certificates import Issued


@contextmanager
def serve(chain: Sequence[Issued], *options: str | Path) -> Iterator[int]:
    """Run `openssl s_server` with a chain, its own certificate first; it reverses lines."""
    port = free_port()
    with home("openssl") as folder:
        certificate, key = write_chain(folder, chain[:1])
        rest = folder / "rest.pem"
        rest.write_bytes(b"".join(each.pem for each in chain[1:]))
        command: list[str | Path] = [
            installed("openssl"), "s_server", "-accept", f"{HOST}:{port}", "-rev",
            "-cert", certificate, "-key", key,
            # Weak keys are to be shown, too; and nothing is added to the chain.
            "-cipher", "DEFAULT@SECLEVEL=0", "-no-CAfile", "-no-CApath", "-no-CAstore",
        ]  # fmt: skip
        if chain[1:]:
            command += ["-cert_chain", rest]
        with running("openssl", [*command, *options], folder) as process:
            process.wait_for_port(port)
            yield port


async def s_client(port: int, *options: str) -> tuple[bool, str]:
    """Run `openssl s_client`; whether it was content with the peer, and what it said."""
    command = [
        str(installed("openssl")), "s_client", "-connect", f"{HOST}:{port}", "-brief",
        "-verify_return_error", *options,
    ]  # fmt: skip
    with trio.fail_after(20):
        ended = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, stdin=b""
        )
    return ended.returncode == 0, (ended.stdout + ended.stderr).decode(errors="replace")


def dane_options(name: str, records: Sequence[Tlsa]) -> list[str]:
    """What makes `s_client` verify by TLSA records as RFC 7672 §3 wants it."""
    options = ["-servername", name, "-dane_tlsa_domain", name, "-dane_ee_no_namechecks"]
    for usage, selector, matching, data in records:
        options += ["-dane_tlsa_rrdata", f"{usage} {selector} {matching} {data.hex()}"]
    return options
