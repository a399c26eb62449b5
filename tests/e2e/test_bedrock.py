"""AWS Bedrock by boto3: Envoy signs, agents have no secret of AWS, the bill is what is spent."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from calls import bearer, received, send
from servers import until
from sidecar import Sidecar, agent, key_of, nanousd, running_sidecar

from extauthz.sandbox.sigv4 import ACCESS_KEY_ID, SECRET_ACCESS_KEY

BOTS = 130
NOVA = "amazon.nova-micro-v1:0"
CLAUDE = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
HELLO: Any = [{"role": "user", "content": [{"text": "hello"}]}]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(BOTS):
        agents |= agent(f"bot{number}", "50.00")
    agents |= agent("poor", "0.0000001") | agent("capped", "50.00", default_output_tokens=40)
    with running_sidecar(agents=agents, start=False) as running:
        running.env["AWS_ACCESS_KEY_ID"] = ACCESS_KEY_ID
        running.env["AWS_SECRET_ACCESS_KEY"] = SECRET_ACCESS_KEY
        running.config["providers"]["bedrock"] = {
            "api": "bedrock",
            "upstream": running.sandbox.base_url,
            "credential": {"aws_region": "us-east-1"},
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


@pytest.fixture
def call(sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A maker of clients: the official SDK, unmodified but for endpoint and key id."""

    def make(name: str, **script: Any) -> Any:
        monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)
        client = boto3.client(
            "bedrock-runtime",
            region_name="us-east-1",
            aws_access_key_id=key_of(name),
            aws_secret_access_key="any",
            endpoint_url=f"{sidecar.egress}/bedrock",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=60),
        )
        headers = {"x-sandbox-agent": name} | {
            f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in script.items()
        }
        client.meta.events.register(
            "before-send.bedrock-runtime.*",
            lambda request, **_: request.headers.update(headers),
        )
        sidecar.clients.callback(client.close)
        return client

    return make


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


def assert_reservation_was_charged(sidecar: Sidecar, name: str) -> None:
    line = settled(sidecar, name)
    assert sidecar.balance(name) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(name) > 0


def converse(client: Any, model: str = NOVA, **fields: Any) -> Any:
    given = {"messages": HELLO, "inferenceConfig": {"maxTokens": 50}, **fields}
    return client.converse(modelId=model, **given)


def stream(client: Any, model: str = NOVA, **fields: Any) -> Any:
    given = {"messages": HELLO, "inferenceConfig": {"maxTokens": 50}, **fields}
    return client.converse_stream(modelId=model, **given)["stream"]


def message(**fields: Any) -> bytes:
    body = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hello"}],
    }
    return json.dumps(body | fields).encode()


SCRIPTS: list[dict[str, Any]] = [
    {},
    {"output_tokens": 5000},
    {"input_tokens": 3, "cached_tokens": 4, "pad_bytes": 200_000},
    {"tool_input": json.dumps({"usage": {"inputTokens": 0}, "message": {"usage": {}}})},
]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
def test_a_conversation_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, call: Any, script: dict[str, Any], streams: bool
) -> None:
    client = call(bot, **script)
    if streams:
        assert [next(iter(event)) for event in stream(client)][-1] == "metadata"
    else:
        assert converse(client)["usage"]["outputTokens"]
    assert_spent_is_the_bill(sidecar, bot, "converse_stream" if streams else "converse")


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
def test_a_models_own_body_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, call: Any, script: dict[str, Any], streams: bool
) -> None:
    client = call(bot, **script)
    if streams:
        answer = client.invoke_model_with_response_stream(modelId=CLAUDE, body=message())
        assert b"message_stop" in list(answer["body"])[-1]["chunk"]["bytes"]
    else:
        answer = client.invoke_model(modelId=CLAUDE, body=message())
        assert json.loads(answer["body"].read())["usage"]
    assert_spent_is_the_bill(sidecar, bot, "invoke_stream" if streams else "invoke")


LLAMA, TITAN = "us.meta.llama3-3-70b-instruct-v1:0", "amazon.titan-text-express-v1"
MISTRAL = "mistral.mistral-large-2402-v1:0"
EMBEDDING = "amazon.titan-embed-text-v2:0"
NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "nova": (NOVA, {"messages": HELLO, "inferenceConfig": {"maxTokens": 50}}),
    "llama": (LLAMA, {"prompt": "hello", "max_gen_len": 50}),
    "mistral": (MISTRAL, {"prompt": "<s>[INST] hello [/INST]", "max_tokens": 50}),
    "titan": (TITAN, {"inputText": "hello", "textGenerationConfig": {"maxTokenCount": 50}}),
}
FORGED = json.dumps({
    "usage": {"inputTokens": 0}, "prompt_token_count": 0,
    "amazon-bedrock-invocationMetrics": {"inputTokenCount": 0, "outputTokenCount": 0},
})  # fmt: skip


