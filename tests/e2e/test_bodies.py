"""What an agent sends is what the provider gets, byte for byte, or it is refused whole."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from calls import (
    CHAT,
    CLAUDE,
    GPT,
    HELLO,
    MESSAGES,
    Answer,
    chat,
    headers_of,
    message,
    post,
    received,
    send,
)
from sidecar import Sidecar, agent, running_sidecar

MB = 1_000_000
BODY_BYTES_MAX = 32 * 1024 * 1024
SPLICE = b'"stream_options":{"include_usage":true},'


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents = agent("bot", "100000.00") | agent("capped", "1.00", default_output_tokens=77)
    with running_sidecar(agents=agents) as running:
        yield running


def assert_received(sidecar: Sidecar, answer: Answer, body: bytes) -> None:
    """The call was answered, and this is what the provider got."""
    assert answer.status == 200, answer.body[:300]
    seen = received(sidecar.sandbox, answer.mark)
    assert seen is not None
    assert seen["body_bytes"] == len(body)
    assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()


def long_chat(size: int, **fields: Any) -> bytes:
    """A chat completion of about so many bytes whose model stands at its very end."""
    text = 'He said: "the model is \\"gpt-4o\\", {not} [that]". é 😀 ' * (size // 60 + 1)
    messages = [{"role": "user", "content": text[: size - 500]}]
    body = {"messages": messages, "max_tokens": 50, **fields, "model": GPT}
    return json.dumps(body, ensure_ascii=False).encode()


ODD = (
    b'\r\n\t {"max_tokens" :50 , "temperature":1.0e0,"seed":9007199254740993,"top_p":1E-0,\n'
    b'"stop":[-0,0.10,1e5,123456789012345678901234567890], "metadata":{"b":1,"a":[[],{},[[]]],'
    b'"":""},'
    b'"messages":[{"content":"h\\u00e9\\/\\ud83d\\ude00 \xc3\xa9 \xf0\x9f\x98\x80 \x7f \\n","role" '
    b':"user"}],   "model":"gpt\\u002d4o-mini" }\n \t'
)
WHOLE = {
    "small": json.dumps(chat()).encode(),
    "odd spacing, order, numbers and escapes": ODD,
    "nested as deep as strict JSON readers go": json.dumps(chat(metadata=0))
    .replace('"metadata": 0', '"metadata": ' + "[" * 150 + "]" * 150)
    .encode(),
    "one key in many objects": json.dumps(chat(messages=HELLO * 50)).encode(),
    "a stream that asks for its usage": json.dumps(
        chat(stream=True, stream_options={"include_usage": True})
    ).encode(),
    "a stream that asks for more": b'{"stream_options" : { "x" : 1, "include_usage" : true },'
    b'"stream":true,"max_tokens":9,"model":"gpt-4o-mini","messages":[{"role":"user","content":""}]}',
    "options without a stream": json.dumps(chat(stream=False, stream_options=None)).encode(),
    "3 MB": long_chat(3 * MB),
    "3 MB, a stream": long_chat(3 * MB, stream=True, stream_options={"include_usage": True}),
    "20 MB": long_chat(20 * MB),
}


def when_read(ask: Callable[[], Answer]) -> Answer:
    """The answer once the host had the time to read a large body; before, it says: try again."""
    for _ in range(30):
        answer = ask()
        if answer.reason != "service_unavailable":
            return answer
        assert (answer.status, answer.headers["x-should-retry"]) == (503, "true")
    return answer


@pytest.mark.parametrize("case", WHOLE)
def test_a_body_that_needs_no_change_arrives_as_it_was_sent(sidecar: Sidecar, case: str) -> None:
    answer = when_read(lambda: post(sidecar, "bot", WHOLE[case]))

    assert_received(sidecar, answer, WHOLE[case])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("size", [100, 3 * MB, 20 * MB])
def test_a_message_arrives_as_it_was_sent(sidecar: Sidecar, size: int, stream: bool) -> None:
    fields = message(messages=[{"role": "user", "content": "é " * (size // 3)}], stream=stream)
    body = json.dumps(fields, ensure_ascii=False).encode()

    assert_received(sidecar, when_read(lambda: post(sidecar, "bot", body, path=MESSAGES)), body)


def test_a_body_of_32_mib_is_read_and_one_more_byte_is_too_much(sidecar: Sidecar) -> None:
    body = with_text(b"x" * 30 * MB)
    body = body[:-1] + b" " * (BODY_BYTES_MAX - len(body)) + b"}"

    assert_received(sidecar, when_read(lambda: post(sidecar, "bot", body)), body)
    assert post(sidecar, "bot", b" " + body).status == 413


def test_a_body_that_says_no_length_is_no_larger_for_that(sidecar: Sidecar) -> None:
    """Envoy cuts one for Check that had to wait for the question who calls, and sends on all."""
    body = with_text(b"x" * 30 * MB)
    whole = body[:-1] + b" " * (BODY_BYTES_MAX - len(body)) + b"}"

    answer = when_read(lambda: send(sidecar, pieces(whole), headers_of("bot")))
    assert_received(sidecar, answer, whole)
    refused = send(sidecar, pieces(whole[:-1] + b' ,"n":9}'), headers_of("bot"))
    assert (refused.status, refused.reason) == (413, "body_too_large")
    assert received(sidecar.sandbox, refused.mark) is None


def pieces(body: bytes) -> Iterator[bytes]:
    return (body[at : at + 65536] for at in range(0, len(body), 65536))


_BEFORE = b'{"model":"gpt-4o-mini","max_tokens":9,'
_AFTER = b'"stream":true,"messages":[{"role":"user","content":"hi"}]}'
_NAMESAKES = b'{"o":{"include_usage":false,"stream_options":{}}, "include_usage":%s ,"p":"}"}'
_DECOYS = (
    b'{"messages":[{"role":"user","content":"\\"stream_options\\":{\\\\","stream_options":null,'
    b'"x":[{"stream_options":{"include_usage":false}}]}],"model":"gpt-4o-mini","max_tokens":9,'
    b'"stream":true,'
)
SPLICED = {
    "none": (_BEFORE + _AFTER, b"{" + SPLICE + _BEFORE[1:] + _AFTER),
    "none, after blanks": (
        b" \n" + _BEFORE.replace(b"{", b"{  ") + _AFTER,
        b" \n{" + SPLICE + b"  " + _BEFORE[1:] + _AFTER,
    ),
    **{
        what: (
            _BEFORE + b'"stream_options" :' + before + b"," + _AFTER,
            _BEFORE + b'"stream_options" :' + after + b"," + _AFTER,
        )
        for what, before, after in (
            ("null", b" null ", b' {"include_usage":true} '),
            ("empty", b"{ }", b'{"include_usage":true}'),
            ("false", b'{"include_usage": false}', b'{"include_usage": true}'),
            ("usage null", b'{"include_usage":\tnull\n}', b'{"include_usage":\ttrue\n}'),
            ("other", b'{"other":1}', b'{"include_usage":true,"other":1}'),
            (
                "nested namesakes",
                _NAMESAKES % b"false",
                _NAMESAKES % b"true",
            ),
        )
    },
    "decoys before it": (
        _DECOYS + b'"stream_options":{"include_usage":false}}',
        _DECOYS + b'"stream_options":{"include_usage":true}}',
    ),
    "an escaped key": (
        _BEFORE + b'"stream\\u005foptions":null,' + _AFTER,
        _BEFORE + b'"stream\\u005foptions":{"include_usage":true},' + _AFTER,
    ),
}


@pytest.mark.parametrize("case", SPLICED)
def test_a_stream_is_asked_for_its_usage_and_no_other_byte_changes(
    sidecar: Sidecar, case: str
) -> None:
    sent, wanted = SPLICED[case]

    answer = post(sidecar, "bot", sent)

    assert_received(sidecar, answer, wanted)
    assert b'"usage":{' not in answer.body  # (which the client did not ask for)


@pytest.mark.parametrize("size", [3 * MB, 20 * MB])
def test_a_long_stream_is_asked_for_its_usage_and_no_other_byte_changes(
    sidecar: Sidecar, size: int
) -> None:
    body = long_chat(size, stream=True)

    answer = when_read(lambda: post(sidecar, "bot", body))
    assert_received(sidecar, answer, b"{" + SPLICE + body[1:])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("size", [1000, 3 * MB])
def test_a_chunked_upload_arrives_as_it_was_sent_but_for_the_splice(
    sidecar: Sidecar, size: int, stream: bool
) -> None:
    body = long_chat(size, stream=stream)
    pieces = (body[at : at + 60_001] for at in range(0, len(body), 60_001))

    answer = send(sidecar, pieces, headers_of("bot"))

    assert_received(sidecar, answer, b"{" + SPLICE + body[1:] if stream else body)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("path", "key", "fields"),
    [
        (CHAT, b"max_completion_tokens", {"model": GPT, "messages": HELLO}),
        (MESSAGES, b"max_tokens", {"model": CLAUDE, "messages": HELLO}),
    ],
    ids=["openai", "anthropic"],
)
def test_a_call_without_a_cap_gets_the_agents_own_and_no_other_byte_changes(
    sidecar: Sidecar, path: str, key: bytes, fields: dict[str, Any], stream: bool
) -> None:
    sent = json.dumps(fields | {"stream": stream}).encode()
    usage = SPLICE if stream and path == CHAT else b""

    answer = post(sidecar, "capped", sent, path=path, x_sandbox_output_tokens="1000")

    assert_received(sidecar, answer, b"{" + usage + b'"' + key + b'":77,' + sent[1:])
    assert (b'"finish_reason":"length"' if usage else b'_tokens":77') in answer.body


def test_a_cap_that_stands_as_null_is_written_in_its_place(sidecar: Sidecar) -> None:
    sent = raw(max_completion_tokens=" null").replace(b'"max_tokens":50,', b"")

    answer = post(sidecar, "capped", sent)

    assert_received(sidecar, answer, sent.replace(b"null", b"77"))


def test_a_cap_of_the_clients_own_stays(sidecar: Sidecar) -> None:
    sent = json.dumps(chat(max_tokens=5)).encode()

    assert_received(sidecar, post(sidecar, "capped", sent), sent)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-encoding": "identity"},
        {"content-type": "application/json; charset=UTF-8"},
        {"content-type": 'application/json;charset="utf-8"'},
        {"content-type": "text/plain"},
        {"content-type": ""},
    ],
    ids=str,
)
def test_a_plain_body_passes_under_any_name(sidecar: Sidecar, headers: dict[str, str]) -> None:
    body = json.dumps(chat()).encode()

    assert_received(sidecar, send(sidecar, body, headers_of("bot") | headers), body)


def test_the_model_is_found_after_megabytes_of_messages(sidecar: Sidecar) -> None:
    answer = when_read(lambda: post(sidecar, "bot", long_chat(3 * MB)))

    (line,) = (
        line
        for line in sidecar.log_lines("decision")
        if line["decision_id"] == answer.headers["x-budget-decision-id"]
    )
    assert line["model"] == GPT


def raw(**fields: str) -> bytes:
    """A chat completion with some fields as raw JSON texts."""
    members = {"model": f'"{GPT}"', "messages": json.dumps(HELLO), "max_tokens": "50"} | fields
    return ("{" + ",".join(f'"{key}":{value}' for key, value in members.items()) + "}").encode()


def with_text(content: bytes) -> bytes:
    return raw(messages='[{"role":"user","content":"@"}]').replace(b"@", content)


AMBIGUOUS = {
    "keys that differ in case only": raw(Model='"gpt-4o"'),
    "the model twice": raw()[:-1] + b',"model":"gpt-4o"}',
    "the model twice, one escaped": raw()[:-1] + b',"mod\\u0065l":"gpt-4o"}',
    "the same twice": raw()[:-1] + b',"max_tokens":50}',
    "twice in a message": raw(messages='[{"role":"user","content":"a","content":"b"}]'),
    "twice deep inside": raw(metadata='{"a":[{"b":{"c":1,"d":2,"c":3}}]}'),
    "twice in a tool's schema": raw(
        tools='[{"type":"function","function":{"name":"f","parameters":{"x":1,"x":1}}}]'
    ),
    "an empty key twice": raw(metadata='{"":1,"":2}'),
    "the model twice in the tail of 3 MB": long_chat(3 * MB)[:-1] + b',"model":"gpt-4o"}',
    "the cap twice in the tail of 20 MB": long_chat(20 * MB)[:-1] + b',"max_tokens":9000}',
}
UNPARSEABLE = {
    "empty": b"",
    "blank": b" \n",
    "a list": b"[" + raw() + b"]",
    "a string": json.dumps(raw().decode()).encode(),
    "null": b"null",
    "cut off": raw()[:-1],
    "something behind it": raw() + b"x",
    "another document behind it": raw() + raw(),
    "a NUL behind it": raw() + b"\0",
    "a byte order mark": b"\xef\xbb\xbf" + raw(),
    "utf-16": raw().decode().encode("utf-16"),
    "utf-16le": raw().decode().encode("utf-16-le"),
    "utf-32": raw().decode().encode("utf-32"),
    "latin-1": with_text("é".encode("latin-1")),
    "an overlong slash": with_text(b"\xc0\xaf"),
    "a surrogate in utf-8": with_text(b"\xed\xa0\x80"),
    "half a character": with_text(b"\xf0\x9f\x98"),
    "a lone surrogate": with_text(b"\\ud800"),
    "surrogates the wrong way round": with_text(b"\\udc00\\ud800"),
    "a line break in a string": with_text(b"\n"),
    "an unknown escape": with_text(b"\\x41"),
    "NaN": raw(temperature="NaN"),
    "Infinity": raw(temperature="Infinity"),
    "-Infinity": raw(temperature="-Infinity"),
    "1e999": raw(temperature="1e999"),
    "-1E+999, deep inside": raw(metadata='{"a":[1,{"b":[-1E+999]}]}'),
    "a number of 400 digits": raw(seed="9" * 400),
    "a number of 400 digits and a point": raw(temperature="9" * 400 + ".5"),
    "a leading zero": raw(max_tokens="050"),
    "a plus": raw(max_tokens="+50"),
    "hexadecimal": raw(max_tokens="0x32"),
    "a trailing comma": raw()[:-1] + b",}",
    "a comment": raw()[:-1] + b"/* */}",
    "single quotes": raw().replace(b'"', b"'"),
    "nested 10,000 deep": raw(metadata="[" * 10_000 + "]" * 10_000),
    "nested 1,000,000 deep": raw(metadata="[" * 1_000_000 + "]" * 1_000_000),
    "objects nested 10,000 deep": raw(metadata='{"a":' * 10_000 + "1" + "}" * 10_000),
    "more root keys than any API has": raw(**{f"key{i}": "0" for i in range(300)}),
    "compressed": gzip.compress(raw()),
    "no model": raw().replace(b'"model"', b'"mode"'),
    "a form": b"model=gpt-4o-mini&max_tokens=50",
    **{
        f"{field} {value}": raw(**{field: value})
        for field, values in {
            "model": ("null", "1", '""', '["gpt-4o-mini"]', '"' + "m" * 257 + '"'),
            "max_tokens": ("true", '"50"', "50.0", "5e1", "0", "-1", "[]", "1e30", "99999999999"),
            "max_completion_tokens": ("false", '"50"', "50.5", "-9"),
            "n": ("true", '"2"', "2.0", "0", "-1", "129", "1e2", "9223372036854775808"),
            "stream": ('"true"', "1", "[]"),
            "messages": ('{"0":{}}', '"hello"', "[1]", '["hello"]'),
            "tools": ("{}", '"x"'),
            "service_tier": ("1", "[]"),
        }.items()
        for value in values
    },
    **{
        f"stream_options {value}": raw(stream="true", stream_options=value)
        for value in ("[]", "1", '"x"', "true", '{"include_usage":"true"}', '{"include_usage":1}')
    },
}


def assert_refused(sidecar: Sidecar, answer: Answer, reason: str) -> None:
    assert (answer.status, answer.reason) == (400, reason), answer.body[:300]
    assert answer.error["code"] == reason
    assert answer.headers["x-should-retry"] == "false"
    assert received(sidecar.sandbox, answer.mark) is None


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_body_that_two_readers_may_read_in_two_ways_is_refused(
    sidecar: Sidecar, case: str
) -> None:
    assert_refused(sidecar, post(sidecar, "bot", AMBIGUOUS[case]), "ambiguous_body")


@pytest.mark.parametrize("case", UNPARSEABLE)
def test_a_body_that_is_not_strict_json_of_the_right_types_is_refused(
    sidecar: Sidecar, case: str
) -> None:
    assert_refused(sidecar, post(sidecar, "bot", UNPARSEABLE[case]), "unparseable_body")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model":"claude-haiku-4-5","max_tokens":9,"model":"claude-3-haiku"}', "ambiguous_body"),
        (b'{"model":"claude-haiku-4-5","max_tokens":true,"messages":[]}', "unparseable_body"),
        (b'{"model":"claude-haiku-4-5","max_tokens":9,"messages":[NaN]}', "unparseable_body"),
        (b"", "unparseable_body"),
    ],
)
def test_anthropics_bodies_are_read_as_strictly(sidecar: Sidecar, body: bytes, reason: str) -> None:
    answer = post(sidecar, "bot", body, path=MESSAGES)

    assert_refused(sidecar, answer, reason)
    assert json.loads(answer.body)["type"] == "error"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-encoding": "gzip"},
        {"content-encoding": "br"},
        {"content-encoding": "deflate"},
        {"content-encoding": "identity, gzip"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json; charset=utf-7"},
        {"content-type": 'application/json; Charset="UTF-7"'},
    ],
    ids=str,
)
@pytest.mark.parametrize("body", [raw(), gzip.compress(raw())], ids=["plain", "compressed"])
def test_a_body_that_the_provider_would_decode_first_is_refused(
    sidecar: Sidecar, headers: dict[str, str], body: bytes
) -> None:
    """Bytes that are JSON to Check and something else once inflated would hide what is bought."""
    answer = send(sidecar, body, headers_of("bot") | headers)

    assert_refused(sidecar, answer, "unparseable_body")


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES], ids=["openai", "anthropic"])
def test_35_mb_are_too_much(sidecar: Sidecar, path: str, chunked: bool) -> None:
    body = long_chat(35 * MB)

    answer = send(sidecar, iter([body]) if chunked else body, headers_of("bot"), path=path)

    assert (answer.status, answer.reason) == (413, "body_too_large")
    assert answer.error["code"] == "body_too_large"
    assert answer.headers["x-should-retry"] == "false"
    assert (json.loads(answer.body).get("type") == "error") == (path == MESSAGES)
    assert received(sidecar.sandbox, answer.mark) is None


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_sdk_with_35_mb_raises_its_status_error_without_a_retry(
    sidecar: Sidecar, provider: str
) -> None:
    messages: Any = [{"role": "user", "content": "x" * 35 * MB}]
    before = len(sidecar.sandbox.requests())

    if provider == "openai":
        with pytest.raises(openai.APIStatusError) as caught:
            sidecar.openai("bot", max_retries=2).chat.completions.create(
                model=GPT, messages=messages
            )
    else:
        with pytest.raises(anthropic.RequestTooLargeError) as caught:
            sidecar.anthropic("bot", max_retries=2).messages.create(
                model=CLAUDE, messages=messages, max_tokens=9
            )

    assert caught.value.status_code == 413
    assert caught.value.response.headers["x-budget-reason"] == "body_too_large"
    assert len(sidecar.sandbox.requests()) == before


def test_a_refusal_never_quotes_the_body(sidecar: Sidecar) -> None:
    bodies = [
        b'{"model":"gpt-4o-mini","tell-nobody":1,"tell-nobody":2}',
        b'{"model":"gpt-4o-mini","messages":[{"content":"tell-nobody\xff"}]}',
        b'{"model":"gpt-4o-mini","max_tokens":"tell-nobody"}',
        b"tell-nobody",
    ]

    answers = [post(sidecar, "bot", body) for body in bodies]

    assert not any(b"tell-nobody" in answer.body for answer in answers)
    assert "tell-nobody" not in sidecar.output


def test_at_the_end_spent_is_the_bill_and_nothing_is_held(sidecar: Sidecar) -> None:
    """Runs last: whatever was sent above, large, spliced or refused."""
    sidecar.until_settled()

    spent = sum(sidecar.balance(name)[0] for name in ("bot", "capped"))
    assert spent == sidecar.sandbox.total_nanousd()
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0
