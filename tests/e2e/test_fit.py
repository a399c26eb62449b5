"""`estimate: fit`: calls are shortened to what is left, all of them together stay in the limit."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from calls import HELLO, MESSAGES, post, received
from sdk_calls import SELLERS, Told, add_providers, caller
from servers import until
from sidecar import Sidecar, agent, running_sidecar

MODEL, REASONING = "output-only", "gpt-5"
PRICED = {"input": "0", "output": "12.5"}
"""Input is free: 1,000 tokens of output are $0.0125."""
WORST = 16_384
FIFTHS, FIFTHS_NANOUSD = "1.024", 1_024_000_000
"""Five times the worst case, which is $0.2048."""
FOUR, FOUR_NANOUSD = "0.05", 50_000_000
BY_NAME = "answers-a-little"
"""A model whose name has a default of its own: 700 tokens."""
LONG = {"x-sandbox-output-tokens": str(WORST)}
"""Whoever may answer so much, does."""


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for name in ("many", "several", "bytes", "named", "thinking", "settling"):
        agents |= agent(name, FIFTHS)
    agents |= agent("defaulted", FOUR, default_output_tokens=1000)
    agents |= agent("reasoning", "0.10")
    for name in SELLERS:
        agents |= agent(f"at-once-{name}", FIFTHS) | agent(f"thinking-{name}", FIFTHS)
    agents |= agent("candidates", FIFTHS) | agent("agents-own", default_output_tokens=500)
    agents |= agent("models-own") | agent("both", budgets=[
        {"limit": FIFTHS, "window": "day"},
        {"limit": "0.1024", "window": "hour", "estimate": "strict"},
    ])  # fmt: skip
    prices = [
        {"provider": name, "model": model, **PRICED, "max_output_tokens": WORST}
        for name in ("openai", "anthropic", *SELLERS)
        for model in (MODEL, BY_NAME)
    ]
    defaults = {"estimate": "fit", "hold_wait": "10s"}
    models = {"answers-*": {"default_output_tokens": 700}}
    with running_sidecar(
        agents=agents, prices=prices, defaults=defaults, models=models, start=False
    ) as running:
        add_providers(running)
        running.start()
        for name in ("openai", "anthropic", *SELLERS.values()):
            for model in (MODEL, BY_NAME):
                running.sandbox.set_price(name, model, **PRICED)
        yield running


def ask(client: openai.OpenAI, **fields: Any) -> tuple[int, int | None, str | None]:
    """One call: its status, the cap that was written, the reason of a refusal."""
    try:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, extra_headers=LONG, **fields
        )
    except openai.APIStatusError as error:
        return error.status_code, None, error.response.headers["x-budget-reason"]
    cap = answer.headers.get("x-budget-output-cap")
    return answer.status_code, None if cap is None else int(cap), None


def assert_spent_within(sidecar: Sidecar, name: str, limit: int, calls_of_tokens: int) -> None:
    """What was answered is what is spent, and none of it is beyond a limit or a reservation."""
    sidecar.until_settled()
    spent = calls_of_tokens * 12_500
    until(lambda: sidecar.balance(name) == (spent, 0))
    assert spent <= limit
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0


def test_of_twenty_calls_at_once_without_a_cap_as_many_are_admitted_as_their_default_pays_for(
    sidecar: Sidecar,
) -> None:
    client, together = sidecar.openai("defaulted"), threading.Barrier(20)

    def call(_number: int) -> tuple[int, int | None, str | None]:
        together.wait(60)
        return ask(client)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(call, range(20)))

    assert Counter((status, cap) for status, cap, _ in answers) == {(200, 1000): 4, (429, None): 16}
    until(lambda: sidecar.balance("defaulted") == (FOUR_NANOUSD, 0))


def test_ten_calls_at_once_that_could_each_cost_a_fifth_are_all_admitted(sidecar: Sidecar) -> None:
    client = sidecar.openai("many")
    capped_before = sidecar.metric("extauthz_output_capped_total", agent="many")

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(client), range(10)))

    assert [status for status, _, _ in answers] == [200] * 10
    tokens = sum(WORST if cap is None else cap for _, cap, _ in answers)
    assert_spent_within(sidecar, "many", FIFTHS_NANOUSD, tokens)
    capped = sum(cap is not None for _, cap, _ in answers)
    assert capped == 8
    counted = sidecar.metric("extauthz_output_capped_total", agent="many", by="fit")
    assert counted - capped_before == capped


@pytest.mark.parametrize(
    ("name", "fields", "caps"),
    [
        # A share of the room each, and four answers to a call; then all that is left.
        ("several", {"n": 4}, [5120, 4096, 4096, 4096, 3072]),
        # What the client names, it may use up.
        ("named", {"max_completion_tokens": WORST, "n": 2}, [None, None, 8192]),
    ],
)
def test_near_the_limit_caps_shrink_and_then_calls_are_refused(
    sidecar: Sidecar, name: str, fields: dict[str, Any], caps: list[int | None]
) -> None:
    client = sidecar.openai(name)

    answers = [ask(client, **fields) for _ in range(len(caps) + 1)]

    assert answers[:-1] == [(200, cap, None) for cap in caps]
    assert answers[-1][0] == 429
    assert answers[-1][2] in ("budget_exhausted", "budget_held")
    tokens = sum(WORST if cap is None else cap for cap in caps) * fields["n"]
    assert tokens == 5 * WORST
    assert_spent_within(sidecar, name, FIFTHS_NANOUSD, tokens)
    assert ask(client, **fields)[2] == "budget_exhausted"


def test_a_cap_is_all_that_changes_in_a_body(sidecar: Sidecar) -> None:
    before = b'{ "messages" :[{"role":"user","content":"h\\u00e9 \\"max_tokens\\":7"}],\t'
    after = b' ,"metadata":{"max_tokens":"9"}, "n":8,"model" : "output-only"}'

    answer = post(sidecar, "bytes", before + b'"max_tokens" : 16384' + after)

    assert answer.status == 200, answer.body
    cap = answer.headers["x-budget-output-cap"]
    assert cap == "10240"
    seen = received(sidecar.sandbox, answer.mark)
    assert seen is not None
    body = before + b'"max_tokens" : ' + cap.encode() + after
    assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
    sidecar.until_settled()
    row = next(row for row in sidecar.rows() if '"agent":"bytes"' in row.particulars)
    assert json.loads(row.particulars)["output_cap"] == cap


def test_a_strict_budget_refuses_what_does_not_fit_it_as_it_is(sidecar: Sidecar) -> None:
    client = sidecar.openai("both")

    assert ask(client) == (403, None, "request_too_large")
    assert ask(client, max_completion_tokens=8192) == (200, None, None)


def test_a_reasoning_model_gets_its_cap_under_the_name_that_it_knows(sidecar: Sidecar) -> None:
    """The sandbox refuses `max_tokens` of such a model, as OpenAI does."""
    create = sidecar.openai("reasoning").chat.completions.with_raw_response.create
    headers = LONG | {"x-sandbox-reasoning-tokens": "12000"}
    caps: list[int] = []

    def call() -> None:
        answer = create(
            model=REASONING, messages=HELLO, service_tier="default", extra_headers=headers
        )
        caps.append(int(answer.headers["x-budget-output-cap"]))
        assert answer.parse().usage.completion_tokens == caps[-1]

    def call_ten_times() -> None:
        for _ in range(10):
            call()

    with pytest.raises(openai.RateLimitError) as caught:
        call_ten_times()

    assert caps[:2] == [4096, 4096]
    assert caps[1:] == sorted(caps[1:], reverse=True)
    assert caught.value.response.headers["x-budget-reason"] in ("budget_exhausted", "budget_held")
    sidecar.until_settled()
    assert sidecar.balance("reasoning")[0] <= 100_000_000
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0


def test_what_a_message_may_think_is_left_to_it_or_it_is_refused(sidecar: Sidecar) -> None:
    def think(tokens: int, most: int) -> Any:
        body = {
            "model": MODEL,
            "max_tokens": most,
            "messages": HELLO,
            "thinking": {"type": "enabled", "budget_tokens": tokens},
        }
        settings = {"x_sandbox_output_tokens": "200000", "x_sandbox_reasoning_tokens": str(tokens)}
        return body, post(sidecar, "thinking", body, path=MESSAGES, **settings)

    _, first = think(30_000, 40_000)
    assert (first.status, first.headers.get("x-budget-output-cap")) == (200, None)
    body, second = think(41_000, 60_000)
    assert (second.status, second.headers.get("x-budget-output-cap")) == (200, "41920")
    seen = received(sidecar.sandbox, second.mark)
    assert seen is not None
    sent = json.dumps(body).replace('"max_tokens": 60000', '"max_tokens": 41920')
    assert seen["body_sha256"] == hashlib.sha256(sent.encode()).hexdigest()
    _, third = think(1024, 2000)
    assert third.reason in ("budget_exhausted", "budget_held")
    assert_spent_within(sidecar, "thinking", FIFTHS_NANOUSD, 5 * WORST)


def test_a_message_that_would_have_no_room_to_answer_is_refused(sidecar: Sidecar) -> None:
    body = {
        "model": MODEL,
        "max_tokens": 100_000,
        "messages": HELLO,
        "thinking": {"type": "enabled", "budget_tokens": 5 * WORST - 255},
    }

    assert post(sidecar, "settling", body, path=MESSAGES).reason == "request_too_large"


def assert_capped_and_then_refused(sidecar: Sidecar, name: str, told: list[Told]) -> None:
    """Ten at once were let through; those after them got less and less, and then nothing."""
    assert [one.status for one in told[:10]] == [200] * 10
    later = [one.cap for one in told[10:-1]]
    assert None not in later
    assert later == sorted(later, key=int, reverse=True)
    assert told[-1].reason in ("budget_exhausted", "budget_held")
    sidecar.until_settled()
    until(lambda: sidecar.balance(name)[0] == sidecar.sandbox.total_nanousd(name))
    assert FIFTHS_NANOUSD * 0.9 < sidecar.balance(name)[0] <= FIFTHS_NANOUSD
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0


@pytest.mark.parametrize("provider", SELLERS)
def test_of_every_sdk_ten_calls_at_once_share_what_is_left_and_the_limit_is_never_passed(
    sidecar: Sidecar, provider: str
) -> None:
    """The provider obeys the cap that was written, and keeps its own bill."""
    name = f"at-once-{provider}"
    call = caller(sidecar, provider, name)
    script = {"output_tokens": WORST}

    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(lambda _: call(MODEL, None, script), range(10)))
    while told[-1].status == 200 and len(told) < 200:
        told.append(call(MODEL, None, script))

    assert_capped_and_then_refused(sidecar, name, told)


@pytest.mark.parametrize(
    ("provider", "thinks"),
    [
        ("gemini", lambda n: {"thinking_config": {"thinking_budget": n}}),
        ("bedrock", lambda n: {"additionalModelRequestFields": {
            "thinking": {"type": "enabled", "budget_tokens": n}}}),
    ],
)  # fmt: skip
def test_what_a_model_may_think_is_left_to_it_by_every_provider(
    sidecar: Sidecar, provider: str, thinks: Any
) -> None:
    name = f"thinking-{provider}"
    call = caller(sidecar, provider, name)
    script = {"output_tokens": 200_000, "reasoning_tokens": 30_000}

    first = call(MODEL, 50_000, script, **thinks(20_000))
    assert (first.status, first.cap) == (200, None)
    second = call(MODEL, 50_000, script, **thinks(20_000))
    assert (second.status, second.cap) == (200, 5 * WORST - 50_000)
    third = call(MODEL, 50_000, script, **thinks(20_000))
    assert third.reason in ("budget_exhausted", "budget_held")
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0


def test_each_candidate_of_geminis_gets_the_cap_and_all_are_held(sidecar: Sidecar) -> None:
    call = caller(sidecar, "gemini", "candidates")
    caps = [call(MODEL, None, {"output_tokens": WORST}, candidate_count=4) for _ in range(6)]

    assert [told.cap for told in caps] == [5120, 4096, 4096, 4096, 3072, None]
    assert caps[-1].status == 429
    assert_spent_within(sidecar, "candidates", FIFTHS_NANOUSD, 5 * WORST)


@pytest.mark.parametrize(
    ("name", "model", "cap"),
    [("agents-own", BY_NAME, 500), ("agents-own", MODEL, 500), ("models-own", BY_NAME, 700)],
)
def test_the_default_cap_is_the_agents_own_else_the_models(
    sidecar: Sidecar, name: str, model: str, cap: int
) -> None:
    """(That of all others, where neither has one, is in test_gemini and test_refusals.)"""
    answer = sidecar.openai(name).chat.completions.with_raw_response.create(
        model=model, messages=HELLO, extra_headers=LONG
    )

    assert int(answer.headers["x-budget-output-cap"]) == cap
    assert answer.parse().usage.completion_tokens == cap
