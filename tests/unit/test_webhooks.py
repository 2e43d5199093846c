"""Webhooks: signatures, the queue, and when what is delivered; with a fake clock and a fake receiver."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import pytest
from standardwebhooks import Webhook
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from signaling.core.presence_events import PeerJoined, PeerLeft
from signaling.core.presence_reporter import PresenceReporter
from signaling.errors import LeaveReason
from signaling.log.events import Events
from signaling.webhooks.delivery import STOP_SECONDS, TRANSITIONS, DeliveryState, Webhooks
from signaling.webhooks.interfaces import Answer
from signaling.webhooks.queue import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, EventQueue, event_text
from signaling.webhooks.signature import parse_secrets, signed_headers
from signaling.webhooks.target import parse_webhook_url

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(24))).decode()


def joined(number: int, topic: str = "room", metadata: bytes | None = None) -> PeerJoined:
    peer = f"P{number}"
    return PeerJoined(id=f"{peer}.joined", topic=topic, number=1, time=1.5e9, peer=peer, metadata_text=metadata)


def left(number: int, topic: str = "room") -> PeerLeft:
    peer = f"P{number}"
    return PeerLeft(
        id=f"{peer}.left",
        topic=topic,
        number=2,
        time=1.5e9,
        peer=peer,
        joined=f"{peer}.joined",
        reason=LeaveReason.CLOSED,
        duration=2.5,
    )


# Signatures


def test_each_secret_of_a_file_signs() -> None:
    keys = parse_secrets(f"{SECRET}\n\n  {OTHER}  \n")
    headers = signed_headers(keys, "msg_1", int(time.time()), b'{"type":"presence"}')
    text = {name.decode(): value.decode() for name, value in headers.items()}
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(b'{"type":"presence"}', text) == {"type": "presence"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "there is no secret"),
        ("   \n", "there is no secret"),
        (SECRET.removeprefix("whsec_"), "line 1"),
        (f"{SECRET}\nwhsec_AAAA", "line 2"),
        ("whsec_" + "A" * 200, "line 1"),
        ("whsec_not*base64*at*all*not*base64*at*all", "line 1"),
    ],
)
def test_what_is_no_secret_is_refused_without_quoting_it(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        parse_secrets(text)
    assert "AAAA" not in str(caught.value)
    assert SECRET[6:] not in str(caught.value)


# The URL


def test_a_url_without_its_password() -> None:
    target = parse_webhook_url("https://ada:s3%20cret@Hooks.example.com/path?key=1#part")
    assert target.url == b"https://Hooks.example.com/path?key=1"
    assert (target.host, target.port, target.is_tls) == ("hooks.example.com", 443, True)
    assert target.authorization == b"Basic " + base64.b64encode(b"ada:s3 cret")
    for text in (str(target), repr(target)):
        assert "s3" not in text
        assert "key" not in text


@pytest.mark.parametrize(
    ("url", "readable"),
    [
        ("https://example.com/", False),
        ("http://example.com/", True),
        ("http://192.0.2.1:8080/", True),
        ("http://127.0.0.9/", False),
        ("http://[::1]:80/", False),
        ("http://localhost/", False),
    ],
)
def test_a_url_whose_requests_others_can_read(url: str, readable: bool) -> None:
    assert parse_webhook_url(url).is_readable_on_its_way is readable


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "https://",
        "http://a:99999/",
        "http://a:0/",
        "http://[::1/",
        "http://a/ b",
    ],
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("for example https://example.com/presence")):
        parse_webhook_url(text)


# Events as JSON


def test_events_as_json() -> None:
    assert json.loads(event_text(joined(1, metadata=b'{"name":"Ada"}'))) == {
        "type": "peer.joined",
        "timestamp": "2017-07-14T02:40:00.000Z",
        "id": "P1.joined",
        "number": 1,
        "data": {"topic": "room", "peer": "P1", "metadata": {"name": "Ada"}},
    }
    assert json.loads(event_text(left(1)))["data"] == {
        "topic": "room",
        "peer": "P1",
        "joinedId": "P1.joined",
        "reason": "closed",
        "duration": 2.5,
    }


# The queue


def bodies(queue: EventQueue) -> list[Any]:
    """Deliver everything; returns the bodies."""
    found = []
    while (batch := queue.batch(0)) is not None:
        found.append(json.loads(batch.body))
        queue.delivered()
    return found


def ids(body: Any) -> list[str]:
    return [event["id"] for event in body["events"]]


def test_a_batch_stays_the_same_until_it_is_delivered() -> None:
    queue = EventQueue(10)
    queue.add(joined(1))
    first = queue.batch(0)
    queue.add(joined(2))
    assert queue.batch(5) is first
    queue.delivered()
    second = queue.batch(5)
    assert first is not None
    assert second is not None
    assert (ids(json.loads(first.body)), ids(json.loads(second.body))) == (["P1.joined"], ["P2.joined"])
    assert first.id != second.id


def test_a_batch_has_a_bounded_number_of_events() -> None:
    queue = EventQueue(1000)
    for number in range(MAX_BATCH_EVENTS + 1):
        queue.add(joined(number))
    assert [len(body["events"]) for body in bodies(queue)] == [MAX_BATCH_EVENTS, 1]


def test_a_batch_has_a_bounded_length_but_always_an_event() -> None:
    queue = EventQueue(10_000)
    metadata = b'{"x":"' + b"y" * (MAX_BATCH_BYTES // 3) + b'"}'
    huge = b'{"x":"' + b"y" * (2 * MAX_BATCH_BYTES) + b'"}'
    for number, text in enumerate([metadata, metadata, metadata, huge, metadata]):
        queue.add(joined(number, metadata=text))
    assert [len(body["events"]) for body in bodies(queue)] == [2, 1, 1, 1]


def test_a_full_queue_drops_the_oldest_and_tells_so_once() -> None:
    queue = EventQueue(2)
    for number, topic in enumerate(["a", "b", "a", "c", "c"]):
        queue.add(joined(number, topic))
    first, *others = bodies(queue)
    assert ids(first) == ["P3.joined", "P4.joined"]
    assert first["lost"] == {"count": 3, "topics": ["a", "b"]}
    assert not others
    queue.add(joined(9))
    [later] = bodies(queue)
    assert "lost" not in later
    assert queue.lost == 3


def test_a_queue_is_bounded_in_bytes_too() -> None:
    queue = EventQueue(100)
    metadata = b'{"x":"' + b"y" * 20_000 + b'"}'
    for number in range(90):
        queue.add(joined(number, metadata=metadata))
    assert 5 < len(queue) < 11
    assert bodies(queue)[0]["lost"]["count"] == 90 - 10
    assert len(queue) == 0


def test_topics_of_lost_events_are_not_named_if_there_are_too_many() -> None:
    queue = EventQueue(1)
    for number in range(200):
        queue.add(joined(number, f"topic {number}"))
    assert bodies(queue)[0]["lost"] == {"count": 199, "topics": None}


@pytest.mark.parametrize("seed", range(50))
def test_no_leave_is_delivered_without_its_join(seed: int) -> None:
    random, queue = Random(seed), EventQueue(5)
    here: list[int] = []
    got: list[str] = []
    told = 0
    for number in range(300):
        if here and random.random() < 0.5:
            queue.add(left(here.pop(random.randrange(len(here)))))
        else:
            here.append(number)
            queue.add(joined(number))
        if random.random() < 0.2 and (batch := queue.batch(0)) is not None:
            body = json.loads(batch.body)
            got += ids(body)
            told += body.get("lost", {"count": 0})["count"]
            queue.delivered()
    for body in bodies(queue):
        got += ids(body)
        told += body.get("lost", {"count": 0})["count"]
    assert len(set(got)) == len(got)
    for at, event in enumerate(got):
        if event.endswith(".left"):
            assert event.replace(".left", ".joined") in got[:at]
    assert told == queue.lost == 300 - len(got)


def test_a_peer_whose_join_was_dropped_and_is_told_again_leaves_as_well() -> None:
    # It has moved to another node, and has come back.
    queue = EventQueue(3)
    for event in (joined(1), joined(2), joined(3), joined(1), left(1)):
        queue.add(event)
    [body] = bodies(queue)
    assert ids(body) == ["P3.joined", "P1.joined", "P1.left"]


# Deliveries


class Receiver:
    """A receiver, and the requests that came.

    Attributes:
        answers: what it answers from now on: a status, an ``Answer``, an exception, or None for nothing.
    """

    def __init__(self) -> None:
        self.answers: Any = 204
        self.requests: list[tuple[float, Mapping[bytes, bytes], bytes]] = []
        self.accepted: list[bytes] = []
        self.closed = 0
        self.cancelled = 0
        self.clock = Clock()

    def send(self, headers: Mapping[bytes, bytes], body: bytes) -> Deferred[Answer]:
        self.requests.append((self.clock.seconds(), headers, body))
        answer: Deferred[Answer] = Deferred(lambda _: self.cancel())
        given = self.answers
        if isinstance(given, Exception):
            self.clock.callLater(0, answer.errback, given)
        elif given is not None:
            full = given if isinstance(given, Answer) else Answer(given)
            if full.status in (200, 204):
                self.accepted.append(body)
            self.clock.callLater(0, answer.callback, full)
        return answer

    def cancel(self) -> None:
        self.cancelled += 1

    def close(self) -> None:
        self.closed += 1

    @property
    def bodies(self) -> list[Any]:
        """The bodies that were accepted."""
        return [json.loads(body) for body in self.accepted]

    @property
    def events(self) -> list[Any]:
        """All events in them."""
        return [event for body in self.bodies for event in body["events"]]

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return [event["id"] for event in self.events]


class Delivering:
    """Webhooks to a fake receiver."""

    def __init__(self, max_events: int = 1000, chance: float = 0.0) -> None:
        self.receiver = receiver = Receiver()
        self.clock = receiver.clock
        self.start = time.time()
        self.webhooks = Webhooks(
            receiver,
            parse_secrets(SECRET),
            max_events,
            self.clock,
            Events(LogLevel.info, self.clock.seconds),
            wall_clock=lambda: self.start + self.clock.seconds(),
            chance=lambda: chance,
        )

    def run(self, seconds: float = 0.1) -> None:
        """Let time pass, in small steps."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(0.05, end - self.clock.seconds()))


