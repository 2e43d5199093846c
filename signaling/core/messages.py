"""The JSON wire: decode one client message, encode each server message (docs/protocol.md).

``payload``, ``metadata`` and ``msgId`` are relayed as the bytes that the sender wrote, never as Python objects, so that
numbers (``1e400``), key order and escapes stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Annotated, NamedTuple, Protocol, TypeVar, cast, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from signaling.core import server_messages
from signaling.core.grants import TOKEN_PATTERN
from signaling.core.server_messages import Feature, MetadataText, Payload, RelayedType
from signaling.errors import ErrorCode, Rejected

RELAYED_TYPES: frozenset[str] = frozenset(get_args(RelayedType))

_ABSENT = msgspec.Raw(b"")


# In what a client sends, null and an empty text count as absent.
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ClientMsgId = Meta(
    description="An error about the message repeats it. Null and an empty text count as absent.",
    extra_json_schema=_TEXT_OR_NULL,
    examples=["1"],
)


class ClientMessage(msgspec.Struct, gc=False):
    """A message to relay.

    Args:
        msg_id_text: the JSON text of a non-empty string; empty if absent.
    """

    type: RelayedType
    to: Annotated[
        str,
        Meta(
            min_length=1,
            description="The id of the peer of this topic that the message is for, perhaps the client's own.",
            examples=["01M84W4JC063ZB8W6276707TN2"],
        ),
    ]
    payload: Payload = _ABSENT
    msg_id_text: Annotated[msgspec.Raw, _ClientMsgId] = msgspec.field(default=_ABSENT, name="msgId")

    @property
    def msg_id(self) -> bytes | None:
        """The JSON text of the ``msgId``; None if absent."""
        return bytes(self.msg_id_text) or None


class PresentedToken(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="token"):
    """A new token in place of the one that the client joined with; taken if the server controls access.

    Args:
        token: as received; empty if it is absent or no string.
        msg_id: the JSON text of a non-empty string, or None.
    """

    token: Annotated[
        str,
        Meta(
            pattern=f"^{TOKEN_PATTERN}$",
            description="Of the same owner, for this topic; by default at most 16,384 characters.",
            examples=["eyJhbGciOi..."],
        ),
    ]
    msg_id: Annotated[bytes | None, _ClientMsgId] = msgspec.field(name="msgId", default=None)

    def __repr__(self) -> str:
        # The token gives access: it must not be logged.
        return f"PresentedToken(msg_id={self.msg_id!r})"


class MetadataUpdate(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="metadata"):
    """New metadata in place of the peer's own; taken if the server has updates of metadata on.

    Args:
        metadata: the JSON text of an object, checked as at joining.
        msg_id: the JSON text of a non-empty string, or None.
    """

    metadata: Annotated[bytes, MetadataText]
    msg_id: Annotated[bytes | None, _ClientMsgId] = msgspec.field(name="msgId", default=None)

    def __repr__(self) -> str:
        # Metadata must not be logged.
        return f"MetadataUpdate(msg_id={self.msg_id!r})"


MAX_DEPTH = 64
"""How deeply arrays and objects may be nested, in a message or in metadata."""
MAX_DIGITS = 100
"""How many digits a number in metadata may have; a Python client cannot convert more than 4,300."""


class ClientFields(msgspec.Struct):
    """The keys of a client's messages; what is annotated holds for all types."""

    type: Annotated[msgspec.Raw, Meta(extra_json_schema=_TEXT_OR_NULL)] = _ABSENT
    to: Annotated[
        msgspec.Raw,
        Meta(description="Ignored, but no value of another type.", extra_json_schema=_TEXT_OR_NULL),
    ] = _ABSENT
    payload: msgspec.Raw = _ABSENT
    msgId: Annotated[msgspec.Raw, _ClientMsgId] = _ABSENT
    token: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT


class _MsgId(msgspec.Struct):
    msgId: msgspec.Raw = _ABSENT


class _Object(msgspec.Struct):
    """Any object: unknown keys are ignored, but their values must be JSON."""


