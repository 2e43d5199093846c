"""One peer's session without I/O: a server is played by hand, message by message."""

from __future__ import annotations

import json
import pickle
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from twisted.internet.task import Clock

from signaling.client import session as session_module
from signaling.client.credential import Step
from signaling.client.messages import (
    Error,
    IceServers,
    Notice,
    Offer,
    Peer,
    PeerJoined,
    PeerLeft,
    PeerList,
    Resume,
    Welcome,
)
from signaling.client.session import MOST_KEPT, Session
from tests.harness.wire_schema import check_from_client

URL = "ws://example.com/ws/room"


class Played:
    """A session, and the server that its connection leads to."""

    def __init__(self, url: str = URL, **options: Any) -> None:
        self.session = Session(url, **options)

    def hear(self, **message: Any) -> list[Any]:
        """Let the session receive one message; returns what the application hears."""
        self.session.receive(json.dumps(message))
        return self.session.events()

    def enter(self, own: str, *others: str, token: str | None = None, resumed: bool = False) -> list[Any]:
        resume = {"resume": {"token": token, "window": 20}} if token else {}
        heard = self.hear(type="welcome", selfId=own, **resume, **({"resumed": True} if resumed else {}))
        return heard + self.hear(type="peer-list", peers=[{"id": other} for other in others])

    def written(self) -> list[dict[str, Any]]:
        texts = self.session.writes()
        for text in texts:
            check_from_client(text)
        return [json.loads(text) for text in texts]

    def pass_fence(self, fence: dict[str, Any]) -> list[Any]:
        """Let a message to the session itself come back."""
        assert fence["to"] == self.session.self_id
        return self.hear(type=fence["type"], **{"from": fence["to"], "msgId": fence["msgId"]})

    def claim(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.session.url).query)


@pytest.fixture
def played() -> Played:
    return Played()


@pytest.mark.parametrize(
    ("url", "metadata", "made"),
    [
        ("http://example.com/ws/room", None, "ws://example.com/ws/room"),
        ("https://example.com/ws/a%2Fb", None, "wss://example.com/ws/a%2Fb"),
        ("wss://example.com/ws/a room?x=1#top", None, "wss://example.com/ws/a%20room?x=1"),
        (URL, {"name": "A&b"}, URL + "?metadata=%7B%22name%22%3A%22A%26b%22%7D"),
        (URL + "?x=1", {}, URL + "?x=1&metadata=%7B%7D"),
    ],
)
def test_the_url_names_the_topic_and_the_metadata(url: str, metadata: dict | None, made: str) -> None:
    assert Session(url, metadata).url == made


@pytest.mark.parametrize("url", ["example.com/ws/room", "ftp://example.com/ws/room", "ws:///ws/room"])
def test_what_is_no_url_of_a_topic_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        Session(url)


def test_metadata_may_not_be_given_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        Session(URL + "?metadata=%7B%7D", {})


def test_the_application_hears_typed_messages(played: Played) -> None:
    assert played.enter("b", "a") == [Welcome("b"), PeerList([Peer("a")])]
    assert played.hear(type="peer-joined", peerId="c", metadata={"n": 1}) == [PeerJoined("c", {"n": 1})]
    assert played.session.peers == {"a": None, "c": {"n": 1}}
    assert played.hear(type="peer-left", peerId="a") == [PeerLeft("a")]
    assert played.hear(type="offer", **{"from": "c"}, payload=[1]) == [Offer("c", [1])]
    servers = [{"urls": "stun:example.com"}]
    assert played.hear(type="ice-servers", iceServers=servers) == [IceServers(servers)]
    assert played.session.ice_servers == servers


def test_features_are_those_of_the_latest_welcome(played: Played) -> None:
    assert played.session.features == frozenset()
    played.hear(type="welcome", selfId="b", features=["notices", "resume"])
    assert played.session.features == {"notices", "resume"}
    played.session.lost()
    [welcome] = played.hear(type="welcome", selfId="c")
    assert (welcome.features, played.session.features) == (frozenset(), frozenset())


def test_of_many_or_long_features_a_bounded_number_is_kept(played: Played) -> None:
    names = ["x" * 1_000, "notices", *(f"feature {number}" for number in range(10_000))]
    [welcome] = played.hear(type="welcome", selfId="b", features=names)
    assert len(welcome.features) == session_module.MOST_FEATURES
    assert max(map(len, welcome.features)) < 64
    assert played.session.features == welcome.features


def test_a_notice_is_passed_on_and_counted(played: Played) -> None:
    played.enter("b", token="t")
    assert played.hear(type="notice", data={"text": "soon"}) == [Notice({"text": "soon"})]
    assert played.claim()["seen"] == ["3"]


