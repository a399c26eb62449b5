"""The sandbox provider, driven by the SDKs that agents use and checked with sums done by hand."""

import gzip
import hashlib
import http.client
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx2
import openai
import pytest

from extauthz.sandbox import SandboxError, start_sandbox

# The SDK announces the end of models that will still be on people's bills for a while.
pytestmark = pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")

MESSAGES = [{"role": "user", "content": "Hello, how are you?"}]  # 19 + 4 ("user") bytes: 5 tokens
OPENAI_HEADERS = {"authorization": "Bearer sandbox-openai-key", "content-type": "application/json"}
ANTHROPIC_HEADERS = {
    "x-api-key": "sandbox-anthropic-key",
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
}
CHAT = {"model": "gpt-4o-mini", "messages": MESSAGES}
MESSAGE = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": MESSAGES}


@pytest.fixture(scope="module")
def running():
    with start_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running):
    running.reset()
    return running


@pytest.fixture
def gpt(sandbox):
    with openai.OpenAI(
        base_url=sandbox.openai_url, api_key="sandbox-openai-key", max_retries=0, timeout=20
    ) as client:
        yield client


@pytest.fixture
def claude(sandbox):
    with anthropic.Anthropic(
        base_url=sandbox.anthropic_url, api_key="sandbox-anthropic-key", max_retries=0, timeout=20
    ) as client:
        yield client


def script(**settings):
    return {f"x-sandbox-{name.replace('_', '-')}": str(value) for name, value in settings.items()}


def ask(gpt, *, model="gpt-4o-mini", headers=None, **fields):
    return gpt.chat.completions.create(
        model=model, messages=MESSAGES, extra_headers=headers, **fields
    )


def tell(claude, *, model="claude-haiku-4-5", headers=None, max_tokens=100, **fields):
    return claude.messages.create(
        model=model, messages=MESSAGES, max_tokens=max_tokens, extra_headers=headers, **fields
    )


def connect(sandbox):
    return http.client.HTTPConnection(sandbox.base_url.removeprefix("http://"), timeout=20)


def raw(sandbox, path, body, headers):
    """The status, headers and undecoded body that come back for a body of bytes or JSON."""
    connection = connect(sandbox)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw_chat(sandbox, body=None, **settings):
    settings = OPENAI_HEADERS | script(**settings)
    return raw(sandbox, "/v1/chat/completions", CHAT if body is None else body, settings)


def raw_message(sandbox, body=None, **settings):
    settings = ANTHROPIC_HEADERS | script(**settings)
    return raw(sandbox, "/v1/messages", MESSAGE if body is None else body, settings)


def events(body):
    return [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]


def only_line(sandbox):
    (line,) = sandbox.bill()["lines"]
    return line


def until(condition):
    deadline = time.monotonic() + 10
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
    return value


# --- OpenAI ---


def test_a_chat_completion_has_every_field_and_is_billed_by_hand_computed_arithmetic(sandbox, gpt):
    headers = script(input_tokens=1001, cached_tokens=512, output_tokens=77, reasoning_tokens=30)
    answer = ask(gpt, headers=headers, user="slack-bot")
    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == "This answer was made in a sandbox."
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1001, 77, 1078)
    assert usage.prompt_tokens_details.cached_tokens == 512
    assert usage.completion_tokens_details.reasoning_tokens == 30
    line = only_line(sandbox)
    # (1001 - 512) x 150 + 512 x 75 + 77 x 600 nano-USD
    assert line["cost_nanousd"] == "157950"
    assert line["usage"] == {
        "input": 489,
        "cached": 512,
        "cache_write_5m": 0,
        "cache_write_1h": 0,
        "output": 77,
        "reasoning": 30,
        "media": 0,
        "searches": 0,
        "fetches": 0,
    }
    assert (line["agent"], line["provider"]) == ("slack-bot", "openai")
    assert line["model"] == "gpt-4o-mini-2024-07-18"
    assert line["request_id"] == answer._request_id
    assert line["completed"]


