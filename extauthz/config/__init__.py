"""The one file, `extauthz.yaml`: read, checked, and compiled into policies and prices."""

from importlib.resources import files

from extauthz.config.compiled import policies_of, prices_of
from extauthz.config.load import ConfigError, load, parse
from extauthz.config.model import Config

PLACEHOLDER_KEY_HASH = "sha256:" + "0" * 64
"""Stands in the example where an agent's key hash goes; no key has it."""


def example_text() -> str:
    """The commented example that `extauthz init` writes."""
    return files("extauthz.config").joinpath("example.yaml").read_text(encoding="utf-8")


__all__ = [
    "PLACEHOLDER_KEY_HASH",
    "Config",
    "ConfigError",
    "example_text",
    "load",
    "parse",
    "policies_of",
    "prices_of",
]
