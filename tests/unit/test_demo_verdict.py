"""The demo's audit passes for good books, and notices each way in which they can be bad."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from extauthz.demo.stage import timezone_at_noon
from extauthz.demo.table import summary, verdict_lines
from extauthz.demo.verdict import AgentAccount, Books, audit

USD = 10**9
ASSISTANT, RUNAWAY, HANGUP, NOBODY = range(4)

GOOD = Books(
    accounts=(
        AgentAccount(
            "assistant",
            limit=2 * USD,
            spent=500,
            peak=900,
            admitted=2,
            settled=[300, 200],
            billed=[200, 300],
            calls=2,
        ),
        AgentAccount(
            "runaway",
            limit=3 * USD,
            spent=3 * USD - 10,
            peak=3 * USD,
            admitted=1,
            denied={"budget_exhausted": 8},
            settled=[3 * USD - 10],
            smallest_refused=11,
            billed=[3 * USD - 10],
            calls=9,
            raised={"openai.RateLimitError": 8},
            expected_denied={"budget_exhausted": 8},
            expected_raised={"openai.RateLimitError": 8},
            must_reach_limit=True,
        ),
        AgentAccount(
            "hangup",
            limit=USD,
            spent=1_050,
            peak=1_050,
            admitted=2,
            settled=[50],
            billed=[50],
            billed_cut=[900],
            calls=2,
        ),
        AgentAccount(
            "(no key)",
            denied={"unknown_agent": 1},
            calls=1,
            raised={"openai.AuthenticationError": 1},
            expected_denied={"unknown_agent": 1},
            expected_raised={"openai.AuthenticationError": 1},
        ),
    ),
    bill_total=500 + 3 * USD - 10 + 950,
    open_reservations=0,
    egress_requests=14,
    samples=100,
)


def failed(books: Books) -> list[str]:
    return [check.text for check in audit(books) if not check.passed]


def changed(index: int, **changes: Any) -> Books:
    accounts = list(GOOD.accounts)
    accounts[index] = replace(accounts[index], **changes)
    return replace(GOOD, accounts=accounts)


def test_good_books_pass_every_check() -> None:
    checks = audit(GOOD)

    assert failed(GOOD) == []
    assert len(checks) == 8
    assert str(verdict_lines(checks, 100)).count("✓") == 8


@pytest.mark.parametrize(
    ("books", "words"),
    [
        pytest.param(changed(ASSISTANT, spent=499), ["spent is", "never below"], id="below"),
        pytest.param(changed(ASSISTANT, spent=501), ["spent is"], id="above the bill"),
        pytest.param(
            changed(ASSISTANT, settled=[301, 199]), ["spent is"], id="two errors that make up"
        ),
        pytest.param(changed(ASSISTANT, settled=[300]), ["spent is"], id="a call never settled"),
        pytest.param(
            changed(ASSISTANT, settled=[300, 200, 200]), ["spent is"], id="a call settled twice"
        ),
        pytest.param(changed(HANGUP, spent=949), ["never below"], id="cut call below its bill"),
        pytest.param(
            changed(HANGUP, settled=[51]), ["spent is"], id="completed call of an agent that cut"
        ),
        pytest.param(
            changed(HANGUP, billed=[50, 900], billed_cut=[]),
            ["spent is", "never below the bill, with 0"],
            id="nobody hung up",
        ),
        pytest.param(changed(RUNAWAY, held=1), ["nothing is held"], id="held left"),
        pytest.param(
            replace(GOOD, open_reservations=1), ["nothing is held"], id="an open reservation"
        ),
        pytest.param(changed(RUNAWAY, peak=3 * USD + 1), ["no limit"], id="passed in a sample"),
        pytest.param(changed(HANGUP, limit=1_049), ["no limit"], id="passed at the end"),
        pytest.param(replace(GOOD, samples=0), ["no limit"], id="nobody looked"),
        pytest.param(changed(RUNAWAY, smallest_refused=10), ["left"], id="stopped too early"),
        pytest.param(changed(RUNAWAY, smallest_refused=None), ["limit"], id="never stopped"),
        pytest.param(changed(RUNAWAY, must_reach_limit=False), ["limit"], id="no runaway"),
        pytest.param(
            changed(RUNAWAY, denied={"budget_exhausted": 7, "budget_held": 1}),
            ["denied calls"],
            id="denied for another reason",
        ),
        pytest.param(
            changed(RUNAWAY, raised={"openai.APIStatusError": 8}),
            ["denied calls"],
            id="an exception that the SDK does not know",
        ),
        pytest.param(
            changed(ASSISTANT, raised={"openai.InternalServerError": 1}),
            ["denied calls"],
            id="an unexpected exception",
        ),
        pytest.param(changed(RUNAWAY, calls=8), ["retried"], id="the SDK retried"),
        pytest.param(replace(GOOD, egress_requests=15), ["retried"], id="Envoy saw one more"),
        pytest.param(
            changed(NOBODY, billed=[7], spent=7), ["the provider saw"], id="a denied call got out"
        ),
        pytest.param(
            replace(GOOD, bill_total=GOOD.bill_total + 1),
            ["the provider saw"],
            id="billed to somebody unknown",
        ),
    ],
)
def test_bad_books_fail_and_say_why(books: Books, words: list[str]) -> None:
    found = failed(books)

    for word in words:
        assert any(word in text for text in found), found
    problems = [problem for check in audit(books) for problem in check.problems]
    text = str(verdict_lines(audit(books), 300))
    assert "✗" in text
    assert all(problem in text for problem in problems)


def test_the_summary_shows_exact_amounts_below_each_other() -> None:
    table = summary(GOOD.accounts)

    spent = list(table.columns[3].cells)
    assert spent == ["0.00000050", "2.99999999", "0.00000105", "-"]
    assert list(table.columns[7].cells)[2] == "0.00000010"


@pytest.mark.parametrize("hour", range(24))
def test_the_demos_day_never_ends_during_the_demo(hour: int) -> None:
    now = datetime(2025, 3, 9, hour, 59, tzinfo=UTC)

    assert now.astimezone(ZoneInfo(timezone_at_noon(now))).hour == 12
