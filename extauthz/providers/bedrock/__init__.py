"""`api: bedrock`: models at AWS, https://docs.aws.amazon.com/bedrock/latest/APIReference/.

The agent sends its virtual key as its access key id, with any secret, or as a bearer token
(`AWS_BEARER_TOKEN_BEDROCK`, which AWS's SDKs send over HTTPS only). Its signature is taken off.
"""

from collections.abc import Callable
from functools import partial

from extauthz.providers.base import Adapter, Endpoint, RequestFacts, UsageReader, billed, free
from extauthz.providers.bedrock import converse, invoke, native
from extauthz.providers.bedrock.refusals import refusal_body, refusal_headers

# A model's or an inference profile's id. ARNs have a slash, whose escape Envoy refuses in any path.
_MODEL = r"/model/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]*((:|%3[Aa])[A-Za-z0-9._-]+){0,2})"

# Models whose own bodies are known, also in the profile of a region. (Not those of Nova that speak
# or paint.)
_REST = r"[a-z0-9.-]*((:|%3[Aa])[A-Za-z0-9]+){0,2})"
_PROFILE = r"/model/(?P<model>([a-z-]+\.)?"
_NOVA = _PROFILE + r"amazon\.nova-(2-lite|lite|micro|premier|pro)-v" + _REST
_LLAMA = _PROFILE + r"meta\.llama[34]-" + _REST
_MISTRAL = _PROFILE + r"mistral\.(devstral|magistral|ministral|mistral|mixtral|pixtral)-" + _REST
_TITAN = _PROFILE + r"amazon\.titan-text-" + _REST
_TITAN_EMBEDDING = _PROFILE + r"amazon\.titan-embed-text-" + _REST


def _invoked(
    maker: str,
    path: str,
    read_request: Callable[..., RequestFacts],
    cap_fields: tuple[str, ...],
    read_usage: UsageReader = native.read_usage,
) -> tuple[Endpoint, Endpoint]:
    """A model's own body, whose answer may come as a stream."""
    whole, streamed = (partial(read_request, stream=stream) for stream in (False, True))
    return (
        billed(f"invoke{maker}", path + "/invoke", whole, read_usage, cap_fields=cap_fields),
        billed(
            f"invoke{maker}_stream",
            path + "/invoke-with-response-stream",
            streamed,
            read_usage,
            cap_fields=cap_fields,
        ),
    )


BEDROCK = Adapter(
    price_provider="aws",
    endpoints=(
        billed(
            "converse",
            _MODEL + "/converse",
            lambda request: converse.read_request(request, stream=False),
            converse.read_usage,
            cap_fields=converse.CAP_FIELDS,
        ),
        billed(
            "converse_stream",
            _MODEL + "/converse-stream",
            lambda request: converse.read_request(request, stream=True),
            converse.read_usage,
            cap_fields=converse.CAP_FIELDS,
        ),
        *_invoked("_nova", _NOVA, native.read_nova, native.NOVA_CAP_FIELDS),
        *_invoked("_llama", _LLAMA, native.read_llama, native.LLAMA_CAP_FIELDS),
        *_invoked("_mistral", _MISTRAL, native.read_mistral, native.MISTRAL_CAP_FIELDS),
        *_invoked("_titan", _TITAN, native.read_titan, native.TITAN_CAP_FIELDS),
        billed(
            "invoke_embedding",
            _TITAN_EMBEDDING + "/invoke",
            native.read_embedding,
            native.read_input_usage,
        ),
        *_invoked("", _MODEL, invoke.read_request, invoke.CAP_FIELDS, invoke.read_usage),
        free("count_tokens", "POST", _MODEL + "/count-tokens"),
    ),
    refusal_body=refusal_body,
    refusal_headers=refusal_headers,
    exhausted_status=402,  # botocore asks again after a 429, up to four times
)
