# SPDX-License-Identifier: Apache-2.0
"""SIP messages made from the grammar of RFC 3261 25, with a fault put in here and there."""

from __future__ import annotations

import random

TOKENS = ("a", "branch", "tag", "x-1", "lr", "%41", "+sip.instance", "~", "INVITE", "!")
HOSTS = ("example.org", "192.0.2.1", "[2001:db8::1]", "a.b-c", "1.2.3", "[::1", "-", "xn--e1afmkfd.example")
FAULTS = (b'"', b"<", b">", b",", b";", b"\r\n", b"\x00", b"%", b"\\", b"(")
SPACES = ("", " ", "  ", "\t", "\r\n ", " \r\n\t")
DIGITS = ("0", "1", "5060", "70", "4294967295", "4294967296", "99999999999999999999", "-1", "")
METHODS = ("INVITE", "ACK", "BYE", "OPTIONS", "REGISTER", "SUBSCRIBE", "NOTIFY", "REFER", "PRACK", "DANCE")
#: header names and what makes their values
NAMES = (
    "Via", "v", "From", "f", "To", "t", "Contact", "m", "Route", "Record-Route", "Call-ID", "i", "CSeq",
    "Max-Forwards", "Content-Type", "c", "Content-Length", "l", "Supported", "k", "Require", "Event", "o",
    "Subscription-State", "Refer-To", "r", "Replaces", "Target-Dialog", "Session-Expires", "x", "Warning", "Reason",
    "Accept", "Accept-Contact", "RAck", "Expires", "Authorization", "X-Unknown", "Subject",
)  # fmt: skip


class Maker:
    """Makes one message after the other; the same seed makes the same ones."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def message(self) -> bytes:
        """A whole message: mostly right, with up to three faults in its octets."""
        draw, pick = self._source.random, self._source.choice
        call, tag = self._word(), self._word()
        method = pick(METHODS)
        if draw() < 0.8:
            start = f"{method} {self._uri()} SIP/2.0"
        else:
            start = f"SIP/2.0 {self._source.randrange(100, 700)} {pick(('OK', '', 'Nein danke', 'ä'))}"
        lines = [
            self._line("Via", self._via()), self._line("From", f"{self._name_addr()};tag={tag}"),
            self._line("To", self._name_addr()), self._line("Call-ID", call),
            self._line("CSeq", f"{self._source.randrange(2**32)} {method}"),
        ]  # fmt: skip
        for _ in range(self._source.randrange(8)):
            name = pick(NAMES)
            lines.append(self._line(name, self._value(name)))
        if draw() < 0.3:
            self._source.shuffle(lines)
        body = self._source.randbytes(self._source.randrange(40)) if draw() < 0.4 else b""
        if draw() < 0.9:
            lines.append(self._line("Content-Length", str(len(body))))
        octets = ("\r\n".join([start, *lines]) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body
        return self._spoilt(octets) if draw() < 0.5 else octets

    def _spoilt(self, octets: bytes) -> bytes:
        made = bytearray(octets)
        for _ in range(self._source.randrange(1, 4)):
            at = self._source.randrange(len(made) + 1)
            match self._source.randrange(4):
                case 0:
                    del made[at : at + self._source.randrange(1, 5)]
                case 1:
                    made[at:at] = self._source.choice(FAULTS)
                case 2:
                    made[at:at] = self._source.randbytes(2)
                case _:
                    made[at:at] = made[max(0, at - 30) : at] * self._source.randrange(1, 4)
        return bytes(made)

    def _line(self, name: str, value: str) -> str:
        space = self._source.choice(SPACES) if self._source.random() < 0.2 else " "
        return f"{name}{self._source.choice(('', '', '', ' '))}:{space}{value}"

    def _word(self) -> str:
        return "".join(self._source.choice("abc019-.!%*_+'~") for _ in range(self._source.randrange(1, 12)))

    def _params(self, limit: int = 3) -> str:
        out = ""
        for _ in range(self._source.randrange(limit)):
            name = self._source.choice(TOKENS)
            number = self._source.choice(DIGITS)
            value = self._source.choice(("", f"={self._word()}", f"={self._quoted()}", f"={number}"))
            out += f"{self._source.choice(SPACES[:3])};{name}{value}"
        return out

    def _quoted(self) -> str:
        inner = "".join(self._source.choice(('a', ' ', '\\"', '\\\\', ',', ';', '<', 'ö', '\\a')) for _ in range(4))
        return f'"{inner}"'

    def _uri(self) -> str:
        draw, pick = self._source.random, self._source.choice
        if draw() < 0.1:
            return pick(("tel:+1-201-555-0123;ext=1", "urn:service:sos", "http://a/b?c=d", "isbn:2983792873", "sip:"))
        user = f"{self._word().replace('%', '%4a')}{pick(('', ':pw', '%00'))}@" if draw() < 0.8 else ""
        port = f":{pick(DIGITS)}" if draw() < 0.3 else ""
        tail = "".join(f";{pick(TOKENS[:6])}={pick(DIGITS)}x" for _ in range(self._source.randrange(2)))
        query = "?a=b&Subject=%20x" if draw() < 0.05 else ""
        return f"{pick(('sip', 'sips', 'SIP'))}:{user}{pick(HOSTS[:5])}{port}{tail}{query}"

    def _name_addr(self) -> str:
        draw = self._source.random()
        if draw < 0.2:
            return f"sip:{self._word().replace('%', '')}a@{self._source.choice(HOSTS[:3])}"
        display = self._source.choice(("", self._quoted() + " ", "Bob ", "Bob the  Builder ", self._quoted()))
        return f"{display}<{self._uri()}>"

    def _via(self) -> str:
        pick = self._source.choice
        port = f":{pick(('5060', '1', '65536'))}" if self._source.random() < 0.4 else ""
        sent_by = f"{pick(('UDP', 'TCP', 'TLS', 'WS'))} {pick(HOSTS[:3])}{port}"
        return f"SIP/2.0/{sent_by};branch=z9hG4bK{self._word()}{self._params()}"

    def _value(self, name: str) -> str:
        pick = self._source.choice
        match name.lower():
            case "via" | "v":
                return self._via()
            case "from" | "to" | "f" | "t" | "contact" | "m" | "route" | "record-route" | "refer-to" | "r":
                many = self._source.randrange(1, 3)
                return ", ".join(self._name_addr() + self._params() for _ in range(many))
            case "cseq":
                return f"{pick(DIGITS)} {pick(METHODS)}"
            case "rack":
                return f"{pick(DIGITS)} {pick(DIGITS)} {pick(METHODS)}"
            case "max-forwards" | "content-length" | "l" | "expires" | "session-expires" | "x":
                return pick(DIGITS) + self._params()
            case "replaces" | "target-dialog":
                return f"{self._word()};to-tag=1;from-tag=2{self._params()}"
            case "warning":
                return f'{pick(("399", "1", "3999"))} host {self._quoted()}'
            case "authorization":
                return f"Digest username={self._quoted()}, realm={self._quoted()}, nc={pick(DIGITS)}"
            case "accept" | "content-type" | "c":
                return f"{pick(('application/sdp', '*/*', 'multipart/mixed;boundary=a', 'text'))}{self._params()}"
            case "accept-contact":
                return "*" + self._params(5)
            case _:
                return ", ".join(self._word() for _ in range(self._source.randrange(1, 4))) + self._params()
