"""A row is one text, and that text is one row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.archive import line_of, row_in
from extauthz.ledger import Posting, Row, RowOutcome

whole = st.integers(0, 2**53)
amounts = st.integers(-(2**63), 2**63)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
particulars = texts | st.dictionaries(texts, json_values, max_size=3).flatmap(
    lambda value: st.sampled_from(
        [json.dumps(value), json.dumps(value, ensure_ascii=False, separators=(",", ":"))]
    )
)
postings = st.builds(Posting, texts, amounts, amounts, amounts, whole)
rows = st.builds(
    Row,
    seq=whole,
    at_ms=whole,
    outcome=st.sampled_from(RowOutcome),
    id=texts,
    cost_nanousd=amounts,
    cost_before_nanousd=amounts,
    claimed_nanousd=st.none() | amounts,
    charged_at_ms=whole,
    postings=st.lists(postings, max_size=3).map(tuple),
    particulars=particulars,
)


@given(rows)
def test_a_row_comes_back_from_its_line_as_it_was(row: Row) -> None:
    line = line_of(row)

    assert row_in(line) == row
    assert b"\n" not in line
    json.loads(line)


ROW = Row(7, 5, RowOutcome.LATE, "x", 12, postings=(Posting("day:0", 3, 2, 1, 9),))


def test_amounts_are_strings_and_particulars_an_object() -> None:
    row = Row(1, 2, RowOutcome.SETTLED, "i", cost_nanousd=2**60, particulars='{"agent":"b\u00f6t"}')

    said = json.loads(line_of(row))

    assert said["cost_nanousd"] == str(2**60)
    assert said["particulars"] == {"agent": "b\u00f6t"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":7', b'"seq": 7'),
        (b'"seq":7', b'"seq":07'),
        (b'"seq":7', b'"seq":7.0'),
        (b'"seq":7', b'"seq":true'),
        (b'"seq":7,', b'"seq":6,"seq":7,'),
        (b'"seq":7,"at_ms":5', b'"at_ms":5,"seq":7'),
        (b'"12"', b"12"),
        (b'"12"', b'"+12"'),
        (b'"12"', b'"1_2"'),
        (b'"late"', b'"better_late"'),
        (b'"x"', b'"\\u0078"'),
        (b'"x"', b"null"),
        (b'"particulars":""', b'"particulars":null,"more":""'),
        (b'"particulars":""', b'"particulars":NaN'),
        (b'"held":"3",', b""),
        (b'"held":"3"', b'"held":"3","also":"4"'),
        (b"}", b"} "),
    ],
)
def test_any_other_text_is_no_row(old: bytes, new: bytes) -> None:
    line = line_of(ROW)
    assert old in line

    with pytest.raises(ValueError, match=r"is not|missing|valid|digit|Extra|Expecting|NaN"):
        row_in(line.replace(old, new, 1))


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{"a":1,"a":1}', '{"a":NaN}', '{"a":1e3}', "[1]", "{", '{"a":"\\u0062"}']
)
def test_particulars_that_are_not_the_one_text_of_an_object_are_kept_as_text(text: str) -> None:
    row = Row(1, 2, RowOutcome.SETTLED, "i", particulars=text)

    assert json.loads(line_of(row))["particulars"] == text
    assert row_in(line_of(row)) == row
