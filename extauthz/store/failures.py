"""What a store's error means and what to do about it, in a sentence for whoever is on call."""

import ssl

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from extauthz.store.base import StoreUnavailableError

NEEDED_ACL = (
    "~xa1:* -@all +auth +hello +ping +select +asking +client|setname +info +time "
    "+wait +config|get +cluster|slots +eval +evalsha +scan +exists +get +set +del +pexpireat "
    "+pexpiretime +hget +hmget +hgetall +hkeys +hset +hdel +hincrby +zadd +zcard +zscore +zrange "
    "+zrem +zremrangebyscore +xadd +xrange +xtrim +xinfo|stream"
)
"""What the ledger asks of its user, as words for ACL SETUSER; deploy/users.acl has the same.

Command by command: classes have more in them. FLUSHALL is a part of @write, KEYS of @read, and
CLIENT KILL of @connection.
"""

# The first that fits counts: some of these classes are children of others.
_BY_CLASS: dict[type[Exception], str] = {
    BusyLoadingError: "it is still reading its data from disk; wait for it",
    ReadOnlyError: "it is a replica; store.url has to name the primary, or Sentinels that know it",
    MasterDownError: "it is a replica that has lost its primary; store.url has to name the primary",
    OutOfMemoryError: "its memory is full; raise its maxmemory",
    AuthenticationError: "it wants another user or password; see store.url "
    "(that of Sentinels is ?sentinel_password=)",
    ssl.SSLCertVerificationError: "its certificate is not for this host, or of a CA that is not "
    "trusted here; name the CA in store.url, ?ssl_ca_certs=FILE",
    NoPermissionError: f"its ACL forbids what the ledger needs: ACL SETUSER <user> {NEEDED_ACL}",
    TryAgainError: "the org's slot is being moved to another node; wait until it has been",
    AskError: "it is a node of a Cluster that has no node for the org yet, or store.url lacks "
    "the redis+cluster://",
    ClusterDownError: "its Cluster has slots that no node serves; see CLUSTER INFO",
}

_BY_FIRST_WORD = {
    "BUSY": "a script of another client holds it up; see SCRIPT KILL",
    "MISCONF": "it cannot write to its disk; see its log",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write",
}


def unavailable(place: str, error: Exception) -> StoreUnavailableError:
    """What redis-py raised, with the place and the remedy where one is known."""
    text = str(error)
    # redis-py strips the first word of the errors that it has a class for.
    remedy = _BY_FIRST_WORD.get(text.split(" ", 1)[0])
    # While it connects, it wraps what the server or TLS said into an error of its own.
    said = (error, error.__cause__, error.__context__)
    for kind, known in _BY_CLASS.items():
        if any(isinstance(one, kind) for one in said):
            remedy = known
            break
    if remedy is None:
        return StoreUnavailableError(f"the store at {place} cannot be used: {text}")
    return StoreUnavailableError(f"the store at {place} cannot be used: {remedy} ({text})")
