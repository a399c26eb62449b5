"""The one file, `extauthz.yaml`: read, checked, and compiled into policies and prices."""

from extauthz.config.compiled import policies_of, prices_of
from extauthz.config.load import ConfigError, load, parse
from extauthz.config.model import Config

__all__ = ["Config", "ConfigError", "load", "parse", "policies_of", "prices_of"]
