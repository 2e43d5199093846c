"""The JSON wire: decode one client message, encode each server message (docs/protocol.md).

``payload``, ``metadata`` and ``msgId`` are carried as the bytes that their sender wrote and are never built as Python
objects, so what Python or msgspec would not keep (``1e400``, key order, escapes) survives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NoReturn

import msgspec

from signaling.errors import ErrorCode, Rejected

RELAYED_TYPES = frozenset({"offer", "answer", "ice-candidate"})

_ABSENT = msgspec.Raw(b"")


class ClientMessage(msgspec.Struct, frozen=True, gc=False):
    """A message to relay.

    Args:
        type: one of ``RELAYED_TYPES``.
        to: the target's id, not empty.
        payload: JSON text as the sender wrote it; None where the key is absent.
        msg_id: the JSON text of a string that is not empty; None where absent.
    """

    type: str
    to: str
    payload: bytes | None
    msg_id: bytes | None


class _Fields(msgspec.Struct):
    type: str | None = None
    to: str | None = None
    payload: msgspec.Raw = _ABSENT
    msgId: msgspec.Raw = _ABSENT


_decode_fields = msgspec.json.Decoder(_Fields).decode


def decode(data: bytes) -> ClientMessage:
    """Decode one message of a client.

    Args:
        data: valid UTF-8; the WebSocket layer has checked that.

    Raises:
        Rejected: with the code of the first check that fails, in the order of the protocol.
    """
    try:
        fields = _decode_fields(data)
    except (msgspec.MsgspecError, RecursionError):
        kind, target, payload, msg_id = _read_carefully(data)
    else:
        kind, target = fields.type, fields.to
        payload, msg_id = bytes(fields.payload) or None, _msg_id(bytes(fields.msgId))
    if kind not in RELAYED_TYPES:
        raise Rejected(ErrorCode.INVALID_TYPE, "type must be offer, answer or ice-candidate", msg_id)
    if not target:
        raise Rejected(ErrorCode.MISSING_TARGET, "to must name the peer that the message is for", msg_id)
    return ClientMessage(kind, target, payload, msg_id)


def msg_id_of(data: bytes) -> bytes | None:
    """Return the JSON text of a message's ``msgId``, whatever is wrong with the rest; None where there is none."""
    try:
        return decode(data).msg_id
    except Rejected as rejected:
        return rejected.msg_id


def _msg_id(text: bytes) -> bytes | None:
    """Return the JSON text of a ``msgId``, or None where it counts as absent."""
    if text in (b"", b"null", b'""'):
        return None
    if not text.startswith(b'"'):
        raise Rejected(ErrorCode.INVALID_MESSAGE, "msgId must be a string")
    return text


def _read_carefully(data: bytes) -> tuple[str | None, str | None, bytes | None, bytes | None]:
    """Read what msgspec refuses: a wrong type, to name it, or valid JSON with a lone surrogate escape, to relay it."""
    texts = _object_texts(data.decode())
    msg_id = _msg_id(texts.get("msgId", "").encode())
    kind, target = (_string(key, texts.get(key, "null"), msg_id) for key in ("type", "to"))
    payload = texts.get("payload")
    return kind, target, None if payload is None else payload.encode(), msg_id


def _string(key: str, text: str, msg_id: bytes | None) -> str | None:
    if text == "null":
        return None
    if not text.startswith('"'):
        raise Rejected(ErrorCode.INVALID_MESSAGE, f"{key} must be a string", msg_id)
    return str(json.loads(text))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


# Numbers stay text: int() refuses more than 4,300 digits, and a value is only walked over.
_value_at = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant).raw_decode
_SPACE = " \t\n\r"
# Python takes a microsecond for each; a message that needs the careful reader must not take long.
_MOST_KEYS = 1000


def _object_texts(text: str) -> dict[str, str]:
    """Split a JSON object into its keys and the texts of their values; of a repeated key the last counts.

    Raises:
        Rejected: ``invalid_message``, where it is no object.
    """
    try:
        return _walk_object(text)
    except RecursionError:
        raise Rejected(ErrorCode.INVALID_MESSAGE, "the message is nested too deeply") from None
    except (ValueError, IndexError):
        raise Rejected(ErrorCode.INVALID_MESSAGE, "the message must be one JSON object") from None


