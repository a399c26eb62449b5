"""What one sees: a live table in a terminal, plain lines elsewhere, and the summary in both."""

import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from extauthz.demo.verdict import AgentAccount, Check
from extauthz.demo.watch import Standing
from extauthz.money import NANOUSD_PER_USD, format_usd

_PLAIN_WIDTH = 100
_PLAIN_SECONDS = 2.0
_BAR_WIDTH = 16
_ALMOST = 0.97

Standings = Mapping[str, Standing]


def make_console() -> Console:
    """For a terminal as it is; elsewhere without colours and of a fixed width."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(
        width=_PLAIN_WIDTH, force_terminal=False, no_color=True, highlight=False, emoji=False
    )


class Screen:
    """Text from top to bottom and, while it is open in a terminal, a table that moves below it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._act = 0
        self._active = ""
        self._last_line = ""
        self._next_line_at = 0.0
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._started

    def say(self, text: str = "", *, style: str = "") -> None:
        """One paragraph."""
        self._console.print(Text(self._filled(text), style=style))

    def act(self, title: str, text: str) -> None:
        """What happens next, and why it matters."""
        self._act += 1
        self._next_line_at = self._clock() + _PLAIN_SECONDS
        heading = f"{self._act}  {title}."
        self._console.print()
        paragraph = Text(self._filled(f"{heading} {text}"))
        paragraph.stylize("bold cyan", 0, len(heading))
        self._console.print(paragraph)

    def result(self, text: str) -> None:
        """What came of it."""
        self._console.print(Text(self._filled(text, "   "), style="dim"))

    def show(self, standings: Standings, active: str) -> None:
        """The present state: the table moves on, or now and then a line is added."""
        if self._live is not None:
            self._live.update(Group(Text(), self._table(standings, active)), refresh=True)
        elif active in standings and self._clock() >= self._next_line_at:
            self._next_line_at = self._clock() + _PLAIN_SECONDS
            line = _plain_line(active, standings[active])
            if line != self._last_line:
                self._last_line = line
                self._console.print(Text(f"   {self.seconds:5.1f} s  {line}"))

    def _filled(self, text: str, indent: str = "") -> str:
        return _filled(text, self._console.width, indent)

    def _table(self, standings: Standings, active: str) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim", title_justify="left")
        table.add_column("agent")
        for name in ("admitted", "denied", "spent", "held", "limit"):
            table.add_column(name, justify="right")
        table.add_column("of its limit", width=_BAR_WIDTH)
        table.add_column("its bill", justify="right")
        for name, standing in standings.items():
            table.add_row(
                Text(name, style="bold" if name == active else ""),
                str(standing.admitted),
                Text(
                    str(standing.denied.total() or "·"),
                    style="yellow" if standing.denied else "dim",
                ),
                *_live_amounts(standing),
                _bar(standing),
                _short(standing.bill),
            )
        return table


def _filled(text: str, width: int, indent: str) -> str:
    """Wrapped without spaces at the ends of lines, and not too wide to be read."""
    return textwrap.fill(
        text, min(width, _PLAIN_WIDTH), initial_indent=indent, subsequent_indent=indent
    )


def _live_amounts(standing: Standing) -> list[Text]:
    if standing.limit is None:
        return [Text("·", style="dim")] * 3
    return [
        Text(_short(standing.spent)),
        Text(_short(standing.held) if standing.held else "·", style="" if standing.held else "dim"),
        Text(f"{format_usd(standing.limit)}"),
    ]


def _bar(standing: Standing) -> ProgressBar | Text:
    """Display only, so floats will do."""
    if standing.limit is None:
        return Text()
    part = (standing.spent + standing.held) / standing.limit
    style = "yellow" if part >= _ALMOST else "cyan"
    return ProgressBar(
        total=1.0,
        completed=min(part, 1.0),
        width=_BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )


def _short(nanousd: int) -> str:
    """Four decimal places, cut off and not rounded: a limit must not look passed."""
    whole, rest = divmod(nanousd, NANOUSD_PER_USD)
    return f"{whole}.{rest // 100_000:04d}"


def _plain_line(name: str, standing: Standing) -> str:
    text = f"{name}: {standing.admitted} admitted, {standing.denied.total()} denied"
    if standing.limit is not None:
        text += (
            f", ${_short(standing.spent)} spent and ${_short(standing.held)} held "
            f"of ${format_usd(standing.limit)}"
        )
    return text


def summary(accounts: Sequence[AgentAccount]) -> Table:
    """Every agent's account, in exact USD; the bill is the provider's own."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("agent")
    table.add_column("admitted", justify="right")
    table.add_column("denied", overflow="fold")
    for name in ("spent", "held", "limit", "provider's bill", "difference"):
        table.add_column(name, justify="right")
    places = max(
        len(format_usd(amount).partition(".")[2])
        for account in accounts
        for amount in (account.spent, account.bill, account.spent - account.bill)
    )
    for account in accounts:
        has_budget = account.limit is not None
        table.add_row(
            account.name,
            str(account.admitted),
            "\n".join(f"{n} {reason}" for reason, n in sorted(account.denied.items())) or "0",
            _aligned(account.spent, places) if has_budget else "-",
            format_usd(account.held) if has_budget else "-",
            format_usd(account.limit) if account.limit is not None else "-",
            _aligned(account.bill, places),
            _aligned(account.spent - account.bill, places),
        )
    return table


def _aligned(nanousd: int, places: int) -> str:
    """Exact, with the decimal points of a column below each other."""
    whole, _, fraction = format_usd(nanousd).partition(".")
    return f"{whole}.{fraction.ljust(places, '0')}"


def verdict_lines(checks: Sequence[Check], width: int) -> Text:
    """One line for each check, and below a failed one what speaks against it."""
    text = Text()
    for check in checks:
        mark, style = ("✓", "green") if check.passed else ("✗", "bold red")
        text.append(mark, style)
        text.append(f" {check.text}\n")
        for problem in check.problems:
            text.append(f"{_filled(problem, width, '    ')}\n", "red")
    text.rstrip()
    return text
