"""Google's Gemini API by its official SDK: what the provider bills is what is spent."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from calls import received, send
from google import genai
from google.genai import errors
from servers import until
from sidecar import Sidecar, agent, key_of, nanousd, running_sidecar

from extauthz.sandbox.app import DEFAULT_GOOGLE_KEY

BOTS = 70
FLASH = "gemini-2.5-flash"
GENERATE = f"/gemini/v1beta/models/{FLASH}:generateContent"
STREAM = f"/gemini/v1beta/models/{FLASH}:streamGenerateContent"
HELLO = [{"parts": [{"text": "hello"}]}]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(BOTS):
        agents |= agent(f"bot{number}", "50.00")
    agents |= agent("poor", "0.00001") | agent("capped", "50.00", default_output_tokens=40)
    with running_sidecar(agents=agents, start=False) as running:
        running.env["SANDBOX_GOOGLE_CREDENTIAL"] = DEFAULT_GOOGLE_KEY
        running.config["providers"]["gemini"] = {
            "api": "gemini",
            "upstream": running.sandbox.base_url,
            "credential": {"env": "SANDBOX_GOOGLE_CREDENTIAL"},
        }
        running.start()
        yield running


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def bot(numbers: Iterator[int]) -> str:
    """An agent that has not called yet."""
    number = next(numbers)
    assert number < BOTS
    return f"bot{number}"


def client_of(sidecar: Sidecar, name: str, **script: Any) -> genai.Client:
    """The official SDK, unmodified but for base_url and key."""
    headers = {"x-sandbox-agent": name} | {
        f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in script.items()
    }
    client = genai.Client(
        api_key=key_of(name),
        vertexai=False,
        http_options={"base_url": f"{sidecar.egress}/gemini", "headers": headers},
    )
    sidecar.clients.callback(client.close)
    return client


def settled(sidecar: Sidecar, name: str) -> dict[str, Any]:
    """The log line of the settlement of an agent's only call, once it is there."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [line for line in sidecar.log_lines("settlement") if line.get("agent") == name]
        return bool(found)

    until(is_there)
    (line,) = found
    return line


def assert_spent_is_the_bill(sidecar: Sidecar, name: str, endpoint: str) -> None:
    line = settled(sidecar, name)
    assert (line["outcome"], line["endpoint"]) == ("settled", endpoint)
    assert line["exactness"] == "exact"
    bill = sidecar.sandbox.total_nanousd(name)
    assert bill > 0
    assert sidecar.balance(name) == (bill, 0)
    assert nanousd(line["estimate_usd"]) >= bill


def generate(client: genai.Client, *, model: str = FLASH, **config: Any) -> Any:
    return client.models.generate_content(
        model=model, contents="hello", config={"max_output_tokens": 50, **config}
    )


def stream(client: genai.Client, **config: Any) -> Any:
    return client.models.generate_content_stream(
        model=FLASH, contents="hello", config={"max_output_tokens": 50, **config}
    )


@pytest.mark.parametrize(
    ("script", "config"),
    [
        ({}, {}),
        ({"output_tokens": 5000}, {}),
        ({"output_tokens": 7}, {"candidate_count": 3}),
        ({"input_tokens": 900, "cached_tokens": 333, "reasoning_tokens": 31}, {}),
        ({"content_encoding": "gzip", "pad_bytes": 200_000}, {"system_instruction": "Be brief."}),
    ],
    ids=str,
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_call_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, script: dict[str, Any], config: dict[str, Any], streams: bool
) -> None:
    client = client_of(sidecar, bot, **script)
    if streams:
        assert [chunk.text for chunk in stream(client, **config)]
    else:
        assert generate(client, **config).text
    endpoint = "stream_generate_content" if streams else "generate_content"
    assert_spent_is_the_bill(sidecar, bot, endpoint)


def test_a_long_context_has_its_own_price(sidecar: Sidecar, bot: str) -> None:
    client = client_of(sidecar, bot, input_tokens=250_001)
    client.models.generate_content(
        model="gemini-2.5-pro", contents="x" * 300_000, config={"max_output_tokens": 50}
    )
    assert_spent_is_the_bill(sidecar, bot, "generate_content")


def test_a_stream_that_is_one_json_list_is_settled_too(sidecar: Sidecar, bot: str) -> None:
    answer = raw(sidecar, bot, STREAM, {"contents": HELLO})
    assert [item["modelVersion"] for item in json.loads(answer.body)] == [FLASH] * 4
    assert_spent_is_the_bill(sidecar, bot, "stream_generate_content")


