"""The messages of the server as types, with what each key may hold (docs/protocol.md, "From the server").

``core/messages.py`` encodes them, and tools/wire_schema.py makes the schemas of the wire from the same fields. A value
that is relayed verbatim is JSON text, ``msgspec.Raw``; its annotation says what that holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from signaling.errors import ErrorCode

RelayedType = Literal["offer", "answer", "ice-candidate"]

# Generators of types take a schema without a type for one of objects.
_ANY_JSON = {"type": ["object", "array", "string", "number", "boolean", "null"]}

PeerId: TypeAlias = Annotated[
    str,
    Meta(
        pattern="^[0-7][0-9A-HJKMNP-TV-Z]{25}$",
        description="A ULID; it is greater than the id of every peer that joined the topic before.",
        examples=["01M84W4JC063ZB8W6276707TN2"],
    ),
]
MetadataText = Meta(
    description=(
        "The metadata of a peer, relayed as it was written: at most 4,096 bytes of UTF-8 by default, nested at most 64 "
        "deep, the object itself included, with numbers of at most 100 digits."
    ),
    extra_json_schema={"type": "object"},
    examples=[{"name": "Ada"}],
)
Metadata: TypeAlias = Annotated[Raw, MetadataText]
Payload: TypeAlias = Annotated[
    Raw,
    Meta(
        description="Any JSON, which arrives as it was written. Peers with a secret seal it: sealed-payload.json.",
        extra_json_schema=_ANY_JSON,
        examples=[{"sdp": "v=0\r\n..."}],
    ),
]
MsgId: TypeAlias = Annotated[
    Raw,
    Meta(
        description="The `msgId` of the message that this one relays or answers.",
        extra_json_schema={"type": "string", "minLength": 1},
        examples=["1"],
    ),
]
ExpiresIn: TypeAlias = Annotated[
    int, Meta(ge=0, description="The whole seconds until the token of the connection expires.", examples=[600])
]
IceServerList: TypeAlias = Annotated[
    Raw,
    Meta(
        description="`RTCIceServer` dictionaries, as for `RTCPeerConnection`.",
        extra_json_schema={"type": "array", "items": {"$ref": "#/$defs/RTCIceServer"}},
    ),
]


class Feature(StrEnum):
    """An optional feature that is on, in the ``features`` of ``welcome``."""

    METADATA_UPDATES = "metadata-updates"
    NOTICES = "notices"
    RESUME = "resume"
    TOKEN = "token"


FEATURE_MEANINGS: dict[Feature, str] = {
    Feature.METADATA_UPDATES: "`metadata` messages are taken.",
    Feature.NOTICES: "`notice` messages may come.",
    Feature.RESUME: "Sessions can be resumed.",
    Feature.TOKEN: "Access is controlled: `token` messages are taken.",
}
"""For authors of clients."""


class _ServerMessage(msgspec.Struct, frozen=True, gc=False, tag_field="type", omit_defaults=True):
    """A message of the server."""


class ResumeTicket(msgspec.Struct, frozen=True, gc=False):
    """How to resume the session after a loss."""

    token: Annotated[
        str,
        Meta(
            min_length=1,
            description="For the key `resume` of the query; secret, for one use.",
            examples=["01M84W4JC063ZB8W6276707TN2c2VjcmV0..."],
        ),
    ]
    window: Annotated[
        float, Meta(gt=0, description="How many seconds the peer stays in the topic after a loss.", examples=[30])
    ]


class Welcome(_ServerMessage, frozen=True, gc=False, tag="welcome"):
    """The first message on every connection, unless the topic is full."""

    self_id: PeerId = msgspec.field(name="selfId")
    ice_servers: IceServerList | UnsetType = msgspec.field(default=UNSET, name="iceServers")
    resume: ResumeTicket | UnsetType = UNSET
    resumed: (
        Annotated[Literal[True], Meta(description="The session was resumed: what was missed follows.")] | UnsetType
    ) = UNSET
    expires_in: ExpiresIn | UnsetType = msgspec.field(default=UNSET, name="expiresIn")
    features: (
        Annotated[
            Sequence[Feature],
            Meta(
                min_length=1,
                description=(
                    "The optional features that are on, in alphabetical order. A newer server may name others; "
                    "ignore those."
                ),
                extra_json_schema={"uniqueItems": True},
            ),
        ]
        | UnsetType
    ) = UNSET


class ListedPeer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Another peer of the topic."""

    id: PeerId
    metadata: Metadata | UnsetType = UNSET


class PeerList(_ServerMessage, frozen=True, gc=False, tag="peer-list"):
    """The second message on every connection: the other peers of the topic, in the order of joining."""

    peers: list[ListedPeer]


class PeerJoined(_ServerMessage, frozen=True, gc=False, tag="peer-joined"):
    """Another peer joined the topic."""

    peer_id: PeerId = msgspec.field(name="peerId")
    metadata: Metadata | UnsetType = UNSET


class PeerUpdated(_ServerMessage, frozen=True, gc=False, tag="peer-updated"):
    """A peer, perhaps the client's own, has other metadata."""

    peer_id: PeerId = msgspec.field(name="peerId")
    metadata: Metadata


class PeerLeft(_ServerMessage, frozen=True, gc=False, tag="peer-left"):
    """Another peer left, was disconnected, or stopped answering pings."""

    peer_id: PeerId = msgspec.field(name="peerId")


class Relayed(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A message from another peer, or from the client to itself."""

    type: RelayedType
    sender: PeerId = msgspec.field(name="from")
    payload: Payload | UnsetType = UNSET
    msg_id: MsgId | UnsetType = msgspec.field(default=UNSET, name="msgId")


class Error(_ServerMessage, frozen=True, gc=False, tag="error"):
    """A message of the client was refused. The connection stays open, unless this comes in place of ``welcome``."""

    code: ErrorCode
    message: Annotated[
        Raw,
        Meta(
            description="What is wrong, for a person.",
            extra_json_schema={"type": "string"},
            examples=["the message must be one JSON object"],
        ),
    ]
    msg_id: MsgId | UnsetType = msgspec.field(default=UNSET, name="msgId")


class IceServersReplaced(_ServerMessage, frozen=True, gc=False, tag="ice-servers"):
    """ICE servers in place of those of ``welcome``, which expire soon."""

    ice_servers: IceServerList = msgspec.field(name="iceServers")


class TokenAccepted(_ServerMessage, frozen=True, gc=False, tag="token"):
    """The client's new token was accepted."""

    expires_in: ExpiresIn | UnsetType = msgspec.field(default=UNSET, name="expiresIn")
    msg_id: MsgId | UnsetType = msgspec.field(default=UNSET, name="msgId")


class Notice(_ServerMessage, frozen=True, gc=False, tag="notice"):
    """The operator or the application says something, to one peer or to all. Peers cannot send it."""

    data: Annotated[
        Raw,
        Meta(
            description="Any JSON.", extra_json_schema=_ANY_JSON, examples=[{"text": "The server restarts at 22:00."}]
        ),
    ]


ServerMessage = (
    Welcome
    | PeerList
    | PeerJoined
    | PeerUpdated
    | PeerLeft
    | Relayed
    | Error
    | IceServersReplaced
    | TokenAccepted
    | Notice
)
