"""docs/performance.svg, drawn from what `make bench` has measured; nothing else is needed for it.

`python -m bench.plot` draws it again from tests/bench/result.json. Readable on light and on dark
paper, as it follows what the reader prefers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.measure import Figure

RESULT = Path(__file__).parent / "result.json"
PLOT = Path(__file__).parent.parent.parent / "docs" / "performance.svg"

_WIDTH, _LABELS, _FIGURES = 760, 130, 190
_BAR, _STEP, _TITLE, _GAP, _MARGIN, _LINE = 16, 24, 30, 14, 16, 16
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.note { font-size: 11px; fill: #59636e }
.bar { fill: #8c959f } .ours { fill: #0969da }
.spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .note { fill: #9198a1 }
  .bar { fill: #656c76 } .ours { fill: #4493f8 } .spread { stroke: #f0f6fc }
}"""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars that are compared with each other."""

    title: str
    bars: Mapping[str, Figure]
    unit: str = ""


class MissingRowsError(Exception):
    """A row that belongs into the plot was not measured."""


def panels(result: Mapping[str, Any]) -> list[Panel]:
    """What is shown of a result.

    Raises:
        MissingRowsError: naming what there is no figure of.
    """
    alone = _figure(result, "latency", "Envoy alone", "p50_us")
    return [
        Panel(
            "Checks a second, one process",
            _bars(result, "checks", ("E0", "E1", "E1w", "ours"), "per_second"),
        ),
        Panel(
            "Calls a second through Envoy, 16 connections",
            _bars(result, "sixteen", ("Envoy alone", "E1", "ours", "LiteLLM"), "per_second"),
        ),
        Panel(
            "Added to a call at one connection, p50",
            {
                name: _figure(result, "latency", name, "p50_us").minus(alone)
                for name in ("E1", "E1w", "ours")
            },
            " us",
        ),
    ]


def draw(result: Mapping[str, Any]) -> str:
    """The plot, as SVG.

    Raises:
        MissingRowsError: naming what there is no figure of.
    """
    shown, y = list[str](), _MARGIN
    for panel in panels(result):
        shown += _drawn(panel, y)
        y += _TITLE + _STEP * len(panel.bars) + _GAP
    machine = result["machine"]
    loads = [row["load_average"] for row in result.values() if "figures" in row]
    machine_words = (
        f"{machine['cores']} cores, {machine['cpu']}, Linux {machine['kernel']}, "
        f"Python {machine['python']}; load average {min(loads):g} to {max(loads):g}."
    )
    for line in (machine_words, _HOW, _NAMES):
        shown.append(_text(_MARGIN, y + 4, line, "note"))
        y += _LINE
    height = y + _MARGIN - _LINE + 4
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    about = "How fast extauthz is, beside an empty handler, Envoy alone and LiteLLM"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{about}">'
    return "\n".join([head, f"<style>\n{_STYLE}\n</style>", *shown, "</svg>"]) + "\n"


_HOW = "Bars are medians of rounds in turn; the line goes from the lowest round to the highest."
_NAMES = (
    "E0: an empty gRPC handler. E1: with a script in the store. "
    "E1w: with one that waits for the disk."
)


def _bars(
    result: Mapping[str, Any], row: str, names: Sequence[str], what: str
) -> dict[str, Figure]:
    return {name: _figure(result, row, name, what) for name in names}


def _figure(result: Mapping[str, Any], row: str, name: str, what: str) -> Figure:
    try:
        return Figure(tuple(result[row]["figures"][name][what]["rounds"]))
    except KeyError as missing:
        raise MissingRowsError(f"{row}, {name}: {what} was not measured") from missing


def _drawn(panel: Panel, top: int) -> Iterator[str]:
    yield _text(_MARGIN, top + 14, panel.title, "title")
    most = max(max(figure.rounds) for figure in panel.bars.values())
    left, room = _MARGIN + _LABELS, _WIDTH - 2 * _MARGIN - _LABELS - _FIGURES

    def place(value: float) -> float:
        return round(left + room * max(0.0, value) / most, 1) if most > 0 else left

    for n, (name, figure) in enumerate(panel.bars.items()):
        y = top + _TITLE + _STEP * n
        low, middle, high = (
            place(value) for value in (min(figure.rounds), figure.median, max(figure.rounds))
        )
        yield _text(_MARGIN, y + 12, name, "name")
        kind = "bar ours" if name == "ours" else "bar"
        if not figure.disagrees:
            width = round(middle - left, 1)
            yield f'<rect class="{kind}" x="{left}" y="{y}" width="{width}" height="{_BAR}"/>'
        # Of rounds that disagree too much there is no bar: only from where to where they lie.
        across = y + _BAR // 2
        yield f'<path class="spread" d="M{low} {across}H{high}M{low} {y + 4}v8M{high} {y + 4}v8"/>'
        yield _text(left + room + 12, y + 12, figure.text(panel.unit, 0), "note")


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def write(result: Mapping[str, Any], path: Path = PLOT) -> bool:
    """Draw it, if all of its rows were measured; whether they were."""
    try:
        drawn = draw(result)
    except MissingRowsError as missing:
        print(f"{path.name} stays as it is: {missing}")
        return False
    path.write_text(drawn)
    return True


if __name__ == "__main__":
    write(json.loads(RESULT.read_text()))
