"""What an agent's SDK is told when the answer is no, and how its budget stands in either case."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import anthropic
import openai
import pytest
from calls import CHAT, CLAUDE, GPT, HELLO, MESSAGES, chat, message, post, received, send
from sdk_calls import SELLERS, add_providers, caller
from servers import until
from sidecar import Sidecar, agent, running_sidecar

Client = openai.OpenAI | anthropic.Anthropic
PROVIDERS = ("openai", "anthropic")
ODDLY_PRICED = "priced-by-hand"
"""A model whose input is free: 1,000 tokens of output are $0.0125 exactly."""
ONE_CALL = "0.0125"
ONE_CALL_NANOUSD = 12_500_000
DAY_SECONDS = 86_400


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    per_agent: dict[str, Any] = {}
    for provider in PROVIDERS:
        per_agent |= agent(f"spent-{provider}", ONE_CALL)
        per_agent |= agent(f"held-{provider}", ONE_CALL) | agent(f"freed-{provider}", ONE_CALL)
        per_agent |= agent(f"small-{provider}", "0.000001")
        per_agent |= agent(f"busy-{provider}", max_in_flight=1)
    for provider in SELLERS:
        per_agent |= agent(f"spent-{provider}", ONE_CALL) | agent(f"held-{provider}", ONE_CALL)
    per_agent |= agent("held-gemini-told", ONE_CALL)
    agents = per_agent | (
        agent("bot")
        | agent("picky", models={"allow": ["gpt-4.1*", "claude-3*"]})
        | agent("none", budgets=[])
        | agent("shadow", budgets=[{"limit": "1.00", "window": "day", "shadow": True}])
        | agent("elsewhere", budgets=[{"limit": "1.00", "window": "day", "model": "gpt-5*"}])
        | agent("forever", budgets=[{"limit": ONE_CALL, "window": "total"}])
        | agent("counted", budgets=[{"limit": 1, "unit": "requests", "window": "day"}])
        | agent(
            "watched",
            budgets=[
                {"limit": "1.00", "window": "day"},
                {"limit": "0.000001", "window": "hour", "shadow": True},
            ],
        )
        | agent("member", team="crew")
    )
    prices = [
        {"provider": provider, "model": ODDLY_PRICED, "input": "0", "output": "12.5"}
        for provider in (*PROVIDERS, *SELLERS)
    ]
    teams = {"crew": {"budgets": [{"limit": ONE_CALL, "window": "day"}]}}
    defaults = {"hold_wait": "200ms", "default_output_tokens": 60}
    with running_sidecar(
        agents=agents, prices=prices, teams=teams, defaults=defaults, start=False
    ) as running:
        add_providers(running)
        running.start()
        for provider in (*PROVIDERS, *SELLERS.values()):
            running.sandbox.set_price(provider, ODDLY_PRICED, input="0", output="12.5")
        yield running


def client_of(sidecar: Sidecar, provider: str, agent_name: str, **options: Any) -> Client:
    """An SDK as it comes: it retries as it is made to, unless told otherwise."""
    make: Any = sidecar.openai if provider == "openai" else sidecar.anthropic
    return make(agent_name, **{"max_retries": 2} | options)


def ask(client: Client, model: str | None = None, **fields: Any) -> Any:
    """The smallest call of either SDK."""
    if isinstance(client, openai.OpenAI):
        chat_fields: Any = {"model": model or GPT, "messages": HELLO, "max_tokens": 50, **fields}
        return client.chat.completions.with_raw_response.create(**chat_fields)
    fields = {"model": model or CLAUDE, "messages": HELLO, "max_tokens": 50, **fields}
    return client.messages.with_raw_response.create(**fields)


def spend_one_call(sidecar: Sidecar, provider: str, agent_name: str) -> None:
    ask(
        client_of(sidecar, provider, agent_name),
        ODDLY_PRICED,
        max_tokens=1000,
        extra_headers={"x-sandbox-output-tokens": "1000"},
    )


@contextmanager
def one_call_under_way(sidecar: Sidecar, provider: str, agent_name: str) -> Iterator[None]:
    """A stream that goes on until the block is left."""
    client = client_of(sidecar, provider, agent_name)
    fields: Any = {"model": ODDLY_PRICED, "messages": HELLO, "max_tokens": 1000, "stream": True}
    fields["extra_headers"] = {"x-sandbox-chunk-delay-ms": "100000"}
    if isinstance(client, openai.OpenAI):
        stream: Any = client.chat.completions.create(**fields)
    else:
        stream = client.messages.create(**fields)
    with stream:
        yield


def checks_of(sidecar: Sidecar, agent_name: str, reason: str) -> int:
    """How many requests of the agent have come to Envoy and were answered so."""
    lines = sidecar.log_lines("decision")
    return sum((line["agent"], line["reason"]) == (agent_name, reason) for line in lines)


def error_of(caught: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The error object, in whichever shape this SDK's provider has, and the headers."""
    body = caught.value.body
    if isinstance(caught.value, anthropic.APIStatusError):
        assert body["type"] == "error"
        body = body["error"]
    return body, dict(caught.value.response.headers)


