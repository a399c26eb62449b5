"""However a call ends: what the provider bills is spent, what it does not is released."""

import itertools
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from calls import CHAT, CLAUDE, GPT, HELLO, chat, message, post
from servers import until
from sidecar import Sidecar, agent, free_port, key_of, nanousd, running_sidecar

MODES = list(itertools.product(("openai", "anthropic"), ("json", "stream")))
STATUSES_UNBILLED = (400, 401, 403, 404, 429, 500, 503, 529)
STATUSES_IN_DOUBT = (402, 408, 409, 502, 504)
BOTS = 200
MB = 1_000_000
SDK_ERRORS = (openai.OpenAIError, anthropic.AnthropicError, httpx2.HTTPError)

# What the sandbox is told, and in which of the modes that means something.
EXACT: dict[str, tuple[dict[str, Any], str]] = {
    "as usual": ({}, ""),
    "cut off by its cap": ({"output_tokens": 5000}, ""),
    "no output at all": ({"output_tokens": 0}, ""),
    "cached tokens": ({"input_tokens": 900, "cached_tokens": 333}, ""),
    "reasoning": ({"output_tokens": 50, "reasoning_tokens": 31}, ""),
    "written to the cache": (
        {"cache_write_5m_tokens": 41, "cache_write_1h_tokens": 59, "cached_tokens": 7},
        "anthropic",
    ),
    "the output side last": ({"delta_usage": "output", "cached_tokens": 7}, "anthropic-stream"),
    "2 MB long": ({"pad_bytes": 2 * MB}, ""),
    "in 2,000 events": ({"pad_bytes": 20_000, "chunks": 2000}, "stream"),
    "slowly": ({"chunk_delay_ms": 30, "latency_ms": 100}, ""),
    "compressed all the same": ({"content_encoding": "gzip"}, ""),
    "compressed and long": ({"content_encoding": "gzip", "pad_bytes": 2 * MB}, ""),
    "with CRLF": ({"newline": "crlf"}, "stream"),
    "without its last blank line": ({"ending": "no-final-blank-line"}, "stream"),
    "without it, with CRLF": ({"ending": "no-final-blank-line", "newline": "crlf"}, "stream"),
}
UNTOLD: dict[str, tuple[dict[str, Any], str]] = {
    "without its usage": ({"ending": "no-usage"}, ""),
    "reset half-way": ({"ending": "reset", "pad_bytes": 100_000, "chunks": 10}, ""),
    "with an error half-way": ({"ending": "error-event"}, ""),
    "closed before its headers": ({"ending": "truncate-headers"}, ""),
}


def cases(table: dict[str, tuple[dict[str, Any], str]]) -> list[Any]:
    return [
        pytest.param(provider, mode, script, id=f"{what}, {provider} {mode}")
        for what, (script, only) in table.items()
        for provider, mode in MODES
        if only in f"{provider}-{mode}"
    ]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = agent("waiting", "0.0125") | agent("cheat", "0.0020")
    for number in range(BOTS):
        agents |= agent(f"bot{number}", "5.00")
    dead = {"api": "openai", "upstream": f"http://127.0.0.1:{free_port()}"}
    prices = [{"provider": "openai", "model": "by-hand", "input": "0", "output": "12.5"}]
    with running_sidecar(
        agents=agents, providers={"dead": dead}, prices=prices, defaults={"hold_wait": "10s"}
    ) as running:
        running.sandbox.set_price("openai", "by-hand", input="0", output="12.5")
        yield running


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def bot(numbers: Iterator[int]) -> str:
    """An agent that has not called yet."""
    number = next(numbers)
    assert number < BOTS
    return f"bot{number}"


def open_stream(sidecar: Sidecar, provider: str, name: str, **script: Any) -> Any:
    return _create(sidecar, provider, name, script, stream=True)


def call(
    sidecar: Sidecar, provider: str, mode: str, name: str, *, timeout: float = 30, **script: Any
) -> Exception | None:
    """One call by the SDK, read to its end, which goes as the script says; the error it raised."""
    try:
        answer = _create(sidecar, provider, name, script, stream=mode == "stream", timeout=timeout)
        if mode == "stream":
            for _ in answer:
                pass
    except SDK_ERRORS as error:
        return error
    return None


