"""Who is asking: a virtual key that the client holds and cannot make up.

A key is 256 random bits with the prefix `xa_` and a checksum, so that secret scanners find it and a
mistyped key is told from a revoked one. Only its SHA-256 is ever stored or compared.
"""

import hashlib
import re
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping

KEY_PREFIX = "xa_"
KEY_HASH_PREFIX = "sha256:"
_MADE = re.compile(r"xa_[A-Za-z0-9_-]{43}_[0-9a-f]{8}")
_BEARER = "bearer "
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 +Credential=([^/,\s]+)/")
_KEY_HEADERS = ("x-api-key", "api-key", "x-goog-api-key")
"""Of Anthropic's SDKs, of those for Azure, and of Google's."""


class CredentialError(ValueError):
    """The request carries no usable credential; the text says what to send."""


class NoCredentialError(CredentialError):
    """It carries none at all, so it may be known by something else."""


def make_key(entropy: bytes) -> str:
    """A virtual key from 32 random bytes: `xa_<43 characters>_<8 hex digits of CRC-32>`."""
    if len(entropy) != 32:
        raise ValueError("a virtual key is made of 32 random bytes")
    body = KEY_PREFIX + urlsafe_b64encode(entropy).decode().rstrip("=")
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def is_made_key(key: str) -> bool:
    """Whether a text is a key as `make_key` makes them, whole and without a typing error."""
    if not _MADE.fullmatch(key):
        return False
    body, _, checksum = key.rpartition("_")
    return f"{zlib.crc32(body.encode()):08x}" == checksum


def short_name(key_hash: str) -> str:
    """What a key is called where it must not be shown: the first 12 hex digits of its hash."""
    return key_hash.removeprefix(KEY_HASH_PREFIX)[:12]


def hash_key(key: str) -> str:
    """The only form in which a key is stored or compared: `sha256:<hex>`."""
    # A header need not be Unicode: whatever it holds has a hash, and is nobody's key.
    return KEY_HASH_PREFIX + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def read_credential(headers: Mapping[str, str]) -> str:
    """The virtual key, from where the SDKs put it.

    That is `Authorization` (a bearer token, or AWS's access key id) or another header.

    Raises:
        NoCredentialError: no key.
        CredentialError: two that differ.
    """
    given = (
        _bearer(headers),
        _signer(headers),
        *(headers.get(name, "").strip() for name in _KEY_HEADERS),
    )
    found = {key for key in given if key}
    if not found:
        raise NoCredentialError(
            "no virtual key: set the SDK's api_key to the agent's key (it is sent as "
            "'Authorization: Bearer', 'x-api-key', 'api-key' or 'x-goog-api-key')"
        )
    if len(found) > 1:
        raise CredentialError(
            "two different keys: 'Authorization', 'x-api-key', 'api-key' and 'x-goog-api-key' "
            "disagree, send one"
        )
    return found.pop()


def _signer(headers: Mapping[str, str]) -> str:
    """The access key id of AWS's SDKs, which send a bearer token over HTTPS only.

    Nobody checks the signature: the id is the secret here.
    """
    found = _SIGNED.match(headers.get("authorization", "").strip())
    return found[1] if found else ""


def _bearer(headers: Mapping[str, str]) -> str:
    value = headers.get("authorization", "").strip()
    if value[: len(_BEARER)].lower() != _BEARER:
        return ""
    return value[len(_BEARER) :].strip()