REFUSALS = {
    "unmetered_endpoint": (403, "PermissionDeniedError", "bot"),
    "model_not_allowed": (403, "PermissionDeniedError", "picky"),
    "unpriced_model": (403, "PermissionDeniedError", "bot"),
    "agent_without_budget": (403, "PermissionDeniedError", "none"),
    "request_too_large": (403, "PermissionDeniedError", "small-{}"),
    "unparseable_body": (400, "BadRequestError", "bot"),
    "budget_exhausted": (429, "RateLimitError", "spent-{}"),
}
ERROR_TYPES = {
    ("openai", 400): "invalid_request_error",
    ("openai", 403): "permission_error",
    ("openai", 429): "insufficient_quota",
    ("anthropic", 400): "invalid_request_error",
    ("anthropic", 403): "permission_error",
    ("anthropic", 429): "rate_limit_error",
}


def refused(reason: str, client: Client, sidecar: Sidecar, name: str) -> None:
    """Make the call that is refused for this reason."""
    if reason == "unmetered_endpoint":
        if isinstance(client, openai.OpenAI):
            client.batches.list()
        else:
            client.messages.batches.list()
    elif reason == "unpriced_model":
        ask(client, "a-model-that-nobody-sells")
    elif reason == "unparseable_body":
        ask(client, max_tokens=-1)
    elif reason == "budget_exhausted":
        provider = "openai" if isinstance(client, openai.OpenAI) else "anthropic"
        spend_one_call(sidecar, provider, name)
        sidecar.until_settled()
        ask(client, ODDLY_PRICED, max_tokens=1000)
    else:
        ask(client)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_is_an_exception_the_sdk_knows_and_does_not_retry(
    sidecar: Sidecar, provider: str, reason: str
) -> None:
    status, exception, name = REFUSALS[reason]
    name = name.format(provider)
    sdk: Any = openai if provider == "openai" else anthropic
    before = checks_of(sidecar, name, reason)

    with pytest.raises(getattr(sdk, exception)) as caught:
        refused(reason, client_of(sidecar, provider, name), sidecar, name)

    error, headers = error_of(caught)
    assert caught.value.status_code == status
    assert error["code"] == headers["x-budget-reason"] == reason
    assert error["type"] == ERROR_TYPES[provider, status]
    assert len(error["message"]) > 20
    assert headers["x-should-retry"] == "false"
    assert headers["content-type"] == "application/json"
    assert UUID(headers["x-budget-decision-id"]).version == 7
    assert ("retry-after" in headers) == (reason == "budget_exhausted")
    # An agent without a name in the log is one whose endpoint was refused before it was asked.
    logged = None if reason == "unmetered_endpoint" else name
    until(lambda: checks_of(sidecar, logged, reason) > (before if logged else 0))  # type: ignore[arg-type]
    if logged:
        assert checks_of(sidecar, name, reason) == before + 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_spent_budget_tells_when_it_resets(sidecar: Sidecar, provider: str) -> None:
    name = f"spent-{provider}"
    if sidecar.balance(name)[0] == 0:
        spend_one_call(sidecar, provider, name)
        sidecar.until_settled()

    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught:
        ask(client_of(sidecar, provider, name), ODDLY_PRICED, max_tokens=1000)

    error, headers = error_of(caught)
    assert 0 < int(headers["retry-after"]) <= DAY_SECONDS
    assert abs(int(headers["retry-after"]) - int(headers["x-budget-reset"])) <= 1
    assert_budget_headers(headers, f"agent/{name}/day/usd", ONE_CALL, ONE_CALL, "0.00")
    assert error["budget"] == f"agent/{name}/day/usd"
    assert error["limit_usd"] == error["spent_usd"] == ONE_CALL


