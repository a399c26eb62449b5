"""The audit: what the product says it spent against what the provider bills, agent by agent.

Everything here is plain data and plain sums, so that tests can break each rule and see it noticed.
Amounts are nano-USD.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from extauthz.money import format_usd


@dataclass(frozen=True, slots=True)
class AgentAccount:
    """One agent at the end of the run, seen from three sides: the product, the provider, the SDK.

    Attributes:
        name: As in the config; `(no key)` for calls that nobody can be held to.
        limit: Of its budget; None where it has none.
        spent: Of its budget, as the product's admin listener says.
        held: Likewise; nothing may be left of it.
        peak: The most that spent and held together were in any sample.
        admitted: Calls that Check let through, from the product's log.
        denied: Calls that Check refused, by reason, from the product's log.
        settled: Cost of each call whose usage the product read, from its log.
        smallest_refused: The least that a call refused for an exhausted budget could have cost.
        billed: Cost of each call that the provider delivered in full, from the provider's bill.
        billed_cut: Cost of each call that the provider was kept from delivering.
        calls: How many times the agent called its SDK.
        raised: What the SDK raised, by the exception's name.
        expected_denied: What the act was meant to bring about.
        expected_raised: Likewise.
        must_reach_limit: Whether the act was meant to spend the whole budget.
    """

    name: str
    limit: int | None = None
    spent: int = 0
    held: int = 0
    peak: int = 0
    admitted: int = 0
    denied: Mapping[str, int] = field(default_factory=dict)
    settled: Sequence[int] = ()
    smallest_refused: int | None = None
    billed: Sequence[int] = ()
    billed_cut: Sequence[int] = ()
    calls: int = 0
    raised: Mapping[str, int] = field(default_factory=dict)
    expected_denied: Mapping[str, int] = field(default_factory=dict)
    expected_raised: Mapping[str, int] = field(default_factory=dict)
    must_reach_limit: bool = False

    @property
    def bill(self) -> int:
        """All that the provider wants from this agent."""
        return sum(self.billed) + sum(self.billed_cut)

    @property
    def decisions(self) -> int:
        """Requests that reached Check."""
        return self.admitted + sum(self.denied.values())


@dataclass(frozen=True, slots=True)
class Books:
    """Everything the audit looks at."""

    accounts: Sequence[AgentAccount]
    bill_total: int
    """the provider's bill, whoever the calls were for"""
    open_reservations: int
    egress_requests: int
    """requests that Envoy received from agents, from its access log"""
    samples: int
    """how often all budgets were read during the run"""


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about the run, and what speaks against it."""

    text: str
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


def audit(books: Books) -> list[Check]:
    """Every check; the run is good if all of them passed."""
    return [
        _spent_is_bill(books),
        _cut_calls_are_covered(books),
        _nothing_held(books),
        _no_limit_passed(books),
        _stopped_at_limit(books),
        _denied_as_expected(books),
        _no_retries(books),
        _refused_calls_stay_home(books),
    ]


def _spent_is_bill(books: Books) -> Check:
    """Call by call, so that an amount too high cannot make up for one too low."""
    problems = []
    for account in books.accounts:
        settled, billed = Counter(account.settled), Counter(account.billed)
        problems += [
            f"{account.name}: the provider bills a call at ${format_usd(cost)} that was not "
            "settled so"
            for cost in (billed - settled).elements()
        ]
        problems += [
            f"{account.name}: a call was settled at ${format_usd(cost)} that the provider does "
            "not bill so"
            for cost in (settled - billed).elements()
        ]
        if not account.billed_cut and account.spent != account.bill:
            problems.append(
                f"{account.name}: spent ${format_usd(account.spent)}, but the provider bills "
                f"${format_usd(account.bill)}"
            )
    calls = sum(len(account.billed) for account in books.accounts)
    return _check(f"spent is the provider's bill, for each of {calls} completed calls", problems)


def _cut_calls_are_covered(books: Books) -> Check:
    problems = [
        f"{account.name}: spent ${format_usd(account.spent)} is below the bill of "
        f"${format_usd(account.bill)}"
        for account in books.accounts
        if account.spent < account.bill
    ]
    cut = sum(len(account.billed_cut) for account in books.accounts)
    if not cut:
        problems.append("no call was cut short, so nothing was shown")
    return _check(f"spent is never below the bill, with {cut} calls cut short", problems)


def _nothing_held(books: Books) -> Check:
    problems = [
        f"{account.name}: ${format_usd(account.held)} is still held"
        for account in books.accounts
        if account.held
    ]
    if books.open_reservations:
        problems.append(f"{books.open_reservations} reservations are still open")
    return _check("nothing is held at the end", problems)


def _no_limit_passed(books: Books) -> Check:
    problems = []
    for account in books.accounts:
        if account.limit is None:
            continue
        for what, amount in (
            ("spent", account.spent),
            ("spent and held, in a sample,", account.peak),
            ("the provider's bill", account.bill),
        ):
            if amount > account.limit:
                problems.append(
                    f"{account.name}: {what} ${format_usd(amount)} passed the limit of "
                    f"${format_usd(account.limit)}"
                )
    if not books.samples:
        problems.append("the budgets were never read during the run")
    return _check(f"no limit was passed, in {books.samples} samples and at the end", problems)


def _stopped_at_limit(books: Books) -> Check:
    problems, shown = [], []
    for account in books.accounts:
        if not account.must_reach_limit or account.limit is None:
            continue
        left = account.limit - account.spent
        if account.smallest_refused is None:
            problems.append(f"{account.name}: no call was refused for an exhausted budget")
            continue
        shown.append(
            f"{account.name} was stopped at its limit: ${format_usd(left)} of "
            f"${format_usd(account.limit)} is left, the smallest call needs "
            f"${format_usd(account.smallest_refused)}"
        )
        if left >= account.smallest_refused:
            problems.append(f"{account.name}: another call would have fitted")
    if not shown:
        problems.append("nobody reached a limit")
    return _check("; ".join(shown) or "the runaway was stopped at its limit", problems)


def _denied_as_expected(books: Books) -> Check:
    problems = []
    for account in books.accounts:
        for what, found, expected in (
            ("denied", account.denied, account.expected_denied),
            ("its SDK raised", account.raised, account.expected_raised),
        ):
            if dict(found) != dict(expected):
                problems.append(
                    f"{account.name}: {what} {_counts(found)}, expected {_counts(expected)}"
                )
    denied = sum(sum(account.denied.values()) for account in books.accounts)
    return _check(f"all {denied} denied calls were the expected ones", problems)


def _no_retries(books: Books) -> Check:
    problems = [
        f"{account.name}: {account.calls} SDK calls became {account.decisions} requests"
        for account in books.accounts
        if account.decisions != account.calls
    ]
    calls = sum(account.calls for account in books.accounts)
    if books.egress_requests != calls:
        problems.append(f"Envoy received {books.egress_requests} requests for {calls} SDK calls")
    return _check(f"no SDK retried: {calls} calls, {books.egress_requests} requests", problems)


def _refused_calls_stay_home(books: Books) -> Check:
    problems = []
    for account in books.accounts:
        reached = len(account.billed) + len(account.billed_cut)
        if reached != account.admitted:
            problems.append(
                f"{account.name}: {account.admitted} calls were admitted, but the provider bills "
                f"{reached}"
            )
    known = sum(account.bill for account in books.accounts)
    if known != books.bill_total:
        problems.append(
            f"the provider bills ${format_usd(books.bill_total)}, of which the agents here are "
            f"${format_usd(known)}"
        )
    return _check("the provider saw every admitted call and no denied one", problems)


def _check(text: str, problems: Sequence[str]) -> Check:
    return Check(text, tuple(problems))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"
