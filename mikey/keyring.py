# SPDX-License-Identifier: Apache-2.0
"""Whose word counts: KMS certificates with the domains they answer for, and one's own key sets.

Security rule 4: a KMS counts only for the domains of its KmsDomainList, the own domain belongs to the home
KMS alone, and a certificate counts only unrevoked and within its dates. Sealing asks the same questions as
opening.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mikey import eccsi
from mikey.errors import BadSignature, CertificateInvalid, KmsNotForDomain, NoKeyForPeriod, UnknownKms
from mikey.identity import domain_of
from mikey.keys import KeySet, KmsCertificate

PERIOD_GRACE = 48 * 3600.0
"""Default seconds around a period boundary in which the neighbouring period's identities are good."""

ANY_DOMAIN = "*"


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as one KMS sees him in one key period."""

    uri: str
    uid: bytes
    period_no: int
    certificate: KmsCertificate


@dataclass(frozen=True, slots=True)
class _Trusted:
    certificate: KmsCertificate
    domains: frozenset[str]
    home: bool


class Keyring:
    """Certificates and key sets of one program.

    `max_certificates` and `max_key_sets` bound memory; adding more raises `CertificateInvalid` or drops the
    oldest period of that user.
    """

    def __init__(self, *, max_certificates: int = 256, max_periods_per_user: int = 32) -> None:
        self._trusted: list[_Trusted] = []
        self._key_sets: dict[str, list[KeySet]] = {}
        self._max_certificates = max_certificates
        self._max_periods = max_periods_per_user

    # -- certificates ---------------------------------------------------------------------------------------

    def add_certificate(
        self, certificate: KmsCertificate, *, home: bool | None = None, domains: Iterable[str] | None = None
    ) -> None:
        """Trust a certificate that was obtained over an authenticated way.

        `home` defaults to Role Root. `domains` replaces the KmsDomainList where the certificate has none (or
        to narrow it); an entry may be a whole user URI, and "*" means every domain that no other certificate
        claims and is meant for tools and tests. A partner's claim on a domain of the home KMS is ignored,
        and a partner without domains counts for none.
        """
        home = certificate.role == "Root" if home is None else home
        names = frozenset(
            d if ":" in d.rstrip(":") or "@" in d else d.lower()
            for d in (certificate.domains if domains is None else domains)
        )
        self._trusted = [t for t in self._trusted if not t.certificate.same_keys(certificate)]
        if len(self._trusted) >= self._max_certificates:
            raise CertificateInvalid(f"more than {self._max_certificates} KMS certificates")
        self._trusted.append(_Trusted(certificate, names, home))
        for sets in self._key_sets.values():  # what is revoked or has an end now is so for one's own keys too
            sets[:] = [
                k.under(certificate) if k.certificate != certificate and k.certificate.same_keys(certificate) else k
                for k in sets
            ]

    def drop_certificate(self, certificate: KmsCertificate) -> None:
        """Trust a certificate no more."""
        self._trusted = [t for t in self._trusted if not t.certificate.same_keys(certificate)]

    @property
    def certificates(self) -> tuple[KmsCertificate, ...]:
        """All certificates held."""
        return tuple(t.certificate for t in self._trusted)

    def _authorities(self, uri: str) -> list[KmsCertificate]:
        domain = domain_of(uri)
        home = [t for t in self._trusted if t.home and (domain in t.domains or uri in t.domains)]
        if not home:  # a home certificate without a list answers for the domains of one's own key sets
            home = [t for t in self._trusted if t.home and not t.domains and domain in self._own_domains()]
        named = home or [t for t in self._trusted if not t.home and (domain in t.domains or uri in t.domains)]
        return [t.certificate for t in named or [t for t in self._trusted if ANY_DOMAIN in t.domains]]

    def _own_domains(self) -> set[str]:
        return {domain_of(uri) for uri in self._key_sets}

    def authorities(self, uri: str, kms_uri: str | None = None) -> list[KmsCertificate]:
        """Certificates that may speak for `uri`, optionally only those of the KMS `kms_uri`.

        Raises `UnknownKms` (nothing held, or no such KMS) or `KmsNotForDomain` (held, but not for this
        domain).
        """
        known = self._authorities(uri)
        if kms_uri is not None:
            chosen = [c for c in known if c.kms_uri == kms_uri]
            if not chosen and any(t.certificate.kms_uri == kms_uri for t in self._trusted):
                raise KmsNotForDomain(f"{kms_uri} does not answer for {domain_of(uri)}")
            known = chosen
        if not known:
            raise UnknownKms(f"no KMS certificate for {domain_of(uri)}" if kms_uri is None else kms_uri)
        return known

    def certificate_for(self, uri: str, at: float) -> KmsCertificate:
        """The certificate under which `uri` is addressed at the Unix time `at`.

        Raises `UnknownKms`, or `CertificateInvalid` when those held are revoked or out of date.
        """
        failure: CertificateInvalid | None = None
        for certificate in self.authorities(uri):
            try:
                certificate.check(at)
            except CertificateInvalid as error:
                failure = error
            else:
                return certificate
        assert failure is not None
        raise failure

    def identities(
        self, uri: str, at: float, *, kms_uri: str | None = None, grace: float = PERIOD_GRACE
    ) -> list[Identity]:
        """The identities that `uri` may have in a message of time `at` (security rule 9), likeliest first.

        The period of `at`, and a neighbour within `grace` seconds of the boundary, each under a certificate
        that is valid at the instant of that period nearest to `at`.
        """
        out: list[Identity] = []
        failure: CertificateInvalid | None = None
        for certificate in self.authorities(uri, kms_uri):
            periods = certificate.periods
            for number in periods.allowed(at, grace):
                try:
                    certificate.check(periods.nearest(at, number))
                except CertificateInvalid as error:
                    failure = error
                else:
                    out.append(Identity(uri, certificate.uid(uri, number), number, certificate))
        if not out:
            assert failure is not None
            raise failure
        out.sort(key=lambda i: i.period_no != i.certificate.periods.number(at))
        return out

    # -- own key sets ---------------------------------------------------------------------------------------

    def add_key_set(self, key_set: KeySet) -> None:
        """Hold a key set (validated by whoever fetched it). An equal (KMS, period) is replaced."""
        sets = self._key_sets.setdefault(key_set.uri, [])
        sets[:] = [
            k
            for k in sets
            if (k.kms_uri, k.period_no, k.certificate.pub_enc_key)
            != (key_set.kms_uri, key_set.period_no, key_set.certificate.pub_enc_key)
        ]
        sets.append(key_set)
        sets.sort(key=lambda k: k.valid_from)
        del sets[: -self._max_periods]

    def drop_key_sets(self, before: float) -> int:
        """Forget key sets whose period ended before the Unix time; how many were dropped."""
        dropped = 0
        for uri in list(self._key_sets):
            kept = [k for k in self._key_sets[uri] if k.valid_to > before]
            dropped += len(self._key_sets[uri]) - len(kept)
            self._key_sets[uri] = kept
        return dropped

    def __iter__(self) -> Iterator[KeySet]:
        for sets in self._key_sets.values():
            yield from sets

    def key_sets(self, uri: str) -> tuple[KeySet, ...]:
        """All key sets of one's identity `uri`, oldest first."""
        return tuple(self._key_sets.get(uri, ()))

    def key_set_for(self, uri: str, at: float) -> KeySet:
        """The key set with which `uri` signs at the Unix time `at`. Raises `NoKeyForPeriod`."""
        found: KeySet | None = None
        for key_set in self._key_sets.get(uri, ()):
            if key_set.valid_from <= at < key_set.valid_to:
                found = key_set
                try:
                    key_set.certificate.check(at)
                except CertificateInvalid:
                    continue
                return key_set
        if found is not None:
            found.certificate.check(at)
        raise NoKeyForPeriod(f"no key set of {uri} for that time")

    def key_sets_matching(self, uri: str, uids: Iterable[bytes]) -> list[KeySet]:
        """Held key sets of `uri` with one of these UIDs, in the order of `uids`."""
        held = self._key_sets.get(uri, ())
        return [k for u in uids for k in held if k.uid == u]

    # -- signatures beside I_MESSAGEs -----------------------------------------------------------------------

    def verify_signature(
        self, octets: bytes, signature: bytes, signer_uri: str, at: float, *, grace: float = PERIOD_GRACE
    ) -> Identity:
        """Check an ECCSI signature of `signer_uri` made about the Unix time `at`.

        Returns the identity that signed; raises `BadSignature` or what `identities` raises.
        """
        for identity in self.identities(signer_uri, at, grace=grace):
            try:
                eccsi.verify(octets, signature, identity.uid, identity.certificate.pub_auth_key)
            except BadSignature:
                continue
            return identity
        raise BadSignature(f"the signature is not that of {signer_uri}")
