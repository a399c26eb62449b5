"""Every endpoint of OpenAI's API, by its official SDK: what the provider bills is what is spent."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import httpx2
import openai
import pytest
from calls import HELLO, headers_of, received, send
from servers import until
from sidecar import Sidecar, agent, key_of, nanousd, running_sidecar

BOTS = 135
VARIATION_NANOUSD = 50_000_000
COMPATIBLE = (
    "mistral", "groq", "deepseek", "xai", "together", "fireworks", "openrouter", "perplexity",
    "cerebras", "vllm", "ollama", "llamacpp",
)  # fmt: skip
TELLS_UNASKED = ("mistral", "perplexity")


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(BOTS):
        agents |= agent(f"bot{number}", "50.00")
    credential = {"env": "SANDBOX_OPENAI_CREDENTIAL"}
    with running_sidecar(agents=agents, start=False) as running:
        url = running.sandbox.base_url
        running.config["providers"]["openai"] |= {
            "endpoints": [{"method": "POST", "path": "/v1/images/variations", "price_usd": "0.05"}],
            "max_audio_seconds": 600,
        }
        running.config["providers"] |= {
            "azure": {
                "api": "azure",
                "upstream": url,
                "credential": credential,
                "deployments": {"my-gpt": "gpt-4o-mini", "my-embeddings": "text-embedding-3-small"},
            },
            "project": {
                "api": "openai",
                "upstream": url,
                "credential": credential,
                "allow_headers": {"openai-project": ["proj_*"]},
            },
        }
        running.config["prices"] = []
        for name in COMPATIBLE:
            running.config["providers"][name] = {
                "api": name,
                "upstream": url,
                "credential": credential,
            }
            price = {"provider": name, "model": "gpt-4o-mini", "input": "0.15", "output": "0.60"}
            running.config["prices"].append(price | {"cache_read": "0.075"})
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


def script(**settings: Any) -> dict[str, str]:
    return {f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in settings.items()}


def settled(sidecar: Sidecar, name: str) -> dict[str, Any]:
    """The log line of the settlement of an agent's only call, once it is there."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        lines = sidecar.log_lines("settlement")
        found[:] = [line for line in lines if line.get("agent") == name]
        return bool(found)

    until(is_there)
    (line,) = found
    return line


def assert_spent_is_the_bill(sidecar: Sidecar, name: str, endpoint: str) -> None:
    line = settled(sidecar, name)
    assert (line["outcome"], line["endpoint"]) == ("settled", endpoint)
    assert line["exactness"] == "exact"
    assert line["price_version"].startswith(("genai-prices/", "config"))
    bill = sidecar.sandbox.total_nanousd(name)
    assert bill > 0
    assert sidecar.balance(name) == (bill, 0)
    assert nanousd(line["estimate_usd"]) >= bill


def read(answer: Any) -> list[Any]:
    return list(answer)


def respond(client: openai.OpenAI, name: str, **fields: Any) -> Any:
    given = {"model": "gpt-4o-mini", "input": "hello", "max_output_tokens": 50, **fields}
    return client.responses.create(user=name, **given)


def complete(client: openai.OpenAI, name: str, **fields: Any) -> Any:
    given = {"model": "gpt-3.5-turbo-instruct", "prompt": "hello", "max_tokens": 9, **fields}
    return client.completions.create(user=name, **given)


def draw(client: openai.OpenAI, name: str, **fields: Any) -> Any:
    given = {"model": "gpt-image-1", "prompt": "a cat", "quality": "low", **fields}
    return client.images.generate(user=name, **given)


def hear(client: openai.OpenAI, name: str, model: str, **fields: Any) -> Any:
    headers = script(agent=name, **fields.pop("told", {}))
    given = {"file": ("a.wav", b"RIFF\r\n--" + bytes(range(256)) * 100, "audio/wav"), **fields}
    return client.audio.transcriptions.create(model=model, extra_headers=headers, **given)


def redraw(client: openai.OpenAI, name: str, **fields: Any) -> Any:
    given = {"model": "gpt-image-1", "prompt": "a hat", "image": ("a.png", b"\x89PNG"), **fields}
    return client.images.edit(user=name, quality="low", **given)


