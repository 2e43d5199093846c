"""This peer's own metadata: what it joins with, and its updates on an open connection; no I/O.

One update at a time is under way: the server answers it with an ``error`` that has its ``msgId``, or with this peer's
own ``peer-updated``, which has none but has the update's metadata. The latest of the others waits. If a connection is
lost before the answer, nobody knows whether the server has the update: the next connection asks for the new metadata,
and repeats the update if it resumes the session.

The answer to an update for which nobody waits any more may come while a later one is under way. The server answers each
update once, and those that it takes in their order; so a ``peer-updated`` is the answer to the oldest unanswered update
that has the same metadata.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from signaling.client.messages import Error, Metadata, PeerUpdated, decode

FEATURE = "metadata-updates"
"""The feature that a server names in its ``welcome`` if it takes updates."""
INSTANCE = "instance"
"""The key of the metadata by which a mesh recognises a peer that comes back with another id; updates keep it."""
UPDATE_SECONDS = 10.0
"""How long an update waits for its answer."""
MOST_UNANSWERED = 16
"""How many updates without an answer are kept of a connection, the latest ones."""

UNSUPPORTED = "unsupported"
UNCONFIRMED = "unconfirmed"
REPLACED = "replaced"
"""The codes of ``NotUpdated`` that come from the client itself, besides ``dropped`` after leaving."""

OnOutcome = Callable[[Error | None], None]


def unanswered() -> Error:
    """Return the error for an update that the server has not answered in time."""
    return Error(UNCONFIRMED, f"the server has not answered within {UPDATE_SECONDS:.0f} s")


def differ(one: Metadata | None, other: Metadata | None) -> bool:
    """Return whether metadata differs, or is nested too deeply to be compared."""
    try:
        return one != other
    except RecursionError:
        return True


@dataclass(eq=False)
class _Update:
    metadata: Metadata
    received: Metadata | None
    """The metadata as this client reads it in the server's answer."""
    text: str
    msg_id: str
    on_outcome: OnOutcome | None
    is_written: bool = False


