# SPDX-License-Identifier: Apache-2.0
"""SIP for mission-critical voice: a SIP stack, and the MCPTT server and client on it.

Ordinary SIP: :class:`UserAgent` for applications on asyncio, :class:`SipStack` for those with a loop of their own,
:class:`SipProxy` for what stands between user agents,
:mod:`mcptt_sip.testing` for their tests. Temporary group calls: :func:`login` (a :class:`McpttClient`) and
:class:`McpttServer`.
Everything below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mcptt_sip.auth import DigestAuthenticator as DigestAuthenticator
    from mcptt_sip.auth import DigestCredentials as DigestCredentials
    from mcptt_sip.call import Call as Call
    from mcptt_sip.callmedia import CallMedia as CallMedia
    from mcptt_sip.callmedia import CallMediaSettings as CallMediaSettings
    from mcptt_sip.endpoint import SipEndpoint as SipEndpoint
    from mcptt_sip.errors import CallFailed as CallFailed
    from mcptt_sip.errors import ParseError as ParseError
    from mcptt_sip.errors import RegistrationFailed as RegistrationFailed
    from mcptt_sip.errors import RequestTimeout as RequestTimeout
    from mcptt_sip.errors import SipError as SipError
    from mcptt_sip.errors import Unreachable as Unreachable
    from mcptt_sip.flow import Flow as Flow
    from mcptt_sip.forwarding import Target as Target
    from mcptt_sip.headers import NameAddr as NameAddr
    from mcptt_sip.mcptt.account import login as login
    from mcptt_sip.mcptt.client import McpttClient as McpttClient
    from mcptt_sip.mcptt.server import McpttServer as McpttServer
    from mcptt_sip.message import MessageFramer as MessageFramer
    from mcptt_sip.message import Request as Request
    from mcptt_sip.message import Response as Response
    from mcptt_sip.message import parse as parse
    from mcptt_sip.proxy import ProxySettings as ProxySettings
    from mcptt_sip.proxy import SipProxy as SipProxy
    from mcptt_sip.registrar import LocationService as LocationService
    from mcptt_sip.registrar import Registrar as Registrar
    from mcptt_sip.services import StackSettings as StackSettings
    from mcptt_sip.stack import SipStack as SipStack
    from mcptt_sip.tls import ServerTls as ServerTls
    from mcptt_sip.tls import TlsIdentity as TlsIdentity
    from mcptt_sip.tls import client_context as client_context
    from mcptt_sip.trace import MessageRecord as MessageRecord
    from mcptt_sip.transaction import Timers as Timers
    from mcptt_sip.transport import TransportSettings as TransportSettings
    from mcptt_sip.uri import SipUri as SipUri
    from mcptt_sip.uri import TelUri as TelUri
    from mcptt_sip.useragent import UserAgent as UserAgent

_HOME = {
    "Call": "call",
    "CallFailed": "errors",
    "CallMedia": "callmedia",
    "CallMediaSettings": "callmedia",
    "DigestAuthenticator": "auth",
    "DigestCredentials": "auth",
    "Flow": "flow",
    "LocationService": "registrar",
    "McpttClient": "mcptt.client",
    "McpttServer": "mcptt.server",
    "MessageFramer": "message",
    "MessageRecord": "trace",
    "NameAddr": "headers",
    "ParseError": "errors",
    "ProxySettings": "proxy",
    "Registrar": "registrar",
    "RegistrationFailed": "errors",
    "Request": "message",
    "RequestTimeout": "errors",
    "Response": "message",
    "ServerTls": "tls",
    "SipEndpoint": "endpoint",
    "SipError": "errors",
    "SipProxy": "proxy",
    "SipStack": "stack",
    "SipUri": "uri",
    "StackSettings": "services",
    "Target": "forwarding",
    "TelUri": "uri",
    "Timers": "transaction",
    "TlsIdentity": "tls",
    "TransportSettings": "transport",
    "Unreachable": "errors",
    "UserAgent": "useragent",
    "client_context": "tls",
    "login": "mcptt.account",
    "parse": "message",
}

__all__ = list(_HOME)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mcptt_sip' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mcptt_sip.{home}"), name)
    globals()[name] = value
    return value
