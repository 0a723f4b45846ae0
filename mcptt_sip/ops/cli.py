# SPDX-License-Identifier: Apache-2.0
"""The command line ``mcptt``. Each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mcptt_sip.ops.admin_commands import app as admin
from mcptt_sip.ops.config import CONTEXT, Config
from mcptt_sip.ops.programs import ENVIRONMENT, FAILED, PASSED, USAGE

app = typer.Typer(
    name="mcptt",
    help="End-to-end-encrypted temporary group calls: run them, serve them, look into them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)

app.add_typer(admin)

Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Tell the story; twice: everything.")]
Pcap = Annotated[Path | None, typer.Option("--pcap", help="Write a pcapng capture (SIP in clear, no keys).")]


def _stop(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def _secret(path: Path | None, variable: str, what: str) -> str:
    """A secret from a file or the environment; never from the command line."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            _stop(ENVIRONMENT, f"{what}: {error}")
    if variable in os.environ:
        return os.environ[variable]
    _stop(USAGE, f"{what}: give the file option or set {variable}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for recordings, report and capture.")] = Path("demo-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all verdicts.")] = False,
    breakage: Annotated[
        str | None,
        typer.Option("--break", help="Show a fault: swap, strip, unauthorised, norekey or wrongkey; exits 1."),
    ] = None,
    keep_keys: Annotated[
        bool, typer.Option("--keep-keys", help="Leave every phone's group keys in OUT too; they open all media.")
    ] = False,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run the whole temporary group call: a KMS, a server and five phones, judged step by step.

    Exits 0 when all ten steps are proved by the capture and the phones' events, 1 otherwise. Open
    OUT/report.html afterwards.
    """
    from mcptt_sip.ops.demo import BREAKAGES, run_demo
    from mcptt_sip.ops.programs import set_up_logging

    if breakage is not None and breakage not in BREAKAGES:
        _stop(USAGE, f"--break {breakage!r} is not one of {', '.join(BREAKAGES)}")
    set_up_logging(verbose)
    result = asyncio.run(run_demo(out, breakage=breakage, quiet=as_json, keep_keys=keep_keys))
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        print(result.summary())
    raise typer.Exit(PASSED if result.passed else FAILED)


@app.command()
def run(
    scenario: Annotated[list[str] | None, typer.Argument(help="Names of installed scenarios, or Python files.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run every installed scenario.")] = False,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Run this many times.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Keep recordings, captures and logs here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per run.")] = False,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run call scenarios as real processes. Exits 0 when all pass, 1 when one fails."""
    from mcptt_sip.ops.programs import set_up_logging
    from mcptt_sip.ops.scenario import installed, load, run_scenario

    set_up_logging(verbose)
    names = installed() if every else scenario or []
    if not names:
        _stop(USAGE, f"which scenario? There are: {', '.join(installed())}")
    failed = 0
    for name in names:
        broken: str | None = None
        try:
            module = load(name)
        except FileNotFoundError as error:
            _stop(USAGE, str(error))
        except Exception as error:  # the others have their turn all the same
            broken = f"{type(error).__name__}: {error}"
        for number in range(1, repeat + 1):
            label = Path(name).stem
            folder = None if out is None else out / (label if repeat == 1 else f"{label}-{number}")
            began = time.monotonic()
            problem = broken or asyncio.run(run_scenario(module, folder, None if as_json else print))
            seconds = round(time.monotonic() - began, 2)
            failed += problem is not None
            verdict = "passed" if problem is None else "FAILED"
            if as_json:
                print(json.dumps({"scenario": name, "run": number, "passed": problem is None,
                                  "seconds": seconds, "problem": problem}), flush=True)
            else:
                print(f"{verdict}  {name}  {seconds} s" + (f"\n  {problem}" if problem else ""), flush=True)
    raise typer.Exit(FAILED if failed else PASSED)