@pytest.fixture
def delivering() -> Delivering:
    return Delivering()


def test_what_happens_together_is_delivered_together(delivering: Delivering) -> None:
    for number in range(3):
        delivering.webhooks.peer_joined(joined(number))
    delivering.run()
    [(_, headers, body)] = delivering.receiver.requests
    text = {name.decode(): value.decode() for name, value in headers.items()}
    assert ids(Webhook(SECRET).verify(body, text)) == ["P0.joined", "P1.joined", "P2.joined"]
    assert delivering.webhooks.delivered == 3
    assert delivering.webhooks.state is DeliveryState.IDLE


def test_one_delivery_is_under_way_at_a_time(delivering: Delivering) -> None:
    delivering.receiver.answers = None
    delivering.webhooks.peer_joined(joined(1))
    delivering.run()
    delivering.webhooks.peer_joined(joined(2))
    delivering.run(10)
    assert len(delivering.receiver.requests) == 1


@pytest.mark.parametrize("answer", [199, 301, 307, 400, 401, 404, 413, 429, 500, 503, ConnectionError()])
def test_a_failure_is_retried_with_the_same_message_at_growing_times(delivering: Delivering, answer: Any) -> None:
    delivering.receiver.answers = answer
    delivering.webhooks.peer_joined(joined(1))
    delivering.run(20)
    times = [round(at, 1) for at, _, _ in delivering.receiver.requests]
    waits = [later - before for before, later in pairwise(times)]
    assert waits == pytest.approx([0.5, 1, 2, 4, 8], abs=0.11)
    delivering.receiver.answers = 200
    delivering.run(20)
    requests = delivering.receiver.requests
    assert len({headers[b"webhook-id"] for _, headers, _ in requests}) == 1
    assert len({body for _, _, body in requests}) == 1
    assert len({headers[b"webhook-timestamp"] for _, headers, _ in requests}) > 3
    assert delivering.webhooks.attempts == {"success": 1, "failure": len(requests) - 1}


