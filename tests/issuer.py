"""Somebody who mints tokens: keys of every kind, and what a server is given to verify with them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from twisted.cred.portal import Portal
from twisted.cred.strcred import makeChecker

from signaling import GrantRealm
from signaling.auth.jwt_keys import Key
from signaling.tools.jwt_signing import jwks

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
SECRET = b"a secret of thirty-two bytes, or more"


@cache
def material(algorithm: str, number: int = 0) -> Any:
    """Return what signs; another number is another key."""
    if algorithm == "HS256":
        return SECRET + b"%d" % number
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


# One moment for all: a session without a subject belongs to the very token that it was opened with.
_EXPIRES = int(time.time()) + 3600


def public_pem(algorithm: str) -> bytes:
    """Return the public half of a key."""
    return material(algorithm, 0).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(algorithm: str) -> bytes:
    """Return a private key."""
    return material(algorithm, 0).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(algorithm: str, kid: str | None = None, number: int = 0) -> dict[str, Any]:
    """Return what verifies, as a JWKS has it."""
    [entry] = jwks(Key(kid, algorithm, material(algorithm, number)))["keys"]
    return dict(entry)


def key_set(*entries: dict[str, Any]) -> bytes:
    """Write a JWKS; without entries, one of a key of every kind with its algorithm as id."""
    return json.dumps({"keys": list(entries) or [jwk(algorithm, algorithm) for algorithm in ALGORITHMS]}).encode()


def key_file(folder: Path) -> Path:
    """Write the key that verifies ``token`` to a file, for ``--auth jwt:``."""
    path = folder / "keys.json"
    path.write_bytes(key_set(jwk("EdDSA", "EdDSA")))
    return path


def token(
    own: Mapping[str, Any] | None = None,
    algorithm: str = "EdDSA",
    *,
    kid: str | None = "",
    number: int = 0,
    headers: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Mint a token, good for an hour and for the topic ``room``, where nothing else is said.

    Args:
        own: the claim ``signaling``.
        kid: of the key; by default its algorithm.
        number: of the key that signs.
        headers: besides.
    """
    named = {} if kid is None else {"kid": kid or algorithm}
    values = {"exp": _EXPIRES, "signaling": {"topics": ["room"]} if own is None else own} | claims
    values = {name: value for name, value in values.items() if value is not None}
    return jwt.encode(values, material(algorithm, number), algorithm=algorithm, headers={**named, **(headers or {})})


def segment(value: Any) -> str:
    """Write one part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def portal(folder: Path, options: str = "", content: bytes | None = None) -> Portal:
    """Make what ``--auth jwt:`` makes."""
    path = folder / "keys.json"
    path.write_bytes(key_set() if content is None else content)
    return Portal(GrantRealm(), [makeChecker(f"jwt:{path}{options}")])
