# SPDX-License-Identifier: Apache-2.0
"""A program's keys and what it keeps on disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mcptt_sip.mcptt.journal import GroupRecord, JournalError, entry
from mcptt_sip.mcptt.userkeys import KeySource
from mcptt_sip.ops.store import FileJournal, JournalFolder
from mikey import Kms
from mikey.at_rest import Unlock
from mikey.errors import StoreError
from mikey.kms_store import KmsStore


def source(folder: Path) -> KeySource:
    return KeySource("http://127.0.0.1:1", "token", "sip:mcptt@mcx.example", store=folder)


def test_rule_27_a_store_with_a_kmss_secrets_is_refused(tmp_path: Path) -> None:
    assert source(tmp_path).folder() == tmp_path
    kms = Kms.generate("kms.mcx.example", ["mcx.example"])
    with KmsStore.create(tmp_path / "kms.sqlite", Unlock.passphrase("only for this test"), kms, now=time.time()):
        pass
    with pytest.raises(StoreError, match="master secrets"):
        source(tmp_path).folder()
    with pytest.raises(StoreError, match="master secrets"):
        source(tmp_path).replay(time.time())


def test_a_journal_names_everyone_a_key_was_made_for_after_any_crash(tmp_path: Path) -> None:
    folder = JournalFolder(tmp_path / "groups")
    journal = folder("sip:tmp-1@mcx.example")
    lines = [
        entry("group", group="sip:tmp-1@mcx.example", signer="sip:alice@mcx.example", terms="ack=required"),
        entry("key", gmk_id="00000001"),
        entry("sealed", user="sip:bob@mcx.example", gmk_id="00000001", t=5.0),
        entry("sealed", user="sip:carol@mcx.example", gmk_id="00000001", t=6.0),
        entry("removed", user="sip:bob@mcx.example"),
    ]
    for line in lines:
        journal.append(line)
    (path,) = (tmp_path / "groups").iterdir()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        told = list(FileJournal(path).lines())
        assert told == lines[: whole[:cut].count(b"\n")], "a line is there as a whole, or not at all"
        record = GroupRecord.read(told)
        if record is None:
            assert not told
            continue
        assert record.members == {"sip:bob@mcx.example", "sip:carol@mcx.example"}.intersection(
            record.sealed_to - record.removed
        )
    # and what is written after such a crash can be read again
    path.write_bytes(whole[: len(whole) - 5])
    after = FileJournal(path)
    after.append(entry("removed", user="sip:carol@mcx.example"))
    (record,) = folder.unfinished()
    assert record.members == {"sip:bob@mcx.example"} and record.used_ids == {1} and record.last_time == 6.0
    after.close()
    assert folder.unfinished() == []


def test_what_is_no_journal_is_said_to_be_none() -> None:
    with pytest.raises(JournalError):
        GroupRecord.read(['{"what": "something else"}'])
    with pytest.raises(JournalError):
        GroupRecord.read(["{}"])