def test_retries_are_spread_by_chance() -> None:
    delivering = Delivering(chance=1.0)
    delivering.receiver.answers = 500
    delivering.webhooks.peer_joined(joined(1))
    delivering.run(3)
    times = [at for at, _, _ in delivering.receiver.requests]
    assert [later - before for before, later in pairwise(times)] == pytest.approx([0.25, 0.5, 1], abs=0.11)


def test_retry_after_is_honoured(delivering: Delivering) -> None:
    delivering.receiver.answers = Answer(429, 7.0)
    delivering.webhooks.peer_joined(joined(1))
    delivering.run(6.9)
    assert len(delivering.receiver.requests) == 1
    delivering.run(0.4)
    assert len(delivering.receiver.requests) == 2


def test_410_ends_all_deliveries(delivering: Delivering) -> None:
    delivering.receiver.answers = 410
    delivering.webhooks.peer_joined(joined(1))
    delivering.run()
    delivering.webhooks.peer_joined(joined(2))
    delivering.run(120)
    assert len(delivering.receiver.requests) == 1
    assert (delivering.webhooks.state, delivering.webhooks.lost) == (DeliveryState.GONE, 2)
    assert delivering.webhooks.waiting == 0
    assert delivering.webhooks.stopped() is None


class Person(NamedTuple):
    id: str
    metadata: bytes | None = None