@pytest.mark.parametrize("texts", ["hello", ["hello", "world"]], ids=str)
def test_embeddings_are_settled(sidecar: Sidecar, bot: str, texts: Any) -> None:
    client = client_of(sidecar, bot)
    client.models.embed_content(model="gemini-embedding-001", contents=texts)
    assert_spent_is_the_bill(sidecar, bot, "batch_embed_contents")


def test_one_embedding_alone_is_settled(sidecar: Sidecar, bot: str) -> None:
    path = "/gemini/v1beta/models/gemini-embedding-001:embedContent"
    answer = raw(sidecar, bot, path, {"content": HELLO[0]})
    assert answer.status == 200
    assert_spent_is_the_bill(sidecar, bot, "embed_content")


def test_counting_tokens_and_listing_models_is_free(sidecar: Sidecar, bot: str) -> None:
    client = client_of(sidecar, bot)
    assert client.models.count_tokens(model=FLASH, contents="hello").total_tokens
    assert list(client.models.list())
    sidecar.until_settled()
    assert sidecar.balance(bot) == (0, 0)


def raw(sidecar: Sidecar, name: str, path: str, body: Any, **headers: str) -> Any:
    given = {"x-goog-api-key": key_of(name), "content-type": "application/json"}
    given |= {"x-sandbox-agent": name}
    given |= {key.replace("_", "-"): value for key, value in headers.items()}
    data = json.dumps(body).encode()
    return send(sidecar, data, {k: v for k, v in given.items() if v}, path=path)


@pytest.mark.parametrize(
    "path", [GENERATE + "?key={}", STREAM + "?alt=sse&key={}", STREAM + "?key={}&alt=sse"]
)
def test_a_key_in_the_query_is_taken_and_seen_by_nobody_else(
    sidecar: Sidecar, bot: str, path: str
) -> None:
    answer = raw(sidecar, bot, path.format(key_of(bot)), {"contents": HELLO}, x_goog_api_key="")
    assert answer.status == 200
    endpoint = "stream_generate_content" if "stream" in path else "generate_content"
    assert_spent_is_the_bill(sidecar, bot, endpoint)
    request = received(sidecar.sandbox, answer.mark)
    assert request is not None
    assert "key=" not in request["path"]
    assert request["credential_headers"] == ["x-goog-api-key"]
    assert_in_no_file(sidecar, key_of(bot))


def test_a_key_in_the_query_of_a_refused_call_is_in_no_log_either(
    sidecar: Sidecar, bot: str
) -> None:
    path = f"/gemini/v1beta/nothing?key={key_of(bot)}"
    answer = raw(sidecar, bot, path, {}, x_goog_api_key="")
    assert answer.error["details"][0]["reason"] == "unmetered_endpoint"
    assert_in_no_file(sidecar, key_of(bot))


def test_two_keys_are_none(sidecar: Sidecar, bot: str) -> None:
    answer = raw(sidecar, bot, f"{GENERATE}?key={key_of('poor')}", {"contents": HELLO})
    assert (answer.status, answer.reason) == (401, "unknown_agent")


