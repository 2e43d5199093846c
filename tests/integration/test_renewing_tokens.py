"""A new token in place of the old one, on an open connection: by every way in, with sessions and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.logger import LogLevel

from signaling import Grant, GrantRealm
from tests import issuer
from tests.integration.access import NOW, OpaqueChecker, Slow, enter
from tests.integration.harness import Harness, Peer
from tests.issuer import token

MakeHarness = Callable[..., Harness]
IN_AN_HOUR = NOW + 3600
OTHER_OWNER = "the token has another owner (sub), or other metadata"
NO_OWNER = "the token has no owner (sub), so it cannot replace another one"


@pytest.fixture
def harness(make_harness: MakeHarness, tmp_path: Path) -> Harness:
    """A server that takes tokens of the issuer."""
    return make_harness(portal=issuer.portal(tmp_path))


@pytest.fixture
def resuming(make_harness: MakeHarness, tmp_path: Path) -> Harness:
    """The same, where sessions can be resumed."""
    return make_harness(portal=issuer.portal(tmp_path), resume_window_seconds=300)


def joined(harness: Harness, text: str, query: str = "") -> Peer:
    """Join, and read the welcome and the peer list."""
    peer = enter(harness, text, query=query)
    peer.heard()
    return peer


def renewal(text: Any, **more: Any) -> dict[str, Any]:
    return {"type": "token", "token": text, **more}


def ada(harness: Harness, seconds: int, own: Any = None, **claims: Any) -> str:
    """Mint a token of Ada's that ends after so many seconds."""
    return token(own, sub="Ada", exp=int(harness.start) + seconds, **claims)


# Seconds


@pytest.mark.parametrize(("after", "left"), [(0, 100), (0.5, 99), (99.5, 0)])
def test_welcome_says_in_how_many_seconds_the_token_expires(harness: Harness, after: float, left: int) -> None:
    harness.advance(after)
    welcome, _ = enter(harness, ada(harness, 100)).heard()
    assert welcome["expiresIn"] == left


def test_welcome_says_nothing_of_a_token_that_never_expires(make_harness: MakeHarness) -> None:
    harness = make_harness(portal=Portal(GrantRealm(), [OpaqueChecker()]))  # type: ignore[list-item]
    assert set(enter(harness, "opaque").heard()[0]) == {"type", "selfId", "features"}


def test_a_far_end_is_a_number_that_every_client_reads(harness: Harness) -> None:
    assert enter(harness, token(exp=1e300)).heard()[0]["expiresIn"] == 2**53 - 1


# A good token


def test_a_new_token_takes_the_place_of_the_old_one(harness: Harness) -> None:
    peer = joined(harness, ada(harness, 10))
    harness.advance(8)
    peer.say(renewal(ada(harness, 100), msgId="1"))
    assert peer.heard() == [{"type": "token", "expiresIn": 92, "msgId": "1"}]
    harness.advance(91)
    assert peer.closed is None
    harness.advance(2)
    assert peer.closed == 4401


def test_a_new_token_may_expire_sooner(harness: Harness) -> None:
    peer = joined(harness, ada(harness, 100))
    peer.say(renewal(ada(harness, 10)))
    assert peer.heard() == [{"type": "token", "expiresIn": 10}]
    harness.advance(11)
    assert peer.closed == 4401


def test_a_token_is_renewed_again_and_again(harness: Harness) -> None:
    peer = joined(harness, ada(harness, 5))
    for seconds in range(4, 60, 4):
        harness.advance(4)
        peer.say(renewal(ada(harness, seconds + 5)))
    assert peer.heard() == [{"type": "token", "expiresIn": 5}] * 14
    assert peer.closed is None