def test_a_chat_stream_carries_usage_in_a_last_chunk_when_it_was_asked_for(sandbox, gpt):
    chunks = list(
        ask(
            gpt,
            headers=script(input_tokens=10, output_tokens=20, chunks=5),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == "This answer was made in a sandbox."
    assert len(chunks) == 1 + 5 + 1 + 1
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 30
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert only_line(sandbox)["cost_nanousd"] == str(10 * 150 + 20 * 600)


def test_a_chat_stream_says_nothing_of_usage_when_nobody_asked(sandbox):
    _, headers, body = raw_chat(sandbox, CHAT | {"stream": True})
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert b"usage" not in body
    assert events(body)[-1] == "[DONE]"
    assert only_line(sandbox)["completed"]


def test_every_choice_is_capped_and_billed(sandbox, gpt):
    answer = ask(gpt, headers=script(input_tokens=1, output_tokens=50), max_tokens=7, n=3)
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    assert answer.usage.completion_tokens == 21
    assert only_line(sandbox)["cost_nanousd"] == str(150 + 21 * 600)


def test_output_ends_at_the_models_maximum_where_no_cap_is_named(gpt):
    answer = ask(gpt, headers=script(output_tokens=10**9))
    assert answer.usage.completion_tokens == 16384
    assert answer.choices[0].finish_reason == "length"


def test_prompt_tokens_left_unscripted_are_counted_and_below_the_bodys_bytes(sandbox, gpt):
    assert ask(gpt).usage.prompt_tokens == 5
    line = only_line(sandbox)
    assert line["usage"]["input"] == 5 < line["body_bytes"]


def test_openai_tool_arguments_arrive_as_they_were_scripted(gpt):
    forged = '{"usage": {"prompt_tokens": 0}, "usage": 1,  "x": "\\n"}'
    answer = ask(gpt, headers=script(tool_input=forged))
    assert answer.choices[0].message.tool_calls[0].function.arguments == forged
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = ask(gpt, headers=script(tool_input=forged), stream=True)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(call.function.arguments for call in calls) == forged
    assert calls[0].function.name == "sandbox_tool"


def test_models_are_listed_and_retrieved_by_both_sdks(sandbox, gpt, claude):
    assert "gpt-4o" in [model.id for model in gpt.models.list()]
    assert gpt.models.retrieve("gpt-5").id == "gpt-5"
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("claude-haiku-4-5")
    assert "claude-haiku-4-5" in [model.id for model in claude.models.list()]
    assert sandbox.bill()["lines"] == []


# --- Anthropic ---


def test_a_message_has_every_field_and_is_billed_by_hand_computed_arithmetic(sandbox, claude):
    headers = script(
        input_tokens=11,
        cached_tokens=1000,
        cache_write_5m_tokens=200,
        cache_write_1h_tokens=30,
        output_tokens=40,
    )
    answer = tell(claude, model="claude-sonnet-4-5", headers=headers, metadata={"user_id": "coder"})
    assert answer.model == "claude-sonnet-4-5-20250929"
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert answer.content[0].text == "This answer was made in a sandbox."
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens) == (11, 40)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (1000, 230)
    assert usage.cache_creation.ephemeral_5m_input_tokens == 200
    assert usage.cache_creation.ephemeral_1h_input_tokens == 30
    assert usage.service_tier == "standard"
    line = only_line(sandbox)
    # 11 x 3000 + 1000 x 300 + 200 x 3750 + 30 x 6000 + 40 x 15000 nano-USD
    assert line["cost_nanousd"] == "1863000"
    assert (line["agent"], line["request_id"]) == ("coder", answer._request_id)


def test_a_message_stream_starts_with_the_input_and_ends_with_the_whole_output(sandbox, claude):
    headers = script(input_tokens=9, cached_tokens=3, output_tokens=25, chunks=2)
    stream = list(tell(claude, headers=headers, stream=True))
    assert [event.type for event in stream if event.type != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = stream[0].message.usage
    assert (start.input_tokens, start.cache_read_input_tokens, start.output_tokens) == (9, 3, 1)
    assert stream[-2].usage.output_tokens == 25
    assert stream[-2].usage.cache_read_input_tokens == 3
    # 9 x 1000 + 3 x 100 + 25 x 5000 nano-USD
    assert only_line(sandbox)["cost_nanousd"] == "134300"


def test_anthropics_stream_helper_accumulates_the_same_message(claude):
    with claude.messages.stream(
        model="claude-haiku-4-5", max_tokens=10, messages=MESSAGES
    ) as stream:
        message = stream.get_final_message()
    assert message.content[0].text == "This answer was made in a sandbox."
    assert (message.usage.output_tokens, message.stop_reason) == (10, "max_tokens")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "sandbox-anthropic-key"}, 200),
        ({"authorization": "Bearer sandbox-anthropic-key"}, 200),
        ({"x-api-key": "sandbox-anthropic-key", "authorization": "Bearer other"}, 200),
        ({"x-api-key": "other", "authorization": "Bearer sandbox-anthropic-key"}, 401),
    ],
)
def test_anthropic_takes_its_key_in_either_header_and_x_api_key_first(sandbox, headers, status):
    headers = headers | {"anthropic-version": "2023-06-01"}
    assert raw(sandbox, "/v1/messages", MESSAGE, headers)[0] == status
    assert sandbox.requests()[0]["credential_headers"] == list(headers)[:-1]