CALLS: dict[str, tuple[str, Callable[[openai.OpenAI, str], Any]]] = {
    "a response": ("responses", respond),
    "a response cut off by its cap": (
        "responses",
        lambda c, n: respond(c, n, extra_headers=script(output_tokens=5000)),
    ),
    "a response with cached tokens and reasoning": (
        "responses",
        lambda c, n: respond(
            c,
            n,
            extra_headers=script(
                input_tokens=900, cached_tokens=333, output_tokens=40, reasoning_tokens=31
            ),
        ),
    ),
    "a response that goes on from an earlier one": (
        "responses",
        lambda c, n: respond(
            c, n, previous_response_id="resp_1", extra_headers=script(input_tokens=90_000)
        ),
    ),
    "a streamed response": ("responses", lambda c, n: read(respond(c, n, stream=True))),
    "a streamed response cut off by its cap": (
        "responses",
        lambda c, n: read(respond(c, n, stream=True, extra_headers=script(output_tokens=5000))),
    ),
    "a long streamed response, compressed": (
        "responses",
        lambda c, n: read(
            respond(
                c,
                n,
                stream=True,
                extra_headers=script(pad_bytes=200_000, content_encoding="gzip", newline="crlf"),
            )
        ),
    ),
    "a completion": ("completions", complete),
    "several completions of several prompts": (
        "completions",
        lambda c, n: complete(c, n, prompt=["one", "two", "three"], best_of=4, n=2),
    ),
    "a streamed completion": ("completions", lambda c, n: read(complete(c, n, stream=True))),
    "an embedding": (
        "embeddings",
        lambda c, n: c.embeddings.create(
            model="text-embedding-3-small", input=["hello " * 5000, "world"], user=n
        ),
    ),
    "an image": ("images", draw),
    "several large images": ("images", lambda c, n: draw(c, n, n=3, quality="high")),
    "a streamed image": ("images", lambda c, n: read(draw(c, n, stream=True))),
    "an edited image": ("image_edits", redraw),
    "several images, edited by several others and a mask": (
        "image_edits",
        lambda c, n: redraw(
            c,
            n,
            n=3,
            image=[("a.png", b"a"), ("b.png", b"b")],
            mask=("m.png", b"m"),
            input_fidelity="high",
            output_format="webp",
        ),
    ),
    "a streamed edit": (
        "image_edits",
        lambda c, n: read(redraw(c, n, stream=True, partial_images=2, model="gpt-image-1-mini")),
    ),
    "a transcription by the second": (
        "transcriptions",
        lambda c, n: hear(
            c,
            n,
            "whisper-1",
            response_format="verbose_json",
            prompt="\u00e4h",
            temperature=0.5,
            timestamp_granularities=["word", "segment"],
            told={"input_tokens": 99},
        ),
    ),
    "a transcription by its tokens": (
        "transcriptions",
        lambda c, n: hear(
            c,
            n,
            "gpt-4o-transcribe",
            prompt="names: \u00c5sa",
            include=["logprobs"],
            told={"input_tokens": 14_999, "output_tokens": 1999},
        ),
    ),
    "a streamed transcription": (
        "transcriptions",
        lambda c, n: read(hear(c, n, "gpt-4o-mini-transcribe", stream=True)),
    ),
    "a streamed transcription, compressed": (
        "transcriptions",
        lambda c, n: read(
            hear(
                c,
                n,
                "gpt-4o-transcribe",
                stream=True,
                told={"content_encoding": "gzip", "newline": "crlf", "pad_bytes": 90_000},
            )
        ),
    ),
    "a transcription of a long sound": (
        "transcriptions",
        lambda c, n: hear(c, n, "gpt-transcribe", file=("long.flac", b"-\r\n-[,{" * 500_000)),
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_is_settled_at_the_providers_own_bill(sidecar: Sidecar, bot: str, what: str) -> None:
    endpoint, make = CALLS[what]
    make(sidecar.openai(bot), bot)
    assert_spent_is_the_bill(sidecar, bot, endpoint)


def test_speech_is_settled_by_its_characters(sidecar: Sidecar, bot: str) -> None:
    words = "Good morning. " * 20
    sound = sidecar.openai(bot).audio.speech.create(model="tts-1", voice="alloy", input=words)
    assert sound.read().startswith(b"ID3")
    line = settled(sidecar, bot)
    assert line["endpoint"] == "speech"
    (billed,) = (line for line in sidecar.sandbox.bill()["lines"] if line["model"] == "tts-1")
    assert sidecar.balance(bot) == (int(billed["cost_nanousd"]), 0)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by the SDK
@pytest.mark.parametrize(
    "make",
    [
        lambda c, **more: c.audio.translations.create(**more).text,
        lambda c, **more: c.audio.transcriptions.create(response_format="srt", **more),
    ],
    ids=["a translation", "subtitles"],
)
def test_what_was_heard_without_telling_how_long_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, make: Callable[..., str]
) -> None:
    client, headers = sidecar.openai(bot), script(agent=bot)
    said = make(client, file=("a.mp3", b"ID3"), model="whisper-1", extra_headers=headers)
    assert said == "This answer was made in a sandbox."
    line = settled(sidecar, bot)
    assert (line["outcome"], line["exactness"]) == ("settled", "unknown")
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def test_sound_that_is_longer_than_the_config_says_is_charged_whole(
    sidecar: Sidecar, bot: str
) -> None:
    hear(sidecar.openai(bot), bot, "whisper-1", told={"input_tokens": 900})
    line = settled(sidecar, bot)
    held, charged = 600 * 100_000, 900 * 100_000
    assert nanousd(line["estimate_usd"]) == held
    assert sidecar.balance(bot) == (charged, 0)
    assert sidecar.sandbox.total_nanousd(bot) == charged
    assert nanousd(line["overshoot_usd"]) == charged - held


def test_sound_that_is_billed_by_the_second_is_refused_where_the_config_bounds_no_seconds(
    sidecar: Sidecar, bot: str
) -> None:
    client = sidecar.openai(bot, base_url=f"{sidecar.egress}/project/v1")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        hear(client, bot, "whisper-1")
    assert caught.value.code == "unmetered_endpoint"
    assert "providers.project.max_audio_seconds" in caught.value.message
    assert hear(client, bot, "gpt-4o-mini-transcribe").text


def test_models_and_moderations_are_free(sidecar: Sidecar, bot: str) -> None:
    client = sidecar.openai(bot)
    assert client.models.list().data
    assert client.models.retrieve("gpt-4o-mini").id
    assert client.moderations.create(input="hello").model
    sidecar.until_settled()
    assert sidecar.balance(bot) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_response_that_the_provider_refused_costs_nothing(
    sidecar: Sidecar, bot: str, status: int, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        respond(sidecar.openai(bot), bot, stream=stream, extra_headers=script(status=status))
    assert caught.value.status_code == status
    assert settled(sidecar, bot)["outcome"] == "released"
    assert sidecar.balance(bot) == (0, 0)


@pytest.mark.parametrize("ending", ["no-usage", "error-event", "reset"])
def test_a_streamed_response_that_never_told_its_usage_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, ending: str
) -> None:
    with contextlib.suppress(openai.OpenAIError, httpx2.HTTPError):  # however the SDK takes it
        read(respond(sidecar.openai(bot), bot, stream=True, extra_headers=script(ending=ending)))
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot)


