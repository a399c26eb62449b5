"""The edits that Check decided on are put into the body exactly, or nothing is forwarded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

BODY = b'{"model":"gpt-4o","max_tokens":9000}'

SIZE = len(BODY)


def call(edits, size=SIZE):
    return {"rid": "r1", "edits": edits, "size": size}


@st.composite
def bodies_with_edits(draw):
    """A body, edits in ascending order, and the body that must come out."""
    body = draw(st.binary(max_size=200))
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    edits, expected, done = [], b"", 0
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        text = draw(st.binary(max_size=8))
        edits += [start, end - start, text]
        expected += body[done:start] + text
        done = end
    return body, edits, expected + body[done:]


@given(bodies_with_edits())
def test_a_splice_equals_slicing_and_keeps_every_other_byte(lua_filter, case):
    body, edits, expected = case
    request = lua_filter.request(body, call(edits, len(body)))
    assert request.status is None
    assert (request.sent if edits else body) == expected


@pytest.mark.parametrize(
    "metadata",
    [
        {"rid": "r1", "size": 3},
        {"rid": "r1", "size": len(BODY), "edits": []},
        {"edits": [0, 1, "x"], "size": len(BODY)},
        {},
    ],
    ids=["no edits", "an empty list of edits", "no reservation", "no metadata"],
)
def test_a_body_that_is_not_to_be_edited_is_neither_buffered_nor_touched(lua_filter, metadata):
    request = lua_filter.request(BODY, metadata)
    assert not request.buffered
    assert request.sent is None
    assert request.status is None


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1, 0, None, "36"])
def test_a_body_of_another_size_than_check_saw_is_refused(lua_filter, size):
    assert_refused(lua_filter.request(BODY, call([0, 1, "["], size)))


@pytest.mark.parametrize(
    "edits",
    [
        [5, 1, "a", 4, 1, "b"],
        [5, 2, "a", 6, 1, "b"],
        [-1, 1, "a"],
        [5, -1, "a"],
        [len(BODY), 1, "a"],
        [len(BODY) + 1, 0, "a"],
        [float("nan"), 0, "a"],
        [0, float("inf"), "a"],
        [5, 1],
        [5, 1, "a", 7],
        ["x", 1, "a"],
        [5, 1, True],
        [5, 1, ["a"]],
        "5,1,a",
        True,
    ],
    ids=str,
)
def test_edits_that_do_not_fit_the_body_exactly_are_refused(lua_filter, edits):
    assert_refused(lua_filter.request(BODY, call(edits)))


def test_edits_for_a_request_without_a_body_are_refused(lua_filter):
    assert_refused(lua_filter.request(None, call([0, 0, "{}"], 0)))


def test_a_body_of_several_megabytes_is_edited_at_both_ends(lua_filter):
    body = b"{" + b"x" * 3_000_000 + b"}"
    request = lua_filter.request(body, call([0, 1, "[", len(body) - 1, 1, "]"], len(body)))
    assert request.sent == b"[" + body[1:-1] + b"]"


def assert_refused(request):
    assert request.status == "500"
    assert request.sent is None
    assert json.loads(request.response)["error"]["type"] == "internal_error"
