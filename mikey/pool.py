# SPDX-License-Identifier: Apache-2.0
"""Seal one key for many recipients: results stream as they are ready, on all cores where that wins.

Workers are forked, so that they inherit the tables; what comes back from them are finished messages, no key. Closing
the iterator ends them at once. A worker that dies loses nothing: what it had not sealed is sealed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import signal
import struct
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mikey import sakke
from mikey.errors import MikeyError
from mikey.keyring import Keyring
from mikey.keys import KeySet, TransportKey
from mikey.sealing import SealedMessage, seal

log = logging.getLogger(__name__)

MIN_FOR_POOL = 16
"""Recipients below which a fork costs more than it brings."""
_TICK = 2.0**-16
"""Seconds between the time stamps of two messages: what `seal` leaves below it is random."""
_HEAD = struct.Struct(">IIBId")  # index, length, ok, CSB-ID, T


@dataclass(frozen=True, slots=True)
class NotSealed:
    """A recipient for whom no message could be made, and why."""

    recipient: str
    error: MikeyError


class _Work:
    """What all workers do: the arguments of `seal` but for the recipient."""

    def __init__(
        self, key: TransportKey, signer: KeySet, recipients: Sequence[str], keyring: Keyring, now: float,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        self.recipients = recipients
        self._key, self._signer, self._keyring, self._now, self._options = key, signer, keyring, now, options

    def one(self, index: int) -> SealedMessage | NotSealed:
        """Seal for one recipient; each message has a T of its own (RFC 3830 §5.2)."""
        recipient, now = self.recipients[index], self._now + index * _TICK
        try:
            return seal(
                self._key, sender=self._signer, recipient=recipient, keyring=self._keyring, now=now,
                **self._options,
            )  # fmt: skip
        except MikeyError as error:
            return NotSealed(recipient, error)

    def prepare(self) -> None:
        """Build the tables that workers inherit: of P and g, and of the recipients' KMSs."""
        sakke.precompute()
        asked: set[bytes] = set()
        for recipient in self.recipients:
            try:
                asked.add(self._keyring.certificate_for(recipient, self._now).pub_enc_key)
            except MikeyError:
                continue  # said when it is his turn
        for z in sorted(asked)[: sakke.MAX_PUBLIC_TABLES]:
            sakke.public_table(z).build()


