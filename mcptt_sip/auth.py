# SPDX-License-Identifier: Apache-2.0
"""Digest authentication (RFC 3261 22, RFC 7616, RFC 8760): both sides, no clock, no entropy of its own.

:RFC 7616: yes
:RFC 8760: yes
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from mcptt_sip.errors import ParseError
from mcptt_sip.grammar import QUOTED, TOKEN, quote, unquote
from mcptt_sip.message import Request, Response

__all__ = [
    "ALGORITHMS",
    "Challenge",
    "DigestAuthenticator",
    "DigestClient",
    "DigestCredentials",
    "Ha1",
    "Verdict",
    "digest_response",
    "ha1",
    "parse_auth",
]

log = logging.getLogger(__name__)

#: RFC 8760 2.1, the one preferred first; ``-sess`` variants hash the nonces in
ALGORITHMS: dict[str, Callable[[bytes], str]] = {
    "SHA-512-256": lambda data: hashlib.new("sha512_256", data).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}

_auth_param = re.compile(rf"[ \t]*({TOKEN})[ \t]*=[ \t]*({QUOTED}|[^\s,\"]+)[ \t]*(,|$)").match


@dataclass(frozen=True)
class Ha1:
    """H(username:realm:password), as stored instead of a password (RFC 7616 3.4.2). Never printed."""

    value: str = field(repr=False)
    algorithm: str = "SHA-256"


def _base(algorithm: str) -> str:
    return algorithm.upper().removesuffix("-SESS")


def ha1(username: str, realm: str, password: str, algorithm: str = "SHA-256") -> str:
    """H(username:realm:password) in lower-case hexadecimal."""
    return ALGORITHMS[_base(algorithm)](f"{username}:{realm}:{password}".encode())


def digest_response(
    *,
    algorithm: str,
    secret: str,
    method: str,
    uri: str,
    nonce: str,
    body: bytes = b"",
    qop: str | None = None,
    nc: str = "",
    cnonce: str = "",
) -> str:
    """The ``response`` of RFC 7616 3.4.1; `secret` is HA1, before any ``-sess`` step."""
    h = ALGORITHMS[_base(algorithm)]
    if algorithm.upper().endswith("-SESS"):
        secret = h(f"{secret}:{nonce}:{cnonce}".encode())
    a2 = f"{method}:{uri}"
    if qop == "auth-int":
        a2 += f":{h(body)}"
    a2_hash = h(a2.encode("utf-8", "surrogateescape"))
    if qop is None:
        return h(f"{secret}:{nonce}:{a2_hash}".encode("utf-8", "surrogateescape"))
    return h(f"{secret}:{nonce}:{nc}:{cnonce}:{qop}:{a2_hash}".encode("utf-8", "surrogateescape"))


def parse_auth(text: str) -> tuple[str, dict[str, str]]:
    """``Digest a=b, c="d"`` as scheme (lower case) and parameters (names in lower case, values unquoted)."""
    scheme, _, rest = text.strip().partition(" ")
    params: dict[str, str] = {}
    at = 0
    while at < len(rest):
        match = _auth_param(rest, at)
        if match is None:
            raise ParseError("not an authentication parameter", offset=at)
        name = match[1].lower()
        if name in params:
            raise ParseError(f"{name} stands twice", offset=at)
        params[name] = unquote(match[2])
        at = match.end()
    return scheme.lower(), params


@dataclass(frozen=True, slots=True)
class Challenge:
    """One Digest challenge of a 401 or 407."""

    realm: str
    nonce: str
    algorithm: str = "MD5"
    qop: tuple[str, ...] = ()
    opaque: str | None = None
    stale: bool = False
    proxy: bool = False

    @classmethod
    def parse(cls, text: str, *, proxy: bool = False) -> Challenge | None:
        """``None`` for another scheme or an algorithm that is not known."""
        scheme, params = parse_auth(text)
        algorithm = params.get("algorithm", "MD5")
        if scheme != "digest" or "realm" not in params or "nonce" not in params:
            return None
        if _base(algorithm) not in ALGORITHMS:
            return None
        qop = tuple(word.strip().lower() for word in params.get("qop", "").split(",") if word.strip())
        return cls(
            params["realm"],
            params["nonce"],
            algorithm,
            qop,
            params.get("opaque"),
            params.get("stale", "").lower() == "true",
            proxy,
        )


@dataclass(frozen=True)
class DigestCredentials:
    """A user name with a password or HA1. `realm` limits where they are used; ``None``: anywhere."""

    username: str
    password: str | Ha1 = field(repr=False)
    realm: str | None = None

    def secret(self, realm: str, algorithm: str) -> str | None:
        """HA1 for this realm; ``None`` when these credentials are not for it."""
        if self.realm is not None and self.realm != realm:
            return None
        if isinstance(self.password, Ha1):
            return self.password.value if _base(algorithm) == _base(self.password.algorithm) else None
        return ha1(self.username, realm, self.password, algorithm)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("credentials do not pickle")


class DigestClient:
    """Answers challenges for one user, and signs later requests with the nonce it has (RFC 7616 3.6), so that
    only the first request of a realm costs a round trip."""

    def __init__(self, credentials: DigestCredentials, token: Callable[[], bytes]) -> None:
        self.credentials = credentials
        self._token = token
        self._known: dict[tuple[bool, str], Challenge] = {}
        self._counts: dict[str, int] = {}

    def authorize(self, request: Request) -> None:
        """Add (anew) an Authorization or Proxy-Authorization for every realm that has challenged so far."""
        for name in ("authorization", "proxy-authorization"):
            request.headers.remove(name)
        for challenge in self._known.values():
            self._sign(request, challenge)

    def answer(self, request: Request, response: Response) -> bool:
        """Learn the challenges of a 401 or 407 to `request`. Whether trying again can help: not, when the same
        realm refuses the same user again and does not say ``stale``."""
        tried = {
            (name == "proxy-authorization", parse_auth(value)[1].get("realm", ""))
            for name in ("authorization", "proxy-authorization")
            for value in request.headers.get_all(name)
        }
        hope = False
        best: dict[tuple[bool, str], Challenge] = {}
        for name, proxy in (("www-authenticate", False), ("proxy-authenticate", True)):
            for value in response.headers.get_all(name):
                challenge = Challenge.parse(value, proxy=proxy)
                if challenge is None:
                    continue
                # RFC 8760 2.4: the topmost that this side supports
                best.setdefault((proxy, challenge.realm), challenge)
        for key, challenge in best.items():
            if self.credentials.secret(challenge.realm, challenge.algorithm) is None:
                continue
            if key in tried and not challenge.stale:
                self._known.pop(key, None)
                continue
            self._known[key] = challenge
            self._counts = {c.nonce: self._counts.get(c.nonce, 0) for c in self._known.values()}
            hope = True
        return hope

    def learn(self, response: Response) -> None:
        """The nonce that a server wants to see next (RFC 7616 3.5). Its header names no realm: of several realms, none
        is changed. What cannot be read is left aside; the server will challenge again."""
        for name, proxy in (("authentication-info", False), ("proxy-authentication-info", True)):
            known = [key for key in self._known if key[0] is proxy]
            value = response.headers.get(name)
            if value is None or len(known) != 1:
                continue
            try:
                nonce = parse_auth(f"Digest {value}")[1].get("nextnonce")
            except ParseError as error:
                log.info("call-id=%s %s: %s", response.headers.get("call-id"), name, error)
                continue
            if nonce:
                self._counts.pop(self._known[known[0]].nonce, None)
                self._known[known[0]] = replace(self._known[known[0]], nonce=nonce)

    def _sign(self, request: Request, challenge: Challenge) -> None:
        secret = self.credentials.secret(challenge.realm, challenge.algorithm)
        if secret is None:
            return
        uri = str(request.uri)
        fields = [
            ("username", quote(self.credentials.username)),
            ("realm", quote(challenge.realm)),
            ("nonce", quote(challenge.nonce)),
            ("uri", quote(uri)),
        ]
        qop = "auth" if "auth" in challenge.qop else "auth-int" if "auth-int" in challenge.qop else None
        session = challenge.algorithm.upper().endswith("-SESS")
        cnonce = self._token().hex() if qop or session else ""
        count = ""
        if qop:
            self._counts[challenge.nonce] = self._counts.get(challenge.nonce, 0) + 1
            count = f"{self._counts[challenge.nonce]:08x}"
        response = digest_response(
            algorithm=challenge.algorithm,
            secret=secret,
            method=request.method,
            uri=uri,
            nonce=challenge.nonce,
            body=request.body,
            qop=qop,
            nc=count,
            cnonce=cnonce,
        )
        fields += [("response", quote(response)), ("algorithm", challenge.algorithm)]
        if cnonce:
            fields.append(("cnonce", quote(cnonce)))
        if qop:
            fields += [("qop", qop), ("nc", count)]
        if challenge.opaque is not None:
            fields.append(("opaque", quote(challenge.opaque)))
        request.headers.add(
            "Proxy-Authorization" if challenge.proxy else "Authorization",
            "Digest " + ", ".join(f"{name}={value}" for name, value in fields),
        )


class Verdict(Enum):
    """What the server side thinks of a request."""

    GOOD = "the user is who the header says"
    NONE = "no credentials for this realm"
    STALE = "right credentials, but the nonce is too old or not ours"
    BAD = "wrong credentials"
    REPLAYED = "this nonce count was used before"


@dataclass(slots=True)
class _Nonce:
    issued: float
    counts: int = 0  # bit n: nonce count (highest - n) was seen
    highest: int = 0


#: given a username, its password or HA1; ``None`` when there is no such user
Lookup = Callable[[str], "str | Ha1 | None"]


class DigestAuthenticator:
    """The server's side: challenges, nonces with a lifetime, nonce counts that are used once.

    Nonces are MACs over their own time, so a flood of unauthenticated requests costs no memory; only nonces
    that were used successfully are remembered, at most `max_nonces`.
    """

    def __init__(
        self,
        realm: str,
        lookup: Lookup,
        token: Callable[[], bytes],
        *,
        algorithms: tuple[str, ...] = ("SHA-256", "MD5"),
        qop: str = "auth",
        nonce_lifetime: float = 300.0,
        max_nonces: int = 100_000,
        allow_no_qop: bool = False,
        proxy: bool = False,
    ) -> None:
        self.realm = realm
        self._allow_no_qop = allow_no_qop  # RFC 2069 peers: their requests can be replayed while a nonce lives
        self.proxy = proxy
        self._lookup = lookup
        self._token = token
        self._algorithms = algorithms
        self._qop = qop
        self._lifetime = nonce_lifetime
        self._max = max_nonces
        self._key = hashlib.sha256(token() + token()).digest()
        self._used: OrderedDict[str, _Nonce] = OrderedDict()
        self._forgotten = float("-inf")  # nonces issued up to then may have been used and forgotten

    def challenge(self, now: float, *, stale: bool = False) -> list[tuple[str, str]]:
        """The WWW-Authenticate (or Proxy-Authenticate) headers of a 401 (407), preferred algorithm first."""
        name = "Proxy-Authenticate" if self.proxy else "WWW-Authenticate"
        nonce = self._nonce(now)
        return [
            (
                name,
                f'Digest realm={quote(self.realm)}, nonce="{nonce}", qop="{self._qop}", algorithm={algorithm}'
                + (", stale=TRUE" if stale else ""),
            )
            for algorithm in self._algorithms
        ]

    def check(self, request: Request, now: float) -> tuple[Verdict, str | None]:
        """The verdict and the user name it is about. Raises `ParseError` for a header that is no header."""
        name = "proxy-authorization" if self.proxy else "authorization"
        for value in request.headers.get_all(name):
            if not value[:7].lower().startswith("digest "):
                continue
            _, params = parse_auth(value)
            if params.get("realm") == self.realm:
                return self._verify(request, params, now)
        return Verdict.NONE, None

    def _verify(self, request: Request, params: dict[str, str], now: float) -> tuple[Verdict, str | None]:
        user = params.get("username", "")
        algorithm = params.get("algorithm", "MD5")
        nonce, count_text = params.get("nonce", ""), params.get("nc", "")
        qop = params.get("qop", "").lower() or None
        if _base(algorithm) not in {_base(known) for known in self._algorithms}:
            return Verdict.BAD, user
        if qop is None:
            if not self._allow_no_qop:
                return Verdict.BAD, user
        elif qop not in {word.strip() for word in self._qop.split(",")}:
            return Verdict.BAD, user
        known = self._lookup(user)
        if isinstance(known, Ha1):
            secret = known.value if _base(known.algorithm) == _base(algorithm) else None
        else:
            secret = None if known is None else ha1(user, self.realm, known, algorithm)
        wanted = digest_response(
            algorithm=algorithm,
            secret=secret if secret is not None else self._token().hex(),
            method=request.method,
            uri=params.get("uri", ""),
            nonce=nonce,
            body=request.body,
            qop=qop,
            nc=count_text,
            cnonce=params.get("cnonce", ""),
        )
        right = hmac.compare_digest(wanted.encode(), params.get("response", "").lower().encode("utf-8", "replace"))
        if secret is None or not right:
            return Verdict.BAD, user
        issued = self._issued(nonce)
        if issued is None or not -1.0 <= now - issued <= self._lifetime:
            return Verdict.STALE, user
        if issued <= self._forgotten and nonce not in self._used:
            return Verdict.STALE, user
        if qop is not None:
            try:
                count = int(count_text, 16)
            except ValueError:
                return Verdict.BAD, user
            if not self._first_use(nonce, count, issued):
                return Verdict.REPLAYED, user
        return Verdict.GOOD, user

    def _nonce(self, now: float) -> str:
        stamp = f"{int(now * 1000):012x}" + self._token().hex()[:16]
        return stamp + hmac.digest(self._key, stamp.encode(), "sha256").hex()[:32]

    def _issued(self, nonce: str) -> float | None:
        stamp, mac = nonce[:-32], nonce[-32:]
        wanted = hmac.digest(self._key, stamp.encode("utf-8", "surrogateescape"), "sha256").hex()[:32]
        if len(stamp) < 12 or not hmac.compare_digest(wanted.encode(), mac.encode("utf-8", "replace")):
            return None
        return int(stamp[:12], 16) / 1000

    def _first_use(self, nonce: str, count: int, issued: float) -> bool:
        """Nonce counts may overtake each other on the way, within a window of 256 (RFC 7616 5.12)."""
        entry = self._used.get(nonce)
        if entry is None:
            entry = self._used[nonce] = _Nonce(issued)
            while len(self._used) > self._max:
                _, dropped = self._used.popitem(last=False)
                self._forgotten = max(self._forgotten, dropped.issued)
        if count > entry.highest:
            shift = min(count - entry.highest, 256)
            entry.counts = ((entry.counts << shift) | 1) & ((1 << 256) - 1)
            entry.highest = count
            return True
        behind = entry.highest - count
        if behind >= 256 or entry.counts >> behind & 1:
            return False
        entry.counts |= 1 << behind
        return True