def test_a_new_token_says_whether_its_client_may_send(harness: Harness) -> None:
    listener, other = joined(harness, ada(harness, 100, {"topics": ["room"], "send": False})), joined(harness, token())
    listener.say_many(
        [
            {"type": "offer", "to": other.id},
            renewal(ada(harness, 200)),
            {"type": "offer", "to": other.id, "msgId": "1"},
            renewal(ada(harness, 300, {"prefixes": [""], "send": False}), msgId="2"),
            {"type": "offer", "to": other.id},
        ]
    )
    assert [message.get("code", message["type"]) for message in listener.heard()[1:]] == [
        *("forbidden", "token", "token", "forbidden")
    ]
    assert [message["msgId"] for message in other.heard() if message["type"] == "offer"] == ["1"]


def test_an_answer_without_an_end_says_none(make_harness: MakeHarness) -> None:
    harness = make_harness(portal=Portal(GrantRealm(), [OpaqueChecker()]))  # type: ignore[list-item]
    peer = joined(harness, "opaque")
    peer.say(renewal("opaque"))
    assert peer.heard() == [{"type": "token"}]


def test_a_type_with_an_escape_is_the_same_type(harness: Harness) -> None:
    peer = joined(harness, ada(harness, 10))
    peer.say('{"\\u0074ype":"\\u0074oken","msgId":"\\ud800","token":"' + ada(harness, 20) + '"}')
    assert peer.texts == ['{"type":"token","expiresIn":20,"msgId":"\\ud800"}']


# A token that changes nothing


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: token(sub="Eve"), OTHER_OWNER),
        (
            lambda: token({"topics": ["room"], "metadata": {}}, sub="Ada"),
            OTHER_OWNER,
        ),
        (lambda: token(sub="Ada", iss="other"), OTHER_OWNER),
        (lambda: token(jti="Ada"), OTHER_OWNER),
        (token, NO_OWNER),
        (lambda: token({"topics": ["other"]}, sub="Ada"), "the token does not cover this topic"),
        (lambda: token(sub="Ada", exp=NOW - 60), "the token has expired"),
        (lambda: token(sub="Ada", number=1), "the token's signature is wrong"),
        (lambda: "garbage", "the token is not a JSON Web Token that this server accepts"),
    ],
)
def test_a_token_that_is_not_right_changes_nothing(harness: Harness, make: Callable[[], str], reason: str) -> None:
    peer, other = joined(harness, ada(harness, 100)), joined(harness, token())
    peer.heard()
    peer.say(renewal(make(), msgId="1"))
    assert peer.heard() == [{"type": "error", "code": "invalid_token", "message": reason, "msgId": "1"}]
    assert harness.counters.errors_sent["invalid_token"] == 1
    peer.offer(other)
    assert other.heard()[-1]["type"] == "offer"
    harness.advance(101)
    assert peer.closed == 4401


@pytest.mark.parametrize("wrong", ["", "a b", "é", "a\ud800", None, 7, ["a"], {"a": 1}, True])
def test_what_is_no_token_is_invalid_token(harness: Harness, wrong: Any) -> None:
    peer = joined(harness, token())
    peer.say(renewal(wrong))
    [error] = peer.heard()
    assert (error["code"], error["message"]) == (
        "invalid_token",
        "token: no token, or one with characters that no token has",
    )


def test_a_token_may_be_as_long_as_in_a_request(make_server: MakeHarness) -> None:
    checked: list[bytes] = []

    class Recording(OpaqueChecker):
        def requestAvatarId(self, credentials: Any) -> Grant:
            checked.append(credentials.token)
            return super().requestAvatarId(credentials)

    checkers: Any = [Recording()]
    peer = joined(make_server(portal=Portal(GrantRealm(), checkers), max_header_bytes=1000), "opaque")
    checked.clear()
    for length in (1000, 1001):
        peer.say(renewal("x" * length))
    assert [message["message"] for message in peer.heard()] == [
        NO_OWNER,
        "token: at most 1000 bytes, as in a request",
    ]
    assert [len(text) for text in checked] == [1000]