@pytest.mark.parametrize(
    "script",
    [
        {},
        {"output_tokens": 5000},
        {"response_text": FORGED},
        {"input_tokens": 3, "pad_bytes": 9999},
    ],
    ids=str,
)
@pytest.mark.parametrize("maker", NATIVE)
@pytest.mark.parametrize("streams", [False, True])
def test_the_body_of_another_maker_is_settled_at_what_bedrock_counted(
    sidecar: Sidecar, bot: str, call: Any, script: dict[str, Any], maker: str, streams: bool
) -> None:
    client, (model, body) = call(bot, **script), NATIVE[maker]
    invoke(client, model, body, streams=streams)
    assert_spent_is_the_bill(sidecar, bot, f"invoke_{maker}{'_stream' if streams else ''}")


@pytest.mark.parametrize("streams", [False, True])
def test_mistrals_messages_are_settled_as_its_prompts_are(
    sidecar: Sidecar, bot: str, call: Any, streams: bool
) -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "hello"}]
    body = {"messages": messages, "tools": [function], "tool_choice": "auto", "max_tokens": 50}
    invoke(call(bot, response_text=FORGED), MISTRAL, body, streams=streams)
    assert_spent_is_the_bill(sidecar, bot, f"invoke_mistral{'_stream' if streams else ''}")


@pytest.mark.parametrize("streams", [False, True])
def test_what_nova_read_from_its_cache_is_settled_too(
    sidecar: Sidecar, bot: str, call: Any, streams: bool
) -> None:
    content = [{"text": "x" * 5000}, {"cachePoint": {"type": "default"}}]
    body = {**NATIVE["nova"][1], "messages": [{"role": "user", "content": content}]}
    invoke(call(bot, input_tokens=3, cached_tokens=1200), NOVA, body, streams=streams)
    assert_spent_is_the_bill(sidecar, bot, f"invoke_nova{'_stream' if streams else ''}")


def test_an_embedding_is_settled_at_what_bedrock_counted(
    sidecar: Sidecar, bot: str, call: Any
) -> None:
    body = {"inputText": "hello" * 99, "dimensions": 256}
    invoke(call(bot), EMBEDDING, body, streams=False)
    assert_spent_is_the_bill(sidecar, bot, "invoke_embedding")


@pytest.mark.parametrize("maker", NATIVE)
@pytest.mark.parametrize("streams", [False, True])
def test_a_model_of_which_bedrock_told_no_count_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, call: Any, maker: str, streams: bool
) -> None:
    model, body = NATIVE[maker]
    invoke(call(bot, ending="no-usage"), model, body, streams=streams)
    assert_reservation_was_charged(sidecar, bot)


@pytest.mark.parametrize("maker", NATIVE)
def test_a_default_cap_is_written_where_the_maker_reads_it(sidecar: Sidecar, maker: str) -> None:
    model, body = NATIVE[maker]
    cap = "inferenceConfig", "max_gen_len", "max_tokens", "textGenerationConfig"
    body = {key: value for key, value in body.items() if key not in cap}
    before = sidecar.sandbox.total_nanousd("capped")
    headers = bearer(key_of("capped")) | {
        "content-type": "application/json",
        "x-sandbox-agent": "capped",
        "x-sandbox-output-tokens": "5000",
    }
    answer = send(
        sidecar, json.dumps(body).encode(), headers, path=f"/bedrock/model/{model}/invoke"
    )
    assert answer.status == 200
    assert answer.headers["x-amzn-bedrock-output-token-count"] == "40"
    after = sidecar.sandbox.total_nanousd("capped")
    until(lambda: sidecar.balance("capped") == (after, 0))
    assert after > before


def invoke(client: Any, model: str, body: dict[str, Any], *, streams: bool) -> None:
    """One call with the model's own body, read to its end."""
    data = json.dumps(body)
    if streams:
        answer = client.invoke_model_with_response_stream(modelId=model, body=data)
        assert list(answer["body"])
    else:
        assert json.loads(client.invoke_model(modelId=model, body=data)["body"].read())


def test_another_regions_profile_has_its_own_price(sidecar: Sidecar, bot: str, call: Any) -> None:
    converse(call(bot), CLAUDE.replace("global", "us"))
    assert_spent_is_the_bill(sidecar, bot, "converse")


def test_the_provider_sees_envoys_signature_and_nothing_of_the_agents(
    sidecar: Sidecar, bot: str
) -> None:
    headers = bearer(key_of(bot)) | {
        "content-type": "application/json",
        "x-amz-security-token": "mine",
        "x-amz-date": "20000101T000000Z",
        "x-amz-content-sha256": "mine",
        "x-sandbox-agent": bot,
    }
    body = json.dumps({"messages": HELLO, "inferenceConfig": {"maxTokens": 5}}).encode()
    answer = send(sidecar, body, headers, path=f"/bedrock/model/{NOVA}/converse")
    assert answer.status == 200
    request = received(sidecar.sandbox, answer.mark)
    assert request is not None
    assert request["credential_headers"] == ["authorization"]
    assert "x-amz-security-token" not in request["header_names"]
    assert_spent_is_the_bill(sidecar, bot, "converse")


