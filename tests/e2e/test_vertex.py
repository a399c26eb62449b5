"""Vertex AI by Google's and Anthropic's SDKs: what the provider bills is what is spent."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from calls import bearer, send
from google import genai
from google.oauth2.credentials import Credentials
from servers import until
from sidecar import Sidecar, agent, key_of, nanousd, running_sidecar

from extauthz.sandbox.app import DEFAULT_GOOGLE_KEY

BOTS = 30
FLASH, HAIKU = "gemini-2.5-flash", "claude-haiku-4-5@20251001"
HELLO: Any = [{"role": "user", "content": "hello"}]
FORGED = json.dumps({"usageMetadata": {"promptTokenCount": 0}, "usage": {}, "modelVersion": "x"})


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(BOTS):
        agents |= agent(f"bot{number}", "50.00")
    token = tmp_path_factory.mktemp("secrets") / "token"
    token.write_text("an-access-token-that-has-run-out\n")
    with running_sidecar(agents=agents, start=False) as running:
        running.config["providers"]["vertex"] = {
            "api": "vertex",
            "upstream": running.sandbox.base_url,
            "credential": {"file": str(token)},
        }
        running.start()
        replace(token)
        until(lambda: count(running) == 200)
        yield running


def replace(token: Path) -> None:
    """As whoever refreshes an access token does it."""
    new = token.with_suffix(".new")
    new.write_text(f"{DEFAULT_GOOGLE_KEY}\n")
    new.rename(token)


def count(sidecar: Sidecar) -> int:
    path = (
        f"/vertex/v1/projects/p/locations/us-central1/publishers/google/models/{FLASH}:countTokens"
    )
    headers = bearer(key_of("bot0")) | {"content-type": "application/json"}
    return send(sidecar, b'{"contents":[]}', headers, path=path).status


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def bot(numbers: Iterator[int]) -> str:
    """An agent that has not called yet."""
    number = next(numbers)
    assert number < BOTS
    return f"bot{number}"


def headers_of(name: str, script: dict[str, Any]) -> dict[str, str]:
    named = {f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in script.items()}
    return {"x-sandbox-agent": name, **named}


def gemini(sidecar: Sidecar, name: str, **script: Any) -> genai.Client:
    """The official SDK; the agent's key stands where an access token would."""
    client = genai.Client(
        vertexai=True,
        project="my-project",
        location="us-central1",
        credentials=Credentials(key_of(name)),
        http_options={
            "base_url": f"{sidecar.egress}/vertex", "headers": headers_of(name, script),
        },
    )  # fmt: skip
    sidecar.clients.callback(client.close)
    return client


@pytest.mark.parametrize("texts", ["hello", ["hello", "a longer text"]], ids=["one", "two"])
def test_embeddings_are_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, texts: Any
) -> None:
    config: Any = {"task_type": "RETRIEVAL_DOCUMENT", "output_dimensionality": 64}
    gemini(sidecar, bot).models.embed_content(
        model="gemini-embedding-001", contents=texts, config=config
    )
    endpoint = "embed_content" if texts == "hello" else "batch_embed_contents"
    assert_spent_is_the_bill(sidecar, bot, f"{endpoint}_in_region")


@pytest.mark.parametrize("tells", [True, False])
def test_an_embedding_by_predict_is_settled_at_the_tokens_of_its_text(
    sidecar: Sidecar, bot: str, tells: bool
) -> None:
    path = "/vertex/v1/projects/p/locations/us-central1/publishers/google/models/"
    path += "gemini-embedding-001:predict"
    headers = bearer(key_of(bot)) | {"content-type": "application/json", "x-sandbox-agent": bot}
    headers |= {} if tells else {"x-sandbox-ending": "no-usage"}
    body = {"instances": [{"content": "hello " * 99}], "parameters": {"outputDimensionality": 64}}
    answer = send(sidecar, json.dumps(body).encode(), headers, path=path)
    assert answer.status == 200
    if tells:
        assert_spent_is_the_bill(sidecar, bot, "predict_in_region")
    else:
        line = settled(sidecar, bot)
        assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
        assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def claude(
    sidecar: Sidecar, name: str, region: str = "global", **script: Any
) -> anthropic.AnthropicVertex:
    client = anthropic.AnthropicVertex(
        project_id="my-project",
        region=region,
        access_token=key_of(name),
        base_url=f"{sidecar.egress}/vertex/v1",
        default_headers=headers_of(name, script),
        max_retries=0,
    )
    return sidecar.clients.enter_context(client)


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


