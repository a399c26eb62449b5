"""`api: bedrock`: models at AWS, https://docs.aws.amazon.com/bedrock/latest/APIReference/.

The agent sends its virtual key as its access key id, with any secret, or as a bearer token
(`AWS_BEARER_TOKEN_BEDROCK`, which AWS's SDKs send over HTTPS only). Its signature is taken off.
"""

from extauthz.providers.base import Adapter, billed, free
from extauthz.providers.bedrock import converse, invoke
from extauthz.providers.bedrock.refusals import refusal_body, refusal_headers

# A model's or an inference profile's id. ARNs have a slash, whose escape Envoy refuses in any path.
_MODEL = r"/model/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]*((:|%3[Aa])[A-Za-z0-9._-]+){0,2})"

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
        billed(
            "invoke",
            _MODEL + "/invoke",
            lambda request: invoke.read_request(request, stream=False),
            invoke.read_usage,
            cap_fields=invoke.CAP_FIELDS,
        ),
        billed(
            "invoke_stream",
            _MODEL + "/invoke-with-response-stream",
            lambda request: invoke.read_request(request, stream=True),
            invoke.read_usage,
            cap_fields=invoke.CAP_FIELDS,
        ),
        free("count_tokens", "POST", _MODEL + "/count-tokens"),
    ),
    refusal_body=refusal_body,
    refusal_headers=refusal_headers,
    exhausted_status=402,  # botocore asks again after a 429, up to four times
)
