"""Certificates for servers on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def self_signed(names: Sequence[str] = ("localhost",)) -> bytes:
    """Make a key and a certificate for localhost, in one PEM file.

    Args:
        names: its subjectAltName, of hosts and addresses; without any it has none, and is for no host.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    # OpenSSL finds a trusted certificate by its whole name, so no two certificates share one.
    distinct = x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, str(x509.random_serial_number()))
    name = x509.Name([distinct, x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    return private + certificate.public_bytes(encoding)


def chained() -> tuple[bytes, bytes, bytes]:
    """Make a certificate for localhost that an intermediate authority has signed.

    Returns:
        The root's certificate, the server's key and certificate, and the intermediate authority's certificate, in PEM.
    """
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} {x509.random_serial_number()}")])
        for name in ("root", "intermediate", "server")
    ]
    now = datetime.now(UTC)
    made = []
    for at, signer in enumerate((0, 0, 1)):
        is_authority = at < len(keys) - 1
        builder = (
            x509.CertificateBuilder(names[signer], names[at], keys[at].public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        made.append(builder.sign(keys[signer], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key = keys[-1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    root, intermediate, server = made
    return root, key + server, intermediate


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
