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
    #: MC code of the Warning that says why, where there is one
    warning: int | None = None


class EncryptedElement(DocumentError):
    """An element is protected with a key that this server does not have (33.180 9.3)."""

    status = 403
    warning = 140


def parse_xml(data: bytes, tag: str) -> etree._Element:
    """The root element of a document whose root must be ``tag``. Raises :class:`DocumentError`."""
    if len(data) > MAX_DOCUMENT:
        raise DocumentError(f"document of {len(data)} octets, more than {MAX_DOCUMENT}")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DocumentError(f"not well-formed XML: {' '.join(str(error).split())}") from None
    if getattr(root.getroottree().docinfo, "doctype", None):
        raise DocumentError("a document type declaration is not allowed")
    if root.tag != tag:
        raise DocumentError(f"root element is {root.tag!r}, not {tag}")
    return root


def serialise_xml(root: etree._Element) -> bytes:
    """The document, in UTF-8 with its declaration."""
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8")


@dataclass(frozen=True, slots=True)
class McpttInfo:
    """``application/vnd.3gpp.mcptt-info+xml`` (TS 24.379 F.1), what this project uses of it.

    All URIs are MCPTT identities as typed, never canonicalised. ``temporary_group`` is the temporary
    group indicator and ``acknowledgement`` the initiator's wish (``none``, ``optional``, ``required``);
    both are copies for the server: members believe only the signed text of the I_MESSAGE.
    ``emergency``, ``alert`` and ``imminent_peril`` are ``None`` when the element is absent: a refusal states them
    as false (24.379 6.3.3.1). ``required`` are the members without whom the initiator does not want to be answered;
    ``non_acknowledged`` those who had not answered when the call proceeded (24.379 6.3.3.3).
    ``initiator_guk_id`` tells the server which GUK-ID client 1 will send media under (32 bits), since
    no I_MESSAGE is delivered on its own leg. ``deputies`` may add, remove and rekey when the initiator is lost;
    ``floor_by_members`` asks for a relay that copies floor messages too, as members arbitrate.
    ``key_operation`` is ``update``, ``revoke`` or ``members`` in a MESSAGE, ``request`` in an INFO, and ``join`` in the
    MESSAGE of a user who wants to come back into a call.
    """

    session_type: str | None = None
    request_uri: str | None = None
    calling_user_id: str | None = None
    called_party_id: str | None = None
    calling_group_id: str | None = None
    client_id: str | None = None
    emergency: bool | None = None
    alert: bool | None = None
    imminent_peril: bool | None = None
    temporary_group: bool = False
    acknowledgement: str | None = None
    initiator_guk_id: int | None = None
    key_operation: str | None = None
    release_reason: str | None = None
    required: tuple[str, ...] = ()
    deputies: tuple[str, ...] = ()
    floor_by_members: bool = False
    non_acknowledged: tuple[str, ...] = ()

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
            ("emergency-ind", "mcpttBoolean", _flag(self.emergency)),
            ("alert-ind", "mcpttBoolean", _flag(self.alert)),
            ("imminentperil-ind", "mcpttBoolean", _flag(self.imminent_peril)),
            ("mcptt-client-id", "mcpttString", self.client_id),
        ):
            if value is not None:
                element = etree.SubElement(params, f"{{{NS_INFO}}}{name}", type="Normal")
                etree.SubElement(element, f"{{{NS_INFO}}}{kind}").text = value
        ours = {
            "temporary-group-ind": "true" if self.temporary_group else None,
            "tgmk-ack": self.acknowledgement,
            "initiator-guk-id": None if self.initiator_guk_id is None else f"{self.initiator_guk_id:08x}",
            "tgmk-op": self.key_operation,
            "floor": "members" if self.floor_by_members else None,
        }
        extensions = [(NS_TEMPORARY, name, value) for name, value in ours.items() if value is not None]
        extensions += [(NS_TEMPORARY, "required-member", user) for user in self.required]
        extensions += [(NS_TEMPORARY, "deputy", user) for user in self.deputies]
        if self.release_reason is not None:
            extensions.append((NS_INFO, "release-reason", self.release_reason))
        if extensions or self.non_acknowledged:
            any_ext = etree.SubElement(params, f"{{{NS_INFO}}}anyExt")
            for namespace, name, value in extensions:
                etree.SubElement(any_ext, f"{{{namespace}}}{name}").text = value
            for user in self.non_acknowledged:
                element = etree.SubElement(any_ext, f"{{{NS_INFO}}}non-acknowledged-user", type="Normal")
                etree.SubElement(element, f"{{{NS_INFO}}}mcpttURI").text = user
        return serialise_xml(root)

    @classmethod
    def decode(cls, data: bytes) -> McpttInfo:
        """Raises :class:`DocumentError`. Encrypted elements (33.180 9.3) are refused, not misread."""
        root = parse_xml(data, f"{{{NS_INFO}}}mcpttinfo")
        params = root.find(f"{{{NS_INFO}}}mcptt-Params")
        if params is None:
            raise DocumentError("mcptt-Params is missing")

        def typed(name: str) -> str | None:
            element = params.find(f"{{{NS_INFO}}}{name}")
            return None if element is None else _content(element)

        def flag(name: str) -> bool | None:
            text = typed(name)
            return None if text is None else text in ("true", "1")

        def extension(name: str, namespace: str = NS_TEMPORARY) -> list[etree._Element]:
            return params.findall(f"{{{NS_INFO}}}anyExt/{{{namespace}}}{name}")

        def ours(name: str) -> str | None:
            found = extension(name)
            return (found[0].text or "").strip() if found else None

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
            emergency=flag("emergency-ind"),
            alert=flag("alert-ind"),
            imminent_peril=flag("imminentperil-ind"),
            temporary_group=ours("temporary-group-ind") in ("true", "1"),
            acknowledgement=ours("tgmk-ack"),
            initiator_guk_id=guk_id,
            key_operation=ours("tgmk-op"),
            release_reason=next((_content(e) for e in extension("release-reason", NS_INFO)), None),
            required=tuple(dict.fromkeys(_content(e) for e in extension("required-member"))),
            floor_by_members=ours("floor") == "members",
            deputies=tuple((e.text or "").strip() for e in extension("deputy")),
            non_acknowledged=tuple(_content(e) for e in extension("non-acknowledged-user", NS_INFO)),
        )