SCRIPTS: list[dict[str, Any]] = [{}, {"output_tokens": 5000}, {"tool_input": FORGED}]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
def test_geminis_answer_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, script: dict[str, Any], streams: bool
) -> None:
    models = gemini(sidecar, bot, **script).models
    given: Any = {"model": FLASH, "contents": "hello", "config": {"max_output_tokens": 50}}
    if streams:
        assert list(models.generate_content_stream(**given))
    else:
        assert models.generate_content(**given).candidates
    endpoint = "stream_generate_content" if streams else "generate_content"
    endpoint += "_in_region"  # (where this older model costs no more)
    assert_spent_is_the_bill(sidecar, bot, endpoint)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
def test_claudes_answer_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, script: dict[str, Any], streams: bool
) -> None:
    client = claude(sidecar, bot, **script)
    answer = client.messages.create(model=HAIKU, messages=HELLO, max_tokens=50, stream=streams)
    if streams:
        assert list(answer)
    assert_spent_is_the_bill(sidecar, bot, "stream_raw_predict" if streams else "raw_predict")


@pytest.mark.parametrize("streams", [False, True])
def test_within_a_region_claude_costs_a_tenth_more(
    sidecar: Sidecar, bot: str, streams: bool
) -> None:
    client = claude(sidecar, bot, "us-east5", output_tokens=5000)
    answer = client.messages.create(model=HAIKU, messages=HELLO, max_tokens=50, stream=streams)
    if streams:
        assert list(answer)
    endpoint = "stream_raw_predict_in_region" if streams else "raw_predict_in_region"
    assert_spent_is_the_bill(sidecar, bot, endpoint)
    assert sidecar.balance(bot)[0] > 50 * 5_500  # the output alone, in nano-USD


@pytest.mark.parametrize("status", [400, 429, 500])
def test_what_the_provider_refused_costs_nothing(sidecar: Sidecar, bot: str, status: int) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude(sidecar, bot, status=status).messages.create(
            model=HAIKU, messages=HELLO, max_tokens=50
        )
    assert caught.value.status_code == status
    assert settled(sidecar, bot)["outcome"] == "released"
    assert sidecar.balance(bot) == (0, 0)


def test_hanging_up_in_the_middle_saves_nothing(sidecar: Sidecar, bot: str) -> None:
    client = claude(sidecar, bot, chunk_delay_ms=300, chunks=20)
    with client.messages.create(model=HAIKU, messages=HELLO, max_tokens=50, stream=True) as stream:
        next(iter(stream))
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


@pytest.mark.parametrize(
    "path",
    [
        f"locations/us-east5/publishers/anthropic/models/{HAIKU}:predict",
        f"locations/global/publishers/google/models/{FLASH}:predict",
        "locations/global/publishers/google/models/text-embedding-005:predict",
        "locations/global/publishers/mistralai/models/mistral-large:rawPredict",
        "locations/global/endpoints/1:generateContent",
        "locations/global/cachedContents",
    ],
)
def test_what_is_not_in_the_table_is_refused(sidecar: Sidecar, path: str) -> None:
    headers = bearer(key_of("bot0")) | {"content-type": "application/json"}
    answer = send(sidecar, b"{}", headers, path=f"/vertex/v1/projects/p/{path}")
    assert answer.error["details"][0]["reason"] == "unmetered_endpoint"
