"""The token or password of a request, in its Authorization header, its query, or a subprotocol."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from signaling.core.grants import TOKEN_PATTERN, Bearer, Credential, Password
from signaling.errors import Refused
from signaling.web.join_parsing import unquote
from signaling.websocket.request_head import HeaderValues, listing

SUBPROTOCOL = b"signaling"
_BEARER = SUBPROTOCOL + b".bearer."
_OWN = listing(SUBPROTOCOL)
_QUERY_KEY = b"token"
_B64TOKEN = re.compile(TOKEN_PATTERN.encode())
# Values that a log must not repeat, and encoded names that could stand for theirs; a resume token opens a session.
# Both match only at the start of a parameter: elsewhere they would take quadratic time.
_SECRET_VALUES = re.compile(rb"(?<![^&?])((?:token|resume)=)[^&]*")
_ENCODED_NAME = re.compile(rb"(?<![^&?])[^&?=%]*%[^&]*")


def presented(values: HeaderValues, query: bytes, *, passwords: bool) -> Credential | None:
    """Return the credential of a request.

    Args:
        values: looks up headers.
        query: of the target, still encoded.
        passwords: whether names and passwords are accepted; otherwise they are ignored.

    Returns:
        None if the request has none.

    Raises:
        Refused: 400 if there is more than one, or if it is malformed.
    """
    found = [_from_authorization(values(b"authorization"), passwords), _from_query(query), _from_protocols(values)]
    given = [credential for credential in found if credential is not None]
    if len(given) > 1:
        raise Refused(400, "present one token in one way: Authorization, ?token= or a subprotocol")
    return given[0] if given else None


def _from_authorization(headers: Sequence[bytes], passwords: bool) -> Credential | None:
    if len(headers) > 1:
        raise Refused(400, "at most one Authorization header")
    scheme, _, rest = (headers[0] if headers else b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return bearer(rest.strip(b" "), "Authorization")
    return _password(rest.strip(b" ")) if passwords and scheme.lower() == b"basic" else None


def _password(text: bytes) -> Password:
    try:
        username, colon, password = base64.b64decode(text, validate=True).partition(b":")
    except binascii.Error:
        colon = b""
    if not colon:
        raise Refused(400, "Authorization: Basic takes name:password in base64")
    return Password(username, password)


def _from_query(query: bytes) -> Bearer | None:
    pairs = [pair.partition(b"=") for pair in query.split(b"&")]
    given = [value for name, _, value in pairs if name == _QUERY_KEY]
    if len(given) > 1:
        raise Refused(400, "token: given more than once")
    return bearer(unquote(given[0], "token"), "?token=") if given else None


def _from_protocols(values: HeaderValues) -> Bearer | None:
    offered = _offered(values)
    given = [name.removeprefix(_BEARER) for name in offered if name.startswith(_BEARER)]
    if len(given) > 1:
        raise Refused(400, f"at most one subprotocol {_BEARER.decode()}TOKEN")
    if given and SUBPROTOCOL not in offered:
        # A browser fails the connection if none of its subprotocols is answered, and the one with the token never is.
        raise Refused(400, f"offer the subprotocol {SUBPROTOCOL.decode()} beside the one with the token")
    return bearer(given[0], "the subprotocol") if given else None


def _offered(values: HeaderValues) -> list[bytes]:
    return [name.strip(b" \t") for value in values(b"sec-websocket-protocol") for name in value.split(b",")]


def bearer(token: bytes, where: str) -> Bearer:
    """Return a token as a credential.

    Args:
        where: it was given, for the reason.

    Raises:
        Refused: 400 if it has characters that no token has.
    """
    if not _B64TOKEN.fullmatch(token):
        raise Refused(400, f"{where}: no token, or one with characters that no token has")
    return Bearer(token)


def subprotocol(values: HeaderValues) -> bytes:
    """Return the subprotocol to answer, never the one with a token; empty if this server's is not offered."""
    offered = values(b"sec-websocket-protocol")
    return SUBPROTOCOL if offered and any(map(_OWN.search, offered)) else b""


def without_secrets(target: bytes) -> bytes:
    """Return the target of a request without its tokens, for a log."""
    path, mark, query = target.partition(b"?")
    return path + mark + _SECRET_VALUES.sub(rb"\1...", _ENCODED_NAME.sub(b"...", query))