@app.command()
def kms(
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT; port 0: any.")] = "127.0.0.1:8443",
    uri: Annotated[str, typer.Option("--uri", help="KmsUri of the certificate.")] = "kms.mcx.example",
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help="Domain it answers for; repeatable. Default: the users'.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option("--users", help="JSON file: bearer token -> user URI. Readable by its owner only.")
    ] = None,
    period: Annotated[int, typer.Option("--key-period", help="UserKeyPeriod in seconds.")] = 2592000,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Keep master keys (sealed), users, what was issued and an audit log in a file."),
    ] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", help="Key of the store; made when it is new.")] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Or its passphrase (or MIKEY_KMS_PASSPHRASE).")
    ] = None,
    partner: Annotated[
        list[Path] | None, typer.Option("--partner", help="KmsCertificate of a partner KMS to vouch for; repeatable.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM to serve HTTPS with; default: a development certificate.")
    ] = None,
    private_key: Annotated[Path | None, typer.Option("--private-key", help="PEM of its key.")] = None,
    client_authority: Annotated[
        Path | None, typer.Option("--client-authority", help="PEM; users may prove themselves with its certificates.")
    ] = None,
    transport_keys: Annotated[
        Path | None, typer.Option("--transport-keys", help="JSON of TrK and InK; answers are wrapped and signed.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="HTTP without TLS, on loopback only.")] = False,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run a key management server (TS 33.180 Annex D). Prints one JSON line when it is ready.

    It names the certificate that clients are to trust ("authority"); they take it from SSL_CERT_FILE.
    python -m mikey kms-admin looks after the store: rotation, revocation, partners, audit.
    """
    from mcptt_sip.ops.kms import serve_kms
    from mcptt_sip.ops.programs import host_and_port, set_up_logging
    from mikey.kms_command import KmsOptions

    set_up_logging(verbose)
    if users is None and store is None:
        _stop(USAGE, "--users FILE: who may fetch keys? A JSON object of bearer token -> user URI")
    try:
        address = host_and_port(listen)
    except ValueError as error:
        _stop(USAGE, str(error))
    options = KmsOptions(
        listen=address, users=users, kms_uri=uri, domains=domain or (), period=period, store=store, key_file=key_file,
        passphrase_file=passphrase_file, certificate=certificate, private_key=private_key,
        client_authority=client_authority, plain=plain, transport_keys=transport_keys, partners=partner or (),
    )  # fmt: skip
    raise typer.Exit(_run(serve_kms(options)))


@app.command()
def serve(
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", help="TRANSPORT:HOST:PORT (udp, tcp, tls, ws, wss); repeatable. Port 0: any."),
    ] = None,
    identity: Annotated[str, typer.Option(help="Public service identity.")] = "sip:mcptt@mcx.example",
    domain: Annotated[str, typer.Option(help="Realm, domain of group ids, host in Warnings.")] = "mcx.example",
    policy: Annotated[
        Path, typer.Option(help="TOML file of user profiles and passwords; re-read when it changes.")
    ] = Path("policy.toml"),
    kms_url: Annotated[str, typer.Option("--kms", help="URL of the KMS.")] = "https://127.0.0.1:8443",
    kms_ca: Annotated[
        Path | None, typer.Option("--kms-ca", help="PEM that the KMS's certificate is checked with.")
    ] = None,
    kms_token_file: Annotated[
        Path | None, typer.Option(help="Bearer token for the KMS (or MCPTT_KMS_TOKEN).")
    ] = None,
    answer_when: Annotated[str, typer.Option(help="Step 9: first, quorum:N or all.")] = "first",
    answer_time_limit: Annotated[float, typer.Option(help="TNG1, seconds.")] = 30.0,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="At TNG1 end the call (Warning 112) instead of going on without (111).")
    ] = False,
    stay_when_refused: Annotated[
        bool, typer.Option("--stay-when-refused", help="The first user's refusal ends no call before TNG1.")
    ] = False,
    answer_mode: Annotated[str, typer.Option(help="Of callers who ask for none: automatic or manual.")] = "automatic",
    ring_time_limit: Annotated[float, typer.Option(help="How long one user may ring, seconds.")] = 60.0,
    max_participants: Annotated[int, typer.Option(min=2, help="Of one call, the initiator included.")] = 1000,
    max_duration: Annotated[float, typer.Option(help="TNG3, seconds.")] = 14400.0,
    max_silence: Annotated[float, typer.Option(help="T4: a call in which nobody talks so long ends.")] = 1800.0,
    max_calls: Annotated[int, typer.Option(min=1, help="At one time; beyond, 500 with Retry-After.")] = 1000,
    session_expires: Annotated[int, typer.Option(help="Session timer of a leg, seconds, from 90; 0: none.")] = 1800,
    resource_priority: Annotated[
        list[str] | None,
        typer.Option(help="URGENCY=VALUE, e.g. emergency=mcpttp.15; also normal and imminent-peril. Repeatable."),
    ] = None,
    release_without_initiator: Annotated[
        bool, typer.Option("--release-without-initiator", help="End a call when its initiator is lost.")
    ] = False,
    keep_alive: Annotated[float, typer.Option(help="Seconds; three misses end a flow.")] = 5.0,
    preemptive_priority: Annotated[
        int | None, typer.Option(help="Floor requests of this priority and more interrupt a talker of a lower one.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM for tls and wss; read again at SIGHUP.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key, if not in the same file.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option("--tls-client-ca", help="PEM; clients must show a certificate that it signed.")
    ] = None,
    max_connections_per_source: Annotated[int, typer.Option(help="Of one address, as behind a NAT.")] = 1024,
    media_host: Annotated[str, typer.Option(help="Address of the relay's sockets.")] = "127.0.0.1",
    store: Annotated[Path | None, typer.Option(help="Folder for what must survive a crash: accepted messages.")] = None,
    pcap: Pcap = None,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run the MCPTT server: registrations, temporary group calls, floor control, media relay.

    Prints one JSON line per event, the first is "ready" with the addresses. It holds no key that opens media.
    """
    from mcptt_sip.mcptt.regroup import AnswerCondition, RegroupSettings
    from mcptt_sip.ops.programs import set_up_logging
    from mcptt_sip.ops.serve import ServerOptions, controlling_settings, run_server

    set_up_logging(verbose)
    try:
        regroup = RegroupSettings(
            answer_condition=AnswerCondition.parse(answer_when),
            answer_time_limit=answer_time_limit,
            proceed_at_time_limit=not abandon,
            stay_when_refused=stay_when_refused,
            max_silence=max_silence, ring_time_limit=ring_time_limit, max_duration=max_duration,
            max_participants=max_participants,
            keep_without_initiator=not release_without_initiator,
        )  # fmt: skip
        if not keep_alive > 0:
            raise ValueError(f"--keep-alive {keep_alive}: more than 0 is needed")
        controlling = controlling_settings(
            identity, domain, answer_mode=answer_mode, max_calls=max_calls, session_expires=session_expires,
            resource_priority=resource_priority or (),
        )
    except ValueError as error:
        _stop(USAGE, str(error))
    options = ServerOptions(
        listen=tuple(listen or ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]),
        identity=identity,
        domain=domain,
        policy=policy,
        kms=kms_url,
        kms_token=_secret(kms_token_file, "MCPTT_KMS_TOKEN", "bearer token for the KMS"),
        regroup=regroup,
        controlling=controlling,
        keep_alive=keep_alive,
        preemptive_priority=preemptive_priority,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_authorities=tls_client_ca,
        max_connections_per_source=max_connections_per_source,
        media_host=media_host,
        kms_authority=kms_ca,
        store=store,
        pcap=pcap,
    )
    raise typer.Exit(_run(run_server(options)))


@app.command()
def phone(
    uri: Annotated[str, typer.Option(help="MCPTT ID, e.g. sip:alice@mcx.example.")],
    proxy: Annotated[str, typer.Option(help="Address of the server: TRANSPORT:HOST:PORT.")],
    server: Annotated[str, typer.Option(help="The server's service identity.")] = "sip:mcptt@mcx.example",
    kms_url: Annotated[str, typer.Option("--kms", help="URL of the KMS.")] = "https://127.0.0.1:8443",
    kms_ca: Annotated[
        Path | None, typer.Option("--kms-ca", help="PEM that the KMS's certificate is checked with.")
    ] = None,
    kms_token_file: Annotated[
        Path | None, typer.Option(help="Bearer token for the KMS (or MCPTT_KMS_TOKEN).")
    ] = None,
    username: Annotated[str | None, typer.Option(help="Of the digest; default: the user part of --uri.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="Password (or MCPTT_PASSWORD).")] = None,
    listen: Annotated[list[str] | None, typer.Option("--listen", help="TRANSPORT:HOST:PORT; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Local address of media.")] = "127.0.0.1",
    answer: Annotated[
        str,
        typer.Option(help="auto, asked (as the caller asks), manual (but forced calls), decline, or ring for ever."),
    ] = "auto",
    caller: Annotated[
        list[str] | None,
        typer.Option("--caller", help="MCPTT ID that may call, or sip:*@DOMAIN; repeatable. Default: everyone."),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="WAV of what is heard, gaps kept.")] = None,
    activation_delay: Annotated[float, typer.Option(help="From making a new key to sending under it, s.")] = 2.0,
    key_lifetime: Annotated[float, typer.Option(help="Of a TGMK, seconds.")] = 3600.0,
    acknowledgement: Annotated[str, typer.Option(help="none, optional or required.")] = "required",
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="PEM that the server's certificate is checked with.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM, for a server that asks for one.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key, if not in the same file.")] = None,
    deputy: Annotated[
        list[str] | None,
        typer.Option("--deputy", help="MCPTT ID who may go on with this phone's calls when it is lost; repeatable."),
    ] = None,
    rekey_on_join: Annotated[
        bool, typer.Option("--rekey-on-join", help="A new key before each join: newcomers cannot read what was said.")
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder for what must survive a crash: accepted messages, and whom keys were made for."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Seals this user's keys in --store: a start needs no KMS. Made when new.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Test: HOST:PORT that gets a copy of every media packet received.")
    ] = None,
    tap: Annotated[
        str | None, typer.Option(help="Test: HOST:PORT where mirrored packets are tried with every key ever held.")
    ] = None,
    pcap: Pcap = None,
    pcap_secrets: Annotated[
        Path | None, typer.Option(help="Write the group keys here as JSON lines (mode 0600); they open all media.")
    ] = None,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run an MCPTT client: commands are lines on standard input ("help" lists them), events are JSON lines."""
    from mcptt_sip.ops.phone import PhoneOptions, run_phone
    from mcptt_sip.ops.programs import set_up_logging

    set_up_logging(verbose)
    if answer not in ("auto", "asked", "manual", "decline", "ring"):
        _stop(USAGE, f"--answer {answer!r} is not auto, asked, manual, decline or ring")
    if acknowledgement not in ("none", "optional", "required"):
        _stop(USAGE, f"--acknowledgement {acknowledgement!r} is not none, optional or required")
    if not 0 < key_lifetime < float("inf"):
        _stop(USAGE, "--key-lifetime must be positive: a group key has a finite life")
    if not 0 <= activation_delay < key_lifetime - 1:
        _stop(USAGE, f"--activation-delay {activation_delay}: a key must be used before it is over")
    if key_file is not None and store is None:
        _stop(USAGE, "--key-file seals what is in --store: give both")
    options = PhoneOptions(
        uri=uri,
        server=server,
        proxy=proxy,
        kms=kms_url,
        kms_token=_secret(kms_token_file, "MCPTT_KMS_TOKEN", "bearer token for the KMS"),
        username=username or uri.partition(":")[2].partition("@")[0],
        password=_secret(password_file, "MCPTT_PASSWORD", "password"),
        listen=tuple(listen or ()),
        host=host,
        answer=answer,
        record=record,
        activation_delay=activation_delay,
        key_lifetime=key_lifetime,
        acknowledgement=acknowledgement,
        mirror=mirror,
        tap=tap,
        pcap=pcap,
        pcap_secrets=pcap_secrets,
        kms_authority=kms_ca,
        store=store,
        key_file=key_file,
        tls_authority=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        deputies=tuple(deputy or ()),
        callers=tuple(caller or ()),
        rekey_on_join=rekey_on_join,
    )
    raise typer.Exit(_run(run_phone(options)))


@app.command()
def ua(
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", help="TRANSPORT:HOST:PORT (udp, tcp, tls, ws, wss); repeatable. Port 0: any."),
    ] = None,
    identity: Annotated[str | None, typer.Option(help="SIP URI that calls come from.")] = None,
    register: Annotated[
        str | None, typer.Option(help="Register this URI at its host, e.g. sip:alice@127.0.0.1:5080;transport=tcp.")
    ] = None,
    register_expires: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="Seconds.")] = 3600,
    proxy: Annotated[str | None, typer.Option(help="SIP URI that every request is sent to first.")] = None,
    call: Annotated[str | None, typer.Option(help="Call this URI.")] = None,
    answer_after: Annotated[float, typer.Option(min=0, help="Ring so many seconds, then answer.")] = 0.0,
    ring: Annotated[bool, typer.Option("--ring", help="Ring, and never answer by itself.")] = False,
    reject: Annotated[int | None, typer.Option(min=300, max=699, help="Refuse calls with this status.")] = None,
    hangup_after: Annotated[
        float | None, typer.Option(min=0, help="End each call so many seconds after its answer.")
    ] = None,
    reliable: Annotated[
        bool, typer.Option("--100rel", help="Ring reliably (RFC 3262); require it of the callee.")
    ] = False,
    session_expires: Annotated[int, typer.Option(min=0, help="Session timer (RFC 4028), 90 or more; 0: none.")] = 1800,
    auth_user: Annotated[str | None, typer.Option(help="User name of the digest.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="Password of the digest (or MCPTT_PASSWORD).")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Send back what is heard.")] = False,
    play: Annotated[Path | None, typer.Option(help="Audio file to play in each call.")] = None,
    record: Annotated[Path | None, typer.Option(help="WAV of what is heard.")] = None,
    sdes: Annotated[bool, typer.Option("--sdes", help="SRTP with SDES keys (RFC 4568), and nothing else.")] = False,
    late_offer: Annotated[bool, typer.Option("--late-offer", help="Call without an offer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the first call; exit code 1 if it was ours and failed.")
    ] = False,
    user_agent: Annotated[str | None, typer.Option(help="User-Agent and Server header.")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM chain of TLS listeners; made for this run when not given.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key, if not in the same file.")] = None,
    tls_authorities: Annotated[Path | None, typer.Option(help="PEM file: whom to trust when calling over TLS.")] = None,
    pcap: Pcap = None,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run an ordinary SIP telephone: answers, calls, registers, follows REFER, takes MESSAGE and OPTIONS.

    Runs until it is told otherwise: by a signal, or "quit" on standard input ("help" lists the commands).
    """
    from mcptt_sip.errors import ParseError
    from mcptt_sip.ops.programs import set_up_logging
    from mcptt_sip.ops.ua import TelephoneOptions, run_telephone
    from mcptt_sip.uri import SipUri, parse_uri
    from mcptt_sip.useragent import parse_listener

    set_up_logging(verbose)
    if 0 < session_expires < 90:
        _stop(USAGE, "--session-expires: RFC 4028 allows no less than 90 seconds")
    try:
        for text in listen or ():
            parse_listener(text)
        for read, uri in ((SipUri.parse, identity), (SipUri.parse, register), (SipUri.parse, proxy), (parse_uri, call)):
            if uri is not None:
                read(uri)
    except ValueError as error:
        _stop(USAGE, f"--listen: {error}")
    except ParseError as error:
        _stop(USAGE, error.reason)
    password = None
    if auth_user is not None or password_file is not None:
        password = _secret(password_file, "MCPTT_PASSWORD", "password")
    options = TelephoneOptions(
        listen=tuple(listen or ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]),
        identity=identity,
        register=register,
        register_expires=register_expires,
        proxy=proxy,
        call=call,
        answer_after=answer_after,
        ring=ring,
        reject=reject,
        hangup_after=hangup_after,
        reliable=reliable,
        session_expires=session_expires,
        auth_user=auth_user,
        password=password,
        echo=echo,
        play=play,
        record=record,
        sdes=sdes,
        late_offer=late_offer,
        as_json=as_json,
        once=once,
        user_agent=user_agent,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_authorities=tls_authorities,
        pcap=pcap,
    )
    raise typer.Exit(_run(run_telephone(options)))