@pytest.mark.parametrize("ending", ["no-usage", "error-event", "reset"])
@pytest.mark.parametrize("make", [hear, redraw])
def test_a_streamed_form_that_never_told_its_usage_is_charged_its_reservation(
    sidecar: Sidecar, bot: str, ending: str, make: Callable[..., Any]
) -> None:
    client = sidecar.openai(bot, default_headers=script(ending=ending))
    fields = {"model": "gpt-4o-mini-transcribe"} if make is hear else {}
    with contextlib.suppress(openai.OpenAIError, httpx2.HTTPError):  # however the SDK takes it
        read(make(client, bot, stream=True, **fields))
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def test_hanging_up_in_the_middle_of_a_response_saves_nothing(sidecar: Sidecar, bot: str) -> None:
    headers = script(chunk_delay_ms=300, chunks=20)
    with respond(sidecar.openai(bot), bot, stream=True, extra_headers=headers) as stream:
        next(iter(stream))
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


def test_hanging_up_at_the_last_event_of_a_response_is_settled_exactly(
    sidecar: Sidecar, bot: str
) -> None:
    with respond(sidecar.openai(bot), bot, stream=True) as stream:
        for event in stream:
            if event.type == "response.completed":
                break
    assert_spent_is_the_bill(sidecar, bot, "responses")


