"""Checks JSON Web Tokens (RFC 7519): the ``jwt`` of ``twistd``'s ``--auth``. Needs the extra ``[jwt]``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import jwt
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.strcred import InvalidAuthArgumentString
from twisted.logger import Logger
from zope.interface import implementer

from signaling.auth.cred import IBearerToken, TokenRefused
from signaling.auth.jwt_keys import ALGORITHMS, Key, KeyFile, KeyProblem
from signaling.core.grants import Grant, grant_from_claims, seconds_of

_OPTION = re.compile(r":(?=[a-z]+=)")
_OPTIONS = ("alg", "audience", "issuer", "leeway")
_MOST_LEEWAY_SECONDS = 300
# How far ahead the issuer's clock may be. A token that is accepted a little early does no harm; one that is accepted
# after its expiry may.
_SKEW_SECONDS = 60
# Their types and times are checked here: PyJWT has one leeway for all of them, and accepts "1" and true as numbers.
_PYJWT_OPTIONS: Any = {
    "require": ["exp"],
    **{f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "sub", "jti")},
}
_log = Logger(namespace="signaling")

# The first one that matches a failure gives the reason.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is by another issuer"),
)
_NO_TOKEN = "the token is not a JSON Web Token that this server accepts"


@implementer(ICredentialsChecker)
class JwtChecker:
    """Checks tokens against the keys of a file; the avatar id is the ``Grant`` of the token's claims.

    Args:
        keys: verify the signatures.
        audience: must be among those of a token; None means that a token must have none.
        issuer: of every token; None means any.
        leeway_seconds: how wrong the issuer's clock may be.
        wall_clock: returns the seconds since 1970.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(
        self,
        keys: KeyFile,
        audience: str | None = None,
        issuer: str | None = None,
        leeway_seconds: float = 0.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._leeway_seconds = leeway_seconds
        self._wall_clock = wall_clock

    def requestAvatarId(self, credentials: Any) -> Any:
        """Return the grant of a token.

        Raises:
            TokenRefused: with the check that failed.
        """
        token = credentials.token
        try:
            return self._grant(self._claims(token, self._key_for(token)))
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"the token has no {error.claim}") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TokenRefused(_reason(error)) from None

    def _key_for(self, token: bytes) -> Key:
        header = jwt.get_unverified_header(token)
        key = self._keys.keys.find(header.get("kid"))
        if key is None:
            raise TokenRefused("the token's key (kid) is not known, or it names none")
        if header.get("alg") != key.algorithm:
            raise TokenRefused("the token's algorithm (alg) is not the one of its key")
        return key

    def _claims(self, token: bytes, key: Key) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
            audience=self._audience,
            issuer=self._issuer,
            options=_PYJWT_OPTIONS,
        )
        return claims

    def _grant(self, claims: dict[str, Any]) -> Grant:
        try:
            grant = grant_from_claims(claims, self._leeway_seconds)
            begins = [moment for name in ("nbf", "iat") if (moment := seconds_of(claims, name)) is not None]
        except ValueError as error:
            raise TokenRefused(f"the token: {error}") from None
        now = self._wall_clock()
        if grant.expires is not None and grant.expires <= now:
            raise TokenRefused("the token has expired")
        if max(begins, default=now) > now + max(_SKEW_SECONDS, self._leeway_seconds):
            raise TokenRefused("the token is not valid yet")
        return grant


def _reason(error: Exception) -> str:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), _NO_TOKEN)


def checker(description: str) -> JwtChecker:
    """Return a checker for the text after ``jwt:`` in ``--auth``.

    Raises:
        InvalidAuthArgumentString: with what is wrong; it quotes no key.
    """
    path, *pairs = _OPTION.split(description)
    if not path:
        raise InvalidAuthArgumentString("a file with keys is needed, for example jwt:keys.json")
    options = dict(pair.split("=", 1) for pair in pairs)
    for name, value in options.items():
        if name not in _OPTIONS or not value:
            raise InvalidAuthArgumentString(f"{name}= is none of {', '.join(_OPTIONS)}, or says nothing")
    if len(options) < len(pairs):
        raise InvalidAuthArgumentString("an option is given twice")
    algorithm = options.get("alg")
    if algorithm not in (None, *ALGORITHMS):
        raise InvalidAuthArgumentString(f"alg={algorithm}: choose one of {', '.join(ALGORITHMS)}")
    leeway_seconds = _leeway(options.get("leeway", "0"))
    try:
        keys = KeyFile(path, algorithm, _log_read, _log_problem)
    except KeyProblem as problem:
        raise InvalidAuthArgumentString(f"{path}: {problem}") from None
    return JwtChecker(keys, options.get("audience"), options.get("issuer"), leeway_seconds)


def _log_read(text: str) -> None:
    _log.info("--auth jwt: {text}", text=text)


def _log_problem(text: str) -> None:
    _log.warn("--auth jwt: {text}", text=text)


def _leeway(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= _MOST_LEEWAY_SECONDS):
        raise InvalidAuthArgumentString(f"leeway: not a whole number of seconds from 0 to {_MOST_LEEWAY_SECONDS}")
    return int(text)
