"""One call by the official SDK of Gemini, Bedrock or Cohere, and what its caller is told.

Those of OpenAI and Anthropic are `Sidecar.openai` and `Sidecar.anthropic`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
import cohere
import httpx
from botocore.config import Config
from botocore.exceptions import ClientError
from cohere.core import ApiError
from google import genai
from google.genai import errors
from sidecar import Sidecar, key_of

from extauthz.sandbox.app import DEFAULT_GOOGLE_KEY
from extauthz.sandbox.sigv4 import ACCESS_KEY_ID, SECRET_ACCESS_KEY

SELLERS = {"gemini": "google", "bedrock": "aws", "cohere": "cohere"}
"""The sandbox's names of those who sell behind each provider of the config."""


@dataclass(frozen=True, slots=True)
class Told:
    """How a call ended for its caller."""

    status: int
    headers: Mapping[str, str]
    error: str = ""
    """what the SDK calls it"""

    @property
    def cap(self) -> int | None:
        """The cap that was written into it."""
        cap = self.headers.get("x-budget-output-cap")
        return None if cap is None else int(cap)

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-budget-reason")


def add_providers(sidecar: Sidecar) -> None:
    """Put them into the config of a sidecar that is not started yet."""
    sidecar.env |= {
        "SANDBOX_GOOGLE_CREDENTIAL": DEFAULT_GOOGLE_KEY,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    }
    credentials = {
        "gemini": {"env": "SANDBOX_GOOGLE_CREDENTIAL"},
        "bedrock": {"aws_region": "us-east-1"},
        "cohere": {"env": "SANDBOX_OPENAI_CREDENTIAL"},
    }
    sidecar.config["providers"] |= {
        name: {"api": name, "upstream": sidecar.sandbox.base_url, "credential": credential}
        for name, credential in credentials.items()
    }


def _script(name: str, script: Mapping[str, Any]) -> dict[str, str]:
    headers = {f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in script.items()}
    return {"x-sandbox-agent": name, **headers}


def _gemini(sidecar: Sidecar, name: str, attempts: int | None) -> Callable[..., Told]:
    retries: Any = {} if attempts is None else {"retry_options": {"attempts": attempts}}
    client = genai.Client(
        api_key=key_of(name),
        vertexai=False,
        http_options={"base_url": f"{sidecar.egress}/gemini", **retries},
    )
    sidecar.clients.callback(client.close)

    def call(model: str, cap: int | None, script: Mapping[str, Any], **fields: Any) -> Told:
        config = {"max_output_tokens": cap, "http_options": {"headers": _script(name, script)}}
        try:
            answer = client.models.generate_content(
                model=model, contents="hello", config={**config, **fields}
            )
        except errors.APIError as error:
            return Told(error.code, error.response.headers, str(error.status))
        return Told(200, answer.sdk_http_response.headers)

    return call


def _bedrock(sidecar: Sidecar, name: str, attempts: int | None) -> Callable[..., Told]:
    client = boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        aws_access_key_id=key_of(name),
        aws_secret_access_key="any",
        endpoint_url=f"{sidecar.egress}/bedrock",
        config=Config(
            read_timeout=60,
            max_pool_connections=20,
            retries=None if attempts is None else {"total_max_attempts": attempts},
        ),
    )
    sidecar.clients.callback(client.close)
    scripted: dict[str, str] = {}
    client.meta.events.register(
        "before-send.bedrock-runtime.*", lambda request, **_: request.headers.update(scripted)
    )

    def call(model: str, cap: int | None, script: Mapping[str, Any], **fields: Any) -> Told:
        scripted.update(_script(name, script))
        config = {} if cap is None else {"inferenceConfig": {"maxTokens": cap}}
        hello: Any = [{"role": "user", "content": [{"text": "hello"}]}]
        try:
            answer = client.converse(modelId=model, messages=hello, **config, **fields)
        except ClientError as error:
            told = error.response["ResponseMetadata"]
            kind = error.response["Error"]["Code"]
            return Told(told["HTTPStatusCode"], told["HTTPHeaders"], kind)
        return Told(200, answer["ResponseMetadata"]["HTTPHeaders"])

    return call


def _cohere(sidecar: Sidecar, name: str, attempts: int | None) -> Callable[..., Told]:
    http = sidecar.clients.enter_context(httpx.Client(timeout=60))  # else nothing closes its own
    client = cohere.ClientV2(
        api_key=key_of(name), base_url=f"{sidecar.egress}/cohere", httpx_client=http
    )
    retries: Any = {} if attempts is None else {"max_retries": attempts - 1}

    def call(model: str, cap: int | None, script: Mapping[str, Any], **fields: Any) -> Told:
        given: Any = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        given["thinking"] = {"type": "disabled"}  # (else what a model may think is held beside)
        if cap is not None:
            given["max_tokens"] = cap
        options: Any = {"additional_headers": _script(name, script), **retries}
        try:
            answer = client.with_raw_response.chat(**given, request_options=options)
        except ApiError as error:
            return Told(error.status_code or 0, error.headers or {}, type(error).__name__)
        return Told(200, answer.headers)

    return call


_CALLERS = {"gemini": _gemini, "bedrock": _bedrock, "cohere": _cohere}


def caller(
    sidecar: Sidecar, provider: str, name: str, *, attempts: int | None = 1
) -> Callable[..., Told]:
    """A function of model, cap, the sandbox's script, and further fields of the SDK's own.

    `attempts` are those of the SDK's own retry logic; None: as it comes.
    """
    return _CALLERS[provider](sidecar, name, attempts)
