"""``signaling-token``: mints tokens for trying access control. Needs the extra ``jwt``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signaling.core.grants import CLAIM, grant_from_claims
from signaling.standard_output import print_line

_MISSING = "signaling-token: PyJWT and cryptography are needed: pip install 'twisted-signaling[jwt]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a token, or the keys that verify it.

    Raises:
        SystemExit: something is wrong, with one line that says what.
    """
    given = _parser().parse_args(arguments)
    try:
        import jwt  # noqa: PLC0415

        from signaling.tools.jwt_signing import jwks, read_signing_key  # noqa: PLC0415
    except ModuleNotFoundError:
        raise SystemExit(_MISSING) from None
    try:
        key = read_signing_key(Path(given.key).read_bytes(), given.kid)
        claims = _claims(given)
        grant_from_claims(claims)
    except OSError as error:
        raise SystemExit(f"signaling-token: {given.key}: {error.strerror}") from None
    except ValueError as error:
        raise SystemExit(f"signaling-token: {error}") from None
    if given.jwks:
        print_line(json.dumps(jwks(key), indent=2))
        return
    headers = None if key.kid is None else {"kid": key.kid}
    print_line(jwt.encode(claims, key.material, algorithm=key.algorithm, headers=headers))
    if not given.topic and not given.prefix:
        print("signaling-token: the token allows no topic; see --topic and --prefix", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="signaling-token", description="Mint a token for trying access control.")
    parser.add_argument("--key", required=True, help="file with a PEM private key or a secret")
    parser.add_argument("--kid", help="the key's id, as in the server's JWKS")
    parser.add_argument("--topic", action="append", default=[], help="topic that it allows; repeatable")
    parser.add_argument(
        "--prefix", action="append", default=[], help="allowed start of topics; repeatable, '' means all"
    )
    parser.add_argument("--receive-only", action="store_true", help="do not allow sending")
    parser.add_argument("--metadata", type=_object, help="JSON object that replaces the client's own metadata")
    parser.add_argument("--max-peers", type=int, help="join a topic only if it has fewer peers")
    parser.add_argument("--message-rate", type=float, help="the most messages a second")
    parser.add_argument("--subject", help="the owner (sub); only tokens of one owner renew each other")
    parser.add_argument("--audience", help="the audience (aud)")
    parser.add_argument("--issuer", help="the issuer (iss)")
    parser.add_argument("--seconds", type=int, default=3600, help="lifetime in seconds [default: 3600]")
    parser.add_argument("--jwks", action="store_true", help="print the JWKS that verifies its tokens instead")
    return parser


def _object(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object, for example {"name":"Ada"}')
    return value


def _claims(given: argparse.Namespace) -> dict[str, Any]:
    own = {"topics": given.topic, "prefixes": given.prefix, "metadata": given.metadata}
    own |= {"maxPeers": given.max_peers, "messageRate": given.message_rate}
    own |= {"send": False} if given.receive_only else {}
    now = int(time.time())
    claims = {
        "iat": now,
        "exp": now + given.seconds,
        "sub": given.subject,
        "aud": given.audience,
        "iss": given.issuer,
        CLAIM: {key: value for key, value in own.items() if value not in (None, [])},
    }
    return {name: value for name, value in claims.items() if value is not None}
