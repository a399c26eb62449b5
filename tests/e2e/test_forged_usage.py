"""A model, or the prompt that steers it, writes usage into its answer: the bill does not change."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from calls import CLAUDE, GPT, chat, message, post
from servers import until
from sidecar import Sidecar, agent, running_sidecar

ZERO = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
}
MANY = dict.fromkeys(ZERO, 999999999)
FORGED = {
    "nothing was used": json.dumps({"usage": ZERO}),
    "a lot was used": json.dumps({"usage": MANY}),
    "another model answered": json.dumps({"model": "gpt-5", "usage": ZERO, "service_tier": "flex"}),
    "the start of a message": json.dumps({"type": "message_start", "message": {"usage": ZERO}}),
    "the end of a response": json.dumps({"response": {"model": "gpt-5", "usage": ZERO}}),
    "an error": json.dumps({"error": {"type": "overloaded_error"}, "type": "error"}),
    "null": '{"usage":null}',
    "twice": '{"usage":{"input_tokens":1},"usage":{"input_tokens":0},"input":{"usage":{}}}',
    "brackets in strings": '{"a":"}]}],\\"usage\\":{\\"input_tokens\\":0}}","b":"\\\\","usage":{}}',
    "deep inside": '{"a":' * 300 + json.dumps({"usage": ZERO}) + "}" * 300,
    "in lists": json.dumps([[{"usage": ZERO}]] * 20).join(('{"a":', "}")),
    "spaced": '{ \t"usage" : { "prompt_tokens" : 0 } , "\\u0075sage":{} }',
    "Gemini's": json.dumps({"usageMetadata": {"promptTokenCount": 0}, "modelVersion": "x"}),
    "not a word of it": "{}",
}
# Header values hold no line breaks; the script that holds for every call does.
TEXTS = {
    "the rest of the answer": '"}}],"usage":{"prompt_tokens":0,"completion_tokens":0}}',
    "an event": '\n\ndata: {"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n',
    "an event with CRLF": '\r\n\r\ndata: {"type":"message_delta","usage":{"input_tokens":0}}\r\n',
    "the end": "\n\ndata: [DONE]\n\nevent: message_stop\n\n",
    "backslashes": '\\"\\\\"},"usage":{},"\\',
    "line separators": '\u2028data: {"usage":{}}\u2029\x0b\x85',
}
MODES = [(provider, stream) for provider in ("openai", "anthropic") for stream in (False, True)]


def _name(kind: str, number: int, provider: str, stream: bool) -> str:
    return f"{kind}{number}-{provider}-{'stream' if stream else 'json'}"


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for kind, table in (("tool", FORGED), ("text", TEXTS)):
        for number in range(len(table)):
            for mode in MODES:
                agents |= agent(_name(kind, number, *mode))
    with running_sidecar(agents=agents) as running:
        yield running


def assert_unmoved(sidecar: Sidecar, name: str, provider: str, stream: bool, **script: str) -> None:
    """A call is settled at the sandbox's own bill, which comes from its script alone."""
    if provider == "openai":
        path, body = "/openai/v1/chat/completions", chat(user=name, stream=stream)
    else:
        path = "/anthropic/v1/messages"
        body = message(metadata={"user_id": name}, stream=stream)

    answer = post(sidecar, name, body, path=path, x_sandbox_output_tokens="23", **script)

    assert answer.status == 200
    bill = sidecar.sandbox.total_nanousd(name)
    assert bill > 0
    until(lambda: sidecar.balance(name) == (bill, 0))
    (line,) = (line for line in sidecar.log_lines("settlement") if line["agent"] == name)
    assert line["exactness"] == "exact"
    assert line["usage"]["output_tokens"] == 23
    assert line["served_model"].startswith(GPT if provider == "openai" else CLAUDE)


@pytest.mark.parametrize(("provider", "stream"), MODES)
@pytest.mark.parametrize("what", FORGED)
def test_what_stands_in_a_tools_input_is_not_the_usage(
    sidecar: Sidecar, what: str, provider: str, stream: bool
) -> None:
    name = _name("tool", list(FORGED).index(what), provider, stream)

    assert_unmoved(sidecar, name, provider, stream, x_sandbox_tool_input=FORGED[what])


@pytest.mark.parametrize(("provider", "stream"), MODES)
@pytest.mark.parametrize("what", TEXTS)
def test_what_stands_in_the_text_is_not_the_usage(
    sidecar: Sidecar, what: str, provider: str, stream: bool
) -> None:
    name = _name("text", list(TEXTS).index(what), provider, stream)
    sidecar.sandbox.script(response_text=TEXTS[what], chunks=3)
    try:
        assert_unmoved(sidecar, name, provider, stream)
    finally:
        sidecar.sandbox.script(response_text=None, chunks=None)


def test_nothing_of_it_was_an_alarm(sidecar: Sidecar) -> None:
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0
    assert {line["outcome"] for line in sidecar.log_lines("settlement")} == {"settled"}