@pytest.mark.parametrize("provider", PROVIDERS)
def test_room_that_is_only_held_is_worth_the_sdks_retry(sidecar: Sidecar, provider: str) -> None:
    name = f"held-{provider}"
    client = client_of(sidecar, provider, name, max_retries=1)

    with (
        one_call_under_way(sidecar, provider, name),
        pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught,
    ):
        ask(client, ODDLY_PRICED, max_tokens=1000)

    error, headers = error_of(caught)
    assert error["code"] == headers["x-budget-reason"] == "budget_held"
    assert headers["x-should-retry"] == "true"
    assert 1 <= int(headers["retry-after"]) <= 3
    assert_budget_headers(headers, f"agent/{name}/day/usd", ONE_CALL, "0.00", ONE_CALL)
    assert checks_of(sidecar, name, "budget_held") == 2


EXHAUSTED = {
    "gemini": (429, "RESOURCE_EXHAUSTED"),
    "bedrock": (402, "ServiceQuotaExceededException"),
    "cohere": (402, "ApiError"),
}


@pytest.mark.parametrize("provider", SELLERS)
def test_no_other_sdk_as_it_comes_asks_a_spent_budget_again(
    sidecar: Sidecar, provider: str
) -> None:
    name = f"spent-{provider}"
    spend_one_call(sidecar, "openai", name)
    sidecar.until_settled()

    told = caller(sidecar, provider, name, attempts=None)(ODDLY_PRICED, 1000, {})

    assert (told.status, told.error) == EXHAUSTED[provider]
    assert told.reason == "budget_exhausted"
    assert checks_of(sidecar, name, "budget_exhausted") == 1


@pytest.mark.parametrize(
    ("name", "provider", "attempts", "checks"),
    [
        # The SDK of Gemini asks again only where it is told to.
        ("held-gemini", "gemini", None, 1),
        ("held-gemini-told", "gemini", 2, 2),
        ("held-bedrock", "bedrock", 2, 2),
        ("held-cohere", "cohere", 2, 2),
    ],
)
def test_room_that_is_only_held_is_worth_the_retry_of_every_other_sdk(
    sidecar: Sidecar, name: str, provider: str, attempts: int | None, checks: int
) -> None:
    with one_call_under_way(sidecar, "openai", name):
        told = caller(sidecar, provider, name, attempts=attempts)(ODDLY_PRICED, 1000, {})

    assert (told.status, told.reason) == (429, "budget_held")
    assert checks_of(sidecar, name, "budget_held") == checks


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_sdks_retry_is_let_through_once_the_room_is_no_longer_held(
    sidecar: Sidecar, provider: str
) -> None:
    name = f"freed-{provider}"
    first: Any = client_of(sidecar, "openai", name).chat.completions.create(
        model=ODDLY_PRICED,
        messages=HELLO,
        max_tokens=1000,
        stream=True,
        extra_headers={"x-sandbox-chunk-delay-ms": "300", "x-sandbox-output-tokens": "10"},
    )
    client = client_of(sidecar, provider, name, max_retries=8)

    with ThreadPoolExecutor(1) as pool:
        retried = pool.submit(ask, client, ODDLY_PRICED, max_tokens=900)
        until(lambda: checks_of(sidecar, name, "budget_held") > 0)
        assert len(list(first)) > 1
        assert retried.result(60).headers["x-budget-held-usd"] == "0.01125"


def test_a_call_without_a_cap_gets_the_default_of_all(sidecar: Sidecar) -> None:
    answer = post(sidecar, "bot", chat(max_tokens=None), x_sandbox_output_tokens="5000")

    assert (answer.status, answer.headers["x-budget-output-cap"]) == (200, "60")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_as_many_calls_at_once_as_an_agent_may_have_and_no_more(
    sidecar: Sidecar, provider: str
) -> None:
    name = f"busy-{provider}"
    client = client_of(sidecar, provider, name, max_retries=1)

    with (
        one_call_under_way(sidecar, provider, name),
        pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught,
    ):
        ask(client)

    error, headers = error_of(caught)
    assert error["code"] == headers["x-budget-reason"] == "too_many_in_flight"
    assert headers["x-should-retry"] == "true"
    assert 1 <= int(headers["retry-after"]) <= 3
    assert checks_of(sidecar, name, "too_many_in_flight") == 2


