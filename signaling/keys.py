"""The keys that verify tokens: read from a file, and read again when that changes (docs/access.md).

What a key is decides its algorithm: nothing that a token says does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWTError
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
LEAST_SECRET_BYTES = 32
LEAST_RSA_BITS = 2048
_CHECK_INTERVAL_SECONDS = 1.0
_PEM = b"-----BEGIN "
_FROM_JWK: dict[Any, Callable[[Any], Any]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
    "oct": HMACAlgorithm.from_jwk,
}


class KeyProblem(Exception):
    """Keys that cannot be used; the text says why, and never quotes a key."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm that it is for.

    Args:
        kid: its id; None where it has none.
    """

    kid: str | None
    algorithm: str
    material: Any = field(repr=False)


class Keys:
    """The keys of one file.

    Args:
        keys: as they were read.

    Raises:
        KeyProblem: where there is none, or a token could mean two of them.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        if not self._keys:
            raise KeyProblem(f"there is no key for {', '.join(ALGORITHMS)} in it")
        if len(self._keys) > 1 and any(key.kid is None for key in self._keys):
            raise KeyProblem("of several keys each needs an id (kid)")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: object) -> Key | None:
        """Return the key that a token names; a single key without an id is meant by every token."""
        if len(self._keys) == 1 and (kid is None or self._keys[0].kid is None):
            return self._keys[0]
        return next((key for key in self._keys if key.kid is not None and key.kid == kid), None)


def read_keys(data: bytes, algorithm: str | None = None) -> Keys:
    """Read a PEM public key, a JWKS (RFC 7517), or a secret.

    Args:
        data: the file's content.
        algorithm: the only one that is wanted; None means any that fits a key. A secret has to be asked for by
            ``HS256``: no other kind of file is then taken for one.

    Raises:
        KeyProblem: saying why they cannot be used.
    """
    if data.lstrip().startswith(_PEM):
        keys = [_public_key(data)]
    elif data.lstrip().startswith(b"{"):
        keys = _read_jwks(data)
    elif algorithm == "HS256":
        keys = [secret_key(data.strip())]
    else:
        raise KeyProblem("it is neither a PEM public key nor a JWKS; a secret needs alg=HS256")
    if algorithm is not None:
        _refuse_all_others(keys, algorithm)
    return Keys(keys)


def _refuse_all_others(keys: list[Key], algorithm: str) -> None:
    others = sorted({key.algorithm for key in keys} - {algorithm})
    if others:
        raise KeyProblem(f"a key in it is for {' and '.join(others)}, not for {algorithm}")


def secret_key(secret: bytes, kid: str | None = None) -> Key:
    """Make a key of a secret.

    Raises:
        KeyProblem: where it is too short, or looks like a public key: that would be a secret which everybody knows.
    """
    if len(secret) < LEAST_SECRET_BYTES:
        raise KeyProblem(f"a secret needs at least {LEAST_SECRET_BYTES} bytes, and this one has {len(secret)}")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except PyJWTError:
        raise KeyProblem("it is no secret: it looks like a key of another kind") from None
    return Key(kid, "HS256", secret)


def _public_key(data: bytes) -> Key:
    if b"PRIVATE KEY" in data:
        raise KeyProblem("it is a private key; a server needs only the public one (openssl pkey -pubout)")
    try:
        return public_key(load_pem_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyProblem("it is not a PEM public key (openssl pkey -pubout makes one)") from None


def public_key(material: Any, kid: str | None = None) -> Key:
    """Make a key of a public one.

    Raises:
        KeyProblem: where it is of a kind or size that is not taken.
    """
    if isinstance(material, RSAPublicKey):
        if material.key_size < LEAST_RSA_BITS:
            raise KeyProblem(f"an RSA key needs at least {LEAST_RSA_BITS} bits, and this one has {material.key_size}")
        return Key(kid, "RS256", material)
    if isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        return Key(kid, "ES256", material)
    if isinstance(material, Ed25519PublicKey):
        return Key(kid, "EdDSA", material)
    if isinstance(material, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise KeyProblem("it holds a private key; a server needs only the public one")
    raise KeyProblem("a key is neither RSA (RS256), nor P-256 (ES256), nor Ed25519 (EdDSA)")


def _read_jwks(data: bytes) -> list[Key]:
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, KeyError, RecursionError):
        raise KeyProblem('it is not a JWKS: {"keys": [...]}') from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise KeyProblem('it is not a JWKS: "keys" has to be an array of objects')
    entries = [entry for entry in entries if entry.get("use", "sig") == "sig"]
    _refuse_reused_ids(entries)
    return [_from_jwk(entry) for entry in entries if _is_known(entry)]


def _refuse_reused_ids(entries: list[dict[str, Any]]) -> None:
    kids = [entry["kid"] for entry in entries if "kid" in entry]
    for kid in kids:
        if not isinstance(kid, str):
            raise KeyProblem("a key's id (kid) is not a string")
        if kids.count(kid) > 1:
            raise KeyProblem(f"two keys have the same id (kid) {kid[:40]!r}")


def _is_known(entry: Mapping[str, Any]) -> bool:
    # RFC 7517, section 5: what is not understood is left alone; a provider may sign other things with it.
    return entry.get("kty") in _FROM_JWK and entry.get("alg", "HS256") in ALGORITHMS


def _from_jwk(entry: dict[str, Any]) -> Key:
    kid = entry.get("kid")
    try:
        material = _FROM_JWK[entry["kty"]](entry)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        raise KeyProblem("a key in it is broken") from None
    key = secret_key(material, kid) if isinstance(material, bytes) else public_key(material, kid)
    if entry.get("alg", key.algorithm) != key.algorithm:
        raise KeyProblem(f"a key of kind {entry['kty']} is for {key.algorithm}, and its alg says something else")
    return key


class KeyFile:
    """The keys of a file, read again when it changes.

    Args:
        path: of the file.
        algorithm: as for ``read_keys``.
        on_read: hears of keys that were read again.
        on_problem: hears of a file that cannot be used any more, once for each reason.
        seconds: tells the time; the file is looked at once a second at the most.

    Raises:
        KeyProblem: where the file cannot be used now.
    """

    def __init__(
        self,
        path: str,
        algorithm: str | None,
        on_read: Callable[[str], None],
        on_problem: Callable[[str], None],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        # A daemon changes its folder.
        self._path = Path(path).absolute()
        self._algorithm = algorithm
        self._on_read = on_read
        self._on_problem = on_problem
        self._seconds = seconds
        self._problem = ""
        self._looked_at = seconds()
        self._state = self._stat()
        self._keys = self._read()

    @property
    def keys(self) -> Keys:
        """The keys that count now; a file that cannot be used leaves the old ones as they are."""
        now = self._seconds()
        if now - self._looked_at >= _CHECK_INTERVAL_SECONDS:
            self._looked_at = now
            self._look()
        return self._keys

    def _look(self) -> None:
        try:
            state = self._stat()
            # What could not be read may have been half written, within one tick of the file's clock.
            if state != self._state or self._problem:
                self._keys, self._state = self._read(), state
                self._problem = ""
                self._on_read(f"{self._path.name}: read again; keys: {len(self._keys)}")
        except KeyProblem as problem:
            if str(problem) != self._problem:
                self._problem = str(problem)
                self._on_problem(f"{self._path.name}: {problem}; the keys from before stay")

    def _stat(self) -> tuple[int, ...]:
        try:
            stat = os.stat(self._path)
        except OSError as error:
            raise KeyProblem(str(error.strerror)) from None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> Keys:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise KeyProblem(str(error.strerror)) from None
        return read_keys(data, self._algorithm)
