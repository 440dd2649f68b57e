"""TLS over any byte stream, as one more byte stream.

`engine.net.tls` makes it and runs the handshake; delivery reads and writes it.  It knows no
settings and verifies nothing.  It sets no deadline: that belongs to whoever waits for something.

Why not `trio.SSLStream`: that has no way to send without waiting, passes two locks and at least
two checkpoints a call, and hands out one record a call.  Here a small write is one system call and
no task switch, our last flight of the handshake leaves together with the first command, and a read
returns all that has been decrypted.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from engine.net.stream import RECEIVE_OCTETS
from engine.net.tls_errors import AnsweredInClear, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.net.stream import ByteStream

#: Most octets of a record's content (RFC 8446 §5.1).
_RECORD_OCTETS: Final = 16 * 1024
#: Octets encrypted at a time: as many as a socket takes at once, mostly.
_BLOCK_OCTETS: Final = 64 * 1024
#: What TLS itself may want to say while the peer takes nothing.  More is an attack: a peer that
#: asks for a new handshake again and again gets a refusal each time and need not read them.
_OWN_OCTETS: Final = 64 * 1024


class TlsStream:
    """A TLS connection over a byte stream; a `ByteStream` itself, once the handshake is done.

    Octets that `send_nowait` did not take may be encrypted already, so the next octets sent must
    begin with them.  The peer cannot read the last of them before that next call, however much of
    the record around it has left.

    A peer that ends the connection without saying so in TLS has ended it: many do, and SMTP knows
    by itself what is complete.

    Attributes:
        tls: Python's, for its facts: version, cipher, certificate, session.
        on_first_read: Called once, when the first octets of the peer's have arrived, and with them
            the tickets that TLS 1.3 sends behind the handshake (RFC 8446 §4.6.1).
    """

    __slots__ = (
        "_ahead",
        "_error",
        "_incoming",
        "_is_closed",
        "_is_drained",
        "_is_ended",
        "_is_last_flight",
        "_is_receiving",
        "_is_sending",
        "_outgoing",
        "_sent_eof",
        "_transport",
        "_unsent",
        "on_first_read",
        "tls",
    )

    def __init__(
        self,
        transport: ByteStream,
        wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject],
    ) -> None:
        """Take over a stream.

        Args:
            transport: Nothing of TLS was sent or received over it; closed together with this.
            wrap: Makes the TLS object for its incoming and its outgoing octets.
        """
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls: Final = wrap(self._incoming, self._outgoing)
        self.on_first_read: Callable[[], None] | None = None
        # Encrypted, and not yet with the transport; and how many octets of content in it the
        # sender was told were not taken.
        self._unsent = b""
        self._ahead = 0
        self._is_drained = True  # nothing is left to decrypt
        self._is_ended = False
        self._is_last_flight = True  # of the handshake; it is still here
        self._error: ssl.SSLError | None = None
        self._is_closed = False
        self._sent_eof = False
        # Plain flags in place of locks: all they must do is find a mistake.
        self._is_sending = False
        self._is_receiving = False

    async def handshake(self) -> None:
        """Run the handshake to its end.

        Our last flight stays here and leaves with the first octets sent, or before the first are
        waited for: who does not like the peer's certificate closes, and has not told it yet.

        Failed or cancelled, the stream is open and in the middle of things: only closing makes
        sense.

        Raises:
            ssl.SSLError: It failed; `ssl.SSLCertVerificationError` for the certificate,
                `ssl.SSLEOFError` where the peer hung up.  The peer was sent the alert.
            AnsweredInClear: The peer's first octet begins a positive reply, and no TLS.
            trio.BrokenResourceError: The connection is gone.
        """
        is_first = True
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    await self._transport.send_all(self._outgoing.read())
                octets = await self._transport.receive_some()
                # No type of record is a printable octet (RFC 8446 §5.1).
                if is_first and octets[:1] == b"2":
                    raise AnsweredInClear from None
                is_first = False
                self._take_in(octets)
            except ssl.SSLError:
                self._say_own()  # the alert
                raise
            else:
                return

    # -- sending ----------------------------------------------------------------------------

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the transport takes at once.

        Args:
            data: Octets; they begin with those that the last call did not take.

        Returns:
            How many octets were taken, from the front; 0 when it would block.

        Raises:
            trio.ClosedResourceError: After `close` or `send_eof`.
            trio.BrokenResourceError: The connection is gone; `__cause__` says why.
            trio.BusyResourceError: Another task is sending.
        """
        self._check_sendable()
        taken = 0
        size = len(data)
        while taken < size:
            octets, content = self._next_octets(data, taken)
            sent = self._transport.send_nowait(octets)
            self._unsent = self._unsent[sent:]
            if sent < len(octets):
                break
            self._ahead -= content
            taken += content
        return taken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every octet, waiting while the transport takes no more.

        Not a checkpoint when it takes everything at once, which is the rule.  Cancelled, some of
        the octets went out and it is unknown how many: only closing makes sense then.

        Raises:
            trio.ClosedResourceError: After `close` or `send_eof`, also by another task meanwhile.
            trio.BrokenResourceError: The connection is gone; `__cause__` says why.
            trio.BusyResourceError: Another task is sending.
        """
        taken = self.send_nowait(data)
        size = len(data)
        if taken == size:
            return
        self._is_sending = True
        try:
            while taken < size:
                octets, content = self._next_octets(data, taken)
                self._unsent = self._unsent[len(octets) :]
                await self._transport.send_all(octets)
                self._ahead -= content
                taken += content
        finally:
            self._is_sending = False

    def _next_octets(self, data: bytes | bytearray | memoryview, start: int) -> tuple[bytes, int]:
        """Return what the transport is to be given next, and how many octets of content it is."""
        if not self._ahead:
            block = memoryview(data)[start : start + _BLOCK_OCTETS]
            try:
                self._ahead = self.tls.write(block)
            except ssl.SSLError as error:
                self._break(error)
                self._check_open()
            self._unsent += self._outgoing.read()
            self._is_last_flight = False  # it leaves together with this
        content = min(self._ahead, len(data) - start)
        # Without its last octet the last record cannot be read: that one waits until the whole of
        # its content was to be sent.
        is_all = content == self._ahead
        return self._unsent if is_all else self._unsent[:-1], content

    async def send_eof(self) -> None:
        """Say that nothing more will be sent, where TLS has a word for that.

        TLS 1.3 ends each direction by itself; before, the same alert meant that the peer is to
        drop what it still wanted to say (RFC 8446 §6.1), so with TLS 1.2 it is sent on closing
        only.  Likewise while octets of the peer's wait to be read, for OpenSSL would give them up.
        Always a checkpoint.  A second call does nothing.

        Raises:
            trio.ClosedResourceError: After `close`.
            trio.BrokenResourceError: The connection is gone.
            trio.BusyResourceError: Another task is sending.
        """
        self._check_idle()
        await trio.lowlevel.checkpoint()
        if self._sent_eof:
            return
        self._check_sendable()
        self._sent_eof = True
        if self._is_drained and self.tls.version() == "TLSv1.3":
            self._say_close_notify()

    # -- receiving --------------------------------------------------------------------------

    async def receive_some(self, max_octets: int | None = None) -> bytes:
        """Return all that has arrived and was decrypted, at least one octet; `b""` is the end.

        Always a checkpoint; cancelled, nothing that arrived is lost.

        Args:
            max_octets: Most octets wanted; at most `RECEIVE_OCTETS` are returned, also for `None`.

        Raises:
            ValueError: `max_octets` is below 1.
            trio.ClosedResourceError: After `close`, also by another task meanwhile.
            trio.BrokenResourceError: The connection is gone, or what came is not TLS; `__cause__`
                says why.
            trio.BusyResourceError: Another task is receiving.
        """
        size = RECEIVE_OCTETS if max_octets is None else min(max_octets, RECEIVE_OCTETS)
        if size < 1:
            raise ValueError(f"max_octets {max_octets}: allowed are 1 and more")
        self._check_open()
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._is_receiving = True
        try:
            if not self._is_drained:
                await trio.lowlevel.checkpoint()
                self._check_open()
            return await self._receive(size)
        finally:
            self._is_receiving = False

    def receive_nowait(self) -> bytes | None:
        """Return what has arrived and was decrypted, at most `RECEIVE_OCTETS`; `None`: nothing yet.

        Raises:
            trio.ClosedResourceError: After `close`.
            trio.BrokenResourceError: The connection is gone, or what came is not TLS.
            trio.BusyResourceError: Another task is receiving.
        """
        self._check_open()
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        while (octets := self._hand_out(RECEIVE_OCTETS)) is None:
            self._say_own()
            if (arrived := self._transport.receive_nowait()) is None:
                return None
            self._take_in(arrived)
        return octets

    async def _receive(self, size: int) -> bytes:
        while (octets := self._hand_out(size)) is None:
            self._say_own()
            if self._unsent and self._is_last_flight:
                await self._finish_handshake()
            await self._fetch()
        return octets

    def _hand_out(self, size: int) -> bytes | None:
        """Decrypt what is there; `b""` is the end, `None` where more must arrive first."""
        if not self._is_drained and (octets := self._decrypt(size)):
            if self.on_first_read is not None:
                tell, self.on_first_read = self.on_first_read, None
                tell()
            return octets
        self._check_open()
        return b"" if self._is_ended else None

    async def _finish_handshake(self) -> None:
        """Send the rest of our last flight, which the peer waits for as we do for the peer."""
        self._is_sending = True
        try:
            octets, self._unsent = self._unsent, b""
            await self._transport.send_all(octets)
            self._is_last_flight = False
        finally:
            self._is_sending = False

    async def _fetch(self) -> None:
        """Wait for octets of the peer's and hand them to TLS."""
        self._take_in(await self._transport.receive_some())

    def _take_in(self, octets: bytes) -> None:
        if octets:
            self._incoming.write(octets)
        else:
            self._incoming.write_eof()
        self._is_drained = False

    def _decrypt(self, size: int) -> bytes:
        """Decrypt what is there, `size` octets at most; a read gives one record, or less.

        What comes before the end, or before something that is not TLS, is still handed out.
        """
        parts: list[bytes] = []
        while size and not (self._is_drained or self._is_ended or self._error):
            part = self._decrypt_one(min(size, _RECORD_OCTETS))
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self._is_drained = not (self.tls.pending() or self._incoming.pending)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _decrypt_one(self, size: int) -> bytes:
        try:
            octets = self.tls.read(size)
        except ssl.SSLWantReadError:
            self._is_drained = True
            return b""
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            octets = b""
        except ssl.SSLError as error:
            self._break(error)
            return b""
        if not octets:
            self._is_ended = True
        return octets

    # -- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Close now.  Tasks that wait on the stream wake up with `trio.ClosedResourceError`."""
        self._is_closed = True
        self._transport.close()

    async def aclose(self) -> None:
        """Say that this is the end, wait for no answer to that (RFC 8446 §6.1), and close."""
        if not (self._is_closed or self._error):
            self._say_close_notify()
        self._is_closed = True
        await self._transport.aclose()

    def _say_close_notify(self) -> None:
        # It waits for the peer's answer, which is of no interest.
        with suppress(ssl.SSLError, OSError):
            self.tls.unwrap()
        self._say_own()

    def _say_own(self) -> None:
        """Send what TLS itself has to say, unless it goes out with a sender's next octets.

        Where the connection is gone this is no error: reading tells why, maybe in the peer's words.
        """
        if self._is_sending or self._ahead:
            waiting = self._outgoing.pending
        else:
            self._unsent += self._outgoing.read()
            if self._unsent:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    self._unsent = self._unsent[self._transport.send_nowait(self._unsent) :]
            self._is_last_flight &= bool(self._unsent)
            waiting = len(self._unsent)
        if waiting > _OWN_OCTETS:
            raise trio.BrokenResourceError("TLS: the peer asks without end and reads no answer")

    def _break(self, error: ssl.SSLError) -> None:
        self._error = error
        self._say_own()  # the alert

    # -- checks -----------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._error is not None:
            raise trio.BrokenResourceError(f"TLS: {describe(self._error)}") from self._error

    def _check_idle(self) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")

    def _check_sendable(self) -> None:
        self._check_open()
        self._check_idle()
        if self._sent_eof:
            raise trio.ClosedResourceError("this stream's sending side was closed")