def test_the_final_usage_can_be_the_output_alone(sandbox):
    _, _, body = raw_message(sandbox, MESSAGE | {"stream": True}, delta_usage="output")
    assert json.loads(events(body)[-2])["usage"] == {"output_tokens": 16}


def test_an_anthropic_ping_goes_by_its_name(sandbox):
    _, _, body = raw_message(sandbox, MESSAGE | {"stream": True})
    assert b'event: ping\ndata: {"type":"ping"}\n\n' in body


def test_anthropic_tool_input_arrives_raw_in_json_and_in_pieces_in_a_stream(sandbox, claude):
    forged = '{"usage": {"input_tokens":  0}, "usage": 1, "x": "\\u0041"}'
    _, _, body = raw_message(sandbox, tool_input=forged)
    assert f'"input":{forged}'.encode() in body
    assert only_line(sandbox)["usage"]["input"] == 5
    stream = list(tell(claude, headers=script(tool_input=forged, chunks=3), stream=True))
    deltas = [event.delta for event in stream if event.type == "content_block_delta"]
    assert "".join(delta.partial_json for delta in deltas) == forged
    assert stream[-2].delta.stop_reason == "tool_use"


# --- Prices ---


@pytest.mark.parametrize(
    ("model", "served", "nanousd"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", 6 * 150 + 4 * 75 + 3 * 600),
        ("gpt-4o", "gpt-4o-2024-08-06", 6 * 2500 + 4 * 1250 + 3 * 10_000),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-08-06", 6 * 2500 + 4 * 1250 + 3 * 10_000),
        ("gpt-5", "gpt-5-2025-08-07", 6 * 1250 + 4 * 125 + 3 * 10_000),
        ("gpt-4.1", "gpt-4.1-2025-04-14", 6 * 2000 + 4 * 500 + 3 * 8000),
    ],
)
def test_openai_models_cost_what_openai_publishes(sandbox, gpt, model, served, nanousd):
    headers = script(input_tokens=10, cached_tokens=4, output_tokens=3)
    assert ask(gpt, model=model, headers=headers).model == served
    assert sandbox.total_nanousd() == nanousd


@pytest.mark.parametrize(
    ("model", "served", "rates"),
    [
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", (3000, 300, 3750, 6000, 15_000)),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001", (1000, 100, 1250, 2000, 5000)),
        ("claude-3-haiku-20240307", "claude-3-haiku-20240307", (250, 30, 300, 500, 1250)),
    ],
)
def test_anthropic_models_cost_what_anthropic_publishes(sandbox, claude, model, served, rates):
    headers = script(
        input_tokens=7,
        cached_tokens=5,
        cache_write_5m_tokens=3,
        cache_write_1h_tokens=2,
        output_tokens=11,
    )
    assert tell(claude, model=model, headers=headers).model == served
    tokens = (7, 5, 3, 2, 11)
    assert sandbox.total_nanousd() == sum(a * b for a, b in zip(rates, tokens, strict=True))


def test_a_long_prompt_takes_sonnets_long_context_rates_for_the_whole_call(sandbox, claude):
    at, above = 200_000, 200_001
    for tokens in (at, above):
        headers = script(input_tokens=tokens - 1000, cached_tokens=1000, output_tokens=2)
        tell(claude, model="claude-sonnet-4-5", headers=headers)
    costs = [int(line["cost_nanousd"]) for line in sandbox.bill()["lines"]]
    assert costs == [
        199_000 * 3000 + 1000 * 300 + 2 * 15_000,
        199_001 * 6000 + 1000 * 600 + 2 * 22_500,
    ]


