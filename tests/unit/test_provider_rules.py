"""What the config says of a provider: fixed prices, deployments, and headers that may pass."""

from dataclasses import replace

import pytest
from forms import FORM_TYPE, sound
from service_rules import DOLLAR, KEY, Desk, Seen, agent, budget, call

from extauthz.identity import hash_key
from extauthz.ledger import Outcome
from extauthz.policies import OutputCaps
from extauthz.providers.base import CapturedResponse
from extauthz.reasons import Decision, Reason
from extauthz.service.completed_call import CompletedCall
from extauthz.service.settle import Settler
from extauthz.service.verdict import CallAttributes, Verdict

DAY = budget(10)
UPLOAD = {"provider": "open", "path": "/v1/files/abc", "body": b"--x\r\nnot json"}
DATED = "api-version=2024-10-21"
CHAT_AT_AZURE = {
    "provider": "azure", "path": "/openai/deployments/mine/chat/completions", "query": DATED,
    "headers": {"api-key": KEY},
}  # fmt: skip


TEN_MINUTES_NANOUSD = {"whisper-1": 60_000_000, "gpt-transcribe": 45_000_000}
"""At $0.006 and $0.0045 a minute."""


def hearing(model: str, path: str = "transcriptions", provider: str = "hearing") -> CallAttributes:
    """A sound is sent to a model; provider `hearing` may be sent ten minutes."""
    return call(
        provider=provider,
        path=f"/v1/audio/{path}",
        headers={"authorization": f"Bearer {KEY}", "content-type": FORM_TYPE},
        body=sound(model),
    )


async def decide(desk: Desk, attributes: CallAttributes) -> Verdict:
    return await desk.authorizer.authorize(attributes)


async def ended(desk: Desk, verdict: Verdict, status: int, **captured: str):
    """The settlement of a call that the provider answered with this status."""
    assert verdict.record is not None
    seen = Seen()
    settler = Settler(desk.authorizer.rules, desk.memory, desk.room, desk.clock, seen)
    end = CompletedCall(
        verdict.record, CapturedResponse(**captured), status, via_upstream=True, left=True,
        refused=False, periodic=False, ended_at_ms=desk.clock(),
    )  # fmt: skip
    assert await settler.settle([end]) == []
    return seen.settlements[0]


async def test_a_call_at_a_fixed_price_holds_it_and_is_charged_it():
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, call(**UPLOAD))
    assert verdict.decision is Decision.ALLOW
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == 3 * DOLLAR
    assert desk.reader.bodies == []  # whatever it is, it is not read
    settlement = await ended(desk, verdict, 200, usage='{"prompt_tokens": 1000000}')
    assert settlement.cost_nanousd == 3 * DOLLAR
    assert settlement.price_version == "config"


async def test_a_call_at_a_fixed_price_that_the_provider_refused_is_released():
    desk = Desk.of(agent(DAY))
    settlement = await ended(desk, await decide(desk, call(**UPLOAD)), 400)
    assert settlement.outcome is Outcome.RELEASED


async def test_calls_at_a_fixed_price_stop_at_the_limit():
    desk = Desk.of(agent(DAY))
    verdicts = [await decide(desk, call(**UPLOAD)) for _ in range(4)]
    assert [v.decision for v in verdicts] == [Decision.ALLOW] * 3 + [Decision.DENY]


@pytest.mark.parametrize(
    "fields",
    [{"path": "/v1/files"}, {"path": "/v1/files/a/b"}, {"path": "/v1/files/"}, {"method": "GET"}],
)
async def test_a_fixed_price_is_for_its_own_method_and_path_only(fields):
    verdict = await decide(Desk.of(agent(DAY)), call(**UPLOAD | fields))
    assert verdict.reason is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize(
    ("models", "allowed"), [(("*",), True), (("/v1/files/*",), True), (("gpt*",), False)]
)
async def test_the_path_stands_for_the_model_in_an_allow_list(models, allowed):
    verdict = await decide(Desk.of(agent(DAY, models_allowed=models)), call(**UPLOAD))
    assert (verdict.decision is Decision.ALLOW) is allowed


async def test_a_deployment_is_priced_and_recorded_as_the_model_behind_it():
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, call(3, **CHAT_AT_AZURE))
    assert verdict.decision is Decision.ALLOW
    assert verdict.record is not None
    assert verdict.record.model == "small"
    assert verdict.record.estimate_nanousd == 3 * DOLLAR


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/openai/deployments/other/chat/completions"},
        {
            "path": "/openai/v1/chat/completions",
            "query": "",
        },  # the body says "small", no deployment
    ],
)
async def test_a_deployment_of_which_nothing_is_known_is_unpriced(fields):
    verdict = await decide(Desk.of(agent(DAY)), call(**CHAT_AT_AZURE | fields))
    assert verdict.reason is Reason.UNPRICED_MODEL