def test_a_budget_for_all_time_has_no_reset_to_wait_for(sidecar: Sidecar) -> None:
    spend_one_call(sidecar, "openai", "forever")
    sidecar.until_settled()

    answer = post(sidecar, "forever", chat(model=ODDLY_PRICED, max_tokens=1000))

    assert (answer.status, answer.reason) == (429, "budget_exhausted")
    assert answer.headers["x-should-retry"] == "false"
    assert not {"retry-after", "x-budget-reset"} & set(answer.headers)
    assert ";t=" not in answer.headers["ratelimit"]


def test_the_budget_of_a_team_refuses_its_members_by_its_own_name(sidecar: Sidecar) -> None:
    spend_one_call(sidecar, "openai", "member")
    sidecar.until_settled()

    answer = post(sidecar, "member", chat(model=ODDLY_PRICED, max_tokens=1000))

    assert answer.reason == "budget_exhausted"
    assert_budget_headers(answer.headers, "team/crew/day/usd", ONE_CALL, ONE_CALL, "0.00")


def test_a_budget_of_requests_counts_requests(sidecar: Sidecar) -> None:
    assert post(sidecar, "counted", chat()).status == 200
    sidecar.until_settled()

    answer = post(sidecar, "counted", chat())

    assert (answer.status, answer.reason) == (429, "budget_exhausted")
    assert answer.headers["x-budget-limit-requests"] == "1"
    assert answer.headers["x-budget-spent-requests"] == "1"
    assert answer.headers["x-budget-remaining-requests"] == "0"
    assert "x-budget-limit-usd" not in answer.headers


def test_an_agent_that_only_shadow_budgets_watch_has_no_budget(sidecar: Sidecar) -> None:
    assert post(sidecar, "shadow", chat()).reason == "agent_without_budget"


def test_a_model_that_none_of_an_agents_budgets_covers_is_refused(sidecar: Sidecar) -> None:
    assert post(sidecar, "elsewhere", chat()).reason == "agent_without_budget"


def test_a_shadow_budget_decides_counts_and_denies_nothing(sidecar: Sidecar) -> None:
    answer = post(sidecar, "watched", chat())

    assert answer.status == 200
    assert sidecar.metric("extauthz_checks_total", decision="shadow_deny") >= 1
    assert_budget_headers(answer.headers, "agent/watched/day/usd", "1.00", "0.00", None)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_carries_the_budget_headers_with_its_own_hold(
    sidecar: Sidecar, provider: str
) -> None:
    answer = ask(client_of(sidecar, provider, "bot"))

    headers = dict(answer.headers)
    (line,) = (
        line
        for line in sidecar.log_lines("decision")
        if line["decision_id"] == headers["x-budget-decision-id"]
    )
    assert_budget_headers(headers, "agent/bot/day/usd", "1.00", None, None)
    assert float(headers["x-budget-held-usd"]) >= float(line["estimate_usd"]) > 0
    assert "x-budget-reason" not in headers


def test_the_decision_id_is_not_the_id_of_the_reservation(sidecar: Sidecar) -> None:
    answer = post(sidecar, "bot", chat())

    (line,) = (
        line
        for line in sidecar.log_lines("decision")
        if line["decision_id"] == answer.headers["x-budget-decision-id"]
    )
    assert UUID(line["reservation_id"]).version == 7
    assert line["reservation_id"] not in str(answer)
    seen = received(sidecar.sandbox, answer.mark)
    assert line["reservation_id"] not in str(seen)
    assert line["decision_id"] not in str(seen)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_path_to_no_provider_is_refused(sidecar: Sidecar, provider: str) -> None:
    sdk: Any = openai if provider == "openai" else anthropic
    client = client_of(sidecar, provider, "bot", base_url=f"{sidecar.egress}/nowhere")

    with pytest.raises(sdk.PermissionDeniedError) as caught:
        ask(client)

    assert caught.value.response.headers["x-budget-reason"] == "unknown_route"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "base_url" in str(caught.value)


UNMETERED = {
    "assistants": ("POST", "/openai/v1/assistants"),
    "a stored response": ("GET", "/openai/v1/responses/resp_1"),
    "uploaded parts": ("POST", "/openai/v1/uploads"),
    "uploaded images": ("POST", "/openai/v1/images/variations"),
    "a realtime session": ("POST", "/openai/v1/realtime/sessions"),
    "files": ("GET", "/openai/v1/files"),
    "another method": ("PUT", CHAT),
    "listing stored completions": ("GET", CHAT),
    "a stored completion": ("GET", f"{CHAT}/chatcmpl-1"),
    "a slash at the end": ("POST", f"{CHAT}/"),
    "a query": ("POST", f"{CHAT}?stream=true"),
    "a deleted model": ("DELETE", "/openai/v1/models/gpt-4o-mini"),
    "batches": ("POST", f"{MESSAGES}/batches"),
    "out of the models": ("GET", "/openai/v1/models/../files"),
    "out of the models, encoded": ("GET", "/openai/v1/models/%2e%2e/files"),
    "another version": ("POST", "/openai/v2/chat/completions"),
    "upper case": ("POST", "/openai/V1/Chat/Completions"),
}


