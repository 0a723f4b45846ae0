# SPDX-License-Identifier: Apache-2.0
"""Requests that came in, other than a first INVITE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcptt_sip.dialog import TARGET_REFRESH, Dialog
from mcptt_sip.errors import LocalProtocolError
from mcptt_sip.field_lines import HeaderItems
from mcptt_sip.flow import Flow
from mcptt_sip.message import Request
from mcptt_sip.session import InviteSession
from mcptt_sip.subscription import NotifierSubscription

if TYPE_CHECKING:
    from mcptt_sip.layer import ServerRecord
    from mcptt_sip.services import Services

__all__ = ["RequestReceived", "ServerRequest"]

#: requests whose 2xx carries a Contact (RFC 3261 12.1.1, 14.2; RFC 3311 5.2; RFC 6665 4.2.1.1)
_WITH_CONTACT = frozenset({"INVITE", "UPDATE", "SUBSCRIBE", "REFER", "NOTIFY"})


class ServerRequest:
    """One request awaiting its response. `session` is the call in whose dialog it came, if any."""

    __slots__ = ("_services", "_transaction", "answered", "dialog", "flow", "request", "session")

    def __init__(
        self, services: Services, transaction: ServerRecord, session: InviteSession | None, dialog: Dialog | None
    ) -> None:
        self._services = services
        self._transaction = transaction
        self.request: Request = transaction.request
        self.flow: Flow = transaction.flow
        self.session = session
        self.dialog = dialog
        self.answered = False

    @property
    def method(self) -> str:
        """The method of the request."""
        return self.request.method

    def respond(
        self,
        status: int,
        reason: str | None = None,
        *,
        headers: HeaderItems = (),
        body: bytes = b"",
        content_type: str | None = None,
        now: float,
    ) -> None:
        """Answer it. A final answer is given once; a second is a `LocalProtocolError`, and so is what nobody may say to
        another request than INVITE: a provisional answer (100 comes by itself when it is due) or 408 (RFC 4320 4)."""
        if self.answered:
            raise LocalProtocolError(f"the {self.method} is answered already")
        if self.method != "INVITE" and (status < 200 or status == 408):
            raise LocalProtocolError(f"{status} is no answer to {self.method} (RFC 4320 4)")
        response = self.request.response(
            status, reason, headers=headers, body=body, content_type=content_type, to_tag=self._services.tag()
        )
        success = 200 <= status < 300
        if success and self.method in _WITH_CONTACT and "contact" not in response.headers:
            response.headers.add("Contact", self._services.contact_for(self.request, self.flow))
        if status >= 200:
            self.answered = True
        if success and self.dialog is not None and self.method in TARGET_REFRESH:
            self.dialog.refresh_target(self.request)  # RFC 6141 4.6: not by a request that is refused
        session = self.session
        if session is None or self.method not in ("INVITE", "UPDATE") or status < 200:
            self._services.answer(self._transaction, response, now)
            return
        session.offer_answered(self._transaction)
        if success:
            session.add_timer_answer(self.request, response, now)
            session.described(content_type, body)
        outgoing = self._services.answer(self._transaction, response, now)
        if success and self.method == "INVITE":
            session.repeat_until_ack(lambda: self._services.send_again(outgoing), self.request, now)

    def accept_subscription(
        self,
        *,
        expires: int | None = None,
        headers: HeaderItems = (),
        status: int = 200,
        now: float,
    ) -> NotifierSubscription:
        """2xx to a SUBSCRIBE or REFER, and the subscription it makes. The first NOTIFY is the application's, and is
        due at once. `expires` shortens what the subscriber asked for."""
        request = self.request
        if self.answered:
            raise LocalProtocolError(f"the {self.method} is answered already")
        if self.method not in ("SUBSCRIBE", "REFER"):
            raise LocalProtocolError(f"{self.method} makes no subscription")
        asked = request.headers.expires
        refer = self.method == "REFER"
        wanted = (300 if refer else 3600) if asked is None else asked
        granted = wanted if expires is None else min(wanted, expires)
        event = request.headers.event
        tag = self._services.tag()
        dialog = self.dialog
        fresh = dialog is None
        if dialog is None:
            dialog = Dialog.uas(request, tag, self.flow)
            dialog.confirmed = True
        # RFC 3515 2.4.6: REFERs of one dialog are told apart by their CSeq
        package = "refer" if refer or event is None else event.package
        number = str(request.headers.cseq.number) if refer and not fresh else None
        event_id = number if refer else event.id if event is not None else None
        subscription = NotifierSubscription(
            self._services, dialog, package, event_id, expires=granted, now=now
        )
        more: list[tuple[str, Any]] = list(headers)
        if not refer:
            more.append(("Expires", granted))
        response = request.response(status, headers=more, to_tag=dialog.local_tag)
        if "contact" not in response.headers:
            response.headers.add("Contact", self._services.contact_for(self.request, self.flow))
        dialog.refresh_target(request)
        response.headers.copy_from(request.headers, "record-route")
        self.answered = True
        self._services.answer(self._transaction, response, now)
        return subscription


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A request for the application; it must answer `incoming`."""

    incoming: ServerRequest