def test_a_signature_of_the_agents_own_is_no_key(sidecar: Sidecar) -> None:
    headers = {
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/bedrock/aws4_request,"
        " SignedHeaders=host, Signature=00",
        "content-type": "application/json",
    }
    answer = send(sidecar, b"{}", headers, path=f"/bedrock/model/{NOVA}/converse")
    assert (answer.status, answer.reason) == (401, "unknown_agent")
    assert answer.headers["x-amzn-errortype"] == "AccessDeniedException"


def test_only_envoy_has_the_secret(sidecar: Sidecar) -> None:
    for path in sidecar.dir.rglob("*"):
        assert not path.is_file() or SECRET_ACCESS_KEY.encode() not in path.read_bytes(), path
    environment = f"/proc/{sidecar.pid_of('service')}/environ"
    assert SECRET_ACCESS_KEY.encode() not in Path(environment).read_bytes()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"messages": HELLO}, "converse"),
        ({"messages": HELLO, "inferenceConfig": {"temperature": 1}}, "converse"),
        ({"inferenceConfig": {"maxTokens": None}, "messages": HELLO}, "converse-stream"),
    ],
    ids=str,
)
def test_a_default_cap_is_written_before_the_request_is_signed(
    sidecar: Sidecar, body: dict[str, Any], path: str
) -> None:
    before = sidecar.sandbox.total_nanousd("capped")
    headers = bearer(key_of("capped")) | {
        "content-type": "application/json",
        "x-sandbox-agent": "capped",
        "x-sandbox-output-tokens": "5000",
    }
    data = json.dumps(body).encode()
    answer = send(sidecar, data, headers, path=f"/bedrock/model/{NOVA}/{path}")
    assert answer.status == 200
    assert b'"outputTokens":40' in answer.body
    after = sidecar.sandbox.total_nanousd("capped")
    assert after > before
    until(lambda: sidecar.balance("capped") == (after, 0))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
def test_what_the_provider_refused_costs_nothing(
    sidecar: Sidecar, bot: str, call: Any, status: int, streams: bool
) -> None:
    client = call(bot, status=status)
    with pytest.raises(ClientError) as caught:
        stream(client) if streams else converse(client)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert settled(sidecar, bot)["outcome"] == "released"
    assert sidecar.balance(bot) == (0, 0)


def test_a_stream_that_told_no_usage_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, call: Any
) -> None:
    list(stream(call(bot, ending="no-usage")))
    assert_reservation_was_charged(sidecar, bot)


def test_a_stream_that_ended_in_an_exception_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, call: Any
) -> None:
    events = stream(call(bot, ending="error-event"))
    with pytest.raises(EventStreamError):
        list(events)
    events.close()
    assert_reservation_was_charged(sidecar, bot)


@pytest.mark.parametrize("kind", ["converse", "invoke"])
def test_hanging_up_in_the_middle_saves_nothing(
    sidecar: Sidecar, bot: str, call: Any, kind: str
) -> None:
    client = call(bot, chunk_delay_ms=300, chunks=20)
    if kind == "converse":
        events = stream(client)
    else:
        events = client.invoke_model_with_response_stream(modelId=CLAUDE, body=message())["body"]
    next(iter(events))
    events.close()
    client.close()
    assert_reservation_was_charged(sidecar, bot)


@pytest.mark.parametrize(
    "fields",
    [
        {"guardrailConfig": {"guardrailIdentifier": "g", "guardrailVersion": "1"}},
        {"performanceConfig": {"latency": "optimized"}},
        {"serviceTier": {"type": "priority"}},
        {"additionalModelRequestFields": {"max_tokens": 99999}},
    ],
    ids=str,
)
def test_what_nothing_bounds_never_leaves(
    sidecar: Sidecar, bot: str, call: Any, fields: dict[str, Any]
) -> None:
    with pytest.raises(ClientError) as caught:
        converse(call(bot), **fields)
    error = caught.value.response
    assert error["Error"]["Code"] == "AccessDeniedException"
    assert "cannot be metered" in error["Error"]["Message"] or "price" in error["Error"]["Message"]
    assert sidecar.sandbox.total_nanousd(bot) == 0


@pytest.mark.parametrize(
    "model",
    ["mistral.voxtral-mini-3b-2507", "cohere.embed-english-v3", "amazon.nova-canvas-v1:0"],
)
def test_a_makers_own_body_that_is_not_known_is_refused(
    sidecar: Sidecar, bot: str, call: Any, model: str
) -> None:
    with pytest.raises(ClientError, match="use converse"):
        call(bot).invoke_model(modelId=model, body=b"{}")


def test_a_budget_that_is_too_small_is_told_as_aws_tells_it(sidecar: Sidecar, call: Any) -> None:
    with pytest.raises(ClientError) as caught:
        converse(call("poor"))
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-budget-reason"] == "request_too_large"
