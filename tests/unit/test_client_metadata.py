"""How the Python clients update their metadata: with a server that is played by hand."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from signaling.client import session as session_module
from signaling.client.errors import Refused
from signaling.client.messages import Error, PeerJoined, PeerLeft, PeerUpdated
from signaling.client.session import Session
from tests.unit.test_client_session import URL, Played

ADA = {"name": "Ada"}
GRACE = {"name": "Grace"}


class Updating(Played):
    """A session at a server that takes updates, and the outcomes of its own ones."""

    def __init__(self, url: str = URL, features: list[str] | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self.features = ["metadata-updates"] if features is None else features
        self.outcomes: list[str | None] = []

    def enter(self, own: str, *others: str, token: str | None = None, resumed: bool = False) -> list[Any]:
        resume = {"resume": {"token": token, "window": 20}} if token else {}
        more = {**resume, **({"resumed": True} if resumed else {}), "features": self.features}
        heard = self.hear(type="welcome", selfId=own, **more)
        return heard + self.hear(type="peer-list", peers=[{"id": other} for other in others])

    def resume(self, *others: str) -> None:
        """Lose the connection, and resume the session on another one."""
        self.session.lost()
        self.enter("b", *others, token="u", resumed=True)
        [fence] = self.written()
        self.pass_fence(fence)

    def update(self, metadata: dict[str, Any]) -> None:
        self.session.update_metadata(metadata, lambda error: self.outcomes.append(error.code if error else None))

    def updated(self, metadata: Any, peer_id: str = "b") -> list[Any]:
        return self.hear(type="peer-updated", peerId=peer_id, metadata=metadata)

    def written_updates(self) -> list[Any]:
        return [message["metadata"] for message in self.written() if message["type"] == "metadata"]

    def refuse(self, number: int, code: str = "invalid_metadata") -> list[Any]:
        return self.hear(type="error", code=code, message="no", msgId=f"metadata {number}")

    def requested(self) -> Any:
        """Return the metadata with which the next connection joins."""
        [metadata] = self.claim().get("metadata", ["null"])
        return json.loads(metadata)


@pytest.fixture
def peer() -> Updating:
    made = Updating(metadata=ADA)
    made.enter("b", "a", token="t")
    return made


def test_an_update_ends_with_the_servers_word_to_everybody(peer: Updating) -> None:
    peer.update(GRACE)
    assert peer.written() == [{"type": "metadata", "metadata": GRACE, "msgId": "metadata 1"}]
    assert (peer.written(), peer.outcomes, peer.session.metadata) == ([], [], ADA)
    assert peer.updated(GRACE) == [PeerUpdated("b", GRACE)]
    assert (peer.outcomes, peer.session.metadata) == ([None], GRACE)


@pytest.mark.parametrize("code", ["invalid_metadata", "forbidden", "rate_limited", "topic_full"])
def test_an_error_ends_its_update_and_the_former_metadata_stays(peer: Updating, code: str) -> None:
    peer.update(GRACE)
    peer.written()
    assert peer.refuse(1, code) == []
    assert peer.outcomes == [code]
    peer.session.lost()
    assert (peer.requested(), peer.session.metadata) == (ADA, ADA)


@pytest.mark.parametrize("features", [[], ["notices", "resume"]])
def test_a_server_that_takes_no_updates_is_not_asked(features: list[str]) -> None:
    peer = Updating(features=features, metadata=ADA)
    peer.enter("b")
    peer.update(GRACE)
    assert (peer.outcomes, peer.written(), peer.requested()) == (["unsupported"], [], ADA)


def test_metadata_is_not_sealed() -> None:
    peer = Updating(metadata=ADA, secret="correct horse battery staple")
    peer.enter("b", "a")
    peer.update(GRACE)
    peer.updated(GRACE, "a")
    assert (peer.written_updates(), peer.session.peers) == ([GRACE], {"a": GRACE})


def test_one_update_is_under_way_and_the_latest_waits_for_it(peer: Updating) -> None:
    for number in range(4):
        peer.update({"number": number})
    assert peer.written_updates() == [{"number": 0}]
    assert peer.outcomes == ["replaced", "replaced"]
    peer.updated({"number": 0})
    assert peer.written_updates() == [{"number": 3}]
    peer.updated({"number": 3})
    assert peer.outcomes == ["replaced", "replaced", None, None]


def test_an_update_after_one_that_was_refused_is_sent(peer: Updating) -> None:
    peer.update({"number": 0})
    peer.update({"number": 1})
    peer.written()
    peer.refuse(1)
    assert peer.written_updates() == [{"number": 1}]
    peer.refuse(2)
    assert (peer.outcomes, peer.requested()) == (["invalid_metadata"] * 2, ADA)


def test_after_a_loss_a_new_peer_joins_with_the_latest_metadata(peer: Updating) -> None:
    peer.update(GRACE)
    peer.written()
    peer.updated(GRACE)
    peer.update({"name": "Joan"})
    peer.update({"name": "Mary"})
    peer.written()
    peer.session.lost()
    assert peer.outcomes == [None, "unconfirmed", "unconfirmed"]
    assert peer.requested() == {"name": "Mary"}
    peer.enter("c", "a")
    assert peer.session.metadata == {"name": "Mary"}
    assert peer.written_updates() == []


def test_after_a_loss_a_resumed_session_repeats_what_was_not_confirmed(peer: Updating) -> None:
    peer.update(GRACE)
    peer.written()
    peer.resume()
    assert peer.written_updates() == [GRACE]
    assert peer.updated(GRACE) == [PeerUpdated("b", GRACE)]
    peer.resume()
    assert peer.written_updates() == []


def test_an_error_about_a_repeated_update_is_an_event(peer: Updating) -> None:
    peer.update(GRACE)
    peer.resume()
    peer.written()
    assert peer.refuse(2) == [Error("invalid_metadata", "no", "metadata 2")]
    assert (peer.outcomes, peer.requested()) == (["unconfirmed"], ADA)


def forgotten(peer: Updating, metadata: dict[str, Any]) -> list[Error | None]:
    """Send an update whose caller does not wait any more; returns its outcomes."""
    outcomes: list[Error | None] = []
    on_outcome = outcomes.append
    peer.session.update_metadata(metadata, on_outcome)
    peer.written()
    peer.session.forget_update(on_outcome)
    return outcomes


def test_an_answer_that_comes_late_is_that_of_no_later_update(peer: Updating) -> None:
    forgotten(peer, GRACE)
    peer.update({"name": "Joan"})
    peer.written()
    assert peer.updated(GRACE) == [PeerUpdated("b", GRACE)]
    assert (peer.outcomes, peer.session.metadata) == ([], GRACE)
    assert peer.refuse(2) == []
    assert (peer.outcomes, peer.requested()) == (["invalid_metadata"], GRACE)


def test_of_two_equal_updates_each_has_an_answer_of_its_own(peer: Updating) -> None:
    forgotten(peer, GRACE)
    peer.update(GRACE)
    peer.written()
    peer.updated(GRACE)
    assert peer.outcomes == []
    peer.updated(GRACE)
    assert peer.outcomes == [None]


def test_an_update_that_was_refused_late_does_not_count(peer: Updating) -> None:
    outcomes = forgotten(peer, GRACE)
    assert peer.refuse(1, "topic_full") == [Error("topic_full", "no", "metadata 1")]
    assert (outcomes, peer.requested()) == ([], ADA)


def test_if_a_later_update_is_refused_the_one_that_is_not_answered_counts(peer: Updating) -> None:
    forgotten(peer, GRACE)
    peer.update({"name": "Joan"})
    peer.written()
    peer.refuse(2, "rate_limited")
    assert peer.requested() == GRACE
    peer.resume()
    assert peer.written_updates() == [GRACE]


@pytest.mark.parametrize(
    "metadata",
    [
        {"number": 10**400, "float": 1.0, "text": "\ud800\u20ac"},
        {"deep": json.loads("[" * 90 + "]" * 90)},
        {"deep": json.loads("[" * 300 + "]" * 300), "text": "\ud800"},
    ],
)
def test_metadata_is_compared_as_this_client_reads_it(peer: Updating, metadata: dict[str, Any]) -> None:
    peer.update(metadata)
    [update] = peer.written()
    peer.updated(update["metadata"])
    assert peer.outcomes == [None]


def test_many_updates_that_are_not_answered_take_bounded_memory(peer: Updating) -> None:
    for number in range(1_000):
        forgotten(peer, {"number": number})
    assert peer.refuse(1_000) == [Error("invalid_metadata", "no", "metadata 1000")]
    assert peer.requested() == {"number": 998}
    peer.updated({"number": 0})
    assert len(pickle.dumps(peer.session)) < 20_000


def test_a_repeated_update_that_is_not_answered_holds_up_one_other_at_most(peer: Updating) -> None:
    peer.update(GRACE)
    peer.resume()
    assert peer.written_updates() == [GRACE]
    forgotten(peer, {"name": "Joan"})
    peer.update({"name": "Mary"})
    assert peer.written_updates() == [{"name": "Mary"}]


def test_without_a_connection_the_next_one_has_the_latest_metadata() -> None:
    peer = Updating(metadata=ADA)
    peer.update(GRACE)
    assert (peer.outcomes, peer.requested()) == (["unconfirmed"], GRACE)
    peer.enter("b", token="t")
    assert (peer.written_updates(), peer.session.metadata) == ([], GRACE)
    peer.session.lost()
    assert peer.requested() == GRACE
    peer.update(ADA)
    assert peer.requested() == ADA
    peer.resume()
    assert peer.written_updates() == [ADA]


def test_metadata_of_a_url_is_replaced_and_the_rest_of_it_stays() -> None:
    peer = Updating(URL + "?x=1%202&metadata=%7B%22name%22%3A%22Ada%22%7D&y=")
    assert peer.session.metadata == ADA
    peer.update({"name": "G&="})
    assert peer.session.url == URL + "?x=1%202&y=&metadata=%7B%22name%22%3A%22G%26%3D%22%7D"


def test_the_instance_of_a_mesh_stays_unless_there_is_another() -> None:
    peer = Updating(metadata={**ADA, "instance": "one"})
    peer.enter("b")
    peer.update(GRACE)
    assert peer.written_updates() == [{**GRACE, "instance": "one"}]
    peer.updated({**GRACE, "instance": "one"})
    peer.update({"instance": "two"})
    assert peer.written_updates() == [{"instance": "two"}]


def test_an_object_that_the_application_changes_later_is_not_what_is_sent(peer: Updating) -> None:
    mine = {"names": ["Grace"]}
    peer.update({})
    peer.written()
    peer.update(mine)
    mine["names"].append("Joan")
    peer.updated({})
    assert peer.written_updates() == [{"names": ["Grace"]}]


@pytest.mark.parametrize("metadata", [None, "x", [], 5])
def test_what_is_no_mapping_is_refused_at_once(peer: Updating, metadata: Any) -> None:
    with pytest.raises(TypeError, match="mapping"):
        peer.update(metadata)


@pytest.mark.parametrize("value", [object(), float("nan"), "x" * 65_536])
def test_what_is_no_json_or_too_long_is_refused_at_once(peer: Updating, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        peer.update({"value": value})
    assert (peer.written(), peer.requested()) == ([], ADA)


def test_metadata_that_a_server_does_not_take_in_its_url_is_given_up(peer: Updating) -> None:
    peer.update(GRACE)
    peer.session.lost()
    for status in (400, 414, 431):
        peer.update({"name": "too long"})
        loss = peer.session.refused(Refused(status, "metadata: at most 4096 bytes"))
        assert loss.at_once
        assert peer.session.events() == [Error("invalid_metadata", "metadata: at most 4096 bytes")]
        assert peer.requested() == ADA
        with pytest.raises(Refused):
            peer.session.refused(Refused(status, "no"))


@pytest.mark.parametrize("status", [401, 403, 404, 4403, 4404])
def test_another_refusal_is_the_end(peer: Updating, status: int) -> None:
    peer.update(GRACE)
    peer.session.lost()
    with pytest.raises(Refused):
        peer.session.refused(Refused(status, "no"))


@pytest.mark.parametrize("waits", [True, False])
def test_an_update_that_is_too_long_for_the_server_is_not_repeated(peer: Updating, *, waits: bool) -> None:
    peer.session.send("offer", "a", "short")
    peer.update({"name": "x" * 1_000})
    if not waits:
        peer.resume("a")
    peer.written()
    peer.session.lost(1009, "at most 1000 bytes")
    codes = [event.code for event in peer.session.events()]
    assert (peer.outcomes, codes) == ((["too_large"], []) if waits else (["unconfirmed"], ["too_large"]))
    peer.enter("b", "a", token="v", resumed=True)
    peer.pass_fence(peer.written()[-1])
    assert [message["type"] for message in peer.written()] == ["offer", "ice-candidate"]


def test_an_update_that_is_forgotten_can_be_what_was_too_long(peer: Updating) -> None:
    forgotten(peer, {"name": "x" * 1_000})
    peer.session.send("offer", "a", "short")
    peer.update(GRACE)
    peer.written()
    peer.session.lost(1009)
    assert [(event.code, event.msg_id) for event in peer.session.events()] == [("too_large", "metadata 1")]
    assert (peer.outcomes, peer.requested()) == (["unconfirmed"], GRACE)


def test_leaving_ends_updates_and_later_ones_fail(peer: Updating) -> None:
    peer.update(GRACE)
    peer.session.leave()
    peer.update(GRACE)
    assert peer.outcomes == ["dropped", "dropped"]


def test_an_update_whose_caller_does_not_wait_any_more_holds_up_none(peer: Updating) -> None:
    outcomes: list[Error | None] = []
    forgotten = outcomes.append
    peer.session.update_metadata(GRACE, forgotten)
    peer.update({"name": "Joan"})
    peer.written()
    peer.session.forget_update(forgotten)
    assert peer.written_updates() == [{"name": "Joan"}]
    peer.session.forget_update(forgotten)
    peer.updated({"name": "Joan"})
    assert (outcomes, peer.outcomes) == ([], [None])


def test_updates_of_others_are_told_and_change_what_is_known_of_them(peer: Updating) -> None:
    assert peer.updated(GRACE, "a") == [PeerUpdated("a", GRACE)]
    assert peer.updated(None, "a") == [PeerUpdated("a")]
    assert peer.session.peers == {"a": None}
    assert peer.updated(GRACE, "nobody") == []
    assert peer.session.peers == {"a": None}


def test_changes_during_a_loss_are_told_as_updates(peer: Updating) -> None:
    peer.hear(type="peer-joined", peerId="d", metadata=ADA)
    peer.hear(type="peer-joined", peerId="e", metadata=ADA)
    peer.session.lost()
    peer.hear(type="welcome", selfId="b", resumed=True, features=peer.features)
    listed = [{"id": "d", "metadata": GRACE}, {"id": "e", "metadata": ADA}, {"id": "f", "metadata": ADA}]
    heard = peer.hear(type="peer-list", peers=listed)
    assert heard == [PeerLeft("a"), PeerJoined("f", ADA), PeerUpdated("d", GRACE)]


def test_unasked_updates_of_this_peer_are_told_and_change_no_join(peer: Updating) -> None:
    for metadata in (GRACE, None, {"name": "x" * 100_000}):
        assert peer.updated(metadata) == [PeerUpdated("b", metadata)]
    peer.session.lost()
    assert (peer.requested(), peer.outcomes) == (ADA, [])


def test_updates_of_others_take_bounded_memory(peer: Updating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MOST_PEERS_BYTES", 10_000)
    peer.hear(type="peer-joined", peerId="c")
    for _ in range(10):
        assert peer.updated({"text": "x" * 6_000}, "a") == [PeerUpdated("a", {"text": "x" * 6_000})]
    assert peer.updated({"text": "x" * 6_000}, "c") == [PeerUpdated("c")]
    peer.updated(ADA, "a")
    assert peer.updated({"text": "x" * 6_000}, "c") == [PeerUpdated("c", {"text": "x" * 6_000})]


@pytest.mark.parametrize("levels", [900, 990, 1_100, 5_000])
def test_metadata_of_any_depth_can_be_compared(levels: int) -> None:
    session = Session(URL)
    deep = "[" * levels + "]" * levels
    for end in ("1", "1", "2"):
        session.receive('{"type":"welcome","selfId":"b"}')
        listed = f'{{"type":"peer-list","peers":[{{"id":"a","metadata":{{"deep":{deep},"end":{end}}}}}]}}'
        session.receive(listed)
        assert session.open
        session.lost()
    assert isinstance(session.events()[-1], PeerUpdated)
