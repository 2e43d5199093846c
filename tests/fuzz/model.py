"""A second opinion on the JSON wire: a recogniser with a stack of its own, from RFC 8259 and docs/protocol.md alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from signaling.errors import ErrorCode

_TOKEN = re.compile(
    r"""[ \t\n\r]*+(?:
        (?P<mark>[{}\[\]:,])
      | (?P<string>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+")
      | (?P<scalar>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null)
    )""",
    re.VERBOSE,
)
_SPACE = re.compile(r"[ \t\n\r]*+")

_STARTS_OBJECT, _STARTS_ARRAY, _ENDS = "starts an object", "starts an array", "ends"
_NEXT = {
    "a value": {"string": "a comma", "scalar": "a comma", "{": _STARTS_OBJECT, "[": _STARTS_ARRAY},
    "the first value": {
        "string": "a comma",
        "scalar": "a comma",
        "{": _STARTS_OBJECT,
        "[": _STARTS_ARRAY,
        "]": _ENDS,
    },
    "the first key": {"string": "a colon", "}": _ENDS},
    "a key": {"string": "a colon"},
    "a colon": {":": "a value"},
    "a comma": {",": "", "}": _ENDS, "]": _ENDS},
}
_CLOSES = {"}": "{", "]": "["}


class _Reader:
    """Reads one text, token by token.

    Attributes:
        members: the texts of the outermost object's values by key; of a repeated key the last counts.
        deepest: how many arrays and objects stood in each other.
    """

    def __init__(self, text: str) -> None:
        self.members: dict[str, str] = {}
        self.deepest = 0
        self._text = text
        self._stack: list[str] = []
        self._expected = "a value"
        self._key = ""
        self._value_at = 0

    def read(self) -> bool:
        """Return whether the text is one JSON value."""
        at = 0
        while token := _TOKEN.match(self._text, at):
            at = token.end()
            if not self._step(token):
                return False
        return not self._stack and self._expected == "a comma" and _SPACE.fullmatch(self._text, at) is not None

    def _step(self, token: re.Match[str]) -> bool:
        kind = token["mark"] or str(token.lastgroup)
        following = _NEXT[self._expected].get(kind)
        if following is None or (self._expected == "a comma" and not self._stack):
            return False
        outermost = len(self._stack) == 1
        if outermost and self._expected == "a value":
            self._value_at = token.start(str(token.lastgroup))
        if outermost and following == "a colon":
            self._key = json.loads(token["string"])
        if following in (_STARTS_OBJECT, _STARTS_ARRAY):
            self._stack.append(kind)
            self.deepest = max(self.deepest, len(self._stack))
            following = "the first key" if kind == "{" else "the first value"
        elif following == _ENDS:
            if self._stack.pop() != _CLOSES[kind]:
                return False
            following = "a comma"
        elif not following:
            following = "a key" if self._stack[-1] == "{" else "a value"
        if following == "a comma" and len(self._stack) == 1:
            self.members[self._key] = self._text[self._value_at : token.end()]
        self._expected = following
        return True


class Relay(NamedTuple):
    """A message to relay.

    Args:
        payload: JSON text; empty if absent.
        msg_id: JSON text; None if absent.
    """

    type: str
    to: str
    payload: bytes
    msg_id: bytes | None


@dataclass(frozen=True)
class Rejection:
    """What answers a message that is not relayed."""

    code: ErrorCode
    msg_id: bytes | None


def read_object(text: str) -> tuple[dict[str, str] | None, int]:
    """Read a JSON object.

    Returns:
        The texts of its values by key, None where the text is no object; and how deep it is nested.
    """
    reader = _Reader(text)
    is_object = reader.read() and _SPACE.sub("", text, count=1).startswith("{")
    return (reader.members if is_object else None), reader.deepest


def judge(members: dict[str, str] | None) -> Relay | Rejection:
    """Judge a message in the order of the protocol's table.

    Args:
        members: the object's values as text, None where the message is no object.
    """
    if members is None:
        return Rejection(ErrorCode.INVALID_MESSAGE, None)
    texts = {key: members.get(key, "null") for key in ("msgId", "type", "to")}
    msg_id = None if texts["msgId"] in ("null", '""') else texts["msgId"].encode()
    if msg_id is not None and not msg_id.startswith(b'"'):
        return Rejection(ErrorCode.INVALID_MESSAGE, None)
    if not all(text == "null" or text.startswith('"') for text in texts.values()):
        return Rejection(ErrorCode.INVALID_MESSAGE, msg_id)
    kind, target = json.loads(texts["type"]), json.loads(texts["to"])
    if kind not in ("offer", "answer", "ice-candidate"):
        return Rejection(ErrorCode.INVALID_TYPE, msg_id)
    if not target:
        return Rejection(ErrorCode.MISSING_TARGET, msg_id)
    payload = members.get("payload")
    return Relay(kind, target, b"" if payload is None else payload.encode(), msg_id)


def presented(members: dict[str, str] | None) -> tuple[str, bytes | None] | None:
    """Return the token (empty if it is no string) and the msgId of a message of the type ``token``; None for another.

    Args:
        members: as for ``judge``.
    """
    verdict = judge(members)
    if members is None or not isinstance(verdict, Rejection) or verdict.code != ErrorCode.INVALID_TYPE:
        return None
    if json.loads(members.get("type", "null")) != "token":
        return None
    text = members.get("token", "null")
    return json.loads(text) if text.startswith('"') else "", verdict.msg_id


def update(members: dict[str, str] | None) -> tuple[str, bytes | None] | None:
    """Return the metadata and the msgId of a message of the type ``metadata``; None for another.

    Args:
        members: as for ``judge``.
    """
    verdict = judge(members)
    if members is None or not isinstance(verdict, Rejection) or verdict.code != ErrorCode.INVALID_TYPE:
        return None
    if json.loads(members.get("type", "null")) != "metadata":
        return None
    return members.get("metadata", "null"), verdict.msg_id


INCOMPLETE = "incomplete"
OTHER = "other"


def read_frame(data: bytes, at: int, longest: int) -> tuple[int, bytes, int] | str:  # noqa: C901, PLR0911
    """Read a client's frame that the server reads without Autobahn (RFC 6455, section 5.2), a bit at a time.

    Returns:
        The opcode of a whole text message or control frame, its payload, and where it ends; ``INCOMPLETE``; or
        ``OTHER`` for everything else, valid or not.
    """
    rest = data[at:]
    if len(rest) < 2:
        return INCOMPLETE
    final, reserved, opcode = rest[0] >> 7, rest[0] >> 4 & 7, rest[0] & 15
    is_masked, size = rest[1] >> 7, rest[1] & 127
    if not final or reserved or opcode not in (1, 8, 9, 10) or not is_masked:
        return OTHER
    if opcode == 1 and size == 127:
        return OTHER
    if opcode != 1 and (size > 125 or (opcode == 8 and size == 1)):
        return OTHER
    head = 2
    if size == 126:
        if len(rest) < 8:
            return INCOMPLETE
        size, head = rest[2] * 256 + rest[3], 4
        if size < 126:
            return OTHER
    if size > longest:
        return OTHER
    end = head + 4 + size
    if len(rest) < end:
        return INCOMPLETE
    mask = rest[head : head + 4]
    payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(rest[head + 4 : end]))
    if opcode == 1:
        try:
            payload.decode()
        except UnicodeDecodeError:
            return OTHER
    return opcode, payload, at + end
