"""What a client asks for when it opens a connection: a topic, its metadata, and perhaps the session to resume."""

from __future__ import annotations

from dataclasses import dataclass

from signaling.core.grants import Credential, Grant
from signaling.core.peer_ids import ID_CHARACTERS


@dataclass(frozen=True, slots=True)
class ResumeClaim:
    """A request to resume a session (the query's ``resume`` and ``seen``).

    Args:
        token: from the session's latest ``welcome``, as far as the client says.
        seen: how many messages the client has received in that session.
    """

    token: bytes
    seen: int

    @property
    def peer_id(self) -> str:
        """The id that the token begins with; the token comes from a client, and may be anything."""
        return self.token[:ID_CHARACTERS].decode("ascii", "replace")

    @property
    def secret(self) -> bytes:
        """What follows the id."""
        return self.token[ID_CHARACTERS:]


# Not frozen: that would take five times as long to make.
@dataclass(slots=True)
class JoinRequest:
    """A request to join a topic.

    Args:
        metadata: the JSON text of an object, or None.
        claim: None if the client is a new peer.
        credential: what was presented, until it is checked.
        grant: what the client may do; None if everybody may do everything.
        owner: whose session it is, or would be; None if everybody may do everything.
        subprotocol: the one to answer; empty for none.
    """

    topic: str
    metadata: bytes | None
    claim: ResumeClaim | None = None
    credential: Credential | None = None
    grant: Grant | None = None
    owner: bytes | None = None
    subprotocol: bytes = b""

    @property
    def subject(self) -> str | None:
        """The subject of the grant; None if it has none, or if there is no grant."""
        return self.grant.subject if self.grant is not None else None
