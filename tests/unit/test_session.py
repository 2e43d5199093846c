"""The states of a session, and who holds its connection slot."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any
from unittest.mock import create_autospec

import pytest
from twisted.internet.task import Clock

from signaling import Limits
from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionLimits, ConnectionSlot
from signaling.backplane.standalone import StandaloneBackplane
from signaling.core.announcer import Announcer
from signaling.core.counters import Counters
from signaling.core.handoff_texts import resume_proof
from signaling.core.interfaces import Receipt
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, PeerServices
from signaling.core.presence_reporter import PresenceReporter
from signaling.core.session import TRANSITIONS, PeerSession, SessionState
from signaling.core.session_registry import SessionRegistry
from signaling.core.topics import TopicMap
from signaling.errors import LeaveReason, Refused

ADA = Client("192.0.2.1", "192.0.2.1")
WINDOW_SECONDS = 30.0
HANDOFF_SECONDS = 5.0


class Connection:
    """A connection of a client that counts its messages and keeps its latest token."""

    blocked = False

    def __init__(self, client: SimulatedClient, slot: ConnectionSlot | None) -> None:
        self.slot = slot
        self.close_frame_seen = False
        self.session: PeerSession | None = None
        self._client = client

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        self.answer(frame)
        return True

    def answer(self, frame: bytes) -> None:
        self._client.receive(json.loads(frame[frame.index(b"{") :]))

    def request_ack(self, payload: bytes) -> None:
        pass

    def give_up_session(self) -> None:
        self.session = None


class ObservedSession(PeerSession):
    """Records each change of its state."""

    __slots__ = ("_current", "transitions")

    @property
    def state(self) -> SessionState:
        return self._current

    @state.setter
    def state(self, state: SessionState) -> None:
        if hasattr(self, "_current"):
            self.transitions.append((self._current, state))
        else:
            self.transitions: list[tuple[SessionState, SessionState]] = []
        self._current: SessionState = state


class SimulatedClient:
    """A client with a session, and the server that it is on."""

    def __init__(self, presence: Any = None, **limits: Any) -> None:
        self.clock = Clock()
        self.limits = Limits(resume_window_seconds=WINDOW_SECONDS, **limits)
        self.slots = ConnectionLimits(self.limits, 1024, self.clock.seconds)
        self.closed: list[str] = []
        topics: TopicMap[Peer] = TopicMap(10, 1_000_000)
        self.sessions = SessionRegistry(self.limits, self.clock, topics, lambda _, text, why: self.closed.append(text))
        self.services = PeerServices(
            topics,
            Announcer(self.clock, lambda number: None),
            StandaloneBackplane(),
            Counters(),
            self.limits,
            self.sessions,
            presence=presence,
        )
        self.node = LocalPeers(self.services, lambda peer: None, lambda query, on_answer: None)
        self.token, self.seen = b"", 0
        self.connection = Connection(self, self.slots.admit(ADA))
        self.session = ObservedSession("0" * 26, self._request(), self.services)
        self.session.attach(self.connection)
        self.session.join("room")
        self.connection.session = self.session

    def receive(self, message: Any) -> None:
        self.seen += 1
        if message["type"] == "welcome":
            self.token = message["resume"]["token"].encode()
            if not message.get("resumed"):
                self.seen = 1

    def _request(self, seen: int | None = None) -> JoinRequest:
        claim = ResumeClaim(self.token, self.seen if seen is None else seen) if self.token else None
        return JoinRequest("room", None, claim)

    # What can happen to a session

    def lose_connection(self) -> None:
        if self.connection.session is not None:
            self.connection.session = None
            slot, self.connection.slot = self.connection.slot, None
            self.session.detach(slot)

    def say_goodbye(self) -> None:
        if self.connection.session is not None:
            self.connection.close_frame_seen = True
            self.connection.session = None
            self.session.leave(LeaveReason.CONNECTION_LOST)
            if self.connection.slot is not None:
                self.connection.slot.release()

    def resume(self, seen: int | None = None) -> None:
        request = self._request(seen)
        session = self.sessions.find(request)
        if session is not None:
            connection = Connection(self, session.transfer_slot(ADA))
            assert request.claim is not None
            if session.resume(connection, request.claim, None):
                self.connection = connection
                connection.session = self.session
            elif connection.slot is not None:
                connection.slot.release()

    def resume_out_of_range(self) -> None:
        self.resume(seen=1_000)

    def ask_from_another_node(self, seen: int | None = None) -> None:
        proof = resume_proof(self._request(seen))
        assert proof is not None
        self.node.prepare_handoff("room", proof)

    def ask_from_another_node_out_of_range(self) -> None:
        self.ask_from_another_node(seen=1_000)

    def move_to_another_node(self) -> None:
        self.node.moved("room", self.session.id, ())

    def end_handoff(self) -> None:
        self.clock.advance(HANDOFF_SECONDS)

    def end_window(self) -> None:
        self.clock.advance(WINDOW_SECONDS)

    def stop_server(self) -> None:
        for session in tuple(self.sessions.detached):
            self.sessions.close_detached(session)


EVENTS: list[Callable[[SimulatedClient], None]] = [
    SimulatedClient.lose_connection,
    SimulatedClient.say_goodbye,
    SimulatedClient.resume,
    SimulatedClient.resume_out_of_range,
    SimulatedClient.ask_from_another_node,
    SimulatedClient.ask_from_another_node_out_of_range,
    SimulatedClient.move_to_another_node,
    SimulatedClient.end_handoff,
    SimulatedClient.end_window,
    SimulatedClient.stop_server,
]
CONNECTED, DETACHED, HANDING_OFF, CLOSED = SessionState

# Each transition of the table, by the events that lead to it.
SHOWN: dict[tuple[SessionState, SessionState], list[Callable[[SimulatedClient], None]]] = {
    (CONNECTED, CONNECTED): [SimulatedClient.resume],
    (CONNECTED, DETACHED): [SimulatedClient.lose_connection],
    (CONNECTED, CLOSED): [SimulatedClient.say_goodbye],
    (DETACHED, CONNECTED): [SimulatedClient.lose_connection, SimulatedClient.resume],
    (DETACHED, HANDING_OFF): [SimulatedClient.lose_connection, SimulatedClient.ask_from_another_node],
    (DETACHED, CLOSED): [SimulatedClient.lose_connection, SimulatedClient.end_window],
    (HANDING_OFF, DETACHED): [SimulatedClient.ask_from_another_node, SimulatedClient.end_handoff],
    (HANDING_OFF, CLOSED): [SimulatedClient.ask_from_another_node, SimulatedClient.move_to_another_node],
}


def table() -> set[tuple[SessionState, SessionState]]:
    return {(before, after) for before, following in TRANSITIONS.items() for after in following}


@pytest.mark.parametrize(("transition", "events"), SHOWN.items())
def test_each_transition_of_the_table_happens(transition: Any, events: list[Callable[..., None]]) -> None:
    client = SimulatedClient()
    for event in events:
        event(client)
    assert client.session.transitions[-1] == transition


def test_the_table_has_no_other_transition() -> None:
    assert set(SHOWN) == table()


def test_no_sequence_of_events_leads_to_another_transition() -> None:
    observed: set[tuple[SessionState, SessionState]] = set()
    random = Random(0)
    for events in (*product(EVENTS, repeat=3), *(random.choices(EVENTS, k=12) for _ in range(500))):
        client = SimulatedClient()
        for event in events:
            event(client)
        observed.update(client.session.transitions)
        client.say_goodbye()
        client.stop_server()
    assert observed == table()


def test_a_change_that_the_table_lacks_is_refused() -> None:
    client = SimulatedClient()
    client.say_goodbye()
    with pytest.raises(RuntimeError, match="a session that is closed cannot become detached"):
        client.session.detach(None)


@pytest.mark.parametrize("events", [[], *([event] for event in EVENTS), *map(list, product(EVENTS, repeat=2))])
def test_a_session_holds_one_slot_until_it_closes(events: list[Callable[..., None]]) -> None:
    client = SimulatedClient(max_connections=1)
    for event in events:
        event(client)
    if client.session.state is CLOSED:
        client.slots.admit(ADA).release()
    else:
        with pytest.raises(Refused):
            client.slots.admit(ADA)
        client.say_goodbye()
        client.stop_server()
        client.slots.admit(ADA).release()
    client.slots.admit(ADA)
    with pytest.raises(Refused):
        client.slots.admit(ADA)


def test_a_session_gets_its_slot_back_from_a_connection_that_ends_before_it_resumed() -> None:
    client = SimulatedClient(max_connections=1)
    client.lose_connection()
    slot = client.session.transfer_slot(ADA)
    assert slot is not None
    assert client.session.transfer_slot(ADA) is None
    client.session.return_slot(slot)
    client.end_window()
    client.slots.admit(ADA)


def test_a_closed_session_releases_a_slot_that_it_gets_back() -> None:
    client = SimulatedClient(max_connections=1)
    client.lose_connection()
    slot = client.session.transfer_slot(ADA)
    assert slot is not None
    client.end_window()
    client.session.return_slot(slot)
    client.slots.admit(ADA)


@pytest.mark.parametrize(
    ("events", "may_be_elsewhere"),
    [
        ([SimulatedClient.lose_connection], False),
        ([SimulatedClient.ask_from_another_node, SimulatedClient.end_handoff], True),
        ([SimulatedClient.ask_from_another_node, SimulatedClient.end_handoff, SimulatedClient.resume], False),
    ],
)
def test_a_session_that_was_offered_to_another_node_may_be_there(
    events: list[Callable[..., None]], may_be_elsewhere: bool
) -> None:
    presence = create_autospec(PresenceReporter, instance=True)
    presence.origin.return_value = None
    client = SimulatedClient(presence)
    for event in events:
        event(client)
    client.lose_connection()
    client.end_window()
    presence.left.assert_called_once_with(
        "room", client.session, LeaveReason.RESUME_TIMEOUT, may_be_elsewhere=may_be_elsewhere
    )


def test_a_plain_peer_cannot_resume() -> None:
    services = SimulatedClient().services
    peer = Peer("1" * 26, None, services)
    peer.join("room")
    assert not peer.detach(None)
    assert peer.check_resume_token(b"1" * 26 + b"anything", None) is None
    assert peer.prepare_handoff(b"anything") is None
    assert not peer.moved(())
    peer.acknowledge(b"1")
    assert peer.ping_payload == b""
    assert peer.topic is not None
