"""How a Redis server and this one trust each other over TLS, by the files that a URL names."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates

from signaling.backplane.redis.url import StoreUrl
from signaling.files import read_file
from signaling.server_identity import strict_options

_END = b"-----END CERTIFICATE-----"


def client_options(url: StoreUrl, host: str) -> IOpenSSLClientConnectionCreator:
    """Read the files that the URL names, and return how to connect to ``host``.

    Raises:
        ValueError: naming the file that is not what it should be.
    """
    roots = trustRootFromCertificates(_certificates(url.ca)) if url.ca else None
    own = _own_certificate(url) if url.cert else None
    return strict_options(host, trustRoot=roots, clientCertificate=own)


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
        return read_file(path)
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from None
