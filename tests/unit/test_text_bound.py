"""What servers write out again before they split it into tokens, none of it above the bound."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.providers.text_bound import text_tokens_max

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


def test_no_letter_is_longer_in_nfc_than_its_bound() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        letter = chr(code)
        normal = unicodedata.normalize("NFC", letter)
        if len(normal) > len(letter):
            sent = letter.encode()
            assert len(normal.encode()) <= text_tokens_max(sent) - _PREAMBLE, hex(code)


@pytest.mark.parametrize(("numbers", "tokens"), [("1,", 120_038), ("123,", 130_038)])
def test_a_long_array_in_a_tool_is_within_the_bound(numbers: str, tokens: int) -> None:
    """Counted with Mistral's own template and vocabulary (`mistral-large-2411`)."""
    bytes_of_it = {"1,": 80_202, "123,": 104_202}[numbers]
    array = numbers * (80_000 // 2 if numbers == "1," else 26_000)
    assert text_tokens_max(array.encode().ljust(bytes_of_it)) > tokens
