# SPDX-License-Identifier: Apache-2.0
"""The command line ``mcptt admin``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mcptt_sip.ops.programs import ENVIRONMENT, FAILED, PASSED, USAGE

if TYPE_CHECKING:
    from mcptt_sip.ops.admin import PolicyDocument

PolicyPath = Annotated[
    Path, typer.Option("--policy", envvar="MCPTT_POLICY", help="Policy file; a running server takes changes at once.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="His password, read from this file; '-' is standard input.")
]
Assignments = Annotated[
    list[str] | None, typer.Argument(metavar="NAME=VALUE", help="In the words of TS 24.484; lists with commas.")
]
User = Annotated[str, typer.Argument(metavar="USER", help="MCPTT ID, or the name in it where that is clear.")]
POLICY = Path("policy.toml")

app = typer.Typer(
    name="admin", help="Who may do what: look at it, change it, and ask why.", no_args_is_help=True,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)
user = typer.Typer(help="Users and their rights.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(user, name="user")


def _fail(error: Exception, code: int = USAGE) -> NoReturn:
    print(error, file=sys.stderr)
    raise typer.Exit(code)


def _open(path: Path, *, create: bool = False) -> PolicyDocument:
    from mcptt_sip.ops.admin import AdminError, PolicyDocument

    try:
        return PolicyDocument(path, create=create)
    except AdminError as error:
        _fail(error, ENVIRONMENT)


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        _fail(error, ENVIRONMENT)
    return text.strip()


@user.command("list")
def list_users(policy: PolicyPath = POLICY, as_json: AsJson = False) -> None:
    """Who is there."""
    profiles = _open(policy).policy.profiles.values()
    if as_json:
        print(json.dumps([profile.uri for profile in profiles]))
        return
    for profile in profiles:
        marks = [mark for given, mark in ((profile.allow_regroup, "regroup"), (profile.allow_private_call, "call"))
                 if given]
        print(f"{profile.uri:40} {profile.username:16} {' '.join(marks)}".rstrip())


@user.command()
def show(name: User, policy: PolicyPath = POLICY, as_json: AsJson = False) -> None:
    """All of one user's rights, given or by default."""
    from mcptt_sip.ops.admin import AdminError, described

    document = _open(policy)
    try:
        profile = document.find(name)
    except AdminError as error:
        _fail(error)
    entries = described(profile)
    if as_json:
        print(json.dumps(entries))
        return
    given = profile.table()
    for key, value in entries.items():
        by_default = key not in given and key not in ("uri", "password")
        print(f"{key:52} {_shown(value)}{'   (default)' if by_default else ''}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) or "-" if isinstance(value, tuple) else str(value)


@user.command("set")
def set_entries(
    name: User, assignments: Assignments = None, policy: PolicyPath = POLICY, password_file: PasswordFile = None
) -> None:
    """Change entries of one user: mcptt admin user set bob allow-regroup=true MaxSimultaneousCallsN6=4"""
    from mcptt_sip.ops.admin import AdminError

    document = _open(policy)
    try:
        print(f"changed {document.set(name, assignments or [], password=_password(password_file))}")
        document.save()
    except AdminError as error:
        _fail(error)


@user.command()
def add(
    uri: Annotated[str, typer.Argument(metavar="URI", help="MCPTT ID, e.g. sip:bob@mcx.example.")],
    assignments: Assignments = None, policy: PolicyPath = POLICY, password_file: PasswordFile = None,
) -> None:
    """Add a user. Without a password he cannot register."""
    from mcptt_sip.ops.admin import AdminError

    document = _open(policy, create=True)
    try:
        document.add(uri, assignments or [], password=_password(password_file))
        document.save()
    except AdminError as error:
        _fail(error)
    print(f"added {uri}")


@user.command()
def remove(name: User, policy: PolicyPath = POLICY) -> None:
    """Take a user out. The server has him leave the calls that he is in; one that he initiated ends."""
    from mcptt_sip.ops.admin import AdminError

    document = _open(policy)
    try:
        uri = document.remove(name)
        document.save()
    except AdminError as error:
        _fail(error)
    print(f"removed {uri}")


@app.command()
def why(
    caller: Annotated[str, typer.Argument(metavar="CALLER")],
    callee: Annotated[str, typer.Argument(metavar="CALLEE")],
    policy: PolicyPath = POLICY,
    manual: Annotated[bool, typer.Option("--manual", help="He asks for manual answering.")] = False,
    forced: Annotated[bool, typer.Option("--forced", help="He forces an automatic answer.")] = False,
    emergency: Annotated[bool, typer.Option("--emergency", help="An emergency call.")] = False,
    imminent_peril: Annotated[bool, typer.Option("--imminent-peril", help="An imminent peril call.")] = False,
    as_json: AsJson = False,
) -> None:
    """Why CALLER may or may not draw CALLEE into a group call: every rule, in its order. Exits 1 when he may not.

    A rule that is not asked in this case has a dash. How many calls and affiliations somebody has now is the running
    server's knowledge: those limits count from none.
    """
    from mcptt_sip.mcptt.policy import Commencement, Urgency
    from mcptt_sip.ops.admin import AdminError, explained

    if (manual and forced) or (emergency and imminent_peril):
        _fail(ValueError("--manual or --forced, --emergency or --imminent-peril: not both"))
    document = _open(policy)
    try:
        # who is not there is part of the answer, unless it looks like a slip of the pen
        names = [name if ":" in name else document.find(name).uri for name in (caller, callee)]
    except AdminError as error:
        _fail(error)
    question = document.policy.question(
        *names,
        commencement=Commencement.FORCED if forced else Commencement.MANUAL if manual else Commencement.AUTOMATIC,
        urgency=(
            Urgency.EMERGENCY if emergency else Urgency.IMMINENT_PERIL if imminent_peril else Urgency.NORMAL
        ),
    )
    found, verdict = explained(document.policy, question)
    allowed = not any(finding.refuses for finding in found)
    if as_json:
        rules = [{"rule": f.what, "holds": f.holds, "because": f.because if f.refuses else None} for f in found]
        print(json.dumps({"allowed": allowed, "verdict": verdict, "rules": rules}))
    else:
        for finding in found:
            mark = {True: "yes", False: "NO ", None: "-  "}[finding.holds]
            print(f"{mark}  {finding.what}" + (f": {finding.because}" if finding.refuses else ""))
        print(verdict)
    raise typer.Exit(PASSED if allowed else FAILED)


@app.command("import")
def import_profiles(
    files: Annotated[list[Path], typer.Argument(help="user-profile documents (TS 24.484).")],
    policy: PolicyPath = POLICY,
) -> None:
    """Take user-profile XML into the policy file. All of the documents are taken, or none."""
    from mcptt_sip.errors import SipError
    from mcptt_sip.mcptt.userprofile import UserProfile

    document = _open(policy, create=True)
    told = []
    for path in files:
        try:
            profile, unused = UserProfile.decode(path.read_bytes())
        except (OSError, SipError) as error:
            _fail(ValueError(f"{path}: {error}"))
        new = document.put(profile)
        told.append(f"{'added' if new else 'replaced'} {profile.uri}")
        if unused:
            told.append(f"  not acted upon here: {', '.join(unused)}")
    try:
        document.save()
    except SipError as error:
        _fail(error)
    print("\n".join(told))


@app.command("export")
def export_profile(
    name: User,
    policy: PolicyPath = POLICY,
    out: Annotated[Path | None, typer.Option("--out", help="Write it here instead of to standard output.")] = None,
) -> None:
    """One user's profile as XML (TS 24.484), without his password."""
    from mcptt_sip.ops.admin import AdminError

    document = _open(policy)
    try:
        octets = document.find(name).encode()
    except AdminError as error:
        _fail(error)
    if out is None:
        sys.stdout.write(octets.decode() + "\n")
        return
    try:
        out.write_bytes(octets)
    except OSError as error:
        _fail(error, ENVIRONMENT)
