# SPDX-License-Identifier: Apache-2.0
"""TrK and InK: KMS responses whose keys are wrapped and which are signed (TS 33.180 §5.3.3, §D.3).

A key is an xenc:EncryptedKey under the transport key TrK: `kw-aes256` (RFC 3394) for a multiple of eight octets,
`kw-aes-256-pad` (RFC 5649) for others. Since the standard does not say how a point of 257 or 65 octets is wrapped,
a point that came without its leading 04 under plain `kw-aes256` is read too. The response is signed by HMAC-SHA256
under the integrity key InK over its canonical form (XML Signature, inclusive C14N, digest SHA-256).
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from mikey.errors import KmsError, MikeyError
from mikey.keys import Secret

DS = "http://www.w3.org/2000/09/xmldsig#"
XENC = "http://www.w3.org/2001/04/xmlenc#"
C14N = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
HMAC_SHA256 = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256"
SHA256 = "http://www.w3.org/2001/04/xmlenc#sha256"
KW_AES256 = "http://www.w3.org/2001/04/xmlenc#kw-aes256"
KW_AES256_PAD = "http://www.w3.org/2009/xmlenc11#kw-aes-256-pad"

Element = Any


@dataclass(frozen=True, slots=True, repr=False)
class TransportKeys:
    """What a user and his KMS share to protect responses, handed over out of band."""

    trk: Secret
    """32 octets, wraps keys."""
    ink: Secret
    """32 octets, signs responses."""
    trk_id: str = "TrK"
    ink_id: str = "InK"

    def __post_init__(self) -> None:
        if len(self.trk) != 32 or len(self.ink) != 32:
            raise MikeyError("TrK and InK have 32 octets")

    def __repr__(self) -> str:
        return f"<TransportKeys {self.trk_id} {self.ink_id}>"


# -- wrapped keys -----------------------------------------------------------------------------------------------


def write_wrapped(parent: Element, octets: bytes, keys: TransportKeys) -> None:
    """Put an xenc:EncryptedKey with `octets` under the TrK into an element."""
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap, aes_key_wrap_with_padding
    from lxml import etree

    exact = len(octets) % 8 == 0
    wrapped = (aes_key_wrap if exact else aes_key_wrap_with_padding)(keys.trk.reveal(), octets)
    encrypted = etree.SubElement(parent, f"{{{XENC}}}EncryptedKey", nsmap={"xenc": XENC, "ds": DS})
    etree.SubElement(encrypted, f"{{{XENC}}}EncryptionMethod", Algorithm=KW_AES256 if exact else KW_AES256_PAD)
    info = etree.SubElement(encrypted, f"{{{DS}}}KeyInfo")
    etree.SubElement(info, f"{{{DS}}}KeyName").text = keys.trk_id
    data = etree.SubElement(encrypted, f"{{{XENC}}}CipherData")
    etree.SubElement(data, f"{{{XENC}}}CipherValue").text = base64.b64encode(wrapped).decode()


def is_wrapped(element: Element) -> bool:
    """Whether a key element holds an xenc:EncryptedKey."""
    return element.find(f"{{{XENC}}}EncryptedKey") is not None


def read_wrapped(element: Element, keys: TransportKeys | None) -> bytes:
    """The octets in an xenc:EncryptedKey. Raises `KmsError` without the TrK, for another one or other algorithms."""
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_unwrap_with_padding

    encrypted = element.find(f"{{{XENC}}}EncryptedKey")
    if keys is None:
        raise KmsError("the keys are wrapped and no TrK is held")
    name = encrypted.findtext(f"{{{DS}}}KeyInfo/{{{DS}}}KeyName")
    if name is not None and name.strip() != keys.trk_id:
        raise KmsError("the keys are wrapped under another TrK")
    method = encrypted.find(f"{{{XENC}}}EncryptionMethod")
    algorithm = method.get("Algorithm") if method is not None else None
    wrapped = _base64(encrypted.findtext(f"{{{XENC}}}CipherData/{{{XENC}}}CipherValue"), "CipherValue")
    try:
        if algorithm == KW_AES256:
            octets = aes_key_unwrap(keys.trk.reveal(), wrapped)
            return b"\x04" + octets if len(octets) in (64, 256) else octets
        if algorithm == KW_AES256_PAD:
            return aes_key_unwrap_with_padding(keys.trk.reveal(), wrapped)
    except (InvalidUnwrap, ValueError):
        raise KmsError("a wrapped key does not open under this TrK") from None
    raise KmsError("a key is wrapped by an unknown algorithm")


def _base64(text: str | None, name: str) -> bytes:
    try:
        return binascii.a2b_base64("".join((text or "").split()).encode("ascii"), strict_mode=True)
    except ValueError:
        raise KmsError(f"{name} is no base64") from None


# -- signed responses -------------------------------------------------------------------------------------------


def _canonical(element: Element) -> bytes:
    """Inclusive C14N of an element where it stands, without comments: all namespaces in scope are declared."""
    from lxml import etree

    apex = etree.Element(element.tag, dict(element.attrib), nsmap=element.nsmap)
    apex.text = element.text
    apex.extend(copy.deepcopy(list(element)))
    try:
        return bytes(etree.tostring(apex, method="c14n", with_comments=False))
    except etree.LxmlError as error:  # such as relative namespace names, which have no canonical form
        raise KmsError(f"no canonical form: {error}") from None


def sign(wrapper: Element, keys: TransportKeys) -> None:
    """Append a ds:Signature over the first child of `wrapper`, which has an Id."""
    from lxml import etree

    signed = wrapper[0]
    signature = etree.SubElement(wrapper, f"{{{DS}}}Signature", nsmap={"ds": DS})
    info = etree.SubElement(signature, f"{{{DS}}}SignedInfo")
    etree.SubElement(info, f"{{{DS}}}CanonicalizationMethod", Algorithm=C14N)
    etree.SubElement(info, f"{{{DS}}}SignatureMethod", Algorithm=HMAC_SHA256)
    reference = etree.SubElement(info, f"{{{DS}}}Reference", URI="#" + signed.get("Id"))
    etree.SubElement(reference, f"{{{DS}}}DigestMethod", Algorithm=SHA256)
    digest = hashlib.sha256(_canonical(signed)).digest()
    etree.SubElement(reference, f"{{{DS}}}DigestValue").text = base64.b64encode(digest).decode()
    value = hmac.digest(keys.ink.reveal(), _canonical(info), "sha256")
    etree.SubElement(signature, f"{{{DS}}}SignatureValue").text = base64.b64encode(value).decode()
    held = etree.SubElement(signature, f"{{{DS}}}KeyInfo")
    etree.SubElement(held, f"{{{DS}}}KeyName").text = keys.ink_id


def verified(wrapper: Element, name: str, keys: TransportKeys) -> Element:
    """The one element `name` of a signed wrapper, after its signature held. Raises `KmsError`.

    Only the form that `sign` writes is taken: two children, one reference, to the first of them, no transforms but
    C14N; so there is no second element that could be shown for the signed one.
    """
    children = list(wrapper)
    if len(children) != 2 or children[0].tag != name or children[1].tag != f"{{{DS}}}Signature":
        raise KmsError("a signed response holds the response and its signature")
    signed, signature = children
    info = signature.find(f"{{{DS}}}SignedInfo")
    references = info.findall(f"{{{DS}}}Reference") if info is not None else []
    if info is None or len(references) != 1:
        raise KmsError("a signature with one reference is wanted")
    reference = references[0]
    wanted = (
        (info, "CanonicalizationMethod", C14N), (info, "SignatureMethod", HMAC_SHA256),
        (reference, "DigestMethod", SHA256),
    )  # fmt: skip
    for parent, part, algorithm in wanted:
        found = parent.findall(f"{{{DS}}}{part}")
        if len(found) != 1 or found[0].get("Algorithm") != algorithm:
            raise KmsError(f"the signature's {part} is not {algorithm}")
    transforms = reference.findall(f"{{{DS}}}Transforms/{{{DS}}}Transform")
    if any(t.get("Algorithm") != C14N for t in transforms):
        raise KmsError("the signature has transforms other than canonicalisation")
    if info.find(f"{{{DS}}}SignatureMethod/{{{DS}}}HMACOutputLength") is not None:
        raise KmsError("a shortened HMAC is not taken")
    if not signed.get("Id") or reference.get("URI") != "#" + signed.get("Id"):
        raise KmsError("the signature is not over the response")
    held = signature.findtext(f"{{{DS}}}KeyInfo/{{{DS}}}KeyName")
    if held is not None and held.strip() != keys.ink_id:
        raise KmsError("signed under another InK")
    value = _base64(signature.findtext(f"{{{DS}}}SignatureValue"), "SignatureValue")
    digest = _base64(reference.findtext(f"{{{DS}}}DigestValue"), "DigestValue")
    holds = hmac.compare_digest(value, hmac.digest(keys.ink.reveal(), _canonical(info), "sha256"))
    if not holds or not hmac.compare_digest(digest, hashlib.sha256(_canonical(signed)).digest()):
        raise KmsError("the signature of the response does not hold")
    return signed