def test_one_peers_metadata_keeps_nobody_out_of_a_topic(played: Played) -> None:
    played.hear(type="welcome", selfId="b")
    deep = "[" * 2_030 + "]" * 2_030
    played.session.receive(f'{{"type":"peer-list","peers":[{{"id":"a","metadata":{{"a":{deep}}}}},{{"id":"c"}}]}}')
    assert played.session.open
    assert list(played.session.peers) == ["a", "c"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"type":"new"}', '{"type":"offer"}', "[" * 100_000, '{"type":"offer","from":1}']
)
def test_what_cannot_be_read_is_counted_and_left_out(played: Played, text: str) -> None:
    played.enter("b", token="t")
    played.session.receive(text)
    assert played.session.events() == []
    assert played.claim()["seen"] == ["3"]


def test_a_lone_surrogate_of_a_browser_is_read(played: Played) -> None:
    played.enter("b")
    played.session.receive('{"type":"offer","from":"a","payload":"\\ud800"}')
    assert played.session.events() == [Offer("a", "\ud800")]


def test_a_token_reaches_no_log() -> None:
    assert "secret" not in repr(Welcome("b", resume=Resume("secret", 20.0)))


def test_every_message_since_the_first_welcome_is_counted(played: Played) -> None:
    assert played.claim() == {}
    played.enter("b", token="t1")
    played.hear(type="peer-joined", peerId="c")
    assert played.claim() == {"resume": ["t1"], "seen": ["3"]}
    played.session.lost()
    played.enter("b", "c", token="t2", resumed=True)
    assert played.claim() == {"resume": ["t2"], "seen": ["5"]}
    played.session.lost()
    played.enter("d", "c", token="t3")
    assert played.claim() == {"resume": ["t3"], "seen": ["2"]}


@pytest.mark.parametrize("resumed", [True, False])
def test_after_a_loss_only_what_changed_is_told_and_only_once(played: Played, resumed: bool) -> None:
    played.enter("c", "a", "b", token="t")
    played.session.lost()
    own = "c" if resumed else "e"
    welcome, *changes = played.enter(own, "b", "d", token="u", resumed=resumed)
    assert isinstance(welcome, Welcome)
    assert changes == [PeerLeft("a"), PeerJoined("d")]
    # What was missed comes once more, and is no news.
    assert played.hear(type="peer-left", peerId="a") == []
    assert played.hear(type="peer-joined", peerId="d") == []


def test_this_peers_former_self_is_nobody(played: Played) -> None:
    played.enter("b", "a")
    played.session.lost()
    assert len(played.enter("c", "a", "b")) == 1
    assert played.session.peers == {"a": None}
    assert played.hear(type="peer-left", peerId="b") == []


def test_a_message_is_kept_until_a_fence_tells_that_the_server_has_it(played: Played) -> None:
    played.enter("b", "a", token="t")
    ends: list[Error | None] = []
    played.session.send("offer", "a", 1, ends.append)
    offer, fence = played.written()
    assert (offer["type"], offer["to"], offer["payload"]) == ("offer", "a", 1)
    assert ends == []
    assert played.pass_fence(fence) == []
    assert ends == [None]
    assert played.written() == []


def test_one_fence_at_a_time_tells_of_all_before_it(played: Played) -> None:
    played.enter("b", "a")
    ends: list[Error | None] = []
    played.session.send("offer", "a", 1, ends.append)
    _, first = played.written()
    played.session.send("offer", "a", 2, ends.append)
    assert len(played.written()) == 1
    played.pass_fence(first)
    assert ends == [None]
    [second] = played.written()
    played.pass_fence(second)
    assert ends == [None, None]


def test_an_error_ends_its_message_and_no_other(played: Played) -> None:
    played.enter("b", "a")
    ends: list[Error | None] = []
    refused = played.session.send("offer", "x", 1, ends.append)
    played.session.send("offer", "a", 2)
    *_, fence = played.written()
    assert played.hear(type="error", code="target_not_found", message="peer not found", msgId=refused) == []
    assert [error.code for error in ends if error] == ["target_not_found"]
    played.pass_fence(fence)
    assert len(ends) == 1


def test_a_fence_that_is_refused_tells_as_much(played: Played) -> None:
    played.enter("b", "a")
    ends: list[Error | None] = []
    played.session.send("offer", "a", 1, ends.append)
    _, fence = played.written()
    assert played.hear(type="error", code="rate_limited", message="slow down", msgId=fence["msgId"]) == []
    assert ends == [None]


