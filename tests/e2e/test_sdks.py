"""More SDKs through real Envoy: what each is billed by the sandbox is what its agent has spent."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_openai import ChatOpenAI
from mistralai.client import Mistral
from sidecar import Sidecar, agent, key_of, running_sidecar

MESSAGES: Any = [{"role": "user", "content": "hello"}]


async def read(answer: AsyncIterator[Any]) -> None:
    async for _ in answer:
        pass


def langchain(sidecar: Sidecar, name: str, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="gpt-4o-mini",
        base_url=f"{sidecar.egress}/openai/v1",
        api_key=key_of(name),
        max_tokens=50,
        **settings,
    )


def langchain_json(sidecar: Sidecar, name: str) -> None:
    answer = langchain(sidecar, name).invoke("hello")
    assert answer.content
    assert answer.usage_metadata is not None


def langchain_stream(sidecar: Sidecar, name: str) -> None:
    assert list(langchain(sidecar, name).stream("hello"))


def langchain_async(sidecar: Sidecar, name: str) -> None:
    asyncio.run(read(langchain(sidecar, name).astream("hello")))


def mistral_json(sidecar: Sidecar, name: str) -> None:
    with Mistral(api_key=key_of(name), server_url=f"{sidecar.egress}/mistral") as client:
        answer = client.chat.complete(model="gpt-4o-mini", messages=MESSAGES, max_tokens=50)
        assert answer.usage.total_tokens


def mistral_stream(sidecar: Sidecar, name: str) -> None:
    with (
        Mistral(api_key=key_of(name), server_url=f"{sidecar.egress}/mistral") as client,
        client.chat.stream(model="gpt-4o-mini", messages=MESSAGES, max_tokens=50) as events,
    ):
        assert list(events)


async def openai_async(sidecar: Sidecar, name: str, *, stream: bool) -> None:
    base_url = f"{sidecar.egress}/openai/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key_of(name)) as client:
        answer: Any = await client.chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, max_tokens=50, stream=stream
        )
        if stream:
            await read(answer)


async def anthropic_async(sidecar: Sidecar, name: str, *, stream: bool) -> None:
    base_url = f"{sidecar.egress}/anthropic"
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key_of(name)) as client:
        answer: Any = await client.messages.create(
            model="claude-haiku-4-5",
            messages=MESSAGES,
            max_tokens=50,
            stream=stream,
        )
        if stream:
            await read(answer)


TOOLS: Any = [
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
    {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 2},
]


def anthropic_tools(sidecar: Sidecar, name: str, *, stream: bool) -> None:
    sidecar.sandbox.script(web_searches=2, web_fetches=1)
    asked: Any = {"model": "claude-haiku-4-5", "messages": MESSAGES, "max_tokens": 50}
    try:
        client = sidecar.anthropic(name)
        if stream:
            with client.messages.stream(**asked, tools=TOOLS) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(**asked, tools=TOOLS)
    finally:
        sidecar.sandbox.script(web_searches=0, web_fetches=0)
    kinds = [block.type for block in answer.content]
    assert (kinds.count("web_search_tool_result"), kinds.count("web_fetch_tool_result")) == (2, 1)
    assert answer.usage.server_tool_use.web_search_requests == 2


CALLS: dict[str, Callable[[Sidecar, str], None]] = {
    "langchain-openai, JSON": langchain_json,
    "langchain-openai, stream": langchain_stream,
    "langchain-openai, stream, async": langchain_async,
    "mistralai, JSON": mistral_json,
    "mistralai, stream": mistral_stream,
    "openai, JSON, async": lambda s, n: asyncio.run(openai_async(s, n, stream=False)),
    "openai, stream, async": lambda s, n: asyncio.run(openai_async(s, n, stream=True)),
    "anthropic, JSON, async": lambda s, n: asyncio.run(anthropic_async(s, n, stream=False)),
    "anthropic, searches, JSON": lambda s, n: anthropic_tools(s, n, stream=False),
    "anthropic, searches, stream": lambda s, n: anthropic_tools(s, n, stream=True),
    "anthropic, stream, async": lambda s, n: asyncio.run(anthropic_async(s, n, stream=True)),
}


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(len(CALLS)):
        agents |= agent(f"bot{number}", "50.00")
    with running_sidecar(agents=agents, start=False) as running:
        running.config["providers"]["mistral"] = {
            "api": "mistral",
            "upstream": running.sandbox.base_url,
            "credential": {"env": "SANDBOX_OPENAI_CREDENTIAL"},
        }
        price = {"provider": "mistral", "model": "gpt-4o-mini", "input": "0.15", "output": "0.60"}
        running.config["prices"] = [price | {"cache_read": "0.075"}]
        running.start()
        yield running


@pytest.mark.parametrize("kind", CALLS)
def test_what_an_sdk_is_billed_is_what_its_agent_has_spent(sidecar: Sidecar, kind: str) -> None:
    name = f"bot{list(CALLS).index(kind)}"
    # Not every SDK says whose call it is, so the sandbox's whole bill is looked at.
    before = sidecar.sandbox.total_nanousd()
    sidecar.sandbox.script(always_usage="mistral" in kind)

    CALLS[kind](sidecar, name)
    sidecar.until_settled()

    billed = sidecar.sandbox.total_nanousd() - before
    assert billed > 0
    assert sidecar.balance(name) == (billed, 0)
    (line,) = [each for each in sidecar.log_lines("settlement") if each.get("agent") == name]
    assert (line["outcome"], line["exactness"]) == ("settled", "exact")
