# SPDX-License-Identifier: Apache-2.0
"""The KMS proper: master secrets in, certificate and key sets out (RFC 6507 §5.1, RFC 6508 §6.1)."""

from __future__ import annotations

import dataclasses
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass

from gmpy2 import mpz

from mikey import eccsi, sakke
from mikey.errors import InvalidKey, KmsError
from mikey.identity import domain_of
from mikey.keys import KeySet, KmsCertificate, Random, Secret


@dataclass(frozen=True, slots=True, repr=False)
class MasterSecrets:
    """What a KMS must never lose and never show."""

    ksak: Secret
    """32 octets."""
    z: Secret
    """128 octets."""
    seed: Secret
    """32 octets: from it the v of each (SSK, PVT) follows, so that asking twice gives the same key."""

    @classmethod
    def generate(cls, random: Random = os.urandom) -> MasterSecrets:
        """Draw KSAK in 1..n-1, z in 2..q-1 and the seed."""
        ksak = 1 + int.from_bytes(random(48), "big") % (int(eccsi.ORDER) - 1)
        z = 2 + int.from_bytes(random(160), "big") % (int(sakke.Q) - 2)
        return cls(Secret(ksak.to_bytes(32, "big")), Secret(z.to_bytes(128, "big")), Secret(random(32)))


