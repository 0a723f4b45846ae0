# SPDX-License-Identifier: Apache-2.0
"""The registrar of RFC 3261 10.3 and its location service, without sockets or clock: Path (RFC 3327), outbound flows
(RFC 5626), public GRUUs (RFC 5627).

>>> registrar = Registrar()
>>> registrar.bindings("sip:alice@example.org", now=0.0)
[]

:RFC 3327: yes; Path
:RFC 5627: partly; public GRUUs; no temporary ones
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mcptt_sip.errors import ParseError, ProtocolError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.headers import NameAddr, parse_delta_seconds
from mcptt_sip.message import Request
from mcptt_sip.uri import SipUri, Uri

__all__ = ["Binding", "LocationService", "MemoryLocationService", "Outcome", "Registrar", "RegistrarSettings"]


@dataclass(frozen=True, slots=True)
class RegistrarSettings:
    """Times in seconds."""

    default_expires: int = 3600
    min_expires: int = 60
    max_expires: int = 86400
    #: contacts of one address-of-record; beyond, 403
    max_bindings: int = 16


@dataclass(frozen=True, slots=True)
class Binding:
    """One contact of an address-of-record. Times are Unix seconds; `flow` is where its REGISTER came from."""

    contact: Uri
    flow: Flow
    registered: float
    expires_at: float
    call_id: str
    cseq: int
    q: float = 1.0
    path: tuple[str, ...] = ()
    instance: str | None = None  # +sip.instance (RFC 5626)
    reg_id: int | None = None

    def same_device(self, other: Binding) -> bool:
        """Whether `other` takes this binding's place: the same contact, or the same flow of the same device."""
        if self.instance is not None and self.reg_id is not None:
            return (self.instance, self.reg_id) == (other.instance, other.reg_id)
        return self.contact.equivalent(other.contact)


class LocationService(Protocol):
    """Where bindings are kept. All by address-of-record in canonical form."""

    def get(self, aor: str) -> list[Binding]:
        """The bindings of one address-of-record, expired ones perhaps included."""
        ...

    def put(self, aor: str, bindings: list[Binding]) -> None:
        """Replaces them; an empty list removes the entry."""
        ...

    def over(self, flow: Flow) -> list[str]:
        """Addresses-of-record with a binding over this flow."""
        ...


