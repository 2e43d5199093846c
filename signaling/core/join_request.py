"""What a client asks for when it opens a connection: a topic, its metadata, and perhaps the session to resume."""

from __future__ import annotations

from dataclasses import dataclass

from signaling.core.grants import Credential, Grant


@dataclass(frozen=True, slots=True)
class Claim:
    """A request to be the peer again that one was.

    Args:
        token: from that peer's latest ``welcome``, as far as the client says.
        seen: how many messages it has received.
    """

    token: bytes
    seen: int


@dataclass(frozen=True, slots=True)
class Join:
    """A request to join a topic.

    Args:
        metadata: the JSON text of an object, or None.
        claim: None where the client is a new peer.
        credential: what was presented, until it is checked.
        grant: what the client may do; None where everybody may do everything.
        owner: whose session it is, or would be; None where everybody may do everything.
        subprotocol: that is answered; empty for none.
    """

    topic: str
    metadata: bytes | None
    claim: Claim | None = None
    credential: Credential | None = None
    grant: Grant | None = None
    owner: bytes | None = None
    subprotocol: bytes = b""

    @property
    def expires(self) -> float | None:
        """When the token ends, in seconds since 1970; None means never."""
        return self.grant.expires if self.grant is not None else None