class Kms:
    """One key management server: issues the keys of its domains' users. Pure: no store, no clock.

    Each master key generation has its certificate; they follow each other at key period boundaries (RFC 6509
    §3.3). `certificate` is the first, `certificate_at` the one in force.
    """

    def __init__(
        self, generations: Iterable[tuple[KmsCertificate, MasterSecrets]], random: Random = os.urandom
    ):
        self._generations = list(generations)
        self._random = random
        if not self._generations:
            raise KmsError("a KMS needs a master key")

    @classmethod
    def generate(
        cls,
        kms_uri: str,
        domains: Iterable[str],
        *,
        user_key_period: int = 2592000,
        user_key_offset: int = 0,
        random: Random = os.urandom,
    ) -> Kms:
        """Draw master secrets KSAK and z for a new KMS that answers for `domains`."""
        if user_key_offset >= user_key_period:
            raise KmsError("UserKeyOffset must be below UserKeyPeriod")
        secrets = MasterSecrets.generate(random)
        certificate = _certificate(
            secrets,
            kms_uri=kms_uri,
            domains=tuple(domains),
            user_key_period=user_key_period,
            user_key_offset=user_key_offset,
        )
        return cls([(certificate, secrets)], random)

    @property
    def certificate(self) -> KmsCertificate:
        """The certificate of the newest generation."""
        return self._generations[-1][0]

    @property
    def certificates(self) -> tuple[KmsCertificate, ...]:
        """Certificates of all generations, oldest first."""
        return tuple(c for c, _ in self._generations)

    @property
    def generations(self) -> tuple[tuple[KmsCertificate, MasterSecrets], ...]:
        """Certificates with their secrets, for the store."""
        return tuple(self._generations)

    def certificate_at(self, at: float) -> KmsCertificate:
        """The certificate for the key period of the Unix time `at`. Raises `KmsError`."""
        return self._generation(at)[0]

    def _generation(self, at: float) -> tuple[KmsCertificate, MasterSecrets]:
        for certificate, secrets in reversed(self._generations):
            first, last = certificate.valid_from, certificate.valid_to
            if (first is None or at >= first) and (last is None or at < last) and not certificate.revoked:
                return certificate, secrets
        raise KmsError("no master key for that time")

    def answers_for(self, uri: str) -> bool:
        """Whether this KMS issues keys to users of that domain."""
        return domain_of(uri) in self.certificate.domains

    def issue(self, uri: str, at: float) -> KeySet:
        """The key set of a user for the key period of the Unix time `at`; the same whenever asked.

        Raises `KmsError` for a user of another domain or a time without a master key.
        """
        if not self.answers_for(uri):
            raise KmsError(f"this KMS does not answer for {domain_of(uri)}")
        certificate, secrets = self._generation(at)
        number = certificate.periods.number(at)
        identity = certificate.uid(uri, number)
        blind = 1 + mpz(int.from_bytes(self._random(160), "big")) % (sakke.Q - 1)
        rsk = sakke.issue(mpz(int.from_bytes(secrets.z.reveal(), "big")), identity, blind)
        ssk, pvt = self._signing_key(certificate, secrets, identity)
        return KeySet(uri, identity, number, certificate, Secret(rsk), Secret(ssk), pvt)

    @staticmethod
    def _signing_key(
        certificate: KmsCertificate, secrets: MasterSecrets, identity: bytes
    ) -> tuple[bytes, bytes]:
        ksak = mpz(int.from_bytes(secrets.ksak.reveal(), "big"))
        for attempt in range(16):
            stream = b"".join(
                hmac.digest(secrets.seed.reveal(), bytes((attempt, half)) + identity, "sha256")
                for half in (0, 1)
            )
            v = 1 + mpz(int.from_bytes(stream, "big")) % (eccsi.ORDER - 1)
            try:
                return eccsi.issue(ksak, certificate.pub_auth_key, identity, v)
            except InvalidKey:
                continue
        raise KmsError("no signing key for this identity")

    def rotate(self, at: float, random: Random = os.urandom) -> KmsCertificate:
        """New master keys from the first period boundary at or after `at` (RFC 6509 §3.3).

        The present generation ends where the new one begins. Returns the new certificate.
        """
        old, secrets = self._generations[-1]
        number = old.periods.number(at)
        if old.periods.start(number) != at:
            number += 1
        boundary = float(old.periods.start(number))
        if old.valid_from is not None and boundary <= old.valid_from:
            raise KmsError("the present master key has not begun yet")
        self._generations[-1] = (dataclasses.replace(old, valid_to=boundary), secrets)
        self._generations.append(_successor(old, random, valid_from=boundary))
        return self._generations[-1][0]

    def replace(self, at: float, random: Random = os.urandom) -> KmsCertificate:
        """Revoke the generation in force at `at`, whose secrets are out, and put a new one in its place at once.

        An emergency: the new one is good for the whole running period, until the next rotation if one is planned.
        """
        certificate, _ = self._generation(at)
        index = next(i for i, (c, _) in enumerate(self._generations) if c is certificate)
        self.revoke(index)
        start = float(certificate.periods.start(certificate.periods.number(at)))
        self._generations.insert(
            index + 1, _successor(certificate, random, valid_from=start, valid_to=certificate.valid_to)
        )
        return self._generations[index + 1][0]

    def revoke(self, index: int = -1) -> KmsCertificate:
        """Mark a generation's certificate revoked; nothing more is issued under it."""
        certificate, secrets = self._generations[index]
        self._generations[index] = (dataclasses.replace(certificate, revoked=True), secrets)
        return self._generations[index][0]


def _successor(
    old: KmsCertificate, random: Random, *, valid_from: float, valid_to: float | None = None
) -> tuple[KmsCertificate, MasterSecrets]:
    """New master keys of the same KMS."""
    fresh = MasterSecrets.generate(random)
    certificate = _certificate(
        fresh,
        kms_uri=old.kms_uri,
        domains=old.domains,
        user_key_period=old.user_key_period,
        user_key_offset=old.user_key_offset,
        valid_from=valid_from,
    )
    return dataclasses.replace(certificate, valid_to=valid_to), fresh


def _certificate(
    secrets: MasterSecrets,
    *,
    kms_uri: str,
    domains: tuple[str, ...],
    user_key_period: int,
    user_key_offset: int,
    valid_from: float | None = None,
) -> KmsCertificate:
    return KmsCertificate(
        kms_uri=kms_uri,
        pub_enc_key=sakke.public_point(mpz(int.from_bytes(secrets.z.reveal(), "big"))),
        pub_auth_key=eccsi.public_point(mpz(int.from_bytes(secrets.ksak.reveal(), "big"))),
        user_key_period=user_key_period,
        user_key_offset=user_key_offset,
        domains=domains,
        valid_from=valid_from,
    )