def test_a_resumed_session_hears_what_it_missed_before_it_sends_again(played: Played) -> None:
    played.enter("b", "a", token="t")
    ends: list[Error | None] = []
    dropped = played.session.send("offer", "a", 1, ends.append)
    lost = played.session.send("offer", "a", 2, ends.append)
    played.written()
    played.session.lost()
    played.enter("b", "a", token="u", resumed=True)
    [fence] = played.written()
    assert played.written() == []
    played.hear(type="error", code="dropped", message="", msgId=dropped)
    played.pass_fence(fence)
    again, _ = played.written()
    assert again["msgId"] == lost
    assert [error and error.code for error in ends] == ["dropped"]


def test_a_fence_of_the_former_connection_may_still_come_back(played: Played) -> None:
    played.enter("b", "a", token="t")
    ends: list[Error | None] = []
    played.session.send("offer", "a", 1, ends.append)
    _, former = played.written()
    played.session.lost()
    played.enter("b", "a", token="u", resumed=True)
    [fence] = played.written()
    played.pass_fence(former)
    assert ends == [None]
    assert played.written() == []
    played.pass_fence(fence)
    assert played.written() == []


def test_what_was_sent_as_a_peer_that_is_gone_is_dropped(played: Played) -> None:
    played.enter("b", "a", token="t")
    msg_id = played.session.send("offer", "a", 1)
    played.written()
    played.session.lost()
    errors = [event for event in played.enter("c", "a") if isinstance(event, Error)]
    assert [(error.code, error.msg_id) for error in errors] == [("dropped", msg_id)]
    assert played.written() == []


def test_messages_wait_for_a_connection_up_to_a_bound(played: Played) -> None:
    kept = [played.session.send("offer", "a", number) for number in range(MOST_KEPT)]
    assert played.session.events() == []
    too_many = played.session.send("offer", "a", "one more")
    assert [error.msg_id for error in played.session.events()] == [too_many]
    played.enter("b", "a")
    assert [message["msgId"] for message in played.written()[:-1]] == kept


def test_what_comes_twice_is_heard_once(played: Played) -> None:
    played.enter("b", "a")
    heard = [played.hear(type="offer", **{"from": sender}, msgId=f"~{number}") for sender, number in ARRIVING]
    assert [bool(events) for events in heard] == [True, True, False, True, True, False]


ARRIVING = [("a", 1), ("a", 2), ("a", 1), ("x", 1), ("a", 4), ("a", 4)]


def test_a_msg_id_of_another_kind_is_nothing_to_go_by(played: Played) -> None:
    played.enter("b", "a")
    for msg_id in ("1", "1", "~", "~x", "fence 1 1"):
        assert played.hear(type="offer", **{"from": "a"}, msgId=msg_id)


def test_who_leaves_hears_what_became_of_the_rest(played: Played) -> None:
    played.enter("b", "a", token="t")
    played.session.send("offer", "a", 1)
    played.session.leave()
    assert [error.code for error in played.session.events()] == ["dropped"]
    assert played.claim() == {}


@pytest.mark.parametrize(("kind", "payload"), [("bye", 1), ("offer", float("nan")), ("offer", {1, 2})])
def test_what_is_no_message_is_refused_at_once(played: Played, kind: str, payload: Any) -> None:
    played.enter("b", "a")
    with pytest.raises((ValueError, TypeError)):
        played.session.send(kind, "a", payload)
    assert played.written() == []


def test_a_message_that_is_longer_than_the_server_takes_is_refused_at_once(played: Played) -> None:
    played.enter("b", "a", token="t")
    with pytest.raises(ValueError, match="at most 65,536"):
        played.session.send("offer", "a", {"sdp": "x" * 65_536})
    assert played.written() == []
    assert played.session.send("offer", "a", {"sdp": "x" * 65_000})


def test_a_server_may_take_more() -> None:
    session = Session(URL, max_message_bytes=200_000)
    assert session.send("offer", "a", "x" * 100_000)


@pytest.mark.parametrize("resumed", [True, False])
def test_what_a_server_closed_the_connection_for_is_not_sent_again(played: Played, resumed: bool) -> None:
    played.enter("b", "a", token="t")
    ends: list[Error | None] = []
    played.session.send("offer", "a", "x" * 10)
    played.session.send("offer", "a", "x" * 60_000, ends.append)
    played.written()
    played.session.lost(1009, "limit of 4096\noctets")
    assert [error and error.code for error in ends] == ["too_large"]
    assert "(limit of 4096 octets)" in str(ends[0])
    played.enter("b" if resumed else "c", "a", token="u", resumed=resumed)
    while texts := played.written():
        assert all(len(str(text)) < 60_000 for text in texts)
        played.pass_fence(texts[-1])
    assert len(ends) == 1


