"""Each line proves all lines before it: its hash is made of theirs.

A line is `{...,"hash":"<hex>"}`, where hash = SHA-256(hash of the line before || the line without
its hash), and before the first line stands the hash of the org's name. With a key it is HMAC-SHA256
with that key: whoever can write the files, but does not have the key, can write no line that fits.
Without one, all hashes can be made anew from a changed line on, which only a copy of a later hash
that is kept elsewhere (the store has one) proves.
"""

import hashlib
import hmac
from dataclasses import dataclass

HASH_BYTES = 32
_BEFORE, _AFTER = b',"hash":"', b'"}'
_SUFFIX_BYTES = len(_BEFORE) + 2 * HASH_BYTES + len(_AFTER)
_ORIGIN = b"extauthz books 1\n"
"""Names the format: another one, whatever it hashes, begins with another hash."""


@dataclass(frozen=True, slots=True)
class Chain:
    """How the lines of one org are linked; `key` is kept outside of store and archive."""

    org: str
    key: bytes | None = None

    @property
    def origin(self) -> bytes:
        """What stands in the place of the hash before the first line."""
        return self._digest(_ORIGIN + self.org.encode())

    def link(self, previous: bytes, body: bytes) -> bytes:
        """The hash of a line that follows another one."""
        return self._digest(previous + body)

    def _digest(self, data: bytes) -> bytes:
        if self.key is None:
            return hashlib.sha256(data).digest()
        return hmac.digest(self.key, data, "sha256")


def with_hash(body: bytes, hash_: bytes) -> bytes:
    """A line, with its end: a JSON object that gets its hash as its last member."""
    return b"".join((body[:-1], _BEFORE, hash_.hex().encode(), _AFTER, b"\n"))


def without_hash(line: bytes) -> tuple[bytes, bytes]:
    """A line without its end, as the object that was hashed, and the hash that it carries.

    Raises:
        ValueError: it carries none.
    """
    body, suffix = line[:-_SUFFIX_BYTES], line[-_SUFFIX_BYTES:]
    if not (suffix.startswith(_BEFORE) and suffix.endswith(_AFTER) and body):
        raise ValueError("carries no hash")
    digits = suffix[len(_BEFORE) : -len(_AFTER)].decode("ascii", "replace")
    hash_ = bytes.fromhex(digits)
    if hash_.hex() != digits:  # a digit as a capital would be a second text for the same line
        raise ValueError("carries no hash")
    return body + b"}", hash_
