"""Sound and pictures sent as files of a form: what bounds a call, what its answer tells."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from forms import FORM_TYPE, form, part, sound
from hypothesis import given
from hypothesis import strategies as st

from extauthz.pricing import OwnPrice, PriceBook, PricedModel
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.reasons import Reason
from extauthz.servicers.body_worker import read as read_in_child
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

OPENAI = ADAPTERS["openai"]
AT_MS = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1000
PNG = b"\x89PNG\r\n\x1a\n"
BY_TOKENS = ("gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-transcribe-diarize")
BY_SECONDS = {"whisper-1": 100_000, "gpt-transcribe": 75_000}
"""With the nano-USD of a second: $0.006 and $0.0045 a minute."""


def read(endpoint: str, body: bytes) -> RequestFacts:
    return OPENAI.read_request(endpoint, Request(body, content_type=FORM_TYPE))


def reason_of(endpoint: str, body: bytes) -> Reason:
    with pytest.raises(RequestError) as caught:
        read(endpoint, body)
    return caught.value.reason


def edit(model: str = "gpt-image-1", pictures: int = 1, **fields: str) -> bytes:
    name = "image" if pictures == 1 else "image[]"
    return form(
        part("model", model),
        *(part(name, PNG, filename=f"{number}.png") for number in range(pictures)),
        *(part(field, text) for field, text in fields.items()),
    )


def priced(model: str, *own: OwnPrice) -> PricedModel:
    found = PriceBook(own).find("openai", "openai", model)
    assert found is not None
    return found


def told(endpoint: str, usage: Any, **fields: Any) -> UsageReport:
    found = OPENAI.endpoint(endpoint)
    assert found is not None
    return found.read_usage(CapturedResponse(usage=json.dumps(usage), complete=True, **fields))


def tokens(heard: int, said: int = 0, made: int = 0) -> dict[str, Any]:
    """As https://platform.openai.com/docs/api-reference/audio/json-object has it."""
    return {
        "type": "tokens",
        "input_tokens": heard + said,
        "input_token_details": {"text_tokens": said, "audio_tokens": heard},
        "output_tokens": made,
        "total_tokens": heard + said + made,
    }


@pytest.mark.parametrize("model", BY_TOKENS)
@given(heard=st.integers(0, 16_000), said=st.integers(0, 16_000), made=st.integers(0, 2_000))
def test_no_transcription_within_the_models_limits_costs_more_than_its_estimate(
    model, heard, said, made
):
    facts = read("transcriptions", sound(model))
    said = min(said, 16_000 - heard)
    cost = priced(model).cost(told("transcriptions", tokens(heard, said, made)), AT_MS)
    assert cost <= priced(model).estimate(facts, AT_MS, None).nanousd <= 130_000_000
    assert priced(model).covers(facts, AT_MS)


@pytest.mark.parametrize("endpoint", ["transcriptions", "translations"])
@pytest.mark.parametrize("model", BY_SECONDS)
def test_no_file_tells_the_seconds_of_a_sound_that_is_billed_by_them(endpoint, model):
    for content in (b"RIFF", b"x" * 1_000_000):
        facts = read(endpoint, sound(model, content))
        assert facts.counted == {"audio_seconds": None}
        with pytest.raises(AssertionError, match="has to be refused"):
            priced(model).estimate(facts, AT_MS, None)


@pytest.mark.parametrize("model", BY_SECONDS)
@given(seconds=st.integers(0, 600_000).map(lambda each: each / 1000))
def test_no_sound_within_the_seconds_of_the_config_costs_more_than_its_estimate(model, seconds):
    facts = replace(read("transcriptions", sound(model)), counted={"audio_seconds": 600})
    report = told("transcriptions", {"type": "duration", "seconds": seconds})
    assert priced(model).covers(facts, AT_MS)
    cost = priced(model).cost(report, AT_MS)
    assert cost == report.amounts["audio_seconds"] * BY_SECONDS[model]
    assert cost <= priced(model).estimate(facts, AT_MS, None).nanousd == 600 * BY_SECONDS[model]