def test_a_price_can_be_set_and_the_exact_sum_is_rounded_up_once(sandbox, gpt):
    # 0.0001 USD per million is a tenth of a nano-USD per token
    sandbox.set_price("openai", "tiny", input="0.0001", output="0.0003", snapshot="tiny-1")
    assert ask(gpt, model="tiny", headers=script(input_tokens=4, output_tokens=2)).model == "tiny-1"
    assert sandbox.total_nanousd() == 1  # 0.4 + 0.6, and not 1 + 1
    ask(gpt, model="tiny", headers=script(input_tokens=5, output_tokens=2))
    assert sandbox.total_nanousd() == 1 + 2  # 0.5 + 0.6


@pytest.mark.parametrize(
    ("provider", "price"),
    [
        ("openai", {"input": 0.15, "output": "1"}),
        ("openai", {"input": "-1", "output": "1"}),
        ("openai", {"input": "1"}),
        ("elsewhere", {"input": "1", "output": "1"}),
    ],
)
def test_a_price_that_cannot_be_exact_or_complete_is_refused(sandbox, provider, price):
    with pytest.raises(SandboxError, match="/_sandbox/prices"):
        sandbox.set_price(provider, "odd", **price)


# --- Refusals ---


def test_wrong_credentials_are_refused_and_unbilled(sandbox, gpt, claude):
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(gpt.with_options(api_key="virtual-key"))
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(anthropic.AuthenticationError) as denied:
        tell(claude.with_options(api_key="virtual-key"))
    assert denied.value.body["error"]["type"] == "authentication_error"
    assert sandbox.bill()["lines"] == []
    assert [request["status"] for request in sandbox.requests()] == [401, 401]


CHAT_PATH, MESSAGES_PATH = "/v1/chat/completions", "/v1/messages"
ONLY_KEY = {"x-api-key": "sandbox-anthropic-key"}
USAGE_UNASKED = CHAT | {"stream_options": {"include_usage": True}}
BOTH_CAPS = CHAT | {"max_tokens": 1, "max_completion_tokens": 1}
REFUSED = {
    "openai without a key": (CHAT_PATH, CHAT, {}, 401),
    "anthropic without a key": (MESSAGES_PATH, MESSAGE, {}, 401),
    "anthropic without a bearer": (MESSAGES_PATH, MESSAGE, {"authorization": "Basic x"}, 401),
    "anthropic without a version": (MESSAGES_PATH, MESSAGE, ONLY_KEY, 400),
    "half of a JSON text": (CHAT_PATH, b'{"model":', OPENAI_HEADERS, 400),
    "JSON that is no object": (CHAT_PATH, b"[]", OPENAI_HEADERS, 400),
    "JSON too deep": (CHAT_PATH, b"[" * 200_000, OPENAI_HEADERS, 400),
    "not a number": (CHAT_PATH, b'{"model":NaN}', OPENAI_HEADERS, 400),
    "a compressed body": (CHAT_PATH, gzip.compress(b"{}"), OPENAI_HEADERS, 400),
    "a flag for a number": (CHAT_PATH, CHAT | {"n": True}, OPENAI_HEADERS, 400),
    "a number for a flag": (CHAT_PATH, CHAT | {"stream": 1}, OPENAI_HEADERS, 400),
    "no messages": (CHAT_PATH, CHAT | {"messages": []}, OPENAI_HEADERS, 400),
    "a cap above the model's": (CHAT_PATH, CHAT | {"max_tokens": 16385}, OPENAI_HEADERS, 400),
    "both caps": (CHAT_PATH, BOTH_CAPS, OPENAI_HEADERS, 400),
    "stream options without a stream": (CHAT_PATH, USAGE_UNASKED, OPENAI_HEADERS, 400),
    "the old cap for a reasoning model": (
        CHAT_PATH,
        CHAT | {"model": "gpt-5", "max_tokens": 5},
        OPENAI_HEADERS,
        400,
    ),
    "half of a message": (MESSAGES_PATH, b"{", ANTHROPIC_HEADERS, 400),
    "a cap of nothing": (MESSAGES_PATH, MESSAGE | {"max_tokens": 0}, ANTHROPIC_HEADERS, 400),
    "no cap": (MESSAGES_PATH, MESSAGE | {"max_tokens": None}, ANTHROPIC_HEADERS, 400),
    "too high a cap": (MESSAGES_PATH, MESSAGE | {"max_tokens": 64001}, ANTHROPIC_HEADERS, 400),
    "another's model": (MESSAGES_PATH, MESSAGE | {"model": "gpt-4o"}, ANTHROPIC_HEADERS, 404),
    "an unknown path": ("/v1/assistants", CHAT, OPENAI_HEADERS, 404),
}
ERROR_TYPES = {
    (MESSAGES_PATH, 401): "authentication_error",
    (MESSAGES_PATH, 404): "not_found_error",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_request_the_provider_would_refuse_is_refused_in_its_shape(sandbox, reason):
    path, body, headers, status = REFUSED[reason]
    answered, _, text = raw(sandbox, path, body, headers)
    assert answered == status
    answer = json.loads(text)
    assert answer["error"]["type"] == ERROR_TYPES.get((path, status), "invalid_request_error")
    assert ("param" in answer["error"]) == (path != MESSAGES_PATH)
    assert answer.get("type") == ("error" if path == MESSAGES_PATH else None)
    assert sandbox.bill()["lines"] == []
    (request,) = sandbox.requests()
    assert (request["path"], request["status"]) == (path, status)


def test_an_unknown_model_is_not_found(gpt):
    with pytest.raises(openai.NotFoundError) as refused:
        ask(gpt, model="gpt-9")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503, 529])
