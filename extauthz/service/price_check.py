"""What a call that is only imagined would cost, by the prices that are in force."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from genai_prices import data_snapshot

from extauthz.errors import OperatorError
from extauthz.policies import Policies
from extauthz.pricing import BillLine, PriceBook, PricedModel
from extauthz.usage import Exactness, UsageReport


class PriceCheckError(OperatorError):
    """There is no such price; the text says what there is."""


@dataclass(frozen=True, slots=True)
class PriceCheck:
    """A call's price: what each kind costs, and what the ledger would charge for all."""

    provider: str
    priced: PricedModel
    bill: tuple[BillLine, ...]
    cost_nanousd: int


def price_check(
    policies: Policies,
    prices: PriceBook,
    model: str,
    provider: str | None,
    amounts: Mapping[str, int],
    at_ms: int,
) -> PriceCheck:
    """Price a call of these amounts by kind, as a settlement would.

    Raises:
        PriceCheckError: the provider or the model is unknown, several providers have the model, or
            the amounts contradict each other or have a kind without a price.
    """
    found = _find(policies, prices, model, provider)
    name, priced = found
    report = UsageReport(Exactness.EXACT, amounts)
    try:
        cost_nanousd = priced.cost(report, at_ms)
        return PriceCheck(name, priced, priced.bill(report, at_ms), cost_nanousd)
    except ValueError as error:
        raise PriceCheckError(f"{model}: {error}") from error


def _find(
    policies: Policies, prices: PriceBook, model: str, provider: str | None
) -> tuple[str, PricedModel]:
    upstreams = policies.upstreams
    if provider is not None and provider not in upstreams:
        raise PriceCheckError(
            f"--provider {provider}: the config has none of this name; it has "
            f"{', '.join(sorted(upstreams)) or 'none at all'}"
        )
    searched = [provider] if provider else sorted(upstreams)
    found = [
        (name, priced)
        for name in searched
        if (priced := prices.find(name, upstreams[name].price_provider, model)) is not None
    ]
    if not found:
        raise PriceCheckError(_unknown(policies, prices, model, searched))
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise PriceCheckError(f"{model} is priced for several: choose one with --provider: {names}")
    return found[0]


def _unknown(policies: Policies, prices: PriceBook, model: str, searched: Iterable[str]) -> str:
    known: dict[str, str] = {}
    for name in searched:
        source_id = policies.upstreams[name].price_provider
        source = data_snapshot.get_snapshot().find_provider(None, source_id, None)
        for known_id in [*(info.id for info in source.models), *prices.own_models(name)]:
            if prices.find(name, source_id, known_id) is not None:
                known.setdefault(known_id.lower(), known_id)
    near = [known[one] for one in get_close_matches(model.lower(), known, n=5, cutoff=0.5)]
    said = f"; near it are: {', '.join(near)}" if near else ""
    return (
        f"{model}: has no known price at {', '.join(searched)}{said}. A price of your own goes "
        "under 'prices' in the config"
    )
