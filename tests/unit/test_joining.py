"""The states of a join: each transition of the table by a real sequence of events, and no other one by any sequence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import pytest
from twisted.internet.task import Clock

from signaling import Limits
from signaling.admission.client_address import Client
from signaling.admission.connection_limits import ConnectionLimits, ConnectionSlot
from signaling.backplane.standalone import StandaloneBackplane
from signaling.core.announcer import Announcer
from signaling.core.blocks import Blocks
from signaling.core.counters import Counters
from signaling.core.grants import Grant
from signaling.core.handoff_texts import resume_proof
from signaling.core.interfaces import JoinTicket, OutgoingSession, Receipt, ResumeProof
from signaling.core.join_request import JoinRequest, ResumeClaim
from signaling.core.joining import TRANSITIONS, JoinAttempt, JoinState
from signaling.core.local_peers import LocalPeers
from signaling.core.peer import Peer, PeerServices
from signaling.core.session import PeerSession
from signaling.core.session_registry import SessionRegistry
from signaling.core.topics import MaxPeers, TopicMap
from signaling.errors import LeaveReason, Refused

ADA = Client("192.0.2.1", "192.0.2.1")
BOB = Client("192.0.2.2", "192.0.2.2")
MOST_CONNECTIONS = 3
LONGEST_SEQUENCE = 5

REQUESTED, ANNOUNCING, AWAITING_TURN = JoinState.REQUESTED, JoinState.ANNOUNCING, JoinState.AWAITING_TURN
OPEN, REANNOUNCING = JoinState.OPEN, JoinState.REANNOUNCING
JOINED, RESUMED, REJECTED, ABORTED = JoinState.JOINED, JoinState.RESUMED, JoinState.REJECTED, JoinState.ABORTED


class Planted(Exception):
    """An error that a test planted."""


class ObservedAttempt(JoinAttempt):
    """Records each state."""

    __slots__ = ("_current", "states")

    @property
    def state(self) -> JoinState:
        return self._current

    @state.setter
    def state(self, state: JoinState) -> None:
        if not hasattr(self, "_current"):
            self.states: list[JoinState] = []
        self.states.append(state)
        self._current: JoinState = state


class Backplane(StandaloneBackplane):
    """Gives tickets when a test says so, and notices how they are finished."""

    def __init__(self) -> None:
        self.due: list[Callable[[JoinTicket], None]] = []
        self.given: list[str] = []
        self.finished: list[tuple[str, bool]] = []
        self.at_once = False

    def request_join(
        self,
        topic: str,
        metadata: bytes | None,
        max_peers: MaxPeers,
        on_ticket: Callable[[JoinTicket], None],
        proof: ResumeProof | None = None,
    ) -> None:
        self.due.append(on_ticket)
        if self.at_once:
            self.give()

    def finish_join(self, topic: str, peer: str, *, joined: bool) -> None:
        self.finished.append((peer, joined))

    def give(self, full: str | None = None, session: OutgoingSession | None = None, peer: str = "") -> None:
        """Give the next ticket."""
        peer = peer or f"{len(self.given):026}"
        self.given.append(peer)
        self.due.pop(0)(JoinTicket(peer, full, Incoming(session.text) if session is not None else None))


class Incoming:
    """A session from another node, for which nothing waits."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def receipt(self, number: int) -> Receipt:
        raise NotImplementedError

    def follow(self, number: int, forwarding: Any) -> None:
        raise NotImplementedError