def test_a_scripted_error_comes_in_both_shapes_and_is_unbilled(sandbox, gpt, claude, status):
    with pytest.raises(openai.APIStatusError) as refused:
        ask(gpt, headers=script(status=status), stream=True)
    assert refused.value.status_code == status
    assert refused.value.body["message"]
    with pytest.raises(anthropic.APIStatusError) as denied:
        tell(claude, headers=script(status=status))
    assert denied.value.status_code == status
    assert denied.value.body["type"] == "error"
    assert sandbox.bill()["lines"] == []


def test_a_scripted_error_can_be_billed(sandbox, gpt):
    with pytest.raises(openai.InternalServerError):
        ask(gpt, headers=script(status=500, billed_error=1, input_tokens=2, output_tokens=1))
    line = only_line(sandbox)
    assert (line["status"], line["cost_nanousd"], line["completed"]) == (500, "900", True)


@pytest.mark.parametrize(
    "settings",
    [{"output-tokens": "many"}, {"ending": "happy"}, {"chunks": 0}, {"tool-input": "[]"}, {"x": 1}],
)
def test_a_script_that_cannot_be_followed_is_an_error(sandbox, settings):
    status, _, body = raw_chat(sandbox, **settings)
    assert status == 400
    assert json.loads(body)["error"]["code"] == "sandbox_script"


# --- Scripts and endings ---


def test_defaults_hold_until_reset_and_headers_go_before_them(sandbox, gpt):
    sandbox.script(output_tokens=3, response_text="zwei\nGrüße 🎉", input_tokens=8)
    answer = ask(gpt, headers=script(output_tokens=5))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 5)
    assert answer.choices[0].message.content == "zwei\nGrüße 🎉"
    sandbox.script(input_tokens=None)
    assert ask(gpt).usage.prompt_tokens == 5
    sandbox.reset()
    assert ask(gpt).usage.completion_tokens == 16
    with pytest.raises(SandboxError, match="no such setting"):
        sandbox.script(output=3)


def test_padding_gives_the_content_its_size_in_json_and_in_streams(gpt):
    headers = script(pad_bytes=1_000_003, chunks=7)
    assert len(ask(gpt, headers=headers).choices[0].message.content) == 1_000_003
    chunks = ask(gpt, headers=headers, stream=True)
    assert sum(len(chunk.choices[0].delta.content or "") for chunk in chunks) == 1_000_003


@pytest.mark.parametrize("stream", [False, True])
def test_gzip_is_what_the_header_says_and_what_the_sdks_read(sandbox, gpt, stream):
    body = CHAT | {"stream": stream}
    _, headers, text = raw_chat(sandbox, body, content_encoding="gzip")
    assert headers["content-encoding"] == "gzip"
    assert b"chatcmpl-" in gzip.decompress(text)
    answer = ask(gpt, headers=script(content_encoding="gzip"), stream=stream)
    if stream:
        answer = list(answer)[-1]
    assert answer.choices[0].finish_reason == "stop"


def test_events_can_end_their_lines_with_crlf(sandbox, claude):
    _, _, body = raw_message(sandbox, MESSAGE | {"stream": True}, newline="crlf")
    assert body.count(b"\n") == body.count(b"\r\n") > 10
    assert list(tell(claude, headers=script(newline="crlf"), stream=True))[-1].type


