"""A worker process of ``twistd signaling --workers``: a whole signaling server for the topics that it owns.

It does not listen: connections come from the listener over the channel, and so do its orders. It ends when it is told
to, and when the listener is gone. The listener handles signals; they are blocked here.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from signaling.core.interfaces import Answers
from signaling.log.forwarding import LogForwarder
from signaling.server.address_text import address_text
from signaling.server.factory import SignalingFactory
from signaling.server.shutdown import ShutdownState
from signaling.transport.tcp_connection import to_address
from signaling.workers.ipc import (
    ABORT,
    ANSWER,
    APPLY_RELOAD,
    CONNECTION,
    DRAIN,
    HEARTBEAT,
    LOG,
    MAX_MESSAGE_BYTES,
    METRICS,
    METRICS_REQUEST,
    PREPARE_RELOAD,
    QUERY,
    READY,
    RELOAD_PREPARED,
    Channel,
    PartReceiver,
    PartSender,
    decode_handoff,
    encode_answers,
)
from signaling.workers.topic_router import TopicRouter

# Batches of the log that may wait for a listener that is busy: about 4 MB.
_MAX_WAITING_BATCHES = 64
# A timeout of its own for each connection would cost more than to be a little late.
_NEGLIGIBLE_SECONDS = 0.01
_FLUSH_SECONDS = 1.0
_HEARTBEAT_SECONDS = 1.0
# Of why a reload was refused.
_MAX_REASON_LENGTH = 1_000


class WorkerFactory(SignalingFactory):
    """A server of the topics that one worker owns.

    Args:
        number: of the worker, counted from 0.
        count: of all workers.
        arguments: of ``SignalingFactory``.
    """

    def __init__(self, number: int, count: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._number = number
        self._router = TopicRouter(count, self.limits, self.path_prefix)
        # A second request on a connection could be for another worker's topic.
        self.site.most_requests = 1

    def owns(self, topic: str) -> bool:
        """Return whether the listener sends the topic's peers here."""
        return self._router.owner(topic) == self._number


class Reloads(Protocol):
    """Reloads this process's options in two steps, so that all workers do, or none."""

    def prepare_as_worker(self, fingerprint: str) -> str | None:
        """Read and check everything; returns why that cannot be set, or None."""

    def apply_as_worker(self) -> None:
        """Set what was read."""


class WorkerProcess:
    """The worker's end of the channel.

    Args:
        reactor: runs it.
        factory: the server.
        end: of the channel.
        metrics: returns the metrics of this process; None if they are off.
        reloads: reloads its options; None if it cannot.

    Attributes:
        log: an observer of this process's log, which the listener publishes.
    """

    def __init__(
        self,
        reactor: Any,
        factory: SignalingFactory,
        end: socket.socket,
        metrics: Callable[[], Any] | None = None,
        reloads: Reloads | None = None,
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._metrics = metrics
        self._reloads = reloads
        self._channel = Channel(reactor, end, self, factory.connection_limits.accepts_per_pass)
        self._query_receiver = PartReceiver()
        self._answer_sender = PartSender(ANSWER, self._channel.send)
        self.log = LogForwarder(
            partial(reactor.callLater, 0), self._send_log, factory.events.log_lines_lost, MAX_MESSAGE_BYTES - len(LOG)
        )

    def _send_log(self, batch: bytes) -> bool:
        if len(self._channel.waiting) >= _MAX_WAITING_BATCHES:
            return False
        self._channel.post(LOG + batch)
        return True

    def start(self) -> None:
        """Start the server, and report that connections can come."""
        self._factory.doStart()
        self._channel.post(READY)
        self._reactor.callLater(_HEARTBEAT_SECONDS, self._send_heartbeat)

    def _send_heartbeat(self) -> None:
        """Report, once a second, that this worker runs, and whether its backplane is ready."""
        self._reactor.callLater(_HEARTBEAT_SECONDS, self._send_heartbeat)
        if not self._channel.waiting:
            self._channel.post(HEARTBEAT + json.dumps(self._factory.backplane.unready_reasons).encode())

    # Messages of the listener

    def message_received(self, message: bytes, descriptor: int | None) -> None:
        """Handle a message of the listener."""
        kind, rest = message[:1], message[1:]
        if kind == CONNECTION:
            self._serve(descriptor, *decode_handoff(rest))
        elif kind == METRICS_REQUEST:
            self._channel.post(METRICS + json.dumps(self._metrics() if self._metrics else []).encode())
        elif kind == QUERY:
            self._take_query(rest)
        elif kind == PREPARE_RELOAD and self._reloads is not None:
            number, fingerprint = json.loads(rest)
            reason = self._reloads.prepare_as_worker(fingerprint)
            answer = [number, reason if reason is None else reason[:_MAX_REASON_LENGTH]]
            self._channel.post(RELOAD_PREPARED + json.dumps(answer).encode())
        elif kind == APPLY_RELOAD and self._reloads is not None:
            self._reloads.apply_as_worker()
        elif kind == DRAIN:
            self._drain()
        elif kind == ABORT:
            self._factory.shutdown.abort()
            self._drain()

    def _take_query(self, message: bytes) -> None:
        query = self._query_receiver.receive(message)
        if query is not None:
            number, encoded = query
            self._factory.backplane.ask_nodes(encoded, partial(self._answer, number))

    def _answer(self, number: int, answers: Answers) -> None:
        self._answer_sender.send(number, encode_answers(answers))

    def _serve(self, descriptor: int | None, handshake_seconds: float, address: Any, data: bytes) -> None:
        if isinstance(address, list):
            # What the encoding makes of the tuple.
            address = tuple(address)
        if descriptor is None:
            # The kernel delivers the message alone, and closes the connection (unix(7)).
            self._factory.events.refused(address_text(to_address(address)), None, "its worker may open no more files")
            return
        connection = self._factory.serve(descriptor, address, data)
        if handshake_seconds > _NEGLIGIBLE_SECONDS:
            left = self._factory.limits.handshake_timeout_seconds - handshake_seconds
            self._reactor.callLater(max(0.0, left), self._factory.gate.end_handshake, connection)

    # The end

    def channel_lost(self) -> None:
        """End without a listener; if that is started again, it has workers of its own."""
        self._drain()

    def _drain(self) -> None:
        if not self._factory.shutdown.draining:
            self._factory.shutdown.drain().addCallback(self._flush_log)

    def _flush_log(self, _: None) -> None:
        """Send the last lines of the log, for a bounded time."""
        self.log.flush()
        if self._channel.waiting:
            self._reactor.callLater(_FLUSH_SECONDS, self._stop_reactor)
        else:
            self._stop_reactor()

    def channel_writable(self) -> None:
        """Send answers; end, if the last lines of the log were sent."""
        self._answer_sender.send_more()
        if self._factory.shutdown.state is ShutdownState.STOPPED:
            self._stop_reactor()

    def _stop_reactor(self) -> None:
        if self._reactor.running:
            self._reactor.stop()
