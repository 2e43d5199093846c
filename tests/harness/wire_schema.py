"""Validates messages against the schemas that the package ships.

Python's JSON is stricter than the wire in what it can hold: numbers of thousands of digits, infinite ones and lone
surrogates, which no schema restricts, are replaced before.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import jsonschema_rs
import msgspec

from signaling.core.grants import TOKEN_PATTERN
from signaling.core.messages import PresentedToken
from signaling.errors import ErrorCode, Rejected

Schema = dict[str, Any]
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_LONGEST_INTEGER = 18
_decode = msgspec.json.Decoder().decode


def read(name: str) -> Schema:
    """Return a schema of the package."""
    return dict(json.loads((files("signaling") / "schemas" / f"{name}.json").read_text()))


def closed(schema: Schema) -> Schema:
    """Return a schema of messages whose objects have no other keys, as of this version of the server."""
    return {**schema, "$defs": {kind: {"additionalProperties": False, **of} for kind, of in schema["$defs"].items()}}


class Side:
    """The messages of the server, or those of a client.

    Args:
        schema: of any of them.
    """

    def __init__(self, schema: Schema) -> None:
        kinds = [each["$ref"].rpartition("/")[2] for each in schema["oneOf"]]
        self._valid = {
            kind: jsonschema_rs.validator_for({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}) for kind in kinds
        }

    def is_valid(self, text: str | bytes) -> bool:
        """Return whether a message is valid, in 2 us; False also if msgspec cannot represent it."""
        try:
            message = _decode(text)
            return bool(self._valid[message["type"]].is_valid(message))
        except (msgspec.MsgspecError, RecursionError, KeyError, TypeError):
            return False

    def problems(self, text: str | bytes) -> Iterator[str]:
        """Yield what is wrong with a message; nothing if it is valid."""
        try:
            message = parsed(text)
        except (ValueError, RecursionError):
            yield "no JSON"
            return
        kind = message.get("type") if isinstance(message, dict) else None
        validator = self._valid.get(kind) if isinstance(kind, str) else None
        if validator is None:
            yield f"no message of type {kind!r}"
        elif not validator.is_valid(message):
            for error in validator.iter_errors(message):
                yield f"{kind}: {error.message}"


def parsed(text: str | bytes) -> Any:
    """Parse JSON for a validator."""
    written = text.decode() if isinstance(text, bytes) else text
    if "\\u" in written:
        written = _SURROGATE.sub(r"\\ufffd", written)
    return _DECODER.decode(written)


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else 1


def _float(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else 0.5


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_refuse)
from_client = Side(read("client-message"))
from_server = Side(closed(read("server-message")))


def check_from_server(text: str | bytes) -> None:
    """Check a message that a server sent."""
    if not from_server.is_valid(text):
        problems = list(from_server.problems(text))
        assert not problems, problems


def check_from_client(text: str | bytes) -> None:
    """Check a message that one of the clients sent."""
    if not from_client.is_valid(text):
        problems = list(from_client.problems(text))
        assert not problems, problems


# What no schema says, by the text of the error.
BEYOND_SCHEMAS = (
    "nested too deeply: at most 64 arrays and objects in each other",
    "metadata: nested too deeply: at most 64 arrays and objects in each other",
    "metadata: a number with more than 100 digits",
    "metadata: at most ",
)
_MALFORMED = (
    ErrorCode.INVALID_MESSAGE,
    ErrorCode.INVALID_TYPE,
    ErrorCode.MISSING_TARGET,
    ErrorCode.INVALID_METADATA,
)


def disagreement(text: bytes, outcome: object) -> str | None:
    """Return how the schema and the server judge a client's message differently; None if they agree.

    Args:
        outcome: what ``Peer.receive`` returned for it.
    """
    malformed = isinstance(outcome, Rejected) and outcome.code in _MALFORMED
    if not malformed and not isinstance(outcome, PresentedToken) and from_client.is_valid(text):
        return None
    if isinstance(outcome, Rejected) and outcome.text.startswith(BEYOND_SCHEMAS):
        return None
    if isinstance(outcome, PresentedToken):
        malformed = not re.fullmatch(TOKEN_PATTERN, outcome.token)
    problems = list(from_client.problems(text))
    if bool(problems) == malformed:
        return None
    if malformed and outcome.code is ErrorCode.INVALID_TYPE and parsed(text)["type"] in ("token", "metadata"):
        # The feature is off.
        return None
    return f"{text!r}: {problems or 'valid'}, but {outcome!r}"
