"""Access control by ``twisted.cred``: the credential of a request becomes a grant, or is refused."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from hmac import compare_digest
from typing import Any, NoReturn

from twisted.cred.credentials import ICredentials, IUsernamePassword, UsernamePassword
from twisted.cred.error import LoginFailed, UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, classImplements, implementer

from signaling.core.grants import Bearer, Credential, Grant, Password, session_owner
from signaling.core.join_request import JoinRequest
from signaling.errors import Refused
from signaling.web.credentials import presented
from signaling.websocket.request_head import HeaderValues

Logout = Callable[[], None]
_BEARER = 'Bearer realm="signaling"'
_BASIC = 'Basic realm="signaling", charset="UTF-8"'


class IBearerToken(ICredentials):
    """A bearer token (RFC 6750)."""

    token: bytes = Attribute("The token as received, in ASCII and not checked.")


class IGrant(Interface):
    """The interface that a realm is asked for; its avatars are ``Grant`` objects."""


classImplements(Grant, IGrant)


@implementer(IBearerToken)
class BearerToken:
    """A token that a client presented."""

    def __init__(self, token: bytes) -> None:
        self.token = token


class _NameAndPassword(UsernamePassword):
    """A name and a password that a client presented."""

    def checkPassword(self, password: Any) -> bool:
        """Compare with the right password in constant time."""
        return isinstance(password, bytes) and compare_digest(self.password, password)


class TokenRefused(UnauthorizedLogin):
    """A token is not accepted; the text is for a person, and never quotes the token."""


@implementer(IRealm)
class GrantRealm:
    """A realm for checkers that decide what is granted.

    A checker of tokens returns a ``Grant`` as its avatar id. A name from any other checker may do everything.
    """

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> tuple[Any, Any, Logout]:
        """Return the grant of an avatar id."""
        if IGrant not in interfaces:
            raise NotImplementedError("this realm knows grants only")
        if isinstance(avatarId, Grant):
            return IGrant, avatarId, _nothing
        return IGrant, Grant(prefixes=("",), subject=_name(avatarId)), _nothing


def _name(avatar_id: Any) -> str | None:
    try:
        return avatar_id.decode() if isinstance(avatar_id, bytes) else str(avatar_id)
    except UnicodeDecodeError:
        # Two names must not become one; their credentials keep them apart.
        return None


def _nothing() -> None:
    """No-op: a logout needs nothing."""


def forbidden() -> Refused:
    """Return the error for a topic that the grant does not cover."""
    headers = {b"WWW-Authenticate": f'{_BEARER}, error="insufficient_scope"'.encode()}
    return Refused(403, "the token does not cover this topic", headers)


def granted(request: JoinRequest, grant: Grant) -> JoinRequest:
    """Return a request to join with what its client was granted.

    Raises:
        Refused: 403 if the grant does not cover the topic.
    """
    if not grant.covers(request.topic):
        raise forbidden()
    owner = session_owner(request.credential, grant) if request.credential is not None else None
    return replace(request, metadata=grant.peer_metadata(request.metadata), credential=None, grant=grant, owner=owner)


class Access:
    """Logs clients in at a portal.

    Args:
        portal: its realm is asked for an ``IGrant``; its checkers accept ``IBearerToken``, ``IUsernamePassword`` or
            both.
        on_failure: called when the portal fails, with the kind and the place of the exception.

    Attributes:
        portal: another one counts for new logins.
    """

    def __init__(self, portal: Portal, on_failure: Callable[[str], None]) -> None:
        self.portal = portal
        self._on_failure = on_failure

    def presented(self, values: HeaderValues, query: bytes) -> Credential | None:
        """Return the credential of a request; None if it has none.

        Raises:
            Refused: 400.
        """
        return presented(values, query, passwords=self._takes(IUsernamePassword))

    def login(self, credential: Credential | None) -> Deferred[tuple[Any, Grant, Logout]]:
        """Log a client in.

        Returns:
            Fires with the interface, the grant and the function to call at the end; fails with ``Refused``: 401, 500 if
            the portal failed, or 503 if the login was cancelled.
        """
        login: Deferred[Any] = maybeDeferred(self._ask, credential)
        return login.addErrback(self._refuse, credential)

    def _ask(self, credential: Credential | None) -> Deferred[Any]:
        if credential is None:
            raise TokenRefused("a token is needed")
        return self.portal.login(_credentials(credential), None, IGrant).addCallback(_checked)

    def _refuse(self, failure: Failure, credential: Credential | None) -> NoReturn:
        if failure.check(CancelledError):
            raise Refused(503, "the login took too long", {b"Retry-After": b"1"}) from None
        if failure.check(LoginFailed) is None:
            self._on_failure(_kind_and_place(failure))
            raise Refused(500, "the login failed; the server's log says more") from None
        reason = str(failure.value) if failure.check(TokenRefused) else "this name, password or token is not right"
        raise Refused(401, reason, {b"WWW-Authenticate": self._challenge(credential).encode()}) from None

    def _challenge(self, credential: Credential | None) -> str:
        invalid = ', error="invalid_token"' if isinstance(credential, Bearer) else ""
        challenges = [f"{_BEARER}{invalid}"] if self._takes(IBearerToken) else []
        return ", ".join([*challenges, _BASIC] if self._takes(IUsernamePassword) else challenges)

    def _takes(self, interface: type[Interface]) -> bool:
        return interface in self.portal.listCredentialsInterfaces()


def _kind_and_place(failure: Failure) -> str:
    # Not its text, which may quote the credential.
    frames = traceback.extract_tb(failure.getTracebackObject())
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    return f"{type(failure.value).__name__} at {where}"


def _credentials(credential: Credential) -> ICredentials:
    if isinstance(credential, Password):
        return _NameAndPassword(credential.username, credential.password)
    return BearerToken(credential.token)


def _checked(login: tuple[Any, Any, Logout]) -> tuple[Any, Any, Logout]:
    if not isinstance(login[1], Grant):
        login[2]()
        raise TypeError("the realm's avatar is not a Grant")
    return login
