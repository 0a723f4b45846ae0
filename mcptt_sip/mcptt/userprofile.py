# SPDX-License-Identifier: Apache-2.0
"""A user's rights in the words of TS 24.484: as a value, as a table of the policy file, as user-profile XML.

The names are those of the schema (namespace ``urn:3gpp:mcptt:user-profile:1.0``). In XML a right that is missing
is not given; in a policy file it has the default of :class:`UserProfile`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lxml import etree

from mcptt_sip.errors import SipError
from mcptt_sip.mcptt.documents import DocumentError, parse_xml, serialise_xml
from mcptt_sip.uri import SipUri

NS_PROFILE = "urn:3gpp:mcptt:user-profile:1.0"
NS_POLICY = "urn:ietf:params:xml:ns:common-policy"

#: a count of the schema is a positive integer; more than this is a slip of the pen
MAX_COUNT = 65535
#: of floor control: one octet (TS 24.380 8.2.3.2)
MAX_PRIORITY = 255


class ProfileError(SipError):
    """A profile is not usable; the message names the user and the entry."""


@dataclass(frozen=True, slots=True)
class UserProfile:
    """One user's rights. Field names are the elements' names with ``_`` for ``-``, or, where the schema has names
    of another kind, those of :data:`NAMES`.

    ``user_priority`` is the highest floor priority (0 to 255; ``Priority`` of MCPTT-group-call).
    """

    uri: str
    username: str = ""
    #: password of the digest (RFC 7616); from the policy file, never printed, never in XML
    password: str = field(default="", repr=False)
    # as a caller
    allow_regroup: bool = False
    allow_private_call: bool = False
    allow_private_call_to_any_user: bool = False
    private_call_list: tuple[str, ...] = ()
    allow_private_call_media_protection: bool = True
    allow_private_call_floor_control_protection: bool = True
    allow_automatic_commencement: bool = True
    allow_manual_commencement: bool = True
    allow_force_auto_answer: bool = False
    allow_emergency_group_call: bool = False
    allow_imminent_peril_call: bool = False
    allow_cancel_group_emergency: bool = False
    allow_cancel_imminent_peril: bool = False
    allow_activate_emergency_alert: bool = False
    allow_to_receive_non_acknowledged_users_information: bool = True
    # as a called user
    allow_private_call_participation: bool = True
    allow_adhoc_group_call_participation: bool = True
    allow_to_receive_private_call_from_any_user: bool = True
    incoming_private_call_list: tuple[str, ...] = ()
    # limits
    user_priority: int = 5
    max_simultaneous_calls: int = 8
    max_affiliations: int = 32

    def table(self) -> dict[str, Any]:
        """The entries of its policy table that differ from the defaults, under their standard names."""
        plain, values = UserProfile(self.uri), {}
        for name, at in _FIELD_OF.items():
            value = getattr(self, at)
            if value != getattr(plain, at) and name == STANDARD_NAME[at]:
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def of_table(cls, uri: str, table: Mapping[str, Any]) -> UserProfile:
        """From one table of a policy file. Raises :class:`ProfileError`."""
        _check_uri(uri, f"user {uri!r}")
        values: dict[str, Any] = {}
        for key, value in table.items():
            name = field_named(key, uri)
            if name in values:
                raise ProfileError(f"user {uri}: {key} stands there twice, in two spellings")
            values[name] = check_value(uri, key, value)
        values.setdefault("username", SipUri.parse(uri).user or "")
        return cls(uri, **values)

    def encode(self) -> bytes:
        """The user-profile document. The password is not part of it."""
        root = etree.Element(
            _tag("mcptt-user-profile"),
            {"XUI-URI": self.uri, "user-profile-index": "1"},
            nsmap={None: NS_PROFILE, "cp": NS_POLICY},  # type: ignore[dict-item]
        )
        etree.SubElement(root, _tag("Status")).text = "true"
        common = etree.SubElement(root, _tag("Common"), index="1")
        if self.username:
            alias = etree.SubElement(etree.SubElement(common, _tag("UserAlias")), _tag("alias-entry"))
            alias.text = self.username
        _uri_entry(etree.SubElement(common, _tag("MCPTTUserID")), self.uri)
        private = etree.SubElement(common, _tag("PrivateCall"))
        _uri_list(private, "PrivateCallList", self.private_call_list)
        group = etree.SubElement(common, _tag("MCPTT-group-call"))
        etree.SubElement(group, _tag("MaxSimultaneousCallsN6")).text = str(self.max_simultaneous_calls)
        etree.SubElement(group, _tag("Priority")).text = str(self.user_priority)
        if self.incoming_private_call_list:
            extension = etree.SubElement(common, _tag("anyExt"))
            _uri_list(extension, "IncomingPrivateCallList", self.incoming_private_call_list)
        rules = etree.SubElement(root, f"{{{NS_POLICY}}}ruleset")
        rule = etree.SubElement(rules, f"{{{NS_POLICY}}}rule", id="mcptt-user-authorisation")
        actions = etree.SubElement(rule, f"{{{NS_POLICY}}}actions")
        for name in _RIGHTS:
            if name not in _LATER_RIGHTS:
                etree.SubElement(actions, _tag(name)).text = _boolean(getattr(self, _FIELD_OF[name]))
        later = etree.SubElement(actions, _tag("anyExt"))
        for name in _LATER_RIGHTS:
            etree.SubElement(later, _tag(name)).text = _boolean(getattr(self, _FIELD_OF[name]))
        network = etree.SubElement(root, _tag("OnNetwork"), index="1")
        etree.SubElement(network, _tag("MaxAffiliationsN2")).text = str(self.max_affiliations)
        return serialise_xml(root)

    @classmethod
    def decode(cls, data: bytes) -> tuple[UserProfile, tuple[str, ...]]:
        """The profile of a document, and the names of the rights in it that nothing here acts upon.

        Raises :class:`~mcptt_sip.mcptt.documents.DocumentError`.
        """
        root = parse_xml(data, _tag("mcptt-user-profile"))
        uri = _first(root, "Common/MCPTTUserID/uri-entry") or root.get("XUI-URI") or ""
        try:
            _check_uri(uri, "MCPTTUserID")
        except ProfileError as error:
            raise DocumentError(str(error)) from None
        status = _first(root, "Status")
        if status is not None and status not in ("true", "1"):
            raise DocumentError(f"the profile of {uri} is disabled (Status is {status!r})")
        rights = {etree.QName(element).localname: (element.text or "").strip() for element in _rights_in(root)}
        values: dict[str, Any] = {
            "username": _first(root, "Common/UserAlias/alias-entry") or SipUri.parse(uri).user or "",
            "private_call_list": tuple(_uris(root, "Common/PrivateCall/PrivateCallList")),
            "incoming_private_call_list": tuple(_uris(root, "Common//IncomingPrivateCallList")),
        }
        for name in _RIGHTS:
            text = rights.get(name, "false")
            if text not in ("true", "1", "false", "0"):
                raise DocumentError(f"{name} is {text!r}, not true or false")
            values[_FIELD_OF[name]] = text in ("true", "1")
        for path, at, limit in (
            ("Common/MCPTT-group-call/MaxSimultaneousCallsN6", "max_simultaneous_calls", MAX_COUNT),
            ("Common/MCPTT-group-call/Priority", "user_priority", MAX_PRIORITY),
            ("OnNetwork/MaxAffiliationsN2", "max_affiliations", MAX_COUNT),
        ):
            number = _first(root, path)
            if number is None:
                continue
            if not number.isdecimal() or int(number) > limit:
                raise DocumentError(f"{path.rpartition('/')[2]} is {number!r}, not a number up to {limit}")
            values[at] = int(number)
        return cls(uri, **values), tuple(sorted(rights.keys() - set(_RIGHTS)))


#: names of the schema that are not the field's own with dashes
NAMES: Mapping[str, str] = {
    "PrivateCallList": "private_call_list",
    "IncomingPrivateCallList": "incoming_private_call_list",
    "MaxSimultaneousCallsN6": "max_simultaneous_calls",
    "MaxAffiliationsN2": "max_affiliations",
}
#: every spelling that a policy file may use -> field
_FIELD_OF: dict[str, str] = {f.name.replace("_", "-"): f.name for f in fields(UserProfile) if f.name != "uri"} | dict(
    NAMES
)
#: field -> the spelling that is written
STANDARD_NAME: Mapping[str, str] = {at: name for name, at in _FIELD_OF.items()}
_RIGHTS = tuple(name for name in _FIELD_OF if name.startswith("allow-"))
#: rights that came after Rel-13 and stand in ``<anyExt>``
_LATER_RIGHTS = (
    "allow-to-receive-private-call-from-any-user",
    "allow-adhoc-group-call-participation",
    "allow-to-receive-non-acknowledged-users-information",
)


def field_named(key: str, uri: str) -> str:
    """The field that an entry of a policy file is; raises :class:`ProfileError` with what may have been meant."""
    name = _FIELD_OF.get(key)
    if name is None:
        near = difflib.get_close_matches(key, _FIELD_OF, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ProfileError(f"user {uri}: unknown entry {key!r}{hint}")
    return name


def check_value(uri: str, key: str, value: object) -> Any:
    """``value`` as the field holds it, when it is of the right type and within its limits."""
    name = field_named(key, uri)
    wanted = type(getattr(UserProfile(uri), name))
    if wanted is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ProfileError(f"user {uri}: {key} must be a list of URIs")
        for item in value:
            _check_uri(item, f"user {uri}: {key}: {item!r}")
        return tuple(value)
    if type(value) is not wanted:
        kind = {bool: "true or false", int: "a number", str: "a text"}[wanted]
        raise ProfileError(f"user {uri}: {key} must be {kind}, not {value!r}")
    if isinstance(value, int) and not isinstance(value, bool):
        limit = MAX_PRIORITY if name == "user_priority" else MAX_COUNT
        if not 0 <= value <= limit:
            raise ProfileError(f"user {uri}: {key} is {value}, not from 0 to {limit}")
    return value


def _check_uri(text: str, where: str) -> None:
    try:
        SipUri.parse(text)
    except SipError as error:
        raise ProfileError(f"{where} is no SIP URI: {error}") from None


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _tag(name: str) -> str:
    return f"{{{NS_PROFILE}}}{name}"


def _path(path: str) -> str:
    return "/".join(_tag(step) if step else step for step in path.split("/"))


def _first(root: etree._Element, path: str) -> str | None:
    element = root.find(_path(path))
    return None if element is None or element.text is None else element.text.strip()


def _uri_entry(parent: etree._Element, uri: str) -> None:
    etree.SubElement(parent, _tag("uri-entry")).text = uri


def _uri_list(parent: etree._Element, name: str, uris: tuple[str, ...]) -> None:
    holder = etree.SubElement(parent, _tag(name))
    for uri in uris:
        _uri_entry(etree.SubElement(holder, _tag("PrivateCallURI")), uri)


def _uris(root: etree._Element, path: str) -> Iterator[str]:
    for holder in root.iterfind(_path(path)):
        for entry in holder.iter(_tag("uri-entry")):
            text = (entry.text or "").strip()
            try:
                _check_uri(text, path.rpartition("/")[2])
            except ProfileError as error:
                raise DocumentError(str(error)) from None
            yield text


def _rights_in(root: etree._Element) -> Iterator[etree._Element]:
    """Every right, whatever its namespace: extensions keep the local name."""
    for actions in root.iter(f"{{{NS_POLICY}}}actions"):
        for element in actions.iter():
            if isinstance(element.tag, str) and etree.QName(element).localname.startswith("allow-"):
                yield element
