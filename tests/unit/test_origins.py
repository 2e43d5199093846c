"""Which origins a list lets in, and what CORS says of them."""

from __future__ import annotations

import pytest

from signaling.admission.origins import Hosts, Origins
from signaling.errors import Refused


def allows(patterns: list[str], *origins: str) -> bool:
    try:
        Origins(patterns).check([origin.encode() for origin in origins])
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://example.com", "https://example.com"),
        ("https://Example.com", "HTTPS://EXAMPLE.COM"),
        ("https://example.com:443", "https://example.com"),
        ("http://example.com", "http://example.com:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://*.example.com", "https://a.example.com"),
        ("https://*.example.com", "https://a.b.example.com"),
        ("https://*.example.com:8443", "https://a.example.com:8443"),
        ("null", "null"),
        ("*", "https://any.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_on_the_list_is_allowed(pattern: str, origin: str) -> None:
    assert allows([pattern], origin)


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://example.com", "http://example.com"),
        ("https://example.com", "https://example.com:8443"),
        ("https://example.com", "https://example.com.evil.example"),
        ("https://example.com", "https://a.example.com"),
        ("https://example.com", "null"),
        ("https://example.com", ""),
        ("https://example.com", "https://example.com/path"),
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://evilexample.com"),
        ("https://*.example.com", "http://a.example.com"),
        ("https://*.example.com", "https://a.example.com:8443"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://*.example.com", "https://.example.com"),
    ],
)
def test_a_foreign_origin_is_refused(pattern: str, origin: str) -> None:
    assert not allows([pattern], origin)


def test_an_empty_list_allows_every_origin() -> None:
    assert allows([], "https://any.example")
    assert Origins().cors([b"https://any.example"])[b"Access-Control-Allow-Origin"] == b"https://any.example"


def test_a_request_without_an_origin_is_allowed() -> None:
    assert allows(["https://example.com"])


def test_a_request_with_two_origins_is_refused() -> None:
    assert not allows(["https://example.com"], "https://example.com", "https://example.com")


@pytest.mark.parametrize("pattern", ["example.com", "https://", "https://a.*.com", "https://example.com/", "*.com", ""])
def test_an_invalid_origin_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not an origin") as caught:
        Origins([pattern])
    assert repr(pattern) in str(caught.value)


def asks(names: list[str], *hosts: str) -> bool:
    try:
        Hosts(names).check([host.encode() for host in hosts])
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9090", "[::1]:9090", "[fd00::1]", "localhost:9090", "LOCALHOST", "signaling:9090"]
)
def test_addresses_and_names_without_a_dot_are_allowed(host: str) -> None:
    assert asks([], host)


def test_a_request_without_a_host_is_allowed() -> None:
    assert asks([])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "1.2.3", "", "a b", "a."]
)
def test_other_names_are_refused(host: str) -> None:
    assert not asks(["metrics.example.com"], host)


def test_a_host_on_the_list_is_allowed() -> None:
    assert asks(["Metrics.example.com"], "metrics.Example.com:9090")
    assert not asks(["metrics.example.com"], "metrics.example.com", "evil.example")


@pytest.mark.parametrize(
    "name", ["", "https://metrics.example.com", "metrics.example.com:9090", "*.example.com", "[::1]"]
)
def test_an_invalid_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        Hosts([name])
