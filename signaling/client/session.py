"""One peer's session without I/O: what to connect to, what to write, and the events for the application.

A session outlives its connections. An adapter connects to ``url``, passes every message to ``receive`` and each end of
a connection to ``lost``, and takes from ``writes`` and ``events`` after each of these and after ``send``.

Sent messages are kept until the server has certainly processed them. A message of the peer to itself, the fence, shows
that: the server processes the messages of a connection in order, so when the fence returns, all before it were accepted
or answered. On a resumed session the others are sent again, after a fence behind which all missed messages have
arrived. A message that the server accepted just as the connection broke is then sent twice; a number in ``msgId`` lets
the receiver ignore the second one.

The server is a stranger as well: whatever it sends, this keeps a bounded amount, and ignores what is out of turn.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit, urlunsplit

import msgspec

from signaling.client.backoff import Loss, one_line
from signaling.client.credential import Credential, Renewal, Step, TokenSource
from signaling.client.errors import TOO_LARGE, Refused
from signaling.client.messages import (
    Answer,
    AnyMessage,
    Error,
    IceCandidate,
    IceServer,
    IceServers,
    Metadata,
    Notice,
    Offer,
    PeerJoined,
    PeerLeft,
    PeerList,
    PeerUpdated,
    Token,
    Welcome,
    decode,
)
from signaling.client.metadata import FEATURE, UNSUPPORTED, OwnMetadata, differ
from signaling.errors import CloseCode, ErrorCode

if TYPE_CHECKING:
    from signaling.client.sealing import Sealing

RELAYED_TYPES = ("offer", "answer", "ice-candidate")
MOST_KEPT = 256
"""How many messages wait for a connection; the next one is ``dropped``."""
MOST_UNCONFIRMED = 16_384
MOST_UNCONFIRMED_BYTES = 16 * 1_048_576
"""How many written messages wait until the server has confirmed them; the next one is ``dropped``."""
MOST_PEERS = 65_536
MOST_PEERS_BYTES = 16 * 1_048_576
"""How many other peers a topic has, and the bytes of the messages that named them; further ones are left out."""
# A server notices within a minute that a peer has lost its connection; that is time for a few others.
_MOST_FORMER_IDS = 16
MOST_FEATURES = 64
"""How many names of features are kept of a welcome, each of at most ``LONGEST_FEATURE`` characters."""
LONGEST_FEATURE = 64
MAX_MESSAGE_BYTES = 65_536
"""The longest message that this peer sends: the default of a server."""
MAX_RECEIVED_BYTES = 16 * 1_048_576
"""The longest message of the server. A peer list has up to 1 MiB by default, and an operator may allow more."""
MAX_FRAGMENTS = 16_384
"""The fragments of one message: empty ones do not count as bytes."""

_NUMBERED = re.compile(r"~([0-9]{1,15})")
_FENCE = re.compile(r"fence ([0-9]{1,15}) ([0-9]{1,15})")
_RENEWAL = re.compile(r"token [0-9]{1,15}")
# Statuses that a server may give for metadata that is too long, or for a URL that is too long with it.
_OF_THE_URL = (400, 414, 431)
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

OnOutcome = Callable[[Error | None], None]
"""Called with the outcome of a message: None once the server accepted it, otherwise its error."""


@dataclass
class _Entry:
    number: int
    msg_id: str
    text: str
    on_outcome: OnOutcome | None
    seal: Callable[[str], str] | None = None
    """Makes the text for a sender's id, if the payload is sealed; that of ``sealed_by`` is as long as any other."""
    sealed_by: str = ""


