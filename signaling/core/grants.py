"""Credentials as received, and grants: what an authenticated client may do (docs/tokens.md)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from signaling.limits import MAX_PER_SECOND

CLAIM = "signaling"
TOKEN_PATTERN = "[A-Za-z0-9._~+/-]+=*"
"""What a bearer token consists of (RFC 6750, section 2.1)."""
INSTANCE = "instance"
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEYS = {"topics", "prefixes", "send", "metadata", "maxPeers", "messageRate"}


@dataclass(frozen=True, slots=True)
class Bearer:
    """A bearer token, not yet checked."""

    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Password:
    """A user name and a password, not yet checked."""

    username: bytes
    password: bytes = field(repr=False)


Credential = Bearer | Password


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an authenticated client may do.

    Args:
        topics: the exact names of topics that it may join.
        prefixes: it may also join topics whose names start with one of these; the empty one covers every topic.
        may_send: False for a client that may only receive.
        metadata: replaces the client's own metadata, except for ``instance``; None keeps that.
        expires: when the connection is closed, in seconds since the Unix epoch; None means never.
        subject: the owner. A session can be resumed only with a grant of the same subject and metadata; without a
            subject, with the same token or user name.
        token_id: identifies the token if there is no subject; None means that its text does.
        issuer: the namespace of ``subject`` and ``token_id``.
        max_peers: it may join a topic only if that has fewer peers, at least 1; None means as many as the
            server allows.
        message_rate: the most messages a second of its connection, more than 0; the server's limit counts if it is
            lower. None means that one alone.

    Raises:
        ValueError: the metadata is not a JSON object, a text is not valid Unicode, or a number is out of its range.
    """

    topics: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    may_send: bool = True
    metadata: Mapping[str, Any] | None = None
    expires: float | None = None
    subject: str | None = None
    token_id: str | None = None
    issuer: str | None = None
    max_peers: int | None = None
    message_rate: float | None = None

    def __post_init__(self) -> None:
        if self.max_peers is not None and self.max_peers < 1:
            raise ValueError("max_peers has to be a whole number from 1 up")
        if self.message_rate is not None and not 0 < self.message_rate <= MAX_PER_SECOND:
            raise ValueError(f"message_rate has to be more than 0 and at most {MAX_PER_SECOND:.0f}")
        _ = self.metadata_text, [(name or "").encode() for name in (self.subject, self.token_id, self.issuer)]

    def covers(self, topic: str) -> bool:
        """Return whether the grant allows joining a topic."""
        return topic in self.topics or topic.startswith(self.prefixes)

    @property
    def metadata_text(self) -> bytes | None:
        """The metadata as JSON text."""
        return None if self.metadata is None else _json_text(self.metadata)

    def peer_metadata(self, requested: bytes | None) -> bytes | None:
        """Return the metadata of a peer, as JSON text; None if it has none.

        If this grant sets the metadata, ``instance`` of the requested metadata stays: by this random name, other peers
        recognise one that comes back with another id. It says nothing about who the peer is.

        Args:
            requested: the metadata that its client asked for, a JSON object that was checked.
        """
        if self.metadata is None or requested is None or INSTANCE in self.metadata:
            return requested if self.metadata is None else self.metadata_text
        instance = json.loads(requested).get(INSTANCE)
        if not isinstance(instance, str) or not _INSTANCE.fullmatch(instance):
            return self.metadata_text
        return _json_text({**self.metadata, INSTANCE: instance})


def session_owner(credential: Credential, grant: Grant) -> bytes:
    """Return a digest that identifies the owner of a session; it is stored and sent between nodes.

    Args:
        credential: the credential that the client presented.
        grant: the grant that it received.
    """
    if isinstance(credential, Password):
        identity = ("name", grant.subject) if grant.subject else ("user", credential.username.hex())
    elif grant.subject:
        identity = ("sub", grant.subject)
    elif grant.token_id:
        identity = ("jti", grant.token_id)
    else:
        identity = ("token", hashlib.sha256(credential.token).hexdigest())
    whole = [*identity, grant.issuer, (grant.metadata_text or b"").decode()]
    return hashlib.sha256(json.dumps(whole).encode()).digest()


def grant_from_claims(claims: Mapping[str, Any], leeway_seconds: float = 0.0) -> Grant:
    """Return the grant of a verified token.

    Args:
        claims: the claims of a JSON Web Token; without the claim ``signaling`` the grant covers no topic.
        leeway_seconds: how long after ``exp`` the grant expires.

    Raises:
        ValueError: a claim is invalid; the text names it, without its value.
    """
    own = claims.get(CLAIM, {})
    if not isinstance(own, Mapping):
        raise ValueError(f"its claim {CLAIM} has to be an object")
    if not own.keys() <= _KEYS:
        # Otherwise a misspelt "send" would allow sending.
        raise ValueError(f"its claim {CLAIM} has a key beside {', '.join(sorted(_KEYS))}")
    send, metadata = own.get("send", True), own.get("metadata")
    if not isinstance(send, bool):
        raise ValueError(f"{CLAIM}.send has to be true or false")
    if metadata is not None and not _is_json_object(metadata):
        raise ValueError(f"{CLAIM}.metadata has to be an object of JSON, in Unicode")
    expires = seconds_of(claims, "exp")
    return Grant(
        topics=frozenset(_strings(own, "topics")),
        prefixes=tuple(_strings(own, "prefixes")),
        may_send=send,
        metadata=metadata,
        expires=None if expires is None else expires + leeway_seconds,
        subject=_text(claims, "sub"),
        token_id=_text(claims, "jti"),
        issuer=_text(claims, "iss"),
        max_peers=_max_peers(own.get("maxPeers")),
        message_rate=_message_rate(own.get("messageRate")),
    )


def _max_peers(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{CLAIM}.maxPeers has to be a whole number from 1 up")


def _message_rate(value: Any) -> float | None:
    if value is None:
        return None
    # Compared before it is converted: an integer may be too large for a float.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_PER_SECOND:
        return float(value)
    raise ValueError(f"{CLAIM}.messageRate has to be a number more than 0, at most {MAX_PER_SECOND:.0f}")


def seconds_of(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a claim that is a time, in seconds since the Unix epoch; None if it is absent or null.

    Raises:
        ValueError: it is not a number; the text names the claim.
    """
    value = claims.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        # An integer too large for a float.
        pass
    raise ValueError(f"{name} has to be a number of seconds")


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is not None and not (isinstance(value, str) and _is_unicode(value)):
        raise ValueError(f"{name} has to be a string, in Unicode")
    return value


def _is_unicode(text: str) -> bool:
    # A JSON escape can be a lone surrogate.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and bool(_json_text(value))
    except (ValueError, RecursionError):
        return False


def _json_text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _strings(own: Mapping[str, Any], key: str) -> list[str]:
    value = own.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{CLAIM}.{key} has to be an array of strings")
    return value
