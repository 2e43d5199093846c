"""Payloads that only peers with the same secret can read and write (docs/sealing-format.md).

The server is a stranger: it chooses the ids, and may drop, delay, repeat and exchange messages, or invent them. So a
payload is encrypted together with the type, the sender, the target and a number, and a number counts once.
``sealing.js`` does the same for browsers; both are tested by ``tests/vectors/sealing.json``.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from signaling.client.messages import Answer, IceCandidate, Offer, Tampered, decode_payload

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as missing:
    raise ImportError("secret= needs cryptography: pip install 'twisted-signaling[sealed]'") from missing

VERSION: Literal[1] = 1
MIN_SECRET_BYTES = 16
_LABEL = b"twisted-signaling sealed 1\0"
_NONCE_BYTES = 12
# Python's decoder takes other characters as well.
_BASE64URL = re.compile("[A-Za-z0-9_-]*")
# JavaScript has no greater exact number.
_MAX_NUMBER = 2**53 - 1
# The ids of a server have 26 characters. The bound is for what is remembered of each.
_MAX_ID_LENGTH = 64

MAX_SENDERS = 16_384
"""Senders whose last number is remembered."""
MAX_RECENT = 4_096
"""Accepted messages of all senders that are recognised when they come again."""

UNSEALED = "it is not sealed"
UNOPENED = "it cannot be opened: another secret, or it was changed on its way"
REPEATED = "it came again, or out of order"
FORGOTTEN = "its sender came too long ago"
UNREADABLE = "it holds no JSON"


class SealedPayload(msgspec.Struct, frozen=True):
    """A sealed payload of an offer, an answer or an ICE candidate; docs/sealing-format.md has the format."""

    sealed: Annotated[Literal[1], Meta(description="The version of the format.")]
    number: Annotated[
        int, Meta(ge=1, le=_MAX_NUMBER, description="Greater than that of any earlier message of the sender.")
    ]
    data: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9_-]*$",
            min_length=38,
            description="Nonce (12 bytes), ciphertext and tag (16 bytes), in base64url without padding.",
        ),
    ]


class Rejected(Exception):
    """A payload is not what its sender sealed for this peer, now; the text says why."""


class Duplicate(Exception):
    """A message was opened already, and its sender repeated it after a loss."""


class Sealing:
    """Seals the payloads of one client, and opens those for it.

    Args:
        secret: shared by the peers of the topic.
        topic: its name, not percent-encoded.

    Raises:
        ValueError: if the secret is too short, or not Unicode.
    """

    def __init__(self, secret: str, topic: bytes) -> None:
        self._cipher = AESGCM(derive_key(secret, topic))
        self._last_numbers: dict[str, int] = {}  # the sender that was heard last comes last
        self._recent: dict[tuple[str, int], str] = {}
        self._forgotten = ""  # the greatest id that was forgotten

    def seal(  # noqa: PLR0913 - what a message is bound to
        self, kind: str, sender: str, target: str, number: int, plaintext: bytes, *, nonce: bytes | None = None
    ) -> dict[str, Any]:
        """Return the payload for the wire.

        Args:
            number: greater than that of any earlier message of this client.
            plaintext: the payload as JSON; empty if there is none.
            nonce: for tests; used once in the life of a secret, so None means random bytes.
        """
        nonce = os.urandom(_NONCE_BYTES) if nonce is None else nonce
        sealed = nonce + self._cipher.encrypt(nonce, plaintext, _bound(kind, sender, target, number))
        data = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
        return msgspec.structs.asdict(SealedPayload(VERSION, number, data))

    def open(self, kind: str, sender: str, target: str, payload: Any, msg_id: str | None) -> Any:
        """Return the payload that was sealed; None if there was none.

        Args:
            target: this peer.
            msg_id: by which a message is recognised that its sender repeated after a loss.

        Raises:
            Duplicate: if it is such a message.
            Rejected: if it is not sealed, was changed, moved or repeated by somebody, or is out of order.
        """
        number, data = _fields(payload)
        if len(sender) > _MAX_ID_LENGTH:
            raise Rejected(UNOPENED)
        try:
            plaintext = self._cipher.decrypt(
                data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(kind, sender, target, number)
            )
        except (InvalidTag, ValueError):
            raise Rejected(UNOPENED) from None
        known = (msg_id or "")[:_MAX_ID_LENGTH]
        if number <= self._last_numbers.get(sender, 0):
            if self._recent.get((sender, number)) == known:
                raise Duplicate
            raise Rejected(REPEATED)
        if sender not in self._last_numbers and sender <= self._forgotten:
            raise Rejected(FORGOTTEN)
        self._remember(sender, number, known)
        try:
            return decode_payload(plaintext) if plaintext else None
        except ValueError:
            raise Rejected(UNREADABLE) from None

    def receive(
        self, relayed: Offer | Answer | IceCandidate, own_id: str
    ) -> Offer | Answer | IceCandidate | Tampered | None:
        """Return what the application gets in place of a message; None if that is nothing."""
        kind = str(relayed.__struct_config__.tag)
        try:
            payload = self.open(kind, relayed.sender, own_id, relayed.payload, relayed.msg_id)
        except Duplicate:
            return None
        except Rejected as rejected:
            return Tampered(relayed.sender, kind, str(rejected))
        return msgspec.structs.replace(relayed, payload=payload)

    def _remember(self, sender: str, number: int, msg_id: str) -> None:
        self._last_numbers.pop(sender, None)
        self._last_numbers[sender] = number
        if len(self._last_numbers) > MAX_SENDERS:
            # A server gives a new peer a greater id than all before, so this refuses none but peers of long ago.
            oldest = next(iter(self._last_numbers))
            del self._last_numbers[oldest]
            self._forgotten = max(self._forgotten, oldest)
        self._recent[sender, number] = msg_id
        if len(self._recent) > MAX_RECENT:
            del self._recent[next(iter(self._recent))]


def derive_key(secret: str, topic: bytes) -> bytes:
    """Return the key of a topic's payloads; for the arguments and errors see ``Sealing``."""
    material = secret.encode()
    if len(material) < MIN_SECRET_BYTES:
        raise ValueError(
            f"the secret is shorter than {MIN_SECRET_BYTES} bytes; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_LABEL + topic).derive(material)


def _fields(payload: Any) -> tuple[int, bytes]:
    match payload:
        # In JSON, 1.0 is the same number as 1.
        case {"sealed": int() | float() as version, "number": int() | float() as number, "data": str(data)}:
            pass
        case _:
            raise Rejected(UNSEALED)
    is_bool = isinstance(version, bool) or isinstance(number, bool)
    if is_bool or version != VERSION or not 0 < number <= _MAX_NUMBER or number != int(number):
        raise Rejected(UNSEALED)
    try:
        if _BASE64URL.fullmatch(data):
            return int(number), base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
    except binascii.Error:
        pass
    raise Rejected(UNOPENED)


def _bound(kind: str, sender: str, target: str, number: int) -> bytes:
    """Return the additional data: the length of each part keeps one from reaching into the next."""
    # An id may hold whatever JSON can, also a lone surrogate.
    parts = [part.encode("utf-8", "surrogatepass") for part in (kind, sender, target, str(number))]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
