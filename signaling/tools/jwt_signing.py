"""Keys that sign tokens, and the JWKS that verifies them, for ``signaling-token``."""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from signaling.auth.jwt_keys import Key, KeyProblem, public_key, secret_key

_TO_JWK: dict[str, Any] = {
    "HS256": HMACAlgorithm.to_jwk,
    "RS256": RSAAlgorithm.to_jwk,
    "ES256": ECAlgorithm.to_jwk,
    "EdDSA": OKPAlgorithm.to_jwk,
}


def read_signing_key(data: bytes, kid: str | None = None) -> Key:
    """Read a PEM private key or a secret.

    Raises:
        ValueError: it is neither, or the server does not support its kind.
    """
    try:
        if not data.lstrip().startswith(b"-----BEGIN "):
            return secret_key(data.strip(), kid)
        material: Any = load_pem_private_key(data, None)
        return Key(kid, public_key(material.public_key(), kid).algorithm, material)
    except KeyProblem as problem:
        raise ValueError(f"the key: {problem}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("the key: not a PEM private key without a password") from None


def jwks(key: Key) -> dict[str, Any]:
    """Return the JWKS that verifies what ``key`` signs: the public half, or the secret itself."""
    material = key.material if key.algorithm == "HS256" else key.material.public_key()
    jwk = _TO_JWK[key.algorithm](material, as_dict=True)
    # PyJWT adds key_ops; "use" says the same.
    jwk.pop("key_ops", None)
    return {"keys": [{**jwk, "alg": key.algorithm, "use": "sig", **({"kid": key.kid} if key.kid else {})}]}
