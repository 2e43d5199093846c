"""Writes signaling/schemas/ from the types of the wire; with ``--check`` only compares the files.

The types are those that the server and the clients use: what a key may hold stands in its annotation.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Raw, UnsetType

from signaling._version import VERSION
from signaling.client.sealing import SealedPayload
from signaling.core.ice import RTCIceServer
from signaling.core.messages import MAX_DEPTH, ClientFields, ClientMessage, MetadataUpdate, PresentedToken
from signaling.core.server_messages import FEATURE_MEANINGS, Feature, RelayedType, ServerMessage
from signaling.errors import CLOSE_MEANINGS, ERROR_MEANINGS, ErrorCode
from signaling.limits import Limits
from signaling.web.join_parsing import JoinQuery

FOLDER = Path(__file__).parents[1] / "signaling" / "schemas"
REPOSITORY = "https://github.com/twisted-signaling/twisted-signaling"
SITE = "https://twisted-signaling.github.io/twisted-signaling"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
MESSAGES: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "client": (ClientMessage, PresentedToken, MetadataUpdate),
    "server": get_args(ServerMessage),
}
MEANINGS: dict[type[Enum], dict[Any, str]] = {ErrorCode: ERROR_MEANINGS, Feature: FEATURE_MEANINGS}
Schema = dict[str, Any]

# What AsyncAPI calls an operation: its action from the server's point of view, what it is, its messages, and the
# messages that may answer it.
OPERATIONS = {
    "relay": ("receive", "Relay a message to one peer of the topic.", "offer answer ice-candidate", "error"),
    "updateMetadata": ("receive", "Replace the client's own metadata.", "metadata", "peer-updated error"),
    "renewToken": ("receive", "Replace the token of the connection.", "token", "token error"),
    "welcome": ("send", "Begin: the client's id, and the other peers of the topic.", "welcome peer-list", ""),
    "announce": ("send", "Report who joins, leaves or changes.", "peer-joined peer-updated peer-left", ""),
    "deliver": ("send", "Deliver the message of a peer.", "offer answer ice-candidate", ""),
    "refuse": (
        "send",
        "Report that a message was not relayed or not accepted, or that the topic is full.",
        "error",
        "",
    ),
    "replaceIceServers": ("send", "Replace the ICE servers before they expire.", "ice-servers", ""),
    "notify": ("send", "Pass on what the operator or the application says.", "notice", ""),
    "acceptToken": ("send", "Confirm a new token.", "token", ""),
}


def first_paragraph(owner: type) -> str:
    """Return the first paragraph of a docstring, on one line, with Markdown's code."""
    text = textwrap.dedent(owner.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("``", "`")


def fields(owner: type[msgspec.Struct]) -> Iterator[tuple[str, Any, bool]]:
    """Yield the name, the type and whether it is required of each field of a message."""
    for field in msgspec.structs.fields(owner):
        yield field.encode_name, writable(field.type), field.required


def writable(of: Any) -> Any:
    """Return the type of a field for msgspec; text that is JSON already is ``Raw``, whatever Python has it in."""
    if get_origin(of) in (Union, UnionType):
        of = Union[tuple(part for part in get_args(of) if part is not UnsetType)]  # noqa: UP007
    if get_origin(of) is Annotated and bytes in (of.__origin__, *get_args(of.__origin__)):
        of = Annotated[Raw, *of.__metadata__]
    return of


def schemas(types: Iterable[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """Return the schemas of types, and of the types that these refer to by name."""
    found, named = msgspec.json.schema_components(list(types), ref_template="#/$defs/{name}")
    for owner in named_types(types):
        schema = named[owner.__name__]
        schema["description"] = first_paragraph(owner)
        if issubclass(owner, Enum):
            # In their own order.
            schema["enum"] = [member.value for member in owner]
            schema["description"] += "".join(f"\n- `{member.value}`: {MEANINGS[owner][member]}" for member in owner)
    return list(found), named


def named_types(types: Iterable[Any]) -> Iterator[type]:
    """Yield the enums and structs in types, however deep."""
    for of in types:
        if isinstance(of, type) and issubclass(of, Enum):
            yield of
        elif isinstance(of, type) and issubclass(of, msgspec.Struct):
            yield of
            yield from named_types(field.type for field in msgspec.structs.fields(of))
        else:
            yield from named_types(part for part in get_args(of) if not isinstance(part, str | bool | int | Meta))


def messages(owner: type[msgspec.Struct]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Return the schemas of the messages of a type, by the ``type`` of the wire, and of what they refer to."""
    names, types, required = zip(*fields(owner), strict=True)
    found, named = schemas(types)
    properties = dict(zip(names, found, strict=True))
    needed = ["type", *(name for name, is_needed in zip(names, required, strict=True) if is_needed and name != "type")]
    tag = owner.__struct_config__.tag
    kinds = [tag] if tag else get_args(RelayedType)
    properties.pop("type", None)
    description = first_paragraph(owner)
    return {
        str(kind): {
            "title": str(kind),
            "description": description,
            "type": "object",
            "properties": {"type": {"const": kind}, **properties},
            "required": needed,
        }
        for kind in kinds
    }, named


def side(name: str) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Return the schemas of all messages of a side, by their ``type``, and of what they refer to."""
    found: dict[str, Schema] = {}
    named: dict[str, Schema] = {}
    for owner in MESSAGES[name]:
        more, others = messages(owner)
        found |= more
        named |= others
    if name == "client":
        of_all = {key: of for key, of, _ in fields(ClientFields) if of is not Raw}
        for schema in found.values():
            missing = [key for key in of_all if key not in schema["properties"]]
            schema["properties"] |= dict(zip(missing, schemas(of_all[key] for key in missing)[0], strict=True))
    else:
        named |= schemas([RTCIceServer])[1]
    return found, dict(sorted(named.items()))


def document(name: str, title: str, description: str, body: Schema) -> Schema:
    """Return a JSON Schema of its own."""
    return {"$schema": DIALECT, "$id": f"{SITE}/schemas/{name}.json", "title": title, "description": description} | body


def any_of_side(name: str, description: str) -> Schema:
    """Return the JSON Schema of any message of a side."""
    found, named = side(name)
    body = {"oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in found], "$defs": found | named}
    return document(f"{name}-message", f"A message of the {name}", description, body)


def client_message() -> Schema:
    """Return the JSON Schema of what a client may send."""
    return any_of_side(
        "client",
        "What the server does not answer with `invalid_message`, `invalid_type`, `missing_target` or "
        "`invalid_metadata`. Other keys are ignored; of a repeated key, the last one counts. What a schema cannot "
        f"say: {beyond_schemas()}; `token` and `metadata` are taken if the `features` of `welcome` have `token` and "
        "`metadata-updates`.",
    )


def beyond_schemas() -> str:
    """Return the rules for all messages of a client that no schema can state."""
    return (
        f"a message has at most {Limits().max_message_bytes:,} bytes of UTF-8 by default; arrays and objects are "
        f"nested at most {MAX_DEPTH} deep, the message itself included, or {MAX_DEPTH + 1} deep in a `metadata` message"
    )


def type_name(key: str) -> str:
    """Return the key of a message as the name of a type: ``ClientIceCandidate``."""
    return "".join(part.capitalize() for part in key.split("-"))


def server_message() -> Schema:
    """Return the JSON Schema of what a server sends."""
    return any_of_side(
        "server",
        "What the server sends. Optional keys are left out, never null. A newer server may send other types and "
        "other keys: ignore them.",
    )


def sealed_payload() -> Schema:
    """Return the JSON Schema of a sealed payload."""
    [_], named = schemas([SealedPayload])
    schema = named["SealedPayload"]
    title, description = schema.pop("title"), schema.pop("description")
    return document("sealed-payload", title, description, schema)


def with_refs(schema: Any, named: dict[str, str]) -> Any:
    """Return a schema that refers to the components of the AsyncAPI document."""
    if isinstance(schema, list):
        return [with_refs(each, named) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if set(schema) == {"$ref"}:
        name = schema["$ref"].rpartition("/")[2]
        return {"$ref": f"#/components/schemas/{named.get(name, name)}"}
    return {key: with_refs(value, named) for key, value in schema.items()}


def example(schema: Schema, named: dict[str, Schema]) -> Any:
    """Return an example of a schema, made of those of its parts; None if it has none."""
    match schema:
        case {"$ref": ref}:
            return example(named[ref.rpartition("/")[2]], named)
        case {"const": value} | {"examples": [value, *_]} | {"enum": [value, *_]}:
            return value
        case {"items": items}:
            return [example(items, named)]
        case {"properties": parts}:
            found = {key: example(part, named) for key, part in parts.items()}
            return {key: value for key, value in found.items() if value is not None}
    return None


def query() -> Schema:
    """Return the schema of the query of a join."""
    names, types, _ = zip(*fields(JoinQuery), strict=True)
    return {
        "type": "object",
        "description": first_paragraph(JoinQuery),
        "properties": dict(zip(names, schemas(types)[0], strict=True)),
        "if": {"required": ["resume"]},
        "then": {"required": ["seen"]},
    }


def asyncapi() -> Schema:
    """Return the AsyncAPI document."""
    components: dict[str, Schema] = {"SealedPayload": {**sealed_payload()}}
    for key in ("$schema", "$id"):
        del components["SealedPayload"][key]
    all_messages: dict[str, Schema] = {}
    for name in MESSAGES:
        found, named = side(name)
        components |= {key: with_refs(schema, {}) for key, schema in named.items()}
        for kind, schema in found.items():
            key = f"{name}-{kind}"
            # Generators of code name types by titles. An offer of a client is another type than one of the server.
            components[key] = {**with_refs(schema, {}), "title": type_name(key)}
            all_messages[key] = {
                "name": kind,
                "title": f"{kind} of the {name}",
                "summary": schema["description"],
                **({"description": f"What the schema cannot say: {beyond_schemas()}."} if name == "client" else {}),
                "contentType": "application/json",
                "payload": {"$ref": f"#/components/schemas/{key}"},
                "examples": [{"name": kind, "payload": example(schema, named)}],
            }
    return {
        "asyncapi": "3.0.0",
        "id": "urn:twisted-signaling:wire",
        "info": {
            "title": "twisted-signaling",
            "version": VERSION,
            "description": (
                "Peers join a topic by opening a WebSocket, and have offers, answers and ICE candidates relayed to "
                "one named peer. `receive` and `send` are what the server does: a client sends what the server "
                f"receives. {SITE}/protocol.html is the whole protocol."
            ),
            "contact": {"name": "the twisted-signaling maintainers", "url": REPOSITORY},
            "license": {"name": "MIT", "url": f"{REPOSITORY}/blob/main/LICENSE"},
            "tags": [{"name": "webrtc"}, {"name": "signaling"}],
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {"host": "localhost:8081", "protocol": "ws", "description": "A server on this machine."},
            "public": {
                "host": "{host}",
                "protocol": "wss",
                "description": "A server that the internet reaches, with TLS.",
                "variables": {"host": {"description": "Its name, and its port if that is not 443."}},
            },
        },
        "channels": {"topic": channel(all_messages)},
        "operations": dict(operations()),
        "components": {"schemas": components, "messages": all_messages},
    }


def channel(all_messages: Iterable[str]) -> Schema:
    """Return the channel of a topic."""
    codes = "".join(f"\n| {code.value} | {meaning} |" for code, meaning in CLOSE_MEANINGS.items())
    return {
        "address": "/ws/{topic}",
        "title": "A topic",
        "summary": "One connection is one peer of the topic.",
        "description": (
            "Messages are JSON in UTF-8 text messages of WebSocket (RFC 6455, version 13), without extensions; the "
            f"only subprotocol is `signaling`. The server closes with\n\n| code | when |\n|---|---|{codes}"
        ),
        "parameters": {
            "topic": {
                "description": (
                    f"One segment of the path, percent-encoded: 1 to {Limits().max_topic_bytes} bytes of UTF-8 by "
                    "default when decoded, compared byte for byte."
                ),
                "examples": ["my-room"],
            }
        },
        "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in all_messages},
        "bindings": {
            "ws": {
                "method": "GET",
                "query": query(),
                "headers": {
                    "type": "object",
                    "properties": {
                        "Authorization": {
                            "type": "string",
                            "description": "If access is controlled: `Bearer TOKEN`, unless the token comes elsewhere.",
                        },
                        "Sec-WebSocket-Protocol": {
                            "type": "string",
                            "description": "`signaling`, perhaps with `signaling.bearer.TOKEN`.",
                        },
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
        "x-close-codes": {str(code.value): meaning for code, meaning in CLOSE_MEANINGS.items()},
    }


def operations() -> Iterator[tuple[str, Schema]]:
    """Yield the operations and their names."""
    here = "#/channels/topic"

    def listed(of: Literal["client", "server"], kinds: str) -> list[Schema]:
        return [{"$ref": f"{here}/messages/{of}-{kind}"} for kind in kinds.split()]

    for name, (action, summary, kinds, answers) in OPERATIONS.items():
        operation: Schema = {
            "action": action,
            "channel": {"$ref": here},
            "title": name,
            "summary": summary,
            "messages": listed("client" if action == "receive" else "server", kinds),
        }
        if answers:
            operation["reply"] = {"channel": {"$ref": here}, "messages": listed("server", answers)}
        yield name, operation


FILES = {
    "asyncapi.json": asyncapi,
    "client-message.json": client_message,
    "server-message.json": server_message,
    "sealed-payload.json": sealed_payload,
}


def main(arguments: list[str]) -> None:
    """Write the files, or compare them.

    Raises:
        SystemExit: a file is not up to date (``--check``).
    """
    for name, make in FILES.items():
        path, text = FOLDER / name, json.dumps(make(), indent=1, ensure_ascii=False) + "\n"
        if "--check" not in arguments:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            raise SystemExit(f"{path} is not up to date: run python tools/wire_schema.py")


if __name__ == "__main__":
    main(sys.argv[1:])
