"""A CheckRequest as Envoy sends it, with its body: about 2.4 kB.

It has no `x-request-id`: load tools send the same bytes each time, and the id of a request decides
part of its reservation's id, so that calls of the same millisecond would be taken for one.
"""

import json
import struct

from extauthz.pb import ext_authz_pb2

PROVIDER, PATH, MODEL = "openai", "/v1/chat/completions", "gpt-4o-mini"
CHECK_PATH = "/envoy.service.auth.v3.Authorization/Check"
CONTENT_TYPE = "application/json"

_SYSTEM = (
    "You are a support assistant of a shop for outdoor equipment. Answer in the customer's own "
    "language, in at most three short paragraphs, and name the article number of whatever you "
    "recommend. Never promise a delivery date. If the customer wants to return something, ask for "
    "the order number first, and say that a return label will be sent by e-mail. "
)
_QUESTION = (
    "Hello, I bought the two-person tent last spring, and on our first trip this year the zip of "
    "the inner tent jammed and then tore out of its seam. Is this covered by the guarantee, and "
    "how do I send it back? I no longer have the original packaging."
)


def body(**fields: object) -> bytes:
    """A chat completion as an SDK writes it."""
    request = {
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _QUESTION},
        ],
        "model": MODEL,
        "max_tokens": 500,
        "temperature": 0.2,
        "user": "customer-48213",
        **fields,
    }
    return json.dumps(request).encode()


def headers(key: str) -> dict[str, str]:
    """What the OpenAI SDK sends."""
    return {
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "authorization": f"Bearer {key}",
        "content-type": CONTENT_TYPE,
        "user-agent": "OpenAI/Python 3.2.0",
        "x-stainless-arch": "x64",
        "x-stainless-async": "false",
        "x-stainless-lang": "python",
        "x-stainless-os": "Linux",
        "x-stainless-package-version": "3.2.0",
        "x-stainless-read-timeout": "600",
        "x-stainless-retry-count": "0",
        "x-stainless-runtime": "CPython",
        "x-stainless-runtime-version": "3.13.1",
    }


def check_request(
    key: str, request_id: str = "", content: bytes | None = None
) -> ext_authz_pb2.CheckRequest:
    """What Envoy asks of such a call."""
    content = body() if content is None else content
    request = ext_authz_pb2.CheckRequest()
    request.attributes.context_extensions["provider"] = PROVIDER
    http = request.attributes.request.http
    http.id, http.method = "10374586093211754386", "POST"
    http.path = f"/{PROVIDER}{PATH}"
    http.size, http.raw_body = len(content), content
    pseudo = {":authority": "127.0.0.1:10000", ":method": "POST", ":path": http.path}
    pseudo |= {":scheme": "http", "content-length": str(len(content))}
    pseudo |= {"x-request-id": request_id} if request_id else {}
    for name, value in (pseudo | headers(key)).items():
        http.headers[name] = value
    return request


def frame(message: bytes) -> bytes:
    """A message as gRPC has it in an HTTP/2 body: not compressed, its length, itself."""
    return struct.pack("!BI", 0, len(message)) + message
