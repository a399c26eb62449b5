"""Random documents, cut at random: the filter lifts what a Python reference lifts."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SSE = "text/event-stream"
VALUE_START = {
    "usage": "{", "usage_start": "{", "error": ("{", '"'), "model": '"', "service_tier": '"',
    "error_code": '"',
}  # fmt: skip
ROOT = {
    "usage": "usage",
    "usageMetadata": "usage",
    "model": "model",
    "modelVersion": "model",
    "service_tier": "service_tier",
}
SSE_ROOT = ROOT | {"error": "error"}
STATISTICS = {"statistics": "usage"}
LIST_ROOT = dict(SSE_ROOT)  # of a list: the same names, but nothing lies within them
JSON_INNER = {"error": {"code": "error_code"}, "meta": {"billed_units": "usage"}}
INNER = ("error", "message", "response", "meta", "delta")
SSE_INNER = {
    "message": {"usage": "usage_start", "model": "model"},
    "delta": {"usage": "usage"},
    "response": {"usage": "usage", "model": "model", "service_tier": "service_tier"},
}

# The reference: Python's own JSON decoder finds where values end; nothing is scanned by hand.

SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder(strict=False)


def items_of(text):
    """The raw texts of the members [(key, value)] of an object, or [(None, value)] of a list."""
    at = SPACE.match(text, 1).end()
    while text[at] not in "]}":
        end = DECODER.raw_decode(text, at)[1]
        key, value = None, text[at:end]
        at = SPACE.match(text, end).end()
        if text[0] == "{":
            key, at = value[1:-1], SPACE.match(text, at + 1).end()
            end = DECODER.raw_decode(text, at)[1]
            value, at = text[at:end], SPACE.match(text, end).end()
        yield key, value
        at = SPACE.match(text, at + (text[at] == ",")).end()


def facts_of_object(text, names):
    for key, value in items_of(text) if text.startswith("{") else ():
        fact = names.get(key)
        if fact and value != '""' and value.startswith(VALUE_START[fact]):
            yield fact, value
        inner = {id(ROOT): JSON_INNER, id(SSE_ROOT): SSE_INNER}.get(id(names), {})
        if names is ROOT and key == "predictions" and value.startswith("["):
            yield from (fact for _, item in items_of(value) for fact in facts_of_prediction(item))
        if value.startswith("{") and key in inner:
            yield from facts_of_object(value, inner[key])


def facts_of_prediction(text):
    for key, value in items_of(text) if text.startswith("{") else ():
        if key == "embeddings" and value.startswith("{"):
            yield from facts_of_object(value, STATISTICS)


def facts_of_json(text):
    roots = [v for _, v in items_of(text)] if text.startswith("[") else [text]
    names = LIST_ROOT if text.startswith("[") else ROOT
    return [fact for root in roots for fact in facts_of_object(root, names)]


def data_of_events(text):
    data = []
    for line in [*re.split("\r\n|\n|\r", text.removeprefix("ï»¿")), ""]:
        field, _, value = line.partition(":")
        if not line and data:
            yield "\n".join(data)
            data = []
        elif field == "data":
            data.append(value.removeprefix(" "))


def facts_of_sse(text):
    return [fact for data in data_of_events(text) for fact in facts_of_object(data, SSE_ROOT)]


def expected(body, content_type):
    text = body.decode("latin-1")
    result = {"bytes": len(body), "complete": True}
    if content_type == SSE:
        result["events"] = len(list(data_of_events(text)))
    for fact, value in facts_of_sse(text) if content_type == SSE else facts_of_json(text):
        if fact == "error":
            result[fact] = True
        elif fact not in result or fact in ("usage", "service_tier", "error_code"):
            result[fact] = value.encode("latin-1")
            if not result[fact].isascii():
                result["unreadable"], result[fact] = True, b""
    return result


# Documents: every key that matters stands anywhere, in any spelling, with values of every kind.

SPACES = st.sampled_from(["", "", "", " ", "\n", " \t"])
TEXT = st.lists(
    st.sampled_from(
        ['\\"', "\\\\", "\\n", "\\u0022", "{", "}", "[", "]", ",", ":", "usage", "é", "x", " "]
    ),
    max_size=6,
).map("".join)
KEY = st.one_of(
    st.sampled_from(
        [
            *ROOT,
            *INNER,
            "code",
            "billed_units",
            "usage",
            "usage",
            "predictions",
            "embeddings",
            "statistics",
        ]
    ),
    st.sampled_from(["\\u0075sage", "usage\\\\", '\\"usage', "x" * 70, "x" * 64 + "usage", ""]),
    TEXT,
)
SCALAR = st.one_of(TEXT.map('"{}"'.format), st.sampled_from(["null", "true", "-1.5e+3", "0"]))


def joined(first, last, parts):
    return st.lists(parts, max_size=4).flatmap(
        lambda items: st.tuples(SPACES, SPACES).map(
            lambda spaces: first + spaces[0] + f",{spaces[1]}".join(items) + spaces[1] + last
        )
    )


def objects(values):
    member = st.tuples(KEY, SPACES, SPACES, values, SPACES)
    return joined("{", "}", member.map(lambda m: f'"{m[0]}"{m[1]}:{m[2]}{m[3]}{m[4]}'))


VALUE = st.recursive(
    SCALAR, lambda values: st.one_of(objects(values), joined("[", "]", values)), max_leaves=10
)
DOCUMENT = st.one_of(objects(VALUE), objects(VALUE), joined("[", "]", objects(VALUE)), VALUE)


@st.composite
def event_streams(draw):
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = []
    for document in draw(st.lists(st.one_of(DOCUMENT, st.just("[DONE]")), max_size=4)):
        lines += draw(
            st.lists(st.sampled_from(["event: x", ': {"usage":{}}', "id", "dat", ""]), max_size=2)
        )
        space = draw(st.sampled_from(["", " "]))
        lines += [
            f"data:{space or ' ' * line.startswith(' ')}{line}" for line in document.split("\n")
        ]
        lines += draw(st.sampled_from([[""], ["", ""], ["retry: 1", ""]]))
    closing = draw(st.sampled_from(["", end]))
    return draw(st.sampled_from(["", "\ufeff"])) + end.join(lines) + closing


@st.composite
def cut(draw, bodies):
    """A body and the pieces that it comes in."""
    body = draw(bodies).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return body, [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@pytest.mark.parametrize(
    ("content_type", "bodies"),
    [("application/json", DOCUMENT), (SSE, event_streams())],
    ids=["JSON", "SSE"],
)
def test_facts_equal_the_reference_however_the_body_is_cut(lua_filter, content_type, bodies):
    @settings(max_examples=250, deadline=None)
    @given(cut(bodies))
    def check(case):
        body, pieces = case
        facts = expected(body, content_type)
        assert lua_filter.response([body], content_type) == facts
        assert lua_filter.response(pieces, content_type) == facts
        assert lua_filter.response([bytes([b]) for b in body], content_type) == facts

    check()