def test_an_answer_can_come_without_usage(sandbox, gpt):
    assert ask(gpt, headers=script(ending="no-usage")).usage is None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert b"usage" not in raw_chat(sandbox, CHAT | options, ending="no-usage")[2]
    for stream in (False, True):
        assert (
            b"usage" not in raw_message(sandbox, MESSAGE | {"stream": stream}, ending="no-usage")[2]
        )
    assert len(sandbox.bill()["lines"]) == 4


def test_a_stream_can_end_on_its_usage_without_a_blank_line(sandbox):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, _, body = raw_chat(sandbox, CHAT | options, ending="no-final-blank-line")
    assert body.endswith(b"}\n")
    assert not body.endswith(b"\n\n")
    assert json.loads(events(body)[-1])["usage"]["completion_tokens"] == 16
    _, _, body = raw_message(sandbox, MESSAGE | {"stream": True}, ending="no-final-blank-line")
    assert json.loads(events(body)[-1])["usage"]["output_tokens"] == 16
    assert not body.endswith(b"\n\n")


def test_an_error_event_ends_a_stream_half_way(sandbox, gpt, claude):
    with pytest.raises(openai.APIError, match="had an error"):
        list(ask(gpt, headers=script(ending="error-event"), stream=True))
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        list(tell(claude, headers=script(ending="error-event"), stream=True))
    assert [line["cost_nanousd"] for line in sandbox.bill()["lines"]] == ["10350", "85000"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reset_cuts_the_body_half_way_and_is_billed_whole(sandbox, stream):
    connection = connect(sandbox)
    body = json.dumps(CHAT | {"stream": stream})
    headers = OPENAI_HEADERS | script(ending="reset", input_tokens=1, output_tokens=100)
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    received = []
    with pytest.raises(ConnectionResetError):
        received.extend(iter(response.read1, b""))
    connection.close()
    assert b"chatcmpl-" in b"".join(received)
    assert b"[DONE]" not in b"".join(received)
    line = only_line(sandbox)
    assert (line["cost_nanousd"], line["completed"]) == (str(150 + 100 * 600), False)


def test_the_sdks_see_a_reset_as_a_broken_connection(gpt):
    # Mid-stream the SDK passes on the error of its transport.
    with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):
        list(ask(gpt, headers=script(ending="reset"), stream=True))
    with pytest.raises(openai.APIConnectionError):
        ask(gpt, headers=script(ending="reset"))


def test_a_connection_can_close_before_the_headers(sandbox, gpt):
    with pytest.raises(openai.APIConnectionError):
        ask(gpt, headers=script(ending="truncate-headers"))
    assert only_line(sandbox)["completed"] is False


@pytest.mark.parametrize("stream", [False, True])
def test_a_stalled_answer_is_billed_while_the_client_waits(sandbox, stream):
    connection = connect(sandbox)
    body = json.dumps(CHAT | {"stream": stream, "user": "patient"})
    headers = OPENAI_HEADERS | script(ending="stall")
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.read1()
    assert only_line(sandbox)["completed"] is False
    connection.close()
    response.close()
    assert sandbox.bill()["by_agent"]["patient"]["completed_calls"] == 0


# --- The bill ---


def test_a_client_that_hangs_up_pays_for_the_whole_answer(sandbox, gpt):
    headers = script(input_tokens=10, output_tokens=1000, chunks=100, chunk_delay_ms=20)
    stream = ask(gpt, headers=headers, stream=True, user="impatient")
    next(iter(stream))
    stream.close()
    assert sandbox.total_nanousd("impatient") == 10 * 150 + 1000 * 600
    assert only_line(sandbox)["completed"] is False


def test_a_call_is_on_the_bill_before_its_first_byte(sandbox):
    connection = connect(sandbox)
    headers = OPENAI_HEADERS | script(latency_ms=60_000)
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), headers)
    (line,) = until(lambda: sandbox.bill()["lines"])
    connection.close()
    assert (line["cost_nanousd"], line["completed"]) == (str(5 * 150 + 16 * 600), False)