_decode_message = msgspec.json.Decoder(ClientMessage).decode
_decode_raw_fields = msgspec.json.Decoder(ClientFields).decode
_decode_msg_id = msgspec.json.Decoder(_MsgId).decode
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(_Object).decode


def decode(data: bytes) -> ClientMessage:
    """Decode one message of a client.

    Args:
        data: valid UTF-8, as checked by the WebSocket layer.

    Raises:
        Rejected: a check failed; the code is that of the first, in the order of docs/protocol.md.
        NotRelayed: the same, if the message is of another type than those that are relayed.
    """
    try:
        message = _decode_message(data)
    except (msgspec.MsgspecError, RecursionError):
        return _decode_raw(data)
    if message.msg_id_text:
        message.msg_id_text = _msg_id(message.msg_id_text)
    if (b"[" in data or b"{" in data[_SHALLOW_BYTES:]) and _is_too_deep(data):
        raise Rejected(ErrorCode.INVALID_MESSAGE, _TOO_DEEP, message.msg_id)
    return message


# Objects need at least four bytes for each level ({"":), so a message without arrays is too deep only if one begins
# behind these bytes. Most messages need no closer look.
_SHALLOW_BYTES = 4 * MAX_DEPTH
_NO_TARGET = "to must name the peer that the message is for"


def msg_id_of(data: bytes) -> bytes | None:
    """Return the JSON text of a message's ``msgId``; None if there is none, or if the message is not a JSON object.

    For messages that are rejected in any case; nothing else is checked.
    """
    try:
        return bytes(_msg_id(_restore_escapes(_decode_object_of(data, _decode_msg_id).msgId))) or None
    except Rejected:
        return None


def _msg_id(text: msgspec.Raw) -> msgspec.Raw:
    """Return the JSON text of a ``msgId``; an empty one if it counts as absent."""
    written = bytes(text)
    if written in (b"", b"null", b'""'):
        return _ABSENT
    if not written.startswith(b'"'):
        raise Rejected(ErrorCode.INVALID_MESSAGE, "msgId must be a string")
    return text


class ParsedMessage(NamedTuple):
    """A message of any type, as far as all types are alike.

    Args:
        data: the message.
        fields: their values may contain replaced escapes.
        kind: its ``type``; empty if absent.
        target: its ``to``; empty if absent.
        msg_id_text: as in ``ClientMessage``.
        is_too_deep: whether it is nested deeper than ``MAX_DEPTH``.
    """

    data: bytes
    fields: ClientFields
    kind: str
    target: str
    msg_id_text: msgspec.Raw
    is_too_deep: bool

    @property
    def msg_id(self) -> bytes | None:
        """The JSON text of the ``msgId``; None if absent."""
        return bytes(self.msg_id_text) or None

    def presented_token(self) -> PresentedToken | None:
        """Return the token of a message of the type ``token``; None if it is of another type, or nested too deeply."""
        if self.kind != _TOKEN_TYPE or self.is_too_deep:
            return None
        text = bytes(_restore_escapes(self.fields.token))
        return PresentedToken(json.loads(text) if text.startswith(b'"') else "", self.msg_id)

    def metadata_update(self, max_bytes: int) -> MetadataUpdate | None:
        """Return the update of a message of the type ``metadata``; None if it is of another type, or nested too deeply.

        Args:
            max_bytes: of the metadata.

        Raises:
            Rejected: ``invalid_message`` or ``invalid_metadata``.
        """
        if self.kind != _METADATA_TYPE:
            return None
        text = bytes(_restore_escapes(self.fields.metadata))
        if not text.startswith(b"{"):
            raise Rejected(ErrorCode.INVALID_MESSAGE, "metadata must be an object", self.msg_id)
        try:
            check_metadata(text, max_bytes)
        except ValueError as error:
            raise Rejected(ErrorCode.INVALID_METADATA, f"metadata: {error}", self.msg_id) from None
        # At joining, metadata may be nested as deeply as a message; here a message is around it.
        if self.is_too_deep and _is_too_deep(self.data, MAX_DEPTH + 1):
            return None
        return MetadataUpdate(text, self.msg_id)


_TOKEN_TYPE = PresentedToken.__struct_config__.tag
_METADATA_TYPE = MetadataUpdate.__struct_config__.tag


