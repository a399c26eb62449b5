"""Rounds in turn, their medians, and how far they disagree."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

SPREAD_MAX = 0.6
"""Rounds that are further apart than this share of their median tell of the machine, not of us."""

Sample = Mapping[str, float]
"""What one round of one contestant measured, by name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The rounds of one measurement."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """From the least to the most, as a share of the median."""
        return (max(self.rounds) - min(self.rounds)) / self.median if self.median else 0.0

    @property
    def disagrees(self) -> bool:
        """Whether its rounds are too far apart for one figure."""
        return self.spread > SPREAD_MAX

    def over(self, other: "Figure") -> "Figure":
        """The ratio, round by round: what slowed both is in neither."""
        return Figure(tuple(a / b for a, b in zip(self.rounds, other.rounds, strict=True)))

    def minus(self, other: "Figure") -> "Figure":
        """The difference, round by round."""
        return Figure(tuple(a - b for a, b in zip(self.rounds, other.rounds, strict=True)))

    def text(self, unit: str = "", digits: int = 2) -> str:
        """The median with its spread; of rounds that disagree too much, only where they lie."""
        low, high = (f"{end:,.{digits}f}" for end in (min(self.rounds), max(self.rounds)))
        if self.disagrees:
            return f"rounds disagree: {low} to {high}{unit}"
        return f"{self.median:,.{digits}f}{unit} ({low}-{high})"

    def to_json(self) -> dict[str, object]:
        """For the result file."""
        return {"median": self.median, "rounds": list(self.rounds)}


Figures = dict[str, dict[str, Figure]]
"""By contestant, then by measurement."""


def in_turn(contestants: Mapping[str, Callable[[], Sample]], rounds: int) -> Figures:
    """Let each run once to warm up, then all of them in turn, so many rounds."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            for what, value in run().items():
                found[name][what].append(value)
    return {
        name: {what: Figure(tuple(values)) for what, values in samples.items()}
        for name, samples in found.items()
    }
