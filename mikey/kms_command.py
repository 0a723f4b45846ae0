# SPDX-License-Identifier: Apache-2.0
"""The KMS as a program: what its options mean, serving, and looking after its store."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mikey.at_rest import Unlock
from mikey.errors import KmsError, MikeyError, StoreError
from mikey.identity import domain_of
from mikey.keys import Secret
from mikey.kms import Kms
from mikey.kms_documents import decode_certificate, encode_certificate
from mikey.kms_http import Directory, KmsServer, Users, serve_until
from mikey.kms_protection import TransportKeys
from mikey.kms_store import KmsStore, generation_name, token_digest
from mikey.tls import development_certificate, is_loopback, server_context

PASSPHRASE_VARIABLE = "MIKEY_KMS_PASSPHRASE"  # the variable's name, not a passphrase  # noqa: S105
EXIT_OK, EXIT_USAGE, EXIT_ENVIRONMENT = 0, 2, 3
DEVELOPMENT_DAYS = 30


@dataclass
class KmsOptions:
    """How a KMS is served. Without `store` its keys end with the process."""

    listen: tuple[str, int] = ("127.0.0.1", 0)
    users: Path | None = None
    """Bearer tokens and user URIs, see `load_users`."""
    kms_uri: str = "kms.mcx.example"
    domains: Sequence[str] = ()
    """Default: those of the users. For a new KMS only; a store has its own."""
    period: int = 2592000
    offset: int = 0
    store: Path | None = None
    key_file: Path | None = None
    passphrase_file: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    """TLS certificate and key; default: a development certificate of our own making."""
    client_authority: Path | None = None
    development: bool = False
    """Write a new development certificate to `certificate` and `private_key` first."""
    plain: bool = False
    """HTTP without TLS; on loopback only."""
    transport_keys: Path | None = None
    partners: Sequence[Path] = field(default_factory=tuple)
    """KmsCertificate documents of partner KMSs to vouch for."""


def load_users(path: Path) -> dict[str, str]:
    """Bearer tokens from a file: JSON object token -> user URI, or lines `token user-URI`; # begins a comment.

    Raises `KmsError` for anything else, without repeating the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KmsError(f"{path}: cannot be read ({type(error).__name__})") from None
    if text.lstrip().startswith("{"):
        try:
            loaded = json.loads(text)
        except ValueError as error:
            raise KmsError(f"{path}: not JSON: {error}") from None
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in loaded.items()):
            raise KmsError(f"{path}: must map tokens to user URIs")
        return dict(loaded)
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise KmsError(f"{path}: line {number} is not 'token user-URI'")
        tokens[words[0]] = words[1]
    return tokens


