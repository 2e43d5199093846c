"""This peer's own metadata: what it joins with, and its updates on an open connection; no I/O.

One update at a time is under way: the server answers it with an ``error`` that has its ``msgId``, or with this peer's
own ``peer-updated``, which has none. The latest of the others waits. If a connection is lost before the answer, nobody
knows whether the server has the update: the next connection asks for the new metadata, and repeats the update if it
resumes the session.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from signaling.client.messages import Error, Metadata

FEATURE = "metadata-updates"
"""The feature that a server names in its ``welcome`` if it takes updates."""
INSTANCE = "instance"
"""The key of the metadata by which a mesh recognises a peer that comes back with another id; updates keep it."""
UPDATE_SECONDS = 10.0
"""How long an update waits for its answer."""

UNSUPPORTED = "unsupported"
UNCONFIRMED = "unconfirmed"
REPLACED = "replaced"
"""The codes of ``NotUpdated`` that come from the client itself, besides ``dropped`` after leaving."""

OnOutcome = Callable[[Error | None], None]


def unanswered() -> Error:
    """Return the error for an update that the server has not answered in time."""
    return Error(UNCONFIRMED, f"the server has not answered within {UPDATE_SECONDS:.0f} s")


@dataclass(eq=False)
class _Update:
    metadata: Metadata
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
        except RecursionError:
            raise ValueError("the metadata is nested too deeply") from None
        self._updates += 1
        return _Update(copied, text, msg_id, on_outcome)

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
        update = self._advance()
        if update is not None:
            self._accepted = update.metadata
            _end(update, None)
        elif metadata == self.wanted:
            self._accepted = self.wanted

    def answers(self, msg_id: str | None) -> bool:
        """Return whether an error is the answer to the update that is under way."""
        return self._under_way is not None and self._under_way.msg_id == msg_id

    def refused(self, error: Error) -> bool:
        """End the update that is under way.

        Returns:
            Whether the error was its outcome; otherwise nobody waits for that, and it is an event.
        """
        update = self._advance()
        if update is not None and self.wanted is update.metadata:
            self.wanted = self._accepted
        return _end(update, error)

    def forget(self, on_outcome: OnOutcome) -> None:
        """Wait no more for the outcome of an update; no-op if it had one."""
        if self._under_way is not None and self._under_way.on_outcome is on_outcome:
            self._advance()
        elif self._next is not None and self._next.on_outcome is on_outcome:
            self._next = None

    @property
    def written_length(self) -> int:
        """The length of the update that waits for its answer; 0 if there is none."""
        return len(self._under_way.text) if self._under_way is not None and self._under_way.is_written else 0

    def lost(self) -> None:
        """End the updates, because the connection was lost."""
        self._end_all(Error(UNCONFIRMED, "the connection was lost: the next one asks for this metadata"))

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

    def _end_all(self, error: Error) -> None:
        for update in (self._advance(), self._advance()):
            _end(update, error)


def _end(update: _Update | None, error: Error | None) -> bool:
    """Report an outcome; returns whether somebody waits for it."""
    if update is None or update.on_outcome is None:
        return False
    update.on_outcome(error)
    return True
