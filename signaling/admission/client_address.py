"""The address of a client, also behind trusted proxies, and what counts as one address.

A proxy that sets only ``X-Forwarded-For`` passes on a client's own ``Forwarded``, and the other way round. So only one
of them is ever read, and the operator says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice

from signaling.admission.forwarded import forwarded_for

_UNIX = "unix"
# The longest chain of proxies in front of a client; the rest of a longer list is not parsed.
_MAX_HOPS = 20


# Not frozen: one is made for each connection.
@dataclass(slots=True)
class Client:
    """The origin of a connection.

    Args:
        text: the address for the log.
        host: the IP address; None if there is none (a UNIX socket).
    """

    text: str
    host: str | None

    @property
    def network(self) -> str | None:
        """What counts as one address: an IPv4 address, or an IPv6 /64, which is commonly one subscriber (RFC 6177)."""
        address = parse_address(self.host) if self.host is not None else None
        if address is None or isinstance(address, IPv4Address):
            return None if address is None else str(address)
        return str(IPv6Network((int(address) >> 64 << 64, 64)))


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address as proxies write it, with or without a port; an IPv4-mapped IPv6 address becomes IPv4."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        # A zone after % names an interface of another machine; ipaddress accepts any text there.
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


# A proxy opens many connections: its own address is parsed once.
_parse_peer = lru_cache(maxsize=256)(parse_address)


class ProxyHeader(StrEnum):
    """The header by which trusted proxies name their client."""

    X_FORWARDED_FOR = "X-Forwarded-For"
    FORWARDED = "Forwarded"  # RFC 7239

    @classmethod
    def _missing_(cls, value: object) -> ProxyHeader | None:
        # The names of headers are compared without regard to case.
        return next((header for header in cls if str(value).lower() == header.lower()), None)


class TrustedProxies:
    """The proxies that are trusted to name their client.

    Args:
        networks: addresses or networks in CIDR notation; ``unix`` means every client of a UNIX socket.
        header: in which they name it.

    Attributes:
        empty: whether no proxy is trusted.
        header: as given.
        header_name: the header's name in lower case.

    Raises:
        ValueError: an entry is neither.
    """

    def __init__(self, networks: Iterable[str] = (), header: ProxyHeader = ProxyHeader.X_FORWARDED_FOR) -> None:
        given = list(networks)
        self.header = header
        self.header_name = header.lower().encode()
        self._hops = forwarded_for if header is ProxyHeader.FORWARDED else _x_forwarded_for
        self.empty = not given
        self._unix = _UNIX in given
        self._networks: list[IPv4Network | IPv6Network] = [_parse_network(text) for text in given if text != _UNIX]

    def client(self, host: str | None, text: str, forwarded: Sequence[bytes]) -> Client:
        """Return the client of a request: the rightmost address that is not a trusted proxy's.

        Each proxy appends the address that it saw, so what stands further left is not trustworthy.

        Args:
            host: the address of the connection's peer; None for a UNIX socket.
            text: the same for the log.
            forwarded: the values of the request's headers of that name.
        """
        address = _parse_peer(host) if host is not None else None
        if not self._trusts(address):
            return Client(text, host)
        for named in islice(self._hops(forwarded), _MAX_HOPS + 1):
            if named is None:
                break
            address, text = named, str(named)
            if not self._trusts(address):
                break
        return Client(text, str(address) if address is not None else None)

    def network(self, text: str) -> str | None:
        """Return what counts as the address of a connection before its request is read.

        Args:
            text: the address of the connection's peer, as the log shows it.

        Returns:
            None if there is none, or if it is a trusted proxy: the client is known only with the request.
        """
        address = parse_address(text)
        return None if address is None or self._trusts(address) else Client(text, str(address)).network

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)


def _x_forwarded_for(lines: Sequence[bytes]) -> Iterator[IPv4Address | IPv6Address | None]:
    """List the hops of ``X-Forwarded-For``, the nearest one first."""
    hops = b",".join(lines).decode("latin-1").rsplit(",", _MAX_HOPS)
    return map(parse_address, reversed(hops))


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
        mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
        # A client's IPv4 address is compared as IPv4, also on an IPv6 socket.
        return network if mapped is None else IPv4Network((mapped, max(0, network.prefixlen - 96)))
    except ValueError:
        raise ValueError(f"{text!r} is not an address or a network ({_right_network(text)})") from None


def _right_network(text: str) -> str:
    try:
        return f"the network of this address is {ip_network(text, strict=False)}"
    except ValueError:
        return "for example 127.0.0.1, 10.0.0.0/8, fd00::/8 or unix"
