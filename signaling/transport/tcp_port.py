"""A listening TCP port whose connections are accepted without the reactor's own transport."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.transport.poller import Poller
from signaling.transport.private_api import accept_descriptor, accept_few

_log = Logger()

# The last one: another process that has the socket has shut it down.
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL)
_PAUSE_SECONDS = 0.5

Serve = Callable[[int, Any], object]
"""Takes the descriptor of a new connection, which is non-blocking, and the address that came with it."""


@implementer(IListeningPort)
class TcpPort:
    """A port that Twisted has made listen, and that accepts here.

    If the process has no descriptors left, it stops accepting for a while: clients wait in the kernel's backlog. The
    log has one line for that, until all that waited are accepted.

    Args:
        port: a ``tcp.Port`` that listens; it starts and stops its factory, and the reactor does not watch it any more.
        poller: watches it.
        most_per_pass: how many connections to accept before others are read.
        serve: is called with each connection.
    """

    def __init__(self, port: Any, poller: Poller, most_per_pass: int, serve: Serve) -> None:
        self._port = port
        self._poller = poller
        self._most_per_pass = most_per_pass
        self._serve = serve
        self._socket = port.socket
        # Connections inherit it (tcp(7)).
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # To ask it whether more connections wait takes a tenth of the time of an accept that finds none.
        self._backlog = select.poll()
        self._backlog.register(self._socket.fileno(), select.POLLIN)
        self._timer: Any = None
        self._logged_pause = False
        port.stopReading()
        poller.watch(self, self._socket.fileno())

    def _watch(self) -> None:
        self._timer = None
        try:
            self._poller.watch(self, self._socket.fileno())
        except OSError as error:
            # The poller takes a descriptor itself if it watches nothing else.
            self._pause(error)

    def on_readable(self) -> None:
        """Accept what waits, and pass it on."""
        for _ in range(self._most_per_pass):
            try:
                descriptor, address = accept_descriptor(self._socket)
            except BlockingIOError:
                self._logged_pause = False
                return
            except OSError as error:
                if error.errno in _NO_MORE:
                    self._pause(error)
                    return
                # What became of a connection that waited is reported here, too (accept(2)).
                continue
            os.set_blocking(descriptor, False)
            self._serve(descriptor, address)
            if self._port.disconnecting:
                return
            if not self._backlog.poll(0):
                self._logged_pause = False
                return

    def on_events(self, events: int) -> None:
        """Find out what it is by accepting."""
        self.on_readable()

    def _pause(self, error: OSError) -> None:
        if not self._logged_pause:
            self._logged_pause = True
            _log.error(
                "no connections are accepted: {error}; trying again every {seconds} s",
                error=error.strerror,
                seconds=_PAUSE_SECONDS,
            )
        self._poller.unwatch(self._socket.fileno())
        self._timer = self._poller.reactor.callLater(_PAUSE_SECONDS, self._watch)

    def getHost(self) -> Any:
        """Return where it listens, as an ``IAddress`` provider."""
        return self._port.getHost()

    def startListening(self) -> None:
        """Raise: it listens already."""
        raise RuntimeError("this port listens already")

    def stopListening(self) -> Any:
        """Accept no more; fires when the port is closed."""
        self._stop_accepting()
        return self._port.stopListening()

    def _stop_accepting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._socket.fileno() >= 0:
            self._poller.unwatch(self._socket.fileno())

    def fail(self, reason: Failure) -> None:
        """Go on: what a connection raises is no reason to stop."""

    def end(self, reason: Failure) -> None:
        """Close, because the reactor stops."""
        self._stop_accepting()
        self._port.connectionLost(reason)


def accept_on(port: Any, factory: Any, poller: Poller | None, most_per_pass: int, serve: Serve) -> Any:
    """Return a ``TcpPort`` in place of a plain TCP port that has just begun to listen for ``factory``.

    Any other port keeps Twisted's transports, and is made to accept no more than ``most_per_pass`` as well.
    """
    if poller is not None and type(port) is tcp.Port and port.factory is factory:
        return TcpPort(port, poller, most_per_pass, serve)
    accept_few(port, most_per_pass)
    return port
