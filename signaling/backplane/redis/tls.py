"""Which Redis server to trust over TLS: one whose certificate names its host in a subjectAltName.

Twisted's own check does not do: Twisted 26.10.0 with service-identity 26.1.0 logs the ``CertificateError`` that a
certificate without a subjectAltName raises, and then accepts that certificate for any host. (Twisted 24.7.0 with
service-identity 23.1.0 or 26.1.0 refuses it; with 21.1.0 it accepts it if its common name is that of the host.)
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import implementer

from signaling.backplane.redis.url import StoreUrl

_END = b"-----END CERTIFICATE-----"


class Untrusted(Exception):
    """The server's certificate is not for its host."""


def client_options(url: StoreUrl, host: str) -> IOpenSSLClientConnectionCreator:
    """Read the files that the URL names, and return how to connect to ``host``.

    Raises:
        ValueError: naming the file that is not what it should be.
    """
    roots = trustRootFromCertificates(_certificates(url.ca)) if url.ca else None
    own = _own_certificate(url) if url.cert else None
    return _Strict(optionsForClientTLS(host, trustRoot=roots, clientCertificate=own), host)


def _certificates(path: str) -> list[Any]:
    texts = _read("ca=", path).split(_END)[:-1]
    try:
        certificates = [Certificate.loadPEM(text + _END) for text in texts]
    except Exception:
        certificates = []
    if not certificates:
        raise ValueError(f"ca=: {path}: there are no certificates in PEM in it")
    return certificates


def _own_certificate(url: StoreUrl) -> Any:
    text = _read("cert=", url.cert) + b"\n" + _read("key=", url.key)
    try:
        return PrivateCertificate.loadPEM(text)
    except Exception:
        raise ValueError(f"cert=: {url.cert}: it is no certificate in PEM with the key in key=") from None


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from None


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