class Connection:
    """A connection that does what a ``SignalingProtocol`` does for its join."""

    blocked = False
    end_reason = "the connection was lost"

    def __init__(self, server: Server) -> None:
        self.slot: ConnectionSlot | None = None
        self.close_frame_seen = self.ended = self.opened = self.reads = self.awaits_turn = False
        self.closed: int | None = None
        self.peer: Peer | None = None
        self.messages: list[Any] = []
        self.attempt: ObservedAttempt | None = None
        self._server = server

    def accept(self, key: bytes) -> None:
        assert not self.ended
        self.opened = self.reads = True
        assert self.attempt is not None
        self.attempt.opened()

    def accept_in_turn(self, key: bytes) -> None:
        self.awaits_turn = True

    def take_turn(self) -> None:
        self.awaits_turn = False
        self.accept(b"")

    def hold(self) -> None:
        self.reads = False

    def attach(self, peer: Peer) -> None:
        self.peer = peer
        self.attempt = None
        self.reads = True

    def close(self, code: int, reason: str) -> None:
        self.closed = code
        self.close_frame_seen = True
        self.begin_to_end()

    def begin_to_end(self) -> None:
        self.ended = True
        self.awaits_turn = False

    def be_lost(self) -> None:
        self.begin_to_end()
        peer, self.peer = self.peer, None
        if peer is not None and not self.close_frame_seen and peer.detach(self.slot):
            self.slot = None
        elif peer is not None:
            peer.leave(LeaveReason.CONNECTION_LOST)
        if self.attempt is not None:
            self.attempt.connection_lost()
        if self.slot is not None:
            self.slot.release()

    def give_up_session(self) -> None:
        self.peer = None
        self.be_lost()

    def offer(self, frame: bytes, receipt: Receipt | None = None) -> bool:
        self.answer(frame)
        return True

    def answer(self, frame: bytes) -> None:
        self.messages.append(json.loads(frame[frame.index(b"{") :]))

    def request_ack(self, payload: bytes) -> None:
        """Do nothing."""


class Server:
    """What the joins of one server share."""

    def __init__(self, **limits: Any) -> None:
        clock = Clock()
        self.limits = Limits(resume_window_seconds=30, max_connections=MOST_CONNECTIONS, **limits)
        self.crowd_size = 32
        self.presence = None
        self.draining = self.has_error = False
        self.topics: TopicMap[Peer] = TopicMap(self.limits.max_peers_per_topic, 1_000_000)
        self.connection_limits = ConnectionLimits(self.limits, 1024, clock.seconds)
        self.backplane = Backplane()
        self.counters = Counters()
        self.sessions = SessionRegistry(self.limits, clock, self.topics, lambda peer, text, reason: None)
        announcer = Announcer(clock, lambda count: None)
        self.services = PeerServices(self.topics, announcer, self.backplane, self.counters, self.limits, self.sessions)
        self.local = LocalPeers(self.services, lambda peer: None, lambda query, on_answer: None)
        self.blocks = Blocks(clock.seconds)
        self.records_addresses = False
        self.log: list[str] = []

    @property
    def events(self) -> Server:
        return self

    @property
    def ice_servers(self) -> Server:
        return self

    def text(self, peer_id: str) -> bytes | None:
        if self.has_error:
            raise Planted
        return None

    def expires_in(self, grant: Grant | None) -> int | None:
        return None

    def new_peer(self, request: JoinRequest, connection: Connection, ticket: JoinTicket) -> Peer:
        peer = PeerSession(ticket.id or "", request, self.services)
        peer.attach(connection)
        return peer

    def joined(self, peer: str, topic: str, address: str | None, subject: str | None) -> None:
        self.log.append(f"joined from {address}")

    def resumed(self, peer: str, topic: str, address: str | None, subject: str | None) -> None:
        self.log.append(f"resumed from {address}")

    def rejected(self, topic: str, address: str | None, reason: str, subject: str | None) -> None:
        self.log.append(f"rejected: {reason}")

    def detached(self, peer: str, topic: str, reason: str, subject: str | None) -> None:
        self.log.append(f"detached: {reason}")

    @property
    def free_slots(self) -> int:
        """How many more connections are let in."""
        slots = []
        try:
            while True:
                slots.append(self.connection_limits.admit(BOB))
        except Refused:
            return len(slots)
        finally:
            for slot in slots:
                slot.release()

    def start(self, request: JoinRequest) -> Connection:
        connection = Connection(self)
        connection.attempt = attempt = ObservedAttempt(request, b"", ADA, connection, self)  # type: ignore[arg-type]
        attempt.start()
        return connection

    def session(self) -> ResumeClaim:
        """Have a detached session; returns the claim to it."""
        connection = self.start(JoinRequest("room", None))
        self.backplane.give()
        connection.be_lost()
        return ResumeClaim(connection.messages[0]["resume"]["token"].encode(), len(connection.messages))