def test_nobody_is_remembered_after_they_are_gone(played: Played) -> None:
    for number in range(1_000):
        own, other = f"own-{number}", f"other-{number}"
        played.enter(own, other, f"own-{number - 1}")
        played.hear(type="offer", **{"from": other}, msgId="~1")
        played.hear(type="offer", **{"from": f"unknown-{number}"}, msgId="~1")
        played.session.lost()
    assert len(pickle.dumps(played.session)) < 10_000


def test_a_payload_that_is_nested_too_deeply_to_be_written_is_refused(played: Played) -> None:
    payload: list[Any] = []
    for _ in range(100_000):
        payload = [payload]
    with pytest.raises(ValueError, match="nested too deeply"):
        played.session.send("offer", "a", payload)
    while payload:
        # Python 3.11 frees such a list recursively.
        payload = payload.pop()


def test_a_token_is_sent_back_whatever_the_server_put_into_it(played: Played) -> None:
    played.enter("b", token="\ud800&\n")
    assert "resume=%3F%26%0A&seen=2" in played.session.url


# What is sent before the welcome


def test_what_comes_before_a_welcome_is_not_counted(played: Played) -> None:
    played.enter("b", "a", token="t")
    played.session.lost()
    # The server could not resume, and the topic is full.
    full = played.hear(type="error", code="topic_full", message="full")
    assert full == [Error("topic_full", "full")]
    assert played.hear(type="peer-joined", peerId="c") == []
    played.session.lost(1013)
    assert played.claim() == {"resume": ["t"], "seen": ["2"]}
    played.enter("b", "a", token="u", resumed=True)
    assert played.claim() == {"resume": ["u"], "seen": ["4"]}


# Tokens


def asked() -> str:
    raise AssertionError("the session asks nobody")


@pytest.fixture
def renewing() -> Played:
    clock = Clock()
    played = Played(token=asked, clock=clock.seconds)
    played.hear(type="welcome", selfId="b", expiresIn=10, resume={"token": "t", "window": 20})
    played.hear(type="peer-list", peers=[])
    return played


@pytest.mark.parametrize("url", [URL + "?token=x", URL + "?a=1&token=", "ws://ada:north@example.com/ws/room"])
def test_a_token_may_not_be_given_twice(url: str) -> None:
    Session(url)
    with pytest.raises(ValueError, match="given twice") as error:
        Session(url, token="secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["http:/ws/room?token=secret", "ftp://ada:secret@example.com/ws/room"])
def test_a_wrong_url_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="for example") as error:
        Session(url)
    assert "secret" not in str(error.value)


def test_a_function_is_asked_at_four_fifths_and_its_token_is_sent(renewing: Played) -> None:
    assert renewing.session.renewal() == Step(8.0)
    assert renewing.session.renewal() is None
    renewing.session.renew("fresh")
    [sent] = renewing.written()
    assert sent == {"type": "token", "token": "fresh", "msgId": sent["msgId"]}
    assert renewing.hear(type="token", expiresIn=20, msgId=sent["msgId"]) == []
    assert renewing.session.renewal() == Step(16.0)
    # It counts like every message.
    assert renewing.claim()["seen"] == ["3"]


def test_a_refused_renewal_is_no_event_and_is_repeated(renewing: Played) -> None:
    renewing.session.renewal()
    renewing.session.renew("fresh")
    [sent] = renewing.written()
    answer = {"type": "error", "code": "invalid_token", "message": "another\nowner", "msgId": sent["msgId"]}
    assert renewing.hear(**answer) == []
    assert renewing.session.renewal() == Step(2.5, "the server refused the new token: another owner")
    assert renewing.hear(**answer) == []
    assert renewing.session.renewal() is None


@pytest.mark.parametrize("token", [None, "text"])
def test_only_a_function_is_asked_for_renewals(token: str | None) -> None:
    played = Played(token=token)
    assert isinstance(played.hear(type="welcome", selfId="b", expiresIn=10)[0], Welcome)
    assert played.session.renewal() is None


def test_answers_that_nobody_asked_for_change_nothing(renewing: Played) -> None:
    renewing.session.renewal()
    for answer in ({"expiresIn": 1}, {"expiresIn": 1, "msgId": "token 1"}, {"expiresIn": 1, "msgId": ""}):
        assert renewing.hear(type="token", **answer) == []
    assert renewing.session.renewal() is None
    renewing.session.renew("fresh")
    [sent] = renewing.written()
    renewing.hear(type="token", expiresIn=10, msgId=sent["msgId"])
    renewing.hear(type="token", expiresIn=1, msgId=sent["msgId"])
    assert renewing.session.renewal() == Step(8.0)
    assert renewing.session.renewal() is None