def load_transport_keys(path: Path) -> dict[str, TransportKeys]:
    """TrK and InK of users from JSON: URI -> {"trk": hex, "ink": hex, "trk_id"?, "ink_id"?}. Raises `KmsError`."""
    try:
        if path.stat().st_mode & 0o077:
            raise KmsError(f"{path}: others than its owner may read it; chmod 600")
        return {
            uri: TransportKeys(
                Secret(bytes.fromhex(k["trk"])), Secret(bytes.fromhex(k["ink"])),
                k.get("trk_id", "TrK"), k.get("ink_id", "InK"),
            )
            for uri, k in json.loads(path.read_text(encoding="utf-8")).items()
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KmsError(f"{path}: no file of transport keys ({type(error).__name__})") from None


# -- what the options give --------------------------------------------------------------------------------------


def unlock_of(options: KmsOptions, *, create: bool = False) -> Unlock:
    """Key file, passphrase file or the environment, in this order. Raises `StoreError` when none is given."""
    if options.key_file is not None:
        return Unlock.key_file(options.key_file, create=create)
    if options.passphrase_file is not None:
        try:
            return Unlock.passphrase(options.passphrase_file.read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{options.passphrase_file}: cannot be read ({type(error).__name__})") from None
    if PASSPHRASE_VARIABLE in os.environ:
        return Unlock.passphrase(os.environ[PASSPHRASE_VARIABLE])
    raise StoreError(f"a store is opened by --key-file, --passphrase-file or {PASSPHRASE_VARIABLE}")


def _generated(options: KmsOptions, tokens: Mapping[str, str]) -> Kms:
    domains = list(options.domains) or sorted({domain_of(uri) for uri in tokens.values()})
    if not domains:
        raise KmsError("a new KMS needs --domain or --users")
    return Kms.generate(
        options.kms_uri, domains, user_key_period=options.period, user_key_offset=options.offset
    )


def opened_store(options: KmsOptions, tokens: Mapping[str, str], now: float) -> KmsStore:
    """The store that the options name, made when it is not there, with the users of the file put in."""
    assert options.store is not None
    if not options.store.exists():
        unlock = unlock_of(options, create=True)
        store = KmsStore.create(options.store, unlock, _generated(options, tokens), now=now)
    else:
        store = KmsStore(options.store, unlock_of(options))
    try:
        if tokens:
            store.put_users(((uri, token_digest(token)) for token, uri in tokens.items()), now=now)
        for path in options.partners:
            store.put_partner(_partner(path), now=now)
    except BaseException:
        store.close()
        raise
    return store


def _partner(path: Path) -> Any:
    try:
        return decode_certificate(path.read_bytes())
    except OSError as error:
        raise KmsError(f"{path}: {error.strerror}") from None


def tls_of(options: KmsOptions, now: float) -> tuple[ssl.SSLContext | None, Path | None]:
    """The TLS context that the options ask for (None: plain HTTP) and the certificate that clients are to trust.

    Raises `KmsError` when keys would go over a network in clear or under a certificate that nobody has checked.
    """
    host = options.listen[0]
    if options.plain:
        if options.certificate or options.private_key or options.client_authority or options.development:
            raise KmsError("--plain goes without TLS options")
        if not is_loopback(host):
            raise KmsError(f"keys do not go over a network in clear: --plain is for loopback, not {host}")
        return None, None
    if (options.certificate is None) != (options.private_key is None):
        raise KmsError("--certificate and --private-key belong together")
    certificate, private_key = options.certificate, options.private_key
    make = options.development
    if certificate is None or private_key is None:
        if options.development:
            raise KmsError("--development needs --certificate and --private-key")
        if not is_loopback(host):
            raise KmsError(f"the default development certificate is for loopback: {host} needs --certificate")
        beside = options.store if options.store is not None else Path(tempfile.mkdtemp(prefix="mikey-kms-")) / "kms"
        certificate, private_key = (beside.with_name(f"{beside.name}.tls.{kind}") for kind in ("pem", "key"))
        make = not (certificate.exists() and private_key.exists() and _lasts(certificate, private_key, now))
    if make:
        names = tuple(dict.fromkeys((host, "localhost", "127.0.0.1", "::1")))
        development_certificate(certificate, private_key, names=names, now=now, days=DEVELOPMENT_DAYS)
    context = server_context(certificate, private_key, client_authority=options.client_authority)
    return context, certificate


def _lasts(certificate: Path, private_key: Path, now: float) -> bool:
    """Whether a development certificate of an earlier run is good for another day, and the key is its own."""
    from cryptography import x509

    try:
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
        server_context(certificate, private_key)
    except (ValueError, KmsError):
        return False
    return ends.timestamp() > now + 86400


# -- serving ----------------------------------------------------------------------------------------------------


async def run_kms(
    options: KmsOptions, announce: Callable[[dict[str, Any]], None], stopped: asyncio.Event | None = None
) -> int:
    """Serve until SIGINT or SIGTERM, or until `stopped` is set by the caller who handles signals himself.

    `announce` gets the facts once the KMS answers. Raises `MikeyError`, `OSError`.
    """
    if options.users is None and options.store is None:
        raise KmsError("who may fetch keys? --users FILE")
    tokens = load_users(options.users) if options.users is not None else {}
    context, authority = tls_of(options, time.time())
    protected = load_transport_keys(options.transport_keys) if options.transport_keys is not None else {}
    store: KmsStore | None = None
    users: Directory | None = None
    if options.store is not None:
        kms: Kms | KmsStore
        kms = store = await asyncio.to_thread(opened_store, options, tokens, time.time())
    else:
        kms, users = _generated(options, tokens), Users(tokens)
    partners = () if store is not None else tuple(_partner(path) for path in options.partners)
    server = KmsServer(
        kms, users, clock=time.time, partners=partners, ssl_context=context, transport_keys=protected
    )
    try:
        host, port = await server.start(*options.listen)
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if context is None else "https"
        announce({
            "url": f"{scheme}://{shown}:{port}", "kms_uri": server.kms.certificate.kms_uri,
            "users": len(store.users) if store is not None else len(tokens), "pid": os.getpid(),
            "authority": None if authority is None else str(authority),
            "store": None if options.store is None else str(options.store),
        })  # fmt: skip
        if stopped is None:
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stopped.set)
        await serve_until(server, stopped)
    finally:
        if store is not None:
            store.close()
    return EXIT_OK


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def unlock_arguments(parser: argparse.ArgumentParser) -> None:
    """How a store is opened."""
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="key of the store; made when the store is new")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE",
                        help=f"or a passphrase, also in the environment as {PASSPHRASE_VARIABLE}")  # fmt: skip


