"""Public tokens (protocol, section 2): JWTs that are signed with the secret key and say what their bearer may do.

HS256 only, keyed with the UTF-8 bytes of the secret key as they are (RFC 7515, 7518): as the JavaScript clients make
them. Signing is done on each trigger; it costs a few microseconds.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

ISSUER = "https://id.trigger.dev"
AUDIENCE = "https://api.trigger.dev"
ENVIRONMENT_ID = "env_default"
"""The `sub` of every token: a server has one environment."""

LIFE_SECONDS = 15 * 60
"""How long a token lives for which nobody says it."""

HANDED_OUT_SECONDS = 3600
"""The same for a token that the answer to a trigger carries."""

TOKEN_HEADER = "x-trigger-jwt"
CLAIMS_HEADER = "x-trigger-jwt-claims"

TOKEN_BYTES_MAX = 16 * 1024
"""Servers take no longer header."""

_HEADER = urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=")
_SPANS = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FIRST_TIME, _LAST_TIME = 1_000_000_000, 253_000_000_000
_encode = msgspec.json.Encoder().encode


class CommonClaims(msgspec.Struct):
    """What a client that signs by itself puts into its tokens."""

    sub: str
    pub: bool


class PublicTokenRequest(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """A token to be signed by the server. `expirationTime` is a span such as `15m`, or seconds since 1970."""

    scopes: list[str]
    expiration_time: str | int | float | None = None
    one_time_use: bool = False
    realtime: dict[str, Any] | None = None
    metadata_keys: list[str] | None = None


class PublicTokenResponse(msgspec.Struct):
    """The token."""

    token: str


class TokenError(ValueError):
    """A text is no token of this key, or none that is valid now; the message says why, without the token."""


def claims_of(
    scopes: Sequence[str] | None,
    *,
    now: int,
    expires_at: int,
    one_time: bool | None = None,
    metadata_keys: Sequence[str] | None = None,
    realtime: Mapping[str, Any] | None = None,
    token_id: str | None = None,
) -> dict[str, Any]:
    """The claims of a public token. Times are seconds since 1970."""
    claims: dict[str, Any] = {"sub": ENVIRONMENT_ID, "pub": True}
    given = {
        "otu": one_time,
        "scopes": None if scopes is None else list(scopes),
        "realtime": realtime,
        "metadataKeys": None if metadata_keys is None else list(metadata_keys),
        "jti": token_id,
    }
    claims |= {name: value for name, value in given.items() if value is not None}
    return claims | {"iss": ISSUER, "aud": AUDIENCE, "exp": expires_at, "iat": now}


def signature_of(text: bytes, key: bytes) -> bytes:
    """HMAC with SHA-256. Unlike `hmac.digest` it does not let other threads go first, for what takes a microsecond."""
    mac = _keyed(key).copy()
    mac.update(text)
    return mac.digest()


@lru_cache(maxsize=16)
def _keyed(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod="sha256")


def sign(claims: Mapping[str, Any], key: bytes) -> str:
    """The token that carries these claims."""
    signed = _HEADER + b"." + urlsafe_b64encode(_encode(claims)).rstrip(b"=")
    signature = urlsafe_b64encode(signature_of(signed, key)).rstrip(b"=")
    return (signed + b"." + signature).decode()


def expiry_of(given: str | int | float | timedelta | datetime, now: int) -> int:
    """When a token expires, in seconds since 1970.

    Args:
        given: a span such as `15m`, `2h` or `1h30m` (s, m, h, d, w), a `timedelta`, a point in time, or seconds: since 1970, or from
            now where the number is below a billion.
    Raises: ValueError for what is none of it, has no time zone, or is over already.
    """
    match given:
        case str():
            parts = _SPANS.findall(given)
            if not parts or "".join(number + unit for number, unit in parts) != given.replace(" ", ""):
                raise ValueError(
                    f"{given[:40]!r} is no span; write a number and s, m, h, d or w, such as 15m or 2h"
                )
            expires_at = now + sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts)
        case timedelta():
            expires_at = now + given.total_seconds()
        case datetime():
            if given.tzinfo is None:
                raise ValueError("the time has no time zone; say datetime.now(UTC) + ..., or give a span")
            expires_at = given.timestamp()
        case _:
            expires_at = now + given if given < _FIRST_TIME else given
    if not now < expires_at < _LAST_TIME:
        raise ValueError("a token has to expire in the future, and before the year 9999")
    return int(expires_at)


def looks_like_token(text: str) -> bool:
    """Whether a text has the form of a JWT; the parts may be anything."""
    return text.count(".") == 2 and text.startswith("ey")


def verify(token: str, key: bytes, *, now: float) -> tuple[dict[str, Any], str]:
    """The claims of a token, and what it is told apart by, whatever is not signed of it.

    Raises: TokenError for what is malformed, unsigned, signed by another key, for something else, or expired.
    """
    if len(token) > TOKEN_BYTES_MAX or not token.isascii():
        raise TokenError("it is malformed")
    signed, _, signature = token.encode().rpartition(b".")
    header_part, _, claims_part = signed.partition(b".")
    header = _decoded(header_part)
    # `crit` names what a reader must understand, and this one understands none of it.
    if header.get("alg") != "HS256" or "crit" in header:
        raise TokenError("it is not signed with HS256")
    if not hmac.compare_digest(signature_of(signed, key), _bytes(signature)):
        raise TokenError("it is signed with another key, or was changed")
    claims = _decoded(claims_part)
    if claims.get("iss") != ISSUER:
        raise TokenError(f"its issuer is not {ISSUER}")
    audience = claims.get("aud")
    if audience != AUDIENCE and audience != [AUDIENCE]:
        raise TokenError(f"its audience is not {AUDIENCE}")
    if not now < _time(claims.get("exp")):
        raise TokenError("it has expired")
    if now < _time(claims.get("nbf", 0)):
        raise TokenError("it is not valid yet")
    if claims.get("pub") is not True:
        raise TokenError("it is not a public token")
    return claims, hashlib.sha256(signed).hexdigest()


def _time(value: Any) -> float:
    if type(value) not in (int, float):
        raise TokenError("it does not say until when it is valid")
    return value


def _decoded(part: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(_bytes(part), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise TokenError("it is malformed") from None


def _bytes(part: bytes) -> bytes:
    """What a part says. Only its one right spelling is taken, so that no two texts are the same token."""
    try:
        value = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        raise TokenError("it is malformed") from None
    if urlsafe_b64encode(value).rstrip(b"=") != part:
        raise TokenError("it is malformed")
    return value