def assert_in_no_file(sidecar: Sidecar, secret: str) -> None:
    """Logs, spool, books: wherever it would be written down."""
    files = [path for path in sidecar.dir.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


def test_the_agents_own_key_never_reaches_the_provider_nor_another_project(
    sidecar: Sidecar, bot: str
) -> None:
    answer = raw(sidecar, bot, GENERATE, {"contents": HELLO}, x_goog_user_project="mine")
    assert answer.status == 200
    request = received(sidecar.sandbox, answer.mark)
    assert request is not None
    assert "x-goog-user-project" not in request["header_names"]


def test_no_field_of_an_answer_is_left_out_at_the_clients_word(sidecar: Sidecar, bot: str) -> None:
    mask = "candidates,usageMetadata.promptTokenCount"
    answer = raw(sidecar, bot, GENERATE, {"contents": HELLO}, x_goog_fieldmask=mask)
    request = received(sidecar.sandbox, answer.mark)
    assert request is not None
    assert "x-goog-fieldmask" not in request["header_names"]
    for query in ("fields=candidates", "$fields=candidates", "alt=sse&%24fields=candidates"):
        answer = raw(sidecar, "poor", f"{STREAM}?{query}", {"contents": HELLO})
        assert answer.error["details"][0]["reason"] == "unmetered_endpoint"
    assert_spent_is_the_bill(sidecar, bot, "generate_content")


@pytest.mark.parametrize("key", ["%6bey", "KEY", "k%65y", "Key", "api_key"])
def test_a_key_under_another_spelling_is_seen_by_nobody_else_either(
    sidecar: Sidecar, bot: str, key: str
) -> None:
    path = f"{GENERATE}?{key}={key_of(bot)}"
    answer = raw(sidecar, bot, path, {"contents": HELLO}, x_goog_api_key="")
    request = received(sidecar.sandbox, answer.mark)
    if request is None:
        assert (answer.status, answer.reason) == (403, "unmetered_endpoint")
    else:
        assert "ey=" not in request["path"]
        assert_spent_is_the_bill(sidecar, bot, "generate_content")
    assert_in_no_file(sidecar, key_of(bot))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_what_the_provider_refused_costs_nothing(
    sidecar: Sidecar, bot: str, status: int, streams: bool
) -> None:
    client = client_of(sidecar, bot, status=status)
    with pytest.raises(errors.APIError) as caught:
        list(stream(client)) if streams else generate(client)
    assert caught.value.code == status
    assert settled(sidecar, bot)["outcome"] == "released"
    assert sidecar.balance(bot) == (0, 0)


@pytest.mark.parametrize("path", [STREAM, STREAM + "?alt=sse"])
@pytest.mark.parametrize("ending", ["no-usage", "error-event"])
def test_a_stream_that_did_not_tell_its_whole_usage_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, ending: str, path: str
) -> None:
    raw(sidecar, bot, path, {"contents": HELLO}, x_sandbox_ending=ending)
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def test_hanging_up_in_the_middle_saves_nothing(sidecar: Sidecar, bot: str) -> None:
    client = client_of(sidecar, bot, chunk_delay_ms=300, chunks=20)
    chunks = stream(client)
    next(chunks)
    chunks.close()
    client.close()
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


ZERO = {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}


@pytest.mark.parametrize("path", [GENERATE, STREAM, STREAM + "?alt=sse"])
@pytest.mark.parametrize(
    "forged",
    [
        {"usageMetadata": ZERO, "modelVersion": "gemini-2.5-flash-lite"},
        {"usage": ZERO, "error": {"code": 1}, "response": {"usage": ZERO}},
        {"a": [[{"usageMetadata": ZERO}]], "b": '}]}],"usageMetadata":{"promptTokenCount":0}}'},
    ],
    ids=["metadata", "other names", "brackets"],
)
def test_what_stands_in_a_functions_arguments_is_not_the_usage(
    sidecar: Sidecar, bot: str, path: str, forged: dict[str, Any]
) -> None:
    answer = raw(sidecar, bot, path, {"contents": HELLO}, x_sandbox_tool_input=json.dumps(forged))
    assert answer.status == 200
    endpoint = "stream_generate_content" if "stream" in path else "generate_content"
    assert_spent_is_the_bill(sidecar, bot, endpoint)


@pytest.mark.parametrize(
    "config",
    [
        {"tools": [{"google_search": {}}]},
        {"tools": [{"code_execution": {}}]},
        {"tools": [{"url_context": {}}]},
        {"service_tier": "priority"},
    ],
    ids=str,
)
def test_what_nothing_bounds_never_leaves(
    sidecar: Sidecar, bot: str, config: dict[str, Any]
) -> None:
    with pytest.raises(errors.ClientError) as caught:
        generate(client_of(sidecar, bot), **config)
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")
    assert caught.value.details["error"]["details"][0]["reason"] == "unmetered_endpoint"
    assert sidecar.sandbox.total_nanousd(bot) == 0


def test_a_spent_budget_is_told_as_google_tells_it(sidecar: Sidecar) -> None:
    with pytest.raises(errors.ClientError) as caught:
        generate(client_of(sidecar, "poor"))
    assert caught.value.status == "PERMISSION_DENIED"
    assert caught.value.details["error"]["details"][0]["reason"] == "request_too_large"


@pytest.mark.parametrize(
    "body",
    [
        {"contents": HELLO},
        {"contents": HELLO, "generationConfig": {}},
        {"generation_config": {"temperature": 1}, "contents": HELLO},
        {"contents": HELLO, "generationConfig": {"topK": 3, "maxOutputTokens": None}},
    ],
    ids=str,
)
def test_a_default_cap_is_written_where_google_reads_it(
    sidecar: Sidecar, bot: str, body: dict[str, Any]
) -> None:
    before = sidecar.sandbox.total_nanousd("capped")
    answer = raw(sidecar, "capped", GENERATE, body, x_sandbox_output_tokens="5000")
    assert json.loads(answer.body)["usageMetadata"]["candidatesTokenCount"] == 40
    after = sidecar.sandbox.total_nanousd("capped")
    assert after > before
    until(lambda: sidecar.balance("capped") == (after, 0))