def _create(
    sidecar: Sidecar,
    provider: str,
    name: str,
    script: dict[str, Any],
    *,
    stream: bool,
    timeout: float = 30,
) -> Any:
    headers = {f"x-sandbox-{key.replace('_', '-')}": str(value) for key, value in script.items()}
    fields: dict[str, Any] = {
        "messages": HELLO,
        "max_tokens": 50,
        "stream": stream,
        "extra_headers": headers,
        "timeout": timeout,
    }
    if provider == "openai":
        return sidecar.openai(name).chat.completions.create(model=GPT, user=name, **fields)
    metadata = {"user_id": name}
    return sidecar.anthropic(name).messages.create(model=CLAUDE, metadata=metadata, **fields)


def settled(sidecar: Sidecar, name: str) -> dict[str, Any]:
    """The log line of the settlement of an agent's only call, once it is there."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        lines = sidecar.log_lines("settlement")
        found[:] = [line for line in lines if line.get("agent") == name]
        return bool(found)

    until(is_there)
    (line,) = found
    return line


def estimate_of(sidecar: Sidecar, name: str) -> int:
    (line,) = (line for line in sidecar.log_lines("decision") if line["agent"] == name)
    return nanousd(line["estimate_usd"])


def assert_spent_is_the_bill(sidecar: Sidecar, name: str) -> None:
    assert settled(sidecar, name)["outcome"] == "settled"
    bill = sidecar.sandbox.total_nanousd(name)
    assert bill > 0
    assert sidecar.balance(name) == (bill, 0)


def assert_spent_is_the_reservation(sidecar: Sidecar, name: str) -> None:
    assert settled(sidecar, name)["outcome"] == "settled"
    estimate = estimate_of(sidecar, name)
    assert estimate >= sidecar.sandbox.total_nanousd(name)
    assert sidecar.balance(name) == (estimate, 0)


def assert_released(sidecar: Sidecar, name: str) -> None:
    assert settled(sidecar, name)["outcome"] == "released"
    assert sidecar.sandbox.total_nanousd(name) == 0
    assert sidecar.balance(name) == (0, 0)


@pytest.mark.parametrize(("provider", "mode", "script"), cases(EXACT))
def test_what_a_call_did_cost_is_spent_to_the_nanodollar(
    sidecar: Sidecar, bot: str, provider: str, mode: str, script: dict[str, Any]
) -> None:
    error = call(sidecar, provider, mode, bot, **script)

    assert error is None
    assert_spent_is_the_bill(sidecar, bot)


@pytest.mark.parametrize(("provider", "mode", "script"), cases(UNTOLD))
def test_what_a_call_did_cost_is_not_known_so_its_reservation_is_spent(
    sidecar: Sidecar, bot: str, provider: str, mode: str, script: dict[str, Any]
) -> None:
    call(sidecar, provider, mode, bot, **script)

    assert_spent_is_the_reservation(sidecar, bot)


@pytest.mark.parametrize("mode", ["json", "stream"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("status", STATUSES_UNBILLED)
def test_what_the_provider_refused_is_released(
    sidecar: Sidecar, bot: str, provider: str, mode: str, status: int
) -> None:
    error = call(sidecar, provider, mode, bot, status=status)

    # The provider's own answer, as if nothing stood between.
    assert isinstance(error, openai.APIStatusError | anthropic.APIStatusError)
    assert error.status_code == status
    assert "told to fail" in str(error)
    assert "x-budget-reason" not in error.response.headers
    assert_released(sidecar, bot)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("status", STATUSES_IN_DOUBT)
def test_what_the_provider_may_have_billed_is_spent(
    sidecar: Sidecar, bot: str, provider: str, status: int
) -> None:
    call(sidecar, provider, "json", bot, status=status)

    assert_spent_is_the_reservation(sidecar, bot)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_client_that_hangs_up_half_way_has_spent_no_less_than_the_bill(
    sidecar: Sidecar, bot: str, provider: str
) -> None:
    with open_stream(sidecar, provider, bot, chunk_delay_ms=100_000) as stream:
        next(iter(stream))

    assert_spent_is_the_reservation(sidecar, bot)
    assert sidecar.sandbox.total_nanousd(bot) > 0


def test_who_hangs_up_in_a_loop_to_cheat_is_stopped_at_the_limit(sidecar: Sidecar) -> None:
    def hang_up() -> str:
        """Why the call was refused; "" if it was not, and then its client left half-way."""
        try:
            with open_stream(sidecar, "openai", "cheat", chunk_delay_ms=100_000) as stream:
                next(iter(stream))
        except openai.APIStatusError as error:
            return error.response.headers["x-budget-reason"]
        return ""

    reasons = (hang_up() for _ in range(50))

    assert next(filter(None, reasons), "never refused") in ("budget_exhausted", "budget_held")
    until(lambda: sidecar.balance("cheat")[1] == 0)
    billed = sidecar.sandbox.total_nanousd("cheat")
    calls = [one for one in sidecar.log_lines("settlement") if one["agent"] == "cheat"]
    assert len(calls) >= 3
    assert 0 < billed <= sidecar.balance("cheat")[0] <= 2_000_000


def test_a_client_that_leaves_after_the_last_token_pays_what_was_reserved(
    sidecar: Sidecar, bot: str
) -> None:
    """Before the usage has come: the provider bills the whole answer, and told nobody."""
    with open_stream(sidecar, "openai", bot, chunks=2, chunk_delay_ms=1_000) as stream:
        for event in stream:
            if event.choices and event.choices[0].finish_reason:
                break

    assert_spent_is_the_reservation(sidecar, bot)
    assert settled(sidecar, bot)["exactness"] == "unknown"
    assert sidecar.sandbox.total_nanousd(bot) > 0


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("mode", ["json", "stream"])
def test_a_client_that_runs_out_of_patience_has_spent_no_less_than_the_bill(
    sidecar: Sidecar, bot: str, provider: str, mode: str
) -> None:
    error = call(sidecar, provider, mode, bot, timeout=1, ending="stall", pad_bytes=100_000)

    assert isinstance(error, openai.APIError | anthropic.APIError | httpx2.TimeoutException)
    assert_spent_is_the_reservation(sidecar, bot)
    assert sidecar.sandbox.total_nanousd(bot) > 0


def raw_request(sidecar: Sidecar, name: str, body: dict[str, Any], *headers: str) -> socket.socket:
    """A connection on which a call has been sent, and nothing read."""
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    data = json.dumps(body).encode()
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "host: egress",
        f"authorization: Bearer {key_of(name)}",
        f"content-length: {len(data)}",
        *headers,
    ]
    connection = socket.create_connection((host, int(port)))
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    return connection


def test_a_client_that_hangs_up_before_the_headers_has_spent_no_less_than_the_bill(
    sidecar: Sidecar, bot: str
) -> None:
    with raw_request(sidecar, bot, chat(user=bot), "x-sandbox-latency-ms: 100000"):
        until(lambda: sidecar.sandbox.total_nanousd(bot) > 0)

    assert_spent_is_the_reservation(sidecar, bot)


def test_a_client_that_leaves_while_check_waits_for_room_holds_nothing(sidecar: Sidecar) -> None:
    dear = chat(model="by-hand", max_tokens=1000, user="waiting")
    first = raw_request(sidecar, "waiting", dear, "x-sandbox-latency-ms: 100000")
    until(lambda: sidecar.sandbox.total_nanousd("waiting") > 0)
    estimate = sidecar.balance("waiting")[1]

    second = raw_request(sidecar, "waiting", dear)
    until(lambda: checks_under_way(sidecar) == 1)
    second.close()

    until(lambda: checks_under_way(sidecar) == 0)
    assert sidecar.balance("waiting") == (0, estimate)
    first.close()
    until(lambda: sidecar.balance("waiting") == (estimate, 0))


def checks_under_way(sidecar: Sidecar) -> int:
    """Checks that Envoy waits for, by its own count."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(sidecar.data_dir / "run" / "envoy.sock"))
        path = "/stats?filter=^cluster.check.upstream_rq_active$"
        admin.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
    return int(re.search(r"upstream_rq_active: (\d+)", answer)[1])


