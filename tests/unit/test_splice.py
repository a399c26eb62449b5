"""Edits change the bytes they must and no others, whatever a body looks like."""

import json
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.providers import ADAPTERS, splice
from extauthz.providers.base import Edit, Request
from extauthz.providers.splice import cap_slot, find_member, find_rooted, insert_member

BLANKS = st.text(" \t\r\n", max_size=2)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(['"', "\\", '\\"', "{", "}]", ":,", "stream_options", "null"])
)
KEYS = st.text(max_size=5) | st.sampled_from(["stream_options", "include_usage", "a", '"', "\\"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


def apply(body: bytes, edits: Sequence[Edit]) -> bytes:
    """As Envoy's Lua does it."""
    pieces, done = [], 0
    for edit in edits:
        assert done <= edit.offset
        pieces += [body[done : edit.offset], edit.text.encode()]
        done = edit.offset + edit.dropped
    return b"".join([*pieces, body[done:]])


@st.composite
def strings(draw, text: str) -> str:
    """A spelling of a string: any character may be escaped."""
    spelled = []
    for char in text:
        if draw(st.integers(0, 4)) == 0:
            units = char.encode("utf-16-be", "surrogatepass")
            pairs = (units[i : i + 2] for i in range(0, len(units), 2))
            spelled.append("".join(f"\\u{int.from_bytes(pair, 'big'):04x}" for pair in pairs))
        else:
            spelled.append(json.dumps(char, ensure_ascii=False)[1:-1])
    return '"' + "".join(spelled) + '"'


@st.composite
def spelled(draw, value) -> str:
    """A spelling of a document, with blanks and escapes."""
    if isinstance(value, dict):
        members = [
            f"{draw(BLANKS)}{draw(strings(key))}{draw(BLANKS)}:{draw(BLANKS)}{draw(spelled(inner))}"
            for key, inner in value.items()
        ]
        return "{" + ",".join(members) + draw(BLANKS) + "}"
    if isinstance(value, list):
        items = [draw(BLANKS) + draw(spelled(item)) + draw(BLANKS) for item in value]
        return "[" + ",".join(items) + "]"
    return draw(strings(value)) if isinstance(value, str) else json.dumps(value)


@st.composite
def bodies(draw, roots) -> tuple[bytes, dict]:
    document = draw(roots)
    order = list(document.items())
    random.Random(draw(st.integers(0, 99))).shuffle(order)
    body = draw(BLANKS) + draw(spelled(dict(order))) + draw(BLANKS)
    return body.encode(), document


documents = st.dictionaries(KEYS, VALUES, min_size=1, max_size=5)


@given(bodies(documents))
def test_a_member_is_found_exactly_where_its_value_stands(case):
    body, document = case
    for key, value in document.items():
        span = find_member(body, (key,))
        assert span is not None
        assert json.loads(body[span.start : span.end]) == value
        assert body[span.start : span.end].strip() == body[span.start : span.end]


@given(bodies(documents), KEYS, KEYS)
def test_a_member_down_a_path_is_found_if_and_only_if_it_is_there(case, outer, inner):
    body, document = case
    span = find_member(body, (outer, inner))
    holder = document.get(outer)
    if isinstance(holder, dict) and inner in holder:
        assert span is not None
        assert json.loads(body[span.start : span.end]) == holder[inner]
    else:
        assert span is None


ROOTED = st.dictionaries(
    KEYS | st.sampled_from(["max_tokens", 'x"max_tokens', "max_tokens\\"]),
    VALUES | st.sampled_from(["max_tokens", '"max_tokens"', '"max_tokens":9', "\\\\"]),
    max_size=4,
).flatmap(
    lambda beside: st.dictionaries(
        st.just("max_tokens"), VALUES | st.just({"max_tokens": 1}), min_size=1
    ).map(lambda named: {**beside, **named})
)


@given(bodies(ROOTED))
def test_a_key_that_the_root_has_is_found_without_going_through_the_body(case):
    body, _ = case
    assert find_rooted(body, ("max_tokens",)) == find_member(body, ("max_tokens",))
    inner = ("max_tokens", "max_tokens")
    assert find_rooted(body, inner) == find_member(body, inner)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":{"max_tokens":1},"max_tokens":2}',
        b'{"a":"max_tokens","max_tokens":2}',
        b'{"a":"\\"max_tokens","max_tokens":2}',
        b'{"a":["max_tokens",{"max_tokens":1}],"max_tokens":2}',
        b'{"a":{"max_tokens":1},"\\u006dax_tokens":2}',
        b'{"a":{"max_tokens":1},"max\\u005Ftokens":2}',
        b'{"a":"max_tokens","max_tok\\u0065ns":2}',
    ],
)
def test_a_key_at_the_root_is_not_mistaken_for_its_like_elsewhere(body):
    span = find_rooted(body, ("max_tokens",))
    assert span is not None
    assert body[span.start : span.end] == b"2"


def test_in_a_large_body_a_cap_costs_no_more_than_a_few_tokens(monkeypatch):
    body = b'{"messages":[' + b'{"role":"user","content":"x"},' * 10_000 + b'1],"max_tokens" : 7 }'
    tokens = re.compile(splice._TOKEN.pattern, re.DOTALL)
    seen = 0

    class Counting:
        def finditer(self, text, at):
            nonlocal seen
            for token in tokens.finditer(text, at):
                seen += 1
                yield token

    monkeypatch.setattr(splice, "_TOKEN", Counting())
    slot = cap_slot(body, "max_tokens", stands=True)
    assert body[slot.offset : slot.offset + slot.dropped] == b"7"
    assert seen == 3


