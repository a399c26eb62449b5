"""What Check tells the sink comes back as it was, and nothing else is taken for it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.money import AMOUNT_MAX
from extauthz.providers import ADAPTERS
from extauthz.service.call_record import CallRecord, HeldPart, RecordError

text = st.text(max_size=30)
parts = st.lists(
    st.builds(HeldPart, text, text, st.integers(0, AMOUNT_MAX), st.integers(0, 2**53)),
    min_size=1,
    max_size=4,
    unique_by=lambda part: part.key,
).map(tuple)
records = st.builds(
    CallRecord,
    *[text] * 6,
    reserved_at_ms=st.integers(0, 2**53),
    settle_horizon_ms=st.integers(0, 2**53),
    estimate_nanousd=st.integers(0, AMOUNT_MAX),
    parts=parts,
    endpoint=text,
    output_cap=st.none() | st.integers(1, 2**40),
)
RECORD = CallRecord(
    "id", "d", "org", "bot", "openai", "gpt-4o", 1, 5, 2, (HeldPart("k", "usd", 3, 4),)
)


@given(records)
def test_a_record_comes_back_as_it_was(record):
    assert CallRecord.from_json(record.to_json()) == record


@given(records)
def test_amounts_travel_as_strings_because_a_struct_knows_doubles_only(record):
    numbers = []
    json.loads(record.to_json(), parse_int=numbers.append, parse_float=numbers.append)
    assert numbers == ["1"]  # the version


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(RECORD.to_json()), **fields})


@pytest.mark.parametrize(
    "other",
    [
        "", "null", "[]", "1", '"x"', "{}", "{" * 5000, "[" * 100_000, '{"v":1}',
        changed(v=2), changed(v=None), changed(id=7), changed(agent=None), changed(model=["m"]),
        changed(at="-1"), changed(at=1.5), changed(at=True), changed(at="1.5"), changed(at=" 1"),
        changed(horizon=None), changed(horizon="-1"), changed(horizon=1),
        changed(estimate=str(AMOUNT_MAX + 1)), changed(estimate="1e3"),
        changed(estimate="9" * 5000),
        changed(parts=[]), changed(parts=None), changed(parts=[["k", "usd", "1"]]),
        changed(parts=[["k", "usd", "-1", "4"]]), changed(parts=[["k", "usd", 1, "4"]]),
        changed(parts=[["k", "usd", str(2**60), "4"]]), changed(parts=[[1, "usd", "1", "4"]]),
        changed(parts=[["k", "usd", "1", "4"], ["k", "usd", "1", "4"]]),
    ],
)  # fmt: skip
def test_what_is_no_record_of_this_version_is_an_error_and_no_other(other):
    with pytest.raises(RecordError):
        CallRecord.from_json(other)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_other_json_is_taken_for_a_record(value):
    with pytest.raises(RecordError):
        CallRecord.from_json(json.dumps(value))


def test_a_record_from_before_there_were_several_endpoints_is_of_the_main_one():
    older = json.loads(RECORD.to_json())
    del older["endpoint"]
    record = CallRecord.from_json(json.dumps(older))
    assert record.endpoint == ""
    for api, main in (("openai", "chat"), ("anthropic", "messages")):
        endpoint = ADAPTERS[api].endpoint(record.endpoint)
        assert endpoint is not None
        assert endpoint.name == main


def test_the_unchanged_record_of_these_tests_is_one():
    assert CallRecord.from_json(changed()) == RECORD
