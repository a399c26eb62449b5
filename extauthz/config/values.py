"""How the config writes amounts, durations and addresses."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from extauthz.money import AmountError, parse_usd

_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):(\d{1,5})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class Address(NamedTuple):
    """A TCP address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _duration_ms(value: Any) -> int:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a duration with its unit, such as 500ms, 30s, 15m, 1h or 7d")
    return int(match[1]) * _UNIT_MS[match[2]]


def _address(value: Any) -> Address:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match[2]) <= 65_535:
        raise ValueError("write an address as HOST:PORT, such as 127.0.0.1:10000")
    return Address(match[1].strip("[]"), int(match[2]))


def _decimal(value: Any) -> Decimal:
    # The YAML loader reads numbers with a point as Decimal; bool is an int in Python.
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        raise ValueError("write a decimal number, such as 25.00")  # noqa: TRY004 - pydantic collects ValueError
    try:
        number = Decimal(value)
    except ArithmeticError as error:
        raise ValueError("write a decimal number, such as 25.00") from error
    if not number.is_finite() or number < 0:
        raise ValueError("write a number of zero or more")
    return number


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a name is made of letters, digits and . _ @ - (at most 128 characters)")
    return value


def usd_to_nano(value: Decimal) -> int:
    """An amount in USD as nano-USD; the error says what is wrong with it."""
    try:
        return parse_usd(value)
    except AmountError as error:
        raise ValueError(str(error)) from error


DurationMs = Annotated[int, BeforeValidator(_duration_ms)]
ListenAddress = Annotated[Address, BeforeValidator(_address)]
Number = Annotated[Decimal, BeforeValidator(_decimal)]
Name = Annotated[str, BeforeValidator(_name)]
ConfigPath = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser())]
