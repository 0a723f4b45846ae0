# SPDX-License-Identifier: Apache-2.0
"""The XML bodies of MCPTT signalling as values: ``McpttInfo``, ``ResourceLists``, ``ConferenceInfo``.

Each has ``decode(octets)`` and ``encode()``. Unknown elements are skipped, as the schemas ask with their
``anyExt``; what is known must be well formed, or :class:`DocumentError` says what is wrong. No document
type, entity or network access is ever processed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lxml import etree

from mcptt_sip.errors import SipError

MCPTT_INFO = "application/vnd.3gpp.mcptt-info+xml"
RESOURCE_LISTS = "application/resource-lists+xml"
CONFERENCE_INFO = "application/conference-info+xml"

NS_INFO = "urn:3gpp:ns:mcpttInfo:1.0"
NS_LISTS = "urn:ietf:params:xml:ns:resource-lists"
NS_CONFERENCE = "urn:ietf:params:xml:ns:conference-info"
#: Our elements inside ``<anyExt>``; a standard parser skips them (24.379 F.1.3).
NS_TEMPORARY = "urn:mcptt-sip:ns:temporaryGroup:1.0"

#: A document of ours is some hundred octets; a roster of a thousand users about 200 kB.
MAX_DOCUMENT = 1 << 20


class DocumentError(SipError):
    """A body that is not the XML document its content type promises. ``status`` is the SIP answer."""

    status = 400


def _root(data: bytes, tag: str) -> etree._Element:
    if len(data) > MAX_DOCUMENT:
        raise DocumentError(f"document of {len(data)} octets, more than {MAX_DOCUMENT}")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DocumentError(f"not well-formed XML: {error}") from None
    if getattr(root.getroottree().docinfo, "doctype", None):
        raise DocumentError("a document type declaration is not allowed")
    if root.tag != tag:
        raise DocumentError(f"root element is {root.tag}, not {tag}")
    return root


def _serialise(root: etree._Element) -> bytes:
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8")


@dataclass(frozen=True, slots=True)
class McpttInfo:
    """``application/vnd.3gpp.mcptt-info+xml`` (TS 24.379 F.1), what this project uses of it.

    All URIs are MCPTT identities as typed, never canonicalised. ``temporary_group`` is the temporary
    group indicator and ``acknowledgement`` the initiator's wish (``none``, ``optional``, ``required``);
    both are copies for the server: members believe only the signed text of the I_MESSAGE.
    ``initiator_guk_id`` tells the server which GUK-ID client 1 will send media under (32 bits), since
    no I_MESSAGE is delivered on its own leg. ``key_operation`` is ``update`` or ``revoke`` in a MESSAGE.
    """

    session_type: str | None = None
    request_uri: str | None = None
    calling_user_id: str | None = None
    called_party_id: str | None = None
    calling_group_id: str | None = None
    client_id: str | None = None
    emergency: bool = False
    temporary_group: bool = False
    acknowledgement: str | None = None
    initiator_guk_id: int | None = None
    key_operation: str | None = None
    release_reason: str | None = None

    def encode(self) -> bytes:
        """The document, elements in the order of the schema's sequence."""
        root = etree.Element(
            f"{{{NS_INFO}}}mcpttinfo", nsmap={None: NS_INFO, "x": NS_TEMPORARY}  # type: ignore[dict-item]
        )
        params = etree.SubElement(root, f"{{{NS_INFO}}}mcptt-Params")
        if self.session_type is not None:
            etree.SubElement(params, f"{{{NS_INFO}}}session-type").text = self.session_type
        for name, kind, value in (
            ("mcptt-request-uri", "mcpttURI", self.request_uri),
            ("mcptt-calling-user-id", "mcpttURI", self.calling_user_id),
            ("mcptt-called-party-id", "mcpttURI", self.called_party_id),
            ("mcptt-calling-group-id", "mcpttURI", self.calling_group_id),
            ("emergency-ind", "mcpttBoolean", "true" if self.emergency else None),
            ("mcptt-client-id", "mcpttString", self.client_id),
        ):
            if value is not None:
                element = etree.SubElement(params, f"{{{NS_INFO}}}{name}", type="Normal")
                etree.SubElement(element, f"{{{NS_INFO}}}{kind}").text = value
        extension = {
            "temporary-group-ind": "true" if self.temporary_group else None,
            "tgmk-ack": self.acknowledgement,
            "initiator-guk-id": None if self.initiator_guk_id is None else f"{self.initiator_guk_id:08x}",
            "tgmk-op": self.key_operation,
            "release-reason": self.release_reason,
        }
        if any(value is not None for value in extension.values()):
            any_ext = etree.SubElement(params, f"{{{NS_INFO}}}anyExt")
            for name, value in extension.items():
                if value is not None:
                    etree.SubElement(any_ext, f"{{{NS_TEMPORARY}}}{name}").text = value
        return _serialise(root)

    @classmethod
    def decode(cls, data: bytes) -> McpttInfo:
        """Raises :class:`DocumentError`. Encrypted elements (33.180 9.3) are refused, not misread."""
        root = _root(data, f"{{{NS_INFO}}}mcpttinfo")
        params = root.find(f"{{{NS_INFO}}}mcptt-Params")
        if params is None:
            raise DocumentError("mcptt-Params is missing")

        def typed(name: str) -> str | None:
            element = params.find(f"{{{NS_INFO}}}{name}")
            if element is None:
                return None
            if element.get("type", "Normal") != "Normal":
                raise DocumentError(f"{name} is encrypted; XML protection is not supported")
            inner = [child for child in element if isinstance(child.tag, str)]
            return (inner[0].text if inner else element.text) or ""

        def ours(name: str) -> str | None:
            element = params.find(f"{{{NS_INFO}}}anyExt/{{{NS_TEMPORARY}}}{name}")
            return None if element is None else (element.text or "").strip()

        session_type = params.find(f"{{{NS_INFO}}}session-type")
        guk_text = ours("initiator-guk-id")
        try:
            guk_id = None if guk_text is None else int(guk_text, 16)
        except ValueError:
            raise DocumentError("initiator-guk-id is not hexadecimal") from None
        if guk_id is not None and not 0 <= guk_id < 1 << 32:
            raise DocumentError("initiator-guk-id has more than 32 bits")
        return cls(
            session_type=None if session_type is None else (session_type.text or "").strip(),
            request_uri=typed("mcptt-request-uri"),
            calling_user_id=typed("mcptt-calling-user-id"),
            called_party_id=typed("mcptt-called-party-id"),
            calling_group_id=typed("mcptt-calling-group-id"),
            client_id=typed("mcptt-client-id"),
            emergency=typed("emergency-ind") in ("true", "1"),
            temporary_group=ours("temporary-group-ind") in ("true", "1"),
            acknowledgement=ours("tgmk-ack"),
            initiator_guk_id=guk_id,
            key_operation=ours("tgmk-op"),
            release_reason=ours("release-reason"),
        )