@pytest.mark.parametrize("what", UNMETERED)
def test_what_is_not_metered_does_not_leave(sidecar: Sidecar, what: str) -> None:
    method, path = UNMETERED[what]
    body = b"{}" if method in ("POST", "PUT") else None

    answer = send(
        sidecar, body, {"authorization": "Bearer xa_test_key_of_bot"}, path=path, method=method
    )

    assert (answer.status, answer.reason) == (403, "unmetered_endpoint")
    assert received(sidecar.sandbox, answer.mark) is None


SERVER_SIDE: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "web search": lambda: (CHAT, chat(web_search_options={})),
    "fallback models": lambda: (CHAT, chat(models=["gpt-5"])),
    "an openai tool": lambda: (CHAT, chat(tools=[{"type": "web_search"}])),
    "a tool without a type": lambda: (CHAT, chat(tools=[{"name": "x"}])),
    "an anthropic tool": lambda: (
        MESSAGES,
        message(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    ),
    "mcp servers": lambda: (MESSAGES, message(mcp_servers=[{"type": "url", "url": "http://x"}])),
    "a container": lambda: (MESSAGES, message(container="c")),
    "a region of no known price": lambda: (MESSAGES, message(inference_geo="eu")),
}


@pytest.mark.parametrize("what", SERVER_SIDE)
def test_what_a_provider_runs_and_bills_by_itself_does_not_leave(
    sidecar: Sidecar, what: str
) -> None:
    path, body = SERVER_SIDE[what]()

    answer = post(sidecar, "bot", body, path=path)

    assert (answer.status, answer.reason) == (403, "unmetered_endpoint")
    assert received(sidecar.sandbox, answer.mark) is None


def test_refusals_leave_nothing_held_and_nothing_spent(sidecar: Sidecar) -> None:
    before = sidecar.balance("picky"), sidecar.balance("small-openai")

    post(sidecar, "picky", chat())
    post(sidecar, "small-openai", chat())

    assert before == ((0, 0), (0, 0))
    assert (sidecar.balance("picky"), sidecar.balance("small-openai")) == before


_STRING_WITH_PARAMETERS = re.compile(r'"([^"\\]*)"((?:;[a-z]+=(?:\d+|"[^"\\]*"))*)')


def structured(header: str) -> tuple[str, dict[str, str]]:
    """One member of a structured field (RFC 9651): a string and its parameters."""
    match = _STRING_WITH_PARAMETERS.fullmatch(header)
    assert match is not None, header
    pairs = (part.split("=", 1) for part in match[2].split(";")[1:])
    return match[1], {key: value.strip('"') for key, value in pairs}


def assert_budget_headers(
    headers: dict[str, str], budget: str, limit: str, spent: str | None, held: str | None
) -> None:
    """They name this budget and its amounts, and the two families agree. None: any amount."""
    amounts = {name: headers[f"x-budget-{name}-usd"] for name in ("limit", "spent", "held")}
    wanted = {"limit": limit, "spent": spent, "held": held}
    assert {k: v for k, v in amounts.items() if wanted[k] is not None} == {
        k: v for k, v in wanted.items() if v is not None
    }
    micro = {name: round(float(value) * 1e6) for name, value in amounts.items()}
    remaining = float(headers["x-budget-remaining-usd"]) * 1e6
    assert abs(remaining - (micro["limit"] - micro["spent"] - micro["held"])) < 2
    assert 0 <= int(headers["x-budget-reset"]) <= DAY_SECONDS
    policy_name, policy = structured(headers["ratelimit-policy"])
    rate_name, rate = structured(headers["ratelimit"])
    assert policy_name == rate_name == budget
    assert policy == {"q": str(micro["limit"]), "qu": "micro-usd", "w": str(DAY_SECONDS)}
    assert rate["t"] == headers["x-budget-reset"]
    assert abs(int(rate["r"]) - remaining) < 2