def churn(delivering: Delivering) -> None:
    """Have peers join and leave for two minutes; the receiver is down from the 20th second to the 80th."""
    now = delivering.clock.seconds
    reporter = PresenceReporter(delivering.webhooks, lambda: None, lambda topic: (), lambda text: None, now, now, print)
    random, here = Random(1), list[Person]()
    for number in range(600):
        second = number / 5
        delivering.receiver.answers = ConnectionError() if 20 <= second < 80 else 204
        if here and random.random() < 0.5:
            reporter.left("room", here.pop(0), LeaveReason.CLOSED, may_be_elsewhere=False)
        else:
            here.append(Person(f"P{number}"))
            reporter.joined("room", here[-1], None, opens=True)
        delivering.run(0.2)
    delivering.run(60)


def test_a_receiver_that_is_down_for_a_minute_gets_all_in_order() -> None:
    delivering = Delivering()
    churn(delivering)
    events = delivering.receiver.events
    peers = [event for event in events if event["type"].startswith("peer")]
    assert len(peers) == 600
    assert delivering.webhooks.lost == 0
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    for before, event in pairwise(events):
        assert event["number"] == (1 if event["type"] == "topic.opened" else before["number"] + 1)


def test_a_receiver_that_is_down_for_too_long_is_told_how_much_it_missed() -> None:
    delivering = Delivering(max_events=100)
    churn(delivering)
    told = [body["lost"] for body in delivering.receiver.bodies if "lost" in body]
    assert sum(lost["count"] for lost in told) == delivering.webhooks.lost > 100
    assert all(lost["topics"] == ["room"] for lost in told)
    events = delivering.receiver.events
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    joins = {event["id"] for event in events if event["type"] == "peer.joined"}
    assert {event["data"]["joinedId"] for event in events if event["type"] == "peer.left"} <= joins
    assert delivering.webhooks.waiting == 0


def test_the_end_delivers_what_is_left_at_once(delivering: Delivering) -> None:
    delivering.webhooks.peer_left(left(1))
    end = delivering.webhooks.stopped()
    delivering.clock.advance(0)
    assert end is not None
    assert end.called
    assert delivering.receiver.ids == ["P1.left"]
    assert delivering.receiver.closed == 1
    assert not delivering.clock.getDelayedCalls()


def test_the_end_can_be_cancelled(delivering: Delivering) -> None:
    delivering.receiver.answers = None
    delivering.webhooks.peer_left(left(1))
    end = delivering.webhooks.stopped()
    assert end is not None
    end.cancel()
    assert delivering.receiver.closed == 1
    assert not delivering.clock.getDelayedCalls()


@pytest.mark.parametrize("answer", [None, 500])
def test_the_end_waits_for_a_bounded_time(delivering: Delivering, answer: Any) -> None:
    delivering.receiver.answers = answer
    delivering.webhooks.peer_left(left(1))
    end = delivering.webhooks.stopped()
    assert end is not None
    delivering.run(STOP_SECONDS - 0.1)
    assert not end.called
    delivering.run(0.2)
    assert end.called
    assert not delivering.clock.getDelayedCalls()
    assert delivering.receiver.cancelled == (answer is None)


def test_deliveries_go_on_after_an_end(delivering: Delivering) -> None:
    assert delivering.webhooks.stopped() is None
    delivering.webhooks.peer_joined(joined(1))
    delivering.run()
    assert delivering.receiver.ids == ["P1.joined"]


def test_new_secrets_sign_the_next_request(delivering: Delivering) -> None:
    delivering.webhooks.keys = parse_secrets(OTHER)
    delivering.webhooks.peer_joined(joined(1))
    delivering.run()
    [(_, headers, body)] = delivering.receiver.requests
    Webhook(OTHER).verify(body, {name.decode(): value.decode() for name, value in headers.items()})


def test_every_state_has_transitions() -> None:
    assert TRANSITIONS.keys() == set(DeliveryState)
