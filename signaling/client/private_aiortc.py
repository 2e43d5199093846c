"""Everything that uses private names of aiortc."""

from __future__ import annotations

from typing import Any


def leave_out(transceiver: Any) -> None:
    """Let a connection answer an offer that has no section for a transceiver.

    aiortc compares the direction of every transceiver with that in the offer, and raises ``ValueError`` if there is
    none. So this sets the one that means no media; a later offer or answer replaces it.
    """
    transceiver._offerDirection = "inactive"


def was_shut_down(transport: Any) -> bool:
    """Return whether either side closed a DTLS transport on purpose. aiortc also closes one whose path is broken."""
    return transport._ssl is not None and bool(transport._ssl.get_shutdown())


def end_consent(transport: Any) -> None:
    """Begin no consent checks (RFC 7675) for a DTLS transport that is about to be closed.

    If aioice is closed just when it has found a path, it begins them afterwards, in a task that never ends.
    """
    transport.transport._connection.query_consent = _nothing


async def _nothing() -> None:
    """Stand in for what is not to be done."""