@pytest.mark.parametrize("send", [True, False])
@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ('{"type":"token"}', ("invalid_token", "invalid_token")),
        ('{"type":"token","token":"x","type":"offer"}', ("missing_target", "forbidden")),
        ('{"type":"token","token":"x","to":7}', ("invalid_message", "forbidden")),
        ('{"type":"token","token":"x","msgId":7}', ("invalid_message", "forbidden")),
        ('{"type":"token","token":"x","x":%s}' % ("[" * 64 + "]" * 64), ("invalid_message", "forbidden")),
        ('{"type":"Token","token":"x"}', ("invalid_type", "forbidden")),
        ('["token"]', ("invalid_message", "forbidden")),
    ],
)
def test_where_a_token_stands_in_the_order_of_checks(
    harness: Harness, send: bool, text: str, codes: tuple[str, str]
) -> None:
    peer = joined(harness, token({"topics": ["room"], "send": send}))
    peer.say(text)
    assert [message["code"] for message in peer.heard()] == [codes[0] if send else codes[1]]


def test_the_rate_stands_in_front_of_a_token(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(portal=issuer.portal(tmp_path), max_messages_per_second=1, message_burst=1)
    peer = joined(harness, ada(harness, 100))
    text = ada(harness, 200)
    peer.say_many([renewal(text), renewal(text)])
    assert [message.get("code", message["type"]) for message in peer.heard()] == ["token", "rate_limited"]


def test_without_access_control_there_is_no_such_type(make_harness: MakeHarness) -> None:
    peer = make_harness().join("room")
    peer.say(renewal(token()))
    assert [message["code"] for message in peer.heard()] == ["invalid_type"]


def test_a_token_does_not_renew_a_password(make_harness: MakeHarness) -> None:
    passwords: Any = InMemoryUsernamePasswordDatabaseDontUse(ada=b"north")
    checkers: Any = [passwords, OpaqueChecker()]
    harness = make_harness(portal=Portal(GrantRealm(), checkers))
    peer = harness.peer("/ws/room", {"Authorization": "Basic YWRhOm5vcnRo"})
    peer.heard()
    peer.say(renewal("opaque"))
    assert [message["message"] for message in peer.heard()] == [NO_OWNER]


def test_no_token_of_a_message_is_logged(make_server: MakeHarness, tmp_path: Path, logged: list[str]) -> None:
    harness = make_server(portal=issuer.portal(tmp_path), log_level=LogLevel.debug)
    peer = joined(harness, ada(harness, 100))
    good, bad = ada(harness, 200), token(sub="Eve")
    peer.say_many([renewal(good), renewal(bad)])
    log = "\n".join(logged)
    assert f"{peer.id} renewed its token" in log
    assert f"invalid_token: {OTHER_OWNER}" in log
    assert not [part for text in (good, bad) for part in text.split(".") if part in log]


# Sessions


@pytest.mark.parametrize("seen", [2, 4])
def test_the_answers_to_new_tokens_count_and_are_not_repeated(resuming: Harness, seen: int) -> None:
    peer = enter(resuming, ada(resuming, 10))
    welcome, _ = peer.heard()
    peer.say_many([renewal(ada(resuming, 100)), renewal("garbage")])
    assert [message["type"] for message in peer.heard()] == ["token", "error"]
    peer.reset()
    resuming.advance(20)
    back = enter(resuming, ada(resuming, 100), query=f"?resume={welcome['resume']['token']}&seen={seen}")
    welcome, *rest = back.heard()
    assert (welcome["resumed"], welcome["selfId"], welcome["expiresIn"]) == (True, peer.id, 80)
    assert [message["type"] for message in rest] == ["peer-list"]


def test_a_client_resumes_while_its_renewed_connection_is_open(resuming: Harness) -> None:
    peer = enter(resuming, ada(resuming, 10))
    welcome, _ = peer.heard()
    peer.say(renewal(ada(resuming, 50)))
    back = enter(resuming, ada(resuming, 100), query=f"?resume={welcome['resume']['token']}&seen=3")
    assert (peer.lost, back.heard()[0]["resumed"]) == (True, True)
    resuming.advance(99)
    assert back.closed is None
    back.say(renewal(ada(resuming, 200), msgId="x"))
    assert back.heard()[-1] == {"type": "token", "expiresIn": 101, "msgId": "x"}


# A portal that takes its time


OWNER = Grant(prefixes=("",), subject="Ada", expires=float(IN_AN_HOUR))


class SlowRenewal(Slow):
    """A peer whose new token is checked slowly."""

    def __init__(self, make_harness: MakeHarness, canceller: Any = None, **limits: Any) -> None:
        super().__init__(make_harness, canceller, **limits)
        self.answer(OWNER)
        self.checker.asked.clear()
        self.peer.id = self.peer.heard()[0]["selfId"]
        self.peer.say(renewal("opaque", msgId="1"))


def test_messages_behind_a_token_wait_for_the_portal_in_order(make_harness: MakeHarness) -> None:
    slow = SlowRenewal(make_harness)
    peer = slow.peer
    peer.say_many([renewal("second", msgId="2"), {"type": "offer", "to": peer.id, "msgId": "3"}])
    assert peer.heard() == []
    assert [text for text, _ in slow.checker.asked] == [b"opaque"]
    slow.answer(OWNER)
    assert [message["msgId"] for message in peer.heard()] == ["1"]
    assert [text for text, _ in slow.checker.asked] == [b"opaque", b"second"]
    slow.checker.asked[1][1].callback(OWNER)
    slow.harness.run()
    assert [(message["type"], message["msgId"]) for message in peer.heard()] == [("token", "2"), ("offer", "3")]
    assert slow.realm.inside == 1
    peer.leave()
    assert slow.realm.inside == 0


def test_what_others_send_is_delivered_meanwhile(make_harness: MakeHarness) -> None:
    slow = SlowRenewal(make_harness)
    other = slow.harness.peer("/ws/room", {"Authorization": "Bearer other"})
    slow.checker.asked[-1][1].callback(OWNER)
    slow.harness.run()
    other.offer(slow.peer, "x")
    assert [message["type"] for message in slow.peer.heard()] == ["peer-joined", "offer"]


def test_a_portal_that_never_answers_a_new_token_is_given_up(make_server: MakeHarness) -> None:
    slow = SlowRenewal(make_server, handshake_timeout_seconds=5)
    slow.harness.advance(5.5)
    assert [(message["code"], message["message"]) for message in slow.peer.heard()] == [
        ("invalid_token", "the login took too long")
    ]
    slow.checker.asked[0][1].callback(OWNER)
    slow.peer.offer(slow.peer, "x")
    assert [message["type"] for message in slow.peer.heard()] == ["offer"]
    slow.peer.leave()
    assert slow.realm.inside == 0
    assert [call for call in slow.harness.clock.getDelayedCalls() if call.active()] == []


def answer_though_cancelled(answer: Any) -> None:
    answer.callback(OWNER)


@pytest.mark.parametrize("end", ["reset", "drain", "expire"])
@pytest.mark.parametrize("canceller", [None, answer_though_cancelled], ids=["cancelled", "too late to cancel"])
def test_a_connection_that_ends_meanwhile_leaves_nothing(make_server: MakeHarness, end: str, canceller: Any) -> None:
    slow = SlowRenewal(make_server, canceller)
    if end == "reset":
        slow.peer.reset()
    elif end == "drain":
        slow.harness.drain()
        slow.harness.run()
    else:
        slow.harness.advance(3600)
    slow.harness.advance(6)
    assert slow.peer.lost
    assert slow.realm.inside == 0
    assert [call for call in slow.harness.clock.getDelayedCalls() if call.active()] == []


def test_a_portal_that_fails_changes_nothing_and_its_text_stays_out(make_harness: MakeHarness) -> None:
    slow = SlowRenewal(make_harness)
    slow.answer(KeyError("opaque"))
    assert [(message["code"], message["message"]) for message in slow.peer.heard()] == [
        ("invalid_token", "the login failed; the server's log says more")
    ]
    slow.peer.offer(slow.peer, "x")
    assert slow.peer.heard()[-1]["type"] == "offer"


def test_a_portal_that_fails_again_and_again_does_not_fill_the_log(make_server: MakeHarness, logged: list[str]) -> None:
    class Broken(OpaqueChecker):
        def requestAvatarId(self, credentials: Any) -> Grant:
            if credentials.token == b"broken":
                raise KeyError(credentials.token)
            return super().requestAvatarId(credentials)

    checkers: Any = [Broken()]
    peer = joined(make_server(portal=Portal(GrantRealm(), checkers)), "opaque")
    peer.say_many([renewal("broken")] * 50)
    assert [message["code"] for message in peer.heard()] == ["invalid_token"] * 50
    assert len([line for line in logged if "a login failed: KeyError at " in line]) == 1


def test_a_portal_may_take_longer_than_a_pong(make_server: MakeHarness) -> None:
    slow = SlowRenewal(make_server, ping_interval_seconds=2, ping_timeout_seconds=3)
    slow.harness.advance(9)
    slow.answer(OWNER)
    assert [message["type"] for message in slow.peer.heard()] == ["token"]
    slow.harness.advance(9)
    assert not slow.peer.lost


def test_a_client_that_is_gone_when_the_portal_answers_is_aborted(make_server: MakeHarness) -> None:
    slow = SlowRenewal(make_server, ping_interval_seconds=2, ping_timeout_seconds=3)
    slow.peer.go_silent()
    slow.harness.advance(9)
    slow.answer(OWNER)
    slow.harness.advance(6)
    assert slow.harness.topics == {}


def test_a_logout_that_fails_leaves_neither_a_login_nor_a_slot(make_server: MakeHarness) -> None:
    slow = SlowRenewal(make_server, max_connections=1)
    slow.realm.failing = 1
    slow.answer(OWNER)
    assert slow.peer.lost
    assert slow.realm.inside == 0
    slow.checker.asked.clear()
    slow.peer = slow.harness.peer("/ws/room", {"Authorization": "Bearer opaque"})
    slow.answer(OWNER)
    slow.realm.failing = 1
    with pytest.raises(RuntimeError, match="a logout that fails"):
        slow.peer.leave()
    slow.checker.asked.clear()
    slow.peer = slow.harness.peer("/ws/room", {"Authorization": "Bearer opaque"})
    slow.answer(OWNER)
    assert slow.peer.heard()[0]["type"] == "welcome"


# A flood


def test_a_flood_of_tokens_is_checked_one_in_a_turn(make_server: MakeHarness) -> None:
    checked: list[bytes] = []

    class Counting(OpaqueChecker):
        def requestAvatarId(self, credentials: Any) -> Grant:
            checked.append(credentials.token)
            return super().requestAvatarId(credentials)

    checkers: Any = [Counting()]
    harness = make_server(portal=Portal(GrantRealm(), checkers))
    flood, others = joined(harness, "flood"), [joined(harness, "other") for _ in range(2)]
    checked.clear()
    flood.client.send_text(b"{}")
    for _ in range(50):
        flood.client.send_text(b'{"type":"token","token":"flood"}')
    flood.send_together(b"".join(flood.client.data_to_send()))
    flood.step()
    before = len(checked)
    others[0].client.send_text(b'{"type":"offer","to":"%s"}' % others[1].id.encode())
    others[0].send_together(*others[0].client.data_to_send())
    others[0].step()
    others[1].step()
    assert "offer" in str(others[1].heard())
    assert before <= 1
    passes = 0
    while len(checked) < 50:
        seen = len(checked)
        harness.clock.advance(0)
        assert len(checked) - seen <= 4
        passes += 1
        assert passes < 200
    harness.run()
    assert [message["type"] for message in flood.heard()].count("token") == 50
