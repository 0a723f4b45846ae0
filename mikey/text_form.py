# SPDX-License-Identifier: Apache-2.0
"""The text form of a MIKEY message: `mikey`, one space, base64 (RFC 4567 §3.1), as in an SDP key-mgmt
attribute."""

from __future__ import annotations

import base64
import binascii

from mikey.errors import Deviation, TextError
from mikey.policy import STRICT, Policy

PREFIX = "mikey "


def decode_text(text: str, policy: Policy = STRICT) -> bytes:
    """Octets of a text form. Raises `TextError`, or `Deviation` for line breaks that `policy` forbids.

    >>> decode_text("mikey AQID").hex()
    '010203'
    """
    if not text.startswith(PREFIX):
        raise TextError("the text does not begin with 'mikey' and one space")
    if len(text) > 2 * policy.max_octets + len(PREFIX):
        raise TextError("the text is too long")
    body = text[len(PREFIX) :]
    joined = body.replace("\r", "").replace("\n", "")
    if not joined:
        raise TextError("no octets")
    try:
        octets = binascii.a2b_base64(joined.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError) as error:
        raise TextError(f"not base64: {error}") from None
    if joined != body and not policy.text_line_breaks:
        raise Deviation("text_line_breaks", "line breaks inside the base64")
    return octets


def encode_text(octets: bytes) -> str:
    """The text form of octets, on one line."""
    return PREFIX + base64.b64encode(octets).decode("ascii")
