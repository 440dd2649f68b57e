"""The TLS contexts of one engine, made once and kept.

`engine.net.tls` asks for them.  Making one may take 40 ms for the files it reads, so that happens
in a thread; a context whose files have changed since is replaced, as certificates are renewed while
an engine runs.
"""

from __future__ import annotations

import logging
import math
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from engine.net.tls_material import make_context

if TYPE_CHECKING:
    from engine.net.tls_material import TlsMaterial

_log = logging.getLogger("engine.net")

#: Seconds after which the files are looked at again.
_LOOK_SECONDS: Final = 60.0
#: Contexts kept; each engine has a few, one or two for every set of files and ciphers.
_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class _Kept:
    context: ssl.SSLContext
    stamps: tuple[object, ...]


class TlsContexts:
    """Contexts by what they are made of; one serves any number of tasks and connections."""

    def __init__(self) -> None:
        self._kept: dict[tuple[TlsMaterial, bool], _Kept] = {}
        self._looked: dict[tuple[TlsMaterial, bool], float] = {}
        self._lock = trio.Lock()

    async def get(self, material: TlsMaterial, *, verifies: bool) -> ssl.SSLContext:
        """Return the context for this material, the same one until a file of it changes.

        Cancelled, nothing is lost: it waits for the thread, which takes no longer than reading the
        files does.

        Args:
            material: What to make it of.
            verifies: Whether the peer's chain must lead to a trusted certificate.

        Raises:
            OSError: A file cannot be used (`ssl.SSLError` for its content).  One that could be
                used before, and no longer can, is a log line: the old context goes on.
            ValueError: The key is encrypted.
        """
        key = material, verifies
        if trio.current_time() < self._looked.get(key, -math.inf) + _LOOK_SECONDS:
            return self._kept[key].context
        async with self._lock:
            if trio.current_time() >= self._looked.get(key, -math.inf) + _LOOK_SECONDS:
                self._keep(key, await self._renew(key))
            return self._kept[key].context

    async def _renew(self, key: tuple[TlsMaterial, bool]) -> _Kept:
        files, kept = _files(*key), self._kept.get(key)
        if not files:
            return kept or _make(*key, ())  # a fraction of a millisecond
        return await trio.to_thread.run_sync(_look_and_make, *key, files, kept)

    def _keep(self, key: tuple[TlsMaterial, bool], kept: _Kept) -> None:
        self._looked[key] = trio.current_time()
        self._kept[key] = kept
        if len(self._kept) > _KEPT:
            oldest = next(iter(self._kept))
            del self._kept[oldest], self._looked[oldest]


def _make(material: TlsMaterial, verifies: bool, stamps: tuple[object, ...]) -> _Kept:
    return _Kept(make_context(material, verifies=verifies), stamps)


def _look_and_make(
    material: TlsMaterial, verifies: bool, files: list[str], kept: _Kept | None
) -> _Kept:
    stamps = tuple(map(_stamp, files))
    if kept is not None and kept.stamps == stamps:
        return kept
    try:
        return _make(material, verifies, stamps)
    except (OSError, ValueError) as error:
        if kept is None:
            raise
        # Renewed in two steps, it may be between them: certificate and key of different age.
        _log.warning("TLS: files changed and cannot be used, the old ones are: %s", error)
        return kept


def _files(material: TlsMaterial, verifies: bool) -> list[str]:
    files = [material.certificate, material.private_key]
    if verifies:
        paths = ssl.get_default_verify_paths()
        files.append(material.ca_file or paths.cafile or paths.capath)
    return [name for name in files if name is not None]


def _stamp(name: str) -> object:
    try:
        status = Path(name).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
