"""Where the Redis server is, and how to connect to it: a host, a UNIX socket, or the master that sentinels name."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory

from signaling.backplane.redis.connection import Connection, describe, greeting
from signaling.backplane.redis.tls import client_options
from signaling.backplane.redis.url import Address, StoreUrl

_SENTINEL_SECONDS = 1.0


class _QuietFactory(Factory):
    """Logs no line for each attempt: there may be many."""

    noisy = False


class NoMaster(Exception):
    """No sentinel named a master; the text is for a log."""


class Dialer:
    """Connects to the server of a URL.

    Args:
        url: of the server, or of its sentinels.
        reactor: for endpoints and timeouts.
    """

    def __init__(self, url: StoreUrl, reactor: Any) -> None:
        self._url = url
        self._reactor = reactor
        self._sentinels = deque(url.addresses)

    async def find(self) -> Address | None:
        """Return where the server is now; None for a UNIX socket.

        Raises:
            NoMaster: no sentinel knows.
        """
        if self._url.socket:
            return None
        if not self._url.service:
            return self._url.addresses[0]
        return await self._ask_sentinels()

    async def dial(self, address: Address | None, connection: Connection) -> None:
        """Connect; raises what the endpoint does."""
        await self._endpoint(address).connect(_QuietFactory.forProtocol(lambda: connection))

    def _endpoint(self, address: Address | None) -> IStreamClientEndpoint:
        if address is None:
            return UNIXClientEndpoint(self._reactor, self._url.socket)
        endpoint = HostnameEndpoint(self._reactor, address.host, address.port)
        return wrapClientTLS(client_options(self._url, address.host), endpoint) if self._url.tls else endpoint

    async def _ask_sentinels(self) -> Address:
        reason = ""
        for _ in range(len(self._sentinels)):
            sentinel = self._sentinels[0]
            try:
                asked = ensureDeferred(self._ask(sentinel))
                return await asked.addTimeout(_SENTINEL_SECONDS, self._reactor, _timed_out)
            except CancelledError:
                raise
            except Exception as error:
                reason = f"{sentinel}: {describe(error)}"
                # The next attempt begins with another sentinel, however many do not answer.
                self._sentinels.rotate(-1)
        raise NoMaster(f"no sentinel names a master of {self._url.service!r} ({reason})")

    async def _ask(self, sentinel: Address) -> Address:
        connection = Connection(lambda reason: None)
        try:
            await self.dial(sentinel, connection)
            question = (b"SENTINEL", b"get-master-addr-by-name", self._url.service.encode())
            *_, reply = await connection.ask_all(*greeting(self._url.sentinel_credentials), question)
        finally:
            connection.end()
        if reply is None:
            raise NoMaster("it knows no such service")
        return Address(reply[0].decode(), int(reply[1]))


def _timed_out(_: object, seconds: float) -> Any:
    raise NoMaster(f"no answer within {seconds:g} s")
