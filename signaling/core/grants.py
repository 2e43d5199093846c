"""Who may do what, without I/O: credentials as they came, and what a grant allows (docs/access.md)."""

from __future__ import annotations

import hashlib
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
        subject: whose grant it is; a session is resumed with a grant of the same subject and metadata only. Without one
            a session belongs to the token, or to the name beside the password, that it was opened with.
        token_id: tells the token from all others, where there is no subject; None means that its text does.
        issuer: who gave the subject or the token its name; the same name by another issuer is another one.

    Raises:
        ValueError: where the metadata is no JSON object, or one of the names is no Unicode text.
    """

    topics: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    may_send: bool = True
    metadata: Mapping[str, Any] | None = None
    expires: float | None = None
    subject: str | None = None
    token_id: str | None = None
    issuer: str | None = None

    def __post_init__(self) -> None:
        _ = self.metadata_text, [(name or "").encode() for name in (self.subject, self.token_id, self.issuer)]

    def covers(self, topic: str) -> bool:
        """Tell whether the topic may be joined."""
        return topic in self.topics or topic.startswith(self.prefixes)

    @property
    def metadata_text(self) -> bytes | None:
        """The JSON text of the metadata."""
        return None if self.metadata is None else _json_text(self.metadata)


def session_owner(credential: Credential, grant: Grant) -> bytes:
    """Return what tells the owner of a session from all others: a digest, for it is kept and travels between nodes.

    Args:
        credential: that was presented.
        grant: that it was given.
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
    )


def seconds_of(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a claim that is a moment, in seconds since 1970; None where it is absent or null.

    Raises:
        ValueError: naming the claim, where it is anything else.
    """
    value = claims.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        # An integer that no float is as large as.
        pass
    raise ValueError(f"{name} has to be a number of seconds")


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is not None and not (isinstance(value, str) and _is_unicode(value)):
        raise ValueError(f"{name} has to be a string, in Unicode")
    return value


def _is_unicode(text: str) -> bool:
    # JSON can write half of a surrogate pair.
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
