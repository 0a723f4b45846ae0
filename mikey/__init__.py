# SPDX-License-Identifier: Apache-2.0
"""MIKEY-SAKKE: seal a key for one user so that only he can open it and knows who sent it.

RFC 3830, 6043, 6507, 6508, 6509 and the profile of 3GPP TS 33.180. Knows nothing of SIP.

>>> from mikey import Keyring, KeyType, Kms, TransportKey, seal, unseal
>>> kms, now = Kms.generate("kms.example.org", ["example.org"]), 1_800_000_000.0
>>> ring = Keyring()
>>> ring.add_certificate(kms.certificate)
>>> for user in ("sip:alice@example.org", "sip:bob@example.org"):
...     ring.add_key_set(kms.issue(user, now))
>>> csk = TransportKey.generate(KeyType.CSK)
>>> message = seal(csk, sender="sip:alice@example.org", recipient="sip:bob@example.org",
...                keyring=ring, now=now)
>>> opened = unseal(message.octets, sender_uri="sip:alice@example.org", me="sip:bob@example.org",
...                 keyring=ring, now=now, replay=None, expect_type=KeyType.CSK)
>>> opened.key == csk.replace(activation=opened.key.activation)
True

To go on from here: `seal_many` for a list of recipients; `KmsServer` on a `KmsStore` issues keys and `KeyKeeper`
fetches, keeps and renews them; `SqliteReplayCache` outlives a restart; `keep_tables()` makes a program's first seal as
fast as its later ones; `python -m mikey kms | kms-admin | fetch | inspect` are the programs.

| part | support |
|---|---|
| RFC 6507 ECCSI (P-256, SHA-256), RFC 6508 SAKKE (parameter set 1) | yes |
| RFC 6509 message, native identities (scheme 1) | yes |
| RFC 3830 payloads of an I_MESSAGE, PRF-HMAC-SHA-256 | yes; other key exchange modes: no |
| RFC 6043 GENERIC-ID, IDR | yes; tickets: no |
| TS 33.180 E (GMK, PCK, CSK, SPK, MKFC, MSCCK, MuSiK), F.1, F.2, Annex D | yes; redirects of Annex D: no |
| TS 33.180 5.3 protection of KMS responses (TrK, InK) | yes; their replacement within a response: no |

Names are loaded when first used, so that `import mikey` costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mikey.at_rest import Unlock as Unlock
    from mikey.errors import MikeyError as MikeyError
    from mikey.imessage import OpenedKey as OpenedKey
    from mikey.imessage import ReplayCache as ReplayCache
    from mikey.imessage import SealedMessage as SealedMessage
    from mikey.imessage import VerifiedMessage as VerifiedMessage
    from mikey.imessage import read as read
    from mikey.imessage import seal as seal
    from mikey.imessage import unseal as unseal
    from mikey.imessage import unseal_own as unseal_own
    from mikey.imessage import verify as verify
    from mikey.key_cache import KeyCache as KeyCache
    from mikey.key_keeper import KeyKeeper as KeyKeeper
    from mikey.keyring import Identity as Identity
    from mikey.keyring import Keyring as Keyring
    from mikey.keys import KeySet as KeySet
    from mikey.keys import KeyType as KeyType
    from mikey.keys import KmsCertificate as KmsCertificate
    from mikey.keys import Secret as Secret
    from mikey.keys import TransportKey as TransportKey
    from mikey.keys import acknowledgement_key as acknowledgement_key
    from mikey.keys import gmk_id_of as gmk_id_of
    from mikey.keys import guk_id as guk_id
    from mikey.keys import mki as mki
    from mikey.keys import srtp_keys as srtp_keys
    from mikey.kms import Kms as Kms
    from mikey.kms_client import KmsClient as KmsClient
    from mikey.kms_http import KmsServer as KmsServer
    from mikey.kms_store import KmsStore as KmsStore
    from mikey.payloads import IMessage as IMessage
    from mikey.policy import LENIENT as LENIENT
    from mikey.policy import OFFLINE as OFFLINE
    from mikey.policy import STRICT as STRICT
    from mikey.policy import Policy as Policy
    from mikey.pool import NotSealed as NotSealed
    from mikey.pool import seal_many as seal_many
    from mikey.pool import seal_many_async as seal_many_async
    from mikey.replay import MemoryReplayCache as MemoryReplayCache
    from mikey.replay import PairingBudget as PairingBudget
    from mikey.store import SqliteReplayCache as SqliteReplayCache
    from mikey.tables import keep_tables as keep_tables
    from mikey.text_form import decode_text as decode_text
    from mikey.text_form import encode_text as encode_text

_HOME = {
    "MikeyError": "errors",
    "OpenedKey": "imessage",
    "ReplayCache": "imessage",
    "SealedMessage": "imessage",
    "VerifiedMessage": "imessage",
    "read": "imessage",
    "seal": "imessage",
    "unseal": "imessage",
    "unseal_own": "imessage",
    "verify": "imessage",
    "Identity": "keyring",
    "Keyring": "keyring",
    "KeySet": "keys",
    "KeyType": "keys",
    "KmsCertificate": "keys",
    "Secret": "keys",
    "TransportKey": "keys",
    "acknowledgement_key": "keys",
    "gmk_id_of": "keys",
    "guk_id": "keys",
    "mki": "keys",
    "srtp_keys": "keys",
    "Kms": "kms",
    "IMessage": "payloads",
    "KmsClient": "kms_client",
    "KmsServer": "kms_http",
    "KmsStore": "kms_store",
    "KeyCache": "key_cache",
    "KeyKeeper": "key_keeper",
    "Unlock": "at_rest",
    "keep_tables": "tables",
    "LENIENT": "policy",
    "OFFLINE": "policy",
    "STRICT": "policy",
    "Policy": "policy",
    "NotSealed": "pool",
    "seal_many": "pool",
    "seal_many_async": "pool",
    "MemoryReplayCache": "replay",
    "PairingBudget": "replay",
    "SqliteReplayCache": "store",
    "decode_text": "text_form",
    "encode_text": "text_form",
}

__all__ = list(_HOME)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mikey' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mikey.{home}"), name)
    globals()[name] = value
    return value
