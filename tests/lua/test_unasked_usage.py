"""The event of usage that only metering asked for is taken out where it comes in one piece."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SSE = "text/event-stream"
UNASKED = {"rid": "r1", "unasked_usage": True}
USAGE = '{"prompt_tokens":19,"completion_tokens":10}'
DELTA = 'data: {"choices":[{"delta":{"content":"\\"choices\\":[]"}}],"usage":null}\n\n'
LAST = f'data: {{"id":"c","choices":[],"usage":{USAGE}}}\n\n'
DONE = "data: [DONE]\n\n"


def forwarded(lua_filter, *pieces, call=UNASKED, **options):
    """What the client gets of each piece; what is lifted out of them is the same as ever."""
    given = [piece.encode() for piece in pieces]
    facts = lua_filter.response(given, SSE, call=call, **options)
    got = [piece.decode() for piece in lua_filter.forwarded]
    assert facts == lua_filter.response(given, SSE, **options)
    assert lua_filter.forwarded == given
    return got


@pytest.mark.parametrize(
    ("pieces", "client_gets"),
    [
        ([DELTA, LAST, DONE], [DELTA, "", DONE]),
        ([DELTA + LAST + DONE], [DELTA + DONE]),
        ([DELTA, LAST + DONE], [DELTA, DONE]),
        ([DELTA + LAST, DONE], [DELTA, DONE]),
        ([LAST.replace("[]", " []")], [""]),
        ([(DELTA + LAST + DONE).replace("\n", "\r\n")], [(DELTA + DONE).replace("\n", "\r\n")]),
        ([DELTA.replace("\n", "\r\n"), LAST.replace("\n", "\r\n")],
         [DELTA.replace("\n", "\r\n"), ""]),
    ],
)  # fmt: skip
def test_an_event_that_comes_whole_is_taken_out(lua_filter, pieces, client_gets):
    assert forwarded(lua_filter, *pieces) == client_gets


STAYS = {
    "an answer": DELTA,
    "Azure's first event": 'data: {"choices":[],"prompt_filter_results":[]}\n\n',
    "no usage": 'data: {"choices":[],"usage":null}\n\n',
    "choices": f'data: {{"choices":[{{"delta":{{"choices":[]}}}}],"usage":{USAGE}}}\n\n',
    "deeper": f'data: {{"a":{{"choices":[],"usage":{USAGE}}}}}\n\n',
    "an error": f'data: {{"choices":[],"usage":{USAGE},"error":{{"code":500}}}}\n\n',
    "an event of two lines": LAST[:-1] + "data: 7\n\n",
    "an event with a name": "event: x\n" + LAST,
    "a comment": LAST.replace("data:", ":data:"),
    "an event without its end": LAST[:-1],
    "a line of two": LAST.replace('"id"', '\r"id"'),
}


@pytest.mark.parametrize("what", STAYS)
def test_everything_else_stays(lua_filter, what):
    pieces = [DELTA, STAYS[what], DONE]
    assert forwarded(lua_filter, *pieces) == pieces


def test_who_asked_gets_it(lua_filter):
    assert forwarded(lua_filter, LAST, call={"rid": "r1"}) == [LAST]


def test_a_body_whose_length_was_announced_keeps_it(lua_filter):
    assert forwarded(lua_filter, LAST, headers={"content-length": str(len(LAST))}) == [LAST]


BODY = "".join([DELTA, *STAYS.values(), "\n", LAST, DONE])


@settings(max_examples=300)
@given(st.lists(st.integers(0, len(BODY)), max_size=8), st.booleans())
def test_however_it_is_cut_only_that_event_can_be_missing(lua_filter, cuts, crlf):
    body = BODY.replace("\n", "\r\n") if crlf else BODY
    last = LAST.replace("\n", "\r\n") if crlf else LAST
    at = [0, *sorted(cuts), len(body)]
    got = "".join(forwarded(lua_filter, *(body[a:b] for a, b in pairwise(at))))
    start = body.rindex(last)
    assert got in (body, body[:start] + body[start + len(last) :])