def kms_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the KMS command."""
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--users", type=Path, metavar="FILE", help="tokens and user URIs")
    parser.add_argument("--kms-uri", "--uri", default="kms.mcx.example", help="KmsUri of the certificate")
    parser.add_argument("--domain", action="append", default=[], help="domain it answers for (repeatable)")
    parser.add_argument("--period", "--key-period", type=int, default=2592000, help="UserKeyPeriod in seconds")
    parser.add_argument("--offset", type=int, default=0, help="UserKeyOffset in seconds")
    parser.add_argument("--store", type=Path, metavar="FILE",
                        help="keep master keys (sealed), users, what was issued and an audit log; made when not there")
    unlock_arguments(parser)
    parser.add_argument("--partner", type=Path, action="append", default=[], metavar="XML",
                        help="KmsCertificate of a partner KMS to vouch for (repeatable)")
    parser.add_argument("--certificate", type=Path, metavar="PEM",
                        help="serve HTTPS with this certificate (default: a development certificate, on loopback only)")
    parser.add_argument("--private-key", type=Path, metavar="PEM", help="and this key")
    parser.add_argument("--client-authority", type=Path, metavar="PEM",
                        help="users may prove themselves with certificates of this authority (URI of subjectAltName)")
    parser.add_argument("--development", action="store_true",
                        help="first write a new self-signed pair to --certificate and --private-key")
    parser.add_argument("--plain", action="store_true", help="HTTP without TLS, on loopback only")
    parser.add_argument("--transport-keys", type=Path, metavar="FILE",
                        help="TrK and InK of users whose answers are wrapped and signed")  # fmt: skip


def options_of(parsed: argparse.Namespace) -> KmsOptions:
    """The options of the KMS command as a value."""
    given = {k: v for k, v in vars(parsed).items() if k not in ("command", "domain", "partner")}
    return KmsOptions(**given, domains=parsed.domain, partners=parsed.partner)


# -- looking after a store --------------------------------------------------------------------------------------


def _moment(text: str) -> float:
    """Unix seconds, or ISO 8601 (UTC unless it says otherwise)."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither Unix seconds nor ISO 8601") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()


