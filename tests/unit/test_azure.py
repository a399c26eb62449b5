"""Azure: the deployment stands in the path, and the config says which model it is."""

import json

import pytest
from service_rules import agent, budget
from service_rules import rules as rules_of

from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Metering, Request, RequestError
from extauthz.reasons import Reason

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


@pytest.mark.parametrize("version", ["2024-06-01", "2024-02-15-preview", "2023-12-01-preview"])
def test_older_versions_are_capped_by_the_name_that_they_know_and_do_not_stream(version):
    path = "/openai/deployments/my-gpt/chat/completions"
    route = AZURE.route("POST", path, f"api-version={version}")
    assert route is not None
    body = {"messages": [], "model": "x"}

    facts = AZURE.read_request(
        route.endpoint.name, Request(json.dumps(body).encode(), route.path_model)
    )
    assert facts.cap_slot.edit(5).text == '"max_tokens":5,'
    assert facts.edits == ()

    body["stream"] = True
    with pytest.raises(RequestError, match="api-version") as caught:
        AZURE.read_request(route.endpoint.name, Request(json.dumps(body).encode(), "my-gpt"))
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize("version", ["2024-09-01-preview", "2024-10-21", "2025-04-01-preview"])
def test_newer_versions_are_read_as_the_undated_one(version):
    path = "/openai/deployments/my-gpt/chat/completions"
    route = AZURE.route("POST", path, f"api-version={version}")
    assert route is not None
    assert route.endpoint.name == "chat"
