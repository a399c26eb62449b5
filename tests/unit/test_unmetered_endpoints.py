"""What no provider's table has is refused: by its path, and by what a body asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request, RequestError
from extauthz.providers.compatible import COMPATIBLE
from extauthz.reasons import Reason

PATHS: dict[str, list[str]] = yaml.safe_load(
    (Path(__file__).parents[1] / "unmetered_endpoints.yaml").read_text()
)
PATHS |= dict.fromkeys(COMPATIBLE, PATHS.pop("compatible"))
CALLS = [(api, *line.split()) for api, lines in PATHS.items() for line in lines]


def test_every_api_has_its_paths_here():
    assert PATHS.keys() == ADAPTERS.keys()


@pytest.mark.parametrize(("api", "method", "path"), CALLS, ids=" ".join)
def test_no_endpoint_answers_to_it(api, method, path):
    assert ADAPTERS[api].route(method, path) is None
    assert ADAPTERS[api].route(method, path, "api-version=2025-01-01") is None


HELLO = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": HELLO}
CONTENTS = {"contents": [{"parts": [{"text": "hello"}]}]}
CONVERSATION = {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
MAIN: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(ADAPTERS, ("chat", CHAT)),
    "anthropic": ("messages", CHAT),
    "gemini": ("generate_content", CONTENTS),
    "vertex": ("generate_content", CONTENTS),
    "bedrock": ("converse", CONVERSATION),
}
# In the words of whichever API: later, elsewhere, by other models, with tools of the provider's.
ASKED_FOR: dict[str, Any] = {
    "background": True, "deferred": True, "async": True, "batch": True, "service_tier": "batch",
    "serviceTier": {"type": "flex"}, "models": ["a", "b"], "fallbacks": [{"model": "a"}],
    "route": "auto", "provider": {"max_price": {"prompt": 9}}, "plugins": [{"id": "web"}],
    "preset": "mine", "transforms": ["middle-out"], "search_parameters": {"mode": "on"},
    "web_search_options": {"search_type": "pro"}, "mcp_servers": [{"url": "https://a"}],
    "container": "c", "prompt": {"id": "p"}, "connectors": [{"id": "web-search"}],
    "tools": [{"type": "web_search"}], "guardrailConfig": {"guardrailIdentifier": "g"},
    "modelConfig": {"featureSelectionPreference": "PRIORITIZE_QUALITY"}, "agent_id": "a",
    "routingConfig": {"autoMode": {}}, "anything-new": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("api", "key"),
    [
        (api, key)
        for api in MAIN
        for key in ASKED_FOR
        if (api, key) != ("openrouter", "models")  # bounded by the dearest of them
    ],
)
def test_nothing_that_a_body_asks_for_is_answered_later_or_elsewhere(api, key):
    name, body = MAIN[api]

    def read(**fields):
        raw = json.dumps(body | fields).encode()
        return ADAPTERS[api].read_request(name, Request(raw, path_model="m"))

    assert read()
    with pytest.raises(RequestError) as caught:
        read(**{key: ASKED_FOR[key]})
    # (a name that is not in lower case could be read as another one by some server)
    assert caught.value.reason in (
        Reason.UNMETERED_ENDPOINT, Reason.UNPARSEABLE_BODY, Reason.AMBIGUOUS_BODY,
    )  # fmt: skip