class Case:
    """One join, and everything that can happen to it.

    Args:
        session: that the client had: "none", "here" or "elsewhere", "too old" if it missed more than is kept, and
            "unreadable" for one of another version.
        is_large: whether joins of the topic take turns.
    """

    def __init__(self, session: str = "none", is_large: bool = False) -> None:
        self.server = server = Server(max_peers_per_topic=2)
        self.claim: ResumeClaim | None = None
        self._elsewhere: tuple[OutgoingSession, str] | None = None
        if session in ("here", "too old"):
            self.claim = server.session()
            if session == "too old":
                self.claim = ResumeClaim(self.claim.token, 99)
        elif session in ("elsewhere", "unreadable"):
            other = Server()
            self.claim = other.session()
            proof = resume_proof(JoinRequest("room", None, self.claim))
            assert proof is not None
            outgoing = other.local.prepare_handoff("room", proof)
            assert outgoing is not None
            if session == "unreadable":
                outgoing = OutgoingSession(b"\x93\x01", [], [])
            self._elsewhere = outgoing, proof.peer
        if is_large:
            server.crowd_size = 0
        self.connection = Connection(server)
        request = JoinRequest("room", None, self.claim)
        self.attempt = ObservedAttempt(request, b"", ADA, self.connection, server)  # type: ignore[arg-type]
        self.connection.attempt = self.attempt
        self.started = self.lost = False

    def events(self) -> Iterator[str]:
        """List what may happen next."""
        backplane, connection = self.server.backplane, self.connection
        if not self.started:
            yield from ("start", "start while draining", "start on a full server", "start with an error")
            return
        if backplane.due:
            yield from ("ticket", "ticket, full")
            if self._elsewhere is not None and self.attempt.state is ANNOUNCING:
                yield "ticket with the session"
        if connection.awaits_turn:
            yield from ("turn", "turn with an error")
        if not connection.ended:
            yield "closing"
        if not self.lost:
            yield "lost"
        if self.server.sessions.detached:
            yield "session closed"
        if not self.server.draining:
            yield "draining"

    def do(self, event: str) -> None:
        """Let ``event`` happen."""
        server, backplane, connection = self.server, self.server.backplane, self.connection
        server.has_error = event.endswith("with an error")
        try:
            self._do(event.removesuffix(" with an error"), server, backplane, connection)
        except Planted:
            # As a transport does with an error of its protocol.
            self.do("lost")
        finally:
            server.has_error = False

    def _do(self, event: str, server: Server, backplane: Backplane, connection: Connection) -> None:
        if event == "ticket":
            backplane.give()
        elif event == "ticket, full":
            backplane.give(full="the topic has 2 peers, which is the most")
        elif event == "ticket with the session":
            assert self._elsewhere is not None
            (outgoing, peer), self._elsewhere = self._elsewhere, None
            backplane.give(session=outgoing, peer=peer)
        elif event == "turn":
            connection.take_turn()
        elif event == "closing":
            connection.begin_to_end()
        elif event == "lost":
            self.lost = True
            connection.be_lost()
        elif event == "session closed":
            next(iter(server.sessions.detached)).close("it did not resume in time")
        elif event == "draining":
            server.draining = True
        else:
            self._start(event, server)

    def _start(self, event: str, server: Server) -> None:
        self.started = True
        taken = []
        if event == "start on a full server":
            taken = [server.connection_limits.admit(BOB) for _ in range(server.free_slots)]
        server.draining = event == "start while draining"
        try:
            self.attempt.start()
        except Refused:
            self.connection.begin_to_end()
        finally:
            for slot in taken:
                slot.release()

    def finish(self) -> None:
        """Let everything end, and see that nothing is left of it."""
        server, backplane = self.server, self.server.backplane
        if not self.lost and not backplane.due:
            self.do("lost")
        while backplane.due:
            self.do("ticket")
        if not self.lost:
            self.do("lost")
        assert self.attempt.state in (JOINED, RESUMED, REJECTED, ABORTED)
        for session in tuple(server.sessions.detached):
            session.close("the test is over")
        assert server.free_slots == MOST_CONNECTIONS
        assert [peer for peer, _ in backplane.finished] == backplane.given


