"""Octets in both directions over one socket, as cheap as Trio allows.

The connector makes it; delivery and TLS read and write it.  It sets no deadline: that belongs to
whoever waits for something.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, Protocol

import trio

#: Most octets read at once.  The kernel copies little more at a time anyway, and handing out a
#: buffer of 256 KiB costs some 50 µs a call.
RECEIVE_OCTETS: Final = 64 * 1024
#: After reads that came too early the socket is watched so many times before it is tried again.
_MOST_VAIN: Final = 63


class ByteStream(Protocol):
    """What a connection is to those who speak over it, in clear or through TLS.

    One task may send while another receives.  Errors are Trio's: `trio.BrokenResourceError` when
    peer or network ended the connection, `trio.ClosedResourceError` when we did, and
    `trio.BusyResourceError` for two senders or two receivers at once.
    """

    async def send_all(self, data: bytes | memoryview, /) -> None:
        """Send every octet; cancelled, it leaves unknown how many went out."""
        ...

    def send_nowait(self, data: bytes | memoryview, /) -> int:
        """Send what can be sent without waiting, and return how many octets that was."""
        ...

    async def receive_some(self, max_octets: int = RECEIVE_OCTETS, /) -> bytes:
        """Return what has arrived, at least one octet; `b""` is the end.  Cancelled, nothing is lost."""
        ...

    def receive_nowait(self) -> bytes | None:
        """Return what has arrived already; `b""` is the end, `None` where nothing has."""
        ...

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        ...

    async def aclose(self) -> None:
        """Close, politely where that means something; cancelled, it is closed all the same."""
        ...

    def close(self) -> None:
        """Close now, without waiting and without a farewell; may be called again."""
        ...


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected stream socket as a `ByteStream`, and one of Trio's half-closeable streams.

    It tries the system call first and asks Trio only to wait.  `trio.SocketStream` makes two
    checkpoints a call to be fair in every case; here every exchange ends in waiting for the peer,
    which is checkpoint enough.

    Attributes:
        socket: The socket, for its options and state; closed together with the stream.
    """

    def __init__(self, sock: socket.socket, received: bytes = b"") -> None:
        """Take over a connected socket and make it non-blocking.

        Args:
            sock: The socket.
            received: Octets of the peer's that were read from it already; they come first.
        """
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        self._received = received
        self.socket: Final = sock
        self._closed = False
        self._sent_eof = False
        self._vain = 0  # how often the socket is watched when a read came too early
        self._reads_to_watch = 0
        # A plain flag in place of a lock: all it must do is find a mistake.
        self._sending = False

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes at once.

        Args:
            data: Octets.

        Returns:
            How many octets were taken, from the front; 0 when it would block.

        Raises:
            trio.ClosedResourceError: After `close` or `send_eof`.
            trio.BrokenResourceError: The connection is gone; `__cause__` is the `OSError`.
            trio.BusyResourceError: Another task is sending.
        """
        if self._closed or self._sending or self._sent_eof:
            self._check_sendable()
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _translate(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every octet, waiting while the kernel's buffer is full.

        Not a checkpoint when the kernel takes everything at once, which is the rule: the sender of
        a command waits for the reply next, and that is one.  Who writes long content in a loop
        adds checkpoints of his own.

        Cancelled, some of the octets went out and it is unknown how many: only closing makes
        sense then.

        Raises:
            trio.ClosedResourceError: After `close` or `send_eof`, also by another task meanwhile.
            trio.BrokenResourceError: The connection is gone; `__cause__` is the `OSError`.
            trio.BusyResourceError: Another task is sending.
        """
        sent = self.send_nowait(data)
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, data: memoryview) -> None:
        while data:
            await self.wait_send_all_might_not_block()
            data = data[self.send_nowait(data) :]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes octets, or the connection is gone.

        Raises:
            trio.ClosedResourceError: After `close` or `send_eof`, also by another task meanwhile.
            trio.BusyResourceError: Another task is sending.
        """
        self._check_sendable()
        self._sending = True
        try:
            await trio.lowlevel.wait_writable(self.socket)
        finally:
            self._sending = False

    async def receive_some(self, max_octets: int | None = None) -> bytes:
        """Wait until octets are there and return them; `b""` when the peer has sent its last.

        Right after a command the reply is never there yet.  But under load it often is by the time
        that everybody else had a turn: then to wait for a turn and to read costs less than to have
        the socket watched.  Where that was in vain it is not tried again for a while, each time for
        longer.  Always a checkpoint; cancelled, nothing that arrived is lost.

        Args:
            max_octets: Most octets wanted; at most `RECEIVE_OCTETS` are read, also for `None`.

        Raises:
            ValueError: `max_octets` is below 1.
            trio.ClosedResourceError: After `close`, also by another task meanwhile.
            trio.BrokenResourceError: The connection is gone; `__cause__` is the `OSError`.
            trio.BusyResourceError: Another task is receiving.
        """
        size = RECEIVE_OCTETS
        if max_octets is not None or self._received or self._closed:
            size = self._most_wanted(max_octets)
            if self._received:
                return await self._receive_again(size)
        sock = self.socket
        try:
            if self._reads_to_watch:
                self._reads_to_watch -= 1
            else:
                await trio.lowlevel.checkpoint()
                try:
                    octets = sock.recv(size)
                except BlockingIOError:
                    self._vain = min(2 * self._vain + 1, _MOST_VAIN)
                    self._reads_to_watch = self._vain
                else:
                    self._vain = 0
                    return octets
            while True:
                # Refuses a second waiter by itself, so receiving needs no flag.
                await trio.lowlevel.wait_readable(sock)
                try:
                    return sock.recv(size)
                except BlockingIOError:
                    continue  # "readable" is a hint; a segment with a bad checksum breaks it
        except OSError as error:
            raise _translate(error) from error

    def _most_wanted(self, max_octets: int | None) -> int:
        size = RECEIVE_OCTETS if max_octets is None else min(max_octets, RECEIVE_OCTETS)
        if size < 1:
            raise ValueError(f"max_octets {max_octets}: allowed are 1 and more")
        self._check_open()
        return size

    def receive_nowait(self) -> bytes | None:
        """Return what has arrived already, at most `RECEIVE_OCTETS`; `None` where nothing has.

        Raises:
            trio.ClosedResourceError: After `close`.
            trio.BrokenResourceError: The connection is gone; `__cause__` is the `OSError`.
        """
        self._check_open()
        if self._received:
            octets, self._received = self._received, b""
            return octets
        try:
            return self.socket.recv(RECEIVE_OCTETS)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _translate(error) from error

    async def _receive_again(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        octets, self._received = self._received[:size], self._received[size:]
        return octets

    async def send_eof(self) -> None:
        """Close our direction; the peer reads the end, we can still receive.

        Always a checkpoint.  Cancelled, nothing was done.  A second call does nothing.

        Raises:
            trio.ClosedResourceError: After `close`.
            trio.BrokenResourceError: The connection is gone; `__cause__` is the `OSError`.
            trio.BusyResourceError: Another task is sending.
        """
        self._check_idle()
        await trio.lowlevel.checkpoint()
        if self._sent_eof:
            return
        self._check_sendable()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _translate(error) from error
        self._sent_eof = True

    def close(self) -> None:
        """Close now.  Tasks that wait on the stream wake up with `trio.ClosedResourceError`.

        What the kernel has already taken may still go out.
        """
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def aclose(self) -> None:
        """Close now, then pass a checkpoint; cancelled there, it is closed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")

    def _check_idle(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")

    def _check_sendable(self) -> None:
        self._check_open()
        self._check_idle()
        if self._sent_eof:
            raise trio.ClosedResourceError("this stream's sending side was closed")


def _translate(error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    # EBADF: the stream was closed between the wake-up of a waiting task and its turn.
    if error.errno == errno.EBADF:
        return trio.ClosedResourceError("this stream was closed")
    return trio.BrokenResourceError(f"connection broken: {error.strerror}")
