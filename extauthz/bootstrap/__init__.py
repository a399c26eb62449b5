"""The Envoy bootstrap, rendered: what Envoy must do so that no call passes without a budget.

`render` is the API, with the settings it takes and the files that they name. Envoy's message
classes take most of a second to import: the first `render` does it, importing this package not.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from extauthz.bootstrap.settings import (
    SYSTEM_CA_FILE,
    AwsSigning,
    ClientCertificates,
    Credential,
    EnvironmentSource,
    EnvoySettings,
    FileSource,
    InterceptedHost,
    ProviderSettings,
    SettingsError,
    TokenIssuer,
    Upstream,
)

__all__ = [
    "SYSTEM_CA_FILE",
    "AwsSigning",
    "ClientCertificates",
    "Credential",
    "EnvironmentSource",
    "EnvoySettings",
    "FileSource",
    "InterceptedHost",
    "ProviderSettings",
    "SettingsError",
    "TokenIssuer",
    "Upstream",
    "arguments",
    "render",
    "secret_file",
]


def render(settings: EnvoySettings) -> str:
    """The bootstrap as YAML for people and for Envoy: the same settings give the same text."""
    with _tolerance():
        from extauthz.bootstrap.document import document  # noqa: PLC0415 - 0.7 s, see above

    return document(settings)


def secret_file(provider: ProviderSettings, key_file: Path) -> str:
    """What to write at `FileSource.path`, so that Envoy takes the key from `key_file`.

    The key file holds the bare key; when it is replaced by a rename, Envoy reads it again.
    """
    with _tolerance():
        from extauthz.bootstrap import upstreams  # noqa: PLC0415 - 0.7 s, see above

    return upstreams.secret_file(provider, key_file)


@contextmanager
def _tolerance() -> Iterator[None]:
    """Envoy's generated classes use what pydantic has deprecated; `-W error` must still work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def arguments(settings: EnvoySettings, config_file: Path) -> list[str]:
    """Envoy's command line for a rendered bootstrap: what cannot be said in the file itself."""
    return [
        "--config-path",
        str(config_file),
        # A second Envoy must fail to bind, not take over through shared memory.
        "--disable-hot-restart",
        # Reconciliation reads the file access log: by default Envoy writes it every 10 s.
        "--file-flush-interval-msec",
        "200",
        "--drain-time-s",
        str(max(1, int(settings.drain.total_seconds()))),
        "--drain-strategy",
        "immediate",
        "--log-level",
        "warning",
    ]