def _flag(value: bool | None) -> str | None:
    return None if value is None else "true" if value else "false"


def _content(element: etree._Element) -> str:
    """What a ``contentType`` element holds: the text of its child, or its own where the child is left out."""
    if element.get("type", "Normal") != "Normal":
        raise EncryptedElement(f"{etree.QName(element).localname} is encrypted; XML protection is not supported")
    inner = [child for child in element if isinstance(child.tag, str)]
    return ((inner[0].text if inner else element.text) or "").strip()


@dataclass(frozen=True, slots=True)
class ResourceLists:
    """``application/resource-lists+xml`` (RFC 4826, as used by RFC 5366): the URIs, doubles once."""

    uris: tuple[str, ...] = ()

    def encode(self) -> bytes:
        root = etree.Element(f"{{{NS_LISTS}}}resource-lists", nsmap={None: NS_LISTS})  # type: ignore[dict-item]
        entries = etree.SubElement(root, f"{{{NS_LISTS}}}list")
        for uri in self.uris:
            etree.SubElement(entries, f"{{{NS_LISTS}}}entry", uri=uri)
        return serialise_xml(root)

    @classmethod
    def decode(cls, *documents: bytes) -> ResourceLists:
        """Several such parts count as one list and doubles count once (RFC 5363 §4.1)."""
        uris: dict[str, None] = {}
        for data in documents:
            root = parse_xml(data, f"{{{NS_LISTS}}}resource-lists")
            for entry in root.iter(f"{{{NS_LISTS}}}entry"):
                uri = entry.get("uri")
                if not uri:
                    raise DocumentError("an entry has no uri")
                uris[uri] = None
        return cls(tuple(uris))


@dataclass(frozen=True, slots=True)
class ConferenceUser:
    """One ``<user>`` of a roster: an MCPTT ID and the status of its endpoint (RFC 4575 §5.7).

    ``status`` is ``connected``, ``dialing-out`` (he is being invited), ``disconnected``, or ``deleted`` (not in the
    conference any more). ``outcome`` says in a ``Reason`` value (RFC 3326) how the invitation of somebody who is
    not connected ended (``disconnection-info``).
    """

    entity: str
    status: str = "connected"
    outcome: str | None = None
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
                if user.outcome is not None:
                    etree.SubElement(endpoint, f"{{{NS_CONFERENCE}}}disconnection-method").text = "failed"
                    info = etree.SubElement(endpoint, f"{{{NS_CONFERENCE}}}disconnection-info")
                    etree.SubElement(info, f"{{{NS_CONFERENCE}}}reason").text = user.outcome
            if user.acknowledgement is not None:
                etree.SubElement(element, f"{{{NS_TEMPORARY}}}tgmk-ack").text = user.acknowledgement
        return serialise_xml(root)

    @classmethod
    def decode(cls, data: bytes) -> ConferenceInfo:
        root = parse_xml(data, f"{{{NS_CONFERENCE}}}conference-info")
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
            reason = element.find(f".//{{{NS_CONFERENCE}}}disconnection-info/{{{NS_CONFERENCE}}}reason")
            users.append(
                ConferenceUser(
                    entity,
                    text or "connected",
                    None if reason is None else reason.text,
                    None if ack is None else ack.text,
                )
            )
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
