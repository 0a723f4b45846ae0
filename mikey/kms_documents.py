# SPDX-License-Identifier: Apache-2.0
"""The XML of the KMS interface (TS 33.180 §D.3, namespace urn:3gpp:ns:mcsecKMSInterface:1.0) <-> values.

Read liberally (keys in hex or base64, UserID in either, times without zone are UTC, xsi:type optional),
written strictly (the schema's element order, upper-case hex keys, base64 UserID). Document types and
entities are refused. Every fault is a `KmsError`.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from dataclasses import dataclass, field
from typing import Any

from mikey.errors import KmsError, MikeyError
from mikey.keys import KeySet, KmsCertificate, Secret
from mikey.kms_protection import TransportKeys, is_wrapped, read_wrapped, sign, verified, write_wrapped

NS = "urn:3gpp:ns:mcsecKMSInterface:1.0"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
MAX_OCTETS = 1 << 20
ROOT = "/keymanagement/identity/v1"
"""Resource root of the HTTP interface (TS 33.180 §D.2)."""
CONTENT_TYPE = "application/xml"

Element = Any
"""An lxml element; lxml is imported when first needed."""


@dataclass(frozen=True, slots=True)
class KeySetDocument:
    """A KmsKeySet as received: not yet bound to the certificate that proves it."""

    kms_uri: str
    uri: str
    uid: bytes
    period_no: int
    rsk: Secret
    ssk: Secret
    pvt: bytes
    cert_uri: str | None = None
    revoked: bool = False

    def bind(self, certificate: KmsCertificate) -> KeySet:
        """The key set under a certificate; `KeySet.validate` still has to be called."""
        if self.kms_uri != certificate.kms_uri:
            raise KmsError(f"the key set is of {self.kms_uri}, the certificate of {certificate.kms_uri}")
        return KeySet(self.uri, self.uid, self.period_no, certificate, self.rsk, self.ssk, self.pvt)


@dataclass(frozen=True, slots=True)
class KmsResponse:
    """KmsResponse (TS 33.180 §D.3.1) with exactly one of certificate, key sets, cache, error."""

    user_uri: str
    kms_uri: str
    time: float
    client_req_url: str
    kms_id: str | None = None
    certificate: KmsCertificate | None = None
    """KmsInit."""
    key_sets: tuple[KeySetDocument | KeySet, ...] | None = None
    """KmsKeyProv."""
    cache: tuple[KmsCertificate, ...] | None = None
    """KmsCertCache."""
    cache_no: int = 0
    error: tuple[int, str] | None = None
    """KmsError: ErrorCode and ErrorMsg."""
    id: str = field(default="kms-response")


@dataclass(frozen=True, slots=True)
class KmsRequest:
    """KmsRequest (TS 33.180 §D.3.1)."""

    user_uri: str
    kms_uri: str
    time: float
    client_req_url: str
    client_id: str | None = None
    device_id: str | None = None
    id: str = field(default="kms-request")


# -- writing ------------------------------------------------------------------------------------------------


def _iso(at: float) -> str:
    text = datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")
    return text.replace("+00:00", "Z")


def _sub(parent: Element, name: str, text: str | None = None, **attributes: str) -> Element:
    from lxml import etree

    child = etree.SubElement(parent, f"{{{NS}}}{name}", attributes)
    if text is not None:
        try:
            child.text = text
        except ValueError:
            raise KmsError(f"{name} holds characters that XML does not allow") from None
    return child


def _root(name: str, **attributes: str) -> Element:
    from lxml import etree

    names: Any = {None: NS, "xsi": XSI}
    return etree.Element(f"{{{NS}}}{name}", attributes, nsmap=names)


def _octets(root: Element) -> bytes:
    from lxml import etree

    return bytes(etree.tostring(root, xml_declaration=True, encoding="UTF-8"))


def _write_certificate(parent: Element | None, certificate: KmsCertificate) -> Element:
    attributes = {"Version": "1.1.0", "Role": certificate.role}
    if certificate.is_security_gateway is not None:
        attributes["IsSecurityGateway"] = str(certificate.is_security_gateway).lower()
    e = (
        _root("KmsCertificate", **attributes)
        if parent is None
        else _sub(parent, "KmsCertificate", **attributes)
    )
    if certificate.cert_uri is not None:
        _sub(e, "CertUri", certificate.cert_uri)
    _sub(e, "KmsUri", certificate.kms_uri)
    if certificate.issuer is not None:
        _sub(e, "Issuer", certificate.issuer)
    if certificate.valid_from is not None:
        _sub(e, "ValidFrom", _iso(certificate.valid_from))
    if certificate.valid_to is not None:
        _sub(e, "ValidTo", _iso(certificate.valid_to))
    _sub(e, "Revoked", str(certificate.revoked).lower())
    _sub(e, "UserIdFormat", certificate.user_id_format)
    _sub(e, "UserKeyPeriod", str(certificate.user_key_period))
    _sub(e, "UserKeyOffset", str(certificate.user_key_offset))
    _sub(e, "PubEncKey", certificate.pub_enc_key.hex().upper())
    _sub(e, "PubAuthKey", certificate.pub_auth_key.hex().upper())
    _sub(e, "ParameterSet", str(certificate.parameter_set))
    if certificate.domains:
        domains = _sub(e, "KmsDomainList")
        for domain in certificate.domains:
            _sub(domains, "KmsDomain", domain)
    return e


def encode_certificate(certificate: KmsCertificate) -> bytes:
    """A KmsCertificate document (TS 33.180 §D.3.2)."""
    return _octets(_write_certificate(None, certificate))


def _write_key_set(parent: Element, k: KeySetDocument | KeySet, protection: TransportKeys | None) -> None:
    e = _sub(parent, "KmsKeySet", Version="1.1.0")
    _sub(e, "KmsUri", k.kms_uri)
    if isinstance(k, KeySetDocument) and k.cert_uri is not None:
        _sub(e, "CertUri", k.cert_uri)
    _sub(e, "UserUri", k.uri)
    _sub(e, "UserID", base64.b64encode(k.uid).decode())
    if isinstance(k, KeySet):
        _sub(e, "ValidFrom", _iso(k.valid_from))
        _sub(e, "ValidTo", _iso(k.valid_to))
    _sub(e, "KeyPeriodNo", str(k.period_no))
    _sub(e, "Revoked", str(isinstance(k, KeySetDocument) and k.revoked).lower())
    for name, octets in (
        ("UserDecryptKey", k.rsk.reveal()),
        ("UserSigningKeySSK", k.ssk.reveal()),
        ("UserPubTokenPVT", k.pvt),
    ):
        if protection is None:
            _sub(e, name, octets.hex().upper(), **{f"{{{XSI}}}type": "KeyContentType"})
        else:
            write_wrapped(_sub(e, name, **{f"{{{XSI}}}type": "EncKeyContentType"}), octets, protection)


def encode_response(response: KmsResponse, protection: TransportKeys | None = None) -> bytes:
    """A KmsResponse document; with `protection` a SignedKmsResponse with wrapped keys."""
    if protection is None:
        root = outer = _root("KmsResponse", Id=response.id, Version="1.0.0")
    else:
        outer = _root("SignedKmsResponse")
        root = _sub(outer, "KmsResponse", Id=response.id, Version="1.0.0")
    _sub(root, "UserUri", response.user_uri)
    _sub(root, "KmsUri", response.kms_uri)
    _sub(root, "Time", _iso(response.time))
    if response.kms_id is not None:
        _sub(root, "KmsId", response.kms_id)
    _sub(root, "ClientReqUrl", response.client_req_url)
    if response.error is None:
        message = _sub(root, "KmsMessage")
        if response.certificate is not None:
            _write_certificate(_sub(message, "KmsInit", Version="1.0.0"), response.certificate)
        elif response.key_sets is not None:
            provision = _sub(message, "KmsKeyProv", Version="1.0.0")
            for key_set in response.key_sets:
                _write_key_set(provision, key_set, protection)
        else:
            cache = _sub(message, "KmsCertCache", Version="1.0.0", CacheNum=str(response.cache_no))
            for certificate in response.cache or ():
                _write_certificate(cache, certificate)
    else:
        error = _sub(root, "KmsError")
        _sub(error, "ErrorCode", str(response.error[0]))
        _sub(error, "ErrorMsg", response.error[1])
    if protection is not None:
        sign(outer, protection)
    return _octets(outer)


def encode_request(request: KmsRequest) -> bytes:
    """A KmsRequest document."""
    root = _root("KmsRequest", Id=request.id, Version="1.1.0")
    _sub(root, "UserUri", request.user_uri)
    _sub(root, "KmsUri", request.kms_uri)
    _sub(root, "Time", _iso(request.time))
    if request.client_id is not None:
        _sub(root, "ClientId", request.client_id)
    if request.device_id is not None:
        _sub(root, "DeviceId", request.device_id)
    _sub(root, "ClientReqUrl", request.client_req_url)
    return _octets(root)


# -- reading ------------------------------------------------------------------------------------------------


def parse(octets: bytes) -> Element:
    """Well-formed XML without document type, at most MAX_OCTETS. Raises `KmsError`."""
    from lxml import etree

    if len(octets) > MAX_OCTETS:
        raise KmsError(f"more than {MAX_OCTETS} octets of XML")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        root: Element = etree.fromstring(octets, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise KmsError(f"not XML: {error}") from None
    if root.getroottree().docinfo.doctype:
        raise KmsError("a document type is not allowed")
    return root


def _child(parent: Element, name: str) -> Element | None:
    return parent.find(f"{{{NS}}}{name}")


def text_of(parent: Element, name: str) -> str | None:
    """Text of a child without surrounding white space, None when there is no such child."""
    child = _child(parent, name)
    return None if child is None else (child.text or "").strip()


def _required(parent: Element, name: str) -> str:
    text = text_of(parent, name)
    if not text:
        raise KmsError(f"{name} is missing")
    return text


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise KmsError(f"{name} is no number")
    return int(text)


def _time(text: str | None, name: str) -> float | None:
    if not text:
        return None
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise KmsError(f"{name} is no dateTime") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()


def key_octets(text: str, name: str) -> bytes:
    """Octets written in hex, or else in base64."""
    compact = "".join(text.split())
    try:
        return bytes.fromhex(compact)
    except ValueError:
        pass
    try:
        return binascii.a2b_base64(compact.encode("ascii"), strict_mode=True)
    except ValueError:
        raise KmsError(f"{name} is neither hex nor base64") from None


def _user_id(text: str) -> bytes:
    compact = "".join(text.split())
    if len(compact) == 64:
        try:
            return bytes.fromhex(compact)
        except ValueError:
            pass
    try:
        octets = binascii.a2b_base64(compact.encode("ascii"), strict_mode=True)
    except ValueError:
        octets = b""
    if len(octets) != 32:
        raise KmsError("UserID is neither 64 hex digits nor base64 of 32 octets")
    return octets


def decode_certificate(source: bytes | Element) -> KmsCertificate:
    """A KmsCertificate document or element; the points are not yet checked (`KmsCertificate.validate`)."""
    e = parse(source) if isinstance(source, bytes) else source
    if e.tag != f"{{{NS}}}KmsCertificate":
        raise KmsError("no KmsCertificate")
    domains = _child(e, "KmsDomainList")
    gateway = e.get("IsSecurityGateway")
    try:
        return KmsCertificate(
            kms_uri=_required(e, "KmsUri"),
            pub_enc_key=key_octets(_required(e, "PubEncKey"), "PubEncKey"),
            pub_auth_key=key_octets(_required(e, "PubAuthKey"), "PubAuthKey"),
            user_key_period=_number(_required(e, "UserKeyPeriod"), "UserKeyPeriod"),
            user_key_offset=_number(_required(e, "UserKeyOffset"), "UserKeyOffset"),
            user_id_format=_required(e, "UserIdFormat"),
            valid_from=_time(text_of(e, "ValidFrom"), "ValidFrom"),
            valid_to=_time(text_of(e, "ValidTo"), "ValidTo"),
            revoked=text_of(e, "Revoked") in ("true", "1"),
            role=e.get("Role", "Root"),
            domains=()
            if domains is None
            else tuple((d.text or "").strip() for d in domains.findall(f"{{{NS}}}KmsDomain")),
            cert_uri=text_of(e, "CertUri") or None,
            issuer=text_of(e, "Issuer") or None,
            parameter_set=_number(text_of(e, "ParameterSet") or "1", "ParameterSet"),
            is_security_gateway=None if gateway is None else gateway in ("true", "1"),
        )
    except KmsError:
        raise
    except MikeyError as error:
        raise KmsError(f"unusable KmsCertificate: {error}") from None


def _key(e: Element, name: str, protection: TransportKeys | None) -> bytes:
    child = _child(e, name)
    if child is not None and is_wrapped(child):
        return read_wrapped(child, protection)
    if protection is not None:
        raise KmsError(f"{name} is not wrapped, and a TrK is held")
    return key_octets(_required(e, name), name)


def decode_key_set(e: Element, protection: TransportKeys | None = None) -> KeySetDocument:
    """A KmsKeySet element. The SSK may carry extra leading zeros (it is read as a number)."""
    ssk = int.from_bytes(_key(e, "UserSigningKeySSK", protection), "big")
    if ssk.bit_length() > 256:
        raise KmsError("UserSigningKeySSK is too long")
    return KeySetDocument(
        kms_uri=_required(e, "KmsUri"),
        uri=_required(e, "UserUri"),
        uid=_user_id(_required(e, "UserID")),
        period_no=_number(_required(e, "KeyPeriodNo"), "KeyPeriodNo"),
        rsk=Secret(_key(e, "UserDecryptKey", protection)),
        ssk=Secret(ssk.to_bytes(32, "big")),
        pvt=_key(e, "UserPubTokenPVT", protection),
        cert_uri=text_of(e, "CertUri") or None,
        revoked=text_of(e, "Revoked") in ("true", "1"),
    )


def decode_response(source: bytes | Element, protection: TransportKeys | None = None) -> KmsResponse:
    """A KmsResponse document. With `protection` nothing but a SignedKmsResponse with wrapped keys is taken."""
    root = parse(source) if isinstance(source, bytes) else source
    if protection is not None:
        if root.tag != f"{{{NS}}}SignedKmsResponse":
            raise KmsError("the response is not signed, and an InK is held")
        root = verified(root, f"{{{NS}}}KmsResponse", protection)
    if root.tag != f"{{{NS}}}KmsResponse":
        raise KmsError("no KmsResponse")
    certificate, key_sets, cache, cache_no = None, None, None, 0
    message, failure = _child(root, "KmsMessage"), _child(root, "KmsError")
    if message is not None:
        init = _child(message, "KmsInit")
        provision = _child(message, "KmsKeyProv")
        cached = _child(message, "KmsCertCache")
        if [init, provision, cached].count(None) != 2:
            raise KmsError("KmsMessage must hold exactly one of KmsInit, KmsKeyProv, KmsCertCache")
        if init is not None:
            first = init.find(f".//{{{NS}}}KmsCertificate")
            if first is None:
                raise KmsError("KmsInit without KmsCertificate")
            certificate = decode_certificate(first)
        elif provision is not None:
            key_sets = tuple(decode_key_set(k, protection) for k in provision.findall(f"{{{NS}}}KmsKeySet"))
        elif cached is not None:
            cache = tuple(decode_certificate(c) for c in cached.iterfind(f".//{{{NS}}}KmsCertificate"))
            cache_no = _number(cached.get("CacheNum", "0"), "CacheNum")
    elif failure is None:
        raise KmsError("KmsResponse with neither KmsMessage nor KmsError")
    return KmsResponse(
        user_uri=_required(root, "UserUri"),
        kms_uri=_required(root, "KmsUri"),
        time=_time(text_of(root, "Time"), "Time") or 0.0,
        client_req_url=text_of(root, "ClientReqUrl") or "",
        kms_id=text_of(root, "KmsId") or None,
        certificate=certificate,
        key_sets=key_sets,
        cache=cache,
        cache_no=cache_no,
        error=None
        if failure is None
        else (_number(text_of(failure, "ErrorCode") or "0", "ErrorCode"), text_of(failure, "ErrorMsg") or ""),
        id=root.get("Id", ""),
    )


def decode_request(source: bytes | Element) -> KmsRequest:
    """A KmsRequest document."""
    root = parse(source) if isinstance(source, bytes) else source
    if root.tag != f"{{{NS}}}KmsRequest":
        raise KmsError("no KmsRequest")
    at = _time(_required(root, "Time"), "Time")
    assert at is not None
    return KmsRequest(
        user_uri=_required(root, "UserUri"),
        kms_uri=_required(root, "KmsUri"),
        time=at,
        client_req_url=_required(root, "ClientReqUrl"),
        client_id=text_of(root, "ClientId") or None,
        device_id=text_of(root, "DeviceId") or None,
        id=root.get("Id", ""),
    )
