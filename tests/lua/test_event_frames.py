"""AWS's binary event stream: what is lifted out of its frames, and what a model cannot make of it.

The reference is botocore's own parser, and frames are made here by the specification.
"""

import base64
import binascii
import json
import struct
from itertools import pairwise

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

FRAMES = "application/vnd.amazon.eventstream"
USAGE = '{"inputTokens":19,"outputTokens":10,"totalTokens":29}'
FORGED = '{"usage":{"inputTokens":0},"message":{"usage":{}},"amazon-bedrock-invocationMetrics":{}}'


def frame(kind, payload, message="event"):
    headers = b""
    names = {":message-type": message, f":{message}-type": kind}
    for name, value in {**names, ":content-type": "application/json"}.items():
        headers += bytes([len(name)]) + name.encode() + b"\x07"
        headers += struct.pack(">H", len(value)) + value.encode()
    body = payload.encode() if isinstance(payload, str) else payload
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    prelude += struct.pack(">I", binascii.crc32(prelude))
    message = prelude + headers + body
    return message + struct.pack(">I", binascii.crc32(message))


def chunk(event):
    text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    encoded = base64.b64encode(text.encode()).decode()
    return frame("chunk", json.dumps({"bytes": encoded, "p": "abc"}, separators=(",", ":")))


def lift(lua_filter, body, **options):
    facts = lua_filter.response([body], FRAMES, **options)
    assert facts == lua_filter.response(
        [body[i : i + 1] for i in range(len(body))], FRAMES, **options
    )
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in facts.items()}


DELTA = frame("contentBlockDelta", '{"contentBlockIndex":0,"delta":{"text":"Hi"},"p":"abcd"}')
METADATA = frame("metadata", f'{{"metrics":{{"latencyMs":1}},"p":"ab","usage":{USAGE}}}')
START = chunk({"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 7}}})
TEXT = chunk({"type": "content_block_delta", "index": 0, "delta": {"text": "hello"}})
MESSAGE_DELTA = chunk({"type": "message_delta", "usage": {"output_tokens": 5}})
STOP = chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 7}})


def test_the_frames_of_these_tests_are_frames_to_aws_too():
    buffer = EventStreamBuffer()
    buffer.add_data(DELTA + METADATA + START)
    kinds = [event.headers[":event-type"] for event in buffer]
    assert kinds == ["contentBlockDelta", "metadata", "chunk"]


def test_a_conversations_usage_is_lifted_out_of_its_last_event(lua_filter):
    body = frame("messageStart", '{"role":"assistant"}') + DELTA * 3 + METADATA
    assert lift(lua_filter, body) == {
        "usage": USAGE, "complete": True, "events": 5, "bytes": len(body),
    }  # fmt: skip


def test_a_client_that_leaves_after_the_metadata_has_had_the_whole_answer(lua_filter):
    facts = lift(lua_filter, DELTA + METADATA, aborted=True)
    assert facts == {"usage": USAGE, "complete": True}
    assert "complete" not in lift(lua_filter, DELTA + METADATA[:-1], aborted=True)


def test_the_usage_of_a_models_own_events_is_lifted_out_of_base64(lua_filter):
    body = START + TEXT * 3 + MESSAGE_DELTA + STOP
    facts = lift(lua_filter, body, aborted=True)
    assert facts == {
        "model": '"m"', "usage_start": '{"input_tokens":7}', "usage": '{"output_tokens":5}',
        "metrics": '{"inputTokenCount":7}', "complete": True,
    }  # fmt: skip
    assert "complete" not in lift(lua_filter, START + TEXT + MESSAGE_DELTA, aborted=True)


COUNTED = '{"inputTokenCount":7,"outputTokenCount":3,"invocationLatency":9}'


def test_what_bedrock_counted_of_a_stream_is_lifted_out_of_its_last_event(lua_filter):
    said = {"generation": FORGED, "prompt_token_count": 1, "deep": json.loads(FORGED)}
    last = '{"generation":"","amazon-bedrock-invocationMetrics":' + COUNTED + "}"
    facts = lift(lua_filter, chunk(said) * 2 + chunk(last), aborted=True)
    assert facts == {"metrics": COUNTED, "complete": True}
    assert lift(lua_filter, chunk(said), aborted=True) == {}


@pytest.mark.parametrize("kind", ["contentBlockDelta", "contentBlockStart", "messageStop"])
def test_usage_in_any_other_event_is_none(lua_filter, kind):
    facts = lift(lua_filter, frame(kind, FORGED), aborted=True)
    assert facts == {}


def test_usage_within_a_models_own_event_is_none(lua_filter):
    forged = {"type": "content_block_start", "content_block": {"input": json.loads(FORGED)}}
    delta = {"type": "content_block_delta", "delta": {"partial_json": FORGED}}
    spaced = '{ "type": "content_block_delta", "delta": ' + FORGED + "}"
    body = chunk(forged) + chunk(delta) + chunk(spaced)
    assert lift(lua_filter, body, aborted=True) == {}


def test_an_exception_is_an_error(lua_filter):
    body = DELTA + frame("throttlingException", '{"message":"slow"}', "exception")
    assert lift(lua_filter, body)["error"] is True


@pytest.mark.parametrize(
    "body",
    [METADATA[:-20], DELTA + METADATA[:7], b"\xff" * 40, DELTA + bytes(40)],
    ids=["cut payload", "cut prelude", "no frame", "zeros"],
)
def test_a_body_that_ends_within_a_frame_or_is_none_is_not_whole(lua_filter, body):
    assert "complete" not in lift(lua_filter, body)


def test_a_chunk_that_is_no_base64_is_unreadable(lua_filter):
    body = frame("chunk", '{"bytes":"e\\u0031","p":""}')
    assert lift(lua_filter, body)["unreadable"] is True


def test_an_event_of_a_megabyte_is_passed_over(lua_filter):
    large = frame("contentBlockDelta", json.dumps({"delta": {"text": "x" * 2**20}}))
    huge = chunk({"type": "content_block_delta", "delta": {"text": "x" * 2**20}})
    pieces = [(large + huge)[i : i + 4096] for i in range(0, len(large + huge), 4096)]
    facts = lua_filter.response([*pieces, METADATA], FRAMES)
    assert facts["usage"] == USAGE.encode()


EVENTS = st.lists(st.sampled_from([DELTA, METADATA, START, TEXT, MESSAGE_DELTA, STOP]), max_size=8)


def reference(body):
    """What botocore reads: the last usage, the first `usage_start`."""
    buffer, found = EventStreamBuffer(), {}
    buffer.add_data(body)
    for event in buffer:
        document = json.loads(event.payload)
        if event.headers[":event-type"] == "chunk":
            document = json.loads(base64.b64decode(document["bytes"]))
        elif event.headers[":event-type"] != "metadata":
            continue
        if "usage" in document:
            found["usage"] = document["usage"]
        if "message" in document:
            found.setdefault("usage_start", document["message"]["usage"])
    return found


@settings(max_examples=100)
@given(EVENTS, st.lists(st.integers(0, 2000), max_size=6))
def test_however_it_is_cut_the_filter_lifts_what_botocore_reads(lua_filter, events, cuts):
    body = b"".join(events)
    at = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[a:b] for a, b in pairwise(at)]
    facts = lua_filter.response(pieces, FRAMES)
    told = {key: json.loads(facts[key]) for key in ("usage", "usage_start") if key in facts}
    assert told == reference(body)