@dataclass(frozen=True, slots=True)
class ResourceLists:
    """``application/resource-lists+xml`` (RFC 4826, as used by RFC 5366): the URIs, doubles once."""

    uris: tuple[str, ...] = ()

    def encode(self) -> bytes:
        root = etree.Element(f"{{{NS_LISTS}}}resource-lists", nsmap={None: NS_LISTS})  # type: ignore[dict-item]
        entries = etree.SubElement(root, f"{{{NS_LISTS}}}list")
        for uri in self.uris:
            etree.SubElement(entries, f"{{{NS_LISTS}}}entry", uri=uri)
        return _serialise(root)

    @classmethod
    def decode(cls, *documents: bytes) -> ResourceLists:
        """Several such parts count as one list and doubles count once (RFC 5363 §4.1)."""
        uris: dict[str, None] = {}
        for data in documents:
            root = _root(data, f"{{{NS_LISTS}}}resource-lists")
            for entry in root.iter(f"{{{NS_LISTS}}}entry"):
                uri = entry.get("uri")
                if not uri:
                    raise DocumentError("an entry has no uri")
                uris[uri] = None
        return cls(tuple(uris))


@dataclass(frozen=True, slots=True)
class ConferenceUser:
    """One ``<user>`` of a roster: an MCPTT ID and the status of its endpoint (RFC 4575 §5.7)."""

    entity: str
    status: str = "connected"
    #: the acknowledgement of this user's key, passed on opaquely (base64 text), when there is one
    acknowledgement: str | None = None


@dataclass(frozen=True, slots=True)
class ConferenceInfo:
    """``application/conference-info+xml`` (RFC 4575): the server's word on who is in the call."""

    entity: str
    version: int
    state: str = "full"
    users: tuple[ConferenceUser, ...] = field(default=())

    def encode(self) -> bytes:
        root = etree.Element(
            f"{{{NS_CONFERENCE}}}conference-info",
            nsmap={None: NS_CONFERENCE, "x": NS_TEMPORARY},  # type: ignore[dict-item]
            entity=self.entity,
            state=self.state,
            version=str(self.version),
        )
        users = etree.SubElement(root, f"{{{NS_CONFERENCE}}}users")
        for user in self.users:
            deleted = user.status == "deleted"
            element = etree.SubElement(
                users, f"{{{NS_CONFERENCE}}}user", entity=user.entity, state="deleted" if deleted else "full"
            )
            if not deleted:
                endpoint = etree.SubElement(element, f"{{{NS_CONFERENCE}}}endpoint", entity=user.entity)
                etree.SubElement(endpoint, f"{{{NS_CONFERENCE}}}status").text = user.status
            if user.acknowledgement is not None:
                etree.SubElement(element, f"{{{NS_TEMPORARY}}}tgmk-ack").text = user.acknowledgement
        return _serialise(root)

    @classmethod
    def decode(cls, data: bytes) -> ConferenceInfo:
        root = _root(data, f"{{{NS_CONFERENCE}}}conference-info")
        try:
            version = int(root.get("version", ""))
        except ValueError:
            raise DocumentError("conference-info has no version") from None
        users = []
        for element in root.iter(f"{{{NS_CONFERENCE}}}user"):
            entity = element.get("entity")
            if not entity:
                raise DocumentError("a user has no entity")
            status = element.find(f".//{{{NS_CONFERENCE}}}status")
            text = "deleted" if element.get("state") == "deleted" else ""
            if status is not None and status.text:
                text = status.text
            ack = element.find(f"{{{NS_TEMPORARY}}}tgmk-ack")
            users.append(ConferenceUser(entity, text or "connected", None if ack is None else ack.text))
        return cls(root.get("entity", ""), version, root.get("state", "full"), tuple(users))

    def apply(self, newer: ConferenceInfo) -> ConferenceInfo | None:
        """The roster after ``newer``; ``None`` when versions have a gap and a refresh is due (§4.6)."""
        if newer.state == "full":
            return newer
        if newer.version <= self.version:
            return self
        if newer.version != self.version + 1:
            return None
        users = {user.entity: user for user in self.users}
        _merge(users, newer.users)
        return ConferenceInfo(self.entity, newer.version, "full", tuple(users.values()))


def _merge(users: dict[str, ConferenceUser], changes: Iterable[ConferenceUser]) -> None:
    for user in changes:
        if user.status == "deleted":
            users.pop(user.entity, None)
        else:
            users[user.entity] = user