class NotRelayed(Rejected):
    """A message of another type than those that are relayed; a server may take it nevertheless.

    Args:
        message: as parsed.
    """

    def __init__(self, message: ParsedMessage) -> None:
        if message.is_too_deep:
            super().__init__(ErrorCode.INVALID_MESSAGE, _TOO_DEEP, message.msg_id)
        else:
            text = "type must be offer, answer or ice-candidate"
            super().__init__(ErrorCode.INVALID_TYPE, text, message.msg_id)
        self.message = message


def _decode_raw(data: bytes) -> ClientMessage:
    """Decode a message that msgspec refuses: to name what is wrong, or to relay a lone surrogate escape."""
    message = _parse(data)
    if message.kind not in RELAYED_TYPES:
        raise NotRelayed(message)
    if message.is_too_deep:
        raise Rejected(ErrorCode.INVALID_MESSAGE, _TOO_DEEP, message.msg_id)
    if not message.target:
        raise Rejected(ErrorCode.MISSING_TARGET, _NO_TARGET, message.msg_id)
    kind, payload = cast(RelayedType, message.kind), _restore_escapes(message.fields.payload)
    return ClientMessage(kind, message.target, payload, message.msg_id_text)


def presented_token(data: bytes) -> PresentedToken | None:
    """Return the token of a message that is rejected unless it presents one; None if it does not."""
    try:
        return _parse(data).presented_token()
    except Rejected:
        return None


def _parse(data: bytes) -> ParsedMessage:
    """Parse a message of any type.

    Raises:
        Rejected: ``invalid_message``.
    """
    fields = _decode_object_of(data, _decode_raw_fields)
    msg_id_text = _msg_id(_restore_escapes(fields.msgId))
    msg_id = bytes(msg_id_text) or None
    kind = _string("type", _restore_escapes(fields.type), msg_id)
    target = _string("to", _restore_escapes(fields.to), msg_id)
    return ParsedMessage(data, fields, kind, target, msg_id_text, _is_too_deep(data))


def _string(key: str, text: msgspec.Raw, msg_id: bytes | None) -> str:
    written = bytes(text)
    if written in (b"", b"null"):
        return ""
    if not written.startswith(b'"'):
        raise Rejected(ErrorCode.INVALID_MESSAGE, f"{key} must be a string", msg_id)
    return str(json.loads(written))


D = TypeVar("D")
_TOO_DEEP = f"nested too deeply: at most {MAX_DEPTH} arrays and objects in each other"


def _decode_object_of(data: bytes, decode: Callable[[bytes], D]) -> D:
    """Decode an object that may contain lone surrogate escapes; ``_restore_escapes`` gives back its raw values.

    Raises:
        Rejected: it is not an object (``invalid_message``).
    """
    try:
        return decode(_replace_escapes(data))
    except RecursionError:
        raise Rejected(ErrorCode.INVALID_MESSAGE, _TOO_DEEP) from None
    except msgspec.MsgspecError:
        raise Rejected(ErrorCode.INVALID_MESSAGE, "the message must be one JSON object") from None


# Bytes that do not occur in UTF-8 replace the escapes that msgspec refuses.
_BACKSLASH, _ESCAPE = b"\xfe", b"\xff"
_SURROGATE = re.compile(rb"\\u(?=[dD][89a-fA-F][0-9a-fA-F]{2})")


def _replace_escapes(data: bytes) -> bytes:
    """Replace the escapes of surrogates, paired or not. An escaped backslash before a ``u`` does not start one."""
    return _SURROGATE.sub(_ESCAPE, data.replace(b"\\\\", _BACKSLASH)) if b"\\" in data else data


def _restore_escapes(text: msgspec.Raw) -> msgspec.Raw:
    """Return a raw value as its sender wrote it."""
    return msgspec.Raw(bytes(text).replace(_ESCAPE, b"\\u").replace(_BACKSLASH, b"\\\\"))


# Possessive quantifiers keep the time linear if a string has no end.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = {byte: 1 if byte in b"[{" else -1 for byte in b"[]{}"}


