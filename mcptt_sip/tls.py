# SPDX-License-Identifier: Apache-2.0
"""TLS for SIP: certificates by server name (RFC 6066 3), mutual authentication, reloading, key logs; RFC 5922 names.

::

    tls = ServerTls([TlsIdentity("sip.pem", "sip.key")], client_authorities="staff-ca.pem")
    settings = TransportSettings(tls_server=tls.context)
    ...
    tls.reload()          # new connections see the new files; old ones go on

``SSLKEYLOGFILE`` in the environment names a file to which the secrets of each connection are appended, for
Wireshark. Whoever has that file can read the SIP messages (no media key is in it).

:RFC 5922: partly; SIP URIs of a certificate are read; connections are checked by DNS name or address
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ServerTls", "TlsIdentity", "client_context", "peer_names"]


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A certificate chain and its private key, in PEM files. `names` are the server names (SNI) it is shown for; the
    first identity of a server is also shown to peers that name none, or one that nobody has."""

    certificate: Path | str
    key: Path | str
    names: tuple[str, ...] = ()


class ServerTls:
    """The server's side. `context` stays the same object over every `reload`.

    :param client_authorities: who signs the certificates of peers; with it, peers are asked for theirs
    :param require_client: whether a peer without one is turned away
    """

    def __init__(
        self,
        identities: Sequence[TlsIdentity],
        *,
        client_authorities: Path | str | None = None,
        require_client: bool = True,
    ) -> None:
        if not identities:
            raise ValueError("a TLS server needs a certificate")
        self._identities = tuple(identities)
        self._authorities = client_authorities
        self._require = require_client
        self._by_name, self._default = self._load()
        self.context = self._made(self._identities[0])
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Reads every file again. Raises OSError or ssl.SSLError, and changes nothing then."""
        self._by_name, self._default = self._load()

    def _load(self) -> tuple[dict[str, ssl.SSLContext], ssl.SSLContext]:
        made = [self._made(identity) for identity in self._identities]
        by_name = {
            name.lower().rstrip("."): context
            for identity, context in zip(self._identities, made, strict=True)
            for name in identity.names
        }
        return by_name, made[0]

    def _made(self, identity: TlsIdentity) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(identity.certificate, identity.key)
        if self._authorities is not None:
            context.load_verify_locations(self._authorities)
            context.verify_mode = ssl.CERT_REQUIRED if self._require else ssl.CERT_OPTIONAL
        _log_keys(context)
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        # asked for every connection, named or not: the newest certificate is shown
        connection.context = self._by_name.get((name or "").lower().rstrip("."), self._default)


def client_context(
    authorities: Path | str | None = None, *, identity: TlsIdentity | None = None
) -> ssl.SSLContext:
    """The client's side: whom to trust (the host's authorities when ``None``), and the own certificate for servers
    that ask for one. The server's certificate must be of the name it was called by."""
    context = ssl.create_default_context(cafile=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    _log_keys(context)
    return context


def _log_keys(context: ssl.SSLContext) -> None:
    if path := os.environ.get("SSLKEYLOGFILE"):
        context.keylog_filename = path


def peer_names(certificate: dict[str, Any] | None) -> tuple[str, ...]:
    """The SIP domains that a checked certificate is for (RFC 5922 7.1): its SIP URIs, without them its DNS names.

    `certificate` is what ``ssl.SSLObject.getpeercert()`` gives.
    """
    alternatives = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in alternatives if kind == "URI"]
    domains = [uri[4:].lower() for uri in uris if uri[:4].lower() == "sip:" and "@" not in uri]
    if domains:
        return tuple(domains)
    return tuple(value.lower() for kind, value in alternatives if kind == "DNS")
