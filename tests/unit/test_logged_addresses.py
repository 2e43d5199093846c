"""How much of the addresses of clients a log shows, in fields, texts and tracebacks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, eventAsText, formatEvent, globalLogPublisher
from twisted.python import log as legacy_log
from twisted.python.failure import Failure

from signaling.admission.logged_addresses import AddressDetail, LoggedAddresses
from signaling.log.address_mask import AddressMask
from signaling.log.events import Events
from signaling.log.json_format import format_json

FULL, NETWORK, OFF = map(LoggedAddresses, (AddressDetail.FULL, AddressDetail.NETWORK, AddressDetail.OFF))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("192.0.2.77:40000", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("[2001:db8:1:2::7]:40000", "2001:db8:1::/48"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("[fe80::1%eth0]:1", "fe80::/48"),
        ("a UNIX socket", "a UNIX socket"),
        ("unix:/home/ada/client.sock", "a UNIX socket"),
        (r"a\x1b[31m:8081", None),
        (None, None),
    ],
)
def test_an_address_is_shown_in_full_by_its_network_or_not_at_all(address: str | None, network: str | None) -> None:
    assert FULL.shown(address) == address
    assert NETWORK.shown(address) == network
    assert OFF.shown(address) is None


@pytest.mark.parametrize(
    ("text", "by_network", "without"),
    [
        ("at most 10 from one address (192.0.2.77)", "at most 10 from one address (192.0.2.0/24)", "({})"),
        ("one address (2001:db8:1:2::/64)", "one address (2001:db8:1::/48)", "({})"),
        ("lost 192.0.2.77:40000.", "lost 192.0.2.0/24.", "lost {}."),
        ("to [2001:db8::7]:443 in time", "to 2001:db8::/48 in time", "to {} in time"),
        ("2001:db8::7: refused", "2001:db8::/48: refused", "{}: refused"),
        ("it was 2001:db8::7.", "it was 2001:db8::/48.", "it was {}."),
        ("peer:2001:db8::7", "peer:2001:db8::/48", "peer:{}"),
        ("fe80::7%eth0 left", "fe80::/48 left", "{} left"),
        ("::ffff:192.0.2.77", "192.0.2.0/24", "{}"),
        ("cafe:192.0.2.77", "cafe:192.0.2.0/24", "cafe:{}"),
        ("[HTTPChannel,3,192.0.2.77]", "[HTTPChannel,3,192.0.2.0/24]", "[HTTPChannel,3,{}]"),
        ("host='192.0.2.77', port=4", "host='192.0.2.0/24', port=4", "host='{}', port=4"),
        ("192.0.2.77 and 198.51.100.7", "192.0.2.0/24 and 198.51.100.0/24", "{} and {}"),
        # What may contain one, and leaves open which.
        (r"b'1\n2001:db8:1:2::77'", r"b'1\n-'", r"b'1\n{}'"),
        ("2001:db8:1:2:3:4:5:6:8080", "-", "{}"),
    ],
)
def test_addresses_in_a_text_are_masked_wherever_they_stand(text: str, by_network: str, without: str) -> None:
    assert FULL.in_text(text) == text
    assert NETWORK.in_text(text) == by_network
    assert NETWORK.in_text(by_network) == by_network
    assert OFF.in_text(text).endswith(without.format("-", "-"))


@pytest.mark.parametrize(
    "text", ["at 11:45:31", "2026-11-28T11:45:31.123Z", "version 1.2.3", "1.2.3.400", "Foo::bar", "...", "a:b", "feed"]
)
def test_what_is_no_address_stays(text: str) -> None:
    assert NETWORK.in_text(text) == OFF.in_text(text) == text


@given(st.text("0123456789abcdef:.[]%/ x", max_size=60), st.sampled_from(["192.0.2.77", "2001:db8:1:2::77"]))
def test_an_address_between_other_words_never_stays(text: str, address: str) -> None:
    assert address not in NETWORK.in_text(f"{text} {address} {text}")
    assert address not in OFF.in_text(f"{text} {address}")


# Coverage would measure itself.
@pytest.mark.unmeasured
@pytest.mark.parametrize("piece", ["1:", "1.", "a:1.", "[1", "::1.", "192.0.2.1", "%a", "1:%a", "/1", "]:1"])
def test_a_long_text_takes_linear_time(piece: str) -> None:
    def cost(count: int) -> float:
        text, least = piece * count, float("inf")
        for _ in range(5):
            start = time.process_time()
            NETWORK.in_text(text)
            least = min(least, time.process_time() - start)
        return least

    # Of the square of the length it would be a hundred times as much.
    assert any(cost(20_000) < 30 * cost(2_000) + 0.002 for _ in range(5))


def logged(detail: AddressDetail, write: Callable[[Events], object]) -> list[Any]:
    caught: list[Any] = []
    globalLogPublisher.addObserver(caught.append)
    try:
        write(Events(LogLevel.debug, Clock().seconds, LoggedAddresses(detail)))
    finally:
        globalLogPublisher.removeObserver(caught.append)
    return caught


REASON = "at most 10 connections from one address (192.0.2.77)"


@pytest.mark.parametrize(
    ("detail", "shown"),
    [(AddressDetail.FULL, "192.0.2.77"), (AddressDetail.NETWORK, "192.0.2.0/24"), (AddressDetail.OFF, "-")],
)
def test_our_events_show_it_in_fields_and_reasons_as_text_and_as_json(detail: AddressDetail, shown: str) -> None:
    def write(events: Events) -> None:
        events.joined("01", "192.0.2.77", "192.0.2.77")
        events.refused("192.0.2.77", 429, REASON)

    joined, refused = logged(detail, write)
    assert json.loads(format_json(joined))["address"] == json.loads(format_json(refused))["address"] == shown
    # The name of a topic is no address, whatever it looks like.
    assert formatEvent(joined) == f"01 joined '192.0.2.77' from {shown}"
    assert json.loads(format_json(refused))["reason"] == REASON.replace("192.0.2.77", shown)
    assert formatEvent(refused) == f"refused a request from {shown}: 429 {REASON.replace('192.0.2.77', shown)}"


@pytest.mark.parametrize("detail", list(AddressDetail))
@pytest.mark.parametrize(
    "write",
    [
        lambda events: events.listening("192.0.2.1:8081"),
        lambda events: events.listen_failed("tcp:8081:interface=192.0.2.1: in use"),
        lambda events: events.option_changed("trusted-proxy", "192.0.2.1", "192.0.2.1, 192.0.2.3"),
        lambda events: events.reload_failed("line 7: trusted-proxy: '192.0.2.1/8' is not an address"),
        lambda events: events.backplane_disconnected("redis://192.0.2.1", "192.0.2.1 refuses"),
        lambda events: events.backplane_error("redis://192.0.2.1", "MOVED", "MOVED 1 192.0.2.1"),
    ],
)
def test_addresses_of_the_servers_themselves_are_always_shown(
    detail: AddressDetail, write: Callable[[Events], object]
) -> None:
    (event,) = logged(detail, write)
    (full,) = logged(AddressDetail.FULL, write)
    assert formatEvent(event) == formatEvent(full)


def test_a_failure_of_ours_is_masked_too() -> None:
    failure = Failure(RuntimeError("no route to 192.0.2.77"))
    (event,) = logged(AddressDetail.NETWORK, lambda events: events.log.failure("to 192.0.2.77", failure))
    text = eventAsText(event)
    assert text.count("192.0.2.0/24") == 2
    assert "192.0.2.77" not in text + format_json(event)


def write_foreign() -> None:
    log = Logger(namespace="twisted.web")
    log.info("{address} asked for {path}", address="192.0.2.77", path="/", log_system="HTTPChannel,3,192.0.2.77")
    log.failure("192.0.2.77", Failure(RuntimeError("lost 192.0.2.77")))
    legacy_log.msg("GET / from 192.0.2.77", system="HTTPChannel,3,192.0.2.77")
    legacy_log.err(RuntimeError("192.0.2.77"), "from 192.0.2.77")


def test_lines_of_other_libraries_are_masked_with_their_tracebacks() -> None:
    texts: list[str] = []
    masked = AddressMask(lambda event: texts.extend([eventAsText(event), format_json(event), repr(event)]), NETWORK)
    globalLogPublisher.addObserver(masked)
    try:
        write_foreign()
    finally:
        globalLogPublisher.removeObserver(masked)
    assert len(texts) == 12
    assert all("192.0.2.0/24" in text for text in texts)
    assert "192.0.2.77" not in "".join(texts)


def test_our_own_events_pass_as_they_are() -> None:
    (event,) = logged(AddressDetail.FULL, lambda events: events.joined("01", "room", "192.0.2.77"))
    passed: list[Any] = []
    AddressMask(passed.append, OFF)(event)
    assert passed == [event]
