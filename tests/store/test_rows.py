"""Every ending, correction, conflict and override writes exactly one row, in the same step."""

import asyncio

import pytest
from ledger_calls import TABLE, Call, Row, brought_to, event, now_ms, tell
from servers import Server

from extauthz.ledger import Change, Hold, Outcome, Override, Posting, RowOutcome, Settle
from extauthz.store.base import BooksClosedError, LedgerStore, counter_key
from extauthz.store.redis import RedisStore

WRITES_NOTHING = (Outcome.DUPLICATE,)


def row_expected(line: Row) -> RowOutcome | None:
    """What the books say of a line of the ledger's table."""
    if not isinstance(line.answer, Outcome) or line.answer in WRITES_NOTHING:
        return None
    if line.answer is Outcome.EXPIRED:
        return RowOutcome.EXPIRED_UNCONFIRMED
    return RowOutcome(line.answer)


@pytest.mark.parametrize("line", TABLE, ids=str)
async def test_a_line_of_the_table_writes_one_row_or_none(line: Row, store: LedgerStore) -> None:
    call = await brought_to(store, line.start)
    before = await store.rows(call.org, 0, 1000)

    command = event(call, line.event)
    await tell(store, command)

    new = await store.rows(command.org, before[-1].seq if command.org == call.org else 1, 1000)
    expected = row_expected(line)
    assert [row.outcome for row in new] == ([] if expected is None else [expected])
    assert sum(p.change for row in new for p in row.postings[:1]) == line.spent
    assert sum(p.held for row in new for p in row.postings[:1]) == max(0, -line.held)


async def test_a_row_says_who_what_how_much_on_which_counters(store: LedgerStore) -> None:
    call = Call()
    at_ms = now_ms()
    words = '{"agent":"b\u00f6t"}'
    reserve = call.reserve(lease_ms=-1, at_ms=at_ms)
    held = tuple(Posting(hold.key.partition(":c:")[2], 0, 0, 0, 0) for hold in reserve.holds)

    await store.reserve(reserve)
    await store.expire(call.org, at_ms, 86_400_000, 10)
    settle = call.settle(at_ms=at_ms)
    await store.settle(
        Settle(call.id, call.org, at_ms, at_ms, 86_400_000, settle.charges, 9007199254740993 // 2,
               words)
    )  # fmt: skip

    opened, expired, late = await store.rows(call.org, 0, 10)
    assert (opened.seq, expired.seq, late.seq) == (1, 2, 3)
    assert opened.outcome is RowOutcome.OPENED
    assert (expired.id, expired.at_ms, expired.change_nanousd) == (call.id, at_ms, 0)
    assert [p.counter for p in late.postings] == [p.counter for p in held]
    assert [(p.held, p.charged, p.before) for p in expired.postings] == [
        (1000, 1000, 0),
        (100, 100, 0),
    ]
    assert [(p.held, p.charged, p.before) for p in late.postings] == [(0, 700, 1000), (0, 70, 100)]
    assert late.cost_nanousd == 9007199254740993 // 2
    assert late.particulars == words


async def test_rows_are_read_a_page_at_a_time(store: LedgerStore) -> None:
    call = Call()
    for sibling in (call, call.sibling(), call.sibling()):
        await store.settle(sibling.settle())

    assert [row.seq for row in await store.rows(call.org, 1, 2)] == [2, 3]
    assert [row.seq for row in await store.rows(call.org, 3, 9)] == [4]


async def test_a_settlement_that_contradicts_is_written_with_both_amounts(
    store: LedgerStore,
) -> None:
    call = Call()
    at_ms = now_ms()
    charges = call.settle(at_ms=at_ms).charges
    await store.reserve(call.reserve())

    await store.settle(Settle(call.id, call.org, at_ms, at_ms, 86_400_000, charges, 700))
    await store.settle(Settle(call.id, call.org, at_ms, at_ms, 86_400_000, charges, 900))

    row = (await store.rows(call.org, 2, 9))[0]
    assert (row.outcome, row.cost_nanousd, row.change_nanousd) == (RowOutcome.CONFLICT, 700, 0)
    assert row.claimed_nanousd == 900


