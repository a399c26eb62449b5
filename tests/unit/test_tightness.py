"""No documented call did cost more than it would have been estimated at."""

import pytest
from tightness import SAMPLES, Tightness, tightness_of


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["source"])
def test_an_estimate_is_not_below_the_cost_as_it_was_sent_or_capped_at_its_output(sample):
    call: Tightness = tightness_of(sample)
    assert call.cost <= call.estimate_under_its_output <= call.estimate
    assert call.input_tokens <= call.input_estimate
