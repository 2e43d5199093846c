"""The hops of ``Forwarded`` (RFC 7239), well-formed and hostile."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signaling.admission.client_address import ProxyHeader, TrustedProxies
from signaling.admission.forwarded import forwarded_for


def hops(*lines: str) -> list[str | None]:
    """Return the hops as text, the nearest one first."""
    found = forwarded_for([line.encode("latin-1") for line in lines])
    return [None if address is None else str(address) for address in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # The examples of the RFC, sections 4, 6 and 7.
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
        ('for="192.0.2.43:47011"', "192.0.2.43"),
        ('for="[2001:db8:cafe::17]:47011"', "2001:db8:cafe::17"),
        ("for=unknown", None),
        ("for=_hidden, for=_SEVKISEK", None),
        ('for="_gazonk"', None),
        # And what else the grammar allows.
        ("FOR=192.0.2.43", "192.0.2.43"),
        ('by=10.0.0.1; for="192.0.2.43" ;proto=https', "192.0.2.43"),
        ('for="192.0.2.43:_port-1.a"', "192.0.2.43"),
        ('for="[::ffff:192.0.2.43]"', "192.0.2.43"),
        (r'for="\1\9\2.0.2.43"', "192.0.2.43"),
        (r'host="a\"b,;\\";for=192.0.2.43', "192.0.2.43"),
        ('ext="";for=192.0.2.43;', "192.0.2.43"),
        ("proto=http;by=203.0.113.43", None),
        # What it does not allow.
        ("for=192.0.2.43:47011", None),
        ("for=[2001:db8::1]", None),
        ('for="2001:db8::1"', None),
        ('for="[192.0.2.43]:x"', None),
        ('for="192.0.2.43:123456"', None),
        ('for="192.0.2.43 "', None),
        ("for = 192.0.2.43", None),
        ("for=192.0.2.300", None),
        ("for=192.0.2.43;for=192.0.2.44", None),
        ("for=192.0.2.43 proto=http", None),
        ('for="192.0.2.43', None),
        ("for=", None),
        ("192.0.2.43", None),
        ('for="fe80::1%eth0"', None),
    ],
)
def test_the_nearest_hop_is_the_for_of_the_last_element(line: str, expected: str | None) -> None:
    assert hops(line)[0] == expected
    assert hops(f"for=198.51.100.1, {line}")[0] == expected
    assert hops("for=198.51.100.1", line)[0] == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["for=192.0.2.43, for=198.51.100.17"], ["198.51.100.17", "192.0.2.43"]),
        (["for=192.0.2.43", "for=198.51.100.17,for=_x"], [None, "198.51.100.17", "192.0.2.43"]),
        (['for=192.0.2.43;host="a,b", for=198.51.100.17'], ["198.51.100.17", "192.0.2.43"]),
        ([", ,for=192.0.2.43,,", "", " "], ["192.0.2.43"]),
        ([], []),
    ],
)
def test_elements_and_lines_are_one_list(lines: list[str], expected: list[str | None]) -> None:
    assert hops(*lines) == expected


@pytest.mark.parametrize(
    "claim",
    [
        'for="203.0.113.9',
        'for="203.0.113.9\\',
        'for="203.0.113.9\\"',
        '"',
        '""" "',
        "for=203.0.113.9;",
        'for=203.0.113.9;host="',
        "\\",
        ",,,=;=;",
        "\xff\xfe",
        "for=203.0.113.9;by=" + "x" * 8000,
    ],
)
def test_what_a_client_wrote_in_front_hides_no_proxys_element(claim: str) -> None:
    for element in ("for=192.0.2.43", 'for="[2001:db8::1]:4711";host="a\\"b"'):
        assert hops(f"{claim}, {element}")[0] == hops(f"{claim},{element}")[0] == hops(element)[0] is not None


tokens = st.text("abcXYZ019!#$%&'*+.^_`|~-", min_size=1, max_size=8)
quoted = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=12).map(
    lambda text: '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
)
others = st.tuples(tokens.filter(lambda name: name.lower() != "for"), tokens | quoted).map("=".join)
addresses = st.ip_addresses().map(str)


@given(st.lists(st.tuples(addresses, st.lists(others, max_size=3), st.lists(others, max_size=3)), max_size=6))
def test_every_well_formed_list_is_read_as_it_was_written(elements: list[tuple[str, list[str], list[str]]]) -> None:
    written = []
    for address, before, after in elements:
        node = f'"[{address}]"' if ":" in address else address
        written.append(";".join([*before, f"for={node}", *after]))
    expected = []
    for address, _, _ in reversed(elements):
        parsed = ip_address(address)
        expected.append(str(getattr(parsed, "ipv4_mapped", None) or parsed))
    assert hops(", ".join(written)) == expected


@given(st.text(st.characters(max_codepoint=0xFF), max_size=60))
def test_nothing_raises(line: str) -> None:
    assert all(hop is None or ip_address(hop) for hop in hops(line))


# Coverage would measure itself.
@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "unit", ['"', "\\", '\\"', '"\\', ",", ";", "for=", ' "', "for=1;", "=", " ", "[", 'a="",', "\\\\"]
)
@pytest.mark.parametrize("form", ["{}", 'for="{}', "{}!"])
def test_any_header_takes_linear_time(unit: str, form: str) -> None:
    def cost(count: int) -> float:
        line, least = form.format(unit * count).encode(), float("inf")
        for _ in range(3):
            start = time.process_time()
            list(forwarded_for([line]))
            least = min(least, time.process_time() - start)
        return least

    # Of the square of the length it would be a hundred times as much; short times are noise.
    assert any(cost(8_000) < 30 * cost(800) + 0.002 for _ in range(5))


TRUSTED = ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("lines", "host"),
    [
        (["for=203.0.113.1"], "203.0.113.1"),
        (["for=198.51.100.1, for=203.0.113.1"], "203.0.113.1"),
        (["for=203.0.113.1, for=10.9.9.9", "for=10.8.8.8"], "203.0.113.1"),
        (["for=203.0.113.1, for=unknown, for=10.2.2.2"], "10.2.2.2"),
        (["for=203.0.113.1, for=_obfuscated"], "10.0.0.1"),
        (['for="203.0.113.1'], "10.0.0.1"),
        ([], "10.0.0.1"),
        (["for=203.0.113.9" + ", for=10.0.0.2" * 20], "203.0.113.9"),
        (["for=203.0.113.9" + ", for=10.0.0.2" * 21], "10.0.0.2"),
    ],
)
def test_a_trusted_proxys_client_is_the_rightmost_hop_that_is_not_trusted(lines: list[str], host: str) -> None:
    proxies = TrustedProxies(TRUSTED, ProxyHeader.FORWARDED)
    assert proxies.client("10.0.0.1", "direct", [line.encode() for line in lines]).host == host
    assert proxies.client("192.0.2.1", "direct", [line.encode() for line in lines]).host == "192.0.2.1"
