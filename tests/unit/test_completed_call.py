"""Rule 5 of the ledger: free only on proof that nothing was billed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.providers.base import UNBILLED_STATUS, CapturedResponse
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.service.completed_call import CompletedCall, Ending
from extauthz.service.completed_call import ending_of as _ending_of

RECORD = CallRecord("i", "d", "o", "bot", "openai", "m", 1, 5, 2, (HeldPart("k", "usd", 3, 4),))
ANSWERED = CompletedCall(
    RECORD,
    CapturedResponse(),
    status=200,
    via_upstream=True,
    left=True,
    refused=False,
    periodic=False,
    ended_at_ms=5,
)


def ending_of(call: CompletedCall) -> Ending:
    return _ending_of(call, UNBILLED_STATUS)


@pytest.mark.parametrize("status", sorted(UNBILLED_STATUS))
def test_a_refusal_by_the_provider_itself_is_free(status):
    assert ending_of(replace(ANSWERED, status=status)) is Ending.RELEASE


@pytest.mark.parametrize("status", sorted(UNBILLED_STATUS))
def test_the_same_status_written_by_envoy_after_sending_is_charged(status):
    call = replace(ANSWERED, status=status, via_upstream=False)
    assert ending_of(call) is Ending.CHARGE


@pytest.mark.parametrize("status", [0, 200, 201, 204, 206, 302, 402, 408, 409, 451, 499, 502, 504])
def test_any_other_answer_is_charged(status):
    for via_upstream in (True, False):
        call = replace(ANSWERED, status=status, via_upstream=via_upstream)
        assert ending_of(call) is Ending.CHARGE


@pytest.mark.parametrize("status", sorted(UNBILLED_STATUS))
def test_a_refusal_that_the_agent_did_not_read_to_its_end_is_free_where_envoy_has_none_such(status):
    call = replace(ANSWERED, status=status, via_upstream=False, client_left=True)
    envoys_own = status in (413, 500, 503)
    assert ending_of(call) is (Ending.CHARGE if envoys_own else Ending.RELEASE)


@pytest.mark.parametrize("status", [0, 200, 408, 502, 504])
def test_an_agent_that_leaves_any_other_answer_is_charged(status):
    call = replace(ANSWERED, status=status, via_upstream=False, client_left=True)
    assert ending_of(call) is Ending.CHARGE


def test_a_request_that_never_left_is_free():
    assert ending_of(replace(ANSWERED, status=503, via_upstream=False, left=False)) is (
        Ending.RELEASE
    )


def test_a_request_that_was_refused_before_any_processing_is_free():
    assert ending_of(replace(ANSWERED, status=503, via_upstream=False, refused=True)) is (
        Ending.RELEASE
    )


def test_an_open_stream_is_renewed_whatever_it_has_told():
    call = replace(ANSWERED, periodic=True, captured=CapturedResponse(usage="{}"))
    assert ending_of(call) is Ending.RENEW


@given(
    st.integers(0, 599),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(
        [CapturedResponse(**{name: "{}"}) for name in ("usage", "usage_start", "metrics")]
    ),
)
def test_what_has_usage_is_never_free(status, via_upstream, left, refused, captured):
    call = replace(
        ANSWERED,
        status=status,
        via_upstream=via_upstream,
        left=left,
        refused=refused,
        captured=captured,
    )
    assert ending_of(call) is Ending.CHARGE
