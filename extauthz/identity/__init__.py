"""Who is asking, by what a client holds or is and cannot make up; nothing else that it writes."""

from extauthz.identity.keys import (
    KEY_HASH_PREFIX,
    CredentialError,
    NoCredentialError,
    hash_key,
    is_made_key,
    make_key,
    read_credential,
    short_name,
)
from extauthz.identity.rules import (
    CertificateRule,
    KeyRule,
    NamePattern,
    Rule,
    StaticRule,
    TokenRule,
    verified_name,
)

__all__ = [
    "KEY_HASH_PREFIX",
    "CertificateRule",
    "CredentialError",
    "KeyRule",
    "NamePattern",
    "NoCredentialError",
    "Rule",
    "StaticRule",
    "TokenRule",
    "hash_key",
    "is_made_key",
    "make_key",
    "read_credential",
    "short_name",
    "verified_name",
]