class _Outbox:
    """The messages that were sent, in order, until the server has certainly processed them."""

    def __init__(self, sealing: Sealing | None) -> None:
        self._sealing = sealing
        self._entries: deque[_Entry] = deque()
        self._written = 0
        self._latest = 0
        self._bytes = 0

    def has_room(self, *, connected: bool) -> bool:
        """Return whether another message may be kept."""
        if not connected:
            return len(self._entries) < MOST_KEPT
        return len(self._entries) < MOST_UNCONFIRMED and self._bytes < MOST_UNCONFIRMED_BYTES

    @property
    def latest_written(self) -> int:
        """The number of the last unconfirmed message that was written to this connection; 0 if there is none."""
        return self._entries[self._written - 1].number if self._written else 0

    def make(self, kind: str, sender: str, to: str, payload: Any, on_outcome: OnOutcome | None) -> _Entry:
        number = self._latest + 1
        msg_id = f"~{number}"
        seal = self._seal(kind, to, number, payload)
        text = seal(sender) if seal else _text(kind, to, payload, number)
        self._latest = number
        return _Entry(number, msg_id, text, on_outcome, seal, sender)

    def _seal(self, kind: str, to: str, number: int, payload: Any) -> Callable[[str], str] | None:
        sealing = self._sealing
        if sealing is None:
            return None
        plaintext = _encode(payload).encode()
        return lambda sender: _text(kind, to, sealing.seal(kind, sender, to, number, plaintext), number)

    def keep(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._bytes += len(entry.text)

    def write(self, sender: str) -> list[str]:
        """Return the messages that were not written to this connection yet."""
        entries = list(self._entries)[self._written :]
        for entry in entries:
            # It was sent before this peer had an id.
            if entry.seal is not None and entry.sealed_by != sender:
                entry.text, entry.sealed_by = entry.seal(sender), sender
        self._written = len(self._entries)
        return [entry.text for entry in entries]

    def rewind(self) -> None:
        """Write all again to the next connection: this one was lost."""
        self._written = 0

    def confirm(self, number: int) -> list[_Entry]:
        """Remove and return a message and all before it."""
        confirmed = []
        while self._entries and self._entries[0].number <= number:
            confirmed.append(self._entries.popleft())
            self._bytes -= len(confirmed[-1].text)
        self._written = max(0, self._written - len(confirmed))
        return confirmed

    def answered(self, msg_id: str | None) -> _Entry | None:
        """Remove and return the message that an error answered."""
        for index, entry in enumerate(self._entries):
            if entry.msg_id == msg_id:
                del self._entries[index]
                self._bytes -= len(entry.text)
                self._written -= index < self._written
                return entry
        return None

    def take_longest_written(self, least: int = 0) -> list[_Entry]:
        """Remove and return the longest message that was written to this connection and is not confirmed.

        Args:
            least: the length of another message; shorter ones are kept.
        """
        written = list(self._entries)[: self._written]
        longest = max(written, key=lambda entry: len(entry.text), default=None)
        if longest is None or len(longest.text) < least:
            return []
        self._entries.remove(longest)
        self._bytes -= len(longest.text)
        self._written -= 1
        return [longest]

    def clear(self) -> list[_Entry]:
        entries = list(self._entries)
        self._entries.clear()
        self._written = self._bytes = 0
        return entries


class Session:
    """One peer in one topic, over one connection after another.

    Args:
        url: of the topic, for example ``wss://example.com/ws/my-room``.
        metadata: shown to the others.
        token: presented to the server in the header ``Authorization``.
        secret: seals the payloads; None means that they are sent as they are.
        max_message_bytes: the longest message to send; the server closes the connection after a longer one.
        clock: returns monotonic seconds.

    Attributes:
        self_id: this peer's id; a new one after a loss that was not resumed, empty before the first ``Welcome``.
        peers: the other peers and their metadata, in joining order.
        ice_servers: the latest from the server.
        features: the names of the optional features that the server has on; empty before the first ``Welcome``.
        open: whether the current connection has received its ``peer-list``.

    Raises:
        TypeError: if the token is neither a string nor a function.
        ValueError: if the URL is not that of a WebSocket, the token given twice or malformed, or the secret too short.
        ImportError: if there is a secret, and no ``cryptography``.
    """

    def __init__(  # noqa: PLR0913 - as for join
        self,
        url: str,
        metadata: Metadata | None = None,
        *,
        token: TokenSource | None = None,
        secret: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = _address(url, metadata, has_token=token is not None)
        self._own = OwnMetadata(_metadata_of(self._url))
        self._credential = Credential(token)
        self._renewal = Renewal(clock)
        self._renewals = 0
        self._awaited_renewal: str | None = None
        self._renewing: str | None = None
        self._max_message_bytes = max_message_bytes
        self.self_id = ""
        self.peers: dict[str, Metadata | None] = {}
        self.ice_servers: list[IceServer] = []
        self.features: frozenset[str] = frozenset()
        self.open = False
        self._welcomed = self._listed = self._over = False
        self._resume_token: str | None = None
        self._seen = 0
        self._sizes: dict[str, int] = {}
        self._peers_bytes = 0
        self._former_ids: deque[str] = deque(maxlen=_MOST_FORMER_IDS)
        self._last_numbers: dict[str, int] = {}
        self._sealing = None if secret is None else _sealing(secret, self._url)
        self._outbox = _Outbox(self._sealing)
        self._fences = 0
        self._fence: int | None = None
        self._catching_up = False
        self._events: list[AnyMessage] = []

    @property
    def token_source(self) -> TokenSource | None:
        """The token for the next connection; a function has to be asked for it, before every attempt."""
        return self._credential.source

    @property
    def url(self) -> str:
        """The URL for the next connection."""
        url = self._url
        metadata = self._own.requested()
        if metadata is not self._own.given and metadata is not None:
            url = _with_metadata(url, metadata)
        if self._resume_token is None:
            return url
        mark = "&" if "?" in url else "?"
        return f"{url}{mark}resume={quote(self._resume_token, safe='', errors='replace')}&seen={self._seen}"

    @property
    def metadata(self) -> Metadata | None:
        """This peer's own metadata, as given, or as the server last said; a token may have replaced the former."""
        return self._own.shown

    def events(self) -> list[AnyMessage]:
        """Return and forget the events for the application."""
        events, self._events = self._events, []
        return events

    def writes(self) -> list[str]:
        """Return and forget the messages to write to the current connection."""
        if not self.open or (self._catching_up and self._fence is not None and self._renewing is None):
            return []
        texts = [] if self._catching_up else self._own.write() + self._outbox.write(self.self_id)
        if self._renewing is not None:
            texts.insert(0, self._renewing)
            self._renewing = None
        if self._fence is None and (self._catching_up or self._outbox.latest_written):
            texts.append(self._make_fence())
        return texts

    def send(self, kind: str, to: str, payload: Any = None, on_outcome: OnOutcome | None = None) -> str:
        """Send a message; it waits while there is no connection.

        Args:
            kind: ``offer``, ``answer`` or ``ice-candidate``.
            to: the target's id.
            payload: anything that JSON can represent.
            on_outcome: called with its outcome, instead of an ``Error`` event.

        Returns:
            Its ``msgId``.

        Raises:
            ValueError: if the kind is unknown, the payload not JSON, or the message longer than ``max_message_bytes``.
        """
        if kind not in RELAYED_TYPES:
            raise ValueError(f"{kind!r} is not one of {', '.join(RELAYED_TYPES)}")
        entry = self._outbox.make(kind, self.self_id, to, payload, on_outcome)
        if len(entry.text) > self._max_message_bytes:
            raise ValueError(
                f"the {kind} is a message of {len(entry.text):,} bytes; "
                f"the server takes at most {self._max_message_bytes:,} (max_message_bytes)"
            )
        if self._over:
            self._refuse([entry], "this peer left")
        elif not self._outbox.has_room(connected=self.open):
            self._refuse([entry], "too much waits for the server" if self.open else "too much waits for a connection")
        else:
            self._outbox.keep(entry)
        return entry.msg_id

    def update_metadata(self, metadata: Mapping[str, Any], on_outcome: OnOutcome) -> None:
        """Replace this peer's metadata, for all peers in the topic; its key ``instance`` stays unless there is another.

        Args:
            metadata: anything that JSON can represent.
            on_outcome: called once with None when the server has it, or with the error, as for ``NotUpdated``.

        Raises:
            TypeError: if the metadata is no mapping.
            ValueError: if it is not JSON, or the message longer than ``max_message_bytes``.
        """
        update = self._own.make(metadata, on_outcome)
        if len(update.text) > self._max_message_bytes:
            raise ValueError(
                f"the metadata makes a message of {len(update.text):,} bytes; "
                f"the server takes at most {self._max_message_bytes:,} (max_message_bytes)"
            )
        if self._over:
            on_outcome(Error(ErrorCode.DROPPED, "this peer left"))
        elif self.open and FEATURE not in self.features:
            on_outcome(Error(UNSUPPORTED, "the server takes no updates of metadata (--metadata-updates)"))
        else:
            self._own.ask(update, connected=self.open)

    def forget_update(self, on_outcome: OnOutcome) -> None:
        """Wait no more for the outcome of an update; no-op if it had one."""
        self._own.forget(on_outcome)

    def refused(self, refused: Refused) -> Loss:
        """Return the loss with which to go on after a refusal.

        The function is to be asked for another token; or the server does not take the latest metadata in a URL, and
        the next attempt has the former one.

        Raises:
            Refused: the same, if the next request would be refused as well.
        """
        if refused.status in _OF_THE_URL and self._own.revert():
            self._events.append(Error(ErrorCode.INVALID_METADATA, refused.reason))
            return Loss(str(refused), at_once=True)
        return self._credential.refused(refused)

    def renewal(self) -> Step | None:
        """Return and forget when to ask the function for a token that replaces the one of the open connection.

        Returns:
            None if that has not changed.
        """
        return self._renewal.step()

    def renew(self, token: str) -> None:
        """Send a new token with the next ``writes``; no-op if the connection was lost."""
        if self._welcomed:
            self._renewals += 1
            self._awaited_renewal = f"token {self._renewals}"
            self._renewing = _encode({"type": "token", "token": token, "msgId": self._awaited_renewal})

    def renewal_failed(self, problem: str) -> None:
        """Note that there is no new token."""
        self._renewal.failed(problem)

    def receive(self, text: str | bytes) -> None:
        """Process one message of the server."""
        message = decode(text)
        if not self._welcomed:
            self._receive_first(message)
            return
        self._seen += 1
        match message:
            case PeerList() | PeerJoined() | PeerUpdated() | PeerLeft() as change:
                self._peers_changed(change, len(text))
            case IceServers() as renewed:
                self.ice_servers = renewed.ice_servers
                self._events.append(renewed)
            case Offer() | Answer() | IceCandidate() as relayed:
                self._relayed(relayed)
            case Notice() as notice:
                self._events.append(notice)
            case Token() as token:
                self._token_accepted(token)
            case Error() as error:
                self._error(error)

    def lost(self, code: int | None = None, reason: str = "") -> None:
        """Note that the connection was lost.

        Args:
            code: the close code, if there was a close frame.
            reason: the server's; for a message that is too long, it names the limit.
        """
        if code == CloseCode.MESSAGE_TOO_BIG:
            # Not ``dropped``: the application may send that again, which would end the next connection as well.
            why = f"it is longer than the server accepts ({one_line(reason) or code})"
            length, msg_id = self._own.longest_unanswered()
            longest = self._outbox.take_longest_written(length)
            self._refuse(longest, why, TOO_LARGE)
            if length and not longest:
                self._metadata_refused(Error(TOO_LARGE, why, msg_id))
        self.open = self._welcomed = False
        self._fence = self._renewing = None
        self._awaited_renewal = None
        self._renewal.end()
        self._own.lost()
        self._outbox.rewind()

    def leave(self) -> None:
        """End the session; unconfirmed messages are ``dropped``, and so are those sent from now on."""
        self._over = True
        self._own.leave()
        self.lost()
        self._keep_peers({}, 0)
        self._resume_token = None
        self._refuse(self._outbox.clear(), "this peer left")

    def _receive_first(self, message: AnyMessage | Token | None) -> None:
        # The server has accepted the token. Before its welcome, it sends at most an error, of no session.
        self._credential.accepted()
        match message:
            case Welcome() as welcome:
                self._welcome(welcome)
            case Error() as error:
                self._events.append(error)

    def _welcome(self, welcome: Welcome) -> None:
        unsent: list[_Entry] = []
        self._welcomed = True
        if welcome.self_id != self.self_id:
            # Another id is another peer, whatever the server says: nothing may be repeated as that.
            welcome = msgspec.structs.replace(welcome, resumed=False)
        if len(welcome.features) > MOST_FEATURES or any(len(name) > LONGEST_FEATURE for name in welcome.features):
            short = (name for name in welcome.features if len(name) <= LONGEST_FEATURE)
            welcome = msgspec.structs.replace(welcome, features=frozenset(islice(short, MOST_FEATURES)))
        if welcome.resumed:
            self._seen += 1
        else:
            self._own.joined()
            self._seen = 1
            self._last_numbers.clear()
            if self.self_id:
                self._former_ids.append(self.self_id)
                unsent = self._outbox.clear()
        self._over = False
        self._catching_up = welcome.resumed
        self.self_id = welcome.self_id
        self.ice_servers = welcome.ice_servers
        self.features = welcome.features
        self._resume_token = welcome.resume.token if welcome.resume else None
        if callable(self.token_source):
            self._renewal.expires_in(welcome.expires_in)
        self._events.append(welcome)
        self._refuse(unsent, "it was sent as a peer that is gone")

    def _peers_changed(self, change: PeerList | PeerJoined | PeerUpdated | PeerLeft, size: int) -> None:
        match change:
            case PeerList():
                if not self.open:
                    self._list(change, size)
            case PeerJoined():
                self._joined(change, size)
            case PeerUpdated():
                self._updated(change, size)
            case PeerLeft():
                self._left(change)

    def _list(self, peer_list: PeerList, size: int) -> None:
        # The server may not have noticed yet that this peer lost its former connection.
        listed = {peer.id: peer.metadata for peer in peer_list.peers}
        now = {peer_id: metadata for peer_id, metadata in listed.items() if peer_id not in self._former_ids}
        # No id joins twice: peers that are not listed any more send nothing.
        self._former_ids = deque((own for own in self._former_ids if own in listed), _MOST_FORMER_IDS)
        self._last_numbers = {
            sender: number for sender, number in self._last_numbers.items() if self._knows(sender, now)
        }
        before = self.peers
        now = self._keep_peers(now, size)
        self.open = True
        if FEATURE in self.features:
            self._own.repeat()
        if not self._listed:
            self._listed = True
            self._events.append(PeerList([peer for peer in peer_list.peers if peer.id in now]))
            return
        self._events += [PeerLeft(peer_id) for peer_id in before if peer_id not in now]
        self._events += [PeerJoined(peer_id, now[peer_id]) for peer_id in now if peer_id not in before]
        self._events += [
            PeerUpdated(peer_id, metadata)
            for peer_id, metadata in now.items()
            if peer_id in before and differ(before[peer_id], metadata)
        ]

    def _joined(self, joined: PeerJoined, size: int) -> None:
        known = joined.peer_id in self.peers or joined.peer_id in self._former_ids
        if not known and len(self.peers) < MOST_PEERS and self._peers_bytes + size <= MOST_PEERS_BYTES:
            self.peers[joined.peer_id] = joined.metadata
            self._sizes[joined.peer_id] = size
            self._peers_bytes += size
            self._events.append(joined)

    def _updated(self, updated: PeerUpdated, size: int) -> None:
        if updated.peer_id == self.self_id:
            self._own.updated(updated.metadata)
            self._events.append(updated)
        elif updated.peer_id in self.peers:
            growth = size - self._sizes[updated.peer_id]
            if self._peers_bytes + growth > MOST_PEERS_BYTES:
                updated, growth = PeerUpdated(updated.peer_id), 0
            self.peers[updated.peer_id] = updated.metadata
            self._sizes[updated.peer_id] += growth
            self._peers_bytes += growth
            self._events.append(updated)

    def _left(self, left: PeerLeft) -> None:
        self._last_numbers.pop(left.peer_id, None)
        if left.peer_id in self._former_ids:
            self._former_ids.remove(left.peer_id)
        if left.peer_id in self.peers:
            del self.peers[left.peer_id]
            self._peers_bytes -= self._sizes.pop(left.peer_id)
            self._events.append(left)

    def _keep_peers(self, peers: dict[str, Metadata | None], size: int) -> dict[str, Metadata | None]:
        """Replace the peers by those of a message of ``size`` bytes, or by as many of them as are kept."""
        kept = dict(islice(peers.items(), MOST_PEERS))
        each = size // max(len(kept), 1)
        self.peers, self._sizes, self._peers_bytes = kept, dict.fromkeys(kept, each), each * len(kept)
        return kept

    def _relayed(self, relayed: Offer | Answer | IceCandidate) -> None:
        if relayed.sender == self.self_id and self._passes_fence(relayed.msg_id):
            return
        if self._sealing is not None:
            received = self._sealing.receive(relayed, self.self_id)
            self._events += [] if received is None else [received]
            return
        numbered = _NUMBERED.fullmatch(relayed.msg_id or "")
        if numbered:
            number = int(numbered[1])
            if number <= self._last_numbers.get(relayed.sender, 0):
                return
            if self._knows(relayed.sender, self.peers):
                self._last_numbers[relayed.sender] = number
        self._events.append(relayed)

    def _error(self, error: Error) -> None:
        # A refused fence proves as much as one that returns.
        if self._passes_fence(error.msg_id):
            return
        if self._own.answers(error.msg_id):
            self._metadata_refused(error)
            return
        if _RENEWAL.fullmatch(error.msg_id or ""):
            if error.msg_id == self._awaited_renewal:
                self._awaited_renewal = None
                self._renewal.failed(f"the server refused the new token: {one_line(error.message)}")
            return
        entry = self._outbox.answered(error.msg_id)
        if entry is not None and entry.on_outcome is not None:
            entry.on_outcome(error)
        else:
            self._events.append(error)

    def _metadata_refused(self, error: Error) -> None:
        if not self._own.refused(error):
            self._events.append(error)

    def _token_accepted(self, token: Token) -> None:
        if token.msg_id and token.msg_id == self._awaited_renewal:
            self._awaited_renewal = None
            self._renewal.expires_in(token.expires_in)

    def _make_fence(self) -> str:
        self._fences += 1
        self._fence = self._fences
        msg_id = f"fence {self._fences} {self._outbox.latest_written}"
        return _encode({"type": "ice-candidate", "to": self.self_id, "msgId": msg_id})

    def _passes_fence(self, msg_id: str | None) -> bool:
        fence = _FENCE.fullmatch(msg_id or "")
        if fence is None:
            return False
        for entry in self._outbox.confirm(int(fence[2])):
            if entry.on_outcome is not None:
                entry.on_outcome(None)
        if int(fence[1]) == self._fence:
            self._fence = None
            self._catching_up = False
        return True

    def _knows(self, sender: str, peers: Mapping[str, Metadata | None]) -> bool:
        return sender in peers or sender == self.self_id

    def _refuse(self, entries: list[_Entry], why: str, code: str = ErrorCode.DROPPED) -> None:
        for entry in entries:
            error = Error(code, why, entry.msg_id)
            if entry.on_outcome is not None:
                entry.on_outcome(error)
            else:
                self._events.append(error)


def _sealing(secret: str, url: str) -> Sealing:
    from signaling.client.sealing import Sealing  # noqa: PLC0415 - needs the extra "sealed"

    return Sealing(secret, unquote_to_bytes(urlsplit(url).path.rpartition("/")[2]))


def _text(kind: str, to: str, payload: Any, number: int) -> str:
    return _encode({"type": kind, "to": to, "payload": payload, "msgId": f"~{number}"})


def _encode(message: Any) -> str:
    try:
        return json.dumps(message, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ValueError("the payload is nested too deeply") from None


def _metadata_of(url: str) -> Metadata | None:
    """Return the metadata in a URL; None if there is none that is an object."""
    try:
        metadata = json.loads(parse_qs(urlsplit(url).query).get("metadata", [""])[0])
    except (ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _with_metadata(url: str, metadata: Metadata) -> str:
    """Return a URL with other metadata in its query."""
    parts = urlsplit(url)
    kept = [part for part in parts.query.split("&") if part and part.partition("=")[0] != "metadata"]
    return urlunsplit(parts._replace(query="&".join([*kept, "metadata=" + quote(_encode(metadata), safe="")])))


def _address(url: str, metadata: Metadata | None, *, has_token: bool) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.port == 0:
        # The URL is not quoted: it may have a token or a password.
        raise ValueError("this is not the URL of a topic (for example wss://example.com/ws/my-room)")
    query = parts.query
    keys = parse_qs(query, keep_blank_values=True)
    if has_token and ("token" in keys or parts.username is not None):
        raise ValueError("a token is given twice, in the URL and as token=")
    if metadata is not None:
        if "metadata" in keys:
            raise ValueError("metadata is given twice, in the URL and beside it")
        query += ("&" if query else "") + "metadata=" + quote(_encode(metadata), safe="")
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, quote(parts.path, safe="/%:@!$&'()*+,;=~"), query, ""))
