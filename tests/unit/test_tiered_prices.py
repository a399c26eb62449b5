"""A model whose rate depends on the length of its input: the estimate bounds either side."""

from decimal import Decimal

import pytest

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request

AT_MS = 1_760_000_000_000
MILLION = Decimal(1_000_000)


@pytest.mark.parametrize(
    ("text_bytes", "input_rate", "output_rate"),
    [
        pytest.param(100, Decimal(3), Decimal(15), id="below the threshold"),
        pytest.param(300_000, Decimal(6), Decimal("22.5"), id="above it"),
    ],
)
def test_the_estimate_takes_the_rate_of_the_tier_that_the_input_reaches(
    text_bytes: int, input_rate: Decimal, output_rate: Decimal
) -> None:
    priced = PriceBook([]).find("anthropic", "anthropic", "claude-sonnet-4-5")
    body = (
        '{"model":"claude-sonnet-4-5","max_tokens":1000,"inference_geo":"global",'
        '"messages":[{"role":"user","content":"' + "a" * text_bytes + '"}]}'
    )
    facts = ADAPTERS["anthropic"].read_request("messages", Request(body.encode()))
    assert priced is not None

    estimate = priced.estimate(facts, AT_MS, None)

    usd = (estimate.input_tokens * input_rate + 1000 * output_rate) / MILLION
    assert estimate.nanousd == usd * 1_000_000_000
