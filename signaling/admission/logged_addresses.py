"""How much of the addresses of clients a log shows (``--log-addresses``)."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from signaling.admission.client_address import parse_address

NOT_SHOWN = "-"
"""What a line of the log has in place of an address that is not shown."""

_IPV4_BITS = 24
# What one site commonly has (RFC 6177); a /64 is one subscriber.
_IPV6_BITS = 48
_MAX_CHARACTERS = 45
_UNIX_SOCKET = "a UNIX socket"
_OF_UNIX_SOCKETS = ("unix:", _UNIX_SOCKET)
# A run of all characters of addresses, and what may follow it: a zone, a bracket and a port, the length of a network.
_RUN = re.compile(r"(\[?)(?<![0-9A-Fa-f:.])([0-9A-Fa-f:.]{2,}+)(?:%[\w.-]+)?((?:\](?::[0-9]{1,5})?)?)(?:/[0-9]{1,3})?")
_IPV4 = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\.?[0-9])")
# More than a time of day has, or a name in C++ or Rust.
_COLONS_OF_IPV6 = 3
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")


class AddressDetail(StrEnum):
    """How much of an address is shown."""

    OFF = "off"  # nothing
    NETWORK = "network"  # an IPv4 /24 or an IPv6 /48, without the port
    FULL = "full"


class LoggedAddresses:
    """Decides what the log, and what else an operator reads, shows of the addresses of clients.

    Args:
        detail: how much.
    """

    def __init__(self, detail: AddressDetail = AddressDetail.FULL) -> None:
        self._detail = detail

    @property
    def in_full(self) -> bool:
        """Whether addresses are shown as they are."""
        return self._detail is AddressDetail.FULL

    def shown(self, address: str | None) -> str | None:
        """Return what is shown of a client's address.

        Args:
            address: as ``Client.text`` has it; None if there is none.

        Returns:
            None if nothing is shown.
        """
        if address is None or self._detail is AddressDetail.FULL:
            return address
        if self._detail is AddressDetail.OFF:
            return None
        if address.startswith(_OF_UNIX_SOCKETS):
            # A client chooses the path of its own end.
            return _UNIX_SOCKET
        parsed = parse_address(address)
        return None if parsed is None else _network_of(parsed)

    def in_text(self, text: str) -> str:
        """Return a text with each IP address in it as ``shown`` has it, in linear time."""
        return text if self._detail is AddressDetail.FULL else _RUN.sub(self._replace_in_run, text)

    def _replace_in_run(self, match: re.Match[str]) -> str:
        opening, run, closing = match.groups()
        if "." not in run and run.count(":") < 2:
            return match[0]
        # A sentence may go on around an address.
        for text in (run, run.rstrip("."), run.rstrip(".:"), run.lstrip(".:"), run.strip(".:")):
            address = _parse(text)
            if address is None:
                continue
            before, _, after = run.partition(text)
            if isinstance(address, IPv6Address):
                if _in_a_word(match, before, after):
                    # As in Foo::bar.
                    continue
                if opening and closing:
                    opening = closing = ""
            return f"{opening}{before}{self._text(address)}{after}{closing}"
        if run.count(":") >= _COLONS_OF_IPV6:
            # With an unbracketed port, or behind the letter of an escape, as in \n2001:db8::1.
            return f"{opening}{NOT_SHOWN}{closing}"
        replaced = _IPV4.sub(self._replace_ipv4, run)
        return match[0] if replaced == run else f"{opening}{replaced}{closing}"

    def _replace_ipv4(self, match: re.Match[str]) -> str:
        address = _parse(match[0])
        return match[0] if address is None else self._text(address)

    def _text(self, address: IPv4Address | IPv6Address) -> str:
        return NOT_SHOWN if self._detail is AddressDetail.OFF else _network_of(address)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    if len(text) > _MAX_CHARACTERS:
        return None
    with_port = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address(text if with_port is None else with_port[1])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _in_a_word(match: re.Match[str], before: str, after: str) -> bool:
    text, start, end = match.string, match.start(), match.end()
    return (not before and text[max(0, start - 1) : start].isalnum()) or (not after and text[end : end + 1].isalnum())


def _network_of(address: IPv4Address | IPv6Address) -> str:
    # A third of the time that a network of ipaddress takes.
    bits = _IPV4_BITS if isinstance(address, IPv4Address) else _IPV6_BITS
    shift = address.max_prefixlen - bits
    return f"{type(address)(int(address) >> shift << shift)}/{bits}"