class OwnMetadata:
    """The metadata of this peer, over one connection after another.

    Args:
        metadata: with which it joins; None if the URL has it, or there is none.

    Attributes:
        shown: as the server last said it, or as it was given.
        wanted: for the next join; the same object as ``given`` until there is an update.
        given: the first one.
    """

    def __init__(self, metadata: Metadata | None) -> None:
        self.given = self.shown = self.wanted = metadata
        self._accepted = self._joined_with = self._requested = metadata
        self._under_way: _Update | None = None
        self._next: _Update | None = None
        # Those that were written to this connection, oldest first. If one is under way, it is the last.
        self._unanswered: deque[_Update] = deque(maxlen=MOST_UNANSWERED)
        self._updates = 0

    def make(self, metadata: Mapping[str, Any], on_outcome: OnOutcome | None) -> _Update:
        """Make an update, without asking for it yet.

        Raises:
            TypeError: if the metadata is no mapping.
            ValueError: if it is not JSON.
        """
        if not isinstance(metadata, Mapping):
            raise TypeError(f"metadata is a mapping, not {type(metadata).__name__}")
        kept = {INSTANCE: self.wanted[INSTANCE]} if self.wanted and INSTANCE in self.wanted else {}
        msg_id = f"metadata {self._updates + 1}"
        message = {"type": "metadata", "metadata": {**kept, **metadata}, "msgId": msg_id}
        try:
            text = json.dumps(message, separators=(",", ":"), allow_nan=False)
            # The application may change its own object later.
            copied: Metadata = json.loads(text)["metadata"]
            received = _as_received(copied)
        except RecursionError:
            raise ValueError("the metadata is nested too deeply") from None
        self._updates += 1
        return _Update(copied, received, text, msg_id, on_outcome)

    def ask(self, update: _Update, *, connected: bool) -> None:
        """Ask for an update: now, after the one that is under way, or by the next join."""
        self.wanted = update.metadata
        if not connected:
            _end(update, Error(UNCONFIRMED, "there is no connection: the next one asks for this metadata"))
        elif self._under_way is None:
            self._under_way = update
        else:
            replaced, self._next = self._next, update
            _end(replaced, Error(REPLACED, "a later update took its place"))

    def write(self) -> list[str]:
        """Return the update to write to the connection, if there is one."""
        if self._under_way is None or self._under_way.is_written:
            return []
        self._under_way.is_written = True
        self._unanswered.append(self._under_way)
        return [self._under_way.text]

    def requested(self) -> Metadata | None:
        """Note that a connection is about to join with what is wanted, and return that."""
        self._requested = self.wanted
        return self.wanted

    def joined(self) -> None:
        """Note that the connection joined as a new peer; one that resumes a session does not change its metadata."""
        self._accepted = self._joined_with = self.shown = self._requested

    def repeat(self) -> None:
        """Ask for the update again if a loss has left it uncertain."""
        if self.wanted is not self._accepted and self.wanted is not None:
            self._under_way = self.make(self.wanted, None)
            self._under_way.metadata = self.wanted

    def updated(self, metadata: Metadata | None) -> None:
        """Note what the server says about this peer."""
        self.shown = metadata
        for index, update in enumerate(self._unanswered):
            if not differ(update.received, metadata):
                # Those before it will not be taken any more.
                self._unanswered = deque(islice(self._unanswered, index + 1, None), MOST_UNANSWERED)
                self._accepted = update.metadata
                self._end(update, None)
                return
        if not differ(metadata, self.wanted):
            self._accepted = self.wanted

    def answers(self, msg_id: str | None) -> bool:
        """Return whether an error is the answer to an update."""
        return any(update.msg_id == msg_id for update in self._unanswered)

    def refused(self, error: Error) -> bool:
        """End the update that an error answers.

        Returns:
            Whether the error was its outcome; otherwise nobody waits for that, and it is an event.
        """
        [update] = [update for update in self._unanswered if update.msg_id == error.msg_id]
        self._unanswered.remove(update)
        if self.wanted is update.metadata:
            # The server may still take an earlier one.
            self.wanted = self._unanswered[-1].metadata if self._unanswered else self._accepted
        return self._end(update, error)

    def forget(self, on_outcome: OnOutcome) -> None:
        """Wait no more for the outcome of an update; no-op if it had one."""
        if self._under_way is not None and self._under_way.on_outcome is on_outcome:
            self._under_way.on_outcome = None
            self._advance()
        elif self._next is not None and self._next.on_outcome is on_outcome:
            self._next = None
            if self._under_way is not None and self._under_way.is_written and self._under_way.on_outcome is None:
                # It was repeated, and nobody else ends it if the server does not answer.
                self._advance()

    def longest_unanswered(self) -> tuple[int, str]:
        """Return the length and the msgId of the longest update that the server has not answered; 0 without one."""
        longest = max(self._unanswered, key=lambda update: len(update.text), default=None)
        return (len(longest.text), longest.msg_id) if longest is not None else (0, "")

    def lost(self) -> None:
        """End the updates, because the connection was lost."""
        self._end_all(Error(UNCONFIRMED, "the connection was lost: the next one asks for this metadata"))
        self._unanswered.clear()

    def leave(self) -> None:
        """End the updates, because this peer left."""
        self._end_all(Error("dropped", "this peer left"))

    def revert(self) -> bool:
        """Go back to the metadata of the last join, because the server refuses the latest.

        Returns:
            False if it is the same.
        """
        changes = self.wanted is not self._joined_with
        self.wanted = self._joined_with
        return changes

    def _advance(self) -> _Update | None:
        ended, self._under_way, self._next = self._under_way, self._next, None
        return ended

    def _end(self, update: _Update, error: Error | None) -> bool:
        if update is self._under_way:
            self._advance()
        return _end(update, error)

    def _end_all(self, error: Error) -> None:
        for update in (self._advance(), self._advance()):
            _end(update, error)


def _as_received(metadata: Metadata) -> Metadata | None:
    # The decoder may read a value in another way than json does, and leave out what is nested deeply.
    message = decode(json.dumps({"type": "peer-updated", "peerId": "", "metadata": metadata}, separators=(",", ":")))
    return message.metadata if isinstance(message, PeerUpdated) else None


def _end(update: _Update | None, error: Error | None) -> bool:
    """Report an outcome; returns whether somebody waits for it."""
    if update is None or update.on_outcome is None:
        return False
    update.on_outcome(error)
    return True
