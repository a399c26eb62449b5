"""Overrides: what applies at an instant, and that each is carried out once."""

import pytest

from extauthz.ledger import (
    Applied,
    Change,
    Hold,
    Ledger,
    Override,
    Paused,
    Refused,
    Reserve,
    Reserved,
)
from extauthz.ledger.overrides import LIMITS_MAX
from extauthz.money import AMOUNT_MAX

NOW, LATER, DAY_MS = 1_790_000_000_000, 1_790_000_060_000, 86_400_000
BUDGET = "agent/bot/day/usd"


def tell(ledger: Ledger, change: Change, **fields: object) -> Applied:
    told: dict = {"id": f"o{len(ledger.book.ids)}", "org": "default", "at_ms": NOW,
                  "target": BUDGET, "forget_at_ms": NOW + DAY_MS}  # fmt: skip
    return ledger.override(Override(change=change, **(told | fields)))


def limit_at(ledger: Ledger, at_ms: int = NOW, limit: int = 10) -> int:
    return ledger.book.at(at_ms).limit_in_force(BUDGET, limit, at_ms)


def ask(ledger: Ledger, amount: int, at_ms: int = NOW, id_: str = "r") -> object:
    hold = Hold("key", amount, 10, at_ms + DAY_MS, budget_id=BUDGET)
    who = ("agent:bot", "team:crew")
    return ledger.reserve(Reserve(id_, "default", at_ms, at_ms, (hold,), pausable_as=who))


def test_a_limit_that_is_set_replaces_that_of_the_file_until_its_end() -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, amount=50, until_ms=LATER)
    assert (limit_at(ledger), limit_at(ledger, LATER - 1), limit_at(ledger, LATER)) == (50, 50, 10)


def test_a_limit_may_be_set_lower_and_is_the_answers_limit() -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, amount=3)
    answer = ask(ledger, 4)
    assert isinstance(answer, Refused)
    assert answer.limits == (3,)
    assert isinstance(ask(ledger, 3), Reserved)


def test_a_top_up_adds_to_whichever_limit_holds_and_ends_with_its_window() -> None:
    ledger = Ledger()
    tell(ledger, Change.TOP_UP, amount=5, until_ms=LATER)
    assert (limit_at(ledger), limit_at(ledger, LATER)) == (15, 10)
    tell(ledger, Change.TOP_UP, amount=2, until_ms=LATER)
    tell(ledger, Change.SET, amount=100)
    tell(ledger, Change.TOP_UP, amount=3, until_ms=LATER)
    assert (limit_at(ledger), limit_at(ledger, LATER)) == (103, 100)


@pytest.mark.parametrize("until_ms", [None, LATER])
def test_a_limit_that_is_set_ends_the_top_ups_before_it_and_for_good(until_ms: int | None) -> None:
    ledger = Ledger()
    tell(ledger, Change.TOP_UP, amount=5)
    tell(ledger, Change.SET, amount=0, until_ms=until_ms)
    assert limit_at(ledger) == 0
    assert isinstance(ask(ledger, 1), Refused)
    assert limit_at(ledger, LATER) == (0 if until_ms is None else 10)


def test_when_a_temporary_limit_ends_what_was_set_before_it_is_in_force_again() -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, amount=50)
    tell(ledger, Change.SET, amount=30, until_ms=LATER + 1)
    tell(ledger, Change.SET, amount=70, until_ms=LATER)
    at = (NOW, LATER - 1, LATER, LATER + 1)
    assert [limit_at(ledger, at_ms) for at_ms in at] == [70, 70, 30, 50]


@pytest.mark.parametrize("until_ms", [None, LATER, LATER + 1])
def test_the_limit_that_was_set_last_is_in_force_whatever_was_to_hold_longer(
    until_ms: int | None,
) -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, amount=70, until_ms=LATER)
    tell(ledger, Change.SET, amount=50, until_ms=until_ms)
    assert limit_at(ledger) == limit_at(ledger, LATER - 1) == 50
    assert limit_at(ledger, LATER) == (10 if until_ms == LATER else 50)


