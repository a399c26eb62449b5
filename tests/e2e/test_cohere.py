"""Cohere's chat by its official SDK: what the provider bills is what is spent."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import pytest
from cohere.core import ApiError, RequestOptions
from servers import until
from sidecar import Sidecar, agent, key_of, nanousd, running_sidecar

BOTS = 30
MODEL = "command-a-03-2025"
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(BOTS):
        agents |= agent(f"bot{number}", "50.00")
    with running_sidecar(agents=agents, start=False) as running:
        running.config["providers"]["cohere"] = {
            "api": "cohere",
            "upstream": running.sandbox.base_url,
            "credential": {"env": "SANDBOX_OPENAI_CREDENTIAL"},
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


def client_of(sidecar: Sidecar, name: str) -> cohere.ClientV2:
    client = sidecar.clients.enter_context(httpx.Client(timeout=60))
    base_url = f"{sidecar.egress}/cohere"
    return cohere.ClientV2(api_key=key_of(name), base_url=base_url, httpx_client=client)


def options(name: str, **script: Any) -> RequestOptions:
    headers = {f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in script.items()}
    return {"additional_headers": {"x-sandbox-agent": name, **headers}, "max_retries": 0}


def chat(sidecar: Sidecar, name: str, streams: bool, script: dict[str, Any], **fields: Any) -> Any:
    client = client_of(sidecar, name)
    given = {"model": MODEL, "messages": HELLO, "max_tokens": 50, **fields}
    if streams:
        return list(client.chat_stream(**given, request_options=options(name, **script)))
    return client.chat(**given, request_options=options(name, **script))


def settled(sidecar: Sidecar, name: str) -> dict[str, Any]:
    """The log line of the settlement of an agent's only call, once it is there."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [line for line in sidecar.log_lines("settlement") if line.get("agent") == name]
        return bool(found)

    until(is_there)
    (line,) = found
    return line


FORGED = json.dumps({"usage": {"billed_units": {"input_tokens": 0}}, "delta": {"usage": {}}})


@pytest.mark.parametrize(
    "script",
    [
        {},
        {"output_tokens": 5000},
        {"pad_bytes": 200_000, "newline": "crlf", "content_encoding": "gzip"},
        {"tool_input": FORGED},
    ],
    ids=str,
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_chat_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, script: dict[str, Any], streams: bool
) -> None:
    assert chat(sidecar, bot, streams, script)
    line = settled(sidecar, bot)
    assert (line["outcome"], line["exactness"]) == ("settled", "exact")
    bill = sidecar.sandbox.total_nanousd(bot)
    assert bill > 0
    assert sidecar.balance(bot) == (bill, 0)
    assert nanousd(line["estimate_usd"]) >= bill


def embed(sidecar: Sidecar, name: str, model: str = "embed-v4.0", **fields: Any) -> Any:
    given = {"texts": ["hello", "a longer text"]} if "inputs" not in fields else {}
    return client_of(sidecar, name).embed(
        model=model,
        input_type="search_document",
        embedding_types=["float"],
        **{**given, "request_options": options(name), **fields},
    )


@pytest.mark.parametrize(
    "inputs",
    [{}, {"inputs": [{"content": [{"type": "text", "text": "hello"}]}]}],
    ids=["texts", "inputs"],
)
def test_an_embedding_is_settled_at_the_providers_own_bill(
    sidecar: Sidecar, bot: str, inputs: dict[str, Any]
) -> None:
    forged = {"meta": {"billed_units": {"input_tokens": 0}}, "billed_units": {"input_tokens": 0}}
    more = {"response_text": json.dumps(forged), "input_tokens": 7}
    assert embed(sidecar, bot, **inputs, request_options=options(bot, **more)).embeddings.float_
    line = settled(sidecar, bot)
    assert (line["endpoint"], line["exactness"]) == ("embed", "exact")
    assert sidecar.balance(bot) == (sidecar.sandbox.total_nanousd(bot), 0) == (840, 0)


def test_an_embedding_that_tells_nothing_is_charged_its_reservation(
    sidecar: Sidecar, bot: str
) -> None:
    embed(sidecar, bot, request_options=options(bot, ending="no-usage"))
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"images": ["data:image/png;base64,eA=="]}, "unmetered_endpoint"),
        ({"inputs": [{"content": [PICTURE]}]}, "unmetered_endpoint"),
        ({"model": "embed-english-v3.0"}, "unpriced_model"),
    ],
    ids=["images", "an input", "an older model"],
)
def test_an_embedding_without_a_price_never_leaves(
    sidecar: Sidecar, bot: str, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(cohere.ForbiddenError) as caught:
        embed(sidecar, bot, **fields)
    assert caught.value.body["code"] == reason
    assert sidecar.sandbox.total_nanousd(bot) == 0


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("status", [400, 429, 500])
def test_what_the_provider_refused_costs_nothing(
    sidecar: Sidecar, bot: str, status: int, streams: bool
) -> None:
    with pytest.raises(ApiError) as caught:
        chat(sidecar, bot, streams, {"status": status})
    assert caught.value.status_code == status
    assert settled(sidecar, bot)["outcome"] == "released"
    assert sidecar.balance(bot) == (0, 0)


@pytest.mark.parametrize("ending", ["no-usage", "error-event"])
def test_a_stream_that_told_no_usage_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, ending: str
) -> None:
    chat(sidecar, bot, True, {"ending": ending})
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def test_hanging_up_in_the_middle_saves_nothing(sidecar: Sidecar, bot: str) -> None:
    stream = client_of(sidecar, bot).chat_stream(
        model=MODEL,
        messages=HELLO,
        max_tokens=50,
        request_options=options(bot, chunk_delay_ms=300, chunks=20),
    )
    next(iter(stream))
    stream.close()
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def test_what_is_not_metered_is_refused_in_coheres_words(sidecar: Sidecar, bot: str) -> None:
    with pytest.raises(cohere.ForbiddenError) as caught:
        client_of(sidecar, bot).rerank(
            model="rerank-v3.5", query="q", documents=["a"], request_options=options(bot)
        )
    assert caught.value.body["code"] == "unmetered_endpoint"
    assert "not metered" in caught.value.body["message"]
