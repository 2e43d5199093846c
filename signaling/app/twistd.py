"""What only ``twistd signaling`` does: signals, systemd's notifications, the log's level, the exit status."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService

from signaling.app.garbage_collection import tune_garbage_collector
from signaling.errors import StartError
from signaling.log.address_mask import AddressMask
from signaling.transport.private_api import filter_all_logs, forget_exit_signal

if TYPE_CHECKING:
    from signaling.app.options import Options
    from signaling.app.reloading import Reloader
    from signaling.app.service import SignalingService


class TwistdService(MultiService):
    """The service of a process that ``twistd signaling`` runs.

    Args:
        service: the server.
        options: parsed.
        reloader: reads them again at SIGHUP.
    """

    def __init__(self, service: SignalingService, options: Options, reloader: Reloader) -> None:
        super().__init__()
        self._options = options
        self._reloader = reloader
        self._factory = service.factory
        self._stopping = False
        service.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Start, or end the process with one line and status 1."""
        self._handle_signals()
        addresses = self._factory.logged_addresses
        mask = None if addresses.in_full else partial(AddressMask, addresses=addresses)
        self._reloader.log_levels.append(filter_all_logs(self._options.log_level, mask))
        try:
            super().privilegedStartService()
        except StartError as error:
            self._exit(self._options.with_source(str(error)))

    def startService(self) -> None:
        """Handle signals instead of the reactor, which starts later, and tell systemd that the server is ready."""
        super().startService()
        self._warn_of_shortfall()
        self._factory.reactor.callWhenRunning(self._handle_signals)
        tune_garbage_collector()
        notify("READY=1")

    def _warn_of_shortfall(self) -> None:
        connection_limits = self._factory.connection_limits
        if connection_limits.shortfall:
            self._factory.events.max_connections_lowered(connection_limits.most, connection_limits.shortfall)

    def _handle_signals(self) -> None:
        # The reactor's own handlers make twistd end by the signal; a drained server ends with status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self._factory.reactor.callFromThread(self._stop, received))

        signal.signal(signal.SIGHUP, lambda received, _: self._factory.reactor.callFromThread(self._reloader.reload))

    def _stop(self, received: int) -> None:
        name = signal.Signals(received).name
        if self._stopping:
            self._factory.events.signal(name, again=True)
            self._factory.shutdown.abort()
        else:
            self._stopping = True
            self._factory.events.signal(name, again=False)
            self._factory.reactor.stop()

    def stopService(self) -> Any:
        """Tell systemd that the server stops."""
        notify("STOPPING=1")
        # A signal that came before _handle_signals: twistd would end by it, and a drained server ends with status 0.
        forget_exit_signal(self._factory.reactor)
        return super().stopService()

    def _exit(self, text: str) -> None:
        # twistd wrote its pid file, and removes it only after an Exception, which it would print with a traceback.
        pidfile = (self._options.parent or {"pidfile": ""})["pidfile"]
        if pidfile and os.path.exists(pidfile):
            os.remove(pidfile)
        # sys.stderr is the log by now.
        print(f"signaling: {text}", file=sys.__stderr__, flush=True)
        raise SystemExit(1)


def notify(state: str) -> None:
    """Send ``state`` to systemd, if it asked for that (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notified:
        # A leading @ stands for the null byte of an abstract address.
        notified.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
