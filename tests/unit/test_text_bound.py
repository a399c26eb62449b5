"""What servers write out again before they split it into tokens, none of it above the bound."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.providers import text_bound
from extauthz.providers.text_bound import indent_tokens_max, text_tokens_max

_PREAMBLE = text_tokens_max(b"")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_that_is_written_anew_with_blanks_is_within_the_bound(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    anew = json.dumps(value, ensure_ascii=False)
    assert len(anew.encode()) <= text_tokens_max(body.encode()) - _PREAMBLE


@given(JSON)
def test_json_that_is_written_anew_by_lines_is_within_the_bound(value: object) -> None:
    """A run of blanks is a token or two, however long it is."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    lines = json.dumps(value, ensure_ascii=False, indent=4).split("\n")
    tokens = sum(len(line.strip().encode()) + 2 for line in lines)
    assert tokens <= text_tokens_max(body.encode()) - _PREAMBLE + 2


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_no_letter_is_longer_than_its_bound_once_it_is_normalized(form: str) -> None:
    grown = 0
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        letter = chr(code)
        if unicodedata.is_normalized(form, letter):
            continue
        longer = len(unicodedata.normalize(form, letter).encode())
        for sent in (letter, json.dumps(letter)[1:-1], json.dumps(letter)[1:-1].upper()):
            bound = text_tokens_max(sent.replace("\\U", "\\u").encode()) - _PREAMBLE
            grown += longer > len(sent.encode())
            assert longer <= bound, hex(code)
    assert grown > 90


def test_a_letter_is_bounded_by_what_it_grows_and_not_by_what_any_does() -> None:
    thai = "\u0e19\u0e49\u0e33" * 100  # water; its last letter is two in NFKC
    longer = len(unicodedata.normalize("NFKC", thai).encode())
    assert text_tokens_max(thai.encode()) - _PREAMBLE == longer


def test_a_long_text_is_gone_through_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = "a\u0e33\ufdfa" * 5
    whole = text_tokens_max(letters.encode())
    monkeypatch.setattr(text_bound, "_LETTERS_AT_ONCE", 4)
    assert text_tokens_max(letters.encode()) == whole


HTML = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&'"})


@given(st.text(alphabet="<>&'ab\u00e9\"\\", max_size=40).map(lambda text: text * 20))
def test_a_tool_that_is_escaped_as_for_html_is_within_the_bound(text: str) -> None:
    """As Go's `json.Marshal` and minijinja's `tojson` write it."""
    tools = {"tools": [{"type": "function", "function": {"name": "f", "description": text}}]}
    body = json.dumps(tools, ensure_ascii=False, separators=(",", ":"))
    anew = body.translate(HTML)
    assert len(anew.encode()) <= text_tokens_max(body.encode()) - _PREAMBLE


def test_a_text_without_tools_is_written_as_it_is() -> None:
    """So a page of markup is no more than its bytes."""
    assert text_tokens_max(b"<p>'&'</p>") == len(b"<p>'&'</p>") + _PREAMBLE


@pytest.mark.parametrize("levels", [1, 15, 16, 40, 190])
def test_a_tool_that_is_nested_deeply_is_within_the_bound_with_all_its_indents(
    levels: int,
) -> None:
    value: object = list(range(500))
    for _ in range(levels):
        value = {"a": value}
    tools = [{"function": value}]
    body = json.dumps({"tools": tools}, separators=(",", ":")).encode()
    lines = json.dumps(tools, indent=4).split("\n")
    blanks = [len(line) - len(line.lstrip()) for line in lines]
    tokens = sum(-(-run // 64) + 1 for run in blanks)  # (and its end)
    tokens += sum(len(line.strip()) for line in lines)
    assert tokens <= text_tokens_max(body) + indent_tokens_max(body, tools) - _PREAMBLE


def test_tools_that_are_nested_as_usual_cost_no_more() -> None:
    assert indent_tokens_max(b"{}" * 99, [{"function": {"parameters": {"properties": {}}}}]) == 0
    assert indent_tokens_max(b"{}" * 99, None) == 0


@pytest.mark.parametrize(("numbers", "tokens"), [("1,", 120_038), ("123,", 130_038)])
def test_a_long_array_in_a_tool_is_within_the_bound(numbers: str, tokens: int) -> None:
    """Counted with Mistral's own template and vocabulary (`mistral-large-2411`)."""
    bytes_of_it = {"1,": 80_202, "123,": 104_202}[numbers]
    array = numbers * (80_000 // 2 if numbers == "1," else 26_000)
    assert text_tokens_max(array.encode().ljust(bytes_of_it)) > tokens
