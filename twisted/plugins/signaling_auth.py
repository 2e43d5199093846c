"""The plugin for ``twistd``'s ``--auth jwt:``: checks JSON Web Tokens."""

from __future__ import annotations

from typing import Any

from twisted.cred.strcred import ICheckerFactory, InvalidAuthArgumentString
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(ICheckerFactory, IPlugin)
class JwtCheckerFactory:
    """Makes checkers of JSON Web Tokens. Imports late: every application that looks for checkers loads this plugin."""

    authType = "jwt"
    argStringFormat = "FILE[:alg=HS256|RS256|ES256|EdDSA][:audience=TEXT][:issuer=TEXT][:leeway=SECONDS]"
    authHelp = """
Checks JSON Web Tokens, signed with HS256, RS256, ES256 or EdDSA.

FILE is a PEM public key, a JWKS, or a secret of at least 32 bytes, which
needs alg=HS256. It is read again when it changes. A token needs exp, and
its claim "signaling" says what it allows: docs/tokens.md.

Needs PyJWT: pip install 'twisted-signaling[jwt]'
"""

    @property
    def credentialInterfaces(self) -> tuple[Any, ...]:
        """The credentials that the checkers support."""
        from signaling.auth.cred import IBearerToken  # noqa: PLC0415

        return (IBearerToken,)

    def generateChecker(self, argstring: str) -> Any:
        """Make a checker from the argument of ``--auth jwt:``.

        Raises:
            InvalidAuthArgumentString: one line that says what is wrong.
        """
        try:
            from signaling.auth.jwt_checker import checker  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("jwt", "cryptography"):
                raise
            needed = "PyJWT and cryptography are needed: pip install 'twisted-signaling[jwt]'"
            raise InvalidAuthArgumentString(needed) from None
        return checker(argstring)


jwt = JwtCheckerFactory()
