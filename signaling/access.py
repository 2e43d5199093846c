"""Who may do what, without I/O: credentials as they came, and what a grant allows (docs/access.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLAIM = "signaling"
_KEYS = {"topics", "prefixes", "send", "metadata"}


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token, as it came; nobody has checked it."""

    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Password:
    """A name and a password, as they came."""

    username: bytes
    password: bytes = field(repr=False)


Credential = Bearer | Password


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What somebody may do.

    Args:
        topics: names of topics, each as it is.
        prefixes: beginnings of names; the empty one covers every topic.
        may_send: False for who only receives.
        metadata: shown to the others in place of what the client says; None leaves that to the client.
        expires: when the connection ends, in seconds since 1970; None means never.
        subject: whose grant it is; a session is resumed with a grant of the same subject and metadata only.

    Raises:
        ValueError: where the metadata is no JSON object.
    """

    topics: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    may_send: bool = True
    metadata: Mapping[str, Any] | None = None
    expires: float | None = None
    subject: str | None = None

    def __post_init__(self) -> None:
        _ = self.metadata_text

    def covers(self, topic: str) -> bool:
        """Tell whether the topic may be joined."""
        return topic in self.topics or topic.startswith(self.prefixes)

    @property
    def metadata_text(self) -> bytes | None:
        """The JSON text of the metadata."""
        if self.metadata is None:
            return None
        return json.dumps(self.metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    @property
    def owner(self) -> tuple[str | None, bytes | None]:
        """Whose session it is."""
        return self.subject, self.metadata_text


def grant_from_claims(claims: Mapping[str, Any], leeway_seconds: float = 0.0) -> Grant:
    """Read what a token's claims allow; whether they are true was checked before.

    Args:
        claims: of a JSON Web Token. Without the claim ``signaling`` they cover no topic.
        leeway_seconds: how long after ``exp`` the grant ends.

    Raises:
        ValueError: naming the claim that is not as it should be, without its value.
    """
    own = claims.get(CLAIM, {})
    if not isinstance(own, Mapping):
        raise ValueError(f"its claim {CLAIM} has to be an object")
    if not own.keys() <= _KEYS:
        # A misspelt "send" would let everybody send.
        raise ValueError(f"its claim {CLAIM} has a key beside {', '.join(sorted(_KEYS))}")
    send, metadata, subject = own.get("send", True), own.get("metadata"), claims.get("sub")
    if not isinstance(send, bool):
        raise ValueError(f"{CLAIM}.send has to be true or false")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ValueError(f"{CLAIM}.metadata has to be an object")
    if subject is not None and not isinstance(subject, str):
        raise ValueError("sub has to be a string")
    expires = claims.get("exp")
    return Grant(
        topics=frozenset(_strings(own, "topics")),
        prefixes=tuple(_strings(own, "prefixes")),
        may_send=send,
        metadata=metadata,
        expires=None if expires is None else _seconds(expires) + leeway_seconds,
        subject=subject,
    )


def _strings(own: Mapping[str, Any], key: str) -> list[str]:
    value = own.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{CLAIM}.{key} has to be an array of strings")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("exp has to be a number of seconds")
    return float(value)
