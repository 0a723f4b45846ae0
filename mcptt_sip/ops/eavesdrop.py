# SPDX-License-Identifier: Apache-2.0
"""Test instruments of the phone: a mirror of every packet it receives, a tap that tries to read them, a key file.

The tap plays the member who was removed and listens on: it keeps every key that it ever held and tries each on
every packet. It counts what it could authenticate; nothing is played.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from pathlib import Path

from mcptt_sip.mcptt.call import Regroup
from media.errors import SrtpError
from media.srtp import GROUP, SrtpKey, SrtpReceiver
from mikey import TransportKey

Address = tuple[str, int]


class Mirror:
    """Sends a copy of every received packet to one address."""

    def __init__(self, target: Address) -> None:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._target = target
        self.lost = 0

    def __call__(self, packet: bytes, _source: Address) -> None:
        try:
            self._socket.sendto(packet, self._target)
        except OSError:  # a full socket buffer: the mirror must not slow down the phone
            self.lost += 1

    def close(self) -> None:
        self._socket.close()


class Tap(asyncio.DatagramProtocol):
    """Tries every packet it gets with every key ever held; see :meth:`result`."""

    def __init__(self) -> None:
        self.address: Address = ("", 0)
        self._keys: list[TransportKey] = []
        self._derived: dict[tuple[int, bytes], SrtpKey] = {}
        self._times: list[float] = []
        self._authenticated: list[float] = []
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Tap:
        """Listens on a UDP port; 0 chooses one."""
        loop = asyncio.get_running_loop()
        transport, tap = await loop.create_datagram_endpoint(cls, local_addr=(host, port))
        tap._transport = transport
        tap.address = transport.get_extra_info("sockname")[:2]
        return tap

    def learn(self, _group: str, key: TransportKey) -> None:
        """A key that this phone holds, and keeps for good."""
        self._keys.append(key)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        now = time.time()
        self._times.append(now)
        if any(self._opens(data, number, key) for number, key in enumerate(self._keys)):
            self._authenticated.append(now)

    def _opens(self, packet: bytes, number: int, key: TransportKey) -> bool:
        # the sender's GUK-ID stands at the end of the MKI, before the four octets of the ROC (RFC 4771 mode 3)
        mki = packet[-12:-4]
        if len(mki) != 8:
            return False
        found = self._derived.get((number, mki))
        if found is None:
            plain = Regroup.srtp_key(key, int.from_bytes(mki[4:], "big"))
            # whatever GMK-ID the packet names: this key is tried on it
            found = self._derived[number, mki] = SrtpKey(plain.master_key, plain.master_salt, mki)
        try:
            SrtpReceiver(lambda _mki: found, GROUP).unprotect(packet)
        except SrtpError:
            return False
        return True

    def result(self) -> dict[str, object]:
        """Packets seen and authenticated so far, with their times (Unix seconds)."""
        return {
            "packets": len(self._times),
            "authenticated": len(self._authenticated),
            "keys": len(self._keys),
            "times": [round(at, 3) for at in self._times],
            "authenticated_times": [round(at, 3) for at in self._authenticated],
        }

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class KeyFile:
    """Appends every group key that the phone installs, as JSON lines, mode 0600. Whoever has it reads everything."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, group: str, key: TransportKey) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            record = {
                "group": group,
                "gmk_id": f"{key.key_id:08x}",
                "gmk": key.key.reveal().hex(),
                "rand": key.rand.hex(),
                "expiry": key.expiry,
            }
            file.write(json.dumps(record) + "\n")
