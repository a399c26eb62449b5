"""What people read: names that cannot steer a terminal, columns, bars, and a pipe that closes."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_EIGHTHS = " ▏▎▍▌▋▊▉"
_BAR = "\x1b[36m"
_PLAIN = "\x1b[0m"


def printable(text: str) -> str:
    """A text without what a terminal would obey or could not show.

    Control characters, and those that turn the direction of writing or take no room, become `?`.
    """
    return "".join("?" if unicodedata.category(sign)[0] == "C" else sign for sign in text)


def width_of(text: str) -> int:
    """How many columns a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF")
        for sign in text
    )


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """A text in exactly so many columns; what is longer ends in `…`, or `~`."""
    if width_of(text) > width:
        while text and width_of(text) > width - 1:
            text = text[:-1]
        text += "…" if _shows("…", sys.stdout) else "~"
    blank = " " * (width - width_of(text))
    return blank + text if right else text + blank


def columns(rows: Sequence[Sequence[str]], right: Sequence[bool], room: int) -> list[str]:
    """Rows as aligned lines; the first column gives way where they are wider than the room."""
    widths = [max(width_of(row[at]) for row in rows) for at in range(len(right))]
    rest = sum(widths[1:]) + 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(8, room - rest))
    return [
        "  ".join(
            fitted(text, width, right=on_right)
            for text, width, on_right in zip(row, widths, right, strict=True)
        )
        for row in rows
    ]


def bar(part: int, whole: int, width: int) -> str:
    """How large a part is, as a bar of at most so many columns; in colour on a terminal."""
    if part <= 0 or whole <= 0 or width <= 0:
        return ""
    eighths = max(1, min(part, whole) * width * 8 // whole)
    if not _shows(_EIGHTHS, sys.stdout):
        return "#" * max(1, eighths // 8)
    text = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return f"{_BAR}{text}{_PLAIN}" if has_colour() else text


def room() -> int:
    """How many columns there are; a pipe has as many as are good to read."""
    return shutil.get_terminal_size((100, 24)).columns


def has_colour() -> bool:
    """Whether the output is a terminal whose owner has not asked for none (no-color.org)."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") != "dumb"
    )


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """End quietly where whoever read the output has left, as `| head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shows(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
