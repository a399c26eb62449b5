"""What a call used, as far as its response tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum


class Exactness(StrEnum):
    """How much of the truth a report holds."""

    EXACT = "exact"
    LOWER_BOUND = "lower_bound"
    """Seen so far, for example the input side of a stream that was cut."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Usage by kind, in the keys of genai-prices (`input_tokens` includes cached ones).

    Attributes:
        exactness: whether `amounts` is the truth, a lower bound of it, or nothing at all.
        amounts: usage by kind.
        served_model: the model that answered, as the provider names it; None if it did not say.
        price_context: what else decides the price, for example the service tier that was served.
        told_cost_usd: what the provider itself says that it charges, where it does; a list price
            may know of less (a search, a dearer route), so the larger of the two counts.
    """

    exactness: Exactness
    amounts: Mapping[str, int] = field(default_factory=dict)
    served_model: str | None = None
    price_context: Mapping[str, str] = field(default_factory=dict)
    told_cost_usd: Decimal | None = None

    @property
    def tokens(self) -> int:
        """Input and output tokens together, cached and reasoning included, unweighted."""
        return self.amounts.get("input_tokens", 0) + self.amounts.get("output_tokens", 0)


UNKNOWN_USAGE = UsageReport(Exactness.UNKNOWN)
