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
        ("http://localhost:*", "http://localhost:5173"),
        ("http://localhost:*", "http://localhost"),
        ("http://[::1]:*", "http://[::1]:3000"),
        ("https://*.example.com:*", "https://a.example.com:8443"),
        ("https://*.example.com:*", "https://a.b.example.com"),
        ("https://*.example.com:443", "https://a.example.com"),
        ("file://", "file://"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("ionic://", "ionic://"),
        ("ionic://localhost", "ionic://localhost"),
        ("tauri://localhost", "tauri://localhost"),
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
        ("http://localhost:*", "https://localhost:5173"),
        ("http://localhost:*", "http://localhost.evil.example:5173"),
        ("http://localhost:*", "http://localhost:"),
        ("http://localhost:*", "http://localhost:*"),
        ("http://localhost:*", "http://localhost:5173:1"),
        ("http://localhost:*", "http://localhost:123456"),
        ("https://*.example.com:*", "https://example.com:8443"),
        ("https://*.example.com:*", "https://*.example.com:8443"),
        ("https://*.example.com:*", "https://evilexample.com:8443"),
        ("file://", "null"),
        ("file://", "file:///etc/passwd"),
        ("file://", "file://localhost"),
        ("ionic://", "ionic://localhost"),
        ("tauri://localhost", "tauri://localhost:1420"),
        ("capacitor://localhost", "null"),
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


@pytest.mark.parametrize(
    ("pattern", "right"),
    [
        ("example.com", "https://example.com"),
        ("localhost:3000", "https://localhost:3000"),
        ("https://", "name a host"),
        ("http://", "name a host"),
        ("https://a.*.com", "https://*.example.com"),
        ("https://*", "https://*.example.com"),
        ("http://*:3000", "http://localhost:*"),
        ("chrome-extension://*", "http://localhost:*"),
        ("https://example.com:80*", "http://localhost:*"),
        ("https://example.com/", "write https://example.com"),
        ("https://*.example.com:*/app", "write https://*.example.com:*"),
        ("file:///index.html", "write file://"),
        ("file:///", "write file://"),
        ("file://localhost", "write file://"),
        ("wss://example.com", "https://example.com"),
        ("ws://localhost:8081", "http://localhost"),
        ("https://example.com:65536", "at most 65535"),
        ("https://example.com:port", "for example"),
        ("https://user@example.com", "for example"),
        ("https://ex\u00e4mple.com", "for example"),
        ("*.com", "for example"),
        ("", "for example"),
        ("https://b\u00fccher.example", "browsers write names in ASCII, for example https://xn--bcher-kva.example"),
        ("https://.example.com", "subdomains are https://*.example.com"),
        ("https://*..example.com", "a part of the name is empty"),
        ("http://[0:0:0:0:0:0:0:1]:*", "browsers write http://[::1]"),
        ("http://[2001:db8::1::2]", "[2001:db8::1::2] is no IPv6 address"),
    ],
)
def test_an_invalid_origin_is_named_with_what_would_be_right(pattern: str, right: str) -> None:
    with pytest.raises(ValueError, match="is not an origin") as caught:
        Origins([pattern])
    assert str(caught.value).startswith(repr(pattern))
    assert right in str(caught.value)


def refusal(patterns: list[str], origin: str) -> str:
    with pytest.raises(Refused) as caught:
        Origins(patterns).check([origin.encode()])
    return caught.value.reason


def test_a_page_of_a_file_is_told_which_origin_browsers_give_it() -> None:
    assert "a page of file:// has the origin null" in refusal(["file://"], "null")
    assert "file://" not in refusal(["https://example.com"], "null")


@pytest.mark.parametrize("pattern", ["http://localhost:*", "https://*.example.com:*", "file://", "null"])
def test_cors_follows_the_list(pattern: str) -> None:
    origin = pattern.replace("*.", "a.").replace("*", "3000").encode()
    assert Origins([pattern]).cors([origin]) == {b"Access-Control-Allow-Origin": origin, b"Vary": b"Origin"}
    assert Origins([pattern]).cors([b"https://foreign.example"]) == {b"Vary": b"Origin"}


@pytest.mark.parametrize(
    ("patterns", "origin", "named"),
    [
        (["https://example.com"], "https://example.com", True),
        (["http://localhost:*"], "http://localhost:3000", True),
        (["https://*.example.com"], "https://a.example.com", True),
        (["*", "https://example.com"], "https://example.com", True),
        ([], "https://example.com", False),
        (["*"], "https://example.com", False),
        (["https://example.com"], "https://foreign.example", False),
        (["null"], "null", False),
    ],
)
def test_an_origin_is_named_if_the_list_has_more_than_any(patterns: list[str], origin: str, named: bool) -> None:
    assert Origins(patterns).named([origin.encode()]) == named


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