class MemoryLocationService:
    """A location service that ends with the process."""

    def __init__(self) -> None:
        self._bindings: dict[str, list[Binding]] = {}

    def get(self, aor: str) -> list[Binding]:
        """See `LocationService`."""
        return list(self._bindings.get(aor, ()))

    def put(self, aor: str, bindings: list[Binding]) -> None:
        """See `LocationService`."""
        if bindings:
            self._bindings[aor] = list(bindings)
        else:
            self._bindings.pop(aor, None)

    def over(self, flow: Flow) -> list[str]:
        """See `LocationService`."""
        return [aor for aor, bindings in self._bindings.items() if any(b.flow == flow for b in bindings)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to answer a REGISTER with."""

    status: int
    headers: tuple[tuple[str, object], ...] = ()
    reason: str | None = None


class Registrar:
    """Registers contacts. The caller has authenticated the request and checked who may register whom."""

    def __init__(
        self, settings: RegistrarSettings | None = None, *, location: LocationService | None = None
    ) -> None:
        self.settings = settings or RegistrarSettings()
        self._location = location or MemoryLocationService()

    def register(self, request: Request, flow: Flow, now: float) -> Outcome:
        """RFC 3261 10.3 steps 5 to 8: all of the contacts are registered, or none."""
        try:
            if not isinstance(request.headers.to.uri, SipUri):
                raise ProtocolError("an address-of-record is a SIP or SIPS URI")  # 10.2, To
            aor = canonical_aor(request.headers.to.uri)
            bindings = self._changed(request, flow, aor, now)
        except ProtocolError as error:
            headers: HeaderItems = ()
            if error.status == 423:
                headers = (("Min-Expires", str(self.settings.min_expires)),)
            return Outcome(error.status, tuple(headers), error.reason)
        self._location.put(aor, bindings)
        gruu = request.headers.supports("gruu")
        answer: list[tuple[str, object]] = [
            ("Contact", self._contact(binding, now, aor if gruu else None)) for binding in bindings
        ]
        answer += [("Path", path) for path in request.headers.get_all("Path")]
        if any(binding.flow == flow and binding.reg_id is not None for binding in bindings):
            answer.append(("Require", "outbound"))
        return Outcome(200, tuple(answer))

    def bindings(self, aor: str, now: float) -> list[Binding]:
        """The valid bindings, preferred ones first (by q, then the newest); of a public GRUU, those of its device."""
        valid = [binding for binding in self._location.get(_aor_text(aor)) if binding.expires_at > now]
        if (instance := _gruu_instance(aor)) is not None:
            valid = [binding for binding in valid if binding.instance == f"<{instance}>"]
        return sorted(valid, key=lambda binding: (-binding.q, -binding.registered))

    def flow_lost(self, flow: Flow, now: float) -> list[str]:
        """Removes every binding over a flow that is gone (RFC 5626 5.3); whose they were."""
        lost = self._location.over(flow)
        for aor in lost:
            kept = [b for b in self._location.get(aor) if b.flow != flow and b.expires_at > now]
            self._location.put(aor, kept)
        return lost

    # --- the rules ------------------------------------------------------------------------------------

    def _changed(self, request: Request, flow: Flow, aor: str, now: float) -> list[Binding]:
        """The bindings as the request wants them; raises with the status of the refusal."""
        headers = request.headers
        held = [binding for binding in self._location.get(aor) if binding.expires_at > now]
        call_id, cseq = headers.call_id, headers.cseq.number
        if headers.contact_star:
            if headers.expires != 0:
                raise ProtocolError("Contact: * needs Expires: 0")
            for binding in held:
                self._in_order(binding, call_id, cseq)
            return []
        _ = headers.path  # read now: 400, or every call to this user would fail of it
        path = tuple(headers.get_all("Path"))
        for contact in headers.contact:
            expires = self._expires(contact, headers.expires)
            wanted = Binding(
                contact.uri, flow, now, now + expires, call_id, cseq, _q(contact), path, *_instance(contact)
            )
            for binding in held:
                if binding.same_device(wanted):
                    self._in_order(binding, call_id, cseq)
            held = [binding for binding in held if not binding.same_device(wanted)]
            if expires:
                held.append(wanted)
        if len(held) > self.settings.max_bindings:
            raise ProtocolError(f"more than {self.settings.max_bindings} contacts", status=403)
        return held

    @staticmethod
    def _in_order(binding: Binding, call_id: str, cseq: int) -> None:
        if binding.call_id == call_id and cseq <= binding.cseq:
            raise ProtocolError("an older REGISTER than the last", status=500)

    def _expires(self, contact: NameAddr, default: int | None) -> int:
        stated = contact.params.get("expires")
        wanted = parse_delta_seconds(stated) if stated is not None else default
        if wanted is None:
            wanted = self.settings.default_expires
        if 0 < wanted < self.settings.min_expires:
            raise ProtocolError("the interval is too brief", status=423)
        return min(wanted, self.settings.max_expires)

    @staticmethod
    def _contact(binding: Binding, now: float, gruu_of: str | None = None) -> str:
        contact = NameAddr(binding.contact).with_param("expires", str(max(0, round(binding.expires_at - now))))
        if binding.q != 1.0:
            contact = contact.with_param("q", f"{binding.q:.3f}".rstrip("0").rstrip("."))
        if binding.instance is not None:
            contact = contact.with_param("+sip.instance", f'"{binding.instance}"')
            if gruu_of is not None:
                contact = contact.with_param("pub-gruu", f'"{public_gruu(gruu_of, binding.instance)}"')
        return str(contact)


def canonical_aor(uri: Uri) -> str:
    """The key of an address-of-record: no port, parameters, headers; host in lower case (10.3 step 5)."""
    return str(uri.aor) if isinstance(uri, SipUri) else str(uri)


def public_gruu(aor: str, instance: str) -> str:
    """The public GRUU of a device (RFC 5627 5.1): the address-of-record with the instance in its ``gr``."""
    return f"{aor};gr={instance.strip('<>')}"


def _gruu_instance(uri: str) -> str | None:
    if ";gr=" not in uri.lower() or uri[:3].lower() != "sip":
        return None
    return SipUri.parse(uri).param("gr")


def _aor_text(aor: str) -> str:
    return canonical_aor(SipUri.parse(aor)) if aor[:4].lower() in ("sip:", "sips") else aor


def _q(contact: NameAddr) -> float:
    value = contact.params.get("q")
    if value is None:
        return 1.0
    try:
        q = float(value)
    except ValueError:
        raise ParseError(f"q={value[:20]!r} is no number") from None
    if not 0.0 <= q <= 1.0:
        raise ParseError(f"q={value[:20]!r} is not between 0 and 1")
    return q


def _instance(contact: NameAddr) -> tuple[str | None, int | None]:
    instance, reg_id = contact.params.get("+sip.instance"), contact.params.get("reg-id")
    if instance is None:
        return None, None
    number = int(reg_id) if reg_id is not None and reg_id.isdecimal() and len(reg_id) < 10 else None
    return instance.strip('"'), number
