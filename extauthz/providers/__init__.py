"""The providers' APIs, by the name that `api:` has in the config."""

from extauthz.providers.anthropic import AnthropicAdapter
from extauthz.providers.base import Adapter
from extauthz.providers.openai import OpenAIAdapter

ADAPTERS: dict[str, Adapter] = {
    "openai": OpenAIAdapter(),
    "anthropic": AnthropicAdapter(),
}