def _is_too_deep(data: bytes, max_depth: int = MAX_DEPTH) -> bool:
    """Return whether arrays and objects are nested deeper than ``max_depth``, which is at least ``MAX_DEPTH``.

    Args:
        data: valid JSON.
    """
    # A message with few brackets is not nested deeply; to find that out takes less time than to count the levels.
    if not (_has_many(b"[", data) or _has_many(b"{", data)):
        return False
    brackets = _STRINGS.sub(b"", data).translate(None, _ALL_BUT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > max_depth


def _has_many(bracket: bytes, data: bytes) -> bool:
    """Return whether there are at least ``MAX_DEPTH / 2`` of a bracket; faster than counting all."""
    at = -1
    for _ in range(MAX_DEPTH // 2):
        at = data.find(bracket, at + 1)
        if at < 0:
            return False
    return True


_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))


def check_metadata(data: bytes, max_bytes: int) -> None:
    """Check that ``data`` is one JSON object that every client can read.

    Args:
        max_bytes: how long it may be.

    Raises:
        ValueError: if it is not; the text says what would be right.
    """
    if len(data) > max_bytes:
        raise ValueError(f"at most {max_bytes} bytes, not {len(data)}")
    try:
        data.decode()
        _decode_object(_replace_escapes(data))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (UnicodeDecodeError, msgspec.MsgspecError):
        raise ValueError('not a JSON object; URL-encode one, for example {"name":"Ada"}') from None
    if _is_too_deep(data):
        raise ValueError(_TOO_DEEP)
    if _LONG_NUMBER.search(_STRINGS.sub(b"", data)):
        raise ValueError(f"a number with more than {MAX_DIGITS} digits")


def check_notice(data: bytes) -> None:
    """Check that ``data`` is one JSON value of any type that every client can read.

    Raises:
        ValueError: if it is not; the text says what would be right.
    """
    try:
        data.decode()
        _decode_value(_replace_escapes(data))
    except RecursionError:
        raise ValueError(f"data: {_TOO_DEEP}") from None
    except (UnicodeDecodeError, msgspec.MsgspecError):
        raise ValueError("data: no JSON in UTF-8") from None
    if _is_too_deep(data):
        raise ValueError(f"data: {_TOO_DEEP}")
    if _LONG_NUMBER.search(_STRINGS.sub(b"", data)):
        raise ValueError(f"data: a number with more than {MAX_DIGITS} digits")


class _NoticeRequest(msgspec.Struct, forbid_unknown_fields=True):
    data: msgspec.Raw
    to: msgspec.Raw = _ABSENT


_decode_notice_request = msgspec.json.Decoder(_NoticeRequest).decode


def decode_notice(body: bytes) -> tuple[str | None, bytes]:
    """Decode what an operator wants a notice to say.

    Args:
        body: a JSON object.

    Returns:
        The id of the peer that it is for, None for all, and the JSON text of its data.

    Raises:
        ValueError: the text says what would be right.
    """
    try:
        body.decode()
        request = _decode_notice_request(_replace_escapes(body))
    except RecursionError:
        raise ValueError(f"data: {_TOO_DEEP}") from None
    except (UnicodeDecodeError, msgspec.MsgspecError):
        raise ValueError('the body: a JSON object is needed, {"data": ...} or {"to": "PEER", "data": ...}') from None
    data, to = bytes(_restore_escapes(request.data)), bytes(_restore_escapes(request.to))
    check_notice(data)
    if not to:
        return None, data
    if not to.startswith(b'"'):
        raise ValueError("to: the id of a peer is needed, a string")
    return str(json.loads(to)), data


_encode = msgspec.json.Encoder().encode


def welcome(  # noqa: PLR0913 - one for each key
    peer_id: str,
    ice_servers: bytes | None = None,
    resume: tuple[str, float] | None = None,
    *,
    resumed: bool = False,
    expires_in: int | None = None,
    features: Sequence[Feature] = (),
) -> bytes:
    """Encode the first message on every connection.

    Args:
        ice_servers: the JSON text of an array of ``RTCIceServer`` dictionaries.
        resume: the resume token, and the resume window in seconds.
        resumed: whether the peer resumed its session.
        expires_in: in how many seconds the client's token expires; None for never, or if there is none.
        features: the optional features that are on, in alphabetical order.
    """
    return _encode(
        server_messages.Welcome(
            peer_id,
            UNSET if ice_servers is None else msgspec.Raw(ice_servers),
            UNSET if resume is None else server_messages.ResumeTicket(resume[0], _short(resume[1])),
            True if resumed else UNSET,
            UNSET if expires_in is None else expires_in,
            features or UNSET,
        )
    )


