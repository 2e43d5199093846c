"""A listener with a fake clock, and workers that are no processes: the test sits at their ends of the channels."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import succeed
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling import Limits
from signaling.workers.listener import RoutingEndpoint, WorkerListener
from signaling.workers.supervisor import Worker, WorkerSettings


class FakeProcess:
    """One worker's process: the other end of its channel, and what was done to it."""

    def __init__(self, number: int, protocol: Worker, environment: dict[str, str], channel: int) -> None:
        self.pid = 1000 + number
        self.protocol = protocol
        self.environment = environment
        self.end = socket.socket(fileno=os.dup(channel))
        self.end.setblocking(False)
        self.killed = False
        self.descriptors: list[int] = []

    def signalProcess(self, name: str) -> None:
        assert name == "KILL"
        self.killed = True

    def received(self) -> list[bytes]:
        """Return the messages that came since the last time."""
        messages = []
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self.end, 65_536, 1)
            except BlockingIOError:
                return messages
            self.descriptors += descriptors
            messages.append(message)

    def close(self) -> None:
        self.end.close()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def say(self, message: bytes) -> None:
        self.end.send(message)

    def end_with(self, status: int = 0, number: int | None = None) -> None:
        """End, with an exit status or by a signal."""
        self.end.close()
        how = ProcessDone(0) if not (status or number) else ProcessTerminated(status, number)
        self.protocol.processExited(Failure(how))
        self.protocol.processEnded(Failure(how))


@implementer(IReactorFDSet)
class WatchingClock(Clock):
    """A fake clock that also is a reactor, of descriptors and processes."""

    running = True
    broken = False

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[Any, None] = {}
        self.writers: dict[Any, None] = {}
        self.processes: list[FakeProcess] = []

    def addReader(self, reader: Any) -> None:
        self.readers[reader] = None

    def removeReader(self, reader: Any) -> None:
        self.readers.pop(reader, None)

    def addWriter(self, writer: Any) -> None:
        self.writers[writer] = None

    def removeWriter(self, writer: Any) -> None:
        self.writers.pop(writer, None)

    def spawnProcess(self, protocol: Any, *command: Any, childFDs: dict[int, Any]) -> FakeProcess:
        if self.broken:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        process = FakeProcess(len(self.processes), protocol, command[2], childFDs[3])
        self.processes.append(process)
        protocol.makeConnection(process)
        return process

    def run(self) -> None:
        """Let everything be read and written that can be."""
        for _ in range(5):
            self.advance(0)
            for watched, do in [*((r, r.doRead) for r in self.readers), *((w, w.doWrite) for w in self.writers)]:
                if watched in self.readers or watched in self.writers:
                    reason = do()
                    if reason is not None:
                        self.removeReader(watched)
                        watched.connectionLost(Failure(reason))


class _Endpoint:
    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listen(self, factory: Any) -> Any:
        port = tcp.Port(0, factory, interface="127.0.0.1", reactor=self._reactor)
        port.startListening()
        return succeed(port)


class WorkersHarness:
    """A listener with its workers.

    Attributes:
        reactor: the clock.
        processes: of the workers, oldest first, those that ended included.
    """

    def __init__(
        self,
        count: int = 2,
        drain_seconds: float = 1.0,
        *,
        are_nodes: bool = False,
        path_prefix: str = "",
        **limits: Any,
    ) -> None:
        self.reactor = WatchingClock()
        settings = WorkerSettings(count, [], drain_seconds, are_nodes=are_nodes)
        self.listener = WorkerListener(settings, limits=Limits(**limits), path_prefix=path_prefix, reactor=self.reactor)
        self._clients: list[socket.socket] = []
        self.listener.doStart()
        self.reactor.advance(0)

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def all_ready(self) -> None:
        """Let every process say that it is ready."""
        for process in self.processes:
            process.say(b"R")
        self.reactor.run()

    def connect(self, data: bytes = b"") -> socket.socket:
        """Open a connection; returns the client's end."""
        client, accepted = socket.socketpair()
        client.setblocking(False)
        self._clients.append(client)
        client.sendall(data)
        # As a port of Twisted's for a UNIX socket does; the test of the port itself has a TCP port.
        self.listener.accept(accepted, None, "")
        self.reactor.run()
        return client

    @contextmanager
    def listen(self) -> Iterator[Callable[[bytes], socket.socket]]:
        """Listen on a TCP port; yields what connects there and sends, without a pass of the reactor."""
        ports: list[Any] = []
        RoutingEndpoint(_Endpoint(self.reactor)).listen(self.listener).addCallback(ports.append)
        port = self.listener.accept_on(ports[0])

        def connect(data: bytes) -> socket.socket:
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            client.setblocking(False)
            client.sendall(data)
            self._clients.append(client)
            return client

        yield connect
        port.stopListening()

    def woken(self) -> bool:
        """Tell whether an unrouted connection wakes the listener."""
        return bool(select.select([self.listener.poller], [], [], 0)[0])

    def send(self, client: socket.socket, data: bytes) -> None:
        client.sendall(data)
        self.reactor.run()

    def advance(self, seconds: float) -> None:
        """Let time pass; with 0, one pass of the reactor."""
        passes = max(1, round(seconds / 0.25))
        for _ in range(passes):
            self.reactor.advance(seconds / passes)
            self.reactor.run()

    def topic_of(self, worker: int) -> bytes:
        """Return a topic that is one worker's."""
        names = (f"topic-{number}" for number in range(1000))
        return next(name for name in names if self.listener.router.owner(name) == worker).encode()

    def end(self) -> None:
        """Close everything."""
        for client in self._clients:
            client.close()
        # A worker that died may be started again here.
        self.reactor.run()
        for process in self.processes:
            process.close()
        self.reactor.run()
        self.listener.shutdown.abort()


def is_open(client: socket.socket) -> bool:
    """Tell whether the other end is still there; what came is dropped."""
    try:
        while client.recv(65_536):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return False


def killed() -> int:
    return int(signal.SIGKILL)
