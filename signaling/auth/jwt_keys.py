"""The keys that verify tokens: read from a file, and again when it changes (docs/access.md).

The kind of a key decides its algorithm, never the header of a token.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from signaling.files import read_file

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
    """Keys cannot be used; the text says why, and never quotes a key."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm that it is for.

    Args:
        kid: its id; None if it has none.
    """

    kid: str | None
    algorithm: str
    material: Any = field(repr=False)


class Keys:
    """The keys of one file.

    Args:
        keys: those that verify tokens.
        left_out: why each of the others does not.

    Raises:
        KeyProblem: if no key is left.
    """

    def __init__(self, keys: Iterable[Key], left_out: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self.left_out = tuple(left_out)
        if not self._keys:
            reasons = "".join(f"; {reason}" for reason in self.left_out)
            raise KeyProblem(f"there is no key for {', '.join(ALGORITHMS)} in it{reasons}")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: object) -> Key | None:
        """Return the key that a token names; every token names a single key without an id."""
        if len(self._keys) == 1 and (kid is None or self._keys[0].kid is None):
            return self._keys[0]
        return next((key for key in self._keys if key.kid is not None and key.kid == kid), None)


def read_keys(data: bytes, algorithm: str | None = None) -> Keys:
    """Read a PEM public key, a JWKS (RFC 7517), or a secret.

    Args:
        data: the file's content.
        algorithm: of all keys; None means that of each key. A secret is read only with ``HS256``, so that no other
            kind of file is taken for one.

    Raises:
        KeyProblem: with the reason why they cannot be used.
    """
    if data.lstrip().startswith(_PEM):
        return Keys([_wanted(_public_key(data), algorithm)])
    if data.lstrip().startswith(b"{"):
        return _read_jwks(data, algorithm)
    if algorithm == "HS256":
        return Keys([secret_key(data.strip())])
    raise KeyProblem("it is neither a PEM public key nor a JWKS; a secret needs alg=HS256")


def _wanted(key: Key, algorithm: str | None) -> Key:
    if algorithm not in (None, key.algorithm):
        raise KeyProblem(f"a key for {key.algorithm}, not for {algorithm}")
    return key


def secret_key(secret: bytes, kid: str | None = None) -> Key:
    """Return the key of a secret.

    Raises:
        KeyProblem: if it is too short, or looks like a public key, which is no secret.
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
    """Return the key of a public key.

    Raises:
        KeyProblem: if its kind or size is not accepted.
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


def _read_jwks(data: bytes, algorithm: str | None) -> Keys:
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, KeyError, RecursionError):
        raise KeyProblem('it is not a JWKS: {"keys": [...]}') from None
    if not isinstance(entries, list):
        raise KeyProblem('it is not a JWKS: "keys" has to be an array of objects')
    keys: dict[int, Key] = {}
    left_out: dict[int, str] = {}
    # RFC 7517, section 5: ignore keys that are not understood. A provider may use them for other purposes.
    for number, entry in enumerate(entries, 1):
        try:
            keys[number] = _wanted(_from_jwk(entry), algorithm)
        except KeyProblem as problem:
            left_out[number] = str(problem)
    ambiguous = _ambiguous(keys)
    usable = [key for number, key in keys.items() if number not in ambiguous]
    reasons = sorted((left_out | ambiguous).items())
    return Keys(usable, [f"key {number}: {reason}" for number, reason in reasons])


def _ambiguous(keys: Mapping[int, Key]) -> dict[int, str]:
    """Return the keys that a token cannot name unambiguously, with the reasons."""
    uses = Counter(key.kid for key in keys.values())
    reasons = {}
    for number, key in keys.items():
        if key.kid is None and len(keys) > 1:
            reasons[number] = "of several keys each needs an id (kid)"
        elif uses[key.kid] > 1:
            reasons[number] = f"two keys have the same id (kid) {(key.kid or '')[:40]!r}"
    return reasons


def _from_jwk(entry: Any) -> Key:
    if not isinstance(entry, dict):
        raise KeyProblem("not an object")
    kid, kind, use, operations = entry.get("kid"), entry.get("kty"), entry.get("use", "sig"), entry.get("key_ops")
    if kid is not None and not isinstance(kid, str):
        raise KeyProblem("its id (kid) is not a string")
    if not isinstance(kind, str) or kind not in _FROM_JWK:
        raise KeyProblem(f"its kind (kty) is none of {', '.join(_FROM_JWK)}")
    if use != "sig":
        raise KeyProblem("its use is not sig")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise KeyProblem("its key_ops do not have verify")
    key = _key_of(kind, entry, kid)
    if entry.get("alg", key.algorithm) != key.algorithm:
        raise KeyProblem(f"a key of kind {kind} is for {key.algorithm}, and its alg says something else")
    return key


def _key_of(kind: str, entry: dict[str, Any], kid: str | None) -> Key:
    try:
        material = _FROM_JWK[kind](entry)
    except Exception:
        # Each kind's parser fails in its own way: PyJWT's errors, cryptography's, TypeError, OverflowError.
        raise KeyProblem("it is broken") from None
    return secret_key(material, kid) if isinstance(material, bytes) else public_key(material, kid)


class KeyFile:
    """The keys of a file, read again when it changes.

    Args:
        path: of the file.
        algorithm: as for ``read_keys``.
        on_read: called with a text after the keys were read again.
        on_problem: called with a text: each time that keys are left out of a file, and once for each reason why the
            file cannot be used any more.
        seconds: a monotonic clock; the file is checked at most once a second.

    Raises:
        KeyProblem: if the file cannot be used now.
    """

    def __init__(
        self,
        path: str,
        algorithm: str | None,
        on_read: Callable[[str], None],
        on_problem: Callable[[str], None],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        # A daemon changes its working directory.
        self._path = Path(path).absolute()
        self._algorithm = algorithm
        self._on_read = on_read
        self._on_problem = on_problem
        self._seconds = seconds
        self._problem = ""
        self._checked_at = seconds()
        self._state = self._stat()
        self._keys = self._read()
        self._report_left_out()

    @property
    def keys(self) -> Keys:
        """The current keys; if the file cannot be used any more, the old ones stay."""
        now = self._seconds()
        if now - self._checked_at >= _CHECK_INTERVAL_SECONDS:
            self._checked_at = now
            self._check()
        return self._keys

    def _check(self) -> None:
        try:
            state = self._stat()
            # A file that could not be used may have been half written, within one tick of its timestamp.
            if state != self._state or self._problem:
                self._keys, self._state = self._read(), state
                self._problem = ""
                self._on_read(f"{self._path.name}: read again; keys: {len(self._keys)}")
                self._report_left_out()
        except KeyProblem as problem:
            if str(problem) != self._problem:
                self._problem = str(problem)
                self._on_problem(f"{self._path.name}: {problem}; the keys from before stay")

    def _report_left_out(self) -> None:
        if self._keys.left_out:
            self._on_problem(f"{self._path.name}: left out: {'; '.join(self._keys.left_out)}")

    def _stat(self) -> tuple[int, ...]:
        try:
            stat = os.stat(self._path)
        except OSError as error:
            raise KeyProblem(str(error.strerror)) from None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> Keys:
        try:
            data = read_file(self._path)
        except OSError as error:
            raise KeyProblem(str(error.strerror)) from None
        return read_keys(data, self._algorithm)