@pytest.mark.parametrize("model", BY_TOKENS)
def test_a_transcription_is_held_at_the_models_longest_answer(model):
    estimate = priced(model).estimate(read("transcriptions", sound(model)), AT_MS, None)
    assert (estimate.output_tokens, estimate.input_tokens >= 16_000) == (2_000, True)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("transcriptions", sound("gpt-4o-transcribe")),
        ("translations", sound()),
        ("image_edits", edit()),
    ],
)
def test_no_form_takes_a_cap_or_is_edited_at_all(endpoint, body):
    facts, found = read(endpoint, body), OPENAI.endpoint(endpoint)
    assert (facts.cap_slot, facts.other_caps, facts.edits) == (None, (), ())
    assert found is not None
    assert (found.cap_fields, found.reads_form) == ((), True)


@pytest.mark.parametrize("seconds", [27, 26.001, 26.999])
def test_a_part_of_a_second_is_a_second(seconds):
    report = told("transcriptions", {"type": "duration", "seconds": seconds})
    assert report.amounts == {"audio_seconds": 27}
    assert report.exactness is Exactness.EXACT


def test_sound_and_text_each_have_their_price():
    report = told("transcriptions", tokens(heard=14, said=3, made=45))
    assert report.exactness is Exactness.EXACT
    assert priced("gpt-4o-transcribe").cost(report, AT_MS) == 14 * 6000 + 3 * 2500 + 45 * 10_000


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59},
        tokens(14) | {"input_token_details": None},
        tokens(14) | {"input_token_details": {"text_tokens": 0, "audio_tokens": 13}},
        tokens(14) | {"input_token_details": {"text_tokens": 14}},
        tokens(14) | {"total_tokens": 13},
        tokens(-1),
        tokens(14) | {"input_tokens": 14.0},
        tokens(14) | {"output_tokens": True},
        {"type": "duration"},
        {"type": "duration", "seconds": -1},
        {"type": "duration", "seconds": "27"},
        {"type": "duration", "seconds": True},
        {"type": "duration", "seconds": 1e300},
        [27],
        "27",
    ],
    ids=str,
)
def test_usage_that_is_not_whole_is_no_usage(usage):
    assert told("transcriptions", usage) == UNKNOWN_USAGE


def test_a_transcription_whose_stream_ended_in_an_error_is_a_lower_bound():
    report = told("transcriptions", tokens(14), error=True)
    assert report.exactness is Exactness.LOWER_BOUND


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("whisper-1", tokens(14)),
        ("gpt-4o-transcribe", {"type": "duration", "seconds": 9}),
    ],
)
def test_usage_that_the_model_has_no_price_for_is_not_free(model, usage):
    with pytest.raises(ValueError, match="no price"):
        priced(model).cost(told("transcriptions", usage), AT_MS)


def test_a_price_of_ones_own_is_for_tokens_of_whatever_kind():
    own = OwnPrice("openai", "*", Decimal(1), Decimal(2))
    facts = read("transcriptions", sound("my-transcribe"))
    assert priced("my-transcribe", own).covers(facts, AT_MS)
    assert not priced("whisper-1", own).covers(read("transcriptions", sound()), AT_MS)


def test_a_model_without_a_price_for_sound_is_not_covered():
    assert not priced("gpt-4o").covers(read("transcriptions", sound("gpt-4o")), AT_MS)


def test_sound_in_chunks_is_refused_where_each_chunk_is_billed_by_its_tokens():
    chunked = {"chunking_strategy": "auto"}
    assert reason_of("transcriptions", sound("gpt-4o-transcribe", **chunked)) is (
        Reason.UNMETERED_ENDPOINT
    )
    assert read("transcriptions", sound("whisper-1", **chunked)).model == "whisper-1"


@pytest.mark.parametrize(
    "body",
    [
        form(part("file", b"x", filename="a")),
        form(part("model", "whisper-1")),
        form(part("model", ""), part("file", b"x", filename="a")),
        sound("whisper-1", stream="1"),
    ],
)
def test_a_transcription_needs_a_model_a_file_and_plain_flags(body):
    assert reason_of("transcriptions", body) is Reason.UNPARSEABLE_BODY


