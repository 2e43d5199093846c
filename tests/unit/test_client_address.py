"""The addresses of clients, direct and behind proxies."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from signaling.admission.client_address import Client, TrustedProxies
from signaling.server.address_text import address_text

TRUSTED = ["10.0.0.0/8", "fd00::/8", "unix"]


def client(host: str | None, *forwarded: str, trusted: list[str] = TRUSTED) -> Client:
    return TrustedProxies(trusted).client(host, "direct", [value.encode() for value in forwarded])


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, None),
    ],
)
def test_a_direct_client_has_its_own_address(host: str | None, network: str | None) -> None:
    direct = client(host, "203.0.113.1", trusted=[])
    assert (direct.text, direct.network) == ("direct", network)


@pytest.mark.parametrize(
    ("forwarded", "network"),
    [
        (["203.0.113.1"], "203.0.113.1"),
        (["203.0.113.1:4711"], "203.0.113.1"),
        (["2001:db8::1"], "2001:db8::/64"),
        (["[2001:db8::1]:4711"], "2001:db8::/64"),
        (["198.51.100.1, 203.0.113.1"], "203.0.113.1"),
        (["198.51.100.1", "203.0.113.1"], "203.0.113.1"),
        (["203.0.113.1, 10.9.9.9,fd00::1"], "203.0.113.1"),
        (["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        (["203.0.113.1, unknown, 10.2.2.2"], "10.2.2.2"),
        (["fe80::1%\x1b[2J"], "fe80::/64"),
        (["nonsense"], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_a_trusted_proxys_client_is_the_rightmost_hop_that_is_not_trusted(forwarded: list[str], network: str) -> None:
    assert client("10.0.0.1", *forwarded).network == network


def test_the_log_names_the_client_and_not_its_proxy() -> None:
    assert client("10.0.0.1", "203.0.113.1").text == "203.0.113.1"
    assert client("10.0.0.1").text == "direct"


def test_the_log_shows_a_parsed_address_and_no_text_of_the_client() -> None:
    assert client("10.0.0.1", "fe80::1%\x1b[2J").text == "fe80::1"


def test_a_trusted_network_may_be_ipv4_mapped_ipv6() -> None:
    assert client("10.0.0.1", "203.0.113.1", trusted=["::ffff:10.0.0.0/104"]).network == "203.0.113.1"


def test_a_proxy_on_a_unix_socket_is_trusted_by_name() -> None:
    assert client(None, "203.0.113.1").network == "203.0.113.1"
    assert client(None, "203.0.113.1", trusted=["10.0.0.0/8"]).network is None


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy", "10.0.0", "", "10.0.0.0/33"])
def test_an_invalid_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address or a network") as caught:
        TrustedProxies([text])
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (IPv4Address("TCP", "192.0.2.1", 8081), "192.0.2.1:8081"),
        (IPv6Address("TCP", "::ffff:192.0.2.1", 8081), "192.0.2.1:8081"),
        (IPv6Address("TCP", "2001:db8::1", 8081), "[2001:db8::1]:8081"),
        (UNIXAddress("/run/é"), "unix:/run/é"),
        (UNIXAddress("/run/a\x1b[31m\nb"), r"unix:/run/a\x1b[31m\nb"),
        (UNIXAddress(b"/run/\xff"), r"unix:/run/\udcff"),
        (UNIXAddress(b""), "a UNIX socket"),
        # Twisted takes any text for an address that the PROXY protocol brings.
        (IPv4Address("TCP", "a\x1b[31m", 8081), r"a\x1b[31m:8081"),
    ],
)
def test_an_address_has_no_characters_that_harm_a_log(address: object, text: str) -> None:
    assert address_text(address) == text


def test_a_chain_of_proxies_is_read_up_to_a_limit() -> None:
    assert client("10.0.0.1", "203.0.113.9, " + ", ".join(["10.0.0.2"] * 21)).host == "10.0.0.2"
    assert client("10.0.0.1", "203.0.113.9, " + ", ".join(["10.0.0.2"] * 20)).host == "203.0.113.9"
