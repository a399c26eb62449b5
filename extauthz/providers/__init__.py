"""The providers' APIs, by the name that `api:` has in the config."""

from extauthz.providers.anthropic import ANTHROPIC
from extauthz.providers.azure import AZURE
from extauthz.providers.base import Adapter
from extauthz.providers.bedrock import BEDROCK
from extauthz.providers.cohere import COHERE
from extauthz.providers.compatible import COMPATIBLE
from extauthz.providers.gemini import GEMINI
from extauthz.providers.openai import OPENAI
from extauthz.providers.vertex import VERTEX

ADAPTERS: dict[str, Adapter] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "azure": AZURE,
    "gemini": GEMINI,
    "bedrock": BEDROCK,
    "cohere": COHERE,
    "vertex": VERTEX,
    **COMPATIBLE,
}
