"""Clients with tokens, and portals that tests steer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred
from zope.interface import implementer

from signaling import Grant, IBearerToken, IGrant
from tests.integration.harness import Harness, Peer

MakeHarness = Callable[..., Harness]
NOW = int(time.time())


def enter(harness: Harness, text: str, topic: str = "room", query: str = "") -> Peer:
    """Join a topic with a token in a header."""
    peer = harness.peer(f"/ws/{topic}{query}", {"Authorization": f"Bearer {text}"})
    peer.id = json.loads(peer.texts[0])["selfId"]
    return peer


class Session:
    """A client that may resume."""

    def __init__(self, harness: Harness, text: str) -> None:
        self._harness = harness
        self.peer = enter(harness, text)
        self.welcome, *_ = self.peer.heard()
        self.peer.reset()

    def resume(self, text: str | None, topic: str = "room") -> Peer:
        headers = {} if text is None else {"Authorization": f"Bearer {text}"}
        return self._harness.peer(f"/ws/{topic}?resume={self.welcome['resume']['token']}&seen=2", headers)


class OpaqueChecker:
    """Takes every token, and grants all of them the same."""

    credentialInterfaces = (IBearerToken,)

    def requestAvatarId(self, credentials: Any) -> Grant:
        return Grant(prefixes=("",))


@implementer(IRealm)
class Realm:
    """Counts who is in.

    Attributes:
        failing: how many logouts fail.
    """

    failing = 0

    def __init__(self) -> None:
        self.inside = 0

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> Any:
        assert interfaces == (IGrant,)
        self.inside += 1
        return IGrant, avatarId, self._logout

    def _logout(self) -> None:
        self.inside -= 1
        if self.failing:
            self.failing -= 1
            raise RuntimeError("a logout that fails")


class SlowChecker:
    """Answers when the test says so; ``canceller`` hears that nobody waits for it."""

    credentialInterfaces = (IBearerToken,)

    def __init__(self, canceller: Callable[[Deferred[Any]], object] | None) -> None:
        self.asked: list[tuple[bytes, Deferred[Any]]] = []
        self._canceller = canceller

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(self._canceller)
        self.asked.append((credentials.token, answer))
        return answer


class Slow:
    """A server whose portal takes its time."""

    def __init__(self, make_harness: MakeHarness, canceller: Any = None, **limits: Any) -> None:
        self.checker, self.realm = SlowChecker(canceller), Realm()
        self.harness = make_harness(portal=Portal(self.realm, [self.checker]), **limits)  # type: ignore[list-item]
        self.peer = self.harness.peer("/ws/room", {"Authorization": "Bearer opaque"})

    def answer(self, with_: Any = Grant(prefixes=("",))) -> None:  # noqa: B008
        [(presented_token, answer)] = self.checker.asked
        assert presented_token == b"opaque"
        answer.errback(with_) if isinstance(with_, Exception) else answer.callback(with_)
        self.harness.run()
