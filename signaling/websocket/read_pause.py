"""The reasons for which a connection does not read."""

from __future__ import annotations

from enum import IntFlag


class ReadPause(IntFlag):
    """Why a connection does not read; it reads while there is no reason."""

    # The lowest: all that is greater keeps a connection from reading in its own turn, too.
    TURN = 1
    """More was read than one turn handles; the rest waits for the scheduler."""
    HANDSHAKE = 2
    """The request is complete, and its answer has to wait, for a login for example."""
    JOIN = 4
    """The connection is open, and the application is not ready for messages."""
    QUEUE_FULL = 8
    """Answers fill the outbound queue."""
    MESSAGE = 16
    """A message takes the application some time, and the next one waits for it."""