@pytest.mark.parametrize(
    "fields",
    [
        {"background": True},
        {"tools": [{"type": "web_search"}]},
        {"prompt": {"id": "pmpt_1"}},
        {"extra_body": {"nobody_knows": 1}},
    ],
    ids=str,
)
def test_a_response_that_nothing_bounds_never_leaves(
    sidecar: Sidecar, bot: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        respond(sidecar.openai(bot), bot, **fields)
    assert caught.value.code == "unmetered_endpoint"
    assert sidecar.sandbox.total_nanousd(bot) == 0
    assert sidecar.balance(bot) == (0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.batches.create(
            input_file_id="f", endpoint="/v1/responses", completion_window="24h"
        ),
        lambda c: c.files.create(file=b"x", purpose="batch"),
        lambda c: c.fine_tuning.jobs.create(model="gpt-4o", training_file="f"),
        lambda c: c.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="batch"),
        lambda c: c.responses.retrieve("resp_1"),
        lambda c: c.conversations.create(),
        lambda c: c.vector_stores.create(),
        lambda c: c.realtime.client_secrets.create(),
    ],
)
def test_an_endpoint_that_is_not_in_the_table_is_refused(
    sidecar: Sidecar, bot: str, make: Callable[[openai.OpenAI], Any]
) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        make(sidecar.openai(bot))
    assert caught.value.code == "unmetered_endpoint"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by the SDK
def test_an_upload_that_the_config_allows_has_its_fixed_price(sidecar: Sidecar, bot: str) -> None:
    drawn = sidecar.openai(bot).images.create_variation(image=b"x", model="dall-e-2")
    assert drawn.data
    line = settled(sidecar, bot)
    assert (line["endpoint"], line["price_version"]) == ("fixed_price", "config")
    assert sidecar.balance(bot) == (VARIATION_NANOUSD, 0)


def azure(sidecar: Sidecar, name: str) -> openai.AzureOpenAI:
    client = openai.AzureOpenAI(
        api_key=key_of(name),
        azure_endpoint=f"{sidecar.egress}/azure",
        api_version="2024-10-21",
        max_retries=0,
    )
    return sidecar.clients.enter_context(client)


@pytest.mark.parametrize("stream", [False, True])
def test_a_deployment_at_azure_is_settled_at_the_price_of_its_model(
    sidecar: Sidecar, bot: str, stream: bool
) -> None:
    answer = azure(sidecar, bot).chat.completions.create(
        model="my-gpt", messages=HELLO, max_tokens=50, user=bot, stream=stream
    )
    if stream:
        read(answer)
    assert_spent_is_the_bill(sidecar, bot, "chat")
    assert settled(sidecar, bot)["model"] == "gpt-4o-mini"


def test_azures_newer_paths_name_the_deployment_in_the_body(sidecar: Sidecar, bot: str) -> None:
    client = sidecar.openai(bot, base_url=f"{sidecar.egress}/azure/openai/v1")
    client.responses.create(model="my-gpt", input="hello", max_output_tokens=50, user=bot)
    assert_spent_is_the_bill(sidecar, bot, "responses")


def test_embeddings_at_azure_are_settled_too(sidecar: Sidecar, bot: str) -> None:
    azure(sidecar, bot).embeddings.create(model="my-embeddings", input="hello " * 500, user=bot)
    assert_spent_is_the_bill(sidecar, bot, "embeddings")