def test_a_loss_ends_a_renewal_and_a_resumed_session_begins_another(renewing: Played) -> None:
    renewing.session.renew("fresh")
    [sent] = renewing.written()
    renewing.session.renew("fresher")
    renewing.session.lost()
    assert renewing.session.renewal() is None
    renewing.session.renew("too late")
    renewing.hear(type="welcome", selfId="b", expiresIn=100, resume={"token": "u", "window": 20}, resumed=True)
    renewing.hear(type="peer-list", peers=[])
    assert [message["msgId"].split()[0] for message in renewing.written()] == ["fence"]
    assert renewing.session.renewal() == Step(80.0)
    renewing.hear(type="token", expiresIn=1, msgId=sent["msgId"])
    assert renewing.session.renewal() is None


def test_a_token_is_renewed_while_a_resumed_session_catches_up(renewing: Played) -> None:
    renewing.session.send("offer", "a", 1)
    renewing.written()
    renewing.session.lost()
    renewing.hear(type="welcome", selfId="b", expiresIn=1, resume={"token": "u", "window": 20}, resumed=True)
    renewing.hear(type="peer-list", peers=[])
    [fence] = renewing.written()
    renewing.session.renew("fresh")
    assert [message["type"] for message in renewing.written()] == ["token"]
    renewing.pass_fence(fence)
    assert [message["type"] for message in renewing.written()] == ["offer", "ice-candidate"]


# Servers that are strangers


def test_a_second_welcome_or_list_on_a_connection_is_ignored(played: Played) -> None:
    played.enter("b", "a")
    assert played.hear(type="welcome", selfId="x") == []
    assert played.hear(type="peer-list", peers=[{"id": "x"}]) == []
    assert (played.session.self_id, played.session.peers) == ("b", {"a": None})


def test_a_topic_has_a_bounded_number_of_peers(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MOST_PEERS", 3)
    _, listed = played.enter("b", "a1", "a2", "a3", "a4")
    assert listed == PeerList([Peer("a1"), Peer("a2"), Peer("a3")])
    assert played.hear(type="peer-joined", peerId="a5") == []
    assert played.hear(type="peer-left", peerId="a2") == [PeerLeft("a2")]
    assert played.hear(type="peer-joined", peerId="a6") == [PeerJoined("a6")]
    assert list(played.session.peers) == ["a1", "a3", "a6"]


def test_the_peers_of_a_topic_take_bounded_memory(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MOST_PEERS_BYTES", 10_000)
    played.enter("b")
    for _ in range(3):
        joined = [played.hear(type="peer-joined", peerId=f"a{n}", metadata={"x": "x" * 900}) for n in range(20)]
        assert 9 <= sum(map(bool, joined)) <= 11
        for peer_id in list(played.session.peers):
            played.hear(type="peer-left", peerId=peer_id)


def test_a_server_that_confirms_nothing_makes_a_client_keep_a_bounded_amount(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MOST_UNCONFIRMED", 500)
    played.enter("b", "a", token="t")
    for _ in range(600):
        played.session.send("offer", "a", 1)
        played.session.writes()
    errors = played.session.events()
    assert len(errors) == 100
    assert {error.code for error in errors if isinstance(error, Error)} == {"dropped"}
    monkeypatch.setattr(session_module, "MOST_UNCONFIRMED", 10_000)
    monkeypatch.setattr(session_module, "MOST_UNCONFIRMED_BYTES", 100_000)
    for _ in range(10):
        played.session.send("offer", "a", "x" * 50_000)
    assert len(played.session.events()) == 8


def test_room_is_there_again_once_messages_were_confirmed_or_answered(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MOST_UNCONFIRMED_BYTES", 100_000)
    played.enter("b", "a")
    for _ in range(50):
        msg_id = played.session.send("offer", "a", "x" * 50_000)
        texts = played.written()
        played.hear(type="error", code="dropped", message="", msgId=msg_id)
        played.session.send("offer", "a", "x" * 50_000)
        texts += played.written()
        played.session.events()
        for text in texts:
            if text["msgId"].startswith("fence"):
                played.pass_fence(text)
        for text in played.written():
            played.pass_fence(text)
        assert played.session.events() == []


def test_a_server_that_welcomes_and_never_lists_is_forgotten(played: Played) -> None:
    for number in range(1_000):
        played.hear(type="welcome", selfId=f"own-{number}" + "x" * 1_000)
        played.session.lost()
    assert len(pickle.dumps(played.session)) < 40_000