@pytest.mark.parametrize(
    ("provider", "status", "outcome"),
    [("azure", 400, Outcome.SETTLED), ("azure", 408, Outcome.SETTLED),
     ("azure", 429, Outcome.RELEASED), ("openai", 400, Outcome.RELEASED)],
)  # fmt: skip
async def test_each_provider_has_its_own_statuses_that_cost_nothing(provider, status, outcome):
    desk = Desk.of(agent(DAY))
    fields = CHAT_AT_AZURE if provider == "azure" else {}
    settlement = await ended(desk, await decide(desk, call(3, **fields)), status)
    assert settlement.outcome is outcome
    assert settlement.cost_nanousd == (3 * DOLLAR if outcome is Outcome.SETTLED else 0)


@pytest.mark.parametrize(
    ("provider", "headers", "allowed"),
    [
        ("openai", {"anthropic-beta": "prompt-caching-2024-07-31"}, True),
        ("openai", {"anthropic-beta": "prompt-caching-2024-07-31,context-1m-2025-08-07"}, False),
        ("open", {"anthropic-beta": "prompt-caching-2024-07-31, context-1m-2025-08-07"}, True),
        ("openai", {"anthropic-beta": ""}, True),
        ("openai", {"openai-beta": "assistants=v2"}, False),
        ("openai", {"x-ms-spillover-deployment": "dearer"}, False),
        ("openai", {"openai-project": "proj_1", "openai-organization": "org_1"}, True),
        ("open", {"openai-project": "proj_1"}, True),
        ("open", {"openai-project": "other"}, False),
        ("open", {"openai-organization": "org_1"}, True),
    ],
)
async def test_headers_that_move_the_bill_or_its_price_pass_by_allow_list_only(
    provider, headers, allowed
):
    headers = {"authorization": f"Bearer {KEY}", **headers}
    verdict = await decide(Desk.of(agent(DAY)), call(provider=provider, headers=headers))
    assert (verdict.decision is Decision.ALLOW) is allowed
    if not allowed:
        assert verdict.reason is Reason.UNMETERED_ENDPOINT


async def test_the_endpoint_travels_with_the_call():
    desk = Desk.of(agent(DAY))
    assert hash_key(KEY) in desk.authorizer.rules.policies.agent_by_key_hash
    sent = {"model": "small", "max_output_tokens": 1, "input": "x"}
    attributes = replace(call(path="/v1/responses"), body=str(sent).replace("'", '"').encode())
    verdict = await decide(desk, attributes)
    assert verdict.record is not None
    assert verdict.record.endpoint == "responses"


async def test_a_default_cap_bounds_only_what_it_can_be_written_into():
    desk = Desk.of(agent(DAY, output_caps=OutputCaps(default=1)))
    body = b'{"model": "small", "prompt": "a cat"}'
    verdict = await decide(desk, call(path="/v1/images/generations", body=body))
    assert verdict.estimate is not None
    assert verdict.estimate.output_tokens > 1


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
@pytest.mark.parametrize("model", TEN_MINUTES_NANOUSD)
async def test_sound_that_is_billed_by_the_second_is_refused_where_nothing_bounds_them(model, path):
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, hearing(model, path, provider="openai"))
    assert (verdict.decision, verdict.reason) == (Decision.DENY, Reason.UNMETERED_ENDPOINT)
    assert verdict.status == 403
    for remedy in (
        "providers.openai.max_audio_seconds", "gpt-4o-transcribe", "gpt-4o-mini-transcribe",
    ):  # fmt: skip
        assert remedy in verdict.message


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
@pytest.mark.parametrize(("model", "held"), TEN_MINUTES_NANOUSD.items())
async def test_sound_that_is_billed_by_the_second_is_held_at_the_seconds_of_the_config(
    model, held, path
):
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, hearing(model, path))
    assert verdict.decision is Decision.ALLOW
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == held


@pytest.mark.parametrize(
    ("told", "nanousd"),
    [
        ('{"type": "duration", "seconds": 30}', 3_000_000),
        ('{"type": "duration", "seconds": 900}', 90_000_000),
        (None, 60_000_000),
    ],
    ids=["less than was held", "more than was held", "not told"],
)
async def test_sound_is_charged_the_seconds_that_its_answer_tells_be_they_more_than_were_held(
    told, nanousd
):
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, hearing("whisper-1"))
    settlement = await ended(desk, verdict, 200, **({} if told is None else {"usage": told}))
    assert settlement.cost_nanousd == nanousd
    assert settlement.overshoot_nanousd == max(0, nanousd - 60_000_000)


async def test_sound_that_is_billed_by_its_tokens_needs_no_seconds():
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, hearing("gpt-4o-mini-transcribe", provider="openai"))
    assert verdict.decision is Decision.ALLOW
