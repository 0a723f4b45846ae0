# SPDX-License-Identifier: Apache-2.0
"""What a receiver tolerates. STRICT by default; every switch of LENIENT is named after one habit of the
field.

No switch touches what binds a temporary group's key (security rule 8): sealed key parameters, exactly one
group id, a finite expiry, the check of signer and recipient, the replay cache, the order ECCSI before SAKKE.
These hold under every profile. What an RFC-correct reader must cope with anyway has no switch: leading zeros
in full length, any order of payloads, unknown payloads and extensions, URIs (roles 1, 2) or UIDs (roles 8,
9).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mikey.keyring import PERIOD_GRACE


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and switches of a receiver."""

    name: str = "strict"
    skew: float = 300.0
    """Seconds that T may differ from now, either way (RFC 3830 §5.4)."""
    period_grace: float = PERIOD_GRACE
    """Seconds around a key period's boundary in which the neighbour's identities are good."""
    max_octets: int = 4096
    """Largest message; the largest of real products are about 750 octets."""
    max_payloads: int = 64
    max_group_key_lifetime: float = 86400.0
    """Longest life of a temporary group's key in seconds; an expiry further off counts as none."""

    # -- switches, all off in STRICT ------------------------------------------------------------------------
    any_age: bool = False
    """Ignore the skew window. For looking at stored messages: with it, no replay cache can be complete."""
    ntp_local: bool = False
    """T of type 1 (NTP): RFC 6509 allows it, TS 33.180 does not."""
    other_prf: bool = False
    """PRF function other than PRF-HMAC-SHA-256 in the header; derivation uses SHA-256 regardless."""
    empty_generic_map: bool = False
    """Map type GENERIC-ID with #CS = 0 (Alea)."""
    short_rand: bool = False
    """RAND of 1 to 15 octets."""
    uid_in_uri_role: bool = False
    """UIDs in roles 1 and 2 instead of 8 and 9."""
    missing_identity: bool = False
    """IDRi or IDRr left out (RFC 6509 allows it when known by other means)."""
    missing_kms_id: bool = False
    """IDRkmsi or IDRkmsr left out."""
    kms_uri_nul: bool = False
    """A C string's NUL inside a KMS URI; only for finding the certificate, never for a UID."""
    signature_scope: bool = False
    """Signature over the message without the two octets of the SIGN header (early Alea and Softil)."""
    unpadded_hash: bool = False
    """SAKKE hint masked with g^r stripped of its leading zeros (three C and C++ libraries, 1 message in
    153)."""
    short_hint: bool = False
    """SAKKE hint with its leading zero octet left out (1 message in 256 of the same)."""
    long_key: bool = False
    """A 256-bit key under parameter set 1, whose own size is 128 (RFC 6509 appendix A)."""
    clear_key_parameters: bool = False
    """Unprotected key parameters of the pre-1.2 form."""
    foreign_spi: bool = False
    """An SPI in the CS ID map that is not the MKI which follows from the key."""
    unusable_key: bool = False
    """Open keys that are revoked, expired or not yet active; using them is the caller's choice."""
    text_line_breaks: bool = False
    """Line breaks inside the base64 of the text form."""

    def without_switches(self) -> Policy:
        """The same limits, every switch off: what holds for a temporary group's key under every profile."""
        return dataclasses.replace(self, **dict.fromkeys(self.switches(), False))  # type: ignore[arg-type]

    @classmethod
    def switches(cls) -> tuple[str, ...]:
        """Names of all switches."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.type == "bool")


STRICT = Policy()
LENIENT = Policy(name="lenient", **{s: True for s in Policy.switches() if s != "any_age"})
OFFLINE = dataclasses.replace(LENIENT, name="offline", any_age=True)
"""LENIENT without a clock: for inspecting recorded messages, never for a phone."""