def test_half_a_request_holds_nothing(sidecar: Sidecar, bot: str) -> None:
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key_of(bot)}\r\n"
            "content-length: 100\r\n\r\n{".encode()
        )

    assert post(sidecar, bot, chat(user=bot)).status == 200
    assert_spent_is_the_bill(sidecar, bot)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_provider_that_cannot_be_reached_costs_nothing(
    sidecar: Sidecar, bot: str, stream: bool
) -> None:
    client = sidecar.openai(bot, base_url=f"{sidecar.egress}/dead/v1")

    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=GPT, messages=HELLO, max_tokens=50, stream=stream)

    assert caught.value.status_code == 503
    assert caught.value.code == "egress_error"
    assert "x-budget-reason" not in caught.value.response.headers
    assert_released(sidecar, bot)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_each_of_several_answers_is_paid_for(sidecar: Sidecar, bot: str, stream: bool) -> None:
    answer = post(sidecar, bot, chat(n=4, user=bot, stream=stream))

    assert answer.status == 200
    assert_spent_is_the_bill(sidecar, bot)
    assert settled(sidecar, bot)["usage"]["output_tokens"] == 4 * 16


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("tokens", [199_990, 200_010])
def test_a_long_prompt_is_settled_at_its_own_rates(
    sidecar: Sidecar, bot: str, tokens: int, stream: bool
) -> None:
    long = [{"role": "user", "content": "a" * tokens}]
    body = message(
        model="claude-sonnet-4-5", messages=long, metadata={"user_id": bot}, stream=stream
    )

    answer = post(
        sidecar, bot, body, path="/anthropic/v1/messages", x_sandbox_input_tokens=str(tokens)
    )

    assert answer.status == 200
    assert_spent_is_the_bill(sidecar, bot)


