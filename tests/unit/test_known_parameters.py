"""Every parameter that is let through is one that the provider's own SDK knows: none is made up."""

import inspect
from collections.abc import Iterable

import cohere
import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params
from botocore.session import Session
from google.genai import types as google
from mistralai.client.models import ChatCompletionRequest
from openai.types import completion_create_params, embedding_create_params
from openai.types.audio import (
    speech_create_params,
    transcription_create_params,
    translation_create_params,
)
from openai.types.chat import completion_create_params as chat_params
from openai.types.image_edit_params import ImageEditParamsBase
from openai.types.image_generate_params import ImageGenerateParamsBase
from openai.types.responses import response_create_params

from extauthz.providers import cohere as cohere_adapter
from extauthz.providers.anthropic import messages
from extauthz.providers.bedrock import converse
from extauthz.providers.camel_json import camel
from extauthz.providers.compatible import _TABLE
from extauthz.providers.gemini import contents, generate
from extauthz.providers.openai import (
    chat,
    completions,
    embeddings,
    image_edits,
    images,
    responses,
    speech,
    transcriptions,
)

STREAM = {"stream"}


def typed(*dicts: type) -> set[str]:
    return {key for one in dicts for key in one.__annotations__}


def names(form: frozenset[str]) -> set[str]:
    """Those of a form, in which a list has brackets behind its name."""
    return {name.removesuffix("[]") for name in form}


def fields(*models: type) -> set[str]:
    return {camel(key) for one in models for key in one.model_fields}  # type: ignore[attr-defined]


def bedrocks(shape: str) -> set[str]:
    return set(Session().get_service_model("bedrock-runtime").shape_for(shape).members)


GENERATION = fields(google.GenerationConfig, google.GenerateContentConfig)
CASES: dict[str, tuple[Iterable[str], set[str]]] = {
    "openai chat": (
        chat._PARAMETERS,
        typed(chat_params.CompletionCreateParamsBase) | STREAM,
    ),
    "openai responses": (
        responses._PARAMETERS,
        typed(response_create_params.ResponseCreateParamsBase) | STREAM,
    ),
    "openai completions": (
        completions._PARAMETERS,
        typed(completion_create_params.CompletionCreateParamsBase) | STREAM,
    ),
    "openai embeddings": (
        embeddings._PARAMETERS,
        typed(embedding_create_params.EmbeddingCreateParams),
    ),
    "openai images": (images._PARAMETERS, typed(ImageGenerateParamsBase) | STREAM),
    "openai image edits": (
        names(image_edits._FIELDS | image_edits._FILES), typed(ImageEditParamsBase) | STREAM
    ),
    "openai transcriptions": (
        names(transcriptions._FIELDS | transcriptions._FILES),
        typed(transcription_create_params.TranscriptionCreateParamsBase) | STREAM,
    ),
    "openai translations": (
        names(transcriptions._TRANSLATION_FIELDS | transcriptions._FILES),
        typed(translation_create_params.TranslationCreateParams),
    ),
    "openai speech": (speech._PARAMETERS, typed(speech_create_params.SpeechCreateParams)),
    "anthropic messages": (
        messages._PARAMETERS,
        typed(
            message_create_params.MessageCreateParamsBase, beta_params.MessageCreateParamsBase
        ) | {"temperature", "top_k", "top_p", "output_format"},  # documented, and typed before
    ),
    "mistral chat": (_TABLE["mistral"].dialect.parameters, set(ChatCompletionRequest.model_fields)),
    "cohere chat": (
        cohere_adapter._PARAMETERS,
        set(inspect.signature(cohere.ClientV2.chat_stream).parameters) | STREAM,
    ),
    "cohere embed": (
        cohere_adapter._EMBED_PARAMETERS, set(inspect.signature(cohere.ClientV2.embed).parameters)
    ),
    "gemini's generation config": (generate._GENERATION, GENERATION),
    "gemini's parts": (contents._PART, fields(google.Part)),
    "gemini's function responses": (contents._RESPONSE, fields(google.FunctionResponse)),
    "bedrock converse": (
        converse._PARAMETERS,
        bedrocks("ConverseRequest") | bedrocks("ConverseStreamRequest"),
    ),
    "bedrock's inference config": (converse._INFERENCE, bedrocks("InferenceConfiguration")),
    "bedrock's content blocks": (converse._TEXT | converse._MEDIA, bedrocks("ContentBlock")),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_what_is_let_through_is_a_parameter_of_the_provider(what: str) -> None:
    ours, theirs = CASES[what]
    assert set(ours) <= theirs