def test_a_deployment_that_the_config_does_not_name_never_leaves(
    sidecar: Sidecar, bot: str
) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        azure(sidecar, bot).chat.completions.create(model="other", messages=HELLO)
    assert caught.value.code == "unpriced_model"


def test_a_prompt_that_azure_refuses_is_charged_its_reservation(sidecar: Sidecar, bot: str) -> None:
    headers = script(status=400, billed_error=1)
    with pytest.raises(openai.BadRequestError):
        azure(sidecar, bot).chat.completions.create(
            model="my-gpt", messages=HELLO, max_tokens=50, user=bot, extra_headers=headers
        )
    line = settled(sidecar, bot)
    assert sidecar.balance(bot) == (nanousd(line["estimate_usd"]), 0)
    assert nanousd(line["estimate_usd"]) >= sidecar.sandbox.total_nanousd(bot) > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", COMPATIBLE)
def test_a_server_that_speaks_the_api_is_settled_at_its_configured_price(
    sidecar: Sidecar, bot: str, api: str, stream: bool
) -> None:
    client = sidecar.openai(bot, base_url=f"{sidecar.egress}/{api}/v1")
    headers = script(always_usage=1) if api in TELLS_UNASKED else {}
    answer = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=HELLO,
        max_tokens=50,
        user=bot,
        stream=stream,
        extra_headers=headers,
    )
    if stream:
        read(answer)
    assert_spent_is_the_bill(sidecar, bot, "chat")


def test_a_router_gets_the_highest_price_of_a_picture_and_every_other_byte_as_it_was_sent(
    sidecar: Sidecar, bot: str
) -> None:
    picture = b'{"type": "image_url",  "image_url": {"url": "https://a/b.png"}}'
    before = b'{ "model":"gpt-4o-mini", "max_tokens":5,\n "provider": {'
    after = b'"order" : ["x"]},"messages":[{"role":"user","content":[ ' + picture + b" ]}] }"
    limit = b'"max_price":{"prompt":0.15,"completion":0.60,"request":0,"image":0},'
    path = "/openrouter/v1/chat/completions"
    answer = send(sidecar, before + after, headers_of(bot), path=path)
    assert answer.status == 200
    request = received(sidecar.sandbox, answer.mark)
    assert request is not None
    assert request["body_sha256"] == sha256(before + limit + after).hexdigest()


@pytest.mark.parametrize(
    ("provider", "passes"), [("openai", set()), ("project", {"openai-project"})]
)
def test_who_pays_is_said_by_the_config_and_not_by_the_client(
    sidecar: Sidecar, bot: str, provider: str, passes: set[str]
) -> None:
    said = {"openai-organization", "openai-project", "x-goog-user-project"}
    headers = {
        "authorization": f"Bearer {key_of(bot)}",
        "content-type": "application/json",
        **dict.fromkeys(said, "proj_1"),
    }
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"x"}],"max_tokens":5}'
    answer = send(sidecar, body, headers, path=f"/{provider}/v1/chat/completions")
    assert answer.status == 200
    request = received(sidecar.sandbox, answer.mark)
    assert request is not None
    assert said.intersection(request["header_names"]) == passes


def test_a_project_that_the_config_does_not_allow_is_refused(sidecar: Sidecar, bot: str) -> None:
    client = sidecar.openai(bot, base_url=f"{sidecar.egress}/project/v1", project="other")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=5)
    assert caught.value.code == "unmetered_endpoint"


@pytest.mark.parametrize(
    ("beta", "passes"),
    [("interleaved-thinking-2025-05-14", True), ("context-1m-2025-08-07", False)],
)
def test_a_beta_passes_only_if_it_leaves_the_price_alone(
    sidecar: Sidecar, bot: str, beta: str, passes: bool
) -> None:
    def create() -> Any:
        return sidecar.anthropic(bot).beta.messages.create(
            model="claude-haiku-4-5", messages=HELLO, max_tokens=50, betas=[beta],
            metadata={"user_id": bot},
        )  # fmt: skip

    if passes:
        create()
        assert_spent_is_the_bill(sidecar, bot, "messages")
    else:
        with pytest.raises(Exception, match="anthropic-beta"):
            create()