PATHS: list[tuple[dict[str, Any], list[str], list[JoinState]]] = [
    ({}, ["start while draining"], [REQUESTED, REJECTED]),
    ({}, ["start on a full server"], [REQUESTED, REJECTED]),
    ({}, ["start", "ticket"], [REQUESTED, ANNOUNCING, OPEN, JOINED]),
    ({}, ["start", "ticket, full"], [REQUESTED, ANNOUNCING, OPEN, REJECTED]),
    ({}, ["start", "lost", "ticket"], [REQUESTED, ANNOUNCING, ABORTED]),
    ({}, ["start", "closing", "ticket", "lost"], [REQUESTED, ANNOUNCING, ABORTED]),
    ({"is_large": True}, ["start", "ticket", "turn"], [REQUESTED, ANNOUNCING, AWAITING_TURN, OPEN, JOINED]),
    ({"is_large": True}, ["start", "ticket", "lost"], [REQUESTED, ANNOUNCING, AWAITING_TURN, ABORTED]),
    (
        {"is_large": True},
        ["start", "ticket", "turn with an error"],
        [REQUESTED, ANNOUNCING, AWAITING_TURN, OPEN, ABORTED],
    ),
    ({"session": "here"}, ["start"], [REQUESTED, OPEN, RESUMED]),
    ({"session": "here"}, ["start on a full server"], [REQUESTED, OPEN, RESUMED]),
    ({"session": "here", "is_large": True}, ["start", "turn"], [REQUESTED, AWAITING_TURN, OPEN, RESUMED]),
    ({"session": "here", "is_large": True}, ["start", "lost"], [REQUESTED, AWAITING_TURN, ABORTED]),
    (
        {"session": "here", "is_large": True},
        ["start", "session closed", "turn", "ticket"],
        [REQUESTED, AWAITING_TURN, OPEN, REANNOUNCING, JOINED],
    ),
    ({"session": "too old"}, ["start", "ticket"], [REQUESTED, OPEN, REANNOUNCING, JOINED]),
    ({"session": "too old"}, ["start", "ticket, full"], [REQUESTED, OPEN, REANNOUNCING, REJECTED]),
    ({"session": "too old"}, ["start", "lost", "ticket"], [REQUESTED, OPEN, REANNOUNCING, ABORTED]),
    ({"session": "elsewhere"}, ["start", "ticket with the session"], [REQUESTED, ANNOUNCING, OPEN, RESUMED]),
    ({"session": "elsewhere"}, ["start", "lost", "ticket with the session"], [REQUESTED, ANNOUNCING, ABORTED]),
    (
        {"session": "unreadable"},
        ["start", "ticket with the session", "ticket"],
        [REQUESTED, ANNOUNCING, OPEN, REANNOUNCING, JOINED],
    ),
]
ALL_TRANSITIONS = {(state, later) for state, others in TRANSITIONS.items() for later in others}


def test_the_table_has_every_state() -> None:
    assert set(TRANSITIONS) == set(JoinState)


@pytest.mark.parametrize(("how", "events", "states"), PATHS)
def test_a_join_takes_the_path_that_its_events_say(
    how: dict[str, Any], events: list[str], states: list[JoinState]
) -> None:
    case = Case(**how)
    for event in events:
        case.do(event)
    assert case.attempt.states == states
    case.finish()


def test_the_paths_show_every_transition() -> None:
    shown = {pair for _, _, states in PATHS for pair in pairwise(states)}
    assert shown == ALL_TRANSITIONS


@pytest.mark.unmeasured
def test_whatever_happens_no_other_transition_is_made_and_nothing_is_left() -> None:
    made = set()
    for session, is_large in product(["none", "here", "too old", "elsewhere", "unreadable"], [False, True]):
        sequences: list[list[str]] = [[]]
        while sequences:
            events = sequences.pop()
            case = Case(session, is_large)
            for event in events:
                case.do(event)
            if len(events) < LONGEST_SEQUENCE:
                sequences += [[*events, event] for event in case.events()]
            if case.started:
                case.finish()
            made |= set(pairwise(case.attempt.states))
    assert made == ALL_TRANSITIONS


