"""Writes addresses for a log."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address


def address_text(address: Any) -> str:
    """Write an address as an operator would; an IPv4 client of an IPv6 socket is an IPv4 client.

    A client binds its UNIX socket to any path, and the PROXY protocol carries any text: what a log must not show is
    escaped.
    """
    text = _address_text(address)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _address_text(address: Any) -> str:
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        mapped = address.host.removeprefix("::ffff:")
        return f"{mapped}:{address.port}" if "." in mapped else f"[{address.host}]:{address.port}"
    name = getattr(address, "name", None)
    return f"unix:{os.fsdecode(name)}" if name else "a UNIX socket"
