"""Which server to trust over TLS: one whose certificate names its host in a subjectAltName.

Twisted's own check does not do: Twisted 26.10.0 with service-identity 26.1.0 logs the ``CertificateError`` that a
certificate without a subjectAltName raises, and then accepts that certificate for any host. (Twisted 24.7.0 with
service-identity 23.1.0 or 26.1.0 refuses it; with 21.1.0 it accepts it if its common name is that of the host.)
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer


class Untrusted(Exception):
    """The server's certificate is not for its host."""


def strict_options(host: str, **options: Any) -> IOpenSSLClientConnectionCreator:
    """Return how to connect to a host, as ``optionsForClientTLS`` of Twisted does, which takes the options."""
    return _Strict(optionsForClientTLS(host, **options), host)


@implementer(IOpenSSLClientConnectionCreator)
class _Strict:
    """Twisted's options with a check of the certificate's subjectAltName in place of Twisted's own."""

    def __init__(self, options: Any, host: str) -> None:
        self._options = options
        self._host = host
        self._id = _service(host)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Any:
        """Return a connection that checks the server's certificate."""
        connection = self._options.clientConnectionForTLS(tlsProtocol)

        def verified(_: Any, certificate: Any, error: int, depth: int, chains: int) -> bool:
            # OpenSSL ignores what is raised here, and would go on.
            if depth == 0 and chains and not self._is_for_host(certificate):
                reason = Untrusted(f"its certificate is not for {self._host}, by any subjectAltName")
                tlsProtocol.failVerification(Failure(reason))
                return False
            return bool(chains)

        connection.set_verify(VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, verified)
        return connection

    def _is_for_host(self, certificate: Any) -> bool:
        try:
            verify_service_identity(extract_patterns(certificate), [self._id], [])
        except (CertificateError, VerificationError, ValueError):
            return False
        return True


def _service(host: str) -> DNS_ID | IPAddress_ID:
    try:
        ip_address(host)
    except ValueError:
        return DNS_ID(host)
    return IPAddress_ID(host)
