# SPDX-License-Identifier: Apache-2.0
"""One class per reason that an application can act on.

Everything derives from `MikeyError`. The text is for the local log only: RFC 3830 §5.1.2 and the one-way
exchange of TS 33.180 both say to stay silent, and up to the SAKKE test every failure must look alike to a
peer. No message carries key material.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mikey.imessage import OpenedKey


class MikeyError(Exception):
    """Base of all errors of this package. `reason` is a stable word for logs and tools."""

    reason = "error"


# -- the octets ---------------------------------------------------------------------------------------------


class ParseError(MikeyError):
    """The octets are no well-formed message (RFC 3830 §6). `offset` is where reading stopped."""

    reason = "parse"

    def __init__(self, text: str, offset: int | None = None) -> None:
        super().__init__(text if offset is None else f"{text} (offset {offset})")
        self.offset = offset


class TrailingOctets(ParseError):
    """Octets after the last payload; `offset` is where the message ends."""


class TextError(ParseError):
    """The text form ("mikey", one space, base64; RFC 4567 §3.1) is wrong."""

    reason = "text"


class TooLarge(ParseError):
    """More octets than the policy allows."""

    reason = "too-large"


class Unsupported(MikeyError):
    """A version, data type, parameter set, identifier scheme, algorithm or time stamp type not spoken
    here."""

    reason = "unsupported"


class MissingPayload(MikeyError):
    """A payload that every I_MESSAGE must carry is absent (RFC 6509 §2.1)."""

    reason = "missing-payload"


class DuplicatePayload(MikeyError):
    """A payload that may stand once stands twice (RFC 6509 §2.1)."""

    reason = "duplicate-payload"


class Deviation(MikeyError):
    """Sound but not as the standard writes it; `switch` names the field of `Policy` that would allow it."""

    reason = "deviation"

    def __init__(self, switch: str, text: str) -> None:
        super().__init__(f"{text} [{switch}]")
        self.switch = switch
        self.reason = switch.replace("_", "-")


# -- who, when, under which KMS -----------------------------------------------------------------------------


class StaleTimestamp(MikeyError):
    """T is further from now than the allowed clock skew (RFC 3830 §5.4)."""

    reason = "stale-timestamp"


class Replayed(MikeyError):
    """The signed octets were accepted before (RFC 3830 §5.4).

    `opened` is what was opened then, while the key is still held: repeat the same acknowledgement, install
    nothing. It is None when the key is gone: refuse.
    """

    reason = "replayed"

    def __init__(self, text: str, opened: OpenedKey | None = None) -> None:
        super().__init__(text)
        self.opened = opened


class ReplayStateLost(MikeyError):
    """The replay cache began after this message may have been accepted; refuse until T has moved on."""

    reason = "replay-state-lost"


class Superseded(MikeyError):
    """A newer key message of the same signer for the same group was accepted; this one was held back (rule 14)."""

    reason = "superseded"


class UnknownKms(MikeyError):
    """The message names a KMS whose certificate is not held, or none is held for this user's domain."""

    reason = "unknown-kms"


class KmsNotForDomain(MikeyError):
    """The named KMS has no say over the user's domain (security rule 4)."""

    reason = "kms-not-for-domain"


class CertificateInvalid(MikeyError):
    """The KMS certificate is revoked, outside its dates, or its keys are no valid points."""

    reason = "certificate-invalid"


class SenderMismatch(MikeyError):
    """IDRi is not the identity that the caller says has sent the message."""

    reason = "sender-mismatch"


class RecipientMismatch(MikeyError):
    """IDRr is not this user."""

    reason = "recipient-mismatch"


class WrongPeriod(MikeyError):
    """An identity of a key period that T does not allow (security rule 9)."""

    reason = "wrong-period"


class NoKeyForPeriod(MikeyError):
    """No key set is held for the period of T."""

    reason = "no-key-for-period"


# -- cryptography -------------------------------------------------------------------------------------------


class BadSignature(MikeyError):
    """The ECCSI signature does not hold (RFC 6507 §5.2.2)."""

    reason = "bad-signature"


class DecapsulationFailed(MikeyError):
    """SAKKE gave no key (RFC 6508 §6.2.2). One error for every cause."""

    reason = "sakke-check"


class PairingBudgetExceeded(MikeyError):
    """This signer has used up the pairings it may cost us (security rule 26)."""

    reason = "pairing-budget"


class InvalidKey(MikeyError):
    """Key material that does not satisfy its equation: SSK, RSK, KPAK, Z, or a point off the curve."""

    reason = "invalid-key"


# -- what was inside ----------------------------------------------------------------------------------------


class BadKeyParameters(MikeyError):
    """The key parameters (General Extension 7, TS 33.180 E.6) are malformed or not authentic."""

    reason = "key-params"


class WrongKeyType(MikeyError):
    """The purpose tag is not the one expected here, or unknown."""

    reason = "key-type"


class GroupMismatch(MikeyError):
    """The sealed key parameters do not name exactly the expected group."""

    reason = "group-mismatch"


class NoExpiry(MikeyError):
    """A temporary group's key without a finite expiry."""

    reason = "no-expiry"


class WrongProfile(MikeyError):
    """The SP payload of a temporary group's key is not exactly the group profile (security rule 16)."""

    reason = "profile"


class KeyRevoked(MikeyError):
    """Status bit 0 is 0: the key is revoked (TS 33.180 E.6.9). `opened` is what the message said."""

    reason = "revoked"

    def __init__(self, text: str, opened: OpenedKey | None = None) -> None:
        super().__init__(text)
        self.opened = opened


class KeyExpired(MikeyError):
    """The expiry of the key lies in the past."""

    reason = "expired-key"


class KeyNotYetActive(MikeyError):
    """The activation of the key lies ahead."""

    reason = "not-yet-active"


class SealRefused(MikeyError):
    """What was to be sealed breaks a rule for sending (one group id, finite expiry, fixed lengths)."""

    reason = "seal-refused"


# -- the KMS ------------------------------------------------------------------------------------------------


class KmsError(MikeyError):
    """The KMS said no, or what it said cannot be used. `code` is its ErrorCode or HTTP status, if any."""

    reason = "kms"

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class KmsUnreachable(KmsError):
    """No answer from the KMS; keys held go on being used."""

    reason = "kms-unreachable"


class StoreError(MikeyError):
    """The key store cannot be opened or was written under another secret."""

    reason = "store"
