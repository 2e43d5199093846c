"""Where a client connects from: its own address, also behind proxies, and what counts as one address."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_UNIX = "unix"
# Proxies in a row; what stands left of them in a longer list is no address.
_MOST_HOPS = 20


@dataclass(frozen=True, slots=True)
class Client:
    """Where a client connects from.

    Args:
        text: for the log.
        host: its address; None where it has none.
    """

    text: str
    host: str | None

    @property
    def network(self) -> str | None:
        """What counts as one address: an IPv4 address, or an IPv6 /64, which one subscriber commonly has (RFC 6177)."""
        address = parse_address(self.host) if self.host is not None else None
        if address is None or isinstance(address, IPv4Address):
            return None if address is None else str(address)
        return str(IPv6Network((int(address) >> 64 << 64, 64)))


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address as proxies write it, perhaps with a port; an IPv4 address mapped into IPv6 is IPv4."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        # What follows a % names an interface of another machine; ipaddress would take any text for one.
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class TrustedProxies:
    """The proxies whose word on their clients' addresses counts.

    Args:
        networks: addresses or networks in CIDR notation; ``unix`` stands for every client of a UNIX socket.

    Raises:
        ValueError: where one is neither.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        given = list(networks)
        self._unix = _UNIX in given
        self._networks: list[IPv4Network | IPv6Network] = [_parse_network(text) for text in given if text != _UNIX]

    def client(self, host: str | None, text: str, forwarded: Sequence[bytes]) -> Client:
        """Tell where a request comes from.

        Args:
            host: the address at the other end of the connection; None for a UNIX socket.
            text: how the log names that end.
            forwarded: the request's ``X-Forwarded-For`` headers. Of what they list only the end is to be believed,
                as each trusted proxy appends the address that it saw: the rightmost that is no trusted proxy's.
        """
        if not self._unix and not self._networks:
            return Client(text, host)
        address = parse_address(host) if host is not None else None
        if not self._trusts(address):
            return Client(text, host)
        hops = b",".join(forwarded).decode("latin-1").rsplit(",", _MOST_HOPS)
        for hop in reversed(hops):
            named = parse_address(hop)
            if named is None:
                break
            address, text = named, str(named)
            if not self._trusts(address):
                break
        return Client(text, str(address) if address is not None else None)

    def network(self, text: str) -> str | None:
        """Return what counts as the address of a connection whose request was not read yet.

        Args:
            text: how the log names its other end.

        Returns:
            None where it has no address, or is a trusted proxy's, which will name its client.
        """
        address = parse_address(text)
        return None if address is None or self._trusts(address) else Client(text, str(address)).network

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
        mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
        # Clients are looked up by their IPv4 address, also on an IPv6 socket.
        return network if mapped is None else IPv4Network((mapped, max(0, network.prefixlen - 96)))
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address or a network (right are for example 127.0.0.1, 10.0.0.0/8, fd00::/8 and unix)"
        ) from None