async def test_an_override_is_a_row_and_its_repeat_is_none(store: LedgerStore) -> None:
    org, at_ms = Call().org, now_ms()
    change = Override(
        "o1", org, at_ms, Change.SET, "agent/bot/day/usd", at_ms + 1000, 5, note="said so"
    )

    await store.override(change)
    await store.override(change)

    rows = await store.rows(org, 1, 9)
    assert [(row.outcome, row.id) for row in rows] == [(RowOutcome.OVERRIDE, "o1")]
    assert rows[0].particulars == (
        '{"change":"set","target":"agent/bot/day/usd","amount":"5","note":"said so"}'
    )


async def test_a_lease_that_was_charged_is_unconfirmed_until_a_settlement(
    store: LedgerStore,
) -> None:
    call = Call()
    other = call.sibling()
    for one in (call, other):
        await store.reserve(one.reserve())
    await store.expire(call.org, now_ms(), 86_400_000, 10)
    assert sorted(await store.unconfirmed_ids(call.org)) == sorted([call.id, other.id])

    await store.settle(call.settle())
    await store.release(other.release())

    assert await store.unconfirmed_ids(call.org) == []


async def test_forty_calls_at_once_leave_no_gap_between_rows(store: LedgerStore) -> None:
    org = Call().org
    calls = [Call(org=org) for _ in range(40)]
    await asyncio.gather(*(store.reserve(call.reserve(1, limit=10**6)) for call in calls))
    await asyncio.gather(*(store.settle(call.settle(10)) for call in calls))

    rows = await store.rows(org, 0, 1000)
    assert [row.seq for row in rows] == list(range(1, len(calls) + 2))
    assert {row.id for row in rows[1:]} == {call.id for call in calls}


async def test_a_store_that_has_lost_its_books_takes_nothing_until_they_are_back(
    any_server: Server,
) -> None:
    """A hold, a cost or an override without its row would be money that no book knows."""
    store = RedisStore.from_url(any_server.url, command_timeout_s=10)
    call = Call()
    late = call.sibling()
    try:
        for one in (call, late):
            await store.reserve(one.reserve())
        with any_server.client() as client:
            client.delete(f"xa1:{{{call.org}}}:rows")

        at_ms = now_ms()
        for command in (
            call.sibling().reserve(),
            call.settle(),
            call.release(),
            call.expire(),
            Override("o", call.org, at_ms, Change.PAUSE, "agent:bot", at_ms + 1),
        ):
            with pytest.raises(BooksClosedError, match="has lost the books of the org"):
                await tell(store, command)
        (answer,) = await store.settle_many([call.settle()])
        assert isinstance(answer, BooksClosedError)
        balances = await store.balances(call.org, call.keys[:1], now_ms())
        assert (balances[0].spent, balances[0].held) == (0, 2000)
    finally:
        await store.close()


async def test_a_hold_on_a_pattern_with_spaces_comes_back_as_one_counter(
    store: LedgerStore,
) -> None:
    call, at_ms = Call(), now_ms()
    key = counter_key(call.org, "model/odd name*/day/usd", 0)
    reserve = call.reserve()
    hold = Hold(key, 5, 10, at_ms + 86_400_000)
    await store.reserve(
        type(reserve)(call.id, call.org, at_ms, at_ms - 1, (hold, *reserve.holds[1:]))
    )
    await store.expire(call.org, now_ms(), 86_400_000, 10)

    (row,) = await store.rows(call.org, 1, 9)
    assert [p.counter for p in row.postings] == ["model/odd name*/day/usd:0", "month:0"]


async def test_books_that_are_known_to_lack_rows_take_nothing_until_they_are_trusted_again(
    any_server: Server,
) -> None:
    store = RedisStore.from_url(any_server.url, command_timeout_s=10)
    call = Call()
    try:
        await store.reserve(call.reserve())
        store.distrust_books(call.org, "row 9 is archived, and not there")
        for command in (call.sibling().reserve(), call.settle(), call.release(), call.expire()):
            with pytest.raises(BooksClosedError, match="row 9 is archived"):
                await tell(store, command)
        (answer,) = await store.settle_many([call.settle()])
        assert isinstance(answer, BooksClosedError)

        store.distrust_books(call.org, None)
        assert (await store.settle(call.settle())).outcome is Outcome.SETTLED
    finally:
        await store.close()
