"""When the answer counts as whole: OpenAI's SDK hangs up at `[DONE]`, before the body has ended."""

import pytest

SSE = "text/event-stream"
USAGE = '{"prompt_tokens":19,"completion_tokens":10}'
LAST = f'data: {{"choices":[],"usage":{USAGE}}}\n\n'


def by_byte(text: str) -> list[bytes]:
    return [text[i : i + 1].encode() for i in range(len(text))]


@pytest.mark.parametrize("end", ["data: [DONE]\n\n", "data:[DONE]\n", "data: [DONE]\r\n\r\n"])
@pytest.mark.parametrize("cut", [lambda text: [text.encode()], by_byte], ids=["whole", "bytes"])
def test_a_client_that_leaves_at_done_has_had_the_whole_answer(lua_filter, end, cut) -> None:
    facts = lua_filter.response(cut(LAST + end), SSE, aborted=True)

    assert facts == {"usage": USAGE.encode(), "complete": True}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing more"),
        pytest.param("data: [DON", id="half of it"),
        pytest.param('data: {"content":"data: [DONE]\\n\\ndata: [DONE]"}\n\n', id="in an answer"),
        pytest.param(": data: [DONE]\n\n", id="in a comment"),
        pytest.param("event: [DONE]\n\n", id="in another field"),
    ],
)
def test_nothing_else_says_that_the_answer_is_whole(lua_filter, text) -> None:
    for pieces in ([(LAST + text).encode()], by_byte(LAST + text)):
        assert "complete" not in lua_filter.response(pieces, SSE, aborted=True)