def admin_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command that looks after a store."""
    parser.add_argument("store", type=Path, metavar="STORE")
    unlock_arguments(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text)

    action("show", "certificates of all master keys, users and partners")
    action("certificate", "print the certificate in force as XML, for a partner")
    action("rotate", "new master keys from the next period boundary").add_argument(
        "--at", type=_moment, help="from the first boundary at or after this time")  # fmt: skip
    action("replace", "revoke the master keys in force, which are compromised; new ones at once")
    action("revoke-certificate", "mark a generation revoked").add_argument("number", type=int)
    action("add-users", "users from a file of tokens and URIs").add_argument("file", type=Path)
    action("revoke-user", "no more keys for a user").add_argument("uri")
    action("restore-user", "keys again for a revoked user").add_argument("uri")
    action("add-partner", "vouch for a partner KMS").add_argument("file", type=Path)
    action("drop-partner", "vouch no more").add_argument("uri")
    action("issued", "what a user has got").add_argument("uri")
    audit = action("audit", "the audit log, one JSON line each")
    audit.add_argument("--after", type=int, default=0, metavar="NUMBER")
    audit.add_argument("--limit", type=int, default=1000)
    action("prune-audit", "drop audit lines").add_argument("before", type=_moment)
    change = action("change-key", "seal the master keys under another key file or passphrase")
    change.add_argument("--new-key-file", type=Path)
    change.add_argument("--new-passphrase-file", type=Path)


def admin(parsed: argparse.Namespace, write: Callable[[str], object] = print) -> int:
    """Carry out one action on a store; JSON lines go to `write`. Raises `MikeyError`."""
    options = KmsOptions(store=parsed.store, key_file=parsed.key_file, passphrase_file=parsed.passphrase_file)
    now = time.time()
    with KmsStore(parsed.store, unlock_of(options)) as store:
        for line in _ACTIONS[parsed.action](store, parsed, now) or ():
            write(line if isinstance(line, str) else json.dumps(line))
    return EXIT_OK


def _show(store: KmsStore, parsed: argparse.Namespace, now: float) -> list[Any]:
    generations = [
        {"generation": n, "name": generation_name(c), "kms_uri": c.kms_uri, "domains": list(c.domains),
         "valid_from": c.valid_from, "valid_to": c.valid_to, "revoked": c.revoked}
        for n, c in enumerate(store.kms.certificates)
    ]  # fmt: skip
    counts = {"users": len(store.users), "revoked": sorted(store.revoked)}
    return [*generations, counts, *({"partner": p.kms_uri, "domains": list(p.domains)} for p in store.partners)]


def _add_users(store: KmsStore, parsed: argparse.Namespace, now: float) -> list[Any]:
    tokens = load_users(parsed.file)
    return [{"new": store.put_users(((uri, token_digest(t)) for t, uri in tokens.items()), now=now)}]


def _change_key(store: KmsStore, parsed: argparse.Namespace, now: float) -> list[Any]:
    new = KmsOptions(key_file=parsed.new_key_file, passphrase_file=parsed.new_passphrase_file)
    if new.key_file is None and new.passphrase_file is None:
        raise StoreError("--new-key-file or --new-passphrase-file")
    store.change_unlock(unlock_of(new, create=True), now=now)
    return []


def _rotated(certificate: Any) -> list[Any]:
    return [{"kms_uri": certificate.kms_uri, "valid_from": certificate.valid_from, "revoked": certificate.revoked}]


_ACTIONS: Mapping[str, Callable[[KmsStore, argparse.Namespace, float], list[Any] | None]] = {
    "show": _show,
    "certificate": lambda s, p, now: [encode_certificate(s.kms.certificate_at(now)).decode()],
    "rotate": lambda s, p, now: _rotated(s.rotate(now if p.at is None else p.at, now=now)),
    "replace": lambda s, p, now: _rotated(s.replace(now=now)),
    "revoke-certificate": lambda s, p, now: _rotated(s.revoke_generation(p.number, now=now)),
    "add-users": _add_users,
    "revoke-user": lambda s, p, now: s.revoke_user(p.uri, now=now),
    "restore-user": lambda s, p, now: s.restore_user(p.uri, now=now),
    "add-partner": lambda s, p, now: s.put_partner(_partner(p.file), now=now),
    "drop-partner": lambda s, p, now: s.drop_partner(p.uri, now=now),
    "issued": lambda s, p, now: [asdict(i) | {"pvt": i.pvt.hex()} for i in s.issued(p.uri)],
    "audit": lambda s, p, now: [asdict(e) for e in s.audit(after=p.after, limit=p.limit)],
    "prune-audit": lambda s, p, now: [{"dropped": s.prune_audit(p.before, now=now)}],
    "change-key": _change_key,
}


def complain(error: MikeyError | OSError) -> int:
    """One line on standard error; the exit code."""
    sys.stderr.write(f"mikey: {error}\n")
    return EXIT_ENVIRONMENT