@app.command()
def phones(
    count: Annotated[int, typer.Option("--count", min=1, help="How many.")],
    proxy: Annotated[str, typer.Option(help="Address of the server: TRANSPORT:HOST:PORT.")],
    tokens: Annotated[Path, typer.Option(help="JSON file for the KMS: bearer token -> user URI, as mcptt kms takes.")],
    passwords: Annotated[Path, typer.Option(help="JSON file: user URI -> password.")],
    user: Annotated[
        str, typer.Option(help="MCPTT IDs; {n} is the number, from 1.")
    ] = "sip:phone{n}@mcx.example",
    first: Annotated[int, typer.Option(help="The first number.")] = 1,
    server: Annotated[str, typer.Option(help="The server's service identity.")] = "sip:mcptt@mcx.example",
    kms_url: Annotated[str, typer.Option("--kms", help="URL of the KMS.")] = "https://127.0.0.1:8443",
    kms_ca: Annotated[
        Path | None, typer.Option("--kms-ca", help="PEM that the KMS's certificate is checked with.")
    ] = None,
    host: Annotated[str, typer.Option(help="Local address of media.")] = "127.0.0.1",
    answer: Annotated[str, typer.Option(help="auto, decline, ring (never answers) or die.")] = "auto",
    odd: Annotated[str, typer.Option(help="How every --odd-one-in'th phone answers.")] = "auto",
    odd_one_in: Annotated[int, typer.Option(help="0: none.")] = 0,
    verbose: Verbose = 0,
    config: Config = None,
) -> None:
    """Run many light phones in one process, for load: they answer, acknowledge keys, and count audio.

    Lines on standard input: "figures" prints what happened so far, "quit" ends.
    """
    from mcptt_sip.ops.phone import proxy_uri
    from mcptt_sip.ops.phones import PhonesOptions, read_secrets, run_phones
    from mcptt_sip.ops.programs import set_up_logging

    set_up_logging(verbose)
    for name, value in (("--answer", answer), ("--odd", odd)):
        if value not in ("auto", "decline", "ring", "die"):
            _stop(USAGE, f"{name} {value!r} is not auto, decline, ring or die")
    if "{n}" not in user and count > 1:
        _stop(USAGE, "--user must contain {n}, the number")
    users = [user.replace("{n}", str(number)) for number in range(first, first + count)]
    try:
        by_user = {uri: token for token, uri in read_secrets(tokens).items()}
        options = PhonesOptions(
            users, server, proxy_uri(proxy), kms_url, by_user, read_secrets(passwords), host, answer, odd, odd_one_in,
            kms_authority=kms_ca,
        )
    except (OSError, ValueError) as error:
        _stop(USAGE, str(error))
    missing = [uri for uri in users if uri not in options.tokens or uri not in options.passwords]
    if missing:
        _stop(USAGE, f"no token or password for {missing[0]}, and {len(missing) - 1} more like that")
    raise typer.Exit(_run(run_phones(options)))


def _run(program: Coroutine[Any, Any, int]) -> int:
    """A long-running program; what the environment lacks is one sentence, not a traceback."""
    from mcptt_sip.errors import SipError
    from mikey import MikeyError

    try:
        return asyncio.run(program)
    except (OSError, ValueError, SipError, MikeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ENVIRONMENT
    except KeyboardInterrupt:
        return PASSED


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def inspect(context: typer.Context) -> None:
    """Look into MIKEY messages: FILE, BASE64, SDP, a capture or - (inspect --help says more)."""
    from mikey.inspection import main as inspect_messages

    raise typer.Exit(inspect_messages(context.args))


@app.command()
def doctor() -> None:
    """Say what this machine has and lacks for running and testing. Exits 3 when something needed is missing."""
    from mcptt_sip.ops.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{finding.mark:8} {finding.what:28} {finding.detail}")
    raise typer.Exit(ENVIRONMENT if any(f.needed and not f.present for f in findings) else PASSED)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