def test_a_cost_above_the_reservation_is_spent_in_full_and_told(sidecar: Sidecar, bot: str) -> None:
    before = sidecar.metric("extauthz_overshoot_usd_total")

    call(sidecar, "openai", "json", bot, input_tokens=1_000_000)

    assert_spent_is_the_bill(sidecar, bot)
    overshoot = sidecar.balance(bot)[0] - estimate_of(sidecar, bot)
    assert overshoot > 0
    assert nanousd(settled(sidecar, bot)["overshoot_usd"]) == overshoot
    assert sidecar.metric("extauthz_overshoot_usd_total") == pytest.approx(before + overshoot / 1e9)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_error_that_is_billed_against_the_providers_word_is_not_seen(
    sidecar: Sidecar, bot: str, provider: str
) -> None:
    """A limit that is known: nothing in the answer says so, only the provider's invoice does."""
    call(sidecar, provider, "json", bot, status=500, billed_error=1)

    assert settled(sidecar, bot)["outcome"] == "released"
    assert sidecar.balance(bot) == (0, 0)
    assert sidecar.sandbox.total_nanousd(bot) > 0


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_free_call_leaves_no_trace_in_the_ledger(
    sidecar: Sidecar, bot: str, provider: str
) -> None:
    client: Any = sidecar.openai(bot) if provider == "openai" else sidecar.anthropic(bot)
    before = sidecar.metric("extauthz_settlements_total")

    assert list(client.models.list())
    if provider == "anthropic":
        assert client.models.retrieve(CLAUDE).id == CLAUDE
        assert client.messages.count_tokens(model=CLAUDE, messages=HELLO).input_tokens

    sidecar.until_settled()
    assert sidecar.balance(bot) == (0, 0)
    assert sidecar.metric("extauthz_settlements_total") == before


def test_every_settled_call_is_in_the_metrics(sidecar: Sidecar, bot: str) -> None:
    call(sidecar, "openai", "json", bot)
    call(sidecar, "openai", "stream", bot)

    until(lambda: sidecar.balance(bot) == (sidecar.sandbox.total_nanousd(bot), 0))
    told = sidecar.metric("extauthz_spent_usd_total", agent=bot, provider="openai", model=GPT)
    assert told == pytest.approx(sidecar.balance(bot)[0] / 1e9)


@pytest.fixture(scope="module")
def trusting() -> Iterator[Sidecar]:
    """A sidecar whose operator would rather charge too little than too much."""
    agents = agent("cut") | agent("untold") | agent("whole")
    with running_sidecar(agents=agents, defaults={"missing_usage": "observed"}) as running:
        yield running


def test_where_the_operator_says_so_only_what_was_observed_is_spent(trusting: Sidecar) -> None:
    call(trusting, "anthropic", "stream", "cut", ending="reset", chunks=10, pad_bytes=100_000)

    line = settled(trusting, "cut")
    # Haiku: 1 and 5 USD per million; message_start tells the input side and one token of output.
    observed = line["usage"]["input_tokens"] * 1000 + 5000
    assert line["exactness"] == "lower_bound"
    assert trusting.balance("cut") == (observed, 0)
    assert observed < estimate_of(trusting, "cut")


def test_even_then_what_tells_nothing_is_charged_its_reservation(trusting: Sidecar) -> None:
    call(trusting, "openai", "json", "untold", ending="no-usage")

    assert_spent_is_the_reservation(trusting, "untold")


def test_even_then_what_tells_its_usage_is_charged_exactly(trusting: Sidecar) -> None:
    call(trusting, "anthropic", "stream", "whole")

    assert_spent_is_the_bill(trusting, "whole")