@given(bodies(documents), st.integers(1, 10**7))
def test_a_cap_is_written_as_the_first_member_and_nothing_else_changes(case, cap):
    body, document = case
    document.pop("max_tokens", None)
    edit = cap_slot(body, "max_tokens", stands=False).edit(cap)
    changed = apply(body, [edit])
    assert json.loads(changed) == {"max_tokens": cap, **json.loads(body)}
    assert changed.replace(edit.text.encode(), b"", 1) == body


@given(bodies(documents), st.sampled_from([None, 1, 128_000]), st.integers(1, 10**7))
def test_a_cap_is_written_over_the_one_that_stands_there_or_its_null(case, named, cap):
    _, document = case
    body = json.dumps({**document, "max_tokens": named, "zz": 1}).encode()
    edit = cap_slot(body, "max_tokens", stands=True).edit(cap)
    changed = apply(body, [edit])
    assert json.loads(changed) == {**document, "max_tokens": cap, "zz": 1}
    assert body[edit.offset : edit.offset + edit.dropped] == json.dumps(named).encode()
    end = edit.offset + edit.dropped
    assert (changed[: edit.offset], changed[len(changed) - len(body) + end :]) == (
        body[: edit.offset], body[end:],
    )  # fmt: skip


def test_a_member_is_inserted_before_the_first():
    body = b' { "a" : 1 }'
    assert apply(body, [insert_member(body, '"n":1')]) == b' {"n":1, "a" : 1 }'


options = st.one_of(
    st.just({}),
    st.just({"stream_options": None}),
    st.just({"stream_options": {}}),
    st.dictionaries(
        st.sampled_from(["include_usage", "include_obfuscation"]),
        st.sampled_from([True, False, None]),
    ).map(lambda inner: {"stream_options": inner}),
)
requests = st.builds(
    lambda rest, chosen, caps: {**rest, "model": "gpt-4o", "stream": True, **chosen, **caps},
    st.dictionaries(
        st.sampled_from(["user", "seed", "metadata", "stop", "logit_bias"]), VALUES, max_size=3
    ),
    options,
    st.sampled_from([{}, {"max_completion_tokens": None}, {"max_tokens": None}]),
)


@given(bodies(requests), st.integers(1, 10**6))
def test_a_stream_asks_for_its_usage_and_gets_the_default_cap_byte_exactly(case, cap):
    body, _ = case
    facts = ADAPTERS["openai"].read_request("chat", Request(body))
    assert facts.cap_slot is not None
    edits = sorted([*facts.edits, facts.cap_slot.edit(cap)], key=lambda edit: edit.offset)
    changed = apply(body, edits)

    before, after = json.loads(body), json.loads(changed)
    expected = {
        **before,
        "stream_options": {**(before.get("stream_options") or {}), "include_usage": True},
        "max_completion_tokens": cap,
    }
    assert after == expected
    kept = b"".join(
        body[a.offset + a.dropped : b.offset]
        for a, b in zip([Edit(0, 0, ""), *edits], [*edits, Edit(len(body), 0, "")], strict=True)
    )
    assert len(kept) == len(body) - sum(edit.dropped for edit in edits)
    assert len(changed) == len(kept) + sum(len(edit.text) for edit in edits)


def test_a_stream_that_asks_already_is_left_as_it_is():
    body = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    assert ADAPTERS["openai"].read_request("chat", Request(body)).edits == ()


def test_a_key_in_an_escaped_spelling_is_the_same_key():
    body = b'{"model":"m","stream":true,"\\u0073tream_options":{"\\u0069nclude_usage":false}}'
    edits = ADAPTERS["openai"].read_request("chat", Request(body)).edits
    assert apply(body, edits) == body.replace(b"false", b"true")


class Watched(bytes):
    """A body that counts how many of its bytes are copied."""

    copied = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.copied += len(found) if isinstance(found, bytes) else 1
        return found


@pytest.mark.parametrize(
    "piece",
    [
        b'{"stream_options":{"include_usage":false}},',
        b'"\\\\\\"",',
        b"[[[]]],",
        b'"' + b"x" * 50 + b'",',
    ],
    ids=["forged members", "backslashes", "brackets", "strings"],
)
def test_finding_a_member_looks_at_each_token_once_and_copies_little(monkeypatch, piece):
    body = Watched(b'{"messages":[' + piece * 5_000 + b'1],"stream_options":{"a":1}}')
    pattern, seen = splice._TOKEN, 0

    class Counting:
        def finditer(self, text, at):
            nonlocal seen
            for token in pattern.finditer(text, at):
                seen += 1
                yield token

    monkeypatch.setattr(splice, "_TOKEN", Counting())
    assert find_member(body, ("stream_options", "include_usage")) is None
    assert 5_000 < seen <= len(pattern.findall(body))
    assert body.copied < seen + 100


def test_a_string_is_one_token_however_it_is_escaped():
    body = b'["' + rb"\\\"" * 1_000_000 + b'",1]'
    assert [len(token) for token in splice._TOKEN.findall(body)] == [1, 4_000_002, 1, 1]