def test_only_so_many_limits_wait_and_the_one_without_end_is_among_them() -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, amount=100)
    for n in range(LIMITS_MAX + 3):
        tell(ledger, Change.SET, amount=n, until_ms=LATER - n)
        assert limit_at(ledger) == n
    assert len(ledger.book.budgets[BUDGET].limits) == LIMITS_MAX
    assert (limit_at(ledger, LATER - 1), limit_at(ledger, LATER)) == (0, 100)


def test_no_limit_grows_beyond_what_the_ledger_can_compare() -> None:
    ledger = Ledger()
    tell(ledger, Change.TOP_UP, amount=AMOUNT_MAX)
    tell(ledger, Change.TOP_UP, amount=AMOUNT_MAX)
    assert limit_at(ledger) == AMOUNT_MAX


def test_unset_brings_the_files_limit_back_without_top_ups() -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, amount=50)
    tell(ledger, Change.TOP_UP, amount=5)
    tell(ledger, Change.UNSET)
    assert limit_at(ledger) == 10


@pytest.mark.parametrize("who", ["agent:bot", "team:crew"])
def test_a_pause_refuses_until_its_end_or_until_it_is_resumed(who: str) -> None:
    ledger = Ledger()
    tell(ledger, Change.PAUSE, target=who, until_ms=LATER)
    assert ask(ledger, 1) == Paused("r", LATER)
    assert isinstance(ask(ledger, 1, LATER, "after"), Reserved)
    tell(ledger, Change.PAUSE, target=who)
    assert ask(ledger, 1) == Paused("r", None)
    tell(ledger, Change.RESUME, target=who)
    assert isinstance(ask(ledger, 1), Reserved)


def test_of_two_pauses_the_one_that_lasts_longer_is_told() -> None:
    ledger = Ledger()
    tell(ledger, Change.PAUSE, target="agent:bot", until_ms=LATER + 1)
    tell(ledger, Change.PAUSE, target="team:crew", until_ms=LATER)
    assert ask(ledger, 1) == Paused("r", LATER + 1)


def test_a_reservation_that_was_granted_stays_granted_when_its_agent_is_paused() -> None:
    ledger = Ledger()
    assert isinstance(ask(ledger, 1), Reserved)
    tell(ledger, Change.PAUSE, target="agent:bot")
    assert isinstance(ask(ledger, 1), Reserved)


def test_a_repeat_is_carried_out_once_even_in_the_next_window() -> None:
    ledger = Ledger()
    assert tell(ledger, Change.TOP_UP, id="x", amount=5, until_ms=LATER) is Applied.APPLIED
    again = tell(ledger, Change.TOP_UP, id="x", at_ms=LATER, amount=5, until_ms=LATER + DAY_MS)
    assert again is Applied.DUPLICATE
    assert (limit_at(ledger), limit_at(ledger, LATER)) == (15, 10)


@pytest.mark.parametrize(
    "other",
    [{"amount": 6}, {"target": "agent/other/day/usd"}, {"change": Change.SET}, {"until_ms": 1}],
)
def test_an_id_that_says_something_else_changes_nothing(other: dict) -> None:
    ledger = Ledger()
    said: dict = {"change": Change.SET if "until_ms" in other else Change.TOP_UP, "amount": 5}
    tell(ledger, id="x", **said)
    before = limit_at(ledger)
    assert tell(ledger, id="x", **(said | other)) is Applied.CONFLICT
    assert limit_at(ledger) == before


def test_an_old_set_that_comes_again_does_not_undo_a_newer_one() -> None:
    ledger = Ledger()
    tell(ledger, Change.SET, id="old", amount=50)
    tell(ledger, Change.SET, id="new", amount=60)
    tell(ledger, Change.SET, id="old", amount=50)
    assert limit_at(ledger) == 60


@pytest.mark.parametrize(
    "wrong",
    [{"id": ""}, {"id": "a b"}, {"amount": -1}, {"amount": AMOUNT_MAX + 1},
     {"change": Change.PAUSE, "target": BUDGET}, {"change": Change.RESUME, "target": "agent:"}],
)  # fmt: skip
def test_what_says_nothing_sensible_is_no_override(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"is no id|is not within|is neither"):
        tell(Ledger(), **({"change": Change.SET} | wrong))