def test_the_bill_adds_up_by_agent_whoever_calls_at_once(sandbox, gpt, claude):
    def one(number):
        if number % 2:
            ask(gpt, headers=script(input_tokens=number, output_tokens=1), user="odd")
        else:
            headers = script(input_tokens=number, output_tokens=1)
            tell(claude, headers=headers, metadata={"user_id": "even"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(1, 101)))
    headers = script(ending="reset", input_tokens=0, output_tokens=1)
    with pytest.raises(openai.APIConnectionError):
        ask(gpt, headers=headers, user="odd")
    odd = 2500 * 150 + 50 * 600  # 1 + 3 + ... + 99 = 2500
    even = 2550 * 1000 + 50 * 5000  # 2 + 4 + ... + 100 = 2550
    bill = sandbox.bill()
    assert bill["total_nanousd"] == str(odd + 600 + even)
    assert bill["by_agent"] == {
        "odd": {
            "calls": 51,
            "completed_calls": 50,
            "total_nanousd": str(odd + 600),
            "completed_nanousd": str(odd),
        },
        "even": {
            "calls": 50,
            "completed_calls": 50,
            "total_nanousd": str(even),
            "completed_nanousd": str(even),
        },
    }
    assert [line["sequence"] for line in bill["lines"]] == list(range(1, 102))
    assert [line["sequence"] for line in sandbox.bill(after=99)["lines"]] == [100, 101]


def test_a_line_identifies_the_body_and_names_headers_without_their_secrets(sandbox):
    body = json.dumps(CHAT).encode()
    extra = {"cookie": "session=hunter2", "Forwarded": "for=hunter2", "x-trace": "visible"}
    raw_chat_headers = OPENAI_HEADERS | extra | {"x-api-key": "hunter2"} | script(chunks=2)
    raw(sandbox, "/v1/chat/completions", body, raw_chat_headers)
    line = only_line(sandbox)
    (request,) = sandbox.requests()
    for record in (line, request):
        assert record["body_sha256"] == hashlib.sha256(body).hexdigest()
        assert record["body_bytes"] == len(body)
        assert {"authorization", "cookie", "forwarded", "x-trace"} <= set(record["header_names"])
        assert record["credential_headers"] == ["authorization", "cookie", "x-api-key"]
        assert "hunter2" not in json.dumps(record)
        assert "sandbox-openai-key" not in json.dumps(record)
    assert line["headers"] == {"x-sandbox-chunks": "2"}
    assert request["headers"] == {"x-sandbox-chunks": "2", "x-trace": "visible"}


def test_a_compressed_request_is_hashed_as_it_came(sandbox):
    body = gzip.compress(json.dumps(CHAT).encode())
    raw(sandbox, "/v1/chat/completions", body, OPENAI_HEADERS | {"content-encoding": "gzip"})
    (request,) = sandbox.requests()
    assert request["body_sha256"] == hashlib.sha256(body).hexdigest()


def test_a_body_of_32_mib_is_taken(sandbox):
    content = "a" * (32 * 2**20)
    status, _, _ = raw_chat(sandbox, CHAT | {"messages": [{"role": "user", "content": content}]})
    assert status == 200
    assert only_line(sandbox)["usage"]["input"] == (32 * 2**20 + 4) // 4


# --- The process ---


def test_the_process_says_where_it_listens_and_ends_on_sigterm_with_a_call_in_flight():
    command = [sys.executable, "-m", "extauthz.sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        host = said.removeprefix("listening on http://").strip()
        connection = http.client.HTTPConnection(host, timeout=20)
        headers = OPENAI_HEADERS | script(ending="stall")
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), headers)
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        connection.close()


def test_credentials_and_logged_headers_can_be_chosen_and_the_process_ends_with_the_block():
    with start_sandbox(
        openai_key="k1", anthropic_key="k2", log_headers=["accept", "authorization"]
    ) as own:
        headers = {"authorization": "Bearer k1", "accept": "this"}
        assert raw(own, "/v1/chat/completions", CHAT, headers)[0] == 200
        headers = {"x-api-key": "k2", "anthropic-version": "2023-06-01"}
        assert raw(own, "/v1/messages", MESSAGE, headers)[0] == 200
        assert own.requests()[0]["headers"] == {"accept": "this"}
    assert own.process.poll() is not None


def test_a_sandbox_that_cannot_start_is_an_error(sandbox):
    port = int(sandbox.base_url.rsplit(":", 1)[1])
    with pytest.raises(SandboxError, match="before it was ready"):
        start_sandbox(host="256.0.0.1", port=port)