class _Worker:
    """A forked process that seals every n-th recipient and writes the messages into a pipe."""

    def __init__(self, work: _Work, indices: Sequence[int]) -> None:
        self._work = work
        self.left = set(indices)
        self._buffer = bytearray()
        self.pipe, writer = os.pipe()
        with warnings.catch_warnings():
            # a worker computes and writes to its pipe; it takes no lock that another thread could have held
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self.pid = os.fork()
            except OSError:
                os.close(self.pipe)
                os.close(writer)
                raise
        if not self.pid:
            _serve(work, indices, writer)
        os.close(writer)
        os.set_blocking(self.pipe, False)

    def read(self) -> tuple[list[tuple[int, SealedMessage | NotSealed]], bool]:
        """What has come, and whether the worker has ended."""
        ended = False
        while True:
            try:
                octets = os.read(self.pipe, 1 << 18)
            except BlockingIOError:
                break
            if not octets:
                ended = True
                break
            self._buffer += octets
        out: list[tuple[int, SealedMessage | NotSealed]] = []
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            index, length, ok, csb_id, timestamp = _HEAD.unpack_from(self._buffer, at)
            if len(self._buffer) - at < _HEAD.size + length:
                break
            octets = bytes(self._buffer[at + _HEAD.size : at + _HEAD.size + length])
            at += _HEAD.size + length
            self.left.discard(index)
            if ok:
                digest = octets[-32:]
                recipient = self._work.recipients[index]
                out.append((index, SealedMessage(octets[:-32], csb_id, digest, timestamp, recipient)))
            else:
                out.append((index, self._work.one(index)))  # the error is made again here, with its class
        del self._buffer[:at]
        return out, ended

    def end(self) -> None:
        """End it, whatever it is doing."""
        os.close(self.pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
            os.waitpid(self.pid, 0)


def _serve(work: _Work, indices: Sequence[int], writer: int) -> None:
    """The life of a worker; it never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whom it worked for is gone
        os.closerange(3, writer)  # sockets and files of the program are none of its business
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        for index in indices:
            made = work.one(index)
            if isinstance(made, SealedMessage):
                octets = made.octets + made.signed_digest
                head = _HEAD.pack(index, len(octets), 1, made.csb_id, made.timestamp)
            else:
                octets, head = b"", _HEAD.pack(index, 0, 0, 0, 0.0)
            data = memoryview(head + octets)
            while data:
                data = data[os.write(writer, data) :]
        code = 0
    finally:
        os._exit(code)


def _start(work: _Work, processes: int) -> tuple[list[_Worker], list[int]]:
    """Workers, and the recipients left over where the system allows no more processes. The first one is done."""
    started: list[_Worker] = []
    left: list[int] = []
    for n in range(processes):
        indices = range(1 + n, len(work.recipients), processes)
        try:
            started.append(_Worker(work, indices))
        except OSError as error:
            log.warning("no further process: %s", error.strerror)
            left += indices
    return started, left


def workers_for(count: int, workers: int | None, options: Mapping[str, Any]) -> int:
    """How many processes seal for `count` recipients; 0: this one alone."""
    cores = len(os.sched_getaffinity(0)) if workers is None else workers
    if "random" in options:  # copies of one generator would all draw the same
        return 0
    return 0 if count < MIN_FOR_POOL or cores < 2 else min(cores, count)


def seal_many(
    key: TransportKey,
    *,
    sender: KeySet | str,
    recipients: Sequence[str],
    keyring: Keyring,
    now: float,
    workers: int | None = None,
    **options: Any,
) -> Iterator[SealedMessage | NotSealed]:
    """Seal `key` for each recipient; messages come as they are ready, in any order, each naming its recipient.

    `workers`: processes at most, default one for each core this process may use; `options` as in `seal`. Closing the
    iterator, or leaving its loop, ends the work. Raises what selecting the signer raises; what fails for one recipient
    alone comes as `NotSealed`.

    >>> from mikey import Keyring, KeyType, Kms, TransportKey
    >>> kms, now, ring = Kms.generate("kms.example.org", ["example.org"]), 1_800_000_000.0, Keyring()
    >>> ring.add_certificate(kms.certificate)
    >>> ring.add_key_set(kms.issue("sip:alice@example.org", now))
    >>> key = TransportKey.generate(KeyType.CSK)
    >>> to = ["sip:bob@example.org", "sip:eve@elsewhere.example"]
    >>> for made in seal_many(key, sender="sip:alice@example.org", recipients=to, keyring=ring, now=now):
    ...     print(made.recipient, "sealed" if isinstance(made, SealedMessage) else made.error)
    sip:bob@example.org sealed
    sip:eve@elsewhere.example no KMS certificate for elsewhere.example
    """
    work = _work(key, sender, recipients, keyring, now, options)
    processes = workers_for(len(recipients), workers, options)
    if not processes:
        yield from (work.one(index) for index in range(len(recipients)))
        return
    yield work.one(0)  # the first one is not kept waiting for tables and forks
    work.prepare()
    with selectors.DefaultSelector() as selector:
        started, left = _start(work, processes)
        try:
            for worker in started:
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            yield from (work.one(index) for index in left)
            while selector.get_map():
                for chosen, _ in selector.select():
                    made, ended = chosen.data.read()
                    if ended:
                        selector.unregister(chosen.data.pipe)
                    yield from (one for _, one in made)
                    if ended:
                        yield from (work.one(index) for index in sorted(chosen.data.left))
        finally:
            for worker in started:
                worker.end()


async def seal_many_async(
    key: TransportKey,
    *,
    sender: KeySet | str,
    recipients: Sequence[str],
    keyring: Keyring,
    now: float,
    workers: int | None = None,
    **options: Any,
) -> AsyncIterator[SealedMessage | NotSealed]:
    """`seal_many` for an event loop, which goes on meanwhile. Cancelling, or closing the iterator, ends the work."""
    work = _work(key, sender, recipients, keyring, now, options)
    processes = workers_for(len(recipients), workers, options)
    if not processes:
        for index in range(len(recipients)):
            yield work.one(index)
            await asyncio.sleep(0)
        return
    yield work.one(0)
    await asyncio.to_thread(work.prepare)
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[_Worker, list[tuple[int, SealedMessage | NotSealed]], bool]] = asyncio.Queue()
    started, left = _start(work, processes)

    def readable(worker: _Worker) -> None:
        made, ended = worker.read()
        if ended:
            loop.remove_reader(worker.pipe)
        queue.put_nowait((worker, made, ended))

    try:
        for worker in started:
            loop.add_reader(worker.pipe, readable, worker)
        for index in left:
            yield work.one(index)
            await asyncio.sleep(0)
        running = len(started)
        while running:
            worker, made, ended = await queue.get()
            for _, one in made:
                yield one
            if ended:
                running -= 1
                for index in sorted(worker.left):
                    yield work.one(index)
    finally:
        for worker in started:
            loop.remove_reader(worker.pipe)
            worker.end()


def _work(
    key: TransportKey, sender: KeySet | str, recipients: Sequence[str], keyring: Keyring, now: float,
    options: dict[str, Any],
) -> _Work:  # fmt: skip
    signer = keyring.key_set_for(sender, now) if isinstance(sender, str) else sender
    return _Work(key, signer, recipients, keyring, now, options)
