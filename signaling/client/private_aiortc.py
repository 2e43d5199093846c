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
    return bool(transport._ssl.get_shutdown())