def test_a_change_that_the_table_does_not_allow_raises() -> None:
    case = Case()
    case.do("start")
    case.do("ticket")
    with pytest.raises(RuntimeError, match="a join that is joined cannot become open"):
        case.attempt.opened()


def test_messages_wait_until_there_is_a_peer() -> None:
    case = Case("too old")
    case.do("start")
    connection = case.connection
    assert (connection.opened, connection.reads, connection.messages) == (True, False, [])
    case.do("ticket")
    assert (connection.reads, [message["type"] for message in connection.messages]) == (True, ["welcome", "peer-list"])


def test_a_handshake_waits_for_the_ticket() -> None:
    case = Case()
    case.do("start")
    assert (case.connection.opened, case.connection.reads) == (False, False)
    case.do("ticket")
    assert (case.connection.opened, case.connection.reads) == (True, True)


def test_a_ticket_that_comes_at_once_holds_nothing_up() -> None:
    server = Server()
    server.backplane.at_once = True
    connection = server.start(JoinRequest("room", None))
    assert (connection.opened, connection.reads) == (True, True)
    assert server.backplane.finished == [("0" * 26, True)]


def test_a_topic_that_is_full_here_rejects_though_the_backplane_has_room() -> None:
    server = Server(max_peers_per_topic=1)
    server.session()
    connection = server.start(JoinRequest("room", None))
    server.backplane.give()
    assert ([message["code"] for message in connection.messages], connection.closed) == (["topic_full"], 1013)
    assert server.backplane.finished[-1][1] is False
    assert server.log[-1].startswith("rejected: the topic has 1 peers")


def test_a_slot_of_a_rejected_connection_is_held_until_that_is_lost() -> None:
    case = Case()
    case.do("start")
    case.do("ticket, full")
    assert case.server.free_slots == MOST_CONNECTIONS - 1
    case.do("lost")
    assert case.server.free_slots == MOST_CONNECTIONS


def test_a_connection_that_is_lost_gives_its_slot_back_to_the_session() -> None:
    case = Case("here", is_large=True)
    case.do("start")
    case.do("lost")
    assert case.server.free_slots == MOST_CONNECTIONS - 1
    resumed = case.server.start(JoinRequest("room", None, case.claim))
    resumed.take_turn()
    assert resumed.messages[0]["resumed"]
    assert case.server.free_slots == MOST_CONNECTIONS - 1


def test_a_session_that_another_node_gave_up_stays_here_though_its_connection_is_lost() -> None:
    case = Case("elsewhere")
    for event in ("start", "lost", "ticket with the session"):
        case.do(event)
    server, peer = case.server, case.server.backplane.given[0]
    assert (server.backplane.finished, server.log) == ([(peer, True)], ["detached: the connection was lost"])
    assert server.free_slots == MOST_CONNECTIONS - 1
    assert server.start(JoinRequest("room", None, case.claim)).messages[0]["selfId"] == peer


def test_a_server_that_stops_keeps_no_session_of_a_connection_that_is_lost() -> None:
    case = Case("elsewhere")
    for event in ("start", "lost", "draining", "ticket with the session"):
        case.do(event)
    assert [joined for _, joined in case.server.backplane.finished] == [False]
    assert case.server.free_slots == MOST_CONNECTIONS


def test_a_client_that_is_blocked_while_it_waits_does_not_join() -> None:
    server = Server()
    free = server.free_slots
    connection = server.start(JoinRequest("room", None, grant=Grant(subject="Ada")))
    server.blocks.add("room", "Ada", None, 60)
    server.backplane.give()
    assert connection.closed == 4403
    assert connection.peer is None
    assert [joined for _, joined in server.backplane.finished] == [False]
    assert server.log == ["rejected: the owner of this token may not join this topic for 60 s more"]
    connection.be_lost()
    assert server.free_slots == free


def test_a_client_that_is_blocked_is_refused_at_once() -> None:
    server = Server()
    server.blocks.add("room", "Ada", None, 60)
    with pytest.raises(Refused) as raised:
        server.start(JoinRequest("room", None, grant=Grant(subject="Ada")))
    assert raised.value.status == 403
    server.start(JoinRequest("room", None, grant=Grant(subject="Bob")))
