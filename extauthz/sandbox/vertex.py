"""Vertex AI's way to Anthropic's models; its way to Gemini's is that of the Gemini API."""

from collections.abc import Mapping
from typing import Any

from extauthz.sandbox.anthropic import Anthropic
from extauthz.sandbox.prices import PriceTable
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import Call, Refusal


class RawPredict(Anthropic):
    """`:rawPredict` and `:streamRawPredict`."""

    provider = "google"

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Ask for the access token."""
        if headers.get("authorization") != f"Bearer {self._key}":
            raise Refusal(401, "Request had invalid authentication credentials.")

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """As a message, whose version stands in the body."""
        if not body.pop("anthropic_version", None):
            raise Refusal(400, "anthropic_version: Field required")
        return super().parse({**body, "metadata": {"user_id": script.agent}}, prices, script)


class RegionalRawPredict(RawPredict):
    """The same within a region, at its own prices."""

    provider = "google-region"
