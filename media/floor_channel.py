# SPDX-License-Identifier: Apache-2.0
"""A member's floor control channel: whose arbitration it follows, under which key its messages go; sans-IO.

By default the server arbitrates and the key is the CSK that this member shares with it. After
:meth:`FloorChannel.arbitrate` members do, and messages go to all of them under each sender's own key of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from media.errors import SrtpError
from media.floor_fields import URGENT, FloorIndicator
from media.floor_members import MemberFloor, MemberFloorSettings
from media.floor_messages import FloorMessage, decode_all
from media.floor_participant import Event, FloorParticipant, ParticipantSettings, ParticipantState
from media.rtcp import ReceiverReports, Report, decode_report
from media.srtp import CSK, GROUP, SrtpKey, SrtpReceiver, SrtpSender

__all__ = ["FloorChannel"]


class FloorChannel:
    """One member's channel.

    :param find_key: the sender's key behind an MKI of the group
    :param owns: whether a user sends under an MKI
    """

    def __init__(
        self,
        user: str,
        ssrc: int,
        clock_rate: int,
        settings: ParticipantSettings,
        find_key: Callable[[bytes], SrtpKey | None],
        owns: Callable[[str, bytes], bool],
    ) -> None:
        self.user = user
        self.ssrc = ssrc
        self.reports = ReceiverReports(ssrc, clock_rate)
        #: when the other side was heard last
        self.heard = 0.0
        self._settings = settings
        self._find_key = find_key
        self._owns = owns
        self._server = FloorParticipant(ssrc=ssrc, settings=settings, user=user)
        self._members: MemberFloor | None = None
        self._receiver: SrtpReceiver | None = None
        self._sender: SrtpSender | None = None

    # --- keys and placement ---------------------------------------------------------------------------

    def set_csk(self, key: SrtpKey) -> None:
        """The key between this member and the server (4-octet MKI), both ways; of no use when members arbitrate."""
        if self._members is None:
            self._receiver = SrtpReceiver(
                lambda mki: key if mki == key.mki else None, CSK, own_ssrcs={self.ssrc}
            )
            self._sender = self._with(key)

    def arbitrate(self, order: Sequence[str], settings: MemberFloorSettings | None = None) -> None:
        """Members arbitrate, in this order; before the call is established."""
        self._members = MemberFloor(
            self.user, order, self.ssrc, settings=settings or MemberFloorSettings(participant=self._settings)
        )
        self._receiver, self._sender = SrtpReceiver(self._find_key, GROUP, own_ssrcs={self.ssrc}), None

    def declare(self, urgency: FloorIndicator) -> None:
        """What this member's own requests say of the call (0: nothing). Where members arbitrate they say nothing of it:
        what a call is, is the server's word, and the server has none in their floor (security rule 19)."""
        self._server.indicator = self._server.indicator & ~URGENT | urgency

    def set_group_key(self, key: SrtpKey | None) -> None:
        """What this member sends under in the group."""
        if self._members is not None:
            self._sender = None if key is None else self._with(key)

    def retire(self, gmk_id: bytes) -> None:
        """Lets go of a group key."""
        if self._members is not None and self._receiver is not None:
            self._receiver.retire(gmk_id)

    def _with(self, key: SrtpKey) -> SrtpSender:
        if self._sender is None:
            policy = CSK if self._members is None else GROUP
            return SrtpSender(key, self.ssrc, policy)
        self._sender.set_key(key)
        return self._sender

    @property
    def machine(self) -> FloorParticipant | MemberFloor:
        """This member's floor."""
        return self._server if self._members is None else self._members

    @property
    def members(self) -> MemberFloor | None:
        """The floor among the members; ``None`` when the server arbitrates."""
        return self._members

    @property
    def state(self) -> ParticipantState:
        """Of this member's floor."""
        return self.machine.state

    # --- datagrams ------------------------------------------------------------------------------------

    def open(self, octets: bytes, now: float) -> tuple[bytes, list[tuple[str, FloorMessage]]]:
        """(plain RTCP, messages with their senders); a report of the server gives no messages.

        Raises :class:`SrtpError`, :class:`RtpError` or :class:`FloorMessageError`.
        """
        if self._receiver is None:
            raise SrtpError("no key for floor control")
        opened = self._receiver.unprotect_rtcp(octets)
        self.heard = now
        if opened.data[1] in (200, 201):
            self.reports.server_report(decode_report(opened.data), now)
            return opened.data, []
        sender = "" if self._members is None else self._sender_of(opened.mki)
        return opened.data, [(sender, message) for message in decode_all(opened.data)]

    def _sender_of(self, mki: bytes) -> str:
        assert self._members is not None
        users = (self.user, *self._members.order, *self._members.members)
        return next((user for user in users if self._owns(user, mki)), "")

    def establish(self, now: float, *, implicit_request: bool, granted: bool) -> None:
        """The call is there; with an implicit request, which only a server answers, the floor is asked for with it,
        or ``granted`` already."""
        self.heard = now
        if self._members is None:
            self._server.implicit_request = implicit_request
            self._server.call_established(now, granted=granted)
        else:
            self._members.call_established(now)

    def receive(self, sender: str, message: FloorMessage, now: float) -> None:
        """A message that :meth:`open` gave."""
        if self._members is None:
            self._server.receive(message, now)
        elif sender:
            self._members.receive(sender, message, now)

    def protect(self, plain: bytes) -> bytes | None:
        """RTCP for the other side; ``None`` without a key."""
        return None if self._sender is None else self._sender.protect_rtcp(plain)

    def keep_alive(self, now: float) -> tuple[bytes, bytes | None]:
        """What goes out to keep addresses alive, on the audio and on the floor control socket.

        To a server that arbitrates they are authentic reports, so that it may believe the address they come from.
        """
        if self._sender is None or self._members is not None:
            return b"", b"" if self._members is not None else None
        return (
            self._sender.protect_rtcp(Report(self.ssrc).encode()),
            self._sender.protect_rtcp(self.reports.report(now).encode()),
        )

    # --- media ----------------------------------------------------------------------------------------

    def media_received(self, mki: bytes, now: float) -> None:
        """Authentic audio has come, under ``mki``."""
        if self._members is None:
            self._server.media_received(now)
        else:
            self._members.media_received(now, self._sender_of(mki))

    def media_sent(self, now: float) -> None:
        """This member's audio goes out."""
        if self._members is not None:
            self._members.media_sent(now)

    def events(self) -> list[Event]:
        """What the user is to know since the last call."""
        return self.machine.events()