def _short(seconds: float) -> float:
    """Return a whole number as one, to write it without a fraction."""
    return int(seconds) if seconds == int(seconds) else seconds


def token_accepted(expires_in: int | None, msg_id: bytes | None) -> bytes:
    """Encode that a new token has replaced the old one; the arguments are those of ``welcome`` and ``error``."""
    return _encode(server_messages.TokenAccepted(UNSET if expires_in is None else expires_in, _raw(msg_id)))


def ice_servers(text: bytes) -> bytes:
    """Encode the ICE servers that replace the earlier ones.

    Args:
        text: the JSON text of an array of ``RTCIceServer`` dictionaries.
    """
    return _encode(server_messages.IceServersReplaced(msgspec.Raw(text)))


class ListedPeer(Protocol):
    """A peer, as a ``peer-list`` shows it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def metadata(self) -> bytes | None:
        """The JSON text of its metadata, or None."""


def peer_list(peers: Iterable[ListedPeer]) -> bytes:
    """Encode the peers of a topic, in the order of joining."""
    return _encode(
        server_messages.PeerList([server_messages.ListedPeer(peer.id, _raw(peer.metadata)) for peer in peers])
    )


_METADATA_KEY = b',"metadata":'
_LISTED_BYTES = len(b'{"id":""},')


def listed_bytes(peer_id: str, metadata: bytes | None) -> int:
    """Return the bytes that a peer adds to a ``peer-list``."""
    return _LISTED_BYTES + len(peer_id) + (len(_METADATA_KEY) + len(metadata) if metadata is not None else 0)


def peer_joined(peer_id: str, metadata: bytes | None) -> bytes:
    """Encode that a peer joined."""
    return _encode(server_messages.PeerJoined(peer_id, _raw(metadata)))


def peer_updated(peer_id: str, metadata: bytes) -> bytes:
    """Encode that a peer has other metadata."""
    return _encode(server_messages.PeerUpdated(peer_id, msgspec.Raw(metadata)))


def peer_left(peer_id: str) -> bytes:
    """Encode that a peer left."""
    return _encode(server_messages.PeerLeft(peer_id))


def notice(data: bytes) -> bytes:
    """Encode a message of the server itself; ``data`` is JSON text."""
    return _encode(server_messages.Notice(msgspec.Raw(data)))


_RELAYED_HEADS = {kind: b'{"type":"%b","from":"' % kind.encode() for kind in RELAYED_TYPES}


def relayed(message: ClientMessage, sender_id: str) -> bytes:
    """Encode a message for its target, as ``Relayed`` but faster; the payload is copied once."""
    # Ids are ASCII without quotes and need no escaping.
    head, sender = _RELAYED_HEADS[message.type], sender_id.encode()
    if message.payload and not message.msg_id_text:
        # Most messages, in the one step that most of them take.
        return b"".join((head, sender, b'","payload":', message.payload, b"}"))
    pieces: list[bytes | msgspec.Raw] = [head, sender, b'"']
    if message.payload:
        pieces += (b',"payload":', message.payload)
    if message.msg_id_text:
        pieces += (b',"msgId":', message.msg_id_text)
    return b"".join([*pieces, b"}"])


def error(code: ErrorCode, text: str, msg_id: bytes | None) -> bytes:
    """Encode the error for a message that was not relayed.

    Args:
        text: for a person.
    """
    # Of a text with a lone surrogate, msgspec makes no JSON.
    return _encode(server_messages.Error(code, msgspec.Raw(json.dumps(text)), _raw(msg_id)))


def _raw(text: bytes | None) -> msgspec.Raw | UnsetType:
    return UNSET if text is None else msgspec.Raw(text)
