"""One worker process of ``twistd signaling --workers``: a whole signaling server for some of the topics.

It listens nowhere: connections come from the listener over the channel, and so do its orders. It ends when it is told
to, and when the listener is gone. Signals are the listener's to handle; they are blocked here.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from signaling.log.forwarding import LogForwarder
from signaling.server.factory import SignalingFactory
from signaling.server.protocol import SignalingProtocol
from signaling.workers.ipc import MOST_BYTES, Channel
from signaling.workers.supervisor import (
    ABOUT,
    DRAIN,
    HURRY,
    LOG,
    NUMBERS,
    QUESTION,
    READY,
    TROUBLES,
)
from signaling.workers.topic_router import Router

# Batches of the log that may wait for a listener that is busy: some 4 MB.
_MOST_BATCHES = 64
# A deadline of its own for each connection would cost more than to be a little late.
_EARLY_SECONDS = 0.01
_FLUSH_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class WorkerFactory(SignalingFactory):
    """A server of the topics that are one worker's.

    Args:
        number: of the worker, counted from 0.
        count: of all workers.
        how: what ``SignalingFactory`` takes.
    """

    def __init__(self, number: int, count: int, **how: Any) -> None:
        super().__init__(**how)
        self._number = number
        self._router = Router(count, self.limits)
        # A second request on a connection could be for another worker's topic.
        self.site.most_requests = 1

    def owns(self, topic: str) -> bool:
        """Tell whether the listener sends the topic's peers here."""
        return self._router.owner(topic) == self._number


class _Adopting:
    """Makes one connection, and remembers it."""

    connection: SignalingProtocol | None = None

    def __init__(self, factory: SignalingFactory) -> None:
        self._factory = factory

    def buildProtocol(self, address: Any) -> Any:
        self.connection = self._factory.buildProtocol(address)
        return self.connection


class WorkerProcess:
    """What the listener talks to.

    Args:
        reactor: runs it.
        factory: the server.
        end: of the channel.
        numbers: tells the metrics; None where nobody asks for any.

    Attributes:
        log: observes this process's log, for the listener to publish.
    """

    def __init__(
        self, reactor: Any, factory: SignalingFactory, end: socket.socket, numbers: Callable[[], Any] | None = None
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._numbers = numbers
        self._ending = self._stopped = False
        self._channel = Channel(reactor, end, self, factory.connection_limits.accepts_per_pass)
        self.log = LogForwarder(
            partial(reactor.callLater, 0), self._send_log, factory.events.log_lines_lost, MOST_BYTES - len(LOG)
        )

    def _send_log(self, batch: bytes) -> bool:
        if len(self._channel.waiting) >= _MOST_BATCHES:
            return False
        self._channel.post(LOG + batch)
        return True

    def begin(self) -> None:
        """Tell the listener that connections can come."""
        self._factory.doStart()
        self._channel.post(READY)
        self._reactor.callLater(_LOOK_SECONDS, self._tell_troubles)

    def _tell_troubles(self) -> None:
        """Tell the listener, again and again, that this worker runs, and what a balancer should know of it."""
        self._reactor.callLater(_LOOK_SECONDS, self._tell_troubles)
        if not self._channel.waiting:
            self._channel.post(TROUBLES + json.dumps(self._factory.backplane.unready_reasons).encode())

    # What the listener says

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        """Do what the listener says."""
        kind, rest = message[:1], message[1:]
        if descriptor is not None:
            used, family = ABOUT.unpack_from(rest)
            try:
                self._adopt(descriptor, used, family, rest[ABOUT.size :])
            finally:
                os.close(descriptor)
        elif kind == QUESTION:
            self._channel.post(NUMBERS + json.dumps(self._numbers() if self._numbers else []).encode())
        elif kind == DRAIN:
            self._end()
        elif kind == HURRY:
            self._factory.shutdown.abort()
            self._end()

    def _adopt(self, descriptor: int, used: float, family: int, data: bytes) -> None:
        adopting = _Adopting(self._factory)
        try:
            self._reactor.adoptStreamConnection(descriptor, socket.AddressFamily(family), adopting)
        except OSError:
            # It was reset on the way, and has no other end any more.
            return
        connection = adopting.connection
        assert connection is not None
        try:
            connection.dataReceived(data)
        except Exception:
            # A transport would do the same with what its protocol raises.
            self._factory.events.log.failure("an error in a connection's first bytes")
            connection.abort("an error in its first bytes")
        if used > _EARLY_SECONDS:
            left = self._factory.limits.handshake_timeout_seconds - used
            self._reactor.callLater(max(0.0, left), self._factory.gate.end_handshake, connection)

    # The end

    def channel_lost(self) -> None:
        """End without a listener; if that is started anew, it has workers of its own."""
        self._end()

    def _end(self) -> None:
        if self._ending:
            return
        self._ending = True
        self._factory.shutdown.drain().addCallback(self._flush)

    def _flush(self, _: None) -> None:
        """Let the last lines of the log leave, for a bounded time."""
        self.log.flush()
        self._stopped = True
        if self._channel.waiting:
            self._reactor.callLater(_FLUSH_SECONDS, self._stop)
        else:
            self._stop()

    def channel_writable(self) -> None:
        """Hear that all was sent."""
        if self._stopped:
            self._stop()

    def _stop(self) -> None:
        if self._reactor.running:
            self._reactor.stop()
