"""The Envoy bootstrap, rendered: what Envoy must do so that no call passes without a budget.

`render` is the whole API, with the settings it takes. Envoy's message classes take most of a
second to import; they are imported by the first `render`, not by importing this package.
"""

import warnings
from pathlib import Path

from extauthz.bootstrap.settings import (
    SYSTEM_CA_FILE,
    Credential,
    EnvironmentSource,
    EnvoySettings,
    FileSource,
    ProviderSettings,
    SettingsError,
    Upstream,
)

__all__ = [
    "SYSTEM_CA_FILE",
    "Credential",
    "EnvironmentSource",
    "EnvoySettings",
    "FileSource",
    "ProviderSettings",
    "SettingsError",
    "Upstream",
    "arguments",
    "render",
]


def render(settings: EnvoySettings) -> str:
    """The bootstrap as YAML for people and for Envoy: the same settings give the same text."""
    with warnings.catch_warnings():
        # The generated classes use a spelling that pydantic has deprecated; with `-W error` the
        # egress must still start.
        warnings.simplefilter("ignore", DeprecationWarning)
        from extauthz.bootstrap.document import document  # noqa: PLC0415 - 0.7 s, see above

    return document(settings)


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