def test_a_transcription_may_be_a_stream():
    assert read("transcriptions", sound("gpt-4o-transcribe", stream="true")).stream
    assert not read("transcriptions", sound("gpt-4o-transcribe", stream="false")).stream


@pytest.mark.parametrize("name", ["stream", "language", "chunking_strategy"])
def test_a_translation_has_no_more_fields_than_the_sdk(name):
    assert reason_of("translations", sound(**{name: "true"})) is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize("model", ["gpt-image-1", "gpt-image-1-mini"])
@given(
    pictures=st.integers(1, 16),
    made=st.integers(1, 10),
    prompt=st.text(max_size=99),
    each=st.integers(0, 65 + 8 * 129 + 6240),
)
def test_no_edit_within_the_models_limits_costs_more_than_its_estimate(
    model, pictures, made, prompt, each
):
    facts = read("image_edits", edit(model, pictures, prompt=prompt, n=str(made)))
    said, seen, drawn = (
        len(prompt.encode()) * made,
        each * pictures * made,
        (6240 + 300) * made,
    )
    usage = {
        "input_tokens": said + seen,
        "input_tokens_details": {"text_tokens": said, "image_tokens": seen},
        "output_tokens": drawn,
        "total_tokens": said + seen + drawn,
    }
    report = told("image_edits", usage)
    assert report.exactness is Exactness.EXACT
    assert priced(model).cost(report, AT_MS) <= priced(model).estimate(facts, AT_MS, None).nanousd


def test_every_file_of_an_edit_is_a_picture_for_each_that_is_made():
    body = form(
        part("model", "gpt-image-1"),
        part("image[]", PNG, filename="a.png"),
        part("image[]", PNG, filename="b.png"),
        part("mask", PNG, filename="c.png"),
        part("n", "3"),
    )
    facts = read("image_edits", body)
    one = read("image_edits", edit(prompt="x"))
    assert one.input_tokens_max is not None
    assert facts.input_tokens_max is not None
    assert facts.input_tokens_max >= 3 * one.input_tokens_max - 3
    assert (facts.images, facts.answers, facts.media) == (9, 3, True)


def test_a_picture_of_a_model_whose_most_is_not_known_is_held_at_the_most_of_any():
    facts = read("image_edits", edit("gpt-image-2"))
    estimate = priced("gpt-image-2").estimate(facts, AT_MS, None)
    assert estimate.input_tokens >= 1_000_000


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": "11"}, Reason.UNPARSEABLE_BODY),
        ({"n": "1.0"}, Reason.UNPARSEABLE_BODY),
        ({"stream": "yes"}, Reason.UNPARSEABLE_BODY),
        ({"stream": "true", "n": "2"}, Reason.UNMETERED_ENDPOINT),
        ({"output_format": "gif"}, Reason.UNMETERED_ENDPOINT),
        ({"output_format": "svg"}, Reason.UNMETERED_ENDPOINT),
        ({"frame_count": "16"}, Reason.UNMETERED_ENDPOINT),
        ({"svg[model]": "gpt-5"}, Reason.UNPARSEABLE_BODY),
        ({"complexity": "high"}, Reason.UNMETERED_ENDPOINT),
    ],
    ids=str,
)
def test_an_edit_that_nothing_bounds_is_refused(fields, reason):
    assert reason_of("image_edits", edit(**fields)) is reason


def test_an_edit_needs_a_picture():
    body = form(part("model", "gpt-image-1"), part("prompt", "a cat"))
    assert reason_of("image_edits", body) is Reason.UNPARSEABLE_BODY


@pytest.mark.parametrize("output_format", ["gif", "svg", "PNG", 7])
def test_a_drawing_of_more_than_one_picture_is_refused_too(output_format):
    body = json.dumps({"model": "gpt-image-1", "prompt": "x", "output_format": output_format})
    with pytest.raises(RequestError):
        OPENAI.read_request("images", Request(body.encode()))


def test_sound_that_looks_like_many_values_is_read_all_the_same():
    """It is no JSON: what a parser of that would have to build says nothing."""
    body = sound("whisper-1", b"[,{" * 1_200_000)
    facts = read_in_child("openai", "transcriptions", Request(body, content_type=FORM_TYPE))
    assert isinstance(facts, RequestFacts)