def _walk_object(text: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    at = _expect("{", text, 0)
    if text[at] == "}":
        at += 1
    else:
        while True:
            key, end = _value_at(text, _expect_quote(text, at))
            start = _expect(":", text, _skip_space(text, end))
            _, end = _value_at(text, start)
            texts[key] = text[start:end]
            if len(texts) > _MOST_KEYS:
                raise ValueError("too many keys")
            at = _skip_space(text, end)
            if text[at] == "}":
                at += 1
                break
            at = _expect(",", text, at)
    if _skip_space(text, at) != len(text):
        raise ValueError("text after the object")
    return texts


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _expect(mark: str, text: str, at: int) -> int:
    """Step over ``mark`` and the space on both of its sides."""
    at = _skip_space(text, at)
    if text[at] != mark:
        raise ValueError(f"expected {mark}")
    return _skip_space(text, at + 1)


def _expect_quote(text: str, at: int) -> int:
    if text[at] != '"':
        raise ValueError("expected a key")
    return at


def is_object(data: bytes) -> bool:
    """Tell whether ``data`` is the text of one JSON object, in UTF-8."""
    try:
        _object_texts(data.decode())
    except (Rejected, UnicodeDecodeError):
        return False
    return True


# Ids and codes are ASCII without quotes; they need no escaping.


def welcome(
    peer_id: str, ice_servers: bytes | None = None, resume: tuple[str, float] | None = None, *, resumed: bool = False
) -> bytes:
    """Encode the first message on every connection.

    Args:
        ice_servers: the JSON text of an array of ``RTCIceServer`` dictionaries.
        resume: a token, and the seconds that it takes for the peer to be gone.
        resumed: whether the peer was there before.
    """
    pieces = [b'{"type":"welcome","selfId":"%b"' % peer_id.encode()]
    if ice_servers is not None:
        pieces.append(b',"iceServers":' + ice_servers)
    if resume is not None:
        token, window = resume
        pieces.append(b',"resume":{"token":"%b","window":%b}' % (token.encode(), f"{window:g}".encode()))
    if resumed:
        pieces.append(b',"resumed":true')
    return b"".join([*pieces, b"}"])


def ice_servers(text: bytes) -> bytes:
    """Encode the ICE servers that take the place of those before.

    Args:
        text: the JSON text of an array of ``RTCIceServer`` dictionaries.
    """
    return b'{"type":"ice-servers","iceServers":%b}' % text


def peer_list(peers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """Encode who is there: ids with their metadata, in joining order."""
    return b'{"type":"peer-list","peers":[%b]}' % b",".join(_listed(*peer) for peer in peers)


def _listed(peer_id: str, metadata: bytes | None) -> bytes:
    return b'{"id":"%b"%b}' % (peer_id.encode(), _metadata(metadata))


def listed_bytes(peer_id: str, metadata: bytes | None) -> int:
    """Return how much a peer adds to a ``peer-list``."""
    return len(_listed(peer_id, metadata)) + len(",")


def peer_joined(peer_id: str, metadata: bytes | None) -> bytes:
    """Encode that a peer joined."""
    return b'{"type":"peer-joined","peerId":"%b"%b}' % (peer_id.encode(), _metadata(metadata))


def peer_left(peer_id: str) -> bytes:
    """Encode that a peer left."""
    return b'{"type":"peer-left","peerId":"%b"}' % peer_id.encode()


_RELAYED_HEADS = {kind: b'{"type":"%b","from":"' % kind.encode() for kind in RELAYED_TYPES}


def relayed(message: ClientMessage, sender_id: str) -> bytes:
    """Encode ``message`` for its target; its payload is copied once."""
    pieces = [_RELAYED_HEADS[message.type], sender_id.encode(), b'"']
    if message.payload is not None:
        pieces += (b',"payload":', message.payload)
    if message.msg_id is not None:
        pieces += (b',"msgId":', message.msg_id)
    pieces.append(b"}")
    return b"".join(pieces)


def error(code: ErrorCode, text: str, msg_id: bytes | None) -> bytes:
    """Encode the answer to a message that was not relayed.

    Args:
        text: ours, for a person; ASCII without quotes.
    """
    return b'{"type":"error","code":"%b","message":"%b"%b}' % (code.encode(), text.encode(), _msg_id_pair(msg_id))


def _metadata(text: bytes | None) -> bytes:
    return b"" if text is None else b',"metadata":' + text


def _msg_id_pair(text: bytes | None) -> bytes:
    return b"" if text is None else b',"msgId":' + text
