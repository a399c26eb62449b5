"""Azure: the deployment stands in the path, and the config says which model it is."""

import json

import pytest
from service_rules import agent, budget
from service_rules import rules as rules_of

from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Metering, Request

AZURE = ADAPTERS["azure"]
DATED = "api-version=2024-10-21"


@pytest.mark.parametrize(
    ("path", "query", "name", "deployment"),
    [
        ("/openai/deployments/my-gpt/chat/completions", DATED, "chat", "my-gpt"),
        ("/openai/deployments/my-gpt/embeddings", DATED, "embeddings", "my-gpt"),
        ("/openai/deployments/my-gpt/images/generations", DATED, "images", "my-gpt"),
        ("/openai/v1/chat/completions", "", "chat", None),
        ("/openai/v1/responses", "api-version=preview", "responses", None),
        ("/openai/responses", DATED, "responses", None),
    ],
)
def test_the_endpoints_of_azure_are_found_by_their_paths(path, query, name, deployment):
    route = AZURE.route("POST", path, query)
    assert route is not None
    assert route.endpoint.name == name
    assert route.endpoint.metering is Metering.BILLED
    assert route.path_model == deployment


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/openai/deployments/my-gpt/chat/completions", ""),
        ("/openai/deployments/my-gpt/chat/completions", DATED + "&x=1"),
        ("/openai/deployments/../chat/completions", DATED),
        ("/openai/deployments/a/b/chat/completions", DATED),
        ("/openai/deployments/my-gpt/extensions/chat/completions", DATED),
        ("/openai/assistants", DATED),
        ("/openai/batches", DATED),
        ("/v1/chat/completions", ""),
    ],
)
def test_everything_else_at_azure_is_not_metered(path, query):
    assert AZURE.route("POST", path, query) is None


def test_the_deployment_of_the_path_counts_whatever_the_body_says():
    body = json.dumps({"model": "gpt-4o-mini", "messages": []}).encode()
    assert AZURE.read_request("chat", Request(body, "my-gpt")).model == "my-gpt"


def test_a_prompt_that_the_content_filter_refuses_is_billed():
    assert 400 not in AZURE.unbilled_status
    assert 408 not in AZURE.unbilled_status
    assert {401, 429, 500} <= AZURE.unbilled_status


@pytest.mark.parametrize(
    ("code", "is_free"),
    [
        ('"missing_required_parameter"', True),
        ('"context_length_exceeded"', True),
        ('"content_filter"', False),
        ('"unheard_of"', False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_400_that_names_a_malformed_request_is_free(code, is_free):
    rules = rules_of(agent(budget(1)))
    answer = CapturedResponse(error_code=code)
    assert (400 in rules.unbilled_status("azure", answer)) is is_free
    assert 400 in rules.unbilled_status("openai", answer)
    assert not rules.unbilled_status("no-longer-configured", answer)
