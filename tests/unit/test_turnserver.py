"""The configuration of coturn that is shipped keeps relays out of all networks that are not the internet."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest

CONFIGURATION = (Path(__file__).parents[2] / "deploy" / "turnserver.conf").read_text()
DENIED = [
    tuple(map(ipaddress.ip_address, line.split("-")))
    for line in re.findall(r"^denied-peer-ip=(.*)$", CONFIGURATION, re.MULTILINE)
]
# The special-purpose registries of IANA for IPv4 and IPv6, less what is reachable globally, and multicast, which coturn
# has an option for. Two more were in them once: fec0::/10 (RFC 3879) and ::/96, of which ::1 is left (RFC 4291).
SPECIAL = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
    ::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20
    5f00::/16 fc00::/7 fe80::/10 fec0::/10
""".split()  # noqa: SIM905 - as the registries list them


def is_denied(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(first.version == parsed.version and first <= parsed <= last for first, last in DENIED)


def test_the_denied_ranges_are_the_special_purpose_networks() -> None:
    networks = [ipaddress.ip_network(text) for text in SPECIAL]
    expected = [(network[0], network[-1]) for network in networks]
    # coturn takes :: for the beginning of all addresses, IPv4 among them; it refuses :: itself without being told.
    unspecified = ipaddress.ip_address("::")
    assert [(first + 1 if first == unspecified else first, last) for first, last in expected] == DENIED
    assert "\nno-multicast-peers\n" in CONFIGURATION


INSIDE = "0.0.0.0 127.0.0.53 169.254.169.254 100.100.100.200 255.255.255.255 ::1 ::7f00:1 ::10.0.0.1 ::ffff:10.0.0.1"
BY_ANOTHER_NAME = "64:ff9b::a00:1 64:ff9b:1::a00:1 2002:a00:1::1 2001:0:a00:1::1 fec0::1 fe80::1 fd00::1"


@pytest.mark.parametrize("address", f"{INSIDE} {BY_ANOTHER_NAME}".split())
def test_no_way_leads_to_a_network_of_the_machine(address: str) -> None:
    assert is_denied(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "223.255.255.254", "2606:4700::1", "2a00::1", "2001:4860::8"]
)
def test_the_internet_is_reached(address: str) -> None:
    assert not is_denied(address)
