# SPDX-License-Identifier: Apache-2.0
"""TLS for the KMS: contexts of server and client, and a self-signed certificate for development."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from mikey.errors import KmsError

if TYPE_CHECKING:
    from cryptography import x509


def development_certificate(
    certificate: Path, private_key: Path, *, names: tuple[str, ...], now: float, uri: str | None = None,
    days: int = 30,
) -> None:  # fmt: skip
    """Write a self-signed P-256 certificate for host names and addresses, and its key (mode 0600).

    `uri` in subjectAltName names a user of mutual TLS. For development: nobody vouches for it but whoever hands the
    file on.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (uri or names[0])[:64])])
    start = datetime.datetime.fromtimestamp(now, datetime.UTC)
    alternatives: list[x509.GeneralName] = [_general_name(name) for name in names]
    if uri is not None:
        alternatives.append(x509.UniformResourceIdentifier(uri))
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(minutes=5))
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, octets, mode in (
        (private_key, plain, 0o600), (certificate, built.public_bytes(serialization.Encoding.PEM), 0o644),
    ):  # fmt: skip
        draft = path.with_name(path.name + ".new")
        draft.unlink(missing_ok=True)  # it could be readable by others
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(octets)
        os.replace(draft, path)


def is_loopback(host: str) -> bool:
    """Whether nobody else can listen in between."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def server_context(certificate: Path, private_key: Path, *, client_authority: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later; with `client_authority`, clients may prove themselves with a certificate of it.

    Raises `KmsError` when the files are no pair of certificate and key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, private_key)
        if client_authority is not None:
            context.load_verify_locations(client_authority)
            context.verify_mode = ssl.CERT_OPTIONAL  # bearer tokens go on being good
    except (ssl.SSLError, OSError) as error:
        raise KmsError(f"TLS: {certificate}, {private_key}: {error}") from None
    return context


def client_context(
    authority: Path, *, certificate: Path | None = None, private_key: Path | None = None
) -> ssl.SSLContext:
    """Trusts `authority` alone; `certificate` and `private_key` prove the user. Raises `KmsError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(authority)
        if certificate is not None:
            context.load_cert_chain(certificate, private_key)
    except (ssl.SSLError, OSError) as error:
        raise KmsError(f"TLS: {authority}: {error}") from None
    return context
